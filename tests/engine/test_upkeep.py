"""Proves that upkeep goes on for all tasks when the store takes no bases."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.checkpoint.store import BaseStore
from penstock.engine import upkeep as upkeep_module
from penstock.engine.config import Config
from penstock.engine.upkeep import BASE_BYTES, BASE_DELTAS, Upkeep
from penstock.errors import Unavailable


class Backend:
    def flush(self) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        path.mkdir(parents=True)


class Unit:
    """What upkeep sees of a task: so many deltas, and settled rows that a fold takes away."""

    def __init__(self, task: int, *, deltas: int, rows: int) -> None:
        self.task = task
        self.counters = SimpleNamespace(delta_bytes=0, deltas=deltas)
        self.overlay = SimpleNamespace(
            settled_rows=rows,
            folding=False,
            folded_checkpoint=7,
            backend=Backend(),
            merge_slice=lambda: False,
            fold_slice=lambda: False,
        )
        self.snapshot = SimpleNamespace(base_checkpoint=0, attempt=1)
        self.rows_due = False
        self.rebased: list[str] = []

    def begin_fold(self) -> bool:
        folded, self.overlay.settled_rows = self.overlay.settled_rows, 0
        return bool(folded)

    def rebase(self, name: str, checkpoint: int) -> None:
        self.rebased.append(name)
        self.counters.deltas = 0


class Store(BaseStore):
    def __init__(self) -> None:
        self.asked = 0
        self.away = True

    def put(self, name: str, source: Path, **_: Any) -> int:
        self.asked += 1
        if self.away:
            raise Unavailable("PEN0414", "The checkpoint store does not answer.")
        return 0


class Place:
    """Some units, and their upkeep."""

    def __init__(self, directory: Path, *units: Unit) -> None:
        self.store = Store()
        self.rebased = 0
        self.directory = directory
        self.running: list[asyncio.Task[None]] = []
        some: Any = units
        self.upkeep = Upkeep(
            Config(directory=directory),
            some,
            self.store,
            lambda task: directory / str(task),
            rebased=self._rebased,
            spawn=self._spawn,
        )

    async def _rebased(self) -> None:
        self.rebased += 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.running.append(asyncio.get_running_loop().create_task(work))
        return self.running[-1]

    async def work(self) -> None:
        """Do what is due, for units that are idle."""
        self.upkeep.start_due(10.0)
        await asyncio.gather(*self.running)


def test_a_store_that_is_away_holds_up_no_folds_and_is_not_asked_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_through_an_outage(tmp_path, monkeypatch))
    assert list(tmp_path.iterdir()) == []


async def _through_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Unit(0, deltas=BASE_DELTAS + 1, rows=5), Unit(1, deltas=0, rows=5)
    place = Place(tmp_path, first, second)
    for _ in range(3):
        await place.work()
    assert place.store.asked == 1
    assert second.overlay.settled_rows == 0
    assert place.rebased == 0

    place.store.away = False
    monkeypatch.setattr(upkeep_module, "time", SimpleNamespace(monotonic=lambda: 1e12))
    await place.work()
    assert first.rebased == ["000000000007-1-0"]
    assert place.rebased == 1


def test_rows_that_are_soon_visible_are_waited_for_and_those_of_a_sink_that_is_down_are_not(tmp_path: Path) -> None:
    asyncio.run(_with_rows_due(tmp_path))


async def _with_rows_due(tmp_path: Path) -> None:
    unit = Unit(0, deltas=BASE_DELTAS + 1, rows=5)
    unit.rows_due = True
    place = Place(tmp_path, unit)
    place.store.away = False

    await place.work()
    assert unit.rebased == []

    unit.counters.deltas = 2 * BASE_DELTAS + 1
    await place.work()
    assert unit.rebased != []


def test_under_load_there_is_a_time_between_two_bases_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_under_load(tmp_path, monkeypatch))


async def _under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = Unit(0, deltas=1, rows=5)
    place = Place(tmp_path, unit)
    place.store.away = False
    unit.counters.delta_bytes = 10 * BASE_BYTES

    for _ in range(2):
        unit.overlay.settled_rows = 5
        await place.work()
    assert len(unit.rebased) == 1

    monkeypatch.setattr(upkeep_module, "time", SimpleNamespace(monotonic=lambda: 1e12))
    await place.work()
    assert len(unit.rebased) == 2


def test_a_base_that_is_given_up_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    asyncio.run(_given_up(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def _given_up(tmp_path: Path) -> None:
    unit = Unit(0, deltas=BASE_DELTAS + 1, rows=0)
    place = Place(tmp_path, unit)
    begun, end = asyncio.Event(), asyncio.Event()

    async def flush() -> None:
        begun.set()
        await end.wait()

    def put(name: str, source: Path, **_: Any) -> int:
        assert source.is_dir()
        asyncio.run_coroutine_threadsafe(flush(), loop).result()
        return 0

    loop = asyncio.get_running_loop()
    place.store.put = put  # type: ignore[method-assign]
    place.upkeep.start_due(0.0)
    await begun.wait()
    leaving = asyncio.create_task(place.upkeep.leave(unit))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    end.set()
    await leaving
    assert unit.rebased == []
