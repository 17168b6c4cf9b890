"""Takes the snapshots of the tasks of one worker, and acknowledges them.

    cut -> deltas, in slices between turns -> everything sent before the cut is durable -> acknowledgement

What always holds: all units that are cut together are frozen in one step, between two turns; an acknowledgement is sent
only when the deltas it names are durable, and every frame sent before the cut, and the rows of eager egresses are
written (PROTOCOL 9). A cut that comes while an earlier one is being written replaces it: its changes are in the newer
delta.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec.structs import replace

from penstock.checkpoint.control import Part
from penstock.checkpoint.reports import Acknowledgement, Report, Unable
from penstock.engine.checkpoints import DURATIONS_MAX
from penstock.engine.cluster.deltas import pieces
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.topics import Topics
from penstock.engine.unit import TaskUnit, Writing
from penstock.faults import fault
from penstock.router.kafka_writer import KafkaWriter


class Snapshots:
    """See the module. `fingerprints` gives those of the code here, where they are not those of the attempt; `report`
    tells the leader; `done` says whether a unit has nothing left to do, ever."""

    def __init__(
        self,
        worker: str,
        application: str,
        generation: int,
        writer: KafkaWriter,
        frames: FrameWriter,
        *,
        fingerprints: Callable[[], dict[str, dict[str, object]] | None],
        report: Callable[[Report], None],
        done: Callable[[TaskUnit], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._worker = worker
        self._application = application
        self._generation = generation
        self._writer = writer
        self._frames = frames
        self._topic = Topics.of(application, generation).deltas
        self._fingerprints = fingerprints
        self._report = report
        self._done = done
        self._spawn = spawn
        self._writing: dict[int, asyncio.Task[None]] = {}
        """By task: what writes its newest cut."""
        self.durations_ms: list[float] = []
        """Of the last 1,000: from the cut until it was acknowledged."""
        self.duration_ms_sum = 0.0
        self.taken = 0
        self.given_up = 0

    def cut(self, units: Sequence[TaskUnit], checkpoint: int, release: frozenset[int]) -> None:
        """Freeze those of `units` that have not passed this cut, and write what they changed."""
        due = [unit for unit in units if unit.snapshot.wants(checkpoint)]
        if not due:
            return
        for unit in due:
            self._stop(unit)
        began, cpu = time.perf_counter(), time.thread_time()
        attempt = due[0].snapshot.attempt
        done = all(map(self._done, due))
        writings = [unit.cut(checkpoint, self._application, self._generation) for unit in due]
        self._frames.seal()
        released = tuple(unit.task for unit in due if unit.task in release)
        cost_s = time.thread_time() - cpu
        work = self._spawn(self._write(attempt, checkpoint, due, writings, released, done, began, cost_s))
        for unit in due:
            self._writing[unit.task] = work

    def forget(self, units: Sequence[TaskUnit]) -> None:
        """These units go away: what is being written of them is of no interest any more."""
        for unit in units:
            self._stop(unit)

    def _stop(self, unit: TaskUnit) -> None:
        """Give up the snapshot that is being written; its changes wait for the next."""
        work = self._writing.pop(unit.task, None)
        if work is not None and not work.done():
            work.cancel()
        if unit.snapshot.writing is not None:
            unit.snapshot.failed(unit.snapshot.writing)

    async def _write(
        self,
        attempt: int,
        checkpoint: int,
        units: Sequence[TaskUnit],
        writings: Sequence[Writing],
        released: tuple[int, ...],
        done: bool,
        began: float,
        cost_s: float,
    ) -> None:
        appended: list[list[asyncio.Future[int]]] = []
        for unit, writing in zip(units, writings, strict=True):
            futures: list[asyncio.Future[int]] = []
            cost_s += await self._append(unit, writing, futures)
            appended.append(futures)
        fault("delta.written")
        await self._writer.flush()
        while self._frames.probe():
            await self._writer.flush()
        while not all(writing.eager_settled for writing in writings):  # noqa: ASYNC110  # A few ms as a rule.
            await asyncio.sleep(0.001)
        for writing, futures in zip(writings, appended, strict=True):
            writing.offset = futures[0].result()
        if any(writing.offset < 0 for writing in writings):
            self._give_up(attempt, checkpoint, units)
            return
        fault("cut.durable")
        written = [unit.written(writing) for unit, writing in zip(units, writings, strict=True)]
        parts: tuple[Part, ...] = tuple(replace(part, fingerprints=self._fingerprints()) for part in written)
        for unit in units:
            self._writing.pop(unit.task, None)
        size = sum(writing.encoder.bytes for writing in writings)
        self._report(
            Acknowledgement(
                self._worker, attempt, checkpoint, parts, self._frames.ends, released, done, size, cost_s * 1000
            )
        )
        fault("cut.acknowledged")
        self._count((time.perf_counter() - began) * 1000)

    async def _append(self, unit: TaskUnit, writing: Writing, futures: list[asyncio.Future[int]]) -> float:
        """Encode a delta and append it. Returns the CPU seconds it took."""
        topic, task, append = self._topic, unit.task, self._writer.append
        return await writing.encode(lambda record: futures.extend(map(append, pieces(topic, task, record))))

    def _give_up(self, attempt: int, checkpoint: int, units: Sequence[TaskUnit]) -> None:
        """The deltas are written, and nobody knows where: the next ones extend those before."""
        for unit in units:
            self._stop(unit)
        self.given_up += 1
        reason = "Kafka no longer knows where the deltas are"
        self._report(Unable(self._worker, attempt, checkpoint, reason))

    def _count(self, took_ms: float) -> None:
        self.taken += 1
        self.duration_ms_sum += took_ms
        self.durations_ms.append(took_ms)
        del self.durations_ms[:-DURATIONS_MAX]
