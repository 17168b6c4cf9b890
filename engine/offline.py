"""Reads the directory of an application without running it: its checkpoints, and the state in any of them.

What always holds: nothing below the directory changes. The log is read as it lies, also while its owner appends to it;
a checkpoint is restored into a scratch directory of links, which is removed again. State is that of a checkpoint: what
happened after it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from penstock.checkpoint.blobs import DirectoryBlobs
from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.recovery import History
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import Source, sent_before
from penstock.checkpoint.sinks import Staged
from penstock.checkpoint.store import BaseStore
from penstock.engine.calls import list_calls, show_call
from penstock.engine.data import close_stores, open_base, restore_newest, restore_parts
from penstock.engine.effects import Rejected
from penstock.engine.feeds import READ_BYTES, RequestFeed
from penstock.engine.journal import Journal
from penstock.engine.restore import DeltaSource, Restored, restore_task, rows_of
from penstock.engine.views import (
    View,
    count_letters,
    not_retained,
    show_checkpoint,
    summarize_checkpoint,
    summarize_letter,
    task_view,
)
from penstock.errors import CorruptSnapshot, InvalidInput
from penstock.functions.app import App
from penstock.functions.describing import describe_functions
from penstock.ids import Address, Offset
from penstock.records import Envelope, EpochFrame, Frozen
from penstock.router.embedded import EmbeddedLog
from penstock.router.frames import decode_frames
from penstock.router.requests import decode_request
from penstock.state.backend import Backend
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay
from penstock.state.rocksdb import RocksMemory

MEMORY_BYTES: Final = 64 << 20
CACHE_BYTES: Final = 16 << 20
READ_RECORDS: Final = 10_000
OF_WORKERS: Final = ("tasks", "cache", "store", "worker-0")
"""What a worker on Kafka has in its directory, or a supervisor."""


class DeltaRecords(DeltaSource, Protocol):
    """Deltas that can also be had as they were written."""

    def records_of_delta(self, offset: int) -> list[bytes]:
        """The delta whose first record stands at `offset`. Raises CorruptSnapshot."""
        ...


class Checkpoints(Protocol):
    """The checkpoints of an application, read by somebody who takes no part in it."""

    path: Path
    """Where scratch files may lie."""
    place: str
    """For people."""
    history: History
    store: BaseStore

    def manifest(self, retained: Retained) -> Manifest:
        """Raises CorruptSnapshot when it can't be read."""
        ...

    def deltas(self, part: Part) -> DeltaRecords:
        """The deltas of a task of one of them."""
        ...

    def waiting_frames(self, part: Part) -> Iterator[EpochFrame]:
        """What a task of one of them had not admitted of the frames before its cut, and perhaps later ones."""
        ...

    def waiting_requests(self, part: Part) -> Iterator[Envelope]:
        """Requests that a task of one of them had not taken, and that are durable now."""
        ...

    def retained(self, number: int) -> Retained:
        """Raises InvalidInput when there is no such checkpoint."""
        found = self.history.checkpoints.get(number)
        if found is None:
            raise not_retained(number, list(self.history.checkpoints))
        return found

    def newest(self) -> Retained | None:
        """What the next start would restore."""
        return next(self.history.candidates(), None)

    def source(self, part: Part, manifest: Manifest, committed: Mapping[str, int]) -> Source:
        """What a savepoint copies of a task. Frames and requests are those that are durable now."""
        deltas = self.deltas(part)
        chain = deltas.chain(part.head, part.first)
        return Source(
            ((offset, record) for offset in chain for record in deltas.records_of_delta(offset)),
            sent_before(manifest, self.waiting_frames(part)),
            self.waiting_requests(part),
            committed,
        )


class Recorded(Checkpoints, Protocol):
    """Checkpoints, and all that tasks took and sent between them."""

    dead_egress: str = ""
    """The egress that gets a copy of every dead letter; empty where none does."""
    moved: Collection[tuple[int, int, int]] = frozenset()
    """Attempt, task and checkpoint, where another process took the task over at its cut, in the middle of the
    attempt."""

    def frames(self, task: int, start: int) -> Iterator[EpochFrame]:
        """What stands in the inbox of a task from `start` on."""
        ...

    def requests(self, task: int, start: object) -> Iterator[tuple[int, Envelope | Rejected | None]]:
        """What stands with the requests for a task behind the position `start`, or from the first on, with the offset
        of each; None for what is neither a request nor worth a dead letter."""
        ...

    def foreign(self, task: int, offset: int) -> Rejected:
        """The record at this offset of the inbox of a task, which is no frame. There are none where nobody else can
        write."""
        raise AssertionError(f"inbox {task} belongs to the tasks of one process")

    def as_frozen(self, frozen: Frozen) -> Frozen:
        """What a task froze, of what its delta holds."""
        return frozen


class Directory(Recorded):
    """The data directory of an application: what its log says, as `Recorded`. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidInput when no application has ever run there."""
        if not (path / "log").is_dir() and any((path / part).is_dir() for part in OF_WORKERS):
            raise InvalidInput(
                "PEN0622",
                f"{path} is of an application on Kafka, and no settings name its brokers. Set PENSTOCK_KAFKA, or kafka "
                "in penstock.toml, or give the --url of one of its workers.",
            )
        if not (path / "log").is_dir():
            raise InvalidInput(
                "PEN0622",
                f"{path} is no directory of an application. Give one with --dir, or start it: penstock run.",
            )
        self.path = path
        self.place = str(path)
        self.store = BaseStore(DirectoryBlobs(path / "store"))
        self._log = EmbeddedLog(path / "log", read_only=True)
        self.journal = Journal(self._log, path / "index")
        self.history: History = self.journal.read_history()
        self.damage: list[str] = self.journal.notes
        """What reading the journal found wrong, beside any checkpoint."""

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def manifest(self, retained: Retained) -> Manifest:
        return self.journal.manifest(retained)

    def deltas(self, part: Part) -> DeltaRecords:
        return self.journal

    def waiting_frames(self, part: Part) -> Iterator[EpochFrame]:
        return self.frames(part.task, part.inbox_position, part.inbox_end)

    def waiting_requests(self, part: Part) -> Iterator[Envelope]:
        position = part.ingress_positions.get(RequestFeed.SOURCE)
        return (envelope for _, envelope in self.requests(part.task, position))

    def frames(self, task: int, start: int, end: int | None = None) -> Iterator[EpochFrame]:
        """What stands in the inbox of a task from `start` on, before `end` if it is given."""
        partition = f"inbox-{task}"
        for offset, record in self._records(partition, start):
            if end is not None and offset >= end:
                return
            yield from decode_frames(record, place=f"Record {offset} of {partition}")

    def requests(self, task: int, start: object) -> Iterator[tuple[int, Envelope]]:
        """Requests for a task behind the position `start`, or all that are there, with the offset of each."""
        partition = f"requests-{task}"
        first = start if isinstance(start, int) else self._log.start(partition)
        for offset, record in self._records(partition, first):
            yield offset, decode_request(record, place=f"Record {offset} of {partition}")

    def _records(self, partition: str, start: int) -> Iterator[tuple[int, bytes]]:
        offset = Offset(start)
        while records := self._log.read(partition, offset, READ_RECORDS, READ_BYTES):
            yield from records
            offset = Offset(records[-1][0] + 1)

    def verify(self, numbers: list[int], progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        """Read everything the checkpoints need and compare checksums. One row for each, oldest first."""
        wanted = [self.retained(number) for number in sorted(numbers or self.history.checkpoints)]
        sound = _Sound(self.journal, self.store)
        rows = []
        for done, retained in enumerate(wanted, 1):
            try:
                sound.check(self.manifest(retained))
                problem = ""
            except CorruptSnapshot as error:
                problem = str(error)
            rows.append({"checkpoint": retained.checkpoint, "sound": not problem, "problem": problem})
            progress(done, len(wanted))
        return rows


class _Sound:
    """Remembers what was found sound: checkpoints share most of what they need."""

    def __init__(self, journal: Journal, store: BaseStore) -> None:
        self._journal = journal
        self._store = store
        self._bases: set[str] = set()
        self._deltas: set[int] = set()

    def check(self, manifest: Manifest) -> None:
        """Raises CorruptSnapshot for the first thing that is damaged."""
        for part in manifest.parts:
            if part.base and part.base not in self._bases:
                self._store.verify(part.base)
                self._bases.add(part.base)
            chain = set()
            offset = part.head
            while offset >= max(part.first, 0) and offset not in self._deltas:
                header, _, _ = self._journal.delta(offset)
                chain.add(offset)
                offset = header.previous
            self._deltas |= chain


class StoppedCheckpoints:
    """What `found` tells of them, as a running application would."""

    def __init__(self, found: Checkpoints) -> None:
        self._found = found

    def checkpoints(self) -> list[dict[str, Any]]:
        return [summarize_checkpoint(retained) for retained in self._found.history.checkpoints.values()]

    def checkpoint(self, number: int) -> dict[str, Any]:
        retained = self._found.retained(number)
        return show_checkpoint(retained, self._found.manifest(retained))


class StoppedApplication:
    """The state of `app` in one checkpoint of a directory. Made by `open_stopped`."""

    def __init__(self, app: App, view: View, checkpoint: int) -> None:
        self.app = app
        self.view = view
        self.checkpoint = checkpoint
        """0 when nothing was ever complete."""

    def functions(self) -> list[dict[str, Any]]:
        return describe_functions(self.app)

    def state_ids(self, typename: str, *, prefix: str, limit: int) -> list[str]:
        return self.view.ids(typename, prefix=prefix, limit=limit)

    def state(self, typename: str, id: str) -> dict[str, Any]:
        return self.view.state(Address(typename, id))

    def letters(self, *, typename: str | None, code: str | None, limit: int) -> list[dict[str, Any]]:
        return [summarize_letter(letter) for letter in self.view.letters(typename=typename, code=code, limit=limit)]

    def letter_counts(self) -> list[dict[str, Any]]:
        return count_letters(self.view.letter_counts())

    def schedules(self, *, limit: int) -> list[dict[str, Any]]:
        return self.view.schedules(limit=limit)

    def letter(self, number: int) -> dict[str, Any]:
        return self.view.show_letter(self.view.letter(number))

    def calls(self, *, typename: str | None, parked: bool, limit: int) -> list[dict[str, Any]]:
        if typename is not None:
            self.view.check_function(typename)
        return list_calls(self.view, typename=typename, parked=parked, limit=limit)

    def held(self, typename: str, id: str) -> dict[str, Any]:
        return show_call(self.view, Address(typename, id))


@contextmanager
def open_stopped(
    app: App, directory: Checkpoints, *, checkpoint: int | None = None, note: Callable[[str], None]
) -> Iterator[StoppedApplication]:
    """Restore a checkpoint (the newest that is sound, unless one is named) to look at it. `note` gets warnings."""
    app.check()
    candidates = list(directory.history.candidates()) if checkpoint is None else [directory.retained(checkpoint)]
    with scratch_directory(directory.path) as scratch:
        restored, number = _restore_first(directory, candidates, scratch, note)
        tasks = [task_view(app, each.overlay, task=task, tasks=len(restored)) for task, each in enumerate(restored)]
        try:
            yield StoppedApplication(app, View(tasks, max(each.meta.clock_ms for each in restored)), number)
        finally:
            close_stores(restored)


def _restore_first(
    directory: Checkpoints, candidates: list[Retained], scratch: Path, note: Callable[[str], None]
) -> tuple[list[Restored], int]:
    def pass_over(damaged: Retained, error: CorruptSnapshot) -> None:
        note(f"Checkpoint {damaged.checkpoint} can't be read. {error}")
        if len(candidates) == 1:
            raise error

    def restore(manifest: Manifest) -> list[Restored]:
        return _restore(directory, manifest, scratch / str(manifest.checkpoint))

    found = restore_newest(directory.manifest, candidates, restore, pass_over)
    if found is None:
        return [Restored(Overlay(MemoryBackend()))], 0
    manifest, restored = found
    return restored, manifest.checkpoint


def _restore(directory: Checkpoints, manifest: Manifest, scratch: Path) -> list[Restored]:
    memory = RocksMemory(MEMORY_BYTES)

    def open_store(base: str) -> Backend:
        return open_base(directory.store, base, scratch / base, memory) if base else MemoryBackend()

    def restore(part: Part) -> Restored:
        return restore_task(part, directory.deltas(part), open_store, cache_bytes_max=CACHE_BYTES, progress=_no_bar)

    return restore_parts(manifest.parts, restore)


def _no_bar(done: int, total: int) -> None:
    """A look at a state is over before a bar would be seen."""


@contextmanager
def restored_checkpoint(directory: Checkpoints, number: int) -> Iterator[list[Restored]]:
    """The tasks of a checkpoint, in stores that nobody else has. Raises InvalidInput, and CorruptSnapshot."""
    manifest = directory.manifest(directory.retained(number))
    with scratch_directory(directory.path) as scratch:
        restored = _restore(directory, manifest, scratch)
        try:
            yield restored
        finally:
            close_stores(restored)


Markers = Mapping[str, Sequence[Mapping[int, int]]]
"""By egress, the marker of each task."""


def waiting_rows(directory: Checkpoints, manifest: Manifest, markers: Markers) -> dict[str, int]:
    """Rows of a checkpoint, by egress, of which neither it nor a marker knows that they are visible."""

    def missing(task: int, egress: str, batches: Sequence[Staged]) -> list[Staged]:
        marker = markers[egress][task] if egress in markers else {}
        return [batch for batch in batches if marker.get(batch.attempt, -1) < batch.checkpoint]

    with restored_checkpoint(directory, manifest.checkpoint) as restored:
        return rows_of(
            {egress: missing(task, egress, batches) for egress, batches in each.staged.items()}
            for task, each in enumerate(restored)
        )


@contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """A directory on the same file system if possible, where links cost nothing, and anywhere else if not."""
    try:
        scratch = TemporaryDirectory(prefix=".inspect-", dir=directory)
    except OSError:
        scratch = TemporaryDirectory(prefix="penstock-inspect-")
    with scratch as path:
        yield Path(path)
