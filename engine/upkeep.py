"""Keeps the memory of a worker within its bounds while it runs.

    settled changes -> fold into the store -> base -> whoever forgets what no checkpoint needs

What always holds: one thing is done at a time, in slices between turns; only settled changes are folded. When the disk
refuses a base, the deltas are kept and it is tried again. What is forgotten after a new base is for others.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from penstock.checkpoint.store import BaseStore
from penstock.engine.background import in_thread
from penstock.engine.config import Config
from penstock.engine.unit import TaskUnit
from penstock.errors import Unavailable
from penstock.faults import fault
from penstock.logs import logger
from penstock.state.overlay import Overlay

ROW_BYTES_ASSUMED = 512
"""For the memory bound: a changed row with its key and bookkeeping."""
SUSPENDED_ROWS = 16
"""So many rows weigh what a suspended handler does: its frame, its context and the event loop's task, about 8 KB."""
FOLD_SHARE = 3
"""Settled rows are folded when they fill a third of the memory for pending changes; the rest is for what comes then."""
CROWDED = 1.25
"""The pressure at which a task also leaves the frames of others in the log. Later than inputs from outside, so that
what is in the application already is done first."""
LOOK_S = 0.003
"""How long the measured pressure is good: what comes in meanwhile is a few megabytes at most, and measuring is not free
where turns are short."""
PRESSURE_LOOK_MS = 50
"""While inputs wait, how often to look whether they may go on: a sink that answers again wakes nobody."""
IDLE_FOLD_S = 1.0
"""Settled rows are folded, however few, when nothing has happened for so long."""
BASE_BYTES = 128 << 20
"""Deltas of all units behind their newest bases. It bounds what a restart replays: about 0.3 s."""
BASE_DELTAS = 2_000
BASE_INTERVAL_S = 5.0
"""A base costs what all rows that changed since the last one do: under full load, deltas of so long may have to be
replayed instead, however large."""
BASE_RETRY_S = 5.0
"""After a store has not taken a base it is left alone for so long, and folds of all units go on meanwhile."""


class Upkeep:
    """See the module. `units` are those of the moment, `task_path` says where the store of one lies, bases go to
    `store`; `rebased` is called after each, and `spawn` runs something beside the turns."""

    def __init__(
        self,
        config: Config,
        units: Sequence[TaskUnit],
        store: BaseStore,
        task_path: Callable[[int], Path],
        *,
        rebased: Callable[[], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        base_bytes: int = BASE_BYTES,
    ) -> None:
        self._config = config
        self._base_bytes = base_bytes
        self._units = units
        self._store = store
        self._task_path = task_path
        self._rebased = rebased
        self._spawn = spawn
        self._running: asyncio.Task[None] | None = None
        self._unit: TaskUnit | None = None
        """What `_running` is done for."""
        self._pressure = 0.0
        self._look_at_s = 0.0
        self._bases_from_s = 0.0
        """When the store is asked again to take a base."""
        self._based_s: dict[int, float] = {}
        """When each task had its last base."""

    # When.

    @property
    def pressure(self) -> float:
        """How much of their share of the memory unsettled changes, queues, suspended handlers and rows for egresses
        fill, as of a few milliseconds ago. From 1 on inputs from outside must wait, from `CROWDED` on frames of other
        tasks too (PROTOCOL 25)."""
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            self._pressure = self._measure()
            self._look_at_s = now_s + LOOK_S
        return self._pressure

    def _measure(self) -> float:
        rows = row_bytes = 0
        for unit in self._units:
            statistics = unit.overlay.statistics()
            rows += statistics.unsettled + statistics.settled + unit.core.queued
            rows += unit.core.suspended * SUSPENDED_ROWS
            row_bytes += unit.core.emitted_bytes + sum(driver.waiting_bytes for driver in unit.sinks.values())
        return (rows * ROW_BYTES_ASSUMED + row_bytes) / self._config.pending_bytes

    @property
    def under_pressure(self) -> bool:
        """Whether inputs from outside must wait."""
        return self.pressure >= 1

    def start_due(self, idle_s: float) -> None:
        """Start what is due, if nothing is under way. `idle_s`: how long no unit has had anything to do."""
        if self._running is not None and not self._running.done():
            return
        taking = time.monotonic() >= self._bases_from_s
        for unit in self._units:
            wants_base = taking and self._wants_base(unit)
            settled = unit.overlay.settled_rows
            full = settled * ROW_BYTES_ASSUMED * FOLD_SHARE * len(self._units) > self._config.pending_bytes
            idle = settled > 0 and idle_s > IDLE_FOLD_S
            if wants_base or full or idle:
                self._unit = unit
                self._running = self._spawn(self._fold(unit, with_base=wants_base))
                return

    def _wants_base(self, unit: TaskUnit) -> bool:
        counters = unit.counters
        rested = time.monotonic() - self._based_s.get(unit.task, -BASE_INTERVAL_S) >= BASE_INTERVAL_S
        by_size = counters.delta_bytes * len(self._units) / self._base_bytes if rested else 0.0
        fullness = max(by_size, counters.deltas / BASE_DELTAS)
        # Rows that are not visible yet would have to be in it. They are in a moment, unless their sink is down.
        return fullness > 1 and (fullness > 2 or not unit.rows_due)

    async def leave(self, unit: TaskUnit) -> None:
        """The unit goes away: what is under way for it is given up, and has ended when this returns."""
        if self._running is not None and self._unit is unit:
            self._running.cancel()
            await asyncio.wait({self._running})

    def due_in_ms(self) -> int | None:
        """How long until something may be due while nothing happens; None for nothing."""
        if self.under_pressure:
            return PRESSURE_LOOK_MS
        return int(IDLE_FOLD_S * 1000) + 1 if any(unit.overlay.settled_rows for unit in self._units) else None

    # Folds and bases.

    async def _fold(self, unit: TaskUnit, *, with_base: bool) -> None:
        """Write settled changes into the store, slice by slice; then, if wanted, make a base of it."""
        overlay = unit.overlay
        await _sliced(overlay.merge_slice)
        while unit.begin_fold():
            fault("fold.begun")
            await _sliced(partial(_fold_slice, overlay))
            fault("fold.done")
            await _sliced(overlay.merge_slice)
            if unit.rows_due:
                break  # Of what was settled meanwhile, which may wait as this did.
        if with_base and await self._make_base(unit):
            await self._rebased()

    async def _make_base(self, unit: TaskUnit) -> bool:
        """Returns whether there is a new one."""
        checkpoint = unit.overlay.folded_checkpoint
        if checkpoint <= unit.snapshot.base_checkpoint:
            return False
        name = f"{checkpoint:012d}-{unit.snapshot.attempt}-{unit.task}"
        task_path = self._task_path(unit.task)
        path = task_path.with_name(f"{task_path.name}.checkpoint")
        backend = unit.overlay.backend
        try:
            await in_thread(backend.flush)
            shutil.rmtree(path, ignore_errors=True)
            backend.checkpoint(path)
            fault("base.linked")
            await in_thread(self._store.put, name, path)
            fault("base.stored")
            await in_thread(shutil.rmtree, path)
        except Unavailable as error:
            logger.error("%s", error)
            self._bases_from_s = time.monotonic() + BASE_RETRY_S
            return False
        finally:  # Also when the unit leaves meanwhile: its links would keep the disk full.
            shutil.rmtree(path, ignore_errors=True)
        unit.rebase(name, checkpoint)
        self._based_s[unit.task] = time.monotonic()
        fault("base.named")
        return True


def _fold_slice(overlay: Overlay) -> bool:
    more = overlay.fold_slice()
    if overlay.folding:
        fault("fold.half")
    return more


async def _sliced(step: Callable[[], bool]) -> None:
    """Do all steps of something, and let others have the event loop after each."""
    while step():  # noqa: ASYNC110  # It does not wait for something: it lets turns pass.
        await asyncio.sleep(0)
    await asyncio.sleep(0)
