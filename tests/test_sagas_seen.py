"""What operators see of sagas: the same of one machine, of what it has left behind, and of a mesh."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from penstock.engine.cli import cli
from tests.kill.machine import Machine
from tests.mesh.processes import Mesh

APP = """
from penstock import App, Branch, Context, Declined, FencedState, Saga

app = App("shop")
shelf = app.participant("shop/shelf", FencedState, attempts=1)


@shelf.action
async def reserve(ctx: Context[FencedState], what: str) -> None | Declined:
    if what == "rare":
        await ctx.promise("found")
    return Declined("sold out") if what == "gold" else None


@reserve.compensation
def release(ctx: Context[FencedState], what: str) -> None:
    if what == "glass":
        raise ValueError("broken")


@app.saga("shop/checkout", steps=[reserve], backoff="10ms", backoff_max="50ms", alert_after=3)
async def checkout(saga: Saga, wanted: list[str]) -> int:
    for what in wanted:
        await saga.step(reserve, what, what, name=what)
    return len(wanted)
"""
SAGAS = {"done": ["tea"], "undone": ["tea", "gold"], "stuck": ["glass", "gold"], "waits": ["tea", "rare"]}


class Seen:
    """How an application is looked at: by which options, and where its metrics are."""

    def __init__(self, metrics_url: str, *where: str) -> None:
        self._metrics_url = metrics_url
        self.where = where

    def rows(self, *options: str) -> dict[str, dict[str, Any]]:
        listed = CliRunner().invoke(cli, ["saga", "list", "--json", *self.where, *options])
        assert listed.exit_code == 0, listed.output
        return {row["id"]: row for row in json.loads(listed.stdout)}

    def metrics(self) -> dict[str, float]:
        with urlopen(f"{self._metrics_url}/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
        samples = [
            sample for family in families if family.name.startswith("penstock_saga") for sample in family.samples
        ]
        assert {sample.labels.pop("saga") for sample in samples} == {"shop/checkout"}
        return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def begin(url: str) -> None:
    for id, wanted in SAGAS.items():
        asked = Request(f"{url}/send/shop/checkout/{id}", json.dumps(wanted).encode(), method="POST")
        with urlopen(asked) as response:
            assert response.status == 202


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture(params=["run", "mesh"])
def seen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(APP)
    where = ("--app", str(tmp_path / "shop.py"), "--dir", str(tmp_path / "data"))
    if request.param == "run":
        machine = Machine(tmp_path, "shop.py")
        begin(machine.url)
        running = Seen(machine.url, *where)
        yield running
        assert machine.end() == 0
        assert running.rows().keys() == {"stuck", "waits"}  # As the checkpoint has it.
        return
    mesh = Mesh(tmp_path, "--replicas", "1", "--drain", "1s", app="shop.py")
    mesh.wait_ready(1)
    host = re.search(r"functions at (\S+)\.$", mesh.wait_for("Serves all functions"))
    assert host is not None
    begin(mesh.url)
    yield Seen(host[1], "--url", mesh.url)
    mesh.end()


def test_what_is_under_way_is_listed_and_counted(seen: Seen) -> None:
    until(lambda: seen.rows().keys() == {"stuck", "waits"} and seen.rows("--stuck").keys() == {"stuck"})
    stuck, waits = seen.rows()["stuck"], seen.rows()["waits"]

    assert (waits["phase"], waits["step"], waits["trouble"]) == ("running", "rare", None)
    assert waits["steps"] == {"tea": "done", "rare": "started"}
    assert (stuck["phase"], stuck["step"]) == ("compensating", "glass")
    assert stuck["failure"] == {"type": "Compensated", "reason": "sold out", "step": "gold"}
    assert (stuck["trouble"]["asked"], stuck["trouble"]["step"]) == ("cancel", "glass")
    assert "ValueError: broken" in stuck["trouble"]["reason"]
    listed = CliRunner().invoke(cli, ["saga", "list", "--limit", "1", "--saga", "shop/checkout", *seen.where])
    head, row = listed.stdout.splitlines()
    assert re.match(r"SAGA +ID +PHASE +BEGAN +STEP +TROUBLE$", head)
    assert re.match(r"shop/checkout +stuck +compensating +\S+Z +glass +cancel of glass has failed \d+ times: ", row)
    assert "the first 1; more with --limit" in listed.stderr

    found = seen.metrics()
    assert found.pop("penstock_saga_oldest_seconds") > 0
    assert found.pop("penstock_saga_retries_total") >= 3
    assert found == {
        "penstock_sagas running": 1,
        "penstock_sagas finishing": 0,
        "penstock_sagas compensating": 1,
        "penstock_sagas_stuck": 1,
        "penstock_sagas_ended_total completed": 1,
        "penstock_sagas_ended_total compensated": 1,
    }
