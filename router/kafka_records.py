"""What a broker answers to a fetch, as records: parsed when they are taken, by the parser of the client library.

    bytes of a fetch -> batches -> (aborted and control batches left out) -> records -> columns

What always holds: records come in the order of their offsets and none twice; a record of an aborted transaction never
comes when only committed ones are wanted; `next_offset` passes everything that was looked at, also what is no record.
Decides nothing about what is fetched: see `penstock.router.kafka_reader`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords

Headers: TypeAlias = Sequence[tuple[str, bytes]]

_key, _value, _headers, _offset = map(attrgetter, ("key", "value", "headers", "offset"))


class Fetched(NamedTuple):
    """One record."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class Proof(NamedTuple):
    """What a record is recognised by, to notice that a topic was deleted and created anew (PROTOCOL 27)."""

    offset: int
    timestamp_ms: int
    checksum: int
    """Of key and value."""


class Columns(NamedTuple):
    """Consecutive records of one partition, without an object for each: the fast form. May be empty, when only what is
    no record was passed: `next_offset` has moved then."""

    offsets: Sequence[int]
    """A range when they are dense; otherwise transactions or compaction left gaps."""
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers] | None
    """None when no record has any."""
    next_offset: int
    last: Proof | None
    """Of the last of these records."""

    @classmethod
    def of(cls, records: Sequence[Any], next_offset: int) -> Columns:
        """The columns of records as the parser gives them."""
        if not records:
            return cls((), [], [], None, next_offset, None)
        first, behind = records[0].offset, records[-1].offset + 1
        headers = list(map(_headers, records))
        return cls(
            range(first, behind) if behind - first == len(records) else list(map(_offset, records)),
            list(map(_key, records)),
            list(map(_value, records)),
            headers if any(headers) else None,
            next_offset,
            proof_of(records[-1]),
        )


class Damaged(Exception):
    """A batch is not what was written."""


class Segment:
    """The answer to one fetch from one partition, being taken record by record."""

    def __init__(
        self, data: bytes, aborted: Sequence[tuple[int, int]] | None, fetched_from: int, *, committed: bool
    ) -> None:
        """`aborted` are the producers and first offsets of aborted transactions in it; `committed` leaves those out."""
        self.size_bytes = len(data)
        self.next_offset = fetched_from
        """Everything before it was looked at."""
        self._committed = committed
        self._aborted = deque(sorted(aborted or (), key=lambda entry: entry[1]))
        self._aborting: set[int] = set()
        """Producers in whose aborted transaction we are."""
        self._batches: deque[Any] = deque()
        source = MemoryRecords(data)
        while source.has_next():
            self._batches.append(source.next_batch())
        self.end = self._batches[-1].next_offset if self._batches else fetched_from
        """Where to fetch on. A batch that the broker cut off at the end is fetched again."""
        self._batch: Any = None
        self._records: Iterator[Any] = iter(())

    @property
    def done(self) -> bool:
        return self._batch is None and not self._batches

    def take(self, count_max: int) -> list[Any]:
        """The next records, as the parser gives them: the first ones may lie before the offset that was fetched from,
        as batches come whole. Raises Damaged."""
        taken: list[Any] = []
        while len(taken) < count_max and (self._batch is not None or self._open_next()):
            wanted = count_max - len(taken)
            try:
                records = list(islice(self._records, wanted))
            except Exception as error:  # Of the parser or of a codec.
                raise Damaged(f"{type(error).__name__}: {error}") from error
            taken += records
            if len(records) < wanted or records[-1].offset + 1 == self._batch.next_offset:
                self.next_offset = self._batch.next_offset  # Beyond the last record, if compaction removed some.
                self._batch = None
            else:
                self.next_offset = records[-1].offset + 1
        return taken

    def _open_next(self) -> bool:
        """Turn to the next batch that has records for us."""
        while self._batches:
            batch = self._batches.popleft()
            if not batch.validate_crc():
                raise Damaged(f"the checksum of the batch at offset {batch.base_offset} is wrong")
            if not self._left_out(batch):
                # An iterator around it, as a batch refuses to be iterated again after a pause.
                self._batch, self._records = batch, islice(batch, None)
                return True
            self.next_offset = batch.next_offset
        return False

    def _left_out(self, batch: Any) -> bool:
        producer = batch.producer_id
        if not self._committed or producer is None:
            return bool(batch.is_control_batch)
        while self._aborted and self._aborted[0][1] <= batch.base_offset:
            self._aborting.add(self._aborted.popleft()[0])
        if batch.is_control_batch:
            if ControlRecord.parse(next(iter(batch)).key) == ABORT_MARKER:
                self._aborting.discard(producer)
            return True
        return bool(batch.is_transactional) and producer in self._aborting


def proof_of(record: Any) -> Proof:
    """What `record`, as the parser gives it, is recognised by."""
    return Proof(record.offset, record.timestamp, crc32(record.value or b"", crc32(record.key or b"")))


def fetched_of(record: Any) -> Fetched:
    """`record`, as the parser gives it, for all the others."""
    return Fetched(record.offset, record.key, record.value, record.headers, record.timestamp)
