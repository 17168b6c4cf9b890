"""Where a store keeps its bytes: named blobs, each written once as a whole.

What always holds: a blob that can be listed has its whole content, durable except for the names of a directory, which
are after `sync`; a blob is never changed, only replaced by `put_bytes` or deleted. Knows nothing of bases: which blob
means what, and which may go, is decided by `store`. Here is a directory; `object_store` has the buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from penstock.errors import Unavailable
from penstock.files import (
    copy_durably,
    fsync_directory,
    hash_file,
    link_or_copy,
    make_directory,
    storage_errors,
    write_atomically,
)


class Blob(NamedTuple):
    key: str
    size: int
    modified_s: float
    """When it was stored, by the clock of the place that stores it."""


class BlobMissing(LookupError):
    """There is no blob of this key."""


class BlobsRefused(Unavailable):
    """A person has to mend something there first; then it can be tried again."""


@dataclass(frozen=True, kw_only=True)
class BucketOptions:
    """How a bucket is reached. Credentials, and what is not here, come from the environment, as each service names it:
    `AWS_*`, `GOOGLE_*`, `AZURE_STORAGE_*`."""

    endpoint: str | None = None
    """Of a service of one's own, such as MinIO."""
    region: str | None = None
    path_style: bool = True
    """Whether S3 has the bucket in the path. If not, the endpoint has it in the name of its host."""
    allow_http: bool = False
    """Whether an endpoint without TLS will do."""
    transfers_max: int = 4
    """So many files are carried at once."""
    timeout_s: float = 20.0
    """Of one attempt of one request."""
    retry_s: float = 30.0
    """How long a request is repeated that fails for reasons which may pass."""


class Blobs(Protocol):
    """All methods block. Those that reach outside raise Unavailable, within bounded time, and BlobMissing."""

    transfers_max: int
    """So many files are carried at once, at most."""

    def place(self, key: str) -> str:
        """Where a person finds it."""

    def put_file(self, key: str, source: Path) -> str:
        """Store a file that nobody changes, and return the hash of what was carried; "" when it is not known."""

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store a few bytes, durably with their name, also in the place of others."""

    def sync(self) -> None:
        """Make the names of all files durable that were put."""

    def get_file(self, key: str, target: Path) -> str:
        """Make `target`, and return the hash of what was carried; "" when it only became a name of what is stored."""

    def get_bytes(self, key: str) -> bytes: ...

    def hash(self, key: str) -> str:
        """Of the content, read anew."""

    def list(self, folder: str) -> list[Blob]:
        """Everything whose key begins with `folder` and a slash."""

    def folders(self) -> Sequence[str]:
        """The first parts of the keys that have more than one."""

    def delete(self, keys: Iterable[str]) -> None:
        """Also those that are gone already."""

    def tidy(self) -> None:
        """Remove what is left of folders in which nothing is, and of the place itself."""


class DirectoryBlobs:
    """Blobs as files below a directory, which share their bytes with what is got, where they can, and, if `linking`,
    with what was put: that takes neither time nor space, but a disk that loses one of them has lost both."""

    transfers_max = 1
    """Links cost nothing, and copies would compete for one disk."""

    def __init__(self, directory: Path, *, linking: bool = True) -> None:
        self._directory = directory
        self._linking = linking
        if not linking:
            self.transfers_max = 2  # One is read and hashed while the disk makes the other durable.

    def place(self, key: str) -> str:
        return str(self._directory / key)

    def put_file(self, key: str, source: Path) -> str:
        if not self._linking:
            return copy_durably(source, self._path(key))
        link_or_copy(source, self._path(key))
        return ""

    def put_bytes(self, key: str, data: bytes) -> None:
        write_atomically(self._path(key), data)

    def sync(self) -> None:
        with storage_errors(self._directory, "syncing it"):
            for folder in self._directory.glob("*"):
                fsync_directory(folder)

    def get_file(self, key: str, target: Path) -> str:
        path = self._directory / key
        if not path.exists():
            raise BlobMissing(key)
        link_or_copy(path, target, durable=False)
        return ""

    def get_bytes(self, key: str) -> bytes:
        with _reading(self._directory / key, key) as path:
            return path.read_bytes()

    def hash(self, key: str) -> str:
        with _reading(self._directory / key, key) as path:
            return hash_file(path)

    def list(self, folder: str) -> list[Blob]:
        path = self._directory / folder
        if not path.is_dir():
            return []
        return [blob for each in path.iterdir() if (blob := _blob(folder, each)) is not None]

    def folders(self) -> Sequence[str]:
        return sorted(each.name for each in self._directory.iterdir() if each.is_dir()) if self._exists else []

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._directory / key
            with storage_errors(path, "deleting it"):
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        for path in (*(self._directory / folder for folder in self.folders()), self._directory):
            with suppress(OSError):  # There is something in it.
                path.rmdir()

    @property
    def _exists(self) -> bool:
        return self._directory.is_dir()

    def _path(self, key: str) -> Path:
        path = self._directory / key
        make_directory(path.parent)
        return path


@contextmanager
def _reading(path: Path, key: str) -> Iterator[Path]:
    with storage_errors(path, "reading it"):
        try:
            yield path
        except FileNotFoundError:
            raise BlobMissing(key) from None


def _blob(folder: str, path: Path) -> Blob | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None  # Deleted or renamed since the directory was read.
    # A link has the time at which its content was written, which may be hours ago; making it changed the other one.
    return Blob(f"{folder}/{path.name}", status.st_size, max(status.st_mtime, status.st_ctime))
