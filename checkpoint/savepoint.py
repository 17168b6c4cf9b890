"""A savepoint: all that one checkpoint needs, copied to a place of its own.

    savepoint              what it is, and the hash of every chunk: written last, so there is none without it
    bases/, files/         the bases, as in any store of them
    deltas/<task>-<n>      chunks of the deltas behind each base, as they were written
    inbox/<task>-<n>       chunks of the frames that were sent before the cut and not admitted by it
    requests/<task>-<n>    chunks of what was accepted from outside and not admitted by the cut

What always holds: nothing outside the place is needed to restore it, so it outlives the log and the store it was taken
from; what it consists of never changes; each file has a hash, and one that is missing or damaged is named; rows of
egresses are visible where they belong, so that no restore writes them again. State is kept by task, as it was, and
task rows stand behind the rows of all key groups: another parallelism takes key groups as they are. Format version 1: a
field is only ever added, at the end and with a default.

Leaves to its callers where checkpoints are read from, and what a restored task is made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from penstock.checkpoint.blobs import BlobMissing, Blobs
from penstock.checkpoint.control import FORMAT as MANIFEST_FORMAT
from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.delta import DeltaHeader, decode_delta, follow, peek_header
from penstock.checkpoint.formats import item_at, refuse_newer
from penstock.checkpoint.store import BaseStore
from penstock.errors import CorruptSnapshot, InvalidInput, Refused
from penstock.files import checked, unchecked
from penstock.records import Envelope, EpochFrame, Frozen

FORMAT: Final = 1
MANIFEST: Final = "savepoint"
FOLDERS: Final = ("deltas", "inbox", "requests", "bases", "files")
CHUNK_BYTES: Final = 4 << 20
"""What is held in memory of a savepoint that is written or read, and what one damaged bit can spoil."""

Progress = Callable[[int, int], None]
"""Gets bytes done and bytes in all."""

_T = TypeVar("_T")


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One file of items."""

    key: str
    size: int
    hash: str
    """SHA-256 of the file."""
    items: int


class SavedTask(msgspec.Struct, frozen=True, array_like=True):
    """What a savepoint holds of one task beside its base."""

    task: int
    deltas: tuple[Chunk, ...]
    inbox: tuple[Chunk, ...]
    requests: tuple[Chunk, ...]
    committed: dict[str, int]
    """Egress -> newest checkpoint whose rows were visible when the savepoint was taken."""

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return (*self.deltas, *self.inbox, *self.requests)


class Savepoint(msgspec.Struct, frozen=True, array_like=True):
    """What a savepoint says of itself."""

    format: int
    manifest: Manifest
    """Of the checkpoint that was copied. Its offsets name the deltas here as they did there."""
    tasks: tuple[SavedTask, ...]
    created_ms: int
    bases_bytes: int
    version: str
    """Of the Penstock that wrote it."""

    @property
    def bytes(self) -> int:
        return self.bases_bytes + sum(chunk.size for task in self.tasks for chunk in task.chunks)

    @property
    def frames(self) -> int:
        """Frames that were under way between tasks."""
        return sum(chunk.items for task in self.tasks for chunk in task.inbox)

    @property
    def requests(self) -> int:
        """Messages from outside that were accepted and not processed."""
        return sum(chunk.items for task in self.tasks for chunk in task.requests)


class Source(msgspec.Struct, frozen=True):
    """What one task of a checkpoint is read from, in order."""

    deltas: Iterable[tuple[int, bytes]]
    """Records, each with the offset of the delta it belongs to."""
    inbox: Iterable[EpochFrame]
    requests: Iterable[Envelope]
    committed: Mapping[str, int]


_encode = msgspec.msgpack.Encoder().encode
_decode_manifest = msgspec.msgpack.Decoder(Savepoint).decode
_decode_deltas = msgspec.msgpack.Decoder(list[tuple[int, bytes]]).decode
_decode_frames = msgspec.msgpack.Decoder(list[EpochFrame]).decode
_decode_requests = msgspec.msgpack.Decoder(list[Envelope]).decode


def sent_before(manifest: Manifest, frames: Iterable[EpochFrame]) -> Iterator[EpochFrame]:
    """Those of `frames` that belong to the history of the checkpoint: sent before its cut, by no zombie, and on no
    branch that was rolled back."""
    lineage = manifest.lineage
    for frame in frames:
        if frame.attempt == lineage.attempt:
            if frame.epoch < manifest.checkpoint:
                yield frame
        elif lineage.accepts(frame.attempt, frame.epoch):
            yield frame


def not_admitted(marks: Mapping[int, tuple[int, int]], frames: Iterable[EpochFrame]) -> Iterator[EpochFrame]:
    """Those of `frames` that a task with these high-water marks has not admitted yet, each once (PROTOCOL 5)."""
    known = dict(marks)
    for frame in frames:
        stamp = (frame.attempt, frame.sequence)
        if stamp > known.get(frame.source, (0, 0)):
            known[frame.source] = stamp
            yield frame


class SavepointWriter:
    """Writes a savepoint to an empty place: bases and tasks in any order, then `finish`. All methods block."""

    def __init__(self, blobs: Blobs) -> None:
        """Raises Refused when something is there."""
        if begun(blobs):
            raise Refused(
                "PEN0431",
                f"{blobs.place(MANIFEST)} can't be written: a savepoint, or the beginning of one, is there. Name an "
                "empty place with --to, or remove that: penstock savepoint delete.",
            )
        self._blobs = blobs
        self._store = BaseStore(blobs)
        self._bases_bytes = 0
        self._tasks: dict[int, SavedTask] = {}

    def put_base(self, name: str, source: BaseStore, scratch: Path) -> None:
        """Copy the base `name` of another store, by way of the directory `scratch`, which must not exist."""
        source.fetch(name, scratch)
        hashes = {file.name: file.hash for file in source.files(name)}
        self._bases_bytes += self._store.put(name, scratch, hashes=hashes)

    def put_task(self, task: int, source: Source) -> None:
        """Copy what a checkpoint needs of a task beside its base."""
        self._tasks[task] = SavedTask(
            task,
            self._put(f"deltas/{task}", source.deltas, lambda item: len(item[1])),
            self._put(f"inbox/{task}", source.inbox, _frame_bytes),
            self._put(f"requests/{task}", source.requests, lambda envelope: len(envelope.payload)),
            dict(source.committed),
        )

    def finish(self, manifest: Manifest, *, created_ms: int, version: str) -> Savepoint:
        """Make a savepoint of what was put."""
        assert sorted(self._tasks) == [part.task for part in manifest.parts]
        tasks = tuple(self._tasks[part.task] for part in manifest.parts)
        savepoint = Savepoint(FORMAT, manifest, tasks, created_ms, self._bases_bytes, version)
        self._blobs.sync()
        self._blobs.put_bytes(MANIFEST, checked(_encode(savepoint)))
        return savepoint

    def _put(self, key: str, items: Iterable[_T], bytes_of: Callable[[_T], int]) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        held: list[_T] = []
        size = 0
        for item in items:
            held.append(item)
            size += bytes_of(item)
            if size >= CHUNK_BYTES:
                chunks.append(self._put_chunk(f"{key}-{len(chunks)}", held))
                held, size = [], 0
        if held:
            chunks.append(self._put_chunk(f"{key}-{len(chunks)}", held))
        return tuple(chunks)

    def _put_chunk(self, key: str, items: Sequence[Any]) -> Chunk:
        data = _encode(items)
        self._blobs.put_bytes(key, data)
        return Chunk(key, len(data), hashlib.sha256(data).hexdigest(), len(items))


class SavepointReader:
    """A savepoint that is there. All methods block, and raise CorruptSnapshot, which names the file, for damage."""

    def __init__(self, blobs: Blobs) -> None:
        """Raises InvalidInput when there is none, and Refused for one of a newer format."""
        self._blobs = blobs
        self.place = blobs.place(MANIFEST).removesuffix(f"/{MANIFEST}")
        try:
            data = blobs.get_bytes(MANIFEST)
        except BlobMissing:
            raise InvalidInput(
                "PEN0432",
                f"There is no savepoint at {self.place}: {blobs.place(MANIFEST)} is missing, which is written last. "
                "List those that are there: penstock savepoint list.",
            ) from None
        self.savepoint = self._decoded(unchecked(data, blobs.place(MANIFEST)))
        self.store = BaseStore(blobs)

    def _decoded(self, data: bytes) -> Savepoint:
        refuse_newer(item_at(data, 0), FORMAT, f"The savepoint {self.place}")
        refuse_newer(item_at(data, 1, 0), MANIFEST_FORMAT, f"The checkpoint in the savepoint {self.place}")
        return _decode_manifest(data)

    def deltas(self, part: Part) -> SavedDeltas:
        """The deltas of a task."""
        records: dict[int, list[bytes]] = {}
        for chunk in self._task(part).deltas:
            for offset, record in _decode_deltas(self._read(chunk)):
                records.setdefault(offset, []).append(record)
        return SavedDeltas(f"the savepoint {self.place}", records)

    def inbox(self, part: Part) -> Iterator[EpochFrame]:
        """What was on its way to a task from others."""
        for chunk in self._task(part).inbox:
            yield from _decode_frames(self._read(chunk))

    def requests(self, part: Part) -> Iterator[Envelope]:
        """What was on its way to a task from outside."""
        for chunk in self._task(part).requests:
            yield from _decode_requests(self._read(chunk))

    def committed(self, part: Part) -> Mapping[str, int]:
        """Egress -> newest checkpoint of the task whose rows are visible."""
        return self._task(part).committed

    def verify(self, progress: Progress) -> None:
        """Read everything, and compare hashes."""
        total, done = self.savepoint.bytes, 0
        for chunk in (chunk for task in self.savepoint.tasks for chunk in task.chunks):
            self._read(chunk)
            done += chunk.size
            progress(done, total)
        for part in self.savepoint.manifest.parts:
            if part.base:
                done += self.store.verify(part.base)
                progress(min(done, total), total)

    def _task(self, part: Part) -> SavedTask:
        return next(task for task in self.savepoint.tasks if task.task == part.task)

    def _read(self, chunk: Chunk) -> bytes:
        place = self._blobs.place(chunk.key)
        try:
            data = self._blobs.get_bytes(chunk.key)
        except BlobMissing:
            raise CorruptSnapshot("PEN0430", f"{place} of the savepoint is missing. {_ELSEWHERE}") from None
        hash = hashlib.sha256(data).hexdigest()
        if len(data) != chunk.size or hash != chunk.hash:
            raise CorruptSnapshot(
                "PEN0430",
                f"{place} of the savepoint is damaged: it has {len(data):,} bytes with hash {hash[:12]}, and should "
                f"have {chunk.size:,} with {chunk.hash[:12]}. {_ELSEWHERE}",
            )
        return data


_ELSEWHERE: Final = "Use another savepoint, or a copy of this one."


class SavedDeltas:
    """The deltas of one task in a savepoint, by the offsets they had."""

    def __init__(self, place: str, records: Mapping[int, Sequence[bytes]]) -> None:
        self._place = place
        self._records = records

    def chain(self, head: int, first: int) -> list[int]:
        """Offsets of the deltas from `first` to `head`, oldest first."""
        return follow(head, first, self._previous, self._place)

    def _previous(self, offset: int) -> int:
        return peek_header(self._delta(offset)[0], self._place).previous

    def delta(self, offset: int) -> tuple[DeltaHeader, Frozen, int]:
        """The delta at `offset`, and its size in bytes."""
        records = self._delta(offset)
        return *decode_delta(records, self._place), sum(map(len, records))

    def _delta(self, offset: int) -> Sequence[bytes]:
        found = self._records.get(offset)
        if found is None:
            raise CorruptSnapshot("PEN0430", f"{self._place} holds no delta {offset}. {_ELSEWHERE}")
        return found


def delete_savepoint(blobs: Blobs) -> None:
    """Remove a savepoint, or the beginning of one: first what makes it one."""
    blobs.delete([MANIFEST])
    for folder in FOLDERS:
        blobs.delete([blob.key for blob in blobs.list(folder)])
    blobs.tidy()


def begun(blobs: Blobs) -> bool:
    """Whether there is a savepoint, or the beginning of one."""
    return _exists(blobs) or any(blobs.list(folder) for folder in FOLDERS)


def _exists(blobs: Blobs) -> bool:
    try:
        blobs.get_bytes(MANIFEST)
    except BlobMissing:
        return False
    return True


def _frame_bytes(frame: EpochFrame) -> int:
    return sum(len(message.payload) for message in frame.messages)
