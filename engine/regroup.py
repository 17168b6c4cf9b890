"""From the tasks of one parallelism to those of another: what each new task takes over of the old ones.

    4 -> 8   a store becomes two by links; each deletes the key groups of the other
    4 -> 1   the store of the first by links; the key groups of the others are put to it as they are

What always holds: a row of a key group keeps its key and, but for the numbers of timers it names, its value; everything
that belongs to an address comes from one old task, in the order it had there: held messages, queue, frames under way,
requests; delayed messages keep their time and their order. Both parallelisms are powers of two, so that the old tasks
of a new one, or the new ones of an old one, are those with the same remainder (PROTOCOL 1).

Knows no files and no savepoints: it is given stores that hold the whole of a task, and fills stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import msgspec

from penstock.engine.delays import key_group_of_timer
from penstock.engine.feeds import FOREIGN, RequestFeed
from penstock.engine.pending import add_to_pending, message_of_pending
from penstock.engine.restore import META, SETTLED_META, SETTLING_META, Restored
from penstock.ids import KEY_GROUPS_MAX, key_group
from penstock.records import Envelope, EpochFrame, QueuedRow, TaskMeta
from penstock.state import keys
from penstock.state.backend import Backend
from penstock.state.overlay import encode_queued

ROWS_AT_ONCE: Final = 1_000
_TASK_ROWS: Final = (bytes((keys.META,)), b"\xff")

_encode = msgspec.msgpack.Encoder().encode
Row = tuple[bytes, bytes | None]


class OldTask(NamedTuple):
    """A task as a checkpoint left it: its store holds every row, and no layer is above it."""

    task: int
    store: Backend
    meta: TaskMeta
    queues: Mapping[str, Sequence[QueuedRow]]
    inbox: Sequence[EpochFrame]
    """Frames that it has not admitted."""
    requests: Sequence[Envelope]
    """The same from outside."""


class NewTask(NamedTuple):
    """Where a task of the new parallelism continues."""

    task: int
    tasks: int
    inbox_position: int
    requests_position: int


def fold_all(restored: Restored) -> None:
    """Write every restored row into the store, which is not shared with anybody."""
    overlay = restored.overlay
    while overlay.next_fold is not None:
        overlay.begin_fold((), ())
        while overlay.fold_slice(ROWS_AT_ONCE):
            pass


def old_tasks_of(task: int, *, tasks: int, tasks_before: int) -> range:
    """The old tasks that the new `task` of `tasks` takes rows of. The first of them lends its store."""
    return range(task % tasks_before, tasks_before, tasks)


def fill(store: Backend, new: NewTask, olds: Sequence[OldTask], *, mark: tuple[int, int]) -> TaskMeta:
    """Make `store`, which has the content of the first of `olds`, that of the new task.

    `olds` are all old tasks, in order. `mark` is attempt and checkpoint of the content. Returns the meta of the task.
    """
    own = [olds[each] for each in old_tasks_of(new.task, tasks=new.tasks, tasks_before=len(olds))]
    for group in range(own[0].task, KEY_GROUPS_MAX, len(olds)):
        if group % new.tasks != new.task:
            store.delete_range(*keys.group_range(group))
    store.delete_range(*_TASK_ROWS)
    timers = _offsets(old.meta.numbers.get("timer", 0) for old in own)
    pending = _offsets(old.meta.numbers.get("pending", 0) for old in own)
    for old, shift in islice(zip(own, timers, strict=False), 1, None):
        _write(store, _group_rows(old.store, shift))
    waiting = _Waiting(new, pending[-1])
    for old in own:
        waiting.add(old)
    meta = TaskMeta(
        clock_ms=max(old.meta.clock_ms for old in olds),
        inbox_position=new.inbox_position,
        ingress_positions={
            **positions_of(new.task, new.tasks, [old.meta.ingress_positions for old in olds]),
            RequestFeed.SOURCE: new.requests_position,
        },
        queues={typename: (0, len(rows)) for typename, rows in waiting.queues.items()},
        numbers={"timer": timers[-1], "pending": waiting.next_number, "dead": _next_letter(new.tasks, olds)},
    )
    _write(
        store,
        chain(
            [(SETTLING_META, _encode(mark))],
            _timer_rows(new, own, timers),
            _pending_rows(new, own, pending),
            _letter_rows(new, own),
            waiting.rows(),
            [(META, _encode(meta)), (SETTLED_META, _encode(mark))],
        ),
    )
    return meta


def positions_of(task: int, tasks: int, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the inputs of a new task continue, given the positions of all old ones.

    A partition `ingress/topic/j` is read by task j mod P, an undivided ingress by the one its name hashes to (PROTOCOL
    2), and what every old task knows of an ingress every new one must know.
    """
    known: dict[str, list[int]] = {}
    for old, positions in enumerate(before):
        for source in positions:
            known.setdefault(source, []).append(old)
    found: dict[str, Any] = {}
    for source, olds in known.items():
        if source in (RequestFeed.SOURCE, FOREIGN):
            continue  # Positions in logs that the new tasks do not share.
        partition = _partition_of(source, known)
        owner = key_group(source) if partition is None else partition
        if owner % tasks == task or (partition is None and len(olds) == len(before)):
            keeper = owner % len(before)
            found[source] = before[keeper if keeper in olds else olds[0]][source]
    return found


def ingresses_of(positions: Iterable[str]) -> set[str]:
    """The ingresses that positions are of."""
    known = dict.fromkeys(positions)
    return {each for each in known if each not in (RequestFeed.SOURCE, FOREIGN) and _partition_of(each, known) is None}


def _partition_of(source: str, known: Mapping[str, object]) -> int | None:
    """The partition of Kafka that a position is of; None for that of an ingress which has none. What is known of an
    ingress that has some stands under its name alone."""
    rest, _, number = source.rpartition("/")
    ingress = rest.rpartition("/")[0]
    return int(number) if number.isdecimal() and ingress in known else None


# Rows of key groups.


def _group_rows(store: Backend, shift: int) -> Iterator[Row]:
    """All rows of all key groups of a store, timers that they name renumbered."""
    rows = store.scan(b"", _TASK_ROWS[0])
    if not shift:
        yield from rows
        return
    for key, value in rows:
        yield key, _renumbered(value, shift) if key[1] in (keys.TOKEN, keys.EXPIRATION) else value


def _offsets(counts: Iterable[int]) -> list[int]:
    """What is added to the numbers of each old task, so that none is used twice; the last is the next one free."""
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


def _renumbered(timer_key: bytes, shift: int) -> bytes:
    due_ms, number = keys.decode_timer_key(timer_key)
    return keys.encode_timer_key(due_ms, number + shift)


# Rows of tasks.


def _timer_rows(new: NewTask, own: Sequence[OldTask], shifts: Sequence[int]) -> Iterator[Row]:
    for old, shift in zip(own, shifts, strict=False):
        for key, value in old.store.scan(*keys.task_kind_range(keys.TIMER)):
            if key_group_of_timer(value) % new.tasks == new.task:
                yield _renumbered(key, shift), value


def _pending_rows(new: NewTask, own: Sequence[OldTask], shifts: Sequence[int]) -> Iterator[Row]:
    for old, shift in zip(own, shifts, strict=False):
        for key, value in old.store.scan(*keys.task_kind_range(keys.PENDING)):
            if key_group(message_of_pending(value).id) % new.tasks == new.task:
                yield keys.encode_pending_key(keys.decode_pending_key(key) + shift), value


def _letter_rows(new: NewTask, own: Sequence[OldTask]) -> Iterator[Row]:
    """A letter lies at the task that its number names."""
    for old in own:
        for key, value in old.store.scan(*keys.task_kind_range(keys.DEAD)):
            if keys.decode_dead_key(key) % new.tasks == new.task:
                yield key, value


def _next_letter(tasks: int, olds: Sequence[OldTask]) -> int:
    """A counter that gives every task numbers above all that were given."""
    highest = max(old.meta.numbers.get("dead", 1) * len(olds) + old.task for old in olds)
    return max(1, -(-highest // tasks))


class _Waiting:
    """The messages of a new task that are on their way: those for functions in queues, others in rows of held ones,
    from which the task takes them when it starts."""

    def __init__(self, new: NewTask, next_number: int) -> None:
        self._new = new
        self.next_number = next_number
        self.queues: dict[str, deque[QueuedRow]] = {}
        self._others: list[Row] = []

    def add(self, old: OldTask) -> None:
        for typename, rows in old.queues.items():
            for row in rows:
                self._take(Envelope(typename, *row))
        for frame in old.inbox:
            for envelope in frame.messages:
                self._take(envelope)
        for envelope in old.requests:
            self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        if key_group(envelope.id) % self._new.tasks != self._new.task:
            return
        operation = envelope.meta is not None and envelope.meta.operation
        if operation and envelope.caller is None:
            return  # Whoever asked for it has had no answer, and asks again (see `engine.requests`).
        if envelope.id and not operation:
            self.queues.setdefault(envelope.typename, deque()).append(envelope[1:])
            return
        self._others.append((keys.encode_pending_key(self.next_number), add_to_pending(envelope)))
        self.next_number += 1

    def rows(self) -> Iterator[Row]:
        for typename, rows in self.queues.items():
            for number, row in enumerate(rows):
                yield keys.encode_queue_key(typename, number), encode_queued(row)
        yield from self._others


def _write(store: Backend, rows: Iterable[Row]) -> None:
    remaining = iter(rows)
    while slice := list(islice(remaining, ROWS_AT_ONCE)):
        store.write(slice)
