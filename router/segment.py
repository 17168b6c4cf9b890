"""One segment file of the embedded log: its bytes, how to walk them, how to tell a torn write from damage.

    segment  = header, batch, batch, ...
    header   = magic, format version, base offset, length of the name, name of the partition, crc32
    batch    = magic, crc32, body length, record count, first offset, position, durable, body
    body     = the length of each record (u32), then the records one after the other

A batch is what one flush wrote for one partition, in pieces of at most 256 KiB: one checksum and one `join`
for many records, instead of 16 bytes and a microsecond for each. `position` is where the batch stands in its
file, and its checksum starts from that of the header, so bytes that look like a batch inside a record, or in
a file that was renamed, are not taken for one.

What always holds: `walk` yields records exactly as they were appended, in order, or a `Damage` that says
which offsets are missing; never a wrong record. Number formats are little-endian.

**Torn or damaged.** A crash may leave any part of the last flush unwritten, in any order, since nothing was
synced yet. Nobody relies on that flush, so it is cut off. Every byte before it was synced, and is relied on.
`durable` draws the line: it says how much of the file was durable when the batch was written. Unreadable
bytes below the `durable` of a later batch are damage, and are reported when somebody needs them; above it
they are a torn flush. (To ask only whether a valid record follows would call a torn flush damage whenever its
last page reached the disk before its first.) One case cannot be told apart from inside: bit rot in the very
last flush looks torn. Whoever wrote down an end offset elsewhere notices, because reading there raises.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from penstock.errors import ConfigurationError
from penstock.ids import Offset

FORMAT_VERSION = 1
BATCH_BYTES_MAX = 256 * 1024
"""What one flipped bit can make unreadable, and what is decoded to read one record: little enough for both, and
enough that the cost per batch (40 bytes, a few calls) vanishes."""

_HEADER = struct.Struct("<8sHQH")
_HEADER_MAGIC = b"PENSLOG\n"
_BATCH = struct.Struct("<4sIIIQQQ")
_BATCH_MAGIC = b"PNB1"
_CHECKED_FROM = 8
"""The checksum of a batch covers what follows it."""
_READ_BYTES = 256 * 1024
_MARK_BYTES = 64 * 1024
"""Distance of index entries: a search walks at most this much, and a full segment has a thousand of them."""


class Batch(NamedTuple):
    """A verified batch, not yet split into records."""

    base: Offset
    record_count: int
    position: int
    end_position: int
    durable: int
    body: bytes

    @property
    def end(self) -> Offset:
        return Offset(self.base + self.record_count)

    def records(self) -> list[bytes]:
        records = []
        first = 4 * self.record_count
        for length in struct.unpack_from(f"<{self.record_count}I", self.body):
            records.append(self.body[first : first + length])
            first += length
        return records


class Damage(NamedTuple):
    """Bytes that are no batch, and the offsets that are missing for it."""

    position: int
    end_position: int
    base: Offset
    end: Offset


class Mark(NamedTuple):
    """Where the batch that starts with `offset` stands."""

    offset: Offset
    position: int


class Segment:
    """What is known of one segment file: identity, readable length, and an index that grows as it is read."""

    def __init__(self, directory: Path, partition: str, base: Offset) -> None:
        self.base = base
        self.path = directory / f"{base:020d}.log"
        name = partition.encode()
        fields = _HEADER.pack(_HEADER_MAGIC, FORMAT_VERSION, base, len(name)) + name
        self.header = fields + struct.pack("<I", zlib.crc32(fields))
        self.seed = zlib.crc32(self.header)
        self.length = 0
        """Only bytes below it are read. It grows when a flush has made more durable."""
        self._marks = [Mark(base, len(self.header))]

    def mark_before(self, offset: Offset) -> Mark:
        """The last known batch start at or below `offset`."""
        return self._marks[bisect_right(self._marks, offset, key=lambda mark: mark.offset) - 1]

    def note(self, mark: Mark) -> None:
        """Remember `mark` if it is far enough from what is known."""
        last = self._marks[-1]
        if mark.position - last.position >= _MARK_BYTES:
            self._marks.append(mark)

    def check_header(self) -> bool:
        """Whether the header is as it was written. Raises when it is sound, but of another format or
        partition.
        """
        with self.path.open("rb") as file:
            found = file.read(len(self.header))
        if found == self.header:
            return True
        if len(found) < _HEADER.size:
            return False
        magic, version, _base, name_length = _HEADER.unpack_from(found)
        with self.path.open("rb") as file:
            found = file.read(_HEADER.size + name_length + 4)
        if magic != _HEADER_MAGIC or found[-4:] != struct.pack("<I", zlib.crc32(found[:-4])):
            return False
        if version != FORMAT_VERSION:
            raise ConfigurationError(
                "PEN0410",
                f"{self.path} has log format {version}; this Penstock reads format {FORMAT_VERSION}. "
                "Start the version that wrote it, or choose another directory with --dir.",
            )
        name = found[_HEADER.size : -4].decode("utf-8", "replace")
        raise ConfigurationError(
            "PEN0411",
            f"{self.path} belongs to partition {name!r}: a file was moved or renamed. "
            "Restore the directory from a backup, or choose another with --dir.",
        )


class SegmentReader:
    """Walks the batches of one segment, reading the file in large pieces. Close it when done."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._descriptor = os.open(segment.path, os.O_RDONLY)
        self._piece = b""
        self._piece_position = 0

    def close(self) -> None:
        os.close(self._descriptor)

    def walk(self, mark: Mark, stop: Offset | None) -> Iterator[Batch | Damage]:
        """Everything from `mark` on: batches in order, and a `Damage` wherever offsets are missing.

        Ends at `stop`, the first offset that another segment holds; without it, at the last valid batch.
        """
        expected, position = mark
        while stop is None or expected < stop:
            batch = self.batch_at(position)
            if batch is None or batch.base != expected:
                batch = self._next_batch(position, expected)
                if stop is not None and (batch is None or batch.base >= stop):
                    yield Damage(position, self.segment.length, expected, stop)
                    return
                if batch is None:
                    return
                yield Damage(position, batch.position, expected, batch.base)
            self.segment.note(Mark(batch.base, batch.position))
            yield batch
            expected, position = batch.end, batch.end_position

    def batch_at(self, position: int) -> Batch | None:
        """The batch at `position`, or None if there are no bytes of one, or not all, or not these."""
        header = self._bytes(position, _BATCH.size)
        if len(header) < _BATCH.size:
            return None
        magic, checksum, length, count, base, own_position, durable = _BATCH.unpack(header)
        end_position = position + _BATCH.size + length
        if magic != _BATCH_MAGIC or own_position != position or end_position > self.segment.length:
            return None
        body = self._bytes(position + _BATCH.size, length)
        if zlib.crc32(body, zlib.crc32(header[_CHECKED_FROM:], self.segment.seed)) != checksum:
            return None
        return Batch(Offset(base), count, position, end_position, durable, body)

    def _next_batch(self, after: int, expected: Offset) -> Batch | None:
        """The first batch that starts behind `after` and does not repeat what came before it."""
        position = after + 1
        while position < self.segment.length:
            piece = self._bytes(position, _READ_BYTES)
            found = piece.find(_BATCH_MAGIC)
            while found >= 0:
                batch = self.batch_at(position + found)
                if batch is not None and batch.base >= expected:
                    return batch
                found = piece.find(_BATCH_MAGIC, found + 1)
            position += max(1, len(piece) - len(_BATCH_MAGIC) + 1)  # The magic may lie across two pieces.
        return None

    def _bytes(self, position: int, length: int) -> bytes:
        """At most `length` bytes from `position`; fewer only at the end of what may be read."""
        length = max(0, min(length, self.segment.length - position))
        first = position - self._piece_position
        if first < 0 or first + length > len(self._piece):
            # Never beyond `segment.length`: bytes above it may still be cut off and written anew.
            size = max(length, min(_READ_BYTES, self.segment.length - position))
            self._piece = os.pread(self._descriptor, size, position)
            self._piece_position = position
            first = 0
        return self._piece[first : first + length]


def encode_batches(
    segment: Segment, records: Sequence[bytes], *, base: Offset, position: int, durable: int
) -> Iterator[tuple[Mark, list[bytes]]]:
    """The buffers to append at `position` so that `records` follow from offset `base`, a batch at a time."""
    ends = list(accumulate(map(len, records)))
    first = 0
    while first < len(records):
        taken = ends[first - 1] if first else 0
        # At least one record, also when it alone is larger than a batch should be.
        last = max(first + 1, bisect_right(ends, taken + BATCH_BYTES_MAX, first))
        chunk = records[first:last]
        body = b"".join((struct.pack(f"<{len(chunk)}I", *map(len, chunk)), *chunk))
        checked = struct.pack("<IIQQQ", len(body), len(chunk), base + first, position, durable)
        checksum = zlib.crc32(body, zlib.crc32(checked, segment.seed))
        header = struct.pack("<4sI", _BATCH_MAGIC, checksum) + checked
        yield Mark(Offset(base + first), position), [header, body]
        position += len(header) + len(body)
        first = last


class Scan(NamedTuple):
    """What the last segment of a partition turned out to hold."""

    end: Offset
    end_position: int
    """Where the last batch to be kept ends. What follows is a torn flush."""
    damage: list[Damage]
    """Below that: lost although it was durable."""


def scan(segment: Segment) -> Scan:
    """Walk a whole segment and tell damage from a torn flush (see the module's text)."""
    reader = SegmentReader(segment)
    try:
        start = Mark(segment.base, len(segment.header))
        # Without the bodies: a segment is large, and only the last flush of it is looked at twice.
        found = [_without_body(item) for item in reader.walk(start, None)]
    finally:
        reader.close()
    durable = max((item.durable for item in found if isinstance(item, Batch)), default=0)
    end, end_position = segment.base, min(len(segment.header), segment.length)
    damage: list[Damage] = []
    for item in found:
        if isinstance(item, Damage):
            if item.position >= durable:
                break
            damage.append(item)
        else:
            end, end_position = item.end, item.end_position
    return Scan(end, end_position, damage)


def _without_body(item: Batch | Damage) -> Batch | Damage:
    return item._replace(body=b"") if isinstance(item, Batch) else item
