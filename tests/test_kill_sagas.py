"""Processes that carry out sagas are killed in the midst of them, and each saga is done as a whole or undone.

Whoever has just begun to orchestrate, to do a step or to undo one is killed; in the mesh the gateway is, too, once.
What comes out is read from the states of the participants, and judged by `tests.kill.saga_checker`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest

from tests.kill.machine import Machine
from tests.kill.saga_checker import check
from tests.kill.sagas import PLACES, Entry
from tests.mesh.processes import Mesh

T = TypeVar("T")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

APP = f"{Path(__file__).with_name('kill') / 'sagas.py'}:app"
AT_ONCE = 8
VICTIMS = ("orchestrates", "participates", "compensates", "decides")
AGAIN_S = 0.1
"""After an error, and between two looks at a saga."""
PARTICIPANTS = ("kills/stock", "kills/seat", "kills/car", "kills/bank", "kills/post")


class Callers:
    """They ask for one saga after the other until it is enough: for every other one with a call, else by a message."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._numbers = count()
        self._enough = False
        self.ended: dict[int, dict[str, Any]] = {}
        """What their states say of how they ended."""

    async def run(self, kill: Coroutine[Any, Any, None]) -> None:
        """Until all sagas that were asked for have ended, and `kill` before that."""
        timeout = aiohttp.ClientTimeout(30)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._ask(session))
            await kill
            self._enough = True

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        while not self._enough:
            number = next(self._numbers)
            verb = "call" if number % 2 else "send"
            await until(partial(self._post, session, f"/{verb}/kills/trip/{number}", number))
            self.ended[number] = await until(partial(self._end, session, number))

    async def _post(self, session: aiohttp.ClientSession, path: str, number: int) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            headers = {"Idempotency-Key": f"saga {number}"}
            async with session.post(self._url() + path, json=number, headers=headers) as response:
                return response.ok
        return False

    async def _end(self, session: aiohttp.ClientSession, number: int) -> dict[str, Any] | None:
        record = await self.state(session, "kills/trip", str(number)) or {}
        return record.get("ended")

    async def state(self, session: aiohttp.ClientSession, function: str, id: str) -> dict[str, Any] | None:
        with suppress(aiohttp.ClientError, TimeoutError):
            asked = {"function": function, "id": id}
            async with session.get(f"{self._url()}/admin/state/value", params=asked) as response:
                if response.ok:
                    found: dict[str, Any] = await response.json()
                    return found["state"]  # type: ignore[no-any-return]
        return None

    async def entries(self) -> list[Entry]:
        """Of all participants."""
        found: list[Entry] = []
        async with aiohttp.ClientSession() as session:
            for function in PARTICIPANTS:
                for place in range(PLACES):
                    state = await self.state(session, function, str(place)) or {}
                    found += msgspec.convert(state.get("entries", []), list[Entry])
        return found


async def until(ask: Callable[[], Awaitable[T | None]]) -> T:
    """What it gives once that is something."""
    while not (found := await ask()):  # noqa: ASYNC110  # Of another process, which tells nobody.
        await asyncio.sleep(AGAIN_S)
    return found


class Told:
    """The file in which processes say what they begin."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path

    async def next(self, what: str) -> int:
        """The process that is the next to begin that."""
        seen = self._path.stat().st_size
        async with asyncio.timeout(60):
            while True:
                for line in self._path.read_text()[seen:].splitlines():
                    pid, told = line.split(maxsplit=1)
                    if told.startswith(what):
                        return int(pid)
                await asyncio.sleep(0.001)

    def begun_again(self) -> int:
        """How many sagas were orchestrated by more than one process."""
        told = {line for line in self._path.read_text().splitlines() if "orchestrates" in line}
        return sum(count > 1 for count in Counter(line.split()[-1] for line in told).values())


def judge(callers: Callers, told: Told, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = check(callers.ended, asyncio.run(callers.entries()), folder)
    with capsys.disabled():
        print(f"\n{told.begun_again()} sagas went on in another process; {dict(ends)}")  # noqa: T201  # For people.
    assert ends["Completed"] > 0
    assert ends["Compensated"] > 0
    assert told.begun_again() > 0


def test_sagas_of_a_mesh_end_whoever_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"TOLD": str(tmp_path / "told")}
    told, meshes = Told(tmp_path / "told"), list[Mesh]()

    def start() -> None:
        meshes.append(Mesh(tmp_path, "--replicas", "3", app=APP, environ=environ))
        meshes[-1].wait_ready(3)

    async def kill() -> None:
        for times, what in enumerate(VICTIMS, start=1):
            os.kill(await told.next(what), signal.SIGKILL)
            await asyncio.to_thread(meshes[-1].wait_for, "is started again", times)
            await asyncio.to_thread(meshes[-1].wait_for, "Serves all functions", times + 2)
        await told.next("orchestrates")
        meshes[-1].process.kill()
        await asyncio.to_thread(start)
        os.kill(await told.next("participates"), signal.SIGKILL)

    start()
    callers = Callers(lambda: meshes[-1].url)
    try:
        asyncio.run(callers.run(kill()))
        judge(callers, told, tmp_path, capsys)
    finally:
        codes = [mesh.end() for mesh in meshes]
    assert codes[-1] == 0


def test_sagas_of_one_machine_end_however_often_it_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(tmp_path / "told")
    machine = Machine(tmp_path, APP, "--interval", "100ms", environ={"TOLD": str(tmp_path / "told")})
    callers = Callers(lambda: machine.url)

    async def kill() -> None:
        for what in VICTIMS:
            assert await told.next(what) == machine.process.pid
            machine.kill()
            await asyncio.to_thread(machine.start)

    try:
        asyncio.run(callers.run(kill()))
        judge(callers, told, tmp_path, capsys)
    finally:
        code = machine.end()
    assert code == 0
