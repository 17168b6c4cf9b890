"""Files of bases on the local disk, so that what is here already is not fetched again.

    <directory>/<sha-256>      a file, most often a link to one that a store works with

What always holds: whatever is taken from here has the hash it was asked for; it is compared each time. Nothing here is
needed: the directory may be lost, or be deleted while nobody works with it. Belongs to one process, and lies on the
file system of the directories that its files are linked into.
"""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from pathlib import Path

from penstock.files import hash_file, link_or_copy, make_directory


class FileCache:
    """See the module. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def link(self, hash: str, target: Path) -> bool:
        """Make `target` the file with this hash, if it is here."""
        path = self._directory / hash
        try:
            found = hash_file(path)
        except FileNotFoundError:
            return False
        if found != hash:
            path.unlink(missing_ok=True)  # Of a power cut, or a failing disk.
            return False
        link_or_copy(path, target, durable=False)
        return True

    def add(self, hash: str, source: Path) -> None:
        """Keep a file that nobody changes, and whose hash this is."""
        make_directory(self._directory)
        with suppress(FileExistsError):
            link_or_copy(source, self._directory / hash, durable=False)

    def trim(self, hashes: Set[str]) -> None:
        """Delete what has none of these hashes."""
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if path.name not in hashes:
                    path.unlink(missing_ok=True)
