"""One task at work: its core, its protocol, its inputs and its sinks, and what holds them together.

    feeds -> batch -> core -> effects -> frames to the log, eager rows to their sinks
                        |
                     freeze -> delta -> journal;  COMPLETE -> settle, commit, fold, base

Everything durable goes through the journal and the log; everything visible waits for COMPLETE, unless its egress is
eager. One unit per task; all units of a process share one event loop, and turns of them never overlap.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.delta import DeltaEncoder, DeltaIdentity
from penstock.checkpoint.sinks import Completed as CheckpointCompleted
from penstock.checkpoint.sinks import Staged
from penstock.checkpoint.snapshot import BaseRef, SnapshotTask
from penstock.engine.effects import Batch, Column, Completed, Deliveries, Effects, FrameInput, Input, Performed
from penstock.engine.feeds import Completions, Feed
from penstock.engine.invocation import Outcome, Signal, outside_of_handlers
from penstock.engine.restore import META, SETTLED_META, SETTLING_META, Restored
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.task import TaskCore
from penstock.faults import fault
from penstock.functions.durable import Stepped
from penstock.functions.steps import Blocking, Performance, perform
from penstock.ids import Address
from penstock.records import EgressRow, EpochFrame, Frozen, Reply, TaskMeta
from penstock.router.frames import encode_frames
from penstock.router.log import Log
from penstock.state import keys
from penstock.state.overlay import Overlay

ENCODE_S = 0.0005
"""Time spent on a delta at least before others have the event loop. News of an input takes four or five passes of it
to reach the worker, and each of them waits for so much."""
ENCODE_SHARE = 0.25
"""Of the time that others took meanwhile: where turns are long, a delta must not need hundreds of them. What waits for
its checkpoint would grow with the load, and with it what each checkpoint costs."""
INVOCATIONS_MIN, INVOCATIONS_MAX = 64, 1_000
TURN_S, TURN_MAX_S = 0.003, 0.005
"""Aim for the length of a turn, and when one is broken off at the end of a slice and the next made shorter (PROTOCOL
8)."""

_encode = msgspec.msgpack.Encoder().encode


class Channels(Protocol):
    """How messages reach the other tasks."""

    def send(self, destination: int, frame: EpochFrame) -> None:
        """Put a frame behind everything in the inbox of a task. It is durable before the next cut is acknowledged."""
        ...

    def inbox_end(self, task: int) -> int:
        """The offset behind everything in the inbox of a task, as far as this process knows."""
        ...


class LogChannels:
    """Inboxes that are partitions of a log of this process."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def send(self, destination: int, frame: EpochFrame) -> None:
        self._log.append(f"inbox-{destination}", encode_frames([frame]))

    def inbox_end(self, task: int) -> int:
        return self._log.end(f"inbox-{task}")


class Cut(NamedTuple):
    """What the fold of a cut must put beside its rows."""

    attempt: int
    checkpoint: int
    meta: TaskMeta
    egress: dict[str, list[EgressRow]]


@dataclass
class Writing:
    """A snapshot on its way into the journal."""

    encoder: DeltaEncoder
    frozen: Frozen
    eager: list[tuple[EagerDriver, int]]
    """How many rows each eager egress was sent before the cut."""
    staged: tuple[int, ...]
    """The earlier attempts of rows whose fate the cut does not know."""
    visible: int
    """The newest checkpoint up to which all rows were visible at the cut."""
    offset: int = -1
    """Of its first record; -1 while there is none."""

    async def encode(self, append: Callable[[bytes], None]) -> float:
        """Encode the delta and hand each record to `append`, in slices with turns between them. Returns the CPU seconds
        it took."""
        cost_s, slice_s = 0.0, ENCODE_S
        while True:
            began = time.thread_time()
            self._encode_slice(append, slice_s)
            cost_s += time.thread_time() - began
            if self.encoder.done:
                return cost_s
            left = time.perf_counter()
            await asyncio.sleep(0)
            slice_s = max(ENCODE_S, ENCODE_SHARE * (time.perf_counter() - left))

    def _encode_slice(self, append: Callable[[bytes], None], slice_s: float) -> None:
        until = time.perf_counter() + slice_s
        while time.perf_counter() < until and not self.encoder.done:
            record = self.encoder.step()
            if record is not None:
                append(record)
                fault("delta.appended")

    @property
    def eager_settled(self) -> bool:
        """Whether the rows that left before the cut are written: no snapshot holds them."""
        return all(driver.settled >= sent for driver, sent in self.eager)


@dataclass
class UnitCounters:
    """Since the unit started, but of deltas what the newest base does not contain, restored ones too."""

    turns: int = 0
    delta_bytes: int = 0
    deltas: int = 0
    frames_sent: int = 0


class TaskUnit:
    """See the module."""

    def __init__(
        self,
        task: int,
        core: TaskCore,
        overlay: Overlay,
        snapshot: SnapshotTask,
        completions: Completions,
        feeds: list[Feed],
        sinks: dict[str, SinkDriver | EagerDriver],
        channels: Channels,
        clock: Callable[[], float],
        *,
        invocations_max: int = INVOCATIONS_MAX,
    ) -> None:
        self.task = task
        self.core = core
        self.overlay = overlay
        self.snapshot = snapshot
        self.completions = completions
        self.feeds = feeds
        self.sinks = sinks
        self._channels = channels
        self._clock = clock
        self._invocations_bound = invocations_max
        self._invocations_max = min(INVOCATIONS_MIN, invocations_max)
        self._cuts: deque[Cut] = deque()
        self._folded_meta = deepcopy(core.meta)  # What was restored: the core goes on changing its own.
        self._replies: deque[tuple[int, list[Reply]]] = deque()
        self._deltas: deque[tuple[int, int]] = deque()
        """Checkpoint and offset of the deltas written since the base."""
        self._inherited: list[tuple[str, int, int]] = []
        """Egress, attempt and checkpoint of restored rows that may not be visible yet."""
        self._stored_rows: deque[tuple[str, int, bytes]] = deque()
        """Egress rows that a fold put into the store, to be deleted once committed."""
        self.reply_egress = ""
        """The egress that replies are rows of; empty where they are told by this process, or not at all."""
        self.counters = UnitCounters()

    def adopt(self, restored: Restored) -> None:
        """Take over rows that a restored checkpoint decided and that may not be visible yet: folds must keep those that
        only its deltas hold, and delete those in the store once they are committed. Its deltas count until a base."""
        self.counters.deltas, self.counters.delta_bytes = restored.deltas, restored.delta_bytes
        self._stored_rows.extend(restored.stored)
        self._inherited = [
            (egress, batch.attempt, batch.checkpoint) for egress, staged in restored.staged.items() for batch in staged
        ]
        batches: dict[int, Cut] = {}
        for egress, staged in restored.staged.items():
            for batch in staged:
                if batch.checkpoint > restored.base.checkpoint:
                    cut = Cut(batch.attempt, batch.checkpoint, self._folded_meta, {})
                    batches.setdefault(batch.checkpoint, cut).egress[egress] = list(batch.rows)
        self._cuts.extend(batches[checkpoint] for checkpoint in sorted(batches))

    # Turns.

    def turn(self, clock_ms: int, *, paused: bool, crowded: bool = False, burying: bool = False) -> Effects | None:
        """Take what there is to do and do some of it. None when there is nothing.

        `paused`: nothing is taken from outside. `crowded`: nor from other tasks, whose frames wait in the log.
        `burying`: requests are taken all the same, because one of them is to make dead letters, without which a sink
        can't go on.
        """
        began = self._clock()
        inputs = self.completions.take(self._invocations_max)
        room = self._invocations_max - self.core.queued
        if room > 0:
            self.feeds.append(self.feeds.pop(0))  # Each is first in its turn.
            for feed in self.feeds:
                if (crowded if feed.kind == "inbox" else paused) and not (burying and feed.kind == "requests"):
                    continue
                taken = feed.take(room)
                inputs += taken
                room -= sum(map(_size, taken))
                if room <= 0:
                    break
        due_ms = self.core.next_due_ms()
        if not inputs and not self.core.queued and (due_ms is None or due_ms > clock_ms):
            return None
        batch = Batch(clock_ms, inputs, self._invocations_max)
        fault("turn.taken")
        effects = self.core.run(batch, lambda: self._clock() - began > TURN_MAX_S)
        self.overlay.tidy()
        fault("turn.run")
        self._send(effects)
        fault("turn.sent")
        self._adapt(self._clock() - began, effects.invocations)
        self.counters.turns += 1
        return effects

    def _send(self, effects: Effects) -> None:
        """Hand on what does not wait for a checkpoint."""
        for frame in effects.frames:
            stamped = self.snapshot.stamp(frame.sequence, frame.messages)
            self._channels.send(frame.destination, stamped)
            self.counters.frames_sent += 1
        for name, rows in effects.egress.items():
            driver = self.sinks[name]
            if isinstance(driver, EagerDriver):
                driver.send(rows)

    def _adapt(self, took_s: float, invocations: int) -> None:
        if took_s > TURN_MAX_S:
            fitting = int(invocations * TURN_S / took_s)
            self._invocations_max = max(1, min(fitting, self._invocations_max // 2))
        elif took_s < TURN_S and invocations >= self._invocations_max:
            self._invocations_max = min(self._invocations_bound, self._invocations_max * 2)

    # Checkpoints.

    def cut(self, checkpoint: int, application: str, generation: int) -> Writing:
        """Freeze the core at `checkpoint`. Pointer swaps only."""
        frozen = self.core.freeze(checkpoint)
        if self.core.outside is not None:
            self.core.outside.cut(checkpoint)
        if self.reply_egress and frozen.replies:
            rows = [EgressRow(_encode(reply), 0, reply.request_id.encode()) for reply in frozen.replies]
            frozen = frozen._replace(egress={**frozen.egress, self.reply_egress: rows}, replies=[])
        meta = msgspec.structs.replace(frozen.meta, schedule=[])  # It is long, and a store has no use for it.
        self._cuts.append(Cut(self.snapshot.attempt, checkpoint, meta, dict(frozen.egress)))
        if frozen.replies:
            self._replies.append((checkpoint, frozen.replies))
        for name, rows in frozen.egress.items():
            driver = self.sinks[name]
            assert isinstance(driver, SinkDriver)
            driver.handle(Staged(self.snapshot.attempt, checkpoint, rows))
        taken = self.snapshot.cut(frozen)
        identity = DeltaIdentity(application, self.snapshot.attempt, generation, taken.previous)
        eager = [(driver, driver.sent) for driver in self.sinks.values() if isinstance(driver, EagerDriver)]
        fault("cut.frozen")
        staged = tuple(sorted({attempt for _, attempt, _ in self._inherited}))
        return Writing(DeltaEncoder(taken.frozen, identity), taken.frozen, eager, staged, self._visible(checkpoint))

    def _visible(self, checkpoint: int) -> int:
        """The newest checkpoint, up to this one, that all rows up to are visible of."""
        oldest = [driver.oldest for driver in self.sinks.values() if isinstance(driver, SinkDriver)]
        return min((waiting - 1 for waiting in oldest if waiting is not None), default=checkpoint)

    def written(self, writing: Writing) -> Part:
        """The delta is in the journal. Returns what to acknowledge."""
        checkpoint, offset = writing.frozen.checkpoint, writing.offset
        self._deltas.append((checkpoint, offset))
        self.counters.delta_bytes += writing.encoder.bytes
        self.counters.deltas += 1
        inbox_end = self._channels.inbox_end(self.task)
        return self.snapshot.written(
            checkpoint,
            offset,
            writing.encoder.checksum,
            inbox_end=inbox_end,
            staged=writing.staged,
            visible=writing.visible,
        )

    def abandoned(self, checkpoint: int) -> None:
        """The checkpoint was given up before its delta was written: its changes go into the next."""
        if self.snapshot.writing == checkpoint:
            self.snapshot.failed(checkpoint)

    def completed(self, manifest: Manifest) -> list[Reply]:
        """COMPLETE was read: settle, commit rows, and return the replies that may be told now."""
        checkpoint = manifest.checkpoint
        fault("settle.told")
        self.core.settle(checkpoint)
        if self.core.outside is not None:
            self.core.outside.settle(checkpoint)
        for driver in self.sinks.values():
            if isinstance(driver, SinkDriver):
                driver.handle(CheckpointCompleted(self.snapshot.attempt, checkpoint))
        replies: list[Reply] = []
        while self._replies and self._replies[0][0] <= checkpoint:
            replies += self._replies.popleft()[1]
        fault("settle.done")
        return replies

    # Folding, and what a base needs.

    def begin_fold(self) -> bool:
        """Start to write the oldest settled cuts into the store. False when there are none."""
        checkpoint = self.overlay.next_fold
        if checkpoint is None:
            return False
        rows: list[tuple[bytes, bytes | None]] = []
        cut: Cut | None = None
        while self._cuts and self._cuts[0].checkpoint <= checkpoint:
            cut = self._cuts.popleft()
            rows += self._egress_rows(cut)
        rows += self._committed_rows()
        if cut is not None:
            self._folded_meta = cut.meta
        marker = _encode((self.snapshot.attempt, checkpoint))
        first = [(SETTLING_META, marker), *rows]
        self.overlay.begin_fold(first, [(META, _encode(self._folded_meta)), (SETTLED_META, marker)])
        return True

    @property
    def rows_due(self) -> bool:
        """Whether settled cuts have rows that are not visible yet: a fold must put them into the store."""
        settled = self.overlay.settled_checkpoint
        return any(cut.egress for cut in self._cuts if cut.checkpoint <= settled)

    def _egress_rows(self, cut: Cut) -> list[tuple[bytes, bytes | None]]:
        """Rows of a cut that may not be visible yet: a base must hold them."""
        committed = self.core.meta.committed
        rows: list[tuple[bytes, bytes | None]] = []
        for name, emitted in cut.egress.items():
            if cut.checkpoint > committed.get(name, 0):
                for number, row in enumerate(emitted):
                    key = keys.encode_egress_key(name, cut.checkpoint, number)
                    rows.append((key, _encode((cut.attempt, row))))
                    self._stored_rows.append((name, cut.checkpoint, key))
        return rows

    def committed(self, egress: str, checkpoint: int) -> None:
        """The rows of `egress` up to `checkpoint` are visible: nobody needs them any more."""
        self.core.committed(egress, checkpoint)
        self._inherited = [each for each in self._inherited if each[0] != egress or each[2] > checkpoint]
        for cut in self._cuts:
            if cut.checkpoint > checkpoint:
                break
            cut.egress.pop(egress, None)

    def _committed_rows(self) -> list[tuple[bytes, bytes | None]]:
        """Deletions of stored egress rows that are visible by now."""
        committed = self.core.meta.committed
        kept: deque[tuple[str, int, bytes]] = deque()
        deleted: list[tuple[bytes, bytes | None]] = []
        for name, checkpoint, key in self._stored_rows:
            if checkpoint <= committed.get(name, 0):
                deleted.append((key, None))
            else:
                kept.append((name, checkpoint, key))
        self._stored_rows = kept
        return deleted

    def rebase(self, name: str, checkpoint: int) -> None:
        """The base `name` holds everything up to `checkpoint`: deltas from now on build on it."""
        while self._deltas and self._deltas[0][0] <= checkpoint:
            self._deltas.popleft()
        first = self._deltas[0][1] if self._deltas else -1
        self.snapshot.rebase(BaseRef(name, checkpoint, first))
        self.counters.delta_bytes = self.counters.deltas = 0

    # What others ask.

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do, now or later, that was admitted or is waiting in a log."""
        statistics = self.core.statistics()
        return (
            not statistics.queued
            and not statistics.pending
            and all(getattr(feed, "behind", 0) == 0 for feed in self.feeds)
            and not self.core.holds_delayed_messages
        )


def _size(item: Input) -> int:
    """Messages that an input holds."""
    match item:
        case Column():
            return len(item.ids)
        case Deliveries():
            return len(item.envelopes)
        case FrameInput():
            return len(item.frame.messages) if item.frame is not None else 0
        case Completed() | Performed():
            return 1


class Suspended:
    """What handlers have going on between turns: what they await of the event loop, and their steps.

    A step has effects that nothing takes back. So it begins only when the checkpoint is complete that holds what it
    follows from, as rows and answers leave only then: otherwise a crash could leave behind what, as things go the next
    time, was never asked for.
    """

    def __init__(
        self, completions: Completions, wake: Callable[[], None], blocking: Blocking = asyncio.to_thread
    ) -> None:
        self._completions = completions
        self._wake = wake
        self._blocking = blocking
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: list[Callable[[], None]] = []
        """Begin the steps that were asked for since the last cut."""
        self._cut: deque[tuple[int, list[Callable[[], None]]]] = deque()
        """By checkpoint, those that wait for its completion."""

    def start(self, number: int, handler: Coroutine[Any, Any, Any]) -> Outcome | None:
        task = self._spawn(_contained(handler))
        # Closing it matters for one that was cancelled before its first step; for all others it does nothing.
        task.add_done_callback(lambda _: handler.close())
        task.add_done_callback(lambda ended: self._ended(number, ended))
        return None

    def rested(self, number: int, signal: Signal) -> None:
        self._tell(Completed(number, signal, None))

    def began(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def perform(self, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
        self._asked.append(partial(self._begin_step, typename, id, cause, index, step))

    @property
    def waits_for_cut(self) -> bool:
        return bool(self._asked)

    def cut(self, checkpoint: int) -> None:
        if self._asked:
            self._cut.append((checkpoint, self._asked))
            self._asked = []

    def settle(self, checkpoint: int) -> None:
        while self._cut and self._cut[0][0] <= checkpoint:
            for begin in self._cut.popleft()[1]:
                begin()

    def _begin_step(self, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
        task = self._spawn(
            perform(step, key=f"{cause:016x}-{index}", address=Address(typename, id), blocking=self._blocking)
        )

        def ended(task: asyncio.Task[Performance]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                self._tell(Performed(typename, id, cause, index, *task.result()))

        task.add_done_callback(ended)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        # In a context of its own, and not in that of the handler that happens to run: it is no part of it.
        task = outside_of_handlers().run(asyncio.get_running_loop().create_task, work)
        self._tasks.add(task)
        return task

    def _ended(self, number: int, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            error: BaseException | None = asyncio.CancelledError("the handler was cancelled")
        else:
            error = task.exception()
        self._tell(Completed(number, None if error is not None else task.result(), error))

    def _tell(self, what: Completed | Performed) -> None:
        self._completions.add(what)
        self._wake()

    async def cancel_all(self, timeout_s: float | None = None) -> None:
        """The process stops: what these handlers did is not kept, and they run again from their messages. One that
        goes on although it is cancelled is waited for no longer than `timeout_s`."""
        self._asked.clear()
        self._cut.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)


async def _contained(handler: Coroutine[Any, Any, Any]) -> Any:
    """What the event loop would take as its own end is a failure of the handler like any other."""
    try:
        return await handler
    except SystemExit as error:
        raise RuntimeError(
            f"the handler raised SystemExit({error.code!r}); a handler can't end the application"
        ) from error
