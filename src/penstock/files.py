"""How bytes become durable on one machine, and how a directory gets one owner.

What always holds: a file named by `write_atomically`, `write_checked` or `link_or_copy` has its whole content
on the disk before it has its name; a checked file is either returned as it was written or refused; an append
file never keeps half of a failed append; a directory has at most one live owner. Knows nothing of what the
bytes mean.

The operating system tells about a lost write once, and may then forget it: the pages count as clean although
they never reached the disk. So after a failed sync nothing is retried on the same file; it is given up at the
length that was durable before.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.errors import ConfigurationError, CorruptSnapshot, Fenced, Unavailable

# --- durability ---------------------------------------------------------------------------------------------


def sync_file(descriptor: int) -> None:
    """Return when the content and the length of an open file are on the disk."""
    if sys.platform == "darwin":
        # There fsync stops at the drive's own cache, which a power cut empties.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        # The time of last modification is all that fdatasync leaves out, and nobody recovers from that.
        os.fdatasync(descriptor)


def fsync_directory(directory: Path) -> None:
    """Return when the names in `directory` are on the disk: a durable file without a name is lost."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create `directory` and what is missing above it, each durable before anything is put into it."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with storage_errors(directory, "creating it"):
        try:
            directory.mkdir(exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            if directory.is_dir():
                return  # Somebody was faster.
            raise ConfigurationError(
                "PEN0158",
                f"{directory} should be a directory, and a file is in its place. Name another one, or move the file "
                "away.",
            ) from None
        fsync_directory(directory.parent)


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Give `path` the content `data`, durably: after a crash at any moment it has the old or the new. What is
    `private` was never readable by others, not for a moment."""
    # One fixed name, so that a crash leaves at most one leftover, which the next write replaces.
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path, f"writing {len(data):,} bytes"):
        try:
            with temporary.open("wb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                sync_file(file.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def link_or_copy(source: Path, target: Path, *, durable: bool = True) -> None:
    """Give the content of `source` the second name `target`, by a hard link where the file system has them.

    The content is durable on return, unless that is not asked for. The new name is not: call `fsync_directory` once,
    after the last of many. Raises FileExistsError when `target` exists, and for a link both names are one file:
    neither may be changed.
    """
    with storage_errors(target, "linking"):
        if durable:
            with source.open("rb") as file:
                sync_file(file.fileno())
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINK_HERE:
                raise
            _copy(source, target)


_COPIED_BYTES = 1 << 20
_NO_LINK_HERE = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""Another file system, one that refuses hard links, or a file that has as many as it can."""


def copy_durably(source: Path, target: Path) -> str:
    """Make `target` a file of its own with the content of `source`, which is durable on return, and its name not yet.

    Returns the hash of what was copied. Raises FileExistsError when `target` exists.
    """
    with storage_errors(target, "copying"):
        return _copy(source, target)


def _copy(source: Path, target: Path) -> str:
    hash = hashlib.sha256()
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with source.open("rb") as reader, temporary.open("wb") as writer:
            while piece := reader.read(_COPIED_BYTES):
                hash.update(piece)
                writer.write(piece)
            writer.flush()
            sync_file(writer.fileno())
        temporary.replace(target)
        return hash.hexdigest()
    finally:
        temporary.unlink(missing_ok=True)


# --- small files with a checksum ----------------------------------------------------------------------------


def write_checked(path: Path, data: bytes) -> None:
    """As `write_atomically`, behind a line that `read_bytes_checked` compares with what it finds."""
    write_atomically(path, checked(data))


def read_bytes_checked(path: Path) -> bytes:
    """The bytes last given to `write_checked`; raises `CorruptSnapshot` if the file holds anything else."""
    return unchecked(path.read_bytes(), str(path))


def checked(data: bytes) -> bytes:
    """What a checked file holds, for one that is kept elsewhere than in a directory."""
    return _checked_line(data) + data


def unchecked(content: bytes, place: str) -> bytes:
    """The bytes given to `checked`; raises `CorruptSnapshot`, which names `place`, if `content` is anything else."""
    line, newline, data = content.partition(b"\n")
    if line + newline != _checked_line(data):
        found = _checked_line(data).decode().strip()
        expected = line[:80].decode("ascii", "backslashreplace")
        raise CorruptSnapshot(
            "PEN0404",
            f"{place} is damaged: its content is '{found}', its first line says '{expected}'. "
            "Use an older checkpoint, or restore the directory from a backup.",
        )
    return data


def _checked_line(data: bytes) -> bytes:
    """Text, so that `head -1` shows what a marker claims."""
    return b"penstock checked file 1: %d bytes, crc32 %08x\n" % (len(data), zlib.crc32(data))


# --- appending ----------------------------------------------------------------------------------------------


class AppendFile:
    """A file that only grows. It holds whole appends only: one that fails is cut off again.

    `length` counts what was appended, `durable_length` what the last `sync` made safe. When the end of the
    file can no longer be trusted (cutting failed, or a sync did), `usable` is false for good and `append`
    refuses; what is below `durable_length` stays readable. Continue in another file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.usable = True
        with storage_errors(path, "opening it"):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.length = os.fstat(self._descriptor).st_size
        self.durable_length = self.length
        """A file that a crash may have left is synced before its bytes count: call `sync` first."""

    def append(self, buffers: Sequence[bytes]) -> None:
        """Write `buffers` one after the other. On `Unavailable` the file is as before, or not `usable`."""
        assert self.usable, f"{self.path} was given up at byte {self.length}"
        size = sum(map(len, buffers))
        with storage_errors(self.path, f"appending {size:,} bytes"):
            try:
                for first in range(0, len(buffers), _BUFFERS_PER_CALL):
                    _write_fully(self._descriptor, buffers[first : first + _BUFFERS_PER_CALL])
            except OSError:
                self._cut(self.length)
                raise
        self.length += size

    def sync(self) -> None:
        """Return when all appended bytes are durable. On `Unavailable` the file is no longer `usable`."""
        assert self.usable, f"{self.path} was given up at byte {self.length}"
        with storage_errors(self.path, f"syncing {self.length - self.durable_length:,} bytes"):
            try:
                sync_file(self._descriptor)
            except OSError:
                self._cut(self.durable_length)
                # Also when cut: a second sync would report success for pages that were dropped.
                self.usable = False
                raise
        self.durable_length = self.length

    def close(self) -> None:
        """Release the descriptor. Syncs nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut(self, length: int) -> None:
        try:
            os.ftruncate(self._descriptor, length)
        except OSError:
            self.usable = False
        self.length = length


_BUFFERS_PER_CALL = 1024
"""IOV_MAX on Linux and macOS: one writev takes no more buffers."""


def _write_fully(descriptor: int, buffers: Sequence[bytes]) -> None:
    written = os.writev(descriptor, buffers)
    if written == sum(map(len, buffers)):
        return
    # A short write is rare (a signal, the last free block): joining costs nothing that matters then.
    rest = memoryview(b"".join(buffers))[written:]
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# --- errors of the disk -------------------------------------------------------------------------------------


@contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the disk refuses into `Unavailable` that names the file. FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _storage_error(error, path, doing) from error


def _storage_error(error: OSError, path: Path, doing: str) -> Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(
            "PEN0405",
            f"There is no space left on the disk of {path} while {doing}: {_free_text(path.parent)}. "
            "Nothing was lost: what was stored is unchanged, and the write can be repeated. "
            f"Free space there; until then nothing more can be stored in {path.parent}.",
        )
    return Unavailable(
        "PEN0412",
        f"Storing failed at {path} while {doing}: {os.strerror(error.errno or 0)} (error {error.errno}). "
        "What was durable is unchanged, and the write can be repeated. Check the disk and the permissions.",
    )


def _free_text(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free:,} bytes are free"
    except OSError:
        return "its free space cannot be read"


# --- looking at files ---------------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """The SHA-256 of the content, in hexadecimal: the name under which stored files are kept."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_bytes(directory: Path) -> int:
    """What the files below `directory` hold, each hard-linked file once. Files may come and go meanwhile."""
    sizes: dict[tuple[int, int], int] = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if not path.is_dir():
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


# --- one owner per directory --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a directory, as it describes itself."""

    pid: int
    command: str
    started: datetime
    url: str | None = None
    """Where it answers, once it does."""


class DirectoryLock:
    """Makes this process the owner of a directory until `release`, or until it dies in whatever way.

    The operating system holds the lock, so a crash leaves nothing to clean up. The file says whose it is, for
    people and for `read_owner`; its text alone means nothing, since a dead process cannot erase it.
    """

    def __init__(self, directory: Path, *, command: str, started: datetime) -> None:
        """Take the lock, or raise `Fenced` naming the owner. `command` is what a person would recognise."""
        make_directory(directory)
        self.directory = directory
        self.owner = Owner(os.getpid(), command, started)
        self._descriptor = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with _turnstile(directory):
                if not _try_lock(self._descriptor):
                    raise _in_use(directory, _owner_text(directory))
                self._write()
        except BaseException:
            self._close()
            raise

    def announce(self, url: str) -> None:
        """Tell other processes where this one answers."""
        self.owner = replace(self.owner, url=url)
        with _turnstile(self.directory):
            self._write()

    def release(self) -> None:
        """Let the next owner in. Harmless when repeated."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _write(self) -> None:
        # In place: a file renamed over this one would be another file, with a lock of its own.
        text = json.dumps(asdict(self.owner) | {"started": self.owner.started.isoformat()}).encode() + b"\n"
        with storage_errors(self.directory / _LOCK_NAME, f"writing {len(text)} bytes"):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


MESH_FOLDER = "mesh"
"""What a data directory has for `penstock mesh`: another owner than the directory itself, another philosophy."""
_LOCK_NAME = "LOCK"


def read_owner(directory: Path) -> Owner | None:
    """The live owner of `directory`, or None when nobody holds it."""
    try:
        descriptor = os.open(directory / _LOCK_NAME, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with _turnstile(directory):
        try:
            return None if _try_lock(descriptor) else _owner_text(directory)
        finally:
            os.close(descriptor)


@contextmanager
def _turnstile(directory: Path) -> Iterator[None]:
    """Let one process at a time try the lock or touch its text; the directory itself is what they queue at.

    To ask whether a lock is held one has to take it, and an owner that starts in that instant would be turned
    away by a mere reader, or a reader would find half a text. Both are through in microseconds.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Whether the lock was free; `descriptor` then holds it until it is closed."""
    # `flock` belongs to the open file. The POSIX kind belongs to the process, which would lose it by merely
    # closing a second descriptor, and would not notice a second lock of its own.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner_text(directory: Path) -> Owner:
    try:
        fields = json.loads((directory / _LOCK_NAME).read_bytes())
        started = datetime.fromisoformat(fields["started"])
        return Owner(fields["pid"], fields["command"], started, fields["url"])
    except (ValueError, KeyError, TypeError):
        # Somebody edited the file, or its owner found no space to announce itself in.
        raise Fenced(
            "PEN0601",
            f"{directory} is in use by a process that its file {_LOCK_NAME} does not name. "
            f"Find it with 'fuser {directory / _LOCK_NAME}' and stop it, or choose another directory with "
            "--dir.",
        ) from None


def _in_use(directory: Path, owner: Owner) -> Fenced:
    return Fenced(
        "PEN0601",
        f"{directory} is in use by process {owner.pid} ({owner.command}, started {owner.started:%H:%M}). "
        "Stop it, or choose another directory with --dir.",
    )
