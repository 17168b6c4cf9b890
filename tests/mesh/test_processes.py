"""`penstock mesh` with real processes: killed, replaced and stopped under load, and no caller sees it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import aiohttp
import pytest
from click.testing import CliRunner

from penstock.engine.cli import cli

APP = """
from penstock import App, Context, State

app = App("counters")


class Count(State):
    n: int = 0


@app.function("t/count")
def count(ctx: Context[Count], by: int) -> int:
    ctx.state.n += by
    return ctx.state.n


@app.function("t/tell")
async def tell(ctx: Context[None], id: str) -> int:
    ctx.send(count, id, 10)
    return await ctx.call(count, id, 1)
"""
CALLERS = 8


class Mesh:
    """A supervisor, its gateway and its hosts."""

    def __init__(self, folder: Path, *options: str, store: str = "data", token: str = "") -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        command = "from penstock.engine.cli import main; main()"
        places = ["--store", store] if store else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "mesh", "app:app", "--port", "0", *places, *options],
            cwd=folder,
            env=os.environ | {"PENSTOCK_TOKEN": token},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._seen = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        found = re.search(r"gateway at (\S+),", self.wait_for("gateway at"))
        assert found is not None
        return found[1]

    def wait_ready(self, hosts: int) -> None:
        """Until the gateway sees that many."""
        url, deadline_s = f"{self.url}/actuator/health/readiness", time.monotonic() + 30
        while time.monotonic() < deadline_s:
            with suppress(HTTPError), urlopen(url) as response:
                if json.load(response)["components"]["hosts"]["details"]["ready"] == hosts:
                    return
            time.sleep(0.02)
        pytest.fail(f"the gateway does not see {hosts} hosts")

    def hosts(self) -> list[int]:
        """Process numbers of those that were started, the newest last."""
        return [int(number) for line in self.lines for number in re.findall(r"host-(\d+) +Serves", line)]

    def wait_for(self, text: str, times: int = 1) -> str:
        """The line that says so for the `times`-th time."""
        deadline_s = time.monotonic() + 30
        with self._seen:
            while True:
                found = [line for line in self.lines if text in line]
                if len(found) >= times:
                    return found[times - 1]
                assert self._seen.wait(deadline_s - time.monotonic()), f"{text!r} is not in {self.lines}"

    def end(self) -> int:
        """Stop it in an orderly way."""
        self.process.terminate()
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._seen:
                self.lines.append(line.rstrip())
                self._seen.notify_all()
        with self._seen:
            self._seen.notify_all()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One for all tests, in their order: the last ones end it."""
    made = Mesh(tmp_path_factory.mktemp("mesh"), "--replicas", "3")
    try:
        made.wait_ready(3)
        yield made
    finally:
        if made.process.poll() is None:
            made.end()


class Load:
    """Callers that add one to an address of their own, again and again, and check that each was done once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = uuid4().hex
        self.done = 0
        self.errors: list[str] = []
        self.enough = asyncio.Event()

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._call(session, number) for number in range(CALLERS)))

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        counted = 0
        while not self.enough.is_set():
            async with session.post(f"{self._url}/call/t/count/{self._name}-{number}", data="1") as response:
                text = await response.text()
            counted += 1
            if response.status != 200 or int(text) != counted:
                self.errors.append(f"{response.status} {text}, not {counted}")
                return
            self.done += 1


async def under_load(url: str, disturb: Sequence[Callable[[], object]], seconds: float) -> Load:
    """Load for some time, with `disturb` done to the processes in the middle of it."""
    load = Load(url)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(seconds / 4)
    for step in disturb:
        await asyncio.to_thread(step)
    await asyncio.sleep(seconds / 2)
    load.enough.set()
    await running
    return load


def test_a_killed_host_costs_no_caller_an_answer_and_is_started_again(mesh: Mesh) -> None:
    victim = mesh.hosts()[0]

    load = asyncio.run(under_load(mesh.url, [lambda: os.kill(victim, signal.SIGKILL)], 2.0))

    assert load.errors == []
    assert load.done > CALLERS
    mesh.wait_for("has ended (SIGKILL) and is started again")
    mesh.wait_for("Serves all functions", times=4)


def test_handlers_of_different_hosts_reach_one_another(mesh: Mesh) -> None:
    async def run() -> list[int]:
        async with aiohttp.ClientSession() as session:

            async def told(number: int) -> int:
                async with session.post(f"{mesh.url}/call/t/tell/{number}", json=f"c{number}") as response:
                    assert response.status == 200, await response.text()
                async with asyncio.timeout(10):
                    while True:
                        async with session.post(f"{mesh.url}/call/t/count/c{number}", data="0") as response:
                            if (count := int(await response.text())) == 11:
                                return count
                        await asyncio.sleep(0.01)

            return await asyncio.gather(*map(told, range(12)))

    assert asyncio.run(run()) == [11] * 12


def test_a_registry_that_is_gone_takes_no_request_with_it(mesh: Mesh) -> None:
    registry = mesh.folder / "data" / "registry.sqlite"

    def destroy() -> None:
        registry.unlink()
        registry.mkdir()
        mesh.wait_for("The last view goes on serving")

    load = asyncio.run(under_load(mesh.url, [destroy], 0.4))
    registry.rmdir()

    assert load.errors == []
    mesh.wait_for("The registry answers again")
    mesh.wait_ready(3)


def test_a_host_that_was_paused_finds_itself_fenced_and_is_started_again(mesh: Mesh) -> None:
    """Others have taken it for dead, and have its messages: it must not go on as if nothing had been."""
    victim = mesh.hosts()[-1]
    os.kill(victim, signal.SIGSTOP)
    try:
        assert "is gone: it is fenced" in mesh.wait_for(f"-{victim}-")
    finally:
        os.kill(victim, signal.SIGCONT)

    assert f"host-{victim}" in mesh.wait_for("PEN0821")
    mesh.wait_for("has ended (exit code 1) and is started again")
    mesh.wait_ready(3)


def test_all_hosts_are_replaced_under_load_without_an_error_and_the_mesh_ends_in_an_orderly_way(mesh: Mesh) -> None:
    before = mesh.hosts()

    replace = [lambda: mesh.process.send_signal(signal.SIGHUP), lambda: mesh.wait_for("3 hosts replaced")]
    load = asyncio.run(under_load(mesh.url, replace, 0.5))

    assert load.errors == []
    assert len(set(mesh.hosts()) - set(before)) == 3
    assert mesh.end() == 0
    for number in mesh.hosts():
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_hosts_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "--replicas", "1")
    mesh.wait_for("Serves all functions")
    mesh.process.kill()
    mesh.process.wait(10)

    deadline_s = time.monotonic() + 20
    for number in mesh.hosts():
        while time.monotonic() < deadline_s:
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                break
            time.sleep(0.02)
        else:
            pytest.fail(f"host {number} is still there")


def test_policies_for_what_the_application_does_not_have_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("functions: {t/countr: {}}")
    mesh = Mesh(tmp_path, "--replicas", "1", "--policies", "mesh.yaml")

    mesh.wait_for("mesh.yaml functions: t/countr is no function of this application")
    assert mesh.end() == 0


def test_what_can_not_start_is_said_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "--only", "t/none", "--no-gateway")

    assert mesh.process.wait(30) == 2
    assert any("PEN0809" in line and "t/none" in line for line in mesh.lines), mesh.lines


def test_all_that_a_mesh_keeps_lies_below_its_directory_and_its_arguments_tell_nothing(tmp_path: Path) -> None:
    token = "a-secret-of-the-gateway"
    mesh = Mesh(tmp_path, "--dir", "kept", store="", token=token)
    try:
        mesh.wait_ready(1)
        found = CliRunner().invoke(
            cli, ["dead", "list", "--dir", str(tmp_path / "kept"), "--json"], env={"PENSTOCK_TOKEN": token}
        )
        arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mesh.hosts())
    finally:
        mesh.end()

    assert (found.exit_code, json.loads(found.output)) == (0, []), found.output
    assert arguments.endswith(b"-m\0penstock.mesh.process\0")
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.iterdir()} <= {"app.py", "kept", "__pycache__"}
    assert (tmp_path / "kept" / "mesh" / "registry.sqlite").exists()
