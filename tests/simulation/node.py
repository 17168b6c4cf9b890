"""One task at work in a simulated world: the real unit with its core, and around it what the world may delay or lose.

Unlike in a worker, each task is told of checkpoints separately, and takes its snapshot in stages between which anything
may happen: encode, make durable what was sent, append the delta, make that durable, acknowledge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Mapping
from enum import Enum
from math import inf
from typing import Any

from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.coordinator import Acknowledged, Failed
from penstock.checkpoint.snapshot import Admission, SnapshotTask
from penstock.engine.effects import Column, Completed, Effects, FrameInput, Input
from penstock.engine.feeds import Completions, FeedKind, RequestFeed
from penstock.engine.invocation import Outcome
from penstock.engine.journal import PARTITION, Journal
from penstock.engine.task import TaskCore
from penstock.engine.unit import LogChannels, TaskUnit, Writing
from penstock.ids import Offset, cause_of
from penstock.records import Reply
from penstock.router.frames import decode_frames
from penstock.router.log import Log
from penstock.state.overlay import Overlay
from tests.simulation.database import SimulatedDriver
from tests.simulation.log import Producer, SimulatedLog
from tests.simulation.walks import EGRESS, WALKS

GENERATION = 1
DAY_MS = 24 * 3_600_000


class Source:
    """An ingress partition: inputs known from the start, and a position."""

    kind: FeedKind = "ingress"
    done = True

    def __init__(self, name: str, inputs: list[tuple[str, str, bytes]], position: int) -> None:
        self._name = name
        self._inputs = inputs
        self._position = position
        self._cause = cause_of(name) >> 1
        self.behind = len(inputs) - position

    def take(self, count_max: int) -> list[Input]:
        if not self.behind:
            return []
        typename, id, payload = self._inputs[self._position]
        self._position += 1
        self.behind -= 1
        cause = self._cause + self._position
        return [Column(self._name, self._position, typename, [id], [payload], cause)]


class Inbox:
    """The inbox of one task. Stops before a frame of a newer epoch, and says so."""

    kind: FeedKind = "inbox"
    done = True

    def __init__(self, log: SimulatedLog, task: int, snapshot: SnapshotTask, position: int) -> None:
        self._log = log
        self._partition = f"inbox-{task}"
        self._snapshot = snapshot
        self._position = Offset(position)
        self.cut_due: int | None = None

    @property
    def behind(self) -> int:
        return self._log.end(self._partition) - self._position

    def take(self, count_max: int) -> list[Input]:
        inputs: list[Input] = []
        if not self.behind or self._partition in self._log.silent:
            return inputs
        for offset, record in self._log.read(self._partition, self._position, count_max, 1 << 20):
            (frame,) = decode_frames(record, place=self._partition)
            admission = self._snapshot.admit(frame)
            if admission is Admission.CUT_FIRST:
                self.cut_due = frame.epoch
                break
            if admission is Admission.PROCESS:
                inputs.append(FrameInput(offset + 1, frame))
            self._position = Offset(offset + 1)
        return inputs


class SimulatedUnit(TaskUnit):
    """A unit whose turns are as long as the world says, not as its clock does."""

    def turn_of(self, invocations_max: int, clock_ms: int) -> Effects | None:
        self._invocations_max = invocations_max
        return self.turn(clock_ms, paused=False)


class Handlers:
    """The suspended handlers of one task: they go on when the world says so."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions
        self._suspended: dict[int, Coroutine[Any, Any, Any]] = {}
        self.ended = 0

    def __len__(self) -> int:
        return len(self._suspended)

    def start(self, number: int, handler: Coroutine[Any, Any, Any]) -> Outcome | None:
        outcome = _step(handler)
        if outcome is None:
            self._suspended[number] = handler
        return outcome

    def resume(self, index: int) -> None:
        number = list(self._suspended)[index]
        outcome = _step(self._suspended[number])
        if outcome is not None:
            del self._suspended[number]
            self.ended += 1
            self._completions.add(Completed(number, outcome.value, outcome.error))

    def close(self) -> None:
        for handler in self._suspended.values():
            handler.close()
        self._suspended.clear()


def _step(handler: Coroutine[Any, Any, Any]) -> Outcome | None:
    try:
        handler.send(None)
    except StopIteration as ended:
        return Outcome(ended.value, None)
    except Exception as error:  # noqa: BLE001  # Whatever a handler raises is its failure, as in a worker.
        return Outcome(None, error)
    return None


class Stage(Enum):
    """How far the snapshot being taken has come: what is to be done next."""

    ENCODE = "encode the delta"
    SEND = "make durable what was sent before the cut"
    APPEND = "append the delta"
    SYNC = "make the delta durable, and acknowledge"


class Node:
    """See the module."""

    application = WALKS.name

    def __init__(
        self,
        task: int,
        core: TaskCore,
        overlay: Overlay,
        snapshot: SnapshotTask,
        completions: Completions,
        handlers: Handlers,
        sources: list[RequestFeed | Source],
        producer: Producer,
        journal: Journal,
    ) -> None:
        self.task = task
        self.core = core
        self.snapshot = snapshot
        self.handlers = handlers
        self.producer = producer
        self.inbox = Inbox(producer, task, snapshot, core.meta.inbox_position)
        self._feeds: list[RequestFeed | Source | Inbox] = [*sources, self.inbox]
        self.unit = SimulatedUnit(
            task, core, overlay, snapshot, completions, list(self._feeds), {}, LogChannels(producer), clock=lambda: 0.0
        )
        self._journal = journal
        self.driver: SimulatedDriver
        self.begins: deque[int] = deque()
        """Checkpoints this task was told to begin, on their way here."""
        self.announced: deque[Manifest] = deque()
        """Complete checkpoints, on their way here."""
        self._asleep, self._asleep_until_ms = -1, 0.0
        """How much had arrived when there was nothing to do, and until when that stays so if no more arrives."""
        self._writing: Writing | None = None
        self._stage = Stage.ENCODE
        self._records: list[bytes] = []
        self._part: Part | None = None

    def connect(self, driver: SimulatedDriver) -> None:
        self.driver = self.unit.sinks[EGRESS] = driver

    @property
    def busy(self) -> bool:
        """Whether anything is left to do that needs no new input. Kept results of requests, forgotten after a day, are
        not work."""
        statistics, due_ms = self.core.statistics(), self.core.next_due_ms()
        return (
            statistics.queued + statistics.pending > 0
            or (due_ms is not None and due_ms < self.core.clock_ms + DAY_MS // 2)
            or any(feed.behind for feed in self._feeds)
            or self.core.changed
            or self._writing is not None
            or bool(self.announced)
            or not self.driver.quiet
        )

    @property
    def writing(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._writing is not None

    @property
    def base_due(self) -> bool:
        """Whether something was folded that is in no base yet."""
        overlay = self.unit.overlay
        return not overlay.folding and overlay.folded_checkpoint > self.snapshot.base_checkpoint

    def awake(self, clock_ms: int) -> bool:
        """Whether a turn might do something. Most would not, and looking closely takes long."""
        return self._asleep != self._arrived or clock_ms >= self._asleep_until_ms or self.inbox.cut_due is not None

    @property
    def _arrived(self) -> int:
        """How much has come that might be for this task."""
        return self.producer.arrived + self.handlers.ended

    def turn(self, invocations_max: int, clock_ms: int) -> Effects | None:
        arrived = self._arrived
        effects = self.unit.turn_of(invocations_max, clock_ms)
        if effects is None and not self.inbox.behind:
            due_ms = self.core.next_due_ms()
            self._asleep, self._asleep_until_ms = arrived, inf if due_ms is None else due_ms
        else:
            self._asleep = -1
        return effects

    def cut(self, checkpoint: int) -> Writing:
        """Begin a snapshot. One that is still being written becomes part of it."""
        self.inbox.cut_due = None
        self._writing = self.unit.cut(checkpoint, self.application, GENERATION)
        self._stage, self._records = Stage.ENCODE, []
        return self._writing

    def write(self, *, disk_full: bool) -> Acknowledged | Failed | None:
        """Take the snapshot one stage further. Returns what to tell the coordinator."""
        writing = self._writing
        if writing is None:
            return None
        checkpoint = writing.frozen.checkpoint
        match self._stage:
            case Stage.ENCODE:
                record = writing.encoder.step()
                if record is not None:
                    self._records.append(record)
                if writing.encoder.done:
                    self._stage = Stage.SEND
            case Stage.SEND:
                if not self.flush_next():
                    self._stage = Stage.APPEND
            case Stage.APPEND if disk_full:
                self._writing = None
                self.unit.abandoned(checkpoint)
                return Failed(checkpoint, "the disk is full")
            case Stage.APPEND:
                offsets = [self._journal.append_delta(record) for record in self._records]
                writing.offset = offsets[0]
                self._part = self.unit.written(writing)
                self._stage = Stage.SYNC
            case Stage.SYNC:
                assert self._part is not None
                if not self.producer.flush_partition(PARTITION):
                    return None
                self._writing = None
                return Acknowledged(checkpoint, self._part, writing.encoder.bytes)
        return None

    def flush_next(self) -> bool:
        """Make durable some of what was sent before the cut. False when all of it is, and what was read as well."""
        if self.producer.flush_next():
            return True
        # Positions in the snapshot must not outlive it.
        return not self.producer.flush_partition(f"requests-{self.task}")

    def learn(self) -> list[Reply]:
        """Read the next COMPLETE. Returns the replies that may be told."""
        return self.unit.completed(self.announced.popleft())

    def close(self) -> None:
        """Nothing of it goes on, and nothing of it points back at it."""
        self.handlers.close()
        self.core.close()
        self.unit.__dict__.clear()
        for entry in self.core.entries.values():
            entry.bind({}, {})
            del entry.route


def sources_of(
    task: int, inputs: Mapping[str, list[tuple[str, str, bytes]]], log: Log, positions: dict[str, Any]
) -> list[RequestFeed | Source]:
    """Where the inputs of a task come from, set to where its snapshot left them."""
    requests = RequestFeed(log, task)
    requests.seek(positions.get(RequestFeed.SOURCE))
    return [requests, *(Source(name, known, positions.get(name, 0)) for name, known in inputs.items())]
