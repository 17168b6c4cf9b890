"""`penstock doctor` against real brokers: good ones, and those that something is wrong with."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.engine.cli import cli
from penstock.router.kafka_admin import Admin, NewTopic
from penstock.router.kafka_doctor import Finding, Plan, command, examine, grants
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import PARTS, destroy, ensure
from tests.kafka.broker import QUICK, Cluster, temporary_cluster
from tests.kafka.jars import NEWEST, OLDEST, jars_of

pytestmark = pytest.mark.kafka

WAIT_S = 60


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["doctor", *arguments], prog_name="penstock")
    assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
    return result


def findings(*arguments: str, exit_code: int = 0) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
    return found


def of(check: str, found: list[dict[str, str]]) -> list[dict[str, str]]:
    return [each for each in found if each["check"] == check]


def examined(bootstrap: str, plan: Plan, clock_ms: Callable[[], int] | None = None) -> list[Finding]:
    return asyncio.run(examine(KafkaOptions(bootstrap), plan, clock_ms or (lambda: int(time.time() * 1000))))


def create(bootstrap: str, topic: str, settings: Mapping[str, str], *, partitions: int = 1) -> None:
    async def there() -> None:
        async with Admin(KafkaOptions(bootstrap)) as admin:
            assert await admin.create([NewTopic(topic, partitions, 1, settings)]) == {}

    asyncio.run(there())


def topics(bootstrap: str, prefix: str) -> list[str]:
    async def ask() -> list[str]:
        async with Admin(KafkaOptions(bootstrap)) as admin:
            return sorted(name for name in await admin.topics(None) if name.startswith(prefix))

    return asyncio.run(ask())


# A cluster that is well.


def test_a_good_cluster_passes(kafka: str, kafka_app: str) -> None:
    found = findings("--kafka", kafka, "--name", kafka_app, "--parallelism", "4", "--replicas", "1")

    assert [(each["check"], each["result"]) for each in found] == [
        ("connection", "pass"),
        ("brokers", "pass"),
        ("replicas", "warn"),
        ("broker settings", "pass"),
        ("topics", "pass"),
        ("transactions", "pass"),
        ("probe", "pass"),
        ("clocks", "pass"),
    ]
    assert of("replicas", found)[0] == {
        "check": "replicas",
        "result": "warn",
        "found": "1 of each record. The disk of one broker has the only copy.",
        "remedy": "Run 3 brokers where that matters.",
    }
    assert of("transactions", found)[0]["found"] == "Transactional ids can be used, with a timeout of 1m."


def test_the_probe_leaves_nothing_behind(kafka: str, kafka_app: str) -> None:
    run("--kafka", kafka, "--name", kafka_app)

    assert topics(kafka, kafka_app) == []


def test_people_get_a_line_for_each(kafka: str, kafka_app: str) -> None:
    printed = run("--kafka", kafka, "--name", kafka_app, "--replicas", "1").stdout.splitlines()

    assert printed[0] == (
        f"A topic {kafka_app}.doctor-* is created and deleted, and transactional id {kafka_app}-doctor used."
    )
    assert "warn  replicas         1 of each record. The disk of one broker has the only copy." in printed
    assert "                       -> Run 3 brokers where that matters." in printed
    assert printed[-1] == "7 pass, 1 warn, 0 fail"


def test_topics_that_exist_are_verified(kafka: str, kafka_app: str) -> None:
    asyncio.run(ensure(KafkaOptions(kafka), kafka_app, application_id="1", parallelism=2, replicas=1))

    right = findings("--kafka", kafka, "--name", kafka_app, "--parallelism", "2")
    wrong = findings("--kafka", kafka, "--name", kafka_app, "--parallelism", "4", exit_code=1)

    assert of("topics", right)[0]["found"] == "8 are as they have to be, and 0 can be created."
    assert of("topics", wrong)[0]["found"] == (
        f"PEN0745 Topic {kafka_app}.inbox has 2 partitions, and needs 4: one for each task. Start it with "
        "parallelism = 2, or under another name. For another parallelism, stop it and use penstock rescale."
    )


def test_it_knows_the_settings(kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "penstock.toml").write_text('parallelism = 2\nretention_spaced = "2d"\n')
    asyncio.run(ensure(KafkaOptions(kafka), kafka_app, application_id="1", parallelism=2, replicas=1))
    create(kafka, f"{kafka_app}-orders", {"retention.ms": "86400000"})

    found = findings("--kafka", kafka, "--name", kafka_app, "--reads", f"{kafka_app}-orders")

    assert of("topics", found)[0]["result"] == "pass"
    assert of("ingress topics", found)[0]["found"] == (
        f"{kafka_app}-orders keeps records for 1d, and checkpoints reach back 2d: the oldest can't be replayed."
    )


SHOP = """
from penstock import App, Context, KafkaEgress, KafkaIngress

app = App("shop")
bills = app.egress("shop/bills", KafkaEgress("{name}-bills"))


@app.function("shop/customer")
def customer(ctx: Context, order: dict) -> None:
    ctx.emit(bills, order)


app.ingress(KafkaIngress("{name}-orders"), to=customer)
"""


def test_it_knows_the_application(kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the_shop.py").write_text(SHOP.format(name=kafka_app))
    (tmp_path / "penstock.toml").write_text(f'name = "{kafka_app}"\nreplicas = 1\nstore = "/proc/none"\n')
    asyncio.run(ensure(KafkaOptions(kafka), kafka_app, application_id="1", parallelism=8, replicas=1))

    found = findings("--kafka", kafka, "--app", "the_shop.py", exit_code=1)

    assert of("topics", found)[0]["result"] == "pass"
    assert of("ingress topics", found)[0]["found"] == f"There is no topic {kafka_app}-orders."
    assert of("egress topics", found)[0]["found"] == f"There is no topic {kafka_app}-bills."
    assert of("store", found)[0]["found"].startswith("PEN0412 Storing failed at /proc/none")


# What is wrong.


def test_nobody_there() -> None:
    found = findings("--kafka", "127.0.0.1:1", exit_code=1)

    assert [(each["check"], each["result"]) for each in found] == [("connection", "fail")]
    assert found[0]["found"].startswith("PEN0740 No Kafka broker can be reached: nothing listens on 127.0.0.1:1.")


def test_too_few_brokers(kafka: str, kafka_app: str) -> None:
    found = findings("--kafka", kafka, "--name", kafka_app, "--replicas", "9", exit_code=1)

    assert [each["check"] for each in found if each["result"] == "fail"] == ["replicas"]
    assert of("replicas", found)[0]["found"].startswith("PEN0743 9 replicas are wanted, and the cluster has ")


@pytest.mark.parametrize(
    ("ours_ms", "result", "found"),
    [
        (-3_000, "warn", "ahead of ours."),
        (5_000, "warn", "behind ours."),
        (-3_600_000, "fail", "ahead of ours."),
        (3_600_000, "fail", "behind ours."),
    ],
)
def test_clocks_that_differ(kafka: str, kafka_app: str, ours_ms: int, result: str, found: str) -> None:
    all_found = examined(kafka, Plan(app=kafka_app), lambda: int(time.time() * 1000) + ours_ms)

    (clocks,) = (each for each in all_found if each.check == "clocks")
    assert clocks.result == result
    assert clocks.found.endswith(found)
    assert clocks.remedy == "Keep all machines on the same time, with NTP."


def test_a_transaction_timeout_that_brokers_refuse(kafka: str, kafka_app: str) -> None:
    found = examined(kafka, Plan(app=kafka_app, transaction_timeout_ms=3_600_000))

    (transactions,) = (each for each in found if each.check == "transactions")
    assert transactions == Finding(
        "transactions",
        "fail",
        "A timeout of 1h is refused.",
        "Set transaction.max.timeout.ms >= 3600000 on the brokers.",
    )
    (settings,) = (each for each in found if each.check == "broker settings")
    assert settings.result == "fail"
    assert settings.found.endswith("transaction.max.timeout.ms is 900000.")


@pytest.mark.parametrize(
    ("settings", "result", "found"),
    [
        ({"retention.ms": "-1"}, "pass", "can be read, and keeps its records long enough."),
        ({"retention.ms": "3600000"}, "pass", "can be read, and keeps its records long enough."),
        (
            {"retention.ms": "600000"},
            "warn",
            "keeps records for 10m, and checkpoints reach back 1h: the oldest can't be replayed.",
        ),
        (
            {"retention.ms": "-1", "retention.bytes": "1000000"},
            "warn",
            "keeps 1,000,000 bytes a partition: after a long outage records may be gone unread.",
        ),
        (
            {"cleanup.policy": "compact"},
            "warn",
            "is compacted: records may be gone when they have to be read again after a failure.",
        ),
    ],
)
def test_topics_that_are_read(kafka: str, kafka_app: str, settings: dict[str, str], result: str, found: str) -> None:
    topic = f"{kafka_app}-orders"
    create(kafka, topic, settings)

    (ingress,) = of("ingress topics", findings("--kafka", kafka, "--name", kafka_app, "--reads", topic))

    assert (ingress["result"], ingress["found"]) == (result, f"{topic} {found}")


@pytest.mark.parametrize(
    ("limit", "result", "found"),
    [
        ("2000000", "pass", "can be written."),
        ("1000", "warn", "takes records up to 1,000 bytes, and the application may emit 1,048,576."),
    ],
)
def test_topics_that_are_written(kafka: str, kafka_app: str, limit: str, result: str, found: str) -> None:
    topic = f"{kafka_app}-bills"
    create(kafka, topic, {"max.message.bytes": limit})

    (egress,) = of("egress topics", findings("--kafka", kafka, "--name", kafka_app, "--writes", topic))

    assert (egress["result"], egress["found"]) == (result, f"{topic} {found}")


@pytest.mark.parametrize(("option", "check"), [("--reads", "ingress topics"), ("--writes", "egress topics")])
def test_topics_that_are_not_there(kafka: str, kafka_app: str, option: str, check: str) -> None:
    found = findings("--kafka", kafka, "--name", kafka_app, option, f"{kafka_app}-none", exit_code=1)

    assert of(check, found) == [
        {
            "check": check,
            "result": "fail",
            "found": f"There is no topic {kafka_app}-none.",
            "remedy": "Create it, or correct its name in the application.",
        }
    ]
    assert topics(kafka, kafka_app) == []


@pytest.mark.slow
def test_brokers_that_invent_topics_and_can_not_commit(java: None) -> None:
    properties = {
        "auto.create.topics.enable": "true",
        "transaction.state.log.min.isr": "2",
        "transaction.max.timeout.ms": "30000",
    }
    with temporary_cluster(properties=properties) as cluster:
        found = examined(cluster.bootstrap, Plan(app="shop"))

    assert [each[1:] for each in found if each.check == "broker settings"] == [
        (
            "warn",
            "On broker 1, auto.create.topics.enable is true: a topic that is deleted comes back with wrong settings.",
            "Set it to false.",
        ),
        ("fail", "On broker 1, transaction.max.timeout.ms is 30000.", "Set it to 60000 or more."),
        (
            "fail",
            "On broker 1, transaction.state.log.min.isr is 2, and the number of brokers 1: nothing can be committed.",
            "Set it to 1 at most, or start more brokers.",
        ),
    ]


@pytest.mark.slow
def test_the_oldest_release_passes(java: None) -> None:
    with temporary_cluster(version=OLDEST) as cluster:
        found = examined(cluster.bootstrap, Plan(app="shop"))
        asyncio.run(ensure(KafkaOptions(cluster.bootstrap), "shop", application_id="1", parallelism=1))
        removed = asyncio.run(destroy(KafkaOptions(cluster.bootstrap), "shop", now_ms=0))

    assert [each.check for each in found if each.result != "pass"] == ["replicas"]
    assert len(removed.holdings) == len(PARTS)


def test_a_release_older_than_that_is_told(kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.router.kafka_doctor._FETCH_OF_OLDEST", 1_000)

    (brokers,) = (each for each in examined(kafka, Plan(app=kafka_app)) if each.check == "brokers")

    assert brokers == Finding(
        "brokers", "warn", "Some are older than 3.9, the oldest release that Penstock is tested with.", "Upgrade them."
    )


@pytest.mark.slow
def test_three_brokers_of_which_one_is_lost(java: None) -> None:
    with temporary_cluster(nodes=3) as cluster:
        well = examined(cluster.bootstrap, Plan(app="shop"))
        asyncio.run(ensure(KafkaOptions(cluster.bootstrap), "shop", application_id="1", parallelism=1))
        cluster.nodes[2].kill()
        again = asyncio.run(ensure(KafkaOptions(cluster.bootstrap), "shop", application_id="1", parallelism=1))

    assert {each.result for each in well} == {"pass"}
    assert again.replicas == 3
    assert again.created == []


# Who may do it.


@pytest.fixture(scope="module")
def guarded(java: None) -> Iterator[Cluster]:
    with temporary_cluster(users={"app": "secret", "other": "secret"}) as cluster:
        yield cluster


def login(cluster: Cluster, user: str) -> list[str]:
    properties = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": "secret",
    }
    texts = [f"--property={name}={value}" for name, value in properties.items()]
    return ["--kafka", cluster.bootstrap_sasl, *texts, "--name", "shop"]


def test_a_user_without_permissions(guarded: Cluster) -> None:
    create(guarded.bootstrap, "orders", {})

    found = findings(*login(guarded, "other"), "--reads", "orders", exit_code=1)

    assert [(each["check"], each["result"]) for each in found] == [
        ("connection", "pass"),
        ("brokers", "pass"),
        ("replicas", "warn"),
        ("broker settings", "warn"),
        ("topics", "fail"),
        ("transactions", "fail"),
        ("probe", "fail"),
        ("ingress topics", "fail"),
        ("group", "warn"),
    ]
    assert of("transactions", found)[0]["found"] == (
        "PEN0742 User:other may not Describe and Write transactional-id shop-doctor. Grant it: kafka-acls.sh "
        f"--bootstrap-server {guarded.bootstrap_sasl} --add --allow-principal User:other --operation Describe "
        "--operation Write --transactional-id shop-doctor. All that is needed: penstock doctor --kafka ... --acls "
        "User:other."
    )
    assert "User:other may not Describe topic orders." in of("ingress topics", found)[0]["found"]


@pytest.mark.slow
def test_a_user_with_the_permissions_that_the_doctor_names(guarded: Cluster) -> None:
    """Exactly those, as the cluster's own tool grants them."""
    create(guarded.bootstrap, "flights", {})
    create(guarded.bootstrap, "delays", {})
    tool = ["java", *QUICK, "-cp", str(jars_of(NEWEST) / "*"), "org.apache.kafka.tools.AclCommand"]
    lines = [command(grant, guarded.bootstrap, "User:app") for grant in grants("shop", ["flights"], ["delays"])]
    granting = [subprocess.Popen([*tool, *shlex.split(line)[1:]], stdout=subprocess.DEVNULL) for line in lines]
    assert [process.wait(WAIT_S) for process in granting] == [0] * len(lines)

    found = findings(*login(guarded, "app"), "--reads", "flights", "--writes", "delays")

    assert [(each["check"], each["result"]) for each in found if each["result"] != "pass"] == [("replicas", "warn")]


def test_permissions_are_printed(kafka: str) -> None:
    printed = run("--kafka", kafka, "--name", "shop", "--reads", "orders", "--acls", "User:app").stdout

    start = f"kafka-acls.sh --bootstrap-server {kafka} --add --allow-principal 'User:app' --operation "
    every = "Create --operation Delete --operation Describe --operation DescribeConfigs --operation Read"
    assert printed.splitlines() == [
        "# its own topics",
        f"{start}{every} --operation Write --topic 'shop.' --resource-pattern-type prefixed",
        "# its transactions",
        f"{start}Describe --operation Write --transactional-id 'shop-' --resource-pattern-type prefixed",
        "# positions, for tools that show lag",
        f"{start}Delete --operation Describe --operation Read --group 'shop'",
        "# an ingress",
        f"{start}Describe --operation DescribeConfigs --operation Read --topic 'orders'",
        "# sizes and broker settings, for people",
        f"{start}Describe --operation DescribeConfigs --cluster",
    ]


# Wrong use.


def test_a_property_needs_a_value() -> None:
    result = run("--kafka", "127.0.0.1:1", "--property", "client.id", exit_code=2)

    assert "PEN0152 A --property has no '='. Give NAME=VALUE, under Kafka's own name." in result.stderr


def test_a_property_that_does_not_exist() -> None:
    result = run("--kafka", "127.0.0.1:1", "--property", "client.idd=a", exit_code=2)

    assert result.stderr.startswith("PEN0701 'client.idd' is no property of a Kafka client")


def test_a_principal_needs_a_type() -> None:
    result = run("--kafka", "127.0.0.1:1", "--acls", "app", exit_code=2)

    assert "Invalid value for --acls: 'app' has no type: write User:app." in result.stderr


def test_a_name_that_is_none() -> None:
    assert run("--kafka", "127.0.0.1:1", "--name", "Shop", exit_code=2).stderr.startswith("PEN0100 App('Shop')")


def test_an_application_says_its_name_and_what_it_reads(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "doctored.py").write_text(
        "from penstock import App, Context\n"
        "from penstock.functions.kafka import KafkaIngress\n\n"
        "app = App('doctored')\n\n"
        "@app.function('shop/order')\n"
        "def order(ctx: Context[None], message: str) -> None: ...\n\n"
        "app.ingress(KafkaIngress('orders', type=str), to=order)\n"
        "app.ingress(KafkaIngress('elsewhere', type=str, brokers='other:9092'), to=order)\n"
    )

    printed = run("--kafka", kafka, "--app", "doctored:app", "--acls", "User:app").stdout

    assert "--topic 'doctored.'" in printed
    assert "--topic 'orders'" in printed
    assert "elsewhere" not in printed
