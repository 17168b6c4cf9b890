"""Bases in a store that all workers reach: each base a list of files, each file stored under the hash of its content.

    bases/<name>               checksummed list: file name -> size, hash, key
    files/<sha-256>-<put>      the content; <put> is of the upload that brought it
    dropped/<name>             the list of a base that nobody references any more, for one more hour

What always holds: a base that is listed has all its files, because they are durable before it is named; a stored file
is never changed; names of SST files repeat with other content, hashes do not (PROTOCOL 13).

Many put at once, and one collects meanwhile, perhaps on machines that stand still for a while. So a file is deleted no
earlier than an hour after the last list that names it could be seen; a put relies only on files that a list named when
it began, and ends, or fails, within half an hour. And no put stores a file under a key that another has used: one that
is being deleted never comes back to life.

Leaves to `blobs` how bytes are kept, and to its caller which bases are referenced.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import TypeVar

import msgspec

from penstock.checkpoint.blobs import Blob, BlobMissing, Blobs, BlobsRefused, DirectoryBlobs
from penstock.checkpoint.cache import FileCache
from penstock.checkpoint.formats import item_at, refuse_newer
from penstock.errors import ConfigurationError, CorruptSnapshot, Unavailable
from penstock.faults import fault
from penstock.files import checked, hash_file, make_directory, unchecked

UNREFERENCED_S = 3_600
"""What nobody references is deleted when it is older: a manifest that names a base may be on its way."""
PUT_S_MAX = UNREFERENCED_S // 2
"""The other half is for clocks that differ and for the transfer that was the last to begin."""
RESUME_S = UNREFERENCED_S // 3
"""A put that failed leaves files to the next. With `PUT_S_MAX` they are still younger than `UNREFERENCED_S` then."""

Progress = Callable[[int, int], None]
"""Gets bytes done and bytes in all after each file, in the thread that called. What it raises ends the whole: that is
how one who waits for a long transfer gives it up."""

T = TypeVar("T")

FORMAT = 1
"""Of lists. One of a later format begins with its number, where those of the first have a file."""


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    name: str
    hash: str
    size: int
    stored: str = ""
    """Its name below files/; the hash alone for lists that do not say."""

    @property
    def key(self) -> str:
        return f"files/{self.stored or self.hash}"


_decode = msgspec.msgpack.Decoder(list[StoredFile]).decode


class BaseStore:
    """See the module. All methods block, and may be called by several threads: call them in one."""

    def __init__(self, blobs: Blobs, *, cache: FileCache | None = None) -> None:
        self._blobs = blobs
        self._cache = cache
        self._lists: dict[Blob, list[StoredFile]] = {}
        """The lists that a look at all of them found, so that each is read once."""
        self._hashes: dict[tuple[int, int, int, int], str] = {}
        """Of files seen before, by inode, size and time of change: an SST is hashed once, not once a base."""
        self._unlisted: dict[str, tuple[StoredFile, float]] = {}
        """By hash, what was put and is in no list yet, and when. It serves the next put if this one fails."""

    def check(self) -> None:
        """Find out whether this process may write, list, read and delete there.

        Raises ConfigurationError for what a person has to mend, and Unavailable for what may pass.
        """
        key = f"checks/{secrets.token_hex(8)}"
        try:
            self._blobs.put_bytes(key, b"")
            self._blobs.list("checks")
            self._blobs.get_bytes(key)
            self._blobs.delete([key])
        except BlobsRefused as error:
            raise ConfigurationError(error.code, error.message) from error

    def put(
        self,
        name: str,
        source: Path,
        *,
        progress: Progress | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> int:
        """Store the files of the directory `source` as the base `name`. Returns the bytes that were new.

        Nobody changes the files meanwhile. On Unavailable there is no such base; a later try goes on where this ended.
        `hashes` are those that the files should have, by name: then each is read once, and not to hash it and to carry
        it. Raises CorruptSnapshot for one that has another.
        """
        deadline = monotonic() + PUT_S_MAX
        found = self._reusable()
        paths = sorted(source.iterdir())
        listed_hashes = [self._hash(path) if hashes is None else hashes[path.name] for path in paths]
        new = {hash: path for path, hash in zip(paths, listed_hashes, strict=True) if hash not in found}
        suffix = secrets.token_hex(4)

        def carry(hash: str) -> int:
            path = new[hash]
            _check_time(name, deadline)
            file = StoredFile(path.name, hash, path.stat().st_size, f"{hash}-{suffix}")
            carried = self._blobs.put_file(file.key, path)
            if hashes is not None:
                self._check_hash(name, file, carried or hash_file(path))
            fault("base.half")
            self._unlisted[hash] = file, monotonic()
            found[hash] = file
            return file.size

        self._carry(carry, list(new), sum(path.stat().st_size for path in new.values()), progress)
        self._blobs.sync()
        listed = [_renamed(found[hash], path.name) for path, hash in zip(paths, listed_hashes, strict=True)]
        _check_time(name, deadline)
        self._blobs.put_bytes(f"bases/{name}", checked(msgspec.msgpack.encode(listed)))
        for path, hash in zip(paths, listed_hashes, strict=True):
            self._unlisted.pop(hash, None)
            if self._cache is not None:
                self._cache.add(hash, path)
        return sum(found[hash].size for hash in new)

    def files(self, name: str) -> list[StoredFile]:
        """What the base consists of. Raises CorruptSnapshot when that can't be read."""
        return self._read_list(f"bases/{name}")

    def size(self, name: str) -> int:
        """Bytes of all files of the base. Raises as `files` does."""
        return sum(file.size for file in self.files(name))

    def fetch(self, name: str, target: Path, *, progress: Progress | None = None, compared: bool = False) -> None:
        """Make `target` a directory with the files of the base.

        They may be links to stored ones: open it by copying what changes. What was carried or comes from the cache has
        the hash that the base says; links are read, too, if they are to be `compared`. Raises CorruptSnapshot, and
        leaves nothing then.
        """

        def carry(file: StoredFile) -> int:
            return self._fetch_file(name, file, target, compared=compared)

        files = self.files(name)
        make_directory(target)
        try:
            self._carry(carry, files, self.size(name), progress)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def verify(self, name: str, *, progress: Progress | None = None) -> int:
        """Read every stored file of the base and compare hashes. Returns the bytes read; raises CorruptSnapshot."""

        def read(file: StoredFile) -> int:
            try:
                hash = self._blobs.hash(file.key)
            except BlobMissing:
                raise self._damaged(name, file, "is missing") from None
            self._check_hash(name, file, hash)
            return file.size

        size = self.size(name)
        self._carry(read, self.files(name), size, progress)
        return size

    def names(self) -> list[str]:
        return sorted(map(_name, self._finished("bases")))

    def collect(self, referenced: Iterable[str], before_s: float) -> int:
        """Drop the bases that are not `referenced`, and delete what a dropped one alone used, an hour later.

        One caller at a time, with the clock's time less `UNREFERENCED_S` as `before_s`: only what is older is touched,
        since a base may not be in any manifest yet. After that time `referenced` names it, also when only a task
        builds on it. Returns the number of bases dropped.
        """
        keep = set(referenced)
        dropped = [blob for blob in self._older("bases", before_s) if _name(blob) not in keep]
        for blob in dropped:
            with suppress(BlobMissing):
                self._blobs.put_bytes(f"dropped/{_name(blob)}", self._blobs.get_bytes(blob.key))
        self._blobs.delete(blob.key for blob in dropped)
        self._blobs.delete(blob.key for blob in self._older("dropped", before_s))
        self._collect_files(before_s)
        return len(dropped)

    def trim_cache(self, bases: Iterable[str]) -> None:
        """Let the cache keep the files of these bases and no others."""
        if self._cache is not None:
            self._cache.trim({file.hash for name in bases for file in self.files(name)})

    # Putting.

    def _reusable(self) -> dict[str, StoredFile]:
        """By hash, the files that need not be put again."""
        stored = {blob.key: blob.size for blob in self._blobs.list("files")}
        fresh = monotonic() - RESUME_S
        found: dict[str, StoredFile] = {}
        for hash, (file, put_at) in list(self._unlisted.items()):
            if put_at > fresh:
                found[hash] = file
            else:
                self._unlisted.pop(hash, None)
        blobs = self._finished("bases")
        self._forget_lists_but(blobs)
        for blob in blobs:
            with suppress(CorruptSnapshot):  # Whoever needs that base will learn of it.
                found.update((file.hash, file) for file in self._listed(blob))
        return {hash: file for hash, file in found.items() if stored.get(file.key) == file.size}

    def _hash(self, path: Path) -> str:
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = hash_file(path)
        return self._hashes[key]

    def _carry(
        self, carry: Callable[[T], int], items: Sequence[T], bytes_total: int, progress: Progress | None
    ) -> None:
        """Call `carry`, which returns a number of bytes, for all items, some at once. The first error ends it."""
        done = 0
        with ThreadPoolExecutor(self._blobs.transfers_max, "penstock-store") as pool:
            running = [pool.submit(carry, item) for item in items]
            try:
                for each in as_completed(running):
                    done += each.result()
                    if progress is not None:
                        progress(done, bytes_total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    # Fetching.

    def _fetch_file(self, name: str, file: StoredFile, target: Path, *, compared: bool) -> int:
        path = target / file.name
        if self._cache is not None and self._cache.link(file.hash, path):
            return file.size
        try:
            hash = self._blobs.get_file(file.key, path)
        except BlobMissing:
            raise self._damaged(name, file, "is missing") from None
        size = path.stat().st_size
        if size != file.size:
            raise self._damaged(name, file, f"has {size:,} bytes, the base says {file.size:,}")
        if hash or compared:
            self._check_hash(name, file, hash or hash_file(path))
        if hash and self._cache is not None:
            self._cache.add(hash, path)
        return size

    def _read_list(self, key: str) -> list[StoredFile]:
        place = self._blobs.place(key)
        try:
            data = self._blobs.get_bytes(key)
        except BlobMissing:
            raise CorruptSnapshot(
                "PEN0404",
                f"Base {PurePosixPath(key).name} is missing: {place} does not exist. An older checkpoint is used.",
            ) from None
        content = unchecked(data, place)
        refuse_newer(item_at(content, 0), FORMAT, f"Base {place}")
        files = _decode(content)
        for file in files:
            if file.name != PurePosixPath(file.name).name:  # It would be written elsewhere than it was meant to be.
                raise CorruptSnapshot("PEN0404", f"{place} names a file {file.name!r}. An older checkpoint is used.")
        return files

    def _check_hash(self, name: str, file: StoredFile, hash: str) -> None:
        if hash != file.hash:
            raise self._damaged(name, file, f"has hash {hash[:12]}, its name says {file.hash[:12]}")

    def _damaged(self, name: str, file: StoredFile, found: str) -> CorruptSnapshot:
        return CorruptSnapshot(
            "PEN0404",
            f"Base {name} is damaged: {file.name} ({self._blobs.place(file.key)}) {found}. Use a checkpoint with "
            "another base.",
        )

    # Collecting.

    def _collect_files(self, before_s: float) -> None:
        """Delete the files that no list names. None, while one of the lists can't be read."""
        old = [blob.key for blob in self._blobs.list("files") if blob.modified_s < before_s]
        # In this order, or a list that somebody drops meanwhile would be in neither.
        blobs = [*self._finished("bases"), *self._finished("dropped")]
        self._forget_lists_but(blobs)
        try:
            named = {file.key for blob in blobs for file in self._listed(blob)}
        except CorruptSnapshot:
            return
        self._blobs.delete(key for key in old if key not in named)

    def _older(self, folder: str, before_s: float) -> list[Blob]:
        return [blob for blob in self._finished(folder) if blob.modified_s < before_s]

    def _finished(self, folder: str) -> list[Blob]:
        """Without what a crash left of a file being written."""
        return [blob for blob in self._blobs.list(folder) if not _name(blob).startswith(".")]

    def _forget_lists_but(self, blobs: Collection[Blob]) -> None:
        for gone in set(self._lists).difference(blobs):
            self._lists.pop(gone, None)

    def _listed(self, blob: Blob) -> list[StoredFile]:
        if blob not in self._lists:
            self._lists[blob] = self._read_list(blob.key)
        return self._lists[blob]


class DirectoryStore(BaseStore):
    """The store in a directory: of one machine, or one that all machines mount."""

    def __init__(self, directory: Path, *, cache: FileCache | None = None) -> None:
        make_directory(directory)
        super().__init__(DirectoryBlobs(directory), cache=cache)


def _name(blob: Blob) -> str:
    return blob.key.rpartition("/")[2]


def _renamed(file: StoredFile, name: str) -> StoredFile:
    return StoredFile(name, file.hash, file.size, file.key.removeprefix("files/"))


def _check_time(name: str, deadline: float) -> None:
    if monotonic() > deadline:
        raise Unavailable(
            "PEN0418",
            f"Base {name} was not stored within {PUT_S_MAX // 60} minutes, so it was given up; its deltas are kept, "
            "and it is tried again. Give the store a faster connection, or more tasks smaller bases.",
        )
