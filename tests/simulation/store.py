"""The store of bases of simulated worlds: the real one, on bytes in memory that can be damaged.

What is real: lists and their checksums, the hashes that files are compared with, what is collected and when. What
stands in: the files of a base, which are one here that holds all rows, and the threads that carry them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from penstock.checkpoint.blobs import Blob, BlobMissing
from penstock.checkpoint.store import BaseStore, Progress, StoredFile
from penstock.files import checked
from penstock.state.memory import MemoryBackend
from tests.simulation.dice import Dice

Rows = list[tuple[bytes, bytes]]

_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Rows] = msgspec.msgpack.Decoder(Rows).decode


def damage_bytes(dice: Dice, data: bytes) -> bytes | None:
    """What a broken disk makes of a file: another bit, less than there was, or nothing at all."""
    kind = dice.below(4)
    if kind == 0:
        return None
    if not data:
        return b"?"
    at = dice.below(len(data))
    if kind == 1:
        return data[:at]
    return data[:at] + bytes((data[at] ^ 1 << dice.below(8),)) + data[at + 1 :]


class Stored(NamedTuple):
    data: bytes
    at_s: float


class SimulatedBlobs:
    """Implements `penstock.checkpoint.blobs.Blobs`."""

    transfers_max = 1

    def __init__(self, name: str, now_ms: Callable[[], float]) -> None:
        self._name = name
        self._now_ms = now_ms
        self._stored: dict[str, Stored] = {}

    def place(self, key: str) -> str:
        return f"{self._name}/{key}"

    def put_file(self, key: str, source: Path) -> str:
        raise AssertionError("a simulated store gets rows")

    def get_file(self, key: str, target: Path) -> str:
        raise AssertionError("a simulated store gives rows")

    def put_bytes(self, key: str, data: bytes) -> None:
        self._stored[key] = Stored(data, self._now_ms() / 1000)

    def sync(self) -> None:
        pass

    def get_bytes(self, key: str) -> bytes:
        found = self._stored.get(key)
        if found is None:
            raise BlobMissing(key)
        return found.data

    def hash(self, key: str) -> str:
        return hashlib.sha256(self.get_bytes(key)).hexdigest()

    def list(self, folder: str) -> list[Blob]:
        prefix = f"{folder}/"
        return [
            Blob(key, len(data), stored_s) for key, (data, stored_s) in self._stored.items() if key.startswith(prefix)
        ]

    def folders(self) -> Sequence[str]:
        return sorted({key.partition("/")[0] for key in self._stored if "/" in key})

    def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self._stored.pop(key, None)

    def tidy(self) -> None:
        pass

    # What only simulated ones can do.

    def damage(self, key: str, dice: Dice) -> Stored:
        """Returns what it was."""
        stored = self._stored.get(key, Stored(b"", 0.0))
        harmed = damage_bytes(dice, stored.data)
        if harmed is None:
            self._stored.pop(key, None)
        else:
            self._stored[key] = stored._replace(data=harmed)
        return stored

    def restore(self, backup: Mapping[str, Stored]) -> None:
        self._stored.update(backup)


class SimulatedStore(BaseStore):
    """See the module."""

    def __init__(self, blobs: SimulatedBlobs) -> None:
        super().__init__(blobs)
        self.blobs = blobs

    def put_rows(self, name: str, rows: Rows) -> None:
        """As `put`, of what a task holds."""
        content = _encode(rows)
        file = StoredFile("rows", hashlib.sha256(content).hexdigest(), len(content), f"rows-{name}")
        self.blobs.put_bytes(file.key, content)
        self.blobs.put_bytes(f"bases/{name}", checked(_encode([file])))

    def rows(self, name: str) -> Rows:
        """What `fetch` brings. Its content is not compared with anything."""
        (file,) = self.files(name)
        return _decode(self.blobs.get_bytes(file.key))

    def open(self, name: str) -> MemoryBackend:
        """A store of its own with the content of the base `name`; empty for the name ""."""
        backend = MemoryBackend()
        if name:
            backend.write(self.rows(name))
        return backend

    def open_compared(self, name: str) -> MemoryBackend:
        """The same, of files whose hashes are compared on their way."""
        if name:
            self.verify(name)
        return self.open(name)

    def keys_of(self, name: str) -> list[str]:
        """The blobs that a base consists of."""
        return [f"bases/{name}", *(file.key for file in self.files(name))]

    def fetch(self, name: str, target: Path, *, progress: Progress | None = None, compared: bool = False) -> None:
        """Bring one near; nothing here is far."""
        self.verify(name)

    def _carry(
        self, carry: Callable[[_T], int], items: Sequence[_T], bytes_total: int, progress: Progress | None
    ) -> None:
        for item in items:
            carry(item)
