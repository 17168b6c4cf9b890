"""`penstock destroy` against a real broker."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.engine.cli import cli
from penstock.router.kafka_admin import Admin
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import ALIVE_MS, PARTS, ensure

pytestmark = pytest.mark.kafka


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["destroy", *arguments], prog_name="penstock")
    assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture
def app(kafka: str, kafka_app: str) -> str:
    """An application that has topics, and nothing running."""
    asyncio.run(ensure(KafkaOptions(kafka), kafka_app, application_id="1", parallelism=2, replicas=1))
    return kafka_app


def topics(bootstrap: str, app: str) -> list[str]:
    async def ask() -> list[str]:
        async with Admin(KafkaOptions(bootstrap)) as admin:
            return sorted(name for name in await admin.topics(None) if name.startswith(app))

    return asyncio.run(ask())


def say_alive(bootstrap: str, app: str) -> None:
    async def say() -> None:
        async with Admin(KafkaOptions(bootstrap)) as admin:
            await admin.append([(f"{app}.reports", 0, b"worker-1", b"alive")])

    asyncio.run(say())


def test_it_only_says_what_it_would_do(kafka: str, app: str) -> None:
    result = run("--kafka", kafka, "--name", app)

    lines = result.stdout.splitlines()
    assert lines[0].split() == ["KIND", "NAME", "PARTITIONS", "SIZE", "BYTES"]
    assert [line.split()[:3] for line in lines[1:-1]] == [
        ["topic", f"{app}.control", "2"],
        ["topic", f"{app}.dead", "1"],
        ["topic", f"{app}.deltas", "2"],
        ["topic", f"{app}.egress-marks", "2"],
        ["topic", f"{app}.inbox", "2"],
        ["topic", f"{app}.replies", "2"],
        ["topic", f"{app}.reports", "1"],
        ["topic", f"{app}.requests", "2"],
    ]
    assert lines[-1] == f"Would remove 8 topics of {app}; add --yes."
    assert result.stderr == (
        "Its 3 transactional ids can't be removed; the cluster forgets them by itself. What is in a checkpoint store "
        "stays.\n"
    )
    assert len(topics(kafka, app)) == len(PARTS)


def test_it_is_the_application_that_the_settings_name(
    kafka: str, app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named.py").write_text('from penstock import App\napp = App("another")\n')
    (tmp_path / "penstock.toml").write_text(f'name = "{app}"\n')

    assert run("--kafka", kafka, "--app", "named.py").stdout.endswith(f"Would remove 8 topics of {app}; add --yes.\n")


def test_it_removes_the_topics_and_nothing_else(kafka: str, app: str) -> None:
    other = f"{app}-other"
    asyncio.run(ensure(KafkaOptions(kafka), other, application_id="2", parallelism=1, replicas=1))

    assert run("--kafka", kafka, "--name", app, "--yes").stdout.endswith(f"8 topics of {app} removed.\n")

    assert topics(kafka, app) == topics(kafka, other) != []


def test_programs_get_json(kafka: str, app: str) -> None:
    found = json.loads(run("--kafka", kafka, "--name", app, "--json", "--yes").stdout)

    assert found["app"] == app
    assert found["done"] is True
    assert [each["name"] for each in found["holdings"] if each["kind"] == "topic"] == [
        f"{app}.{part}" for part in sorted(PARTS)
    ]
    assert found["transactional_ids"] == [f"{app}-leader", f"{app}-egress-0", f"{app}-egress-1"]


@pytest.mark.parametrize("yes", [(), ("--yes",)])
def test_it_refuses_while_a_worker_may_live(kafka: str, app: str, yes: tuple[str, ...]) -> None:
    say_alive(kafka, app)

    refused = run("--kafka", kafka, "--name", app, *yes, exit_code=4)

    assert refused.stderr.startswith(f"PEN0752 {app} is running: something was heard of it ")
    assert len(topics(kafka, app)) == len(PARTS)


def test_a_worker_that_is_long_silent_is_none(kafka: str, app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    say_alive(kafka, app)
    later_s = time.time() + ALIVE_MS / 1000 + 1
    monkeypatch.setattr("penstock.engine.cli_destroy.time.time", lambda: later_s)

    run("--kafka", kafka, "--name", app, "--yes")

    assert topics(kafka, app) == []


def test_there_has_to_be_one(kafka: str, kafka_app: str) -> None:
    missing = run("--kafka", kafka, "--name", kafka_app, "--yes", exit_code=2)

    assert missing.stderr.startswith(f"PEN0753 There is no application {kafka_app} in the Kafka cluster at {kafka}: ")


def test_it_has_to_be_said_which() -> None:
    assert "Say which application: --name APP, or --app MODULE:APP." in run("--kafka", "a:1", exit_code=2).stderr


def test_brokers_have_to_be_said() -> None:
    assert "Missing option '--kafka'." in run("--name", "shop", exit_code=2).stderr
