"""Reads the records of an ingress, chunk by chunk, from any position.

What always holds: record numbers are dense from the beginning of a partition; a reader that is given the
position of a chunk continues with exactly the record after it; what can't be read as a record takes its place
as a `BadRecord`; an input that is not the one the position was taken in is refused, and nothing is skipped.
Decides nothing about where records go: see `penstock.router.routing`.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import os
import time
import zipfile
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from penstock.errors import ConfigurationError, FunctionError, PenstockError, Refused
from penstock.functions.codecs import ABSENT_TEXTS
from penstock.functions.io import (
    MEMBER_SEPARATOR,
    FileIngress,
    GeneratorIngress,
    IngressSpec,
    MemoryIngress,
)
from penstock.router.lines import Batch, Block, CsvParser, LineSource, parse_lines, read_header

Position = int | str | list[Any] | dict[str, Any]
"""Where to continue reading: whatever the reader chooses, as long as msgpack can hold it."""


def record_of(position: Position | None) -> int:
    """The number of the record at a position that a reader of this module gave."""
    if isinstance(position, dict):
        position = position["record"]
    assert position is None or isinstance(position, int), position
    return position or 0


class Chunk(NamedTuple):
    """Some consecutive records."""

    first: int
    """Number of the first of them, counted from the beginning of the partition."""
    records: Sequence[Any]
    position: Position
    """Where to continue after them."""
    done: bool
    """Whether no record will follow."""


class Progress(NamedTuple):
    """How far an input that has an end has been read, in the bytes of its files.

    Those of a gzip file count as they lie on the disk, since nothing tells how many they become; those of a member of
    a zip archive count unpacked.
    """

    done: int
    total: int

    @property
    def percent(self) -> int:
        return 100 * self.done // self.total if self.total else 100


class Reader(Protocol):
    """One partition of one ingress. Used from one thread, by one owner."""

    def seek(self, position: Position | None) -> None:
        """Continue at `position`, or at the beginning if it is None.

        Raises Refused when the input is not the one that the position was taken in.
        """
        ...

    def read(self, records_max: int) -> Chunk | None:
        """At most `records_max` records; None when there is nothing now: then `wait_ready`."""
        ...

    async def wait_ready(self) -> None:
        """Return when `read` may have something to give."""
        ...

    def locate(self, record: int) -> str:
        """Where record number `record` stands, for people: `departures.csv line 12`."""
        ...

    def progress(self) -> Progress | None:
        """How far it has come, for people; None where nobody knows the end, and while nothing is open."""
        ...

    async def close(self) -> None:
        """Release what is open."""
        ...


def reader_for(
    spec: IngressSpec,
    partition: int = 0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reader:
    """The reader of one partition of `spec`. It opens nothing before its first `seek` or `read`."""
    assert partition == 0, f"{spec} has a single partition, not number {partition}"
    if isinstance(spec, FileIngress):
        reader = FileReader(spec)
        return reader if spec.rate is None else ThrottledReader(reader, spec.rate, clock=clock, sleep=sleep)
    if isinstance(spec, GeneratorIngress):
        return GeneratorReader(spec)
    if isinstance(spec, MemoryIngress):
        return MemoryReader(spec)
    raise ConfigurationError("PEN0141", f"{spec!r} is no ingress. Use FileIngress, GeneratorIngress or MemoryIngress.")


# Files.


class _Input(NamedTuple):
    """One file to be read, or one member of an archive."""

    name: str
    """Relative to what the pattern fixes: it survives a move of the whole directory."""
    path: Path
    member: str | None
    """The member of a zip archive; None for any other file."""
    size_bytes: int
    """When the files were listed: unpacked for a member of an archive, as it lies on the disk for any other file."""


@dataclass(frozen=True, slots=True)
class _FilePosition:
    """A place in a list of files, and enough about the file to recognise it."""

    record: int
    file: int
    """Index into the list of files in the order of their names."""
    name: str
    before: int
    """Checksum of the names of the files before it: one more among them would never be read."""
    offset: int
    """In the decompressed file, behind the last record taken."""
    line: int
    """How many lines come before the offset."""
    head: int
    """Checksum of the first bytes of the file as it lies on the disk; of the whole member in an archive."""
    head_bytes: int
    """How many bytes `head` covers."""


_HEAD_BYTES = 4096
"""What a file is recognised by. It covers a header line and some records, and costs one read when a file is
opened."""


class _OpenFile:
    """A file that is being read: its stream, its header, and what is known to recognise it later."""

    def __init__(self, spec: FileIngress, source: _Input) -> None:
        self.source = source
        self._spec = spec
        self._archive: zipfile.ZipFile | None = None
        self._compressed: BinaryIO | None = None
        self._stream = self._open()
        try:
            self.head, self.head_bytes = self._fingerprint()
            self.offset = 0
            self.line = 0
            self._parser = self._prepare()
            self._lines = self._source_at(self.offset)
        except BaseException:
            self.close()
            raise

    def _open(self) -> BinaryIO:
        path, member = self.source.path, self.source.member
        if member is not None:
            self._archive = zipfile.ZipFile(path)
            return cast(BinaryIO, self._archive.open(member))
        if path.name.lower().endswith(".gz"):
            self._compressed = path.open("rb")
            return cast(BinaryIO, gzip.GzipFile(fileobj=self._compressed))
        return path.open("rb")

    def _fingerprint(self) -> tuple[int, int]:
        if self._archive is not None and self.source.member is not None:
            member = self._archive.getinfo(self.source.member)
            return member.CRC, member.file_size
        with self.source.path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        return zlib.crc32(head), len(head)

    def head_of(self, count: int) -> tuple[int, int]:
        """The checksum of the first `count` bytes, and how many of them there are: a file may have grown
        since."""
        if self._archive is not None:
            return self.head, self.head_bytes
        with self.source.path.open("rb") as file:
            head = file.read(count)
        return zlib.crc32(head), len(head)

    def _prepare(self) -> CsvParser | None:
        """Read what comes before the first record: a byte order mark, and the names of the columns."""
        if self._stream.read(3) == b"\xef\xbb\xbf":
            self.offset = 3
        self._stream.seek(self.offset)
        spec = self._spec
        if spec.format != "csv":
            return None
        header: Sequence[str] = spec.columns or ()
        if spec.columns is None:
            header = self._read_header()
        return CsvParser(header, delimiter=spec.delimiter, na=_na_of(spec), record_bytes_max=spec.record_bytes_max)

    def _read_header(self) -> Sequence[str]:
        try:
            found = read_header(self._stream, self._spec.delimiter, line_bytes_max=self._spec.record_bytes_max)
        except (UnicodeDecodeError, csv.Error, StopIteration) as error:
            raise self._bad_header(f"can't be read ({error})") from error
        if found is None:
            return ()  # An empty file has no header, and no records that would need one.
        names, self.offset, self.line = found
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise self._bad_header(f"names the column {double!r} twice")
        return names

    def _bad_header(self, what: str) -> Refused:
        return Refused(
            "PEN0222",
            f"The first line of {self.source.name} {what}. It has to name the columns, each once, in UTF-8. "
            "Correct it, or name them: FileIngress(..., columns=(...)).",
        )

    def _source_at(self, offset: int) -> LineSource:
        self._stream.seek(offset)
        return LineSource(self._stream, offset, line_bytes_max=self._spec.record_bytes_max)

    def length_at_least(self, offset: int) -> bool:
        """Whether the file reaches to `offset`. For a compressed one that means reading up to there."""
        if self._archive is None and not isinstance(self._stream, gzip.GzipFile):
            return os.fstat(self._stream.fileno()).st_size >= offset
        return self._stream.seek(offset) >= offset

    @property
    def done_bytes(self) -> int:
        """How much of `source.size_bytes` is behind: up to the last record taken, or what was read to unpack it."""
        done = self.offset if self._compressed is None else self._compressed.tell()
        return min(done, self.source.size_bytes)  # The file may have grown since.

    def start_at(self, offset: int, line: int) -> None:
        """Continue at a record of this file that begins at `offset`, after `line` lines."""
        self.offset, self.line = offset, line
        self._lines = self._source_at(offset)

    def next_batch(self) -> Batch | None:
        """The next records, at least one; None at the end of the file."""
        while (block := self._lines.next_block()) is not None:
            batch = self._parse(block)
            if batch is None:
                continue
            if batch.records:
                return batch
            self.offset = batch.end
            self.line += len(batch.lines)
        return None

    def _parse(self, block: Block) -> Batch | None:
        if self._parser is None:
            return parse_lines(block, self._spec.record_bytes_max)
        return self._parser.parse(block, self._lines)

    def close(self) -> None:
        self._stream.close()
        for below in (self._archive, self._compressed):
            if below is not None:
                below.close()


class FileReader:
    """Reads the files of a `FileIngress` one after the other."""

    def __init__(self, spec: FileIngress) -> None:
        self._spec = spec
        self._inputs: list[_Input] = []
        self._sizes = [0]
        """For each input, how many bytes the inputs before it have; behind them, how many all have."""
        self._index = 0
        self._file: _OpenFile | None = None
        self._batch: Batch | None = None
        self._taken = 0
        """How many records of the batch were given."""
        self._record = 0
        self._lines = _LineIndex()

    def seek(self, position: Position | None) -> None:
        self._close_file()
        self._inputs = _inputs(self._spec.path)
        self._sizes = [0, *accumulate(source.size_bytes for source in self._inputs)]
        self._index = 0
        self._record = 0
        self._lines = _LineIndex()
        if position is None:
            self._open_file()
            return
        assert isinstance(position, dict), position
        at = _FilePosition(**position)
        self._check_files_before(at)
        self._index = at.file
        self._record = at.record
        file = self._open_file()
        try:
            self._check_same_file(file, at)
            with _damage_refused(file.source.name):
                file.start_at(at.offset, at.line)
        except BaseException:
            self._close_file()
            raise

    def read(self, records_max: int) -> Chunk | None:
        assert records_max > 0, records_max
        file = self._file
        if file is None:
            self.seek(None)
            file = self._file
            assert file is not None
        while self._batch is None:
            with _damage_refused(file.source.name):
                self._batch = file.next_batch()
            if self._batch is not None:
                self._lines.add(self._record, file.source.name, file.line, self._batch.starts)
            elif self._index + 1 == len(self._inputs):
                return Chunk(self._record, [], self._position(file), done=True)
            else:
                self._close_file()
                self._index += 1
                file = self._open_file()
        return self._take(file, self._batch, records_max)

    async def wait_ready(self) -> None:
        """A file is always ready."""

    def locate(self, record: int) -> str:
        return self._lines.locate(record) or f"{self._spec.path} record {record + 1}"

    def progress(self) -> Progress | None:
        if self._file is None:
            return None
        return Progress(self._sizes[self._index] + self._file.done_bytes, self._sizes[-1])

    async def close(self) -> None:
        self._close_file()

    def _take(self, file: _OpenFile, batch: Batch, records_max: int) -> Chunk:
        first = self._record
        stop = min(self._taken + records_max, len(batch.records))
        records = batch.records[self._taken : stop]
        line = file.line + batch.lines_after(stop) - batch.lines_after(self._taken)
        file.offset = batch.offset_after(stop)
        file.line = line
        self._record += len(records)
        self._taken = stop
        if stop == len(batch.records):
            self._batch = None
            self._taken = 0
        return Chunk(first, records, self._position(file), done=False)

    def _position(self, file: _OpenFile) -> Position:
        return {
            "record": self._record,
            "file": self._index,
            "name": file.source.name,
            "before": _checksum_of_names(self._inputs[: self._index]),
            "offset": file.offset,
            "line": file.line,
            "head": file.head,
            "head_bytes": file.head_bytes,
        }

    def _open_file(self) -> _OpenFile:
        source = self._inputs[self._index]
        with _damage_refused(source.name):
            self._file = _OpenFile(self._spec, source)
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._batch = None
        self._taken = 0

    def _check_files_before(self, at: _FilePosition) -> None:
        names = [source.name for source in self._inputs]
        if at.name not in names:
            raise Refused(
                "PEN0221",
                f"{at.name} is gone: the last checkpoint had read {at.offset:,} bytes of it, as file "
                f"{at.file + 1} of {self._spec.path}. Put it back, or start fresh with --from none. Nothing "
                "was skipped.",
            )
        if names.index(at.name) != at.file or _checksum_of_names(self._inputs[: at.file]) != at.before:
            raise Refused(
                "PEN0221",
                f"The files of {self._spec.path} before {at.name} are not those that were read: there were "
                f"{at.file}, there are {names.index(at.name)}. A file that sorts before the position would "
                "never be read. Give new files names that sort last, and leave old ones in place. Nothing "
                "was skipped.",
            )

    def _check_same_file(self, file: _OpenFile, at: _FilePosition) -> None:
        remedy = "Put the old file back, or start fresh with --from none. Nothing was skipped."
        with _damage_refused(file.source.name):
            if file.head_of(at.head_bytes) != (at.head, at.head_bytes):
                raise Refused(
                    "PEN0221",
                    f"{at.name} is not the file it was: its beginning differs from what the last checkpoint "
                    f"read, up to line {at.line}. {remedy}",
                )
            if not file.length_at_least(at.offset):
                raise Refused(
                    "PEN0221",
                    f"{at.name} is shorter than it was: the last checkpoint had read {at.offset:,} bytes, up "
                    f"to line {at.line}. {remedy}",
                )


class _LineIndex:
    """From record numbers to lines. A run of records that take one line each costs one entry."""

    _ENTRIES_MAX = 20_000
    """Beyond, the older half is forgotten: only a file full of records of several lines gets there."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._places: list[tuple[str, int]] = []

    def add(self, first: int, name: str, line: int, starts: Sequence[int]) -> None:
        """Records from number `first` on begin `starts` lines after the first `line` lines of `name`."""
        if isinstance(starts, range):
            self._add_run(first, name, line + 1)
        else:
            for index, start in enumerate(starts):
                self._add_run(first + index, name, line + start + 1)
        if len(self._first) > self._ENTRIES_MAX:
            del self._first[: self._ENTRIES_MAX // 2], self._places[: self._ENTRIES_MAX // 2]

    def _add_run(self, record: int, name: str, line: int) -> None:
        if self._first:
            last_name, last_line = self._places[-1]
            if last_name == name and line - last_line == record - self._first[-1]:
                return
        self._first.append(record)
        self._places.append((name, line))

    def locate(self, record: int) -> str | None:
        """The place of a record; None if it was forgotten, or never known."""
        at = bisect_right(self._first, record) - 1
        if at < 0:
            return None
        name, line = self._places[at]
        return f"{name} line {line + record - self._first[at]}"


def _na_of(spec: FileIngress) -> frozenset[str]:
    """The cells to be given as None. With a type its codec decides: a text field may well hold "NA"."""
    if spec.na is not None:
        return spec.na
    return ABSENT_TEXTS if spec.type is None else frozenset()


def _inputs(pattern: str) -> list[_Input]:
    """What `pattern` names, in the order of the names. Raises ConfigurationError if there is none."""
    text, separator, member = pattern.partition(MEMBER_SEPARATOR)
    fixed, rest = _split_pattern(text)
    if rest is None:
        found = [(fixed.name, fixed)] if fixed.is_file() else []
    else:
        found = sorted((path.relative_to(fixed).as_posix(), path) for path in fixed.glob(rest) if path.is_file())
    if not found:
        raise ConfigurationError(
            "PEN0220",
            f"No file is named or matched by {text!r} (looked from {Path.cwd()}). Correct the path of the FileIngress.",
        )
    return [_input(name, path, member if separator else None) for name, path in found]


def _split_pattern(text: str) -> tuple[Path, str | None]:
    """The directory that is fixed and the pattern below it; or the whole path, and None."""
    parts = Path(text).parts
    for index, part in enumerate(parts):
        if any(character in part for character in "*?["):
            return Path(*parts[:index]), "/".join(parts[index:])
    return Path(text), None


def _input(name: str, path: Path, member: str | None) -> _Input:
    if not path.name.lower().endswith(".zip"):
        if member is not None:
            raise ConfigurationError(
                "PEN0220",
                f"{name} is no zip archive, so it has no member {member!r}. "
                f"Remove '{MEMBER_SEPARATOR}{member}' from the path.",
            )
        with _damage_refused(name):
            return _Input(name, path, None, path.stat().st_size)
    with _damage_refused(name), zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    members = list(sizes)
    if member is None and len(members) == 1:
        return _Input(name, path, members[0], sizes[members[0]])
    if member in sizes:
        return _Input(f"{name}{MEMBER_SEPARATOR}{member}", path, member, sizes[member])
    raise ConfigurationError(
        "PEN0220",
        f"{name} has {len(members)} members: {', '.join(members)}. Name the one to read: "
        f"FileIngress('{path}{MEMBER_SEPARATOR}{members[0] if members else 'member.csv'}').",
    )


def _checksum_of_names(inputs: Sequence[_Input]) -> int:
    return zlib.crc32("\n".join(source.name for source in inputs).encode())


@contextmanager
def _damage_refused(name: str) -> Iterator[None]:
    """Turn what the operating system or a decompressor says about a file into a `Refused` that names it."""
    again = "start again: reading goes on where the last checkpoint stands. Nothing was skipped."
    try:
        yield
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise Refused("PEN0223", f"{name} is damaged: {error}. Put an intact copy in its place and {again}") from error
    except OSError as error:
        raise Refused(
            "PEN0223", f"{name} can't be read: {error.strerror or error}. Correct that and {again}"
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # How zipfile speaks of encryption and rare methods.
        raise Refused(
            "PEN0223",
            f"{name} can't be unpacked: {error}. Store it without encryption, deflated, and {again}",
        ) from error


# Generators.


class GeneratorReader:
    """Reads a generator. Its position is the number of the next record."""

    def __init__(self, spec: GeneratorIngress) -> None:
        self._spec = spec
        self._name = getattr(spec.factory, "__qualname__", repr(spec.factory))
        self._record = 0
        self._started_at = 0
        self._iterator: Iterator[Any] | None = None
        self._pump: _Pump | None = None
        self._started = False

    def seek(self, position: Position | None) -> None:
        assert position is None or isinstance(position, int), position
        assert self._pump is None, "seek comes before the first read"
        self._record = position or 0
        self._start()

    def read(self, records_max: int) -> Chunk | None:
        assert records_max > 0, records_max
        if not self._started:
            self._start()
        if self._pump is not None:
            records, done = self._pump.take_nowait(records_max)
            if not records and not done:
                return None
        else:
            assert self._iterator is not None
            try:
                records = list(islice(self._iterator, records_max))
            except Exception as error:
                raise self._failed(error) from error
            done = len(records) < records_max
        first = self._record
        self._record += len(records)
        return Chunk(first, records, self._record, done)

    async def wait_ready(self) -> None:
        if not self._started:
            self._start()
        if self._pump is not None:
            try:
                await self._pump.wait_ready()
            except PenstockError:
                raise
            except Exception as error:
                raise self._failed(error) from error

    def locate(self, record: int) -> str:
        return f"{self._name} record {record + 1}"

    def progress(self) -> None:
        """A generator may go on for ever."""

    async def close(self) -> None:
        if self._pump is not None:
            await self._pump.close()

    def _start(self) -> None:
        try:
            self._started_at = self._record
            made = self._spec.factory(self._record)
        except Exception as error:
            raise self._failed(error) from error
        self._started = True
        if isinstance(made, AsyncIterator):
            self._pump = _Pump(made)
        elif isinstance(made, Iterator):
            self._iterator = made
        else:
            raise ConfigurationError(
                "PEN0225",
                f"{self._name} returned {type(made).__name__}, which is no iterator. Write it with yield, or "
                "return iter(...).",
            )

    def _failed(self, error: Exception) -> FunctionError:
        return FunctionError(
            "PEN0224",
            f"The generator {self._name}, started at record {self._started_at}, raised {type(error).__name__}: "
            f"{error}. Correct it and start again: it is asked for the same record again.",
        )


class _Pump:
    """Runs an asynchronous iterator ahead of its reader, so that records are not awaited one by one."""

    _RECORDS_MAX = 1_000
    """A batch of the task core takes no more."""

    def __init__(self, source: AsyncIterator[Any]) -> None:
        self._source = source
        self._buffer: deque[Any] = deque()
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._space = asyncio.Event()

    def take_nowait(self, records_max: int) -> tuple[list[Any], bool]:
        """What has arrived, and whether nothing more will."""
        buffer = self._buffer
        records = [buffer.popleft() for _ in range(min(records_max, len(buffer)))]
        done = not buffer and self._task is not None and self._task.done()
        if done and self._task is not None and (error := self._task.exception()) is not None:
            done = False  # `wait_ready` raises it, after the records before it were taken.
            del error
        if not buffer and not done:
            self._ready.clear()
        self._space.set()
        return records, done

    async def wait_ready(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(lambda _: self._ready.set())
        if not self._buffer and self._task.done():
            await self._task
            return
        await self._ready.wait()
        if not self._buffer and self._task.done():
            await self._task

    async def _run(self) -> None:
        async for record in self._source:
            self._buffer.append(record)
            self._ready.set()
            if len(self._buffer) >= self._RECORDS_MAX:
                self._space.clear()
                await self._space.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._task
        if (aclose := getattr(self._source, "aclose", None)) is not None:
            await aclose()


# Memory.


class MemoryReader:
    """Reads a `MemoryIngress`. Its position is the number of the next record."""

    def __init__(self, spec: MemoryIngress) -> None:
        self._spec = spec
        self._record = 0
        self._changed = asyncio.Event()
        spec.listeners.append(self._changed.set)

    def seek(self, position: Position | None) -> None:
        assert position is None or isinstance(position, int), position
        self._record = position or 0

    def read(self, records_max: int) -> Chunk | None:
        assert records_max > 0, records_max
        self._changed.clear()
        first = self._record
        records = self._spec.records[first : first + records_max]
        self._record += len(records)
        done = self._spec.finished and self._record == len(self._spec.records)
        return Chunk(first, records, self._record, done) if records or done else None

    async def wait_ready(self) -> None:
        if self._record == len(self._spec.records) and not self._spec.finished:
            await self._changed.wait()

    def locate(self, record: int) -> str:
        return f"memory record {record + 1}"

    def progress(self) -> None:
        """More may be fed at any time."""

    async def close(self) -> None:
        with suppress(ValueError):
            self._spec.listeners.remove(self._changed.set)


# A limit on the rate.

_ROUNDING = 1e-9
"""Sums of small fractions fall a little short: without this, a wait of no measurable length could follow another."""


class ThrottledReader:
    """Gives the records of another reader at no more than `rate` a second, evenly."""

    _BURST_S = 0.05
    """A loop that is late by as much catches up; after a longer stop the rest of the time is lost."""

    def __init__(
        self,
        reader: Reader,
        rate: float,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._reader = reader
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._allowed_max = max(1.0, rate * self._BURST_S)
        self._allowed = 1.0
        self._updated = clock()

    def seek(self, position: Position | None) -> None:
        self._reader.seek(position)

    def read(self, records_max: int) -> Chunk | None:
        now = self._clock()
        self._allowed = min(self._allowed_max, self._allowed + max(0.0, now - self._updated) * self._rate)
        self._updated = now
        whole = int(self._allowed + _ROUNDING)
        if whole < 1:
            return None
        chunk = self._reader.read(min(records_max, whole))
        if chunk is not None:
            self._allowed -= len(chunk.records)
        return chunk

    async def wait_ready(self) -> None:
        missing = 1 - self._allowed - (self._clock() - self._updated) * self._rate
        if missing > 0:
            await self._sleep(missing / self._rate)
        await self._reader.wait_ready()

    def locate(self, record: int) -> str:
        return self._reader.locate(record)

    def progress(self) -> Progress | None:
        return self._reader.progress()

    async def close(self) -> None:
        await self._reader.close()
