"""Bases in a directory: each file stored once under the hash of its content, each base a list of names and hashes.

    <directory>/files/<sha-256>        the content
    <directory>/bases/<name>           checksummed list: file name -> hash, size

What always holds: a base that is listed has all its files, because files and their directory are made durable first; a
stored file is never changed (links to it are only read); names of SST files repeat with other content, hashes do not
(PROTOCOL 13). Deletes only what it is told nobody references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from penstock.errors import CorruptSnapshot
from penstock.files import (
    fsync_directory,
    hash_file,
    link_or_copy,
    make_directory,
    read_bytes_checked,
    storage_errors,
    write_checked,
)


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    name: str
    hash: str
    size: int


class DirectoryStore:
    """See the module. All methods block: call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self._files = directory / "files"
        self._bases = directory / "bases"
        make_directory(self._files)
        make_directory(self._bases)
        self._known: dict[tuple[int, int, int], str] = {}
        """Hashes of files seen before, by inode, size and time of change: an SST is hashed once, not once a base."""

    def put(self, name: str, source: Path) -> int:
        """Store the files of the directory `source` as the base `name`. Returns the bytes that were new."""
        listed: list[StoredFile] = []
        new_bytes = 0
        for path in sorted(source.iterdir()):
            status = path.stat()
            key = (status.st_ino, status.st_size, status.st_mtime_ns)
            digest = self._known.get(key)
            if digest is None:
                digest = self._known[key] = hash_file(path)
            target = self._files / digest
            if not target.exists():
                link_or_copy(path, target)
                new_bytes += status.st_size
            listed.append(StoredFile(path.name, digest, status.st_size))
        fsync_directory(self._files)
        write_checked(self._bases / name, msgspec.msgpack.encode(listed))
        return new_bytes

    def open(self, name: str) -> list[StoredFile]:
        """What the base consists of. Raises CorruptSnapshot when it is not there, or a file of it is missing or
        short."""
        listed = self._listed(name)
        for each in listed:
            stored = self._files / each.hash
            size = stored.stat().st_size if stored.exists() else -1
            if size != each.size:
                found = "is missing" if size < 0 else f"has {size:,} bytes, the base says {each.size:,}"
                raise CorruptSnapshot(
                    "PEN0404", f"Base {name} is damaged: {each.name} ({stored}) {found}. An older checkpoint is used."
                )
        return listed

    def fetch(self, name: str, target: Path) -> None:
        """Make `target` a directory with the files of the base. They are links: open it by copying what changes."""
        listed = self.open(name)
        with storage_errors(target, "restoring a base"):
            make_directory(target)
            for each in listed:
                link_or_copy(self._files / each.hash, target / each.name)

    def size(self, name: str) -> int:
        """Bytes of all files of the base. Raises as `open` does."""
        return sum(each.size for each in self.open(name))

    def verify(self, name: str) -> int:
        """Read every file of the base and compare hashes. Returns the bytes read; raises CorruptSnapshot."""
        total = 0
        for each in self.open(name):
            found = hash_file(self._files / each.hash)
            if found != each.hash:
                raise CorruptSnapshot(
                    "PEN0404",
                    f"Base {name} is damaged: {each.name} has hash {found[:12]}, its name says {each.hash[:12]} "
                    f"({self._files / each.hash}). Use a checkpoint with another base.",
                )
            total += each.size
        return total

    def names(self) -> list[str]:
        return sorted(path.name for path in self._bases.iterdir() if not path.name.startswith("."))

    def _listed(self, name: str) -> list[StoredFile]:
        path = self._bases / name
        if not path.exists():
            raise CorruptSnapshot(
                "PEN0404", f"Base {name} is missing: {path} does not exist. An older checkpoint is used."
            )
        return msgspec.msgpack.decode(read_bytes_checked(path), type=list[StoredFile])

    def collect(self, referenced: Iterable[str], older_than: Callable[[Path], bool]) -> int:
        """Delete the bases that are not `referenced` and the files only they used, as far as `older_than` agrees.

        Returns the number of bases deleted. A base may not be in any manifest yet: age protects it.
        """
        keep = set(referenced)
        deleted = 0
        for name in self.names():
            path = self._bases / name
            if name not in keep and older_than(path):
                path.unlink()
                deleted += 1
        if deleted:
            used = {file.hash for name in self.names() for file in self._listed(name)}
            for path in self._files.iterdir():
                if path.name not in used and older_than(path):
                    path.unlink()
        return deleted
