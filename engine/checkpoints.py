"""Takes checkpoints of a whole process: performs what the `Coordinator` decides on units, journal and log.

    tick -> freeze all units -> deltas, in slices -> what was sent is durable -> COMPLETE behind the deltas, one sync
         -> units settle and commit -> replies and whoever waits are told

What always holds: all units are frozen in one step, between two turns; nothing is announced before its COMPLETE is
durable, nor that before the deltas and messages it refers to are, and the rows of eager egresses are written. Does not
know what became of a reply or what a checkpoint leaves to be tidied: `announced` gets the one, `upkeep` sees the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from penstock.checkpoint.control import AttemptBegun, Complete, ControlRecord, Manifest
from penstock.checkpoint.coordinator import (
    Abandoned,
    Acknowledged,
    Action,
    Announce,
    Begin,
    Coordinator,
    CoordinatorOptions,
    Durable,
    Phase,
    Tick,
    Write,
)
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory
from penstock.engine.unit import TaskUnit, Writing
from penstock.errors import Refused
from penstock.faults import fault
from penstock.functions.app import App
from penstock.logs import logger
from penstock.records import Reply

GENERATION = 1
"""Of the topology an application begins with. It grows when its parallelism changes."""
DURATIONS_MAX = 1_000


class CheckpointDriver:
    """See the module. `spawn` runs something beside the turns, `wake` starts the next turn, and `announced` gets every
    complete checkpoint with the replies that may be told now."""

    def __init__(
        self,
        app: App,
        config: Config,
        attempt: AttemptBegun,
        units: Sequence[TaskUnit],
        data: DataDirectory,
        *,
        generation: int,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        wake: Callable[[], None],
        announced: Callable[[Manifest, list[Reply]], None],
    ) -> None:
        self._application = app.name
        self._generation = generation
        self._units = units
        self._data = data
        self._clock = clock
        self._spawn = spawn
        self._wake = wake
        self._announced = announced
        self._urgent_reason = ""
        self._waiting: dict[int, list[asyncio.Future[int]]] = {}
        self._closed = False
        self.coordinator = Coordinator(
            CoordinatorOptions(
                application=app.name,
                tasks=config.parallelism,
                fingerprints=app.fingerprints(),
                interval_ms=config.interval_ms,
                timeout_ms=config.checkpoint_timeout_ms,
                generation=generation,
            ),
            attempt,
        )
        self.durations_ms: list[float] = []
        """Of the last 1,000: from the freeze until the checkpoint is durable."""
        self.duration_ms_sum = 0.0
        """Of all since the start."""

    # When.

    def hurry(self, reason: str) -> None:
        """Somebody waits for the next checkpoint: take it as soon as may be. The manifest says why."""
        self._urgent_reason = reason

    def tick(self, now_ms: float) -> None:
        """Begin a checkpoint if one is due. Call it between turns."""
        tick = Tick(now_ms, self._dirty, bool(self._urgent_reason), self._urgent_reason or "interval")
        self._perform(self.coordinator.handle(tick))

    def due_in_ms(self, now_ms: float) -> float | None:
        """How long until a tick would begin a checkpoint; None while nothing calls for one."""
        return self.coordinator.due_in_ms(now_ms, dirty=self._dirty, urgent=bool(self._urgent_reason))

    @property
    def quiet(self) -> bool:
        """Whether everything is in a complete checkpoint, none is under way, and nobody waits for one."""
        return not self._dirty and self.coordinator.phase is Phase.IDLE and not self._waiting

    async def wait_checkpoint(self, reason: str) -> int:
        """Take a checkpoint of everything admitted so far, and return its number once it is complete.

        Raises Refused when the worker ends first.
        """
        if self._closed:
            raise _ended(self._application)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        following = (self.coordinator.current or self.coordinator.last_id) + 1
        self._waiting.setdefault(following, []).append(future)
        self.hurry(reason)
        self._wake()
        return await future

    def close(self) -> None:
        """No checkpoint will be taken any more: tell those who wait for one."""
        self._closed = True
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(_ended(self._application))
        self._waiting.clear()

    @property
    def _dirty(self) -> bool:
        return self.coordinator.owing or any(unit.core.changed for unit in self._units)

    # How.

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begin(checkpoint):
                    self._urgent_reason = ""
                    fault("begin.telling")
                    self._spawn(self._take(checkpoint))
                case Write(record):
                    fault("reserve.writing")
                    self._spawn(self._make_durable(self._data.journal.append_control(record), record))
                case Announce(manifest):
                    self._announce(manifest)
                case Abandoned(checkpoint, reason):
                    logger.error("PEN0401 Checkpoint %d was given up: %s", checkpoint, reason)

    async def _make_durable(self, offset: int, record: ControlRecord) -> None:
        """For records outside a checkpoint: reserved ids."""
        await self._data.flush()
        fault("reserve.durable")
        self._data.history.apply(offset, record)
        self._perform(self.coordinator.handle(Durable(self._clock() * 1000)))
        self._wake()

    async def _take(self, checkpoint: int) -> None:
        """Take one checkpoint, from the freeze to the announcement."""
        began, cpu = time.perf_counter(), time.thread_time()
        writings = [unit.cut(checkpoint, self._application, self._generation) for unit in self._units]
        cost_s = time.thread_time() - cpu
        sent = self._data.log.statistics().unflushed_records
        for writing in writings:
            cost_s += await self._write(writing)
        fault("delta.written")
        if sent:
            await (
                self._data.flush()
            )  # Everything sent before the cut, before the COMPLETE that refers to it (PROTOCOL 9).
            fault("cut.durable")
        # A few ms as a rule, else until the coordinator gives the checkpoint up.
        while self.coordinator.current == checkpoint and not all(each.eager_settled for each in writings):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self.coordinator.current != checkpoint:
            for unit in self._units:
                unit.abandoned(checkpoint)
            return
        manifest, offset = self._complete(checkpoint, writings)
        await self._data.flush()
        fault("complete.durable")
        self._data.history.apply(offset, Complete(manifest))
        self._count((time.perf_counter() - began) * 1000)
        self._perform(self.coordinator.handle(Durable(self._clock() * 1000, cost_s * 1000)))
        self._wake()

    async def _write(self, writing: Writing) -> float:
        """Encode a delta and append it. Returns the CPU seconds it took."""

        def append(record: bytes) -> None:
            offset = self._data.journal.append_delta(record)
            writing.offset = offset if writing.offset < 0 else writing.offset

        return await writing.encode(append)

    def _complete(self, checkpoint: int, writings: list[Writing]) -> tuple[Manifest, int]:
        """COMPLETE behind the deltas: one sync makes them durable, and it can't be durable without them."""
        actions: list[Action] = []
        for unit, writing in zip(self._units, writings, strict=True):
            part = unit.written(writing)
            actions += self.coordinator.handle(Acknowledged(checkpoint, part, writing.encoder.bytes))
            fault("cut.acknowledged")
        (decision,) = actions
        assert isinstance(decision, Write)
        assert isinstance(decision.record, Complete)
        fault("complete.writing")
        return decision.record.manifest, self._data.journal.append_control(decision.record)

    def _announce(self, manifest: Manifest) -> None:
        replies = [reply for unit in self._units for reply in unit.completed(manifest)]
        self._announced(manifest, replies)
        for checkpoint in [c for c in self._waiting if c <= manifest.checkpoint]:
            for future in self._waiting.pop(checkpoint):
                if not future.done():
                    future.set_result(manifest.checkpoint)

    def _count(self, took_ms: float) -> None:
        self.duration_ms_sum += took_ms
        self.durations_ms.append(took_ms)
        del self.durations_ms[:-DURATIONS_MAX]


def _ended(application: str) -> Refused:
    return Refused("PEN0603", f"{application} stopped before the checkpoint was complete. Ask again when it runs.")
