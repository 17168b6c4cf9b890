"""What travels: envelopes between functions, rows to egresses, answers to callers.

All are immutable and carry bytes, never live objects: the value inside was encoded when it was sent, so no two
invocations can share one. Tuples, because hundreds of thousands are made each second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from penstock.ids import output_cause

REPLAY_HEADER = "penstock-replay"


class Meta(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What only some messages carry, so that the others pay nothing for it."""

    headers: dict[str, str] = {}
    request_id: str = ""
    """Set when somebody outside waits for an answer: the name under which the answer goes back."""
    idempotency_key: str = ""
    origin: str = ""
    """Where it entered, for people: `departures.csv line 12`, `POST /send/shop/cart/7`."""
    operation: str = ""
    """Empty for a message to a function; otherwise what the task itself shall do (see `penstock.engine.operations`)."""
    call: tuple[int, int] | None = None
    """Of a call of another function: the cause of the invocation that waits for the answer, and the number of its
    wish."""
    chain: tuple[tuple[str, str], ...] = ()
    """Those who wait for that invocation, the outermost first."""
    deadline_ms: int = 0
    """When nobody waits for the answer any more; 0 for never."""


class Envelope(NamedTuple):
    """One message on its way to one address."""

    typename: str
    id: str
    payload: bytes
    cause: int
    caller: tuple[str, str] | None
    """Typename and id of the sender; a bare tuple, because one is made for every message sent."""
    meta: Meta | None


class EgressRow(NamedTuple):
    """One value on its way out, already in the bytes its egress writes."""

    value: bytes
    cause: int
    """The origin of outgoing idempotency keys and dedup headers (PROTOCOL 6)."""
    key: bytes | None = None
    topic: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    partition: int | None = None
    timestamp_ms: int | None = None
    """When it happened; None means when it is written. This and the partition are for egresses that know them."""


def rows_of_replay(rows: Sequence[EgressRow], replay: int) -> Sequence[EgressRow]:
    """These rows as they leave the application, of a history on which a person has gone back last with the attempt
    `replay`; 0 when nobody did.

    They are other rows than those of before, though their causes may be the same: otherwise a receiver that knows keys
    would drop what the replay has corrected (PROTOCOL 6).
    """
    if not replay:
        return rows
    header = (REPLAY_HEADER, str(replay))
    return [row._replace(cause=output_cause(row.cause, replay), headers=(*row.headers, header)) for row in rows]


class StagedRow(NamedTuple):
    """A row and the decision it waits for: it is committed exactly when COMPLETE(checkpoint) of `attempt` is
    (PROTOCOL 21)."""

    attempt: int
    checkpoint: int
    row: EgressRow


class Reply(NamedTuple):
    """An answer to somebody outside. `error` is empty, or the coded text of why there is no value."""

    request_id: str
    value: bytes
    error: str = ""


QueuedRow = tuple[str, bytes, int, tuple[str, str] | None, Meta | None]
"""A message waiting in the queue of its function: an `Envelope` less its typename."""


class QueueCut(NamedTuple):
    """The local queue of one function at a cut. Messages are numbered densely as they arrive and leave in that order,
    so a queue is a range of numbers and a delta of it is its two ends and what arrived since the last cut."""

    head: int
    """Number of the oldest message still waiting."""
    tail: int
    """Number the next message to arrive will get."""
    first: int
    """Number of `rows[0]`; rows hold the messages `first` to `tail`."""
    rows: list[QueuedRow]

    def followed_by(self, newer: QueueCut) -> QueueCut:
        """What both cuts say: the later one, with the messages of this one that still wait in it."""
        if self.tail <= newer.head:
            return newer
        assert newer.first == self.tail
        first = max(self.first, newer.head)
        return QueueCut(newer.head, newer.tail, first, self.rows[first - self.first :] + newer.rows)


class Turn(NamedTuple):
    """What a task took in one turn, in this order: with its inputs at hand, enough to take that turn again."""

    clock_ms: int
    invocations_max: int
    """How many handlers it might run."""
    invocations: int
    """How many it did run."""
    taken: list[tuple[str, Any]]
    """Inputs, as the name of each source and its position behind what was taken; `FRAMES` and how many that had not
    come before; `COMPLETED` and the number of a handler that has come back from the event loop; `PERFORMED` and the
    result of a step."""


FRAMES = ""
COMPLETED = "!"
PERFORMED = "!!"


class TaskMeta(msgspec.Struct, array_like=True):
    """What a snapshot holds whole each time: small, and needed before the first message after a restore."""

    clock_ms: int = 0
    """What handlers last saw as now; a restored task never shows them less (PROTOCOL 26)."""
    inbox_position: int = 0
    """Frames before this offset of the inbox are admitted (PROTOCOL 7)."""
    ingress_positions: dict[str, Any] = {}
    """Where each ingress partition of this task continues."""
    marks: dict[int, tuple[int, int]] = {}
    """High-water marks: source task -> (attempt, sequence) of its last admitted frame (PROTOCOL 5)."""
    sequences: dict[int, int] = {}
    """Destination task -> sequence of the last frame sent to it in this attempt."""
    queues: dict[str, tuple[int, int]] = {}
    """Function -> numbers of the oldest message in its queue and of the next to arrive."""
    numbers: dict[str, int] = {}
    """Counters whose values name rows: timers, pending messages, dead letters."""
    committed: dict[str, int] = {}
    """Egress -> newest checkpoint of this task whose rows are known to be committed."""
    schedule: list[Turn] = []
    """How the interval ran, turn by turn (PROTOCOL 10)."""
    ready: list[int] | None = None
    """Numbers of the pending messages that were next to run, in this order; others of held addresses are suspended, or
    wait to be tried again. None in what was stored before this was noted."""


class Frozen(NamedTuple):
    """One task's change between two cuts, as a pointer swap took it. Immutable from then on."""

    task: int
    checkpoint: int
    meta: TaskMeta
    values: dict[str, dict[str, bytes]]
    """Typename -> id -> encoded state; empty bytes mean the address has no state any more."""
    rows: dict[bytes, bytes | None]
    """Every other changed row under its explicit key; None deletes."""
    queues: dict[str, QueueCut]
    egress: dict[str, list[EgressRow]]
    replies: list[Reply]


class EpochFrame(NamedTuple):
    """Messages of one source task for one destination task, of one epoch (PROTOCOL 4 and 5)."""

    attempt: int
    epoch: int
    source: int
    sequence: int
    messages: list[Envelope]
