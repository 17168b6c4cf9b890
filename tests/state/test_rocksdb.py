"""The RocksDB backend: the contract, then damage, a full disk, the lock, and reading without a trace."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.errors import CorruptSnapshot, Fenced, PenstockError
from penstock.state import rocksdb
from penstock.state.rocksdb import RocksBackend, RocksMemory
from tests.state.backend_contract import LAST, BackendContract, contents

MEMORY = RocksMemory(16 << 20)
ROWS = [(b"%06d" % i, b"value of %d, " % i * 8) for i in range(20_000)]


class TestRocksBackend(BackendContract):
    def open(self, path: Path) -> RocksBackend:
        return RocksBackend.open(path, MEMORY)

    def restore(self, base: Path, target: Path) -> None:
        rocksdb.restore(base, target)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of ROWS in one table file."""
    backend = RocksBackend.open(tmp_path / "origin", MEMORY)
    backend.write(ROWS)
    backend.flush()
    backend.checkpoint(tmp_path / "base")
    backend.close()
    return tmp_path / "base"


@pytest.fixture
def working(base: Path, tmp_path: Path) -> Path:
    rocksdb.restore(base, tmp_path / "working")
    return tmp_path / "working"


def table_file(directory: Path) -> Path:
    (file,) = directory.glob("*.sst")
    return file


def flip(file: Path, at: int) -> None:
    """Change one bit, in a file of its own: the name may be one of several links."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.unlink()
    file.write_bytes(content)


# ---- durability


def test_nothing_is_logged_ahead(tmp_path: Path) -> None:
    backend = RocksBackend.open(tmp_path / "working", MEMORY)
    backend.write([(b"a", b"1")])
    backend.delete_range(b"a", b"b")

    assert [log.stat().st_size for log in (tmp_path / "working").glob("*.log")] == [0]
    backend.close()


def test_what_was_flushed_is_there_when_the_directory_is_opened_again(tmp_path: Path) -> None:
    backend = RocksBackend.open(tmp_path / "working", MEMORY)
    backend.write(ROWS)
    backend.flush()
    backend.close()

    again = RocksBackend.open(tmp_path / "working", MEMORY)

    assert list(again.scan(b"", LAST)) == ROWS
    again.close()


def test_a_flush_in_a_thread_lets_the_rest_go_on(tmp_path: Path) -> None:
    backend = RocksBackend.open(tmp_path / "working", MEMORY)
    backend.write(ROWS)
    written = list(ROWS)

    with ThreadPoolExecutor(1) as threads:
        flushed = threads.submit(backend.flush)
        while len(written) < len(ROWS) + 100 or not flushed.done():
            written.append((b"%06d" % len(written), b"beside the flush"))
            backend.write(written[-1:])
            assert backend.get(ROWS[0][0]) == ROWS[0][1]
        flushed.result()

    assert list(backend.scan(b"", LAST)) == written
    backend.close()


def test_a_base_shares_its_table_files_with_what_is_restored_from_it(base: Path, working: Path) -> None:
    assert table_file(base).samefile(table_file(working))
    assert not any((base / name).samefile(working / name) for name in contents(base) if ".sst" not in name)


def test_a_restore_that_was_interrupted_is_done_again(base: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / ".working.unfinished"
    unfinished.mkdir()
    (unfinished / "CURRENT").write_bytes(b"half")

    rocksdb.restore(base, tmp_path / "working")

    backend = RocksBackend.open(tmp_path / "working", MEMORY)
    assert backend.get(ROWS[7][0]) == ROWS[7][1]
    assert not unfinished.exists()
    backend.close()


# ---- damage


def assert_names_path_and_remedy(error: PenstockError, path: Path) -> None:
    assert str(error).startswith(f"PEN0407 The stored state {path} is damaged: ")
    assert str(error).endswith("Use an older checkpoint; `penstock checkpoint verify` tells which are intact.")


def test_a_flipped_bit_in_a_row_is_an_error_to_whoever_reads_it(working: Path) -> None:
    flip(table_file(working), table_file(working).stat().st_size // 2)
    backend = RocksBackend.open(working, MEMORY)
    keys = [key for key, _ in ROWS]

    with pytest.raises(CorruptSnapshot) as many:
        backend.get_many(keys)
    with pytest.raises(CorruptSnapshot) as one:
        [backend.get(key) for key in keys]

    for raised in (many, one):
        assert_names_path_and_remedy(raised.value, working)
    assert backend.get(keys[0]) == ROWS[0][1], "the other rows can be read"
    backend.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_that_meets_a_flipped_bit_does_not_just_end(working: Path, reverse: bool) -> None:
    flip(table_file(working), table_file(working).stat().st_size // 2)
    backend = RocksBackend.open(working, MEMORY)
    seen: list[tuple[bytes, bytes]] = []

    with pytest.raises(CorruptSnapshot) as raised:
        seen.extend(backend.scan(b"", LAST, reverse=reverse))

    assert_names_path_and_remedy(raised.value, working)
    assert 0 < len(seen) < len(ROWS)
    assert seen == (ROWS[::-1] if reverse else ROWS)[: len(seen)]
    backend.close()


def test_a_flipped_bit_in_the_index_of_a_table_file_is_noticed_on_opening(working: Path) -> None:
    flip(table_file(working), -60)

    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open(working, MEMORY)

    assert_names_path_and_remedy(raised.value, working)


def test_a_truncated_table_file_is_noticed_on_opening(working: Path) -> None:
    file = table_file(working)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1_000])

    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open(working, MEMORY)

    assert_names_path_and_remedy(raised.value, working)


def test_a_missing_table_file_is_noticed_on_opening(working: Path) -> None:
    table_file(working).unlink()

    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open(working, MEMORY)

    assert_names_path_and_remedy(raised.value, working)


@pytest.mark.parametrize("name", ["MANIFEST-*", "CURRENT"])
def test_a_damaged_list_of_files_is_noticed_on_opening(working: Path, name: str) -> None:
    (file,) = working.glob(name)
    flip(file, 10)

    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open(working, MEMORY)

    assert_names_path_and_remedy(raised.value, working)


# ---- a full disk


FILL = """
import resource, sys
from pathlib import Path
from penstock.errors import Unavailable
from penstock.state.rocksdb import RocksBackend, RocksMemory

path = Path(sys.argv[1])
backend = RocksBackend.open(path, RocksMemory(16 << 20))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
backend.write([(b"%06d" % i, b"%06d" % (i * 7919 % 1000003) * 10) for i in range(20_000)])
try:
    backend.flush()
except Unavailable as error:
    message = str(error)
try:
    backend.checkpoint(path / "base")
except Unavailable as error:
    assert str(error) == message, error
else:
    raise AssertionError("a checkpoint of rows that could not be written")
assert not (path / "base").exists()
assert backend.get(b"000007") is not None
backend.close()
print(message)
"""


def test_a_disk_that_takes_no_more_is_reported_and_the_rest_can_be_read_and_closed(tmp_path: Path) -> None:
    # A limit on the size of files, in a process of its own, is the full disk that needs no root.
    ran = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "working")], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"PEN0405 There is no space left for the state in {tmp_path / 'working'} (")
    assert ran.stdout.rstrip().endswith(
        "Nothing was lost: what is not yet in a base is in the deltas. Free space there, then start again."
    )


# ---- the lock


def test_a_working_copy_that_is_open_cannot_be_opened_again(working: Path) -> None:
    first = RocksBackend.open(working, MEMORY)

    with pytest.raises(Fenced) as raised:
        RocksBackend.open(working, MEMORY)

    assert str(raised.value).startswith(f"PEN0601 The working copy {working} is in use by this or another process")
    first.close()
    RocksBackend.open(working, MEMORY).close()


def test_a_path_that_cannot_be_a_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(PenstockError) as raised:
        RocksBackend.open(tmp_path / "file" / "working", MEMORY)

    assert str(tmp_path / "file" / "working") in str(raised.value)


# ---- reading for tools


def test_reading_a_base_leaves_no_trace_in_it(base: Path) -> None:
    before = contents(base), base.stat().st_mtime_ns, {f.name: f.stat().st_mtime_ns for f in base.iterdir()}

    reader = RocksBackend.open_read_only(base, MEMORY)

    assert list(reader.scan(b"", LAST)) == ROWS
    reader.close()
    after = contents(base), base.stat().st_mtime_ns, {f.name: f.stat().st_mtime_ns for f in base.iterdir()}
    assert after == before


def test_two_may_read_a_base_at_once(base: Path) -> None:
    readers = [RocksBackend.open_read_only(base, MEMORY) for _ in range(2)]

    assert [reader.get(ROWS[3][0]) for reader in readers] == [ROWS[3][1]] * 2
    for reader in readers:
        reader.close()


def test_reading_what_is_not_there_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open_read_only(tmp_path / "absent", MEMORY)

    assert_names_path_and_remedy(raised.value, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_reading_damaged_files_names_the_base_and_not_the_view_of_it(base: Path) -> None:
    flip(table_file(base), -60)

    with pytest.raises(CorruptSnapshot) as raised:
        RocksBackend.open_read_only(base, MEMORY)

    assert_names_path_and_remedy(raised.value, base)


# ---- memory


def test_databases_share_one_amount_of_memory(tmp_path: Path) -> None:
    memory = RocksMemory(16 << 20)
    backends = [RocksBackend.open(tmp_path / str(i), memory) for i in range(3)]
    for backend in backends:
        for _ in range(5):
            backend.write([(key, value * 10) for key, value in ROWS[:1_000]])

    # RocksDB works in the background: two readings differ by some pages.
    used = memory.used_bytes
    assert all(abs(backend.statistics().memory_bytes - used) < used // 10 for backend in backends)
    assert 0 < memory.used_bytes < 2 * memory.memory_bytes
    for backend in backends:
        backend.close()


def test_a_scan_does_not_depend_on_who_else_keeps_its_bounds(tmp_path: Path) -> None:
    """RocksDB's own upper bound points to bytes that Python frees: the scan then ended anywhere, without an error."""
    database = RocksBackend.open(tmp_path / "db", RocksMemory(64 << 20))
    database.write([(b"\xf6" + number.to_bytes(8), b"x" * 300) for number in range(1_000)])

    for reverse in (False, True):
        rows = database.scan(bytes((0xF6,)), bytes((0xF7,)), reverse=reverse)
        reused = [(0x10).to_bytes(1) for _ in range(2_000)]
        assert sum(1 for _ in rows) == 1_000
        assert len(reused) == 2_000
    database.close()
