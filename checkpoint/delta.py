"""The bytes of a delta: what one task changed between two cuts (PROTOCOL 10).

A delta is a few records in a row, each a header and a body. The header says whose delta it is, which one it extends
(`previous`), and which record this is; the last one also says how many there are, and the checksum of all bodies
together. Bodies are lists of sections. Each record is complete when it is made, so a large delta is encoded and
appended in slices, and never holds up a task for long. Reading a delta checks every header against the first. Format
version 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import msgspec

from penstock.checkpoint.formats import item_at, refuse_newer
from penstock.errors import CorruptSnapshot
from penstock.records import EgressRow, Frozen, QueueCut, QueuedRow, Reply, TaskMeta

FORMAT = 1
SLICE_ROWS = 250
SLICE_BYTES = 64 << 10
"""A slice is encoded in one go: 250 rows or, when they are large, 64 KB, in 0.05 to 0.2 ms."""
BODY_BYTES = 256 << 10
"""A body is closed when it has grown beyond this: the copies made on its way to the disk then stay in the CPU's
cache."""


_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V", bytes, bytes | None)


class DeltaHeader(msgspec.Struct, frozen=True, array_like=True):
    format: int
    application: str
    attempt: int
    checkpoint: int
    task: int
    generation: int
    previous: int
    """Offset of the first record of the delta this one extends; -1 when it extends the base."""
    index: int
    count: int
    """Of the records of this delta; 0 in all but the last."""
    checksum: int
    """CRC-32 of all bodies in order; 0 in all but the last."""


class _Meta(msgspec.Struct, array_like=True, tag=0):
    meta: TaskMeta


class _Values(msgspec.Struct, array_like=True, tag=1):
    typename: str
    values: dict[str, bytes]


class _Rows(msgspec.Struct, array_like=True, tag=2):
    rows: dict[bytes, bytes | None]


class _Queue(msgspec.Struct, array_like=True, tag=3):
    """A part of the rows that a cut of a queue has; `first` is the number of the first one here."""

    typename: str
    head: int
    tail: int
    first: int
    rows: list[QueuedRow]


class _Egress(msgspec.Struct, array_like=True, tag=4):
    name: str
    rows: list[EgressRow]


class _Replies(msgspec.Struct, array_like=True, tag=5):
    replies: list[Reply]


_Section = _Meta | _Values | _Rows | _Queue | _Egress | _Replies
_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(tuple[DeltaHeader, bytes]).decode
_decode_sections = msgspec.msgpack.Decoder(list[_Section]).decode


class DeltaIdentity(NamedTuple):
    """Whose delta it is."""

    application: str
    attempt: int
    generation: int
    previous: int


class DeltaEncoder:
    """Encodes one delta slice by slice: call `step` until `done`, and append every record it gives, with nothing
    between."""

    def __init__(self, frozen: Frozen, identity: DeltaIdentity) -> None:
        self._frozen = frozen
        self._identity = identity
        self._sections = _sections(frozen)
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._index = 0
        self.done = False
        self.checksum = 0
        """Of what was encoded so far; of the whole delta once done."""
        self.bytes = 0

    def step(self) -> bytes | None:
        """Encode the next slice. Returns a record when one is full, or when this was the end."""
        assert not self.done
        section = next(self._sections, None)
        if section is None:
            self.done = True
            return self._close()
        data = _encode(section)
        self._open.append(data)
        self._open_bytes += len(data)
        return self._close() if self._open_bytes >= BODY_BYTES else None

    def _close(self) -> bytes:
        body = _array_header(len(self._open)) + b"".join(self._open)
        self.checksum = zlib.crc32(body, self.checksum)
        self.bytes += len(body)
        self._open, self._open_bytes = [], 0
        frozen, identity, index = self._frozen, self._identity, self._index
        self._index += 1
        header = DeltaHeader(
            FORMAT,
            identity.application,
            identity.attempt,
            frozen.checkpoint,
            frozen.task,
            identity.generation,
            identity.previous,
            index,
            self._index if self.done else 0,
            self.checksum if self.done else 0,
        )
        return _encode((header, body))


def encode_delta(frozen: Frozen, identity: DeltaIdentity) -> list[bytes]:
    """The records of a delta, in one go."""
    encoder = DeltaEncoder(frozen, identity)
    records = []
    while not encoder.done:
        record = encoder.step()
        if record is not None:
            records.append(record)
    return records


def peek_header(record: bytes, place: str = "") -> DeltaHeader:
    """The header of one record. Raises CorruptSnapshot, which names the `place`, when it isn't one."""
    return _split(record, place)[0]


def decode_delta(records: Sequence[bytes], place: str = "") -> tuple[DeltaHeader, Frozen]:
    """The delta that `records` hold, which must be all of its records in order. `place` names it in errors.

    Raises CorruptSnapshot when they don't belong together, or the checksum does not match, and Refused for a newer
    format.
    """
    parts = [_split(record, place) for record in records]
    first = parts[0][0]
    what = f"Delta of checkpoint {first.checkpoint}, task {first.task}{_at(place)}"
    refuse_newer(first.format, FORMAT, f"Delta of checkpoint {first.checkpoint}")
    checksum = 0
    for index, (header, body) in enumerate(parts):
        if msgspec.structs.replace(header, count=0, checksum=0) != msgspec.structs.replace(
            first, index=index, count=0, checksum=0
        ):
            raise CorruptSnapshot(
                "PEN0404",
                f"{what}: record {index} is record {header.index} of checkpoint {header.checkpoint}. An older "
                "checkpoint is used.",
            )
        checksum = zlib.crc32(body, checksum)
    last = parts[-1][0]
    if last.count != len(parts) or checksum != last.checksum:
        raise CorruptSnapshot(
            "PEN0404",
            f"{what} has {len(parts)} records with checksum {checksum:08x}, and should have {last.count} with "
            f"{last.checksum:08x}. An older checkpoint is used.",
        )
    try:
        return last, _collect(last, (body for _, body in parts))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptSnapshot(
            "PEN0404",
            f"{what} is whole and can't be read: {error}. Another version wrote it: run that one, or start from a "
            "savepoint. An older checkpoint is used.",
        ) from error


def follow(head: int, first: int, previous_of: Callable[[int], int], place: str) -> list[int]:
    """Offsets of the deltas from `first` to `head`, oldest first, found by following `previous` back from the head.

    What `first` extends is in the base, and may be deleted. `place` names where they stand, in the error.
    """
    chain: list[int] = []
    offset = head
    while offset >= max(first, 0):
        chain.append(offset)
        previous = previous_of(offset)
        if previous >= offset:
            raise CorruptSnapshot(
                "PEN0404",
                f"The delta at offset {offset} of {place} extends one behind it, at {previous}. An older checkpoint is "
                "used.",
            )
        offset = previous
    chain.reverse()
    return chain


def _at(place: str) -> str:
    return f" ({place})" if place else ""


def _split(record: bytes, place: str) -> tuple[DeltaHeader, bytes]:
    try:
        return _decode_record(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = f"A record of a delta{_at(place)}"
        refuse_newer(item_at(record, 0, 0), FORMAT, what)
        raise CorruptSnapshot("PEN0404", f"{what} can't be read: {error}. An older checkpoint is used.") from error


def _sections(frozen: Frozen) -> Iterator[_Section]:
    yield _Meta(frozen.meta)
    for typename, values in frozen.values.items():
        for slice in _slices(values):
            yield _Values(typename, slice)
    for rows in _slices(frozen.rows):
        yield _Rows(rows)
    for typename, queue in frozen.queues.items():
        if not queue.rows:
            yield _Queue(typename, queue.head, queue.tail, queue.first, [])
        first = queue.first
        for waiting in _parts(queue.rows, itemgetter(1)):
            yield _Queue(typename, queue.head, queue.tail, first, waiting)
            first += len(waiting)
    for name, emitted in frozen.egress.items():
        for part in _parts(emitted, itemgetter(0)):
            yield _Egress(name, part)
    for replies in _parts(frozen.replies, itemgetter(1)):
        yield _Replies(replies)


def _slices(rows: Mapping[_K, _V]) -> Iterator[dict[_K, _V]]:
    """At most SLICE_ROWS rows, and not many more than SLICE_BYTES bytes, at a time."""
    items = iter(rows.items())
    while slice := dict(islice(items, SLICE_ROWS)):
        size = sum(len(value or b"") for value in slice.values())
        if size <= SLICE_BYTES:
            yield slice
        else:
            yield from _small_slices(slice)


def _small_slices(rows: Mapping[_K, _V]) -> Iterator[dict[_K, _V]]:
    slice: dict[_K, _V] = {}
    size = 0
    for key, value in rows.items():
        slice[key] = value
        size += len(value or b"")
        if size > SLICE_BYTES:
            yield slice
            slice, size = {}, 0
    if slice:
        yield slice


def _parts(rows: Sequence[_T], bytes_of: Callable[[_T], bytes]) -> Iterator[list[_T]]:
    """Of a sequence too: at most SLICE_ROWS rows, and not many more than SLICE_BYTES bytes, at a time."""
    start = 0
    while start < len(rows):
        part = list(rows[start : start + SLICE_ROWS])
        if sum(map(len, map(bytes_of, part))) > SLICE_BYTES:
            part = _first_of(part, bytes_of)
        yield part
        start += len(part)


def _first_of(rows: Sequence[_T], bytes_of: Callable[[_T], bytes]) -> list[_T]:
    """So many of `rows` that they are just more than SLICE_BYTES."""
    taken: list[_T] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += len(bytes_of(row))
        if size > SLICE_BYTES:
            break
    return taken


def _collect(header: DeltaHeader, bodies: Iterable[bytes]) -> Frozen:
    meta = TaskMeta()
    values: dict[str, dict[str, bytes]] = {}
    rows: dict[bytes, bytes | None] = {}
    queues: dict[str, QueueCut] = {}
    egress: dict[str, list[EgressRow]] = {}
    replies: list[Reply] = []
    for body in bodies:
        for section in _decode_sections(body):
            match section:
                case _Meta():
                    meta = section.meta
                case _Values():
                    values.setdefault(section.typename, {}).update(section.values)
                case _Rows():
                    rows.update(section.rows)
                case _Queue():
                    known = queues.get(section.typename)
                    if known is None:
                        cut = QueueCut(section.head, section.tail, section.first, section.rows)
                        queues[section.typename] = cut
                    else:
                        known.rows.extend(section.rows)
                case _Egress():
                    egress.setdefault(section.name, []).extend(section.rows)
                case _Replies():
                    replies.extend(section.replies)
    return Frozen(header.task, header.checkpoint, meta, values, rows, queues, egress, replies)


def _array_header(length: int) -> bytes:
    """The msgpack header of an array, so that encoded sections can be joined without encoding them again."""
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2) if length < 1 << 16 else b"\xdd" + length.to_bytes(4)


def merge_frozen(older: Frozen, newer: Frozen) -> Frozen:
    """One delta that says what both say: what a failed append left, folded into the next (PROTOCOL 10)."""
    assert older.task == newer.task
    assert older.checkpoint < newer.checkpoint
    values = {typename: dict(changed) for typename, changed in older.values.items()}
    for typename, changed in newer.values.items():
        values.setdefault(typename, {}).update(changed)
    queues = dict(older.queues)
    for typename, cut in newer.queues.items():
        known = queues.get(typename)
        queues[typename] = cut if known is None else known.followed_by(cut)
    egress = {name: list(rows) for name, rows in older.egress.items()}
    for name, rows in newer.egress.items():
        egress.setdefault(name, []).extend(rows)
    schedule: list[Any] = older.meta.schedule + newer.meta.schedule
    meta = msgspec.structs.replace(newer.meta, schedule=schedule)
    return newer._replace(
        meta=meta,
        values=values,
        rows={**older.rows, **newer.rows},
        queues=queues,
        egress=egress,
        replies=older.replies + newer.replies,
    )
