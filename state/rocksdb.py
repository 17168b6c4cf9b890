"""The backend on disk: one RocksDB per task, the only module that knows RocksDB.

What always holds: nothing is logged ahead (the deltas are the log), so a working copy is worth nothing
after a crash and is made again from a base; all databases of a process share one bounded amount of memory;
a base is never changed, because a working copy shares with it only files that RocksDB never writes twice.
One process owns a working copy at a time, guarded by RocksDB's own lock.

The binding has edges that this module keeps from everybody else: - Errors are bare `Exception`s told apart
by their text, which begins with RocksDB's name of the kind of error. - Its Python iterators end silently at
a damaged block; only the low-level one says why it stopped. - The lower bound of an iterator is taken for
its upper bound, so a backward scan checks its end itself. - A range whose end comes before its start is
accepted, and then no flush succeeds any more. - The lock file stays held while any iterator or checkpoint
object lives, so `close` ends the scans first. - `get`, `write` and `create_checkpoint` hold the
interpreter, `flush` does not. - Opening for reading creates a missing directory and writes a file into one
that exists.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, cast
from weakref import WeakSet

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from penstock.errors import CorruptSnapshot, Fenced, PenstockError, Unavailable
from penstock.files import link_or_copy, storage_errors
from penstock.state.backend import BackendStatistics

_MIB: Final = 1 << 20

METADATA_BLOCK_BYTES: Final = 4096
"""Of a part of an index or filter: like a data block, so that all compete for the cache on equal terms."""
BLOOM_BITS_PER_KEY: Final = 10
"""One lookup in a hundred for an absent key reads a block in vain; 15 bits would make it one in a thousand,
for half as much cache again."""

BACKGROUND_JOBS: Final = 2
"""One flush beside one compaction: more would take the second core from the interpreter."""

LEVEL0_FILES_SLOWDOWN: Final = 40
LEVEL0_FILES_STOP: Final = 80
"""A stalled write holds the interpreter, and every handler with it, so these are twice RocksDB's own: a
read then tries more Bloom filters, which is slower but not a stop."""

WRITE_BUFFER_BYTES_MAX: Final = 64 * _MIB
"""The size of a flushed file: larger ones save compaction, but make the last flush before a base longer."""

_NEVER_CARRIED_OVER: Final = ("LOCK", "LOG", "rocksdict-config.json")
"""Beginnings of the names of files that belong to one open database and not to its contents."""


_Scan: TypeAlias = Generator[tuple[bytes, bytes], None, None]


class RocksMemory:
    """The memory the databases of a process share: a block cache, part of which the write buffers take."""

    def __init__(self, memory_bytes: int) -> None:
        write_buffers_bytes = memory_bytes // 4
        self.memory_bytes = memory_bytes
        self.write_buffer_bytes = min(write_buffers_bytes // 2, WRITE_BUFFER_BYTES_MAX)
        """Of one database: half, so that one can fill while another is flushed."""
        self.cache = Cache(memory_bytes)
        # Charged to the cache, so that one number bounds both. Instead of stalling it flushes early.
        self.write_buffer_manager = WriteBufferManager.new_write_buffer_manager_with_cache(
            write_buffers_bytes, False, self.cache
        )

    @property
    def used_bytes(self) -> int:
        return self.cache.get_usage()


class RocksBackend:
    """One open database. Made by `open` or `open_read_only`."""

    def __init__(self, path: Path, database: Rdict, memory: RocksMemory, *, view: Path | None = None) -> None:
        self._errors = _Errors(path)
        self._database = database
        self._memory = memory
        self._view = view
        self._get = database.get
        self._scans: WeakSet[_Scan] = WeakSet()
        self._closed = False

    @classmethod
    def open(cls, path: Path, memory: RocksMemory) -> Self:
        """Open the working copy at `path`, made by `restore`, or begin a new and empty one there."""
        with storage_errors(path, "opening"):
            path.mkdir(parents=True, exist_ok=True)
        with _Errors(path):
            database = Rdict(str(path), _options(memory))
        write_options = WriteOptions()
        # A property, whatever the stub says.
        write_options.disable_wal = True  # type: ignore[method-assign, assignment]
        database.set_write_options(write_options)
        return cls(path, database, memory)

    @classmethod
    def open_read_only(cls, path: Path, memory: RocksMemory) -> Self:
        """Open a base, or a working copy that nobody has open, for tools. Nothing in there changes."""
        if not (path / "CURRENT").exists():
            raise _damaged(path, "its file 'CURRENT' is missing")
        view = _view_of(path)
        try:
            with _Errors(path):
                database = Rdict(str(view), _options(memory), access_type=AccessType.read_only(False))
        except PenstockError:
            shutil.rmtree(view, ignore_errors=True)
            raise
        return cls(path, database, memory, view=view)

    def get(self, key: bytes) -> bytes | None:
        with self._errors:
            return cast("bytes | None", self._get(key))

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        with self._errors:
            # The stub wants a list of all types of key at once.
            return cast("list[bytes | None]", self._get(cast("list[Any]", keys)))

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in rows:
            if value is None:
                delete(key)
            else:
                put(key, value)
        with self._errors:
            self._database.write(batch)

    def delete_range(self, start: bytes, end: bytes) -> None:
        if start >= end:
            return
        with self._errors:
            self._database.delete_range(start, end)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return iter(())
        with self._errors:
            rows = self._database.iter(ReadOptions())  # It sees what is written now, whenever it is moved.
            scan = self._backward(rows, start, end) if reverse else self._forward(rows, start, end)
        self._scans.add(scan)
        return scan

    def flush(self) -> None:
        with self._errors:
            self._database.flush()

    def checkpoint(self, path: Path) -> None:
        assert not path.exists(), f"a checkpoint never replaces what is there: {path}"
        assert path.parent.is_dir(), f"nowhere to put a checkpoint: {path}"
        with self._errors:
            Checkpoint(self._database).create_checkpoint(str(path))
        for file in path.iterdir():
            if file.name.startswith(_NEVER_CARRIED_OVER):
                file.unlink()

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(
            rows_estimate=self._property("rocksdb.estimate-num-keys"),
            disk_bytes=self._property("rocksdb.total-sst-files-size"),
            memory_bytes=self._memory.used_bytes,
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for scan in list(self._scans):
            # Since Python 3.12 `close` leaves one that nobody has begun what it refers to: the rows, and so the lock.
            with suppress(GeneratorExit):
                scan.throw(GeneratorExit)
        # It flushes once more, in vain on a full disk; nobody needs what this would have stored.
        with suppress(PenstockError), self._errors:
            self._database.close()
        # The lock is released with the last reference, and the bound method is one.
        del self._get, self._database
        if self._view is not None:
            shutil.rmtree(self._view, ignore_errors=True)

    # The bounds of a scan are compared here, and not given to RocksDB: `set_iterate_upper_bound` keeps a pointer to
    # bytes that Python may have freed, and a scan then ends wherever that memory says.

    def _forward(self, rows: RdictIter, start: bytes, end: bytes) -> _Scan:
        with self._errors:
            valid, key, value, step = rows.valid, rows.key, rows.value, rows.next
            rows.seek(start)
            while valid():
                found: bytes = key()
                if found >= end:
                    return
                yield found, value()
                step()
            rows.status()

    def _backward(self, rows: RdictIter, start: bytes, end: bytes) -> _Scan:
        with self._errors:
            rows.seek_for_prev(end)
            while rows.valid():
                found: bytes = rows.key()
                if found < start:
                    return
                if found < end:
                    yield found, rows.value()
                rows.prev()
            rows.status()

    def _property(self, name: str) -> int:
        with self._errors:
            return self._database.property_int_value(name) or 0


def restore(base: Path, target: Path) -> None:
    """Make `target`, which must not exist, a working copy of the checkpoint `base`. A crash leaves it absent.

    Table files are linked, since nobody ever writes to one again; the few small files that say which of them
    count are copied, because RocksDB goes on writing to those.
    """
    assert not target.exists(), f"a working copy never replaces what is there: {target}"
    if not (base / "CURRENT").exists():
        raise _damaged(base, "its file 'CURRENT' is missing")
    unfinished = target.with_name(f".{target.name}.unfinished")
    with storage_errors(target, "restoring"):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        for file in _contents(base):
            if file.suffix == ".sst":
                link_or_copy(file, unfinished / file.name)
            else:
                shutil.copyfile(file, unfinished / file.name)
        unfinished.rename(target)


def _view_of(path: Path) -> Path:
    """A temporary directory of links to the contents: what RocksDB writes on opening lands beside them."""
    view = Path(tempfile.mkdtemp(prefix="penstock-read-"))
    for file in _contents(path):
        (view / file.name).symlink_to(file.resolve())
    return view


def _contents(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if not file.name.startswith(_NEVER_CARRIED_OVER)]


def _options(memory: RocksMemory) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_atomic_flush(True)

    options.set_write_buffer_manager(memory.write_buffer_manager)
    options.set_write_buffer_size(memory.write_buffer_bytes)
    options.set_max_write_buffer_number(4)
    options.set_block_based_table_factory(_table_options(memory))
    options.set_compression_type(DBCompressionType.lz4())

    options.set_max_background_jobs(BACKGROUND_JOBS)
    options.set_level_zero_slowdown_writes_trigger(LEVEL0_FILES_SLOWDOWN)
    options.set_level_zero_stop_writes_trigger(LEVEL0_FILES_STOP)

    # RocksDB's own text log: two short ones show what happened, and its statistics nobody reads.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _table_options(memory: RocksMemory) -> BlockBasedOptions:
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    # Otherwise the filters and indexes of all files are held beside the cache, and nothing bounds them.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    # In parts: the index of a file is one block otherwise, which outgrows its share of the cache when the data compress
    # well, and is then read anew for every look-up (0.9 ms instead of 10 us, measured with a million values of 1 KB).
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(METADATA_BLOCK_BYTES)
    return table


class _Errors:
    """Raises the error of ours that a bare `Exception` of the binding means. Others are mistakes and pass."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise _translated(str(error), self._path) from None


def _translated(text: str, path: Path) -> PenstockError:
    """`text` is in the message, so the error it came from need not be chained."""
    # A file that is not there is one that the others count on: a path of ours is checked before RocksDB sees it.
    if text.startswith(("Corruption:", "IO error: No such file or directory")):
        return _damaged(path, text)
    if "lock hold by current process" in text or "While lock file" in text:
        return Fenced(
            "PEN0601",
            f"The working copy {path} is in use by this or another process ({text}). "
            "Stop the other, or choose another directory with --dir.",
        )
    if any(sign in text for sign in _NO_SPACE):
        return Unavailable(
            "PEN0405",
            f"There is no space left for the state in {path} ({text}). Nothing was lost: what is not yet in "
            "a base is in the deltas. Free space there, then start again.",
        )
    return Unavailable(
        "PEN0422",
        f"The state in {path} cannot be read or written ({text}). Nothing was lost: what is not yet in a "
        "base is in the deltas. Check the disk and the permissions, then start again.",
    )


_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded", "File too large")


def _damaged(path: Path, why: str) -> CorruptSnapshot:
    return CorruptSnapshot(
        "PEN0407",
        f"The stored state {path} is damaged: {why}. Use an older checkpoint; "
        "`penstock checkpoint verify` tells which are intact.",
    )
