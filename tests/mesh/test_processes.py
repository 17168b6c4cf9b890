"""`penstock mesh` with real processes: killed, replaced and stopped under load, and no caller sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from penstock.engine.cli import cli
from tests.mesh.processes import CALLERS, Mesh, under_load

UNPLUGGED = """
from penstock import App, Context, GeneratorIngress

app = App("unplugged")


@app.function("t/note")
def note(ctx: Context[None], number: int) -> None:
    pass


def numbers(start: int):
    yield 1
    raise OSError("unplugged")


app.ingress(GeneratorIngress(numbers, type=int), to=note, key=str, name="numbers")
"""


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


def pause_between_writes(number: int, data: Path) -> None:
    """Stop a process that holds no lock of a database: while one does, all others that write there are refused
    (PEN0830), which is tried elsewhere."""
    for _ in range(1_000):
        os.kill(number, signal.SIGSTOP)
        while Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        files = {str(path.stat().st_ino) for path in data.rglob("*.lock")}
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        if not any(
            lock[4] == str(number) and lock[5].rpartition(":")[2] in files for lock in locks if "->" not in lock
        ):
            return
        os.kill(number, signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError(f"process {number} never lets go of its databases")


def test_a_host_that_was_paused_finds_itself_fenced_and_is_started_again(mesh: Mesh) -> None:
    """Others have taken it for dead, and have its messages: it must not go on as if nothing had been. Nor does a call
    that it has wait for it, although no policy says how long one try may take."""
    victim = mesh.hosts()[-1]
    stop = [lambda: pause_between_writes(victim, mesh.folder), lambda: mesh.wait_for(f"-{victim}-")]
    try:
        load = asyncio.run(under_load(mesh.url, stop, 0.5))
    finally:
        os.kill(victim, signal.SIGCONT)

    assert load.errors == []
    assert "is gone: it is fenced" in mesh.wait_for(f"-{victim}-")

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


def test_a_mesh_that_can_not_come_to_its_end_says_so(tmp_path: Path) -> None:
    (tmp_path / "unplugged.py").write_text(UNPLUGGED)
    mesh = Mesh(tmp_path, "--no-gateway", "--until-done", app="unplugged.py")

    assert mesh.process.wait(60) == 4
    mesh.wait_for("PEN0828 Host 1 has ended, because an ingress can't be read to its end")


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
