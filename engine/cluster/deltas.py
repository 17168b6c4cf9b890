"""The deltas of one task, as the partition of a topic holds them.

What always holds: a delta is read by its headers, so records of zombies between two of its own do no harm; the order of
deltas is that of their `previous`, never that of the partition (PROTOCOL 11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from uuid import uuid4

from penstock.checkpoint.delta import DeltaHeader, decode_delta, follow, peek_header
from penstock.errors import CorruptSnapshot
from penstock.records import Frozen
from penstock.router.kafka_batches import Record
from penstock.router.kafka_records import Fetched

PIECE_BYTES = 2 << 20
"""Records of deltas are smaller, but for one that holds a very large value: that comes in pieces."""
PIECE = "penstock-piece"
"""Header of a piece: its number, how many there are, and a name that all pieces of one record share."""
_PIECE = re.compile(rb"\d{1,9}/\d{1,9}/[0-9a-f]{32}")


def pieces(topic: str, task: int, record: bytes) -> Iterator[Record]:
    """The records of Kafka that hold `record`."""
    if len(record) <= PIECE_BYTES:
        yield Record(topic, task, record)
        return
    name, count = uuid4().hex, -(-len(record) // PIECE_BYTES)
    for number in range(count):
        piece = record[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        yield Record(topic, task, piece, headers=[(PIECE, f"{number}/{count}/{name}".encode())])


def joined(records: Iterable[Fetched]) -> dict[int, bytes]:
    """Records by offset, those in pieces as one at the offset of the first. What was sent again is there again."""
    found: dict[int, bytes] = {}
    begun: dict[str, list[int]] = {}
    parts: dict[str, list[bytes]] = {}
    for record in records:
        if record.value is None or record.key:
            continue
        header = next((value for name, value in record.headers if name == PIECE), None)
        if header is None:
            found[record.offset] = record.value
            continue
        if (piece := _PIECE.fullmatch(header)) is None:
            continue
        number, count, name = piece.group().decode().split("/")
        if number == "0":
            begun.setdefault(name, []).append(record.offset)
        if int(number) == len(parts.setdefault(name, [])):
            parts[name].append(record.value)
        if len(parts[name]) == int(count):
            found.update(dict.fromkeys(begun[name], b"".join(parts[name])))
    return found


class Deltas:
    """Of the records that were read from `place`, the name of a partition for people."""

    def __init__(self, place: str, records: Iterable[Fetched]) -> None:
        self._place = place
        self._records = joined(records)
        self._offsets = sorted(self._records)

    def delta(self, offset: int) -> tuple[DeltaHeader, Frozen, int]:
        """The delta whose first record stands at `offset`, and its size in bytes. Raises CorruptSnapshot."""
        records = self.records_of_delta(offset)
        return *decode_delta(records, f"offset {offset} of {self._place}"), sum(map(len, records))

    def records_of_delta(self, offset: int) -> list[bytes]:
        """The delta whose first record stands at `offset`, as it was written. Raises CorruptSnapshot."""
        first = self._header(offset)
        records = [self._records[offset]]
        header, at = first, offset
        while not header.count:
            at += 1
            if at > self._offsets[-1]:
                raise CorruptSnapshot(
                    "PEN0404",
                    f"The delta at offset {offset} of {self._place} ends after {len(records)} records. An older "
                    "checkpoint is used.",
                )
            if at not in self._records:
                continue
            try:
                found = self._header(at)
            except CorruptSnapshot:
                continue  # Of somebody else, or damaged: then the delta has no record of this index.
            if _same(found, first) and found.index == len(records):
                header = found
                records.append(self._records[at])
        return records

    def chain(self, head: int, first: int) -> list[int]:
        """Offsets of the deltas from `first` to `head`, oldest first, found by following `previous` back."""
        return follow(head, first, lambda offset: self._header(offset).previous, self._place)

    def _header(self, offset: int) -> DeltaHeader:
        record = self._records.get(offset)
        if record is None:
            raise CorruptSnapshot(
                "PEN0404", f"{self._place} holds no delta at offset {offset}. An older checkpoint is used."
            )
        return peek_header(record, f"offset {offset} of {self._place}")


def _same(one: DeltaHeader, other: DeltaHeader) -> bool:
    """Whether both are headers of one delta."""
    return (one.attempt, one.checkpoint, one.task, one.previous) == (
        other.attempt,
        other.checkpoint,
        other.task,
        other.previous,
    )
