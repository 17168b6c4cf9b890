"""What every backend must do. A subclass per backend says how one is opened and restored; pytest collects those."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import CorruptSnapshot
from penstock.state.backend import Backend

LAST = b"\xff" * 8

keys = st.binary(min_size=1, max_size=3).filter(lambda key: key < LAST)
batches = st.lists(st.lists(st.tuples(keys, st.none() | st.binary(max_size=4))), max_size=5)


class BackendContract:
    """Names of subclasses begin with `Test`; they implement `open` and `restore`."""

    def open(self, path: Path) -> Backend:
        raise NotImplementedError

    def restore(self, base: Path, target: Path) -> None:
        raise NotImplementedError

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        backend = self.open(tmp_path / "working")
        yield backend
        backend.close()

    def test_an_empty_one_has_nothing(self, backend: Backend) -> None:
        assert backend.get(b"a") is None
        assert backend.get_many([b"a", b"b"]) == [None, None]
        assert backend.get_many([]) == []
        assert list(backend.scan(b"", LAST)) == []

    def test_a_batch_puts_and_deletes(self, backend: Backend) -> None:
        backend.write([(b"a", b"1"), (b"b", b"2")])
        backend.write([(b"a", None), (b"c", b"3"), (b"never there", None)])

        assert backend.get_many([b"c", b"a", b"b", b"c"]) == [b"3", None, b"2", b"3"]

    def test_the_last_of_equal_keys_in_a_batch_holds(self, backend: Backend) -> None:
        backend.write([(b"a", b"1"), (b"a", None), (b"b", None), (b"b", b"2")])

        assert list(backend.scan(b"", LAST)) == [(b"b", b"2")]

    def test_an_empty_value_is_a_value(self, backend: Backend) -> None:
        backend.write([(b"a", b"")])

        assert backend.get(b"a") == b""

    def test_a_batch_whose_rows_fail_changes_nothing(self, backend: Backend) -> None:
        def rows() -> Iterator[tuple[bytes, bytes | None]]:
            yield b"a", b"1"
            raise LookupError

        with pytest.raises(LookupError):
            backend.write(rows())

        assert backend.get(b"a") is None

    def test_a_scan_takes_its_start_and_leaves_its_end(self, backend: Backend) -> None:
        backend.write([(bytes([i]), b"") for i in range(6)])

        assert [key[0] for key, _ in backend.scan(b"\x01", b"\x04")] == [1, 2, 3]
        assert [key[0] for key, _ in backend.scan(b"\x01", b"\x04", reverse=True)] == [3, 2, 1]
        assert [key[0] for key, _ in backend.scan(b"\x01\x00", b"\x04\x00")] == [2, 3, 4]
        assert [key[0] for key, _ in backend.scan(b"\x01\x00", b"\x04\x00", reverse=True)] == [4, 3, 2]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_scan_shows_the_rows_of_the_moment_it_was_asked_for(self, backend: Backend, reverse: bool) -> None:
        backend.write([(b"a", b"1"), (b"b", b"1")])
        scan = backend.scan(b"", LAST, reverse=reverse)
        backend.write([(b"a", b"2"), (b"b", None), (b"c", b"2")])

        assert sorted(scan) == [(b"a", b"1"), (b"b", b"1")]

    def test_a_scan_can_be_left_early(self, backend: Backend) -> None:
        backend.write([(bytes([i]), b"") for i in range(6)])

        assert next(backend.scan(b"\x02", LAST)) == (b"\x02", b"")
        assert next(backend.scan(b"\x02", LAST, reverse=True)) == (b"\x05", b"")

    def test_delete_range_takes_its_start_and_leaves_its_end(self, backend: Backend) -> None:
        backend.write([(bytes([i]), b"") for i in range(6)])
        backend.delete_range(b"\x01", b"\x04")

        assert [key[0] for key, _ in backend.scan(b"", LAST)] == [0, 4, 5]

    @pytest.mark.parametrize(("start", "end"), [(b"b", b"b"), (b"c", b"a")])
    def test_an_empty_range_is_harmless(self, backend: Backend, start: bytes, end: bytes) -> None:
        backend.write([(b"b", b"1")])

        backend.delete_range(start, end)

        assert list(backend.scan(start, end)) == []
        assert list(backend.scan(start, end, reverse=True)) == []
        backend.flush()
        assert backend.get(b"b") == b"1"

    def test_a_checkpoint_holds_what_was_written_before_it_and_never_changes(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        rows = [(b"%05d" % i, b"first") for i in range(5_000)]
        backend.write(rows)
        backend.flush()
        backend.checkpoint(tmp_path / "base")
        backend.write([(key, b"second") for key, _ in rows])
        backend.delete_range(b"00100", b"00200")
        backend.flush()

        self.restore(tmp_path / "base", tmp_path / "restored")
        restored = self.open(tmp_path / "restored")

        assert list(restored.scan(b"", LAST)) == rows
        assert backend.get(b"00000") == b"second"
        restored.close()

    def test_a_checkpoint_holds_what_was_not_flushed(self, backend: Backend, tmp_path: Path) -> None:
        backend.write([(b"a", b"1")])
        backend.checkpoint(tmp_path / "base")

        self.restore(tmp_path / "base", tmp_path / "restored")
        restored = self.open(tmp_path / "restored")

        assert restored.get(b"a") == b"1"
        restored.close()

    def test_a_working_copy_leaves_its_base_as_it_was(self, backend: Backend, tmp_path: Path) -> None:
        base = tmp_path / "base"
        backend.write([(b"%04d" % i, b"value") for i in range(1_000)])
        backend.flush()
        backend.checkpoint(base)
        before = contents(base)

        for name in ("one", "two"):
            self.restore(base, tmp_path / name)
            working = self.open(tmp_path / name)
            working.write([(b"%04d" % i, name.encode()) for i in range(500, 1_500)])
            working.delete_range(b"0000", b"0100")
            working.flush()
            working.checkpoint(tmp_path / f"base of {name}")
            working.close()

        assert contents(base) == before

    def test_bases_can_be_made_one_upon_the_other(self, tmp_path: Path) -> None:
        for generation in range(4):
            if generation:
                self.restore(tmp_path / f"base {generation - 1}", tmp_path / f"working {generation}")
            working = self.open(tmp_path / f"working {generation}")
            working.write([(b"%d" % generation, b"")])
            working.flush()
            working.checkpoint(tmp_path / f"base {generation}")
            assert [key for key, _ in working.scan(b"", LAST)] == [b"%d" % i for i in range(generation + 1)]
            working.close()

    def test_a_base_that_is_not_there_is_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()

        with pytest.raises(CorruptSnapshot) as raised:
            self.restore(tmp_path / "base", tmp_path / "working")

        assert f"PEN0407 The stored state {tmp_path / 'base'} is damaged: its file " in str(raised.value)
        assert not (tmp_path / "working").exists()

    def test_statistics_count_rows(self, backend: Backend) -> None:
        backend.write([(b"%d" % i, b"value") for i in range(100)])

        statistics = backend.statistics()

        assert statistics.rows_estimate == 100
        assert statistics.memory_bytes > 0

    def test_closing_ends_open_scans_and_may_be_repeated(self, tmp_path: Path) -> None:
        backend = self.open(tmp_path / "closing")
        backend.write([(b"a", b""), (b"b", b"")])
        begun, fresh = backend.scan(b"", LAST), backend.scan(b"", LAST)
        next(begun)

        backend.close()
        backend.close()

        self.open(tmp_path / "closing").close()  # Nothing holds the lock any more.
        del begun, fresh

    def test_behaves_like_a_sorted_dictionary(self, tmp_path: Path) -> None:
        names = (tmp_path / str(number) for number in itertools.count())

        @settings(max_examples=30, deadline=None)
        @given(batches=batches, start=keys, end=keys)
        def check(batches: list[list[tuple[bytes, bytes | None]]], start: bytes, end: bytes) -> None:
            backend = self.open(next(names))
            model: dict[bytes, bytes] = {}
            for batch in batches:
                backend.write(batch)
                model = {k: v for k, v in (model | dict(batch)).items() if v is not None}
            expected = sorted((k, v) for k, v in model.items() if start <= k < end)

            assert list(backend.scan(b"", LAST)) == sorted(model.items())
            assert list(backend.scan(start, end)) == expected
            assert list(backend.scan(start, end, reverse=True)) == expected[::-1]
            assert backend.get_many([start, end]) == [model.get(start), model.get(end)]
            backend.close()

        check()


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}
