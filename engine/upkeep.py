"""Keeps memory and disk within their bounds while a worker runs.

    settled changes -> fold into the store -> base -> retention -> journal, bases and inputs nobody needs are deleted

What always holds: one thing is done at a time, in slices between turns; only settled changes are folded; nothing that a
retained checkpoint reads is deleted, on whichever branch it lies. When the disk refuses a base, the deltas are kept and
it is tried again. Which checkpoints may go is decided by `retention`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from penstock.checkpoint.retention import Retained, decide, oldest_of_attempts, truncation_point
from penstock.engine.background import in_thread
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory
from penstock.engine.feeds import RequestFeed
from penstock.engine.logs import logger
from penstock.engine.unit import TaskUnit
from penstock.errors import CorruptSnapshot, Unavailable
from penstock.ids import Offset

ROW_BYTES_ASSUMED = 512
"""For the memory bound: a changed row with its key and bookkeeping."""
SUSPENDED_ROWS = 16
"""So many rows weigh what a suspended handler does: its frame, its context and the event loop's task, about 8 KB."""
FOLD_SHARE = 3
"""Settled rows are folded when they fill a third of the memory for pending changes; the rest is for what comes then."""
PRESSURE_LOOK_MS = 50
"""While inputs wait, how often to look whether they may go on: a sink that answers again wakes nobody."""
IDLE_FOLD_S = 1.0
"""Settled rows are folded, however few, when nothing has happened for so long."""
BASE_BYTES = 128 << 20
"""Deltas behind the newest base. It bounds what a restart replays: about 0.3 s."""
BASE_DELTAS = 2_000
UNREFERENCED_S = 3_600


class Upkeep:
    """See the module. `spawn` runs something beside the turns."""

    def __init__(
        self,
        config: Config,
        units: Sequence[TaskUnit],
        data: DataDirectory,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._config = config
        self._units = units
        self._data = data
        self._clock = clock
        self._spawn = spawn
        self._running: asyncio.Task[None] | None = None

    # When.

    @property
    def under_pressure(self) -> bool:
        """Whether inputs must wait: unsettled changes, queues, suspended handlers and rows for egresses fill their
        share of the memory (PROTOCOL 25).
        """
        rows = row_bytes = 0
        for unit in self._units:
            statistics = unit.overlay.statistics()
            rows += statistics.unsettled + statistics.settled + unit.core.queued
            rows += unit.core.suspended * SUSPENDED_ROWS
            row_bytes += unit.core.emitted_bytes + sum(driver.waiting_bytes for driver in unit.sinks.values())
        return rows * ROW_BYTES_ASSUMED + row_bytes > self._config.pending_bytes

    def start_due(self, idle_s: float) -> None:
        """Start what is due, if nothing is under way. `idle_s`: how long no unit has had anything to do."""
        if self._running is not None and not self._running.done():
            return
        for unit in self._units:
            counters = unit.counters
            wants_base = counters.delta_bytes > BASE_BYTES or counters.deltas > BASE_DELTAS
            settled = unit.overlay.settled_rows
            full = settled * ROW_BYTES_ASSUMED * FOLD_SHARE * len(self._units) > self._config.pending_bytes
            idle = settled > 0 and idle_s > IDLE_FOLD_S
            if wants_base or full or idle:
                self._running = self._spawn(self._fold(unit, with_base=wants_base))
                return

    def due_in_ms(self) -> int | None:
        """How long until something may be due while nothing happens; None for nothing."""
        if self.under_pressure:
            return PRESSURE_LOOK_MS
        return int(IDLE_FOLD_S * 1000) + 1 if any(unit.overlay.settled_rows for unit in self._units) else None

    # Folds and bases.

    async def _fold(self, unit: TaskUnit, *, with_base: bool) -> None:
        """Write settled changes into the store, slice by slice; then, if wanted, make a base of it."""
        while unit.begin_fold():
            while unit.overlay.fold_slice():  # noqa: ASYNC110  # It does not wait for something: it lets turns pass.
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        if with_base:
            await self._make_base(unit)
            await self._retain()

    async def _make_base(self, unit: TaskUnit) -> None:
        checkpoint = unit.overlay.folded_checkpoint
        if checkpoint <= unit.snapshot.base_checkpoint:
            return
        name = f"{checkpoint:012d}-{unit.snapshot.attempt}-{unit.task}"
        task_path = self._data.task_path(unit.task)
        path = task_path.with_name(f"{task_path.name}.checkpoint")
        backend = unit.overlay.backend
        try:
            await in_thread(backend.flush)
            shutil.rmtree(path, ignore_errors=True)
            backend.checkpoint(path)
            await in_thread(self._data.store.put, name, path)
            await in_thread(shutil.rmtree, path)
        except Unavailable as error:
            logger.error("%s", error)
            return
        unit.rebase(name, checkpoint)

    # Retention.

    async def _retain(self) -> None:
        """Forget old checkpoints, and what only they needed. What waits for the disk does so in a thread: syncing the
        index and deleting large files take tens of ms."""
        history, journal, now_s = self._data.history, self._data.journal, self._clock()
        needed = frozenset({history.attempt.restored} if history.attempt is not None else ())
        verdict = decide(list(history.checkpoints.values()), self._config.retention, int(now_s * 1000), needed=needed)
        for dropped in verdict.over_limit:
            logger.warning(
                "PEN0402 Checkpoint %d is dropped before its time: checkpoints reached their limit of %s bytes.",
                dropped.checkpoint,
                f"{self._config.retention.bytes_max:,}",
            )
        history.checkpoints = {each.checkpoint: each for each in verdict.kept}
        # The checkpoints that complete meanwhile are in the index, or are read from the journal behind it.
        await in_thread(journal.write_index, history)
        point = truncation_point(verdict.kept)
        if point is not None:
            journal.truncate(point)
        bases = {base for each in verdict.kept for base in each.bases}
        bases |= {unit.snapshot.base_name for unit in self._units}
        await in_thread(self._data.store.collect, bases, now_s - UNREFERENCED_S)
        self._truncate_inputs(verdict.kept)

    def _truncate_inputs(self, kept: Sequence[Retained]) -> None:
        """Requests and frames before the positions of every retained checkpoint are needed by nobody."""
        floors: dict[str, int] = {}
        for each in oldest_of_attempts(kept):
            try:
                manifest = self._data.journal.manifest(each)
            except CorruptSnapshot as error:
                logger.error("%s", error)
                return
            for part in manifest.parts:
                requests = part.ingress_positions.get(RequestFeed.SOURCE)
                positions = {
                    f"inbox-{part.task}": part.inbox_position,
                    f"requests-{part.task}": requests if isinstance(requests, int) else 0,
                }
                for partition, position in positions.items():
                    floors[partition] = min(position, floors.get(partition, position))
        for partition, floor in floors.items():
            self._data.log.truncate(partition, Offset(floor))
