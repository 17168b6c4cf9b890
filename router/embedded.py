"""The log of one machine: partitions of checksummed records in append-only files below one directory.

    <directory>/<partition>/<offset of the first record>.log

What always holds:
- records are in memory from `append` until a flush has made them durable, and in a segment file from then on;
  reading takes what is durable from the files and the rest from memory, so the two never overlap;
- a segment is created when the one before it is durable to its end, so only the last can have a torn end;
- bytes that were durable never change; a file is cut only at its end, of bytes no flush has answered for;
- offsets are final when `append` returns them: a flush that fails is repeated with the same records.

A flush is a job for one thread: it gets lists of records and returns what became durable, and shares nothing
else with the thread that appends and reads. Flushes asked for while one runs are served together by the next
(group commit), so the number of syncs follows the speed of the disk and not the number of callers.

Opening never fails for damaged bytes: older checkpoints may not need them. A torn end is cut, damage is left
as evidence, appending goes on in a new segment behind it, and `read` raises only when it reaches the missing
records. `recovered` tells of both. Who may open the directory is for `penstock.files.DirectoryLock`.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from penstock.errors import CorruptSnapshot, Unavailable
from penstock.files import AppendFile, make_directory, sync_file, write_atomically
from penstock.ids import Offset
from penstock.router.log import FIRST_OFFSET, LogStatistics, RecordsLost, check_offset, enumerate_from, take_records
from penstock.router.segment import Damage, Mark, Segment, SegmentReader, encode_batches, scan

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""What truncation can free at once, and what opening a partition reads at most: 0.1 s."""
RECORD_BYTES_MAX = 1 << 30
"""The format allows 4 GiB less one byte; messages are bounded far below by `message_bytes_max`."""


class EmbeddedLog:
    """Implements `penstock.router.log.Log`. Opens, and repairs as described above, when it is made."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        executor: Executor | None = None,
        read_only: bool = False,
    ) -> None:
        """`executor` runs the flushes, one at a time; without it the log has a thread of its own.

        With `read_only` nothing is repaired or removed, and nothing may be appended: for tools, also beside an owner.
        """
        if not read_only:
            make_directory(directory)
        self.recovered: list[str] = []
        """What opening had to cut, and the damage it found: nothing after a clean stop. Show it."""
        self._directory = directory
        self._segment_bytes_max = segment_bytes_max
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="penstock-log")
        self._owns_executor = executor is None
        self._partitions: dict[str, _Partition] = {}
        self._appended = 0
        """Records appended since opening; `_flushed` counts how many of them are durable."""
        self._flushed = 0
        self._job: _Job | None = None
        """The flush that runs, or whose result nobody has taken yet."""
        self._flushes = 0
        self._record_bytes = 0
        for found in sorted(directory.iterdir()):
            name = unquote(found.name)
            if found.is_dir() and found.name == _directory_name(name):  # Others are not ours.
                self.recovered += self._open(name).recover(read_only=read_only)

    def append(self, partition: str, record: bytes) -> Offset:
        assert len(record) <= RECORD_BYTES_MAX, f"a record of {len(record):,} bytes for {partition}"
        stored = self._partitions.get(partition) or self._open(partition)
        stored.unflushed.append(record)
        self._appended += 1
        return Offset(stored.durable_end + len(stored.unflushed) - 1)

    async def flush(self) -> None:
        wanted = self._appended
        while self._flushed < wanted:
            job = self._job or self._begin()
            # Shielded: a caller that is cancelled must not take the flush from the others.
            result = await asyncio.shield(asyncio.wrap_future(job.future))
            self._settle(job, result)

    def flush_nowait(self) -> None:
        wanted = self._appended
        while self._flushed < wanted:
            job = self._job or self._begin()
            self._settle(job, job.future.result())

    def read(self, partition: str, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        stored = self._partitions.get(partition)
        if stored is None:
            check_offset(partition, offset, start=FIRST_OFFSET, end=FIRST_OFFSET)
            return []
        return stored.read(offset, records_max, bytes_max)

    def start(self, partition: str) -> Offset:
        stored = self._partitions.get(partition)
        return stored.start if stored else FIRST_OFFSET

    def end(self, partition: str) -> Offset:
        stored = self._partitions.get(partition)
        return stored.end if stored else FIRST_OFFSET

    def truncate(self, partition: str, before: Offset) -> None:
        """Delete the segments that hold nothing from `before` on. The last one stays: it knows the end."""
        stored = self._partitions.get(partition)
        if stored is not None:
            stored.truncate(before)

    def partitions(self) -> list[str]:
        return sorted(self._partitions)

    def close(self) -> None:
        if self._job is not None:
            self._job.future.exception()  # Waits. Its result interests nobody any more.
        if self._owns_executor:
            self._executor.shutdown()
        for stored in self._partitions.values():
            stored.close()

    def statistics(self) -> LogStatistics:
        """Counts since the log was opened."""
        unflushed = sum(len(stored.unflushed) for stored in self._partitions.values())
        return LogStatistics(self._flushes, self._appended - unflushed, self._record_bytes, unflushed)

    def _open(self, name: str) -> _Partition:
        directory = self._directory / _directory_name(name)
        stored = self._partitions[name] = _Partition(name, directory, self._segment_bytes_max)
        return stored

    def _begin(self) -> _Job:
        work = [
            _Work(stored, stored.durable_end, stored.unflushed.copy())
            for stored in self._partitions.values()
            if stored.unflushed
        ]
        self._job = _Job(self._appended, self._executor.submit(_perform, work))
        return self._job

    def _settle(self, job: _Job, result: _Result) -> None:
        """Take over what a finished job made durable, once, and raise what went wrong for each who waited."""
        if self._job is job:
            self._job = None
            for partition, durable in result.durable:
                self._record_bytes += partition.take(durable)
            if result.error is None:
                self._flushed = job.appended
                self._flushes += 1
        if result.error is not None:
            raise result.error


class _Work(NamedTuple):
    partition: _Partition
    base: Offset
    records: list[bytes]


class _Durable(NamedTuple):
    """Records of one segment that became durable: up to `end`, in the first `length` bytes of it."""

    segment: Segment
    end: Offset
    length: int
    marks: list[Mark]


class _Result(NamedTuple):
    durable: list[tuple[_Partition, _Durable]]
    error: Unavailable | None


class _Job(NamedTuple):
    appended: int
    """Serves the callers who had appended no more than this."""
    future: Future[_Result]


def _perform(work: list[_Work]) -> _Result:
    """One flush, in its own thread. Touches the writers and nothing that reading uses."""
    error: Unavailable | None = None
    # First all writes, then all syncs: the first sync commits the journal of the file system for all of them.
    for partition, base, records in work:
        try:
            partition.writer.write(base, records)
        except Unavailable as failure:
            error = error or failure
    for partition, _, _ in work:
        try:
            partition.writer.sync()
        except Unavailable as failure:
            error = error or failure
    durable = [(partition, done) for partition, _, _ in work for done in partition.writer.take_durable()]
    return _Result(durable, error)


class _Writer:
    """Appends to the last segment of one partition, and begins the next. Used by one flush at a time."""

    def __init__(self, name: str, directory: Path, segment_bytes_max: int) -> None:
        self._name = name
        self._directory = directory
        self._segment_bytes_max = segment_bytes_max
        self._segment: Segment | None = None
        self._file: AppendFile | None = None
        self._end = FIRST_OFFSET
        """The offset behind the last record written to the file, durable or not."""
        self._marks: list[Mark] = []
        self._durable: list[_Durable] = []

    def resume(self, segment: Segment) -> None:
        """Go on in `segment` instead of beginning a new one."""
        self._segment = segment
        self._file = AppendFile(segment.path)

    def write(self, base: Offset, records: Sequence[bytes]) -> None:
        """Write `records`; `sync` makes the last segment durable, full ones are already."""
        written = 0
        while written < len(records):
            self._make_room(Offset(base + written))
            written += self._fill(Offset(base + written), records[written:])

    def sync(self) -> None:
        if self._file is None or self._segment is None or self._file.length == self._file.durable_length:
            return
        self._file.sync()
        self._durable.append(_Durable(self._segment, self._end, self._file.length, self._marks))
        self._marks = []

    def take_durable(self) -> list[_Durable]:
        durable, self._durable = self._durable, []
        return durable

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _make_room(self, base: Offset) -> None:
        if self._file is not None and self._file.usable and self._file.length < self._segment_bytes_max:
            return
        if self._file is not None and self._file.usable:
            self.sync()
        self.close()
        self._marks = []
        make_directory(self._directory)
        segment = Segment(self._directory, self._name, base)
        # A segment given up before anything in it was durable has this name, too: it is replaced as a whole.
        write_atomically(segment.path, segment.header)
        self.resume(segment)

    def _fill(self, base: Offset, records: Sequence[bytes]) -> int:
        """Write as many of `records` as the segment has room for, in one append. Returns how many."""
        assert self._file is not None
        assert self._segment is not None
        buffers: list[bytes] = []
        marks: list[Mark] = []
        position = self._file.length
        end = Offset(base + len(records))
        durable = self._file.durable_length
        for mark, batch in encode_batches(self._segment, records, base=base, position=position, durable=durable):
            if mark.position >= self._segment_bytes_max:
                end = mark.offset
                break
            marks.append(mark)
            buffers += batch
        self._file.append(buffers)
        self._marks += marks
        self._end = end
        return end - base


class _Decoded(NamedTuple):
    base: Offset
    records: list[bytes]


class _Partition:
    """One partition as its readers see it: durable segments, then records in memory."""

    def __init__(self, name: str, directory: Path, segment_bytes_max: int) -> None:
        self.name = name
        self.directory = directory
        self.writer = _Writer(name, directory, segment_bytes_max)
        self.unflushed: list[bytes] = []
        """The records from `durable_end` on. Grows at its end; a settled flush takes from its front."""
        self.durable_end = FIRST_OFFSET
        self._segments: list[Segment] = []
        self._reader: SegmentReader | None = None
        self._decoded = _Decoded(FIRST_OFFSET, [])
        """The batch read last: a reader that takes a few records at a time comes back to it."""
        self._next: Mark | None = None
        """In the segment of `_reader`: where sequential reading goes on without a search."""

    @property
    def start(self) -> Offset:
        return self._segments[0].base if self._segments else FIRST_OFFSET

    @property
    def end(self) -> Offset:
        return Offset(self.durable_end + len(self.unflushed))

    def recover(self, *, read_only: bool) -> list[str]:
        """Find the segments of earlier runs, cut a torn end, and return what a person should know."""
        for leftover in self.directory.glob(".*.tmp") if not read_only else ():
            leftover.unlink()
        bases = sorted(int(path.stem) for path in self.directory.glob("[0-9]" * 20 + ".log"))
        self._segments = [Segment(self.directory, self.name, Offset(base)) for base in bases]
        hurt = [segment for segment in self._segments if not segment.check_header()]
        report = [f"{segment.path}: its header is damaged; its records are checked one by one" for segment in hurt]
        for segment in self._segments:
            segment.length = segment.path.stat().st_size
        if self._segments:
            report += self._recover_last(self._segments[-1], whole=self._segments[-1] not in hurt, read_only=read_only)
        return report

    def _recover_last(self, last: Segment, *, whole: bool, read_only: bool) -> list[str]:
        found = scan(last)
        torn = last.length - found.end_position
        self.durable_end = found.end
        last.length = found.end_position
        report = [self._damaged(last, damage).message for damage in found.damage]
        if torn:
            report.append(
                f"{last.path}: {torn:,} bytes of an unfinished write are ignored. The partition ends at "
                f"offset {found.end:,}; what followed was never confirmed to anybody"
            )
        if read_only:
            return report
        if whole and not found.damage:
            if torn:
                os.truncate(last.path, last.length)
            self.writer.resume(last)
        # After a crash of the process alone, the file may hold records that no flush has answered for and
        # that are not on the disk. From now on they are read, so from now on they must survive.
        with last.path.open("rb") as file:
            sync_file(file.fileno())
        return report

    def take(self, durable: _Durable) -> int:
        """Let readers find in the file what a flush has put there. Returns the bytes of its records."""
        segment = durable.segment
        if self._segments and self._segments[-1].base == segment.base:
            self._segments.pop()  # The same one, or one that was given up empty and replaced by this.
        self._segments.append(segment)
        segment.length = durable.length
        for mark in durable.marks:
            segment.note(mark)
        count = durable.end - self.durable_end
        record_bytes = sum(map(len, self.unflushed[:count]))
        del self.unflushed[:count]
        self.durable_end = durable.end
        return record_bytes

    def read(self, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        check_offset(self.name, offset, start=self.start, end=self.end)
        found: list[tuple[Offset, bytes]] = []
        while offset < self.end and len(found) < records_max:
            try:
                base, records = self._batch_with(offset)
            except CorruptSnapshot:
                if found:
                    break  # The caller gets what is sound; the error is for who asks for the damaged record.
                raise
            taken = take_records(records[offset - base :], records_max - len(found), bytes_max, some=bool(found))
            if not taken:
                break
            bytes_max -= sum(map(len, taken))
            found += enumerate_from(offset, taken)
            offset = Offset(offset + len(taken))
        return found

    def truncate(self, before: Offset) -> None:
        kept = bisect_right(self._segments, before, key=lambda segment: segment.base) - 1
        for segment in self._segments[: max(0, kept)]:
            if self._reader is not None and self._reader.segment is segment:
                self._close_reader()
            # The directory is not synced: a name that comes back after a power cut does no harm.
            segment.path.unlink(missing_ok=True)
            self._segments.remove(segment)

    def close(self) -> None:
        self.writer.close()
        self._close_reader()

    def _batch_with(self, offset: Offset) -> _Decoded:
        """The records around `offset`, from memory or verified from a file."""
        if offset >= self.durable_end:
            return _Decoded(self.durable_end, self.unflushed)
        if not 0 <= offset - self._decoded.base < len(self._decoded.records):
            self._decoded = self._decode(offset)
        return self._decoded

    def _decode(self, offset: Offset) -> _Decoded:
        index = bisect_right(self._segments, offset, key=lambda segment: segment.base) - 1
        segment = self._segments[index]
        stop = self._segments[index + 1].base if index + 1 < len(self._segments) else self.durable_end
        reader = self._reader_of(segment)
        mark = segment.mark_before(offset)
        if self._next is not None and mark.offset <= self._next.offset <= offset:
            mark = self._next
        for item in reader.walk(mark, stop):
            if item.end <= offset:
                continue
            if isinstance(item, Damage):
                raise self._damaged(segment, item)
            self._next = Mark(item.end, item.end_position)
            # A file that was given up may hold more than its successor allows for.
            return _Decoded(item.base, item.records()[: stop - item.base])
        raise AssertionError(f"offset {offset} of {self.name} is neither in {segment.path} nor missing there")

    def _reader_of(self, segment: Segment) -> SegmentReader:
        if self._reader is None or self._reader.segment is not segment:
            self._close_reader()
            self._reader = SegmentReader(segment)
        return self._reader

    def _close_reader(self) -> None:
        self._next = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _damaged(self, segment: Segment, damage: Damage) -> RecordsLost:
        where = (
            f"bytes {damage.position:,} to {damage.end_position:,} of {segment.path} cannot be read"
            if damage.position < damage.end_position
            else f"{segment.path} ends at byte {damage.position:,}, too early"
        )
        return RecordsLost(
            "PEN0406",
            f"Log partition {self.name} is damaged: {where}; the records from offset {damage.base:,} to "
            f"{damage.end - 1:,} are lost. Use a checkpoint that does not need them, or restore the directory "
            "from a backup.",
            damage.end,
        )


_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
"""Without capitals: some file systems take `Cart` and `cart` for one name."""


def _directory_name(partition: str) -> str:
    """A name that any file system keeps apart from every other partition's, and that people can read."""
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in partition.encode())
    if name.startswith("."):
        name = "%2e" + name[1:]  # Not hidden, and neither this directory nor the one above.
    assert 0 < len(name) <= 255, f"partition {partition!r} makes no file name"
    return name
