"""What goes into one turn of a task core, and what comes out: plain values, both of them serialisable.

`Effects` is everything one batch changed and sent. Applying it to the state before the batch gives the state after it,
without running a handler: recovery, standby and audit need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from penstock.records import COMPLETED, FRAMES, PERFORMED, EgressRow, Envelope, EpochFrame, QueueCut, Reply, Turn


class Rejected(NamedTuple):
    """An input that can't be given to any function. It becomes a dead letter."""

    code: str
    reason: str
    origin: str
    typename: str
    id: str
    payload: bytes
    headers: Mapping[str, str] | None = None


class Column(NamedTuple):
    """Consecutive records of one ingress partition, all for one function of this task: the fast form."""

    source: str
    position: Any
    """Where the ingress continues after these records."""
    typename: str
    ids: Sequence[str]
    payloads: Sequence[bytes]
    cause: int
    """Cause of the first record; the following ones have the following numbers (PROTOCOL 6)."""


class Deliveries(NamedTuple):
    """Messages from one source partition, for any task; what could not be routed comes along as rejected."""

    source: str
    position: Any
    envelopes: Sequence[Envelope]
    rejected: Sequence[Rejected] = ()


class FrameInput(NamedTuple):
    """A frame that the commit protocol has admitted, and the inbox offset behind it."""

    position: int
    frame: EpochFrame | None
    """None where only what belongs to no history of ours was passed."""


class Completed(NamedTuple):
    """A suspended handler has ended. Exactly one of value and error is meaningful; `error` None means it returned."""

    number: int
    value: Any
    error: BaseException | None


class Performed(NamedTuple):
    """A step of an invocation has come to its end. `error` is code and text of why it has no value."""

    typename: str
    id: str
    cause: int
    line: int
    """Of its journal."""
    value: bytes
    error: tuple[str, str] | None


Input = Column | Deliveries | FrameInput | Completed | Performed


class Batch(NamedTuple):
    """One turn's worth of work. The clock is the only time handlers see."""

    clock_ms: int
    inputs: Sequence[Input]
    invocations_max: int = 1_000
    """Upper bound of handler runs in this turn, so that a barrier never waits long (PROTOCOL 8)."""


def taken(inputs: Iterable[Input]) -> list[tuple[str, Any]]:
    """What was taken by whoever took these inputs, all of them new, as `Turn` says it."""
    found: list[tuple[str, Any]] = []
    frames = 0
    for item in inputs:
        if isinstance(item, FrameInput):
            frames += 1
            continue
        if frames:
            found.append((FRAMES, frames))
            frames = 0
        match item:
            case Completed():
                found.append((COMPLETED, item.number))
            case Performed():
                found.append((PERFORMED, list(item)))
            case _:
                found.append((item.source, item.position))
    if frames:
        found.append((FRAMES, frames))
    return found


_T = TypeVar("_T")


def bounded(items: list[_T], bytes_max: int, bytes_of: Callable[[_T], bytes]) -> Iterator[list[_T]]:
    """The items in order, in parts that hold not many more than `bytes_max` bytes; almost always in one."""
    if sum(map(len, map(bytes_of, items))) <= bytes_max:
        yield items
        return
    part: list[_T] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(bytes_of(item))
        if size > bytes_max:
            yield part
            part, size = [], 0
    if part:
        yield part


class OutFrame(NamedTuple):
    """Messages for another task, numbered but not yet stamped with attempt and epoch."""

    destination: int
    sequence: int
    messages: list[Envelope]


class Effects(msgspec.Struct, array_like=True):
    """All that one batch changed and sent. `n` is consecutive within an attempt."""

    n: int
    turn: Turn
    values: dict[str, dict[str, bytes]]
    """Typename -> id -> state bytes; empty bytes delete."""
    rows: dict[bytes, bytes | None]
    positions: dict[str, Any]
    inbox_position: int
    marks: dict[int, tuple[int, int]]
    numbers: dict[str, int]
    queues: dict[str, QueueCut]
    """Functions whose queue is not empty, or was not before the batch; rows hold only what arrived in this batch."""
    frames: list[OutFrame]
    egress: dict[str, list[EgressRow]]
    replies: list[Reply]

    @property
    def clock_ms(self) -> int:
        return self.turn.clock_ms

    @property
    def invocations(self) -> int:
        """How many handlers ran."""
        return self.turn.invocations


class DeadLetter(msgspec.Struct, array_like=True):
    """A message that was given up, with what is needed to understand it and to send it again."""

    number: int
    clock_ms: int
    code: str
    reason: str
    traceback: str
    origin: str
    typename: str
    id: str
    payload: bytes
    cause: int
    caller: tuple[str, str] | None
    headers: dict[str, str]
    attempts: int
    state: bytes
    """The state at the time of failure, as stored."""
    idempotency_key: str = ""
    """Of the request it was, so that a repeat of that request finds the result of a redrive."""
    row: EgressRow | None = None
    """Of a row that an egress did not write: all of it but the value, which is the payload."""


class TaskStatistics(NamedTuple):
    """Counts since the task started; `queued` and `pending` are the present ones."""

    invocations: int
    failures: int
    retries: int
    dead_letters: int
    duplicate_frames: int
    timers_fired: int
    queued: int
    pending: int
