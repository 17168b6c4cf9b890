"""A backend in memory: for tests, and for state that need not survive.

The same contract as the RocksDB backend, without files: only a checkpoint can be opened again. Keys are
kept in a dictionary and sorted when a scan asks for their order.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from penstock.errors import CorruptSnapshot
from penstock.files import read_bytes_checked, write_checked
from penstock.state.backend import BackendStatistics

_ROWS_NAME: Final = "rows"
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


class MemoryBackend:
    """Rows in memory. `open` begins with those of a checkpoint, or with none."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] | None = []
        """The keys in order, or None since one came or went."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Begin with the checkpoint at `path`, or with nothing if none is there. Writes stay in memory."""
        backend = cls()
        file = path / _ROWS_NAME
        if file.exists():
            backend._rows = dict(_read_rows(file))
            backend._sorted = None
        return backend

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return list(map(self._rows.get, keys))

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        batch = dict(rows)  # First, so that an iterator that fails leaves everything as it was.
        stored = self._rows
        for key, value in batch.items():
            if value is None:
                if stored.pop(key, None) is not None:
                    self._sorted = None
            else:
                if key not in stored:
                    self._sorted = None
                stored[key] = value

    def delete_range(self, start: bytes, end: bytes) -> None:
        doomed = self._keys_between(start, end)
        for key in doomed:
            del self._rows[key]
        if doomed:
            self._sorted = None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys = self._keys_between(start, end)
        if reverse:
            keys.reverse()
        return iter([(key, self._rows[key]) for key in keys])

    def flush(self) -> None:
        """Does nothing: there are no files before a checkpoint."""

    def checkpoint(self, path: Path) -> None:
        assert not path.exists(), f"a checkpoint never replaces what is there: {path}"
        path.mkdir()
        write_checked(path / _ROWS_NAME, _ENCODER.encode(list(self._rows.items())))

    def statistics(self) -> BackendStatistics:
        memory_bytes = sum(len(key) + len(value) for key, value in self._rows.items())
        return BackendStatistics(rows_estimate=len(self._rows), disk_bytes=0, memory_bytes=memory_bytes)

    def close(self) -> None:
        self._rows = {}
        self._sorted = []

    def _keys_between(self, start: bytes, end: bytes) -> list[bytes]:
        if self._sorted is None:
            self._sorted = sorted(self._rows)
        return self._sorted[bisect_left(self._sorted, start) : bisect_left(self._sorted, end)]


def restore(base: Path, target: Path) -> None:
    """Make `target`, which must not exist, a working copy of the checkpoint `base`."""
    assert not target.exists(), f"a working copy never replaces what is there: {target}"
    if not (base / _ROWS_NAME).exists():
        raise CorruptSnapshot(
            "PEN0407",
            f"The stored state {base} is damaged: its file {_ROWS_NAME!r} is missing. Use an older "
            "checkpoint; `penstock checkpoint verify` tells which are intact.",
        )
    shutil.copytree(base, target)


def _read_rows(file: Path) -> list[tuple[bytes, bytes]]:
    return _DECODER.decode(read_bytes_checked(file))
