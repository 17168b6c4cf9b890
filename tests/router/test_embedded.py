"""Proves the log of one machine: damage, torn writes, full disks, group commit."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import files
from penstock.errors import ConfigurationError, CorruptSnapshot, Unavailable
from penstock.ids import Offset
from penstock.router.embedded import EmbeddedLog
from penstock.router.log import Log, RecordsLost
from tests.router.log_contract import LARGE, LogContract, read_all
from tests.small_disk import small_disk

P = ParamSpec("P")
T = TypeVar("T")


class TestEmbeddedLog(LogContract):
    """With segments of 100 bytes, so that nearly every flush begins a new one."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "log"

    def open(self) -> EmbeddedLog:
        log = EmbeddedLog(self.directory, segment_bytes_max=100)
        assert log.recovered == []
        return log

    def reopen(self, log: Log) -> EmbeddedLog:
        log.close()
        return self.open()


class TestEmbeddedLogWithLongerSegments(TestEmbeddedLog):
    def open(self) -> EmbeddedLog:
        # Not the default: truncation is by whole segments, and must have some. 100 small flushes are 5 kB.
        log = EmbeddedLog(self.directory, segment_bytes_max=1000)
        assert log.recovered == []
        return log


class Manual(Executor):
    """Runs a job when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self.waiting.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def run_one(self) -> None:
        self.waiting.pop(0)()


async def turn() -> None:
    """Let every other task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def write_flushes(directory: Path, flushes: list[list[bytes]], *, segment_bytes_max: int = 1 << 20) -> None:
    log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
    for records in flushes:
        for record in records:
            log.append("a", record)
        log.flush_nowait()
    log.close()


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "a").glob("*.log"))


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def readable_prefix(log: EmbeddedLog) -> tuple[list[bytes], bool]:
    """What can be read from the start, and whether damage ended it."""
    records: list[bytes] = []
    try:
        while found := log.read("a", Offset(len(records)), 3, LARGE):
            records += [record for _, record in found]
    except CorruptSnapshot:
        return records, True
    return records, False


# --- group commit ---


def test_flushes_asked_for_during_one_share_the_next(tmp_path: Path) -> None:
    executor = Manual()
    log = EmbeddedLog(tmp_path, executor=executor)

    async def scenario() -> None:
        log.append("a", b"first")
        first = asyncio.create_task(log.flush())
        await turn()
        later = []
        for number in range(10):
            log.append("a", b"%d" % number)
            later.append(asyncio.create_task(log.flush()))
        await turn()
        assert len(executor.waiting) == 1
        executor.run_one()
        await turn()
        assert first.done()
        assert not any(task.done() for task in later)
        assert len(executor.waiting) == 1
        executor.run_one()
        await asyncio.gather(*later)
        await log.flush()

    asyncio.run(scenario())
    assert executor.waiting == []
    assert log.statistics().flushes == 2
    assert log.statistics().records == 11
    log.close()


def test_a_flush_without_anything_new_waits_for_the_one_that_runs(tmp_path: Path) -> None:
    executor = Manual()
    log = EmbeddedLog(tmp_path, executor=executor)

    async def scenario() -> None:
        log.append("a", b"x")
        both = [asyncio.create_task(log.flush()) for _ in range(2)]
        await turn()
        executor.run_one()
        await asyncio.gather(*both)

    asyncio.run(scenario())
    assert executor.waiting == []
    assert log.statistics().flushes == 1
    log.close()


def test_a_cancelled_caller_takes_nothing_from_the_others(tmp_path: Path) -> None:
    executor = Manual()
    log = EmbeddedLog(tmp_path, executor=executor)

    async def scenario() -> None:
        log.append("a", b"x")
        impatient, patient = asyncio.create_task(log.flush()), asyncio.create_task(log.flush())
        await turn()
        impatient.cancel()
        await turn()
        assert impatient.cancelled()
        executor.run_one()
        await patient

    asyncio.run(scenario())
    log.close()


def test_blocking_flush_takes_over_one_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path)

    async def scenario() -> None:
        log.append("a", b"x")
        asyncio.create_task(log.flush()).cancel()
        task = asyncio.create_task(log.flush())
        await turn()
        task.cancel()

    asyncio.run(scenario())
    log.append("a", b"y")
    log.flush_nowait()
    assert log.statistics().unflushed_records == 0
    assert read_all(log, "a") == [b"x", b"y"]
    log.close()


def test_records_appended_and_read_during_a_flush(tmp_path: Path) -> None:
    executor = Manual()
    log = EmbeddedLog(tmp_path, executor=executor)

    async def scenario() -> None:
        log.append("a", b"0")
        task = asyncio.create_task(log.flush())
        await turn()
        assert log.append("a", b"1") == 1
        assert read_all(log, "a") == [b"0", b"1"]
        executor.run_one()
        assert read_all(log, "a") == [b"0", b"1"]
        await task
        assert log.append("a", b"2") == 2
        assert read_all(log, "a") == [b"0", b"1", b"2"]

    asyncio.run(scenario())
    assert log.statistics().unflushed_records == 2
    log.close()


# --- segments ---


def test_a_flush_larger_than_a_segment_fills_several(tmp_path: Path) -> None:
    records = [os.urandom(200_000) for _ in range(20)]
    write_flushes(tmp_path, [records], segment_bytes_max=1_000_000)
    assert len(segments(tmp_path)) == 4
    log = EmbeddedLog(tmp_path)
    assert read_all(log, "a") == records
    log.close()


def test_reading_anywhere_in_a_long_segment(tmp_path: Path) -> None:
    records = [b"%d" % number * 50 for number in range(20_000)]
    write_flushes(tmp_path, [records[first : first + 100] for first in range(0, 20_000, 100)])
    log = EmbeddedLog(tmp_path)
    for offset in (19_999, 0, 10_000, 10_001, 4_321, 4_320, 15_000):
        assert log.read("a", Offset(offset), 2, LARGE)[0] == (offset, records[offset])
    assert [record for _, record in log.read("a", Offset(5_000), 15_000, LARGE)] == records[5_000:]
    log.close()


def test_truncation_deletes_files(tmp_path: Path) -> None:
    write_flushes(tmp_path, [[b"x"]] * 10, segment_bytes_max=100)
    before = len(segments(tmp_path))
    log = EmbeddedLog(tmp_path, segment_bytes_max=100)
    log.truncate("a", Offset(10))
    assert before > len(segments(tmp_path)) == 1
    assert log.end("a") == 10
    log.close()


def test_partition_names_become_harmless_directory_names(tmp_path: Path) -> None:
    names = ["..", "a/b", "A", "a", "%41", "ü", "x.inbox-0"]
    log = EmbeddedLog(tmp_path / "log")
    for name in names:
        log.append(name, name.encode())
    log.flush_nowait()
    log.close()
    (tmp_path / "log" / "lost+found").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log" / "x.inbox-0").is_dir()
    log = EmbeddedLog(tmp_path / "log")
    assert log.partitions() == sorted(names)
    assert [read_all(log, name) for name in names] == [[name.encode()] for name in names]
    log.close()


def test_reading_only_repairs_nothing(tmp_path: Path) -> None:
    write_flushes(tmp_path / "log", [[b"a"], [b"b"]])
    (segment,) = segments(tmp_path / "log")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1])
    leftover = segment.with_name(".half.tmp")
    leftover.write_bytes(b"")

    log = EmbeddedLog(tmp_path / "log", read_only=True)

    assert [record for _, record in log.read("a", Offset(0), 10, 1000)] == [b"a"]
    assert len(log.recovered) == 1
    log.close()
    assert segment.read_bytes() == whole[:-1]
    assert leftover.exists()


def test_a_segment_of_another_format_or_place_is_refused(tmp_path: Path) -> None:
    write_flushes(tmp_path, [[b"x"]])
    path = segments(tmp_path)[0]
    (tmp_path / "b").mkdir()
    moved = tmp_path / "b" / path.name
    path.rename(moved)
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedLog(tmp_path)
    assert str(caught.value) == (
        f"PEN0411 {moved} belongs to partition 'a': a file was moved or renamed. "
        "Restore the directory from a backup, or choose another with --dir."
    )


# --- damage ---

FLUSHES = [[b"one", b"two"], [b"three"], [b"four", b"five"], [b"six"]]
RECORDS = [record for flush in FLUSHES for record in flush]


@pytest.fixture(params=[150, 1 << 20], ids=["many segments", "one segment"])
def segment_bytes_max(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


def damaged_copies(
    tmp_path: Path, segment_bytes_max: int, damages: Callable[[bytes], Iterator[bytes]], *, last_only: bool
) -> Iterator[Path]:
    """Directories that hold FLUSHES, each with one file damaged in one way."""
    original = tmp_path / "original"
    write_flushes(original, FLUSHES, segment_bytes_max=segment_bytes_max)
    for path in segments(original)[-1 if last_only else 0 :]:
        for number, content in enumerate(damages(path.read_bytes())):
            copy = tmp_path / f"{path.stem}-{number}"
            shutil.copytree(original, copy)
            (copy / "a" / path.name).write_bytes(content)
            yield copy


def truncations(content: bytes) -> Iterator[bytes]:
    return (content[:length] for length in range(len(content)))


def flips(content: bytes) -> Iterator[bytes]:
    for byte in range(len(content)):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        yield bytes(flipped)


def test_any_truncation_of_the_end_gives_a_prefix_and_appending_goes_on(tmp_path: Path, segment_bytes_max: int) -> None:
    for directory in damaged_copies(tmp_path, segment_bytes_max, truncations, last_only=True):
        log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
        records, damaged = readable_prefix(log)
        assert not damaged
        assert records == RECORDS[: len(records)]
        assert log.append("a", b"new") == len(records) < len(RECORDS)
        log.flush_nowait()
        log.close()
        log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
        assert log.recovered == []
        assert read_all(log, "a") == [*records, b"new"]
        log.close()


def test_any_flipped_bit_gives_a_prefix_or_an_error_and_appending_goes_on(
    tmp_path: Path, segment_bytes_max: int
) -> None:
    for directory in damaged_copies(tmp_path, segment_bytes_max, flips, last_only=False):
        log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
        records, damaged = readable_prefix(log)
        assert records == RECORDS[: len(records)]
        # Only the last flush may look unfinished. Everything else is known to be missing.
        assert damaged or len(records) >= len(RECORDS) - len(FLUSHES[-1])
        end = log.append("a", b"new")
        assert end == (len(RECORDS) if damaged else len(records))
        log.flush_nowait()
        log.close()
        log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
        assert readable_prefix(log) == ((records, True) if damaged else ([*records, b"new"], False))
        assert log.read("a", end, 1, LARGE) == [(end, b"new")]
        log.close()


record_lists = st.lists(st.binary(max_size=40) | st.just(b"PNB1" * 30), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    flushes=st.lists(record_lists, min_size=1, max_size=6),
    segment_bytes_max=st.sampled_from([100, 400, 1 << 20]),
    hits=st.lists(st.tuples(st.integers(0), st.integers(0), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.tuples(st.integers(0), st.integers(0)),
)
def test_whatever_happens_to_the_files_no_record_is_wrong(
    flushes: list[list[bytes]],
    segment_bytes_max: int,
    hits: list[tuple[int, int, int]],
    cut: tuple[int, int] | None,
) -> None:
    expected = [record for flush in flushes for record in flush]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_flushes(directory, flushes, segment_bytes_max=segment_bytes_max)
        paths = segments(directory)
        for number, byte, value in hits:
            content = bytearray(paths[number % len(paths)].read_bytes())
            content[byte % len(content)] = value
            paths[number % len(paths)].write_bytes(content)
        if cut is not None:
            path = paths[cut[0] % len(paths)]
            os.truncate(path, cut[1] % (path.stat().st_size + 1))
        log = EmbeddedLog(directory, segment_bytes_max=segment_bytes_max)
        end = log.end("a")
        assert end <= len(expected)
        for offset in range(end):
            try:
                found = log.read("a", Offset(offset), 10, LARGE)
            except CorruptSnapshot:
                continue
            assert found == list(enumerate(expected))[offset : offset + len(found)] != []
        log.close()


LONG_FLUSH = [bytes([number]) * 200_000 for number in range(4)]
"""Several batches: what a disk may have written out of order."""


def test_a_flush_of_which_the_disk_wrote_only_the_end_is_cut_whole(tmp_path: Path) -> None:
    write_flushes(tmp_path, [[b"durable"], LONG_FLUSH])
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    hole = content.index(LONG_FLUSH[0]) + 1
    path.write_bytes(content[:hole] + b"?" * 4096 + content[hole + 4096 :])
    log = EmbeddedLog(tmp_path)
    assert readable_prefix(log) == ([b"durable"], False)
    assert len(log.recovered) == 1
    assert log.recovered[0].startswith(f"{path}: ")
    assert log.recovered[0].endswith(
        " bytes of an unfinished write are ignored. The partition ends at offset 1; what followed was never "
        "confirmed to anybody"
    )
    log.close()


def test_the_same_hole_below_a_later_flush_is_damage(tmp_path: Path) -> None:
    write_flushes(tmp_path, [[b"durable"], LONG_FLUSH, [b"later"]])
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    hole = content.index(LONG_FLUSH[1])
    path.write_bytes(content[:hole] + bytes(4096) + content[hole + 4096 :])
    log = EmbeddedLog(tmp_path)
    assert readable_prefix(log) == ([b"durable", LONG_FLUSH[0]], True)
    assert log.read("a", Offset(3), 9, LARGE) == [(3, LONG_FLUSH[2]), (4, LONG_FLUSH[3]), (5, b"later")]
    with pytest.raises(RecordsLost) as caught:
        log.read("a", Offset(2), 9, LARGE)
    assert caught.value.next_offset == 3
    start = content.index(b"PNB1", content.index(LONG_FLUSH[0]))
    stop = content.index(b"PNB1", start + 4)
    assert str(caught.value) == (
        f"PEN0406 Log partition a is damaged: bytes {start:,} to {stop:,} of {path} cannot be read; the records "
        "from offset 2 to 2 are lost. Use a checkpoint that does not need them, or restore the directory from a "
        "backup."
    )
    assert log.recovered == [caught.value.message]
    damaged = path.read_bytes()
    log.append("a", b"behind")
    log.flush_nowait()
    log.close()
    assert path.read_bytes() == damaged
    assert len(segments(tmp_path)) == 2


def test_a_missing_segment_is_noticed_when_it_is_needed(tmp_path: Path) -> None:
    write_flushes(tmp_path, FLUSHES, segment_bytes_max=50)
    paths = segments(tmp_path)
    assert len(paths) == 4
    paths[1].unlink()
    log = EmbeddedLog(tmp_path)
    assert readable_prefix(log) == ([b"one", b"two"], True)
    assert read_all(log, "a", 3) == [b"four", b"five", b"six"]
    with pytest.raises(CorruptSnapshot) as caught:
        log.read("a", Offset(2), 1, LARGE)
    assert "ends at byte" in str(caught.value)
    log.close()


def test_a_batch_inside_a_record_is_not_taken_for_one(tmp_path: Path) -> None:
    write_flushes(tmp_path / "inner", [[b"impostor"] * 3, [b"x"]])
    stolen = segments(tmp_path / "inner")[0].read_bytes()
    write_flushes(tmp_path / "outer", [[stolen], [b"later"]])
    path = segments(tmp_path / "outer")[0]
    flip(path, path.read_bytes().index(stolen))
    log = EmbeddedLog(tmp_path / "outer")
    assert readable_prefix(log) == ([], True)
    assert read_all(log, "a", 1) == [b"later"]
    log.close()


# --- disks that refuse ---


@pytest.fixture
def filling_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") as directory:
        yield directory


def test_a_full_disk_keeps_the_records_until_there_is_room(filling_disk: Path) -> None:
    log = EmbeddedLog(filling_disk / "log", segment_bytes_max=300_000)
    ballast = filling_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    records = [os.urandom(50_000) for _ in range(12)]
    for record in records[:2]:
        log.append("a", record)
    log.flush_nowait()
    for record in records[2:]:
        log.append("a", record)
    with pytest.raises(Unavailable) as caught:
        log.flush_nowait()
    assert caught.value.code == "PEN0405"
    assert read_all(log, "a") == records
    assert log.append("a", b"more") == 12
    with pytest.raises(Unavailable):
        asyncio.run(log.flush())
    ballast.unlink()
    log.flush_nowait()
    log.close()
    log = EmbeddedLog(filling_disk / "log")
    assert log.recovered == []
    assert read_all(log, "a") == [*records, b"more"]
    log.close()


def test_a_full_disk_from_the_start(filling_disk: Path) -> None:
    log = EmbeddedLog(filling_disk / "log")
    ballast = filling_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(2_000_000))
    log.append("a", b"x")
    with pytest.raises(Unavailable) as caught:
        log.flush_nowait()
    assert caught.value.code == "PEN0405"
    ballast.unlink()
    log.flush_nowait()
    assert read_all(log, "a") == [b"x"]
    log.close()


def failing(*_arguments: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("cutting_works", [True, False])
@pytest.mark.parametrize("durable", [[], [b"before"]])
def test_after_a_failed_sync_the_records_go_to_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: list[bytes], cutting_works: bool
) -> None:
    log = EmbeddedLog(tmp_path)
    if durable:
        log.append("a", durable[0])
        log.flush_nowait()
    log.append("a", b"one")
    log.append("a", b"two")
    sync = files.AppendFile.sync

    def sync_that_fails(file: files.AppendFile) -> None:
        # Not for the whole test: the file that a new segment begins as is synced, too.
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_file", failing)
            sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(files.AppendFile, "sync", sync_that_fails)
        if not cutting_works:
            patch.setattr(os, "ftruncate", failing)
        with pytest.raises(Unavailable) as caught:
            log.flush_nowait()
    assert caught.value.code == "PEN0412"
    assert read_all(log, "a") == [*durable, b"one", b"two"]
    log.append("a", b"three")
    log.flush_nowait()
    assert len(segments(tmp_path)) == 1 + len(durable)
    assert read_all(log, "a") == [*durable, b"one", b"two", b"three"]
    log.close()
    log = EmbeddedLog(tmp_path)
    assert log.recovered == []
    assert read_all(log, "a") == [*durable, b"one", b"two", b"three"]
    log.close()


def test_one_partition_that_fails_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EmbeddedLog(tmp_path)
    for name in ("a", "b"):
        log.append(name, b"1")
    log.flush_nowait()
    for name in ("a", "b"):
        log.append(name, b"2")
    append = files.AppendFile.append

    def append_unless_a(file: files.AppendFile, buffers: list[bytes]) -> None:
        if file.path.parent.name == "a":
            raise Unavailable("PEN0405", "There is no space left.")
        append(file, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(files.AppendFile, "append", append_unless_a)
        with pytest.raises(Unavailable):
            log.flush_nowait()
    assert log.statistics().unflushed_records == 1
    log.flush_nowait()
    log.close()
    log = EmbeddedLog(tmp_path)
    assert read_all(log, "a") == read_all(log, "b") == [b"1", b"2"]
    log.close()


def test_a_written_record_that_was_never_synced_is_synced_when_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flushes(tmp_path, [[b"x"]])
    synced: list[int] = []
    monkeypatch.setattr("penstock.router.embedded.sync_file", synced.append)
    EmbeddedLog(tmp_path).close()
    assert len(synced) == 1
