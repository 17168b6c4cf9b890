"""What a task asks of the store that holds its rows.

A backend is an ordered map from bytes to bytes. What always holds: a batch is written whole or not at all;
keys sort as bytes do; the newest write is what is read; a checkpoint holds exactly what had been written
when it was made, and never changes afterwards. A batch is *not* durable when `write` returns: whoever needs
it again keeps it elsewhere (in the deltas) until a checkpoint that holds it has been stored. What the rows
mean is the business of `penstock.state.keys`.

Every method may raise `CorruptSnapshot` (the stored bytes are damaged) or `Unavailable` (the disk is full
or fails). After either, the working copy is of no more use: close it, and restore another from a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """What a backend holds and uses. Memory that several backends share is counted in each of them."""

    rows_estimate: int
    disk_bytes: int
    """Of the stored files; what is still in memory only is not in them."""
    memory_bytes: int


class Backend(Protocol):
    """Used by one thread, except that `flush` may run beside the rest."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order. Cheaper than one by one."""
        ...

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put all rows, and delete those whose value is None, as one batch. The last of equal keys holds."""
        ...

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Delete every row with start <= key < end. An empty range is no mistake."""
        ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The rows with start <= key < end in the order of the keys, as of now: later writes do not show."""
        ...

    def flush(self) -> None:
        """Move what is in memory into files. Blocks, but leaves the interpreter to others: use a thread."""
        ...

    def checkpoint(self, path: Path) -> None:
        """Make `path`, which must not exist, a directory that holds the present state, without copying it.

        Quick only right after `flush`: what is still in memory is written first, while nothing else can run.
        The files are not yet durable: sync them and the directory before relying on them.
        """
        ...

    def statistics(self) -> BackendStatistics: ...

    def close(self) -> None:
        """Release files and memory, and end open scans. Never raises; harmless when repeated."""
        ...
