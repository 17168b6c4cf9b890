"""When hosts are started again, and how they are replaced: by itself in virtual time, and with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.functions.virtual_loop import VirtualLoop
from penstock.mesh.options import MeshOptions
from penstock.mesh.supervisor import LASTED_S, WAIT_MAX_S, Replica, Supervisor
from tests.mesh.processes import Load, Mesh, under_load


class Short(Replica):
    """Each of its hosts runs for as long as it is said to, and there is an end of them."""

    def __init__(self, lives_s: list[float]) -> None:
        async def ended(url: str) -> None:
            """Nobody has to know."""

        super().__init__(1, MeshOptions(app="app:app", folder="."), ended)
        self.lives_s = lives_s
        self.starts_s: list[float] = []

    async def _run(self) -> int:
        self.starts_s.append(asyncio.get_running_loop().time())
        if len(self.starts_s) > len(self.lives_s):
            raise ConfigurationError("PEN0807", "The end of the test.")
        await asyncio.sleep(self.lives_s[len(self.starts_s) - 1])
        return -9


def waits_s(lives_s: list[float]) -> list[float]:
    """Before each host but the first."""
    replica, loop = Short(lives_s), VirtualLoop()
    try:
        with pytest.raises(ConfigurationError):
            loop.run(replica.keep())
    finally:
        loop.close()
    ends = [start + life for start, life in zip(replica.starts_s, lives_s, strict=False)]
    return [round(start - end, 3) for start, end in zip(replica.starts_s[1:], ends, strict=True)]


def test_a_host_that_has_run_for_some_time_is_started_again_at_once() -> None:
    assert waits_s([LASTED_S, 2 * LASTED_S]) == [0, 0]


def test_one_that_ends_at_once_waits_longer_each_time_and_never_long() -> None:
    assert waits_s([0.1] * 6) == [0.5, 1, 2, 4, WAIT_MAX_S, WAIT_MAX_S]


def test_who_has_lasted_begins_from_the_shortest_wait_again() -> None:
    assert waits_s([0.1, 0.1, LASTED_S, 0.1]) == [0.5, 1, 0, 0.5]


class Draining(Replica):
    """Its host serves at once, and takes ten seconds to end."""

    began = ended = 0

    async def _run(self) -> int:
        type(self).began += 1
        self.serving.set()
        await asyncio.Event().wait()
        return 0

    async def stop(self) -> None:
        await asyncio.sleep(10)
        type(self).ended += 1


def test_a_host_that_drains_to_be_replaced_is_waited_for_when_all_are_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.mesh.supervisor.Replica", Draining)

    async def main() -> None:
        supervisor = Supervisor(MeshOptions(app="app:app", folder=".", replicas=1), gateway=False)
        supervisor._keep(supervisor.replicas[0])
        supervisor.replace()
        await asyncio.sleep(5)
        assert Draining.began == 2

        await supervisor._leave()
        assert Draining.ended == 2

    loop = VirtualLoop()
    try:
        loop.run(main())
    finally:
        loop.close()


def check_access_log(mesh: Mesh, load: Load) -> None:
    """The gateway has a line for each call, the hosts for each attempt, by which a trace can be followed."""
    lines = [json.loads(line[line.index("{") :]) for line in mesh.lines if '"destination": "t/count"' in line]
    at_gateway = [line for line in lines if line["at"] == "gateway"]
    at_hosts = [line for line in lines if line["at"] != "gateway"]
    assert len(at_gateway) == load.done
    assert len(at_hosts) >= load.done
    assert {line["status"] for line in at_gateway} == {200}
    assert {line["kind"] for line in lines} == {"call"}
    assert min(line["ms"] for line in lines) > 0
    assert min(line["attempt"] for line in lines) == 1


def test_the_only_host_is_replaced_under_load_without_an_error_and_not_by_one_that_can_not_start(
    tmp_path: Path,
) -> None:
    mesh = Mesh(tmp_path, "--replicas", "1", "--access-log")
    try:
        mesh.wait_ready(1)
        replace = [lambda: mesh.process.send_signal(signal.SIGHUP), lambda: mesh.wait_for("1 host replaced")]
        load = asyncio.run(under_load(mesh.url, replace, 0.5))
        assert load.errors == []
        first, second = mesh.hosts()
        check_access_log(mesh, load)

        (tmp_path / "app.py").write_text("import nothing_of_that_name")
        broken = [lambda: mesh.process.send_signal(signal.SIGHUP), lambda: mesh.wait_for("The hosts that serve go on")]
        load = asyncio.run(under_load(mesh.url, broken, 0.5))
        assert load.errors == []
        assert mesh.hosts() == [first, second]
        os.kill(second, 0)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
    finally:
        with suppress(ProcessLookupError):
            assert mesh.end() == 0
