"""Savepoints of a data directory: taken of one of its checkpoints, and restored into one.

    take      checkpoint of the directory -> bases, deltas, frames and requests under way -> a place of its own
    restore   place -> every old task in a scratch directory -> every new task, as a base -> COMPLETE

What always holds: taking one only reads; a restore is one record, so before it nothing has changed and after it all
has; other checkpoints of the directory stay. What a task takes over of the old ones is for `regroup`, what a savepoint
looks like for `checkpoint.savepoint`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import penstock
from penstock.checkpoint.blobs import Blobs
from penstock.checkpoint.control import FORMAT, Complete, Manifest, Part
from penstock.checkpoint.coordinator import RESERVED_IDS
from penstock.checkpoint.recovery import History
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import Savepoint, SavepointReader, SavepointWriter, not_admitted
from penstock.checkpoint.store import BaseStore
from penstock.checkpoint.stores import open_place
from penstock.durations import timestamp
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory
from penstock.engine.migrate import check_shapes
from penstock.engine.offline import Checkpoints, Markers, scratch_directory, waiting_rows
from penstock.engine.regroup import NewTask, OldTask, fill, fold_all
from penstock.engine.restore import restore_task, rows_of, undecided
from penstock.errors import Refused, Unavailable
from penstock.functions.app import App
from penstock.ids import KEY_GROUPS_MAX
from penstock.state.backend import Backend
from penstock.state.rocksdb import RocksBackend, RocksMemory
from penstock.state.rocksdb import restore as restore_base

Progress = Callable[[int, int], None]
"""Gets how much is done, and of how much."""
ROWS_S = 20.0
"""How long a savepoint waits until what is in it is visible: commits take milliseconds where an egress answers."""


def summarize(place: str, savepoint: Savepoint) -> dict[str, Any]:
    """A savepoint in one row."""
    manifest = savepoint.manifest
    return {
        "savepoint": place,
        "at": timestamp(savepoint.created_ms),
        "application": manifest.application,
        "checkpoint": manifest.checkpoint,
        "parallelism": manifest.parallelism,
        "bytes": savepoint.bytes,
        "under_way": savepoint.frames + savepoint.requests,
    }


def show(place: str, savepoint: Savepoint) -> dict[str, Any]:
    """Everything a savepoint says of itself."""
    manifest = savepoint.manifest
    return summarize(place, savepoint) | {
        "attempt": manifest.lineage.attempt,
        "generation": manifest.generation,
        "format": savepoint.format,
        "penstock": savepoint.version,
        "frames": savepoint.frames,
        "requests": savepoint.requests,
        "functions": {name: known.get("code", "") for name, known in manifest.fingerprints.items()},
        "tasks": [
            {
                "task": part.task,
                "base": part.base,
                "delta_bytes": sum(chunk.size for chunk in task.deltas),
                "frames": sum(chunk.items for chunk in task.inbox),
                "requests": sum(chunk.items for chunk in task.requests),
                "ingress_positions": part.ingress_positions,
            }
            for part, task in zip(manifest.parts, savepoint.tasks, strict=True)
        ],
    }


# Taking one.


def default_place(directory: Path, application: str, created_ms: int) -> str:
    """Where a savepoint goes that was given no place."""
    name = f"{application}-{datetime.fromtimestamp(created_ms / 1000, UTC):%Y%m%d-%H%M%S-%f}"[:-3]
    return str(directory.absolute() / "savepoints" / name)


def open_place_of(place: str, config: Config) -> Blobs:
    """A place for a savepoint of the application of `config`. Raises ConfigurationError.

    Below its directory, files are shared: that takes neither time nor space, and a disk that loses one loses both.
    Elsewhere they are copied, also on the same disk.
    """
    inside = Path(place).is_relative_to(config.directory.absolute())
    return open_place(place, config.bucket, linking=inside)


def take_stopped(
    directory: Checkpoints,
    blobs: Blobs,
    *,
    now_ms: int,
    progress: Progress,
    markers: Markers | None = None,
    left_out: frozenset[str] = frozenset(),
) -> Savepoint:
    """A savepoint of what the next start would restore. `markers` are those at the egresses, if they were asked, and
    rows of egresses that are `left_out` are of no use later.

    Raises Refused when nothing was ever complete, or when only the egresses know which rows are visible.
    """
    newest = directory.newest()
    if newest is None:
        raise nothing_to_save(directory.place)
    waiting = waiting_rows(directory, directory.manifest(newest), markers or {})
    if waiting.keys() - left_out:
        raise _undecided(f"Checkpoint {newest.checkpoint} of {directory.place}", waiting)
    committed = dict.fromkeys([*(markers or ()), *left_out], newest.checkpoint)
    return take(directory, newest, blobs, committed=committed, now_ms=now_ms, progress=progress)


def take(
    directory: Checkpoints,
    retained: Retained,
    blobs: Blobs,
    *,
    committed: Mapping[str, int],
    now_ms: int,
    progress: Progress = lambda done, total: None,
) -> Savepoint:
    """A savepoint of this checkpoint, whose rows for egresses are visible: those that it does not know of itself are
    in `committed`. It must stay retained meanwhile."""
    manifest, store = directory.manifest(retained), directory.store
    writer = SavepointWriter(blobs)
    total = sum(store.size(part.base) for part in manifest.parts if part.base)
    done = 0
    with scratch_directory(directory.path) as scratch:
        for part in manifest.parts:
            if part.base:
                writer.put_base(part.base, store, scratch / part.base)
                done += store.size(part.base)
            writer.put_task(part.task, directory.source(part, manifest, committed))
            progress(done, total)
    return writer.finish(manifest, created_ms=now_ms, version=penstock.__version__)


# Restoring one.


def restore_savepoint(
    app: App,
    reader: SavepointReader,
    config: Config,
    *,
    command: str,
    reason: str,
    now_ms: int,
    replacing: bool,
    progress: Progress,
) -> Manifest:
    """Make the savepoint what the next start of the data directory continues, with the parallelism of `config`.

    Raises Refused, with nothing changed, when there are checkpoints already, unless `replacing` them is wanted, and
    when the savepoint does not fit `app`; CorruptSnapshot when it is damaged.
    """
    check_fits(app, reader)
    started = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone()
    data = DataDirectory(config, command=command, started=started)
    try:
        refuse_checkpoints(data.history, str(data.path), replacing=replacing)
        ends = {
            task: (int(data.log.end(f"inbox-{task}")), int(data.log.end(f"requests-{task}")))
            for task in range(config.parallelism)
        }
        target = Target(data.path, data.history, data.store, ends)
        manifest = restore_tasks(app, reader, config, target, reason=reason, now_ms=now_ms, progress=progress)
        _decide(data, manifest)
        shutil.rmtree(data.path / "tasks", ignore_errors=True)
        return manifest
    finally:
        data.close()


def refuse_checkpoints(history: History, place: str, *, replacing: bool) -> None:
    """Raise Refused when a savepoint would be put in place of something unasked."""
    if history.attempt is not None and not replacing:
        raise Refused(
            "PEN0433",
            f"{place} has checkpoints of its own, which a savepoint would be put in place of. Name an empty directory "
            "with --dir (on Kafka, a new --name), leave out --from-savepoint to continue what is there, or add "
            "--replace: older checkpoints stay, and can be replayed.",
        )


def check_fits(app: App, reader: SavepointReader) -> None:
    """Raise Refused when the savepoint can't be continued by `app`."""
    manifest = reader.savepoint.manifest
    if manifest.application != app.name:
        missing = sorted(name for name in manifest.fingerprints if name not in app.functions)
        if missing:
            raise Refused(
                "PEN0435",
                f"The savepoint {reader.place} is of application {manifest.application!r}, and {app.name} has not all "
                f"of its functions: {', '.join(missing)} would lose their state. Name another savepoint, or declare "
                "them.",
            )
    check_shapes(app, manifest)


class Target(NamedTuple):
    """Where a savepoint is restored."""

    path: Path
    """For scratch files: on the disk of the store, if it has one."""
    history: History
    store: BaseStore
    ends: Mapping[int, tuple[int, int]]
    """Where the inbox and the requests of each new task end, whose messages the old ones have nothing to do with."""


def restore_tasks(
    app: App, reader: SavepointReader, config: Config, target: Target, *, reason: str, now_ms: int, progress: Progress
) -> Manifest:
    """Store a base of every new task. Returns the manifest of all of them, which whoever calls this makes durable: only
    then has anything changed."""
    check_fits(app, reader)
    return _Restore(app, reader, config, target).run(reason, now_ms, progress)


class _Restore:
    """One restore of a savepoint."""

    def __init__(self, app: App, reader: SavepointReader, config: Config, target: Target) -> None:
        self._app = app
        self._reader = reader
        self._before = reader.savepoint.manifest
        self._tasks = config.parallelism
        self._target = target
        self._memory = RocksMemory(config.store_bytes)
        self._cache_bytes = config.cache_bytes // max(config.parallelism, self._before.parallelism)

    def run(self, reason: str, now_ms: int, progress: Progress) -> Manifest:
        before, history = self._before, self._target.history
        newest = next(history.candidates(), None)
        goes_on = newest is not None and (newest.attempt, newest.checkpoint) == (
            before.lineage.attempt,
            before.checkpoint,
        )
        history.pass_attempt(before.lineage.attempt)
        history.high = max(history.high, before.checkpoint)
        attempt = history.next_attempt(before.lineage, before.checkpoint, now_ms, reason, replay=not goes_on)
        checkpoint = attempt.high - RESERVED_IDS + 1
        mark = (attempt.lineage.attempt, checkpoint)
        with scratch_directory(self._target.path) as scratch, ExitStack() as opened:
            olds = []
            for part in before.parts:
                old = self._old_task(part, scratch)
                opened.callback(old.store.close)
                olds.append(old)
                progress(len(olds), before.parallelism + self._tasks)
            parts = []
            for task in range(self._tasks):
                parts.append(self._new_part(task, olds, mark, scratch))
                progress(before.parallelism + len(parts), before.parallelism + self._tasks)
        return Manifest(
            format=FORMAT,
            application=self._app.name,
            checkpoint=checkpoint,
            lineage=attempt.lineage,
            created_ms=now_ms,
            key_groups_max=KEY_GROUPS_MAX,
            parallelism=self._tasks,
            generation=before.generation + (before.parallelism != self._tasks),
            fingerprints=before.fingerprints,
            parts=tuple(parts),
            reason=reason,
        )

    def _old_task(self, part: Part, scratch: Path) -> OldTask:
        """A task as the savepoint has it, all of it in its store."""
        path = scratch / f"old-{part.task}"
        restored = restore_task(
            part,
            self._reader.deltas(part),
            lambda base: _open_compared(self._reader.store, base, path, self._memory),
            cache_bytes_max=self._cache_bytes,
            progress=lambda done, total: None,
        )
        store = restored.overlay.backend
        try:
            waiting = rows_of([undecided(restored.staged, self._reader.committed(part))])
            if waiting:
                raise _undecided(f"The savepoint {self._reader.place}", waiting)
            fold_all(restored)
            inbox = list(not_admitted(restored.meta.marks, self._reader.inbox(part)))
            requests = list(self._reader.requests(part))
            queues = {typename: rows for typename, (_, _, rows) in restored.queues.items()}
            store.flush()
            store.checkpoint(_content(scratch, part.task))
        except BaseException:
            store.close()
            raise
        return OldTask(part.task, store, restored.meta, queues, inbox, requests)

    def _new_part(self, task: int, olds: list[OldTask], mark: tuple[int, int], scratch: Path) -> Part:
        """Make a base for a new task, and store it."""
        attempt, checkpoint = mark
        path, base = scratch / f"new-{task}", scratch / f"new-{task}.base"
        inbox, requests = self._target.ends[task]
        restore_base(_content(scratch, task % len(olds)), path)
        store = RocksBackend.open(path, self._memory)
        try:
            meta = fill(store, NewTask(task, self._tasks, inbox, requests), olds, mark=mark)
            store.flush()
            store.checkpoint(base)
        finally:
            store.close()
        name = f"{checkpoint:012d}-{attempt}-{task}"
        self._target.store.put(name, base)
        shutil.rmtree(path)
        shutil.rmtree(base)
        return Part(task, name, checkpoint, -1, 0, -1, inbox, inbox, meta.ingress_positions)


def _content(scratch: Path, task: int) -> Path:
    """Where the files of an old task lie that new ones are made of."""
    return scratch / f"old-{task}.base"


def _open_compared(store: BaseStore, name: str, path: Path, memory: RocksMemory) -> Backend:
    """A store of its own with the content of a base, each file of which has the hash that it should have."""
    if name:
        files = path.with_name(f"{path.name}.files")
        store.fetch(name, files, compared=True)
        restore_base(files, path)
        shutil.rmtree(files)
    return RocksBackend.open(path, memory)


def _decide(data: DataDirectory, manifest: Manifest) -> None:
    """From here on the manifest is what the next start restores."""
    record = Complete(manifest)
    offset = data.journal.append_control(record)
    data.log.flush_nowait()
    data.history.apply(offset, record)
    data.journal.write_index(data.history)


def nothing_to_save(place: str) -> Refused:
    return Refused("PEN0437", f"There is nothing to save: no checkpoint of {place} is complete. Run it first.")


def rows_waiting(checkpoint: int, which: str) -> Unavailable:
    """Rows of the checkpoint were not visible in time."""
    return Unavailable(
        "PEN0436",
        f"No savepoint was taken: rows of checkpoint {checkpoint} are not written after {ROWS_S:g} s. {which}. Try "
        "again when the egress takes rows.",
    )


def _undecided(what: str, waiting: Mapping[str, int]) -> Refused:
    rows = ", ".join(f"{count:,} of egress {egress}" for egress, count in sorted(waiting.items()))
    return Refused(
        "PEN0434",
        f"{what} has rows of which only the egresses know whether they are visible: {rows}. In another place they "
        "could be written twice. Start the application and let it write them; then take the savepoint while it runs, "
        "or after it was stopped.",
    )
