"""The deltas of one task, as the partition of a topic holds them.

What always holds: a delta is read by its headers, so records of zombies between two of its own do no harm; the order of
deltas is that of their `previous`, never that of the partition (PROTOCOL 11).
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.checkpoint.delta import DeltaHeader, decode_delta, peek_header
from penstock.errors import CorruptSnapshot
from penstock.records import Frozen
from penstock.router.kafka_records import Fetched


class Deltas:
    """Of the records that were read from `place`, the name of a partition for people."""

    def __init__(self, place: str, records: Iterable[Fetched]) -> None:
        self._place = place
        self._records = {
            record.offset: record.value for record in records if record.value is not None and not record.key
        }
        self._offsets = sorted(self._records)

    def delta(self, offset: int) -> tuple[DeltaHeader, Frozen, int]:
        """The delta whose first record stands at `offset`, and its size in bytes. Raises CorruptSnapshot."""
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
            found = self._header(at)
            if _same(found, first) and found.index == len(records):
                header = found
                records.append(self._records[at])
        return *decode_delta(records), sum(map(len, records))

    def chain(self, head: int, first: int) -> list[int]:
        """Offsets of the deltas from `first` to `head`, oldest first, found by following `previous` back."""
        chain: list[int] = []
        offset = head
        while offset >= max(first, 0):
            chain.append(offset)
            previous = self._header(offset).previous
            if previous >= offset:
                raise CorruptSnapshot(
                    "PEN0404",
                    f"The delta at offset {offset} of {self._place} extends one behind it, at {previous}. An older "
                    "checkpoint is used.",
                )
            offset = previous
        chain.reverse()
        return chain

    def _header(self, offset: int) -> DeltaHeader:
        record = self._records.get(offset)
        if record is None:
            raise CorruptSnapshot(
                "PEN0404", f"{self._place} holds no delta at offset {offset}. An older checkpoint is used."
            )
        return peek_header(record)


def _same(one: DeltaHeader, other: DeltaHeader) -> bool:
    """Whether both are headers of one delta."""
    return (one.attempt, one.checkpoint, one.task, one.previous) == (
        other.attempt,
        other.checkpoint,
        other.task,
        other.previous,
    )
