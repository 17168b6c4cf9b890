"""Writes rows to files so that each is there exactly once (PROTOCOL 23).

    commit: append rows to the open hidden part -> sync it -> replace the marker     <- the rows are committed here
    publish: marker says "sealed" -> rename the part to its visible name -> sync the directory

What always holds: a visible part never changes; the hidden part is at least as long as its marker says, and what
is beyond that is not committed and is cut off before anything is appended; a name is used once. Each task has its own
marker and its own parts, so tasks never wait for each other. Everything hidden is in `.penstock-PREFIX`, which has
one owner at a time. Which rows to write is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from penstock.errors import Fenced, Refused, Unavailable
from penstock.faults import fault
from penstock.files import (
    AppendFile,
    DirectoryLock,
    fsync_directory,
    make_directory,
    read_bytes_checked,
    read_owner,
    storage_errors,
    write_checked,
)
from penstock.functions.io import FileEgress
from penstock.records import EgressRow

T = TypeVar("T")


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run this in a thread. A cancelled caller waits until it has ended: the next owner of the files may come then."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(Exception):
            await running
        raise


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is committed for one task. Replaced as a whole with each commit."""

    instance: str
    """The history that attempts and checkpoints are counted in."""
    attempts: dict[int, int]
    """For each attempt the highest committed checkpoint."""
    part: str
    """The part that was committed to last."""
    length: int
    """How much of it is committed."""
    opened_ms: int
    """When its first rows were committed: the part's name, and where its age counts from."""
    sealed: bool = False
    """Whether the part is complete, and visible or about to be."""
    format: int = 1


class _Task:
    """The marker of one task as it is on the disk, and the hidden part if it is open."""

    def __init__(self, marker: _Marker | None, part: AppendFile | None) -> None:
        self.marker = marker
        self.part = part


class FileSink:
    """The sink of a `FileEgress`. All disk work is done in threads."""

    def __init__(
        self, spec: FileEgress, *, application: str, instance: str, clock: Callable[[], float], hidden: str = ""
    ) -> None:
        """`hidden` is a part of the name of what is hidden, for sinks of several processes in one directory."""
        self._spec = spec
        self._directory = Path(spec.directory)
        self._hidden = self._directory / f".penstock-{spec.prefix}{f'-{hidden}' if hidden else ''}"
        self._application = application
        self._instance = instance
        self._clock = clock
        self._lock: DirectoryLock | None = None
        self._tasks: dict[int, _Task] = {}
        """What is known of each task. A task is forgotten when an operation failed, and read again from the disk."""
        self._busy: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._hiding: dict[int, _Marker] = {}
        """The markers of parts that are committed to and not visible: what is lost when the directory is."""
        self._device = -1
        self._looking = threading.Lock()

    async def open(self) -> None:
        await _in_thread(self._open)

    async def read_marker(self, task: int) -> dict[int, int]:
        async with self._busy[task]:
            return await _in_thread(self._read_marker, task)

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        async with self._busy[task]:
            await _in_thread(self._commit, task, rows, marker)

    async def release(self, task: int, *, final: bool) -> None:
        async with self._busy[task]:
            if final:
                await _in_thread(self._publish, task)
            self._forget(task)

    async def tick(self) -> None:
        for task in list(self._tasks):
            async with self._busy[task]:
                if self._is_due(task):
                    await _in_thread(self._publish, task)

    async def close(self, final: bool) -> None:
        try:
            if final:
                if self._hiding:
                    await _in_thread(self._look)
                for task in await _in_thread(self._tasks_on_disk):
                    async with self._busy[task]:
                        await _in_thread(self._publish, task)
        finally:
            for task in list(self._tasks):
                self._forget(task)
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    # Opening: what a crash left is brought back to what the markers say.

    def _open(self) -> None:
        with storage_errors(self._directory, "opening it for output"):
            make_directory(self._hidden)
            self._lock = self._own()
            try:
                for task in self._tasks_on_disk():
                    self._load(task)
                self._remove_strays()
                fsync_directory(self._hidden)
                fsync_directory(self._directory)
                self._device = self._directory.stat().st_dev
            except BaseException:
                self._lock.release()
                self._lock = None
                raise

    # The directory while we run: somebody may remove it, or the volume it is on.

    def _look(self) -> None:
        """Raise Unavailable unless the directory is there. One that was made anew is taken, and what is lost said."""
        with self._looking:
            if self._hidden.is_dir():
                return
            hiding = ", ".join(f"{marker.length:,} bytes in {marker.part}" for marker in self._hiding.values())
            # A mount point without its volume is a directory, but not the one that was opened.
            if not self._directory.is_dir() or self._directory.stat().st_dev != self._device:
                lost = f"Rows that are committed and not visible yet are only there: {hiding}. " if hiding else ""
                raise Unavailable(
                    "PEN0530",
                    f"The output directory {self._directory} is gone: it was removed or moved, or its volume is not "
                    f"mounted. Put it back. {lost}All other rows are kept, and are written when it is back.",
                )
            self._take_anew()
            if hiding:
                raise Unavailable(
                    "PEN0531",
                    f"The output directory {self._directory} was removed and made anew, without what was committed and "
                    f"not visible yet: {hiding}. These rows are lost, unless the directory is restored from a backup "
                    "while the application is stopped. Rows after them are written now.",
                )

    def _take_anew(self) -> None:
        for task in list(self._tasks):
            self._forget(task)
        self._hiding.clear()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._open()

    def _own(self) -> DirectoryLock:
        started = datetime.fromtimestamp(self._clock(), UTC)
        try:
            return DirectoryLock(self._hidden, command=self._application, started=started)
        except Fenced as error:
            owner = read_owner(self._hidden)
            who = f"process {owner.pid} ({owner.command})" if owner else "another process"
            raise Fenced(
                "PEN0525",
                f"Parts named {self._spec.prefix}-* in {self._directory} are being written by {who}. Stop it, or "
                "give this FileEgress another directory or prefix.",
            ) from error

    def _tasks_on_disk(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("task-")) for path in self._hidden.glob("task-*.marker"))

    def _task(self, task: int) -> _Task:
        return self._tasks.get(task) or self._load(task)

    def _load(self, task: int) -> _Task:
        """Bring the part of `task` to what its marker says, and remember both."""
        marker = self._stored_marker(task)
        loaded = _Task(marker, None)
        if marker is not None:
            if not marker.sealed:
                self._hiding[task] = marker
            hidden = self._hidden / marker.part
            if marker.sealed:
                if hidden.exists():
                    self._reveal(marker)
            else:
                self._cut(hidden, marker.length)
                loaded.part = AppendFile(hidden)
            if marker.instance != self._instance:
                loaded = self._take_over(task, loaded)
        self._tasks[task] = loaded
        return loaded

    def _stored_marker(self, task: int) -> _Marker | None:
        try:
            return msgspec.json.decode(read_bytes_checked(self._marker_path(task)), type=_Marker)
        except FileNotFoundError:
            return None

    def _cut(self, hidden: Path, length: int) -> None:
        size = hidden.stat().st_size if hidden.exists() else 0
        if size < length:
            raise Refused(
                "PEN0526",
                f"{hidden} has {size:,} bytes, but {length:,} were committed to it: rows are missing. Restore "
                f"{self._directory} from a backup, or move it away to start a new output. Nothing was changed.",
            )
        if size > length:
            os.truncate(hidden, length)

    def _take_over(self, task: int, found: _Task) -> _Task:
        """Finish the part that another history left: its rows stay, its marker says nothing about ours."""
        assert found.marker is not None
        if found.part is not None:
            self._seal(task, found)
        marker = msgspec.structs.replace(found.marker, instance=self._instance, attempts={}, sealed=True)
        self._store_marker(task, marker)
        return _Task(marker, None)

    def _remove_strays(self) -> None:
        """Parts that no marker names: their first commit did not happen."""
        named = {task.marker.part for task in self._tasks.values() if task.marker is not None}
        for path in self._hidden.glob(f"{self._spec.prefix}-*"):
            if path.name not in named:
                path.unlink()

    # Committing.

    def _read_marker(self, task: int) -> dict[int, int]:
        self._look()
        with storage_errors(self._marker_path(task), "reading it"):
            # An interrupted replacement may have been seen by nobody but the cache.
            fsync_directory(self._hidden)
            marker = self._task(task).marker
        return {} if marker is None else dict(marker.attempts)

    def _commit(self, task: int, rows: Sequence[EgressRow], attempts: Mapping[int, int]) -> None:
        try:
            self._look()
            with storage_errors(self._hidden, f"committing {len(rows):,} rows"):
                self._append(task, self._task(task), rows, dict(attempts))
        except BaseException:
            self._forget(task)
            raise
        if self._is_due(task):
            # The rows are committed, whatever becomes of the name: it is tried again at the next tick.
            with suppress(Unavailable):
                self._publish(task)

    def _append(self, task: int, state: _Task, rows: Sequence[EgressRow], attempts: dict[int, int]) -> None:
        if state.part is None:
            name, opened_ms = self._new_name(task, state.marker)
            state.part = AppendFile(self._hidden / name)
            fsync_directory(self._hidden)
            if header := self._spec.part_header:
                state.part.append([header])
        else:
            assert state.marker is not None
            name, opened_ms = state.marker.part, state.marker.opened_ms
        state.part.append([row.value for row in rows])
        state.part.sync()
        fault("file.appended")
        marker = _Marker(self._instance, attempts, name, state.part.length, opened_ms)
        self._store_marker(task, marker)
        fault("file.marked")
        state.marker = marker

    def _new_name(self, task: int, last: _Marker | None) -> tuple[str, int]:
        """A name after all earlier ones of this task, and the time in it. A clock that went back is not followed."""
        opened_ms = int(self._clock() * 1000)
        if last is not None:
            opened_ms = max(opened_ms, last.opened_ms + 1)
        # Also not a hidden name: an attempt that failed may have left it, with rows that are not committed.
        while any((folder / self._part_name(task, opened_ms)).exists() for folder in (self._directory, self._hidden)):
            opened_ms += 1
        return self._part_name(task, opened_ms), opened_ms

    def _part_name(self, task: int, opened_ms: int) -> str:
        moment = datetime.fromtimestamp(opened_ms // 1000, UTC)
        stamp = f"{moment:%Y%m%dT%H%M%S}.{opened_ms % 1000:03d}Z"
        return f"{self._spec.prefix}-{stamp}-{task:03d}.{self._spec.format}"

    def _store_marker(self, task: int, marker: _Marker) -> None:
        write_checked(self._marker_path(task), msgspec.json.encode(marker))
        self._hiding[task] = marker

    def _marker_path(self, task: int) -> Path:
        return self._hidden / f"task-{task:03d}.marker"

    # Publishing.

    def _is_due(self, task: int) -> bool:
        state = self._tasks.get(task)
        if state is None or state.part is None or state.marker is None:
            return False
        age_s = self._clock() - state.marker.opened_ms / 1000
        return state.part.length >= self._spec.part_bytes_max or age_s >= self._spec.part_seconds_max

    def _publish(self, task: int) -> None:
        try:
            self._look()
            with storage_errors(self._directory, "publishing a part"):
                state = self._task(task)
                if state.part is not None:
                    self._seal(task, state)
        except BaseException:
            self._forget(task)
            raise

    def _seal(self, task: int, state: _Task) -> None:
        assert state.part is not None
        assert state.marker is not None
        marker = msgspec.structs.replace(state.marker, sealed=True)
        self._store_marker(task, marker)
        fault("file.sealed")
        state.part.close()
        state.part = None
        state.marker = marker
        self._reveal(marker)

    def _reveal(self, marker: _Marker) -> None:
        visible = self._directory / marker.part
        if visible.exists():
            raise Refused(
                "PEN0527",
                f"{visible} exists already and is not ours. Move it away, then start again: "
                f"{self._hidden / marker.part} takes its place. Nothing was overwritten.",
            )
        (self._hidden / marker.part).rename(visible)
        fault("file.renamed")
        fsync_directory(self._directory)
        self._hiding = {task: known for task, known in self._hiding.items() if known.part != marker.part}

    def _forget(self, task: int) -> None:
        state = self._tasks.pop(task, None)
        if state is not None and state.part is not None:
            state.part.close()
