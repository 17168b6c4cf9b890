"""The data directory of an application that runs here: its lock, its log, and the checkpoint that a start continues.

    lock -> log -> journal -> history -> the newest checkpoint that is whole -> an attempt of its own

What always holds: one process at a time has the directory; an attempt is durable before anything happens in it;
going back further than wished is noted for people; while the disk refuses, `flush` waits and nothing is lost. What it
shares with `offline`, which looks at the same files and changes none, are the functions at the end. Leaves what a task
finds in its part of a checkpoint to `restore`, and what is to be forgotten to `upkeep`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from penstock.checkpoint.control import AttemptBegun, Manifest, Part
from penstock.checkpoint.recovery import attempts_needed
from penstock.checkpoint.retention import Retained, oldest_of_attempts
from penstock.checkpoint.store import BaseStore, DirectoryStore
from penstock.engine.config import Config
from penstock.engine.journal import Journal
from penstock.engine.migrate import check_shapes
from penstock.engine.restore import Restored, restore_task
from penstock.errors import CorruptSnapshot, Refused, Unavailable
from penstock.faults import fault
from penstock.files import DirectoryLock, make_directory, write_atomically
from penstock.functions.app import App
from penstock.logs import logger
from penstock.router.embedded import EmbeddedLog
from penstock.state.backend import Backend
from penstock.state.rocksdb import RocksBackend, RocksMemory
from penstock.state.rocksdb import restore as restore_base

STORAGE_RETRY_S = 1.0
VERIFY_BYTES = 256 << 20
"""A base up to this size is read and compared with its hashes at every start: a fraction of a second."""


class Progress(NamedTuple):
    """How far a restore has come, for people."""

    task: int
    done: int
    total: int


class DataDirectory:
    """See the module. Opening takes the lock, and raises Fenced when somebody has it; `close` gives it back."""

    def __init__(self, config: Config, *, command: str, started: datetime) -> None:
        self._config = config
        self.path = config.directory
        make_directory(self.path)
        with ExitStack() as opened:
            self.lock = DirectoryLock(self.path, command=command, started=started)
            opened.callback(self.lock.release)
            self.log = EmbeddedLog(self.path / "log")
            opened.callback(self.log.close)
            self.journal = Journal(self.log, self.path / "index")
            self.history = self.journal.read_history()
            self._opened = opened.pop_all()
        self.store = DirectoryStore(self.path / "store")
        self.notes = [*self.log.recovered, *self.journal.notes]
        """What a person should be told about the start."""
        self._distrusted = self.path / "distrusted"
        self._verified: dict[str, str] = {}
        """Bases that were read from end to end, and what is wrong with each; empty for nothing."""
        self._passed_over = False
        """Whether a checkpoint turned out to be damaged."""
        self.storage_error = ""
        """Why nothing can be made durable at present; empty when all is well."""
        self.pinned: set[int] = set()
        """Checkpoints that are being copied: they stay retained."""

    def close(self) -> None:
        self._opened.close()

    def task_path(self, task: int) -> Path:
        """Where the store of a task lies while it runs. What is needed again is never only there."""
        return self.path / "tasks" / str(task)

    async def flush(self) -> None:
        """Make everything appended durable. While the disk refuses, nothing is lost: it waits, and is not ready."""
        while True:
            try:
                await self.log.flush()
            except Unavailable as error:
                if not self.storage_error:
                    logger.error("%s", error)
                self.storage_error = str(error)
                await asyncio.sleep(STORAGE_RETRY_S)
            else:
                if self.storage_error:
                    logger.warning("storage answers again")
                self.storage_error = ""
                return

    # What a start continues from.

    def restore(self, app: App, progress: Callable[[Progress], None]) -> tuple[Manifest | None, list[Restored]]:
        """The tasks as the newest whole checkpoint left them, and its manifest; empty ones when there was never any.

        Raises Refused when the checkpoint is not one of `app` and this configuration, and CorruptSnapshot when there
        were checkpoints, as far as can be known, and none is whole.
        """
        memory = RocksMemory(self._config.store_bytes)

        def restore_all(parts: Sequence[Part]) -> list[Restored]:
            return restore_parts(parts, lambda part: self._restore_part(part, memory, progress))

        def restore_checkpoint(manifest: Manifest) -> list[Restored]:
            self._check(manifest, app)
            fault("restore.begun")
            return restore_all(manifest.parts)

        found = restore_newest(self.journal.manifest, self._candidates(), restore_checkpoint, self._pass_over)
        if found is not None:
            return found
        if not self._config.fresh and (self._passed_over or self.journal.incomplete):
            raise CorruptSnapshot(
                "PEN0404",
                f"No checkpoint of {self.path} can be restored: {self.notes[-1]} Restore the directory from a backup, "
                "or start from nothing with --from none.",
            )
        return None, restore_all([_empty_part(task) for task in range(self._config.parallelism)])

    def next_attempt(
        self, manifest: Manifest | None, now_ms: int, *, staged: frozenset[int] = frozenset()
    ) -> AttemptBegun:
        """The attempt that continues what was restored. It has not begun yet. `staged` are the attempts of rows whose
        fate only the markers of their egresses tell."""
        config = self._config
        reason = "replay" if config.from_checkpoint is not None else "start"
        replay = config.from_checkpoint is not None or config.fresh
        if manifest is None:
            return self.history.next_attempt(None, 0, now_ms, reason, replay=replay)
        attempt = self.history.next_attempt(manifest.lineage, manifest.checkpoint, now_ms, reason, replay=replay)
        try:
            needed = attempts_needed(manifest, [self.journal.manifest(each) for each in self._oldest_retained()])
        except CorruptSnapshot:
            return attempt  # What can't be read may need any of them.
        kept = frozenset(each for each in attempt.lineage.attempts if needed(each)) | staged
        return msgspec.structs.replace(attempt, lineage=attempt.lineage.prune(kept))

    def _oldest_retained(self) -> list[Retained]:
        return oldest_of_attempts(list(self.history.checkpoints.values()))

    def retained_attempts(self) -> frozenset[int] | None:
        """The attempts that some retained checkpoint descends from; None when that can't be known.

        A person may go back to any of these checkpoints, also on a branch that was abandoned: what its attempts have
        made visible must not be forgotten.
        """
        attempts: set[int] = set()
        for each in self._oldest_retained():
            try:
                attempts |= self.journal.manifest(each).lineage.attempts
            except CorruptSnapshot:
                return None
        return frozenset(attempts)

    def begin_attempt(self, attempt: AttemptBegun) -> None:
        """Begin an attempt: it is durable when this returns. From now on it is what the next start continues."""
        fault("attempt.writing")
        offset = self.journal.append_control(attempt)
        self.log.flush_nowait()
        fault("attempt.durable")
        self.history.apply(offset, attempt)
        self._distrusted.unlink(missing_ok=True)

    def distrust(self) -> None:
        """Damage was found while the application ran: the next start reads every base from end to end before it relies
        on it, however large it is."""
        with suppress(Unavailable):  # The worker ends already, and its error says more than this one.
            write_atomically(self._distrusted, b"")

    def _candidates(self) -> Iterator[Retained]:
        if self._config.fresh:
            return iter(())
        if self._config.from_checkpoint is not None:
            return iter([self.history.chosen(self._config.from_checkpoint)])
        return iter(list(self.history.candidates()))

    def _pass_over(self, damaged: Retained, error: CorruptSnapshot) -> None:
        self.notes.append(f"Checkpoint {damaged.checkpoint} can't be restored. {error}")
        self.history.checkpoints.pop(damaged.checkpoint)
        self._passed_over = True

    def _check(self, manifest: Manifest, app: App) -> None:
        if manifest.application != app.name:
            raise Refused(
                "PEN0304",
                f"{self.path} holds the state of application {manifest.application!r}, not of {app.name!r}. Choose "
                "another directory with --dir.",
            )
        if manifest.parallelism != self._config.parallelism:
            # Else a start with that would be refused for the newer one, before it is found to be damaged.
            chosen = f" --from {manifest.checkpoint}: newer checkpoints are damaged" if self._passed_over else ""
            raise Refused(
                "PEN0305",
                f"{self.path} was made with parallelism {manifest.parallelism}, and {self._config.parallelism} was "
                f"asked for. Start with --parallelism {manifest.parallelism}{chosen}.",
            )
        check_shapes(app, manifest)

    def _restore_part(self, part: Part, memory: RocksMemory, progress: Callable[[Progress], None]) -> Restored:
        path = self.task_path(part.task)
        shutil.rmtree(path, ignore_errors=True)  # Of an earlier attempt: bases and deltas are the truth.
        make_directory(path.parent)
        return restore_task(
            part,
            self.journal,
            lambda base: self._open_base(base, path, memory),
            cache_bytes_max=self._config.cache_bytes // self._config.parallelism,
            progress=lambda done, total: progress(Progress(part.task, done, total)),
        )

    def _open_base(self, name: str, path: Path, memory: RocksMemory) -> Backend:
        """As `open_base`, but a base that is damaged is found now, while there is an older checkpoint to turn to."""
        distrusted = self._distrusted.exists()
        if name and (distrusted or self.store.size(name) <= VERIFY_BYTES):
            self._verify(name)
        backend = open_base(self.store, name, path, memory)
        if distrusted:
            try:
                # A store that was damaged before the base was made of it has the right hashes: only it can tell.
                for _ in backend.scan(b"", b"\xff"):
                    pass
            except BaseException:
                backend.close()
                raise
        return backend

    def _verify(self, name: str) -> None:
        """Read the base, once for all checkpoints that build on it."""
        if name not in self._verified:
            self._verified[name] = ""
            try:
                self.store.verify(name)
            except CorruptSnapshot as error:
                self._verified[name] = error.message
        if self._verified[name]:
            raise CorruptSnapshot("PEN0404", self._verified[name])


def _empty_part(task: int) -> Part:
    return Part(task, "", 0, -1, 0, -1, 0, 0)


# What every restore has in common, also one to look at.


def restore_newest(
    manifest_of: Callable[[Retained], Manifest],
    candidates: Iterable[Retained],
    restore: Callable[[Manifest], list[Restored]],
    pass_over: Callable[[Retained, CorruptSnapshot], None],
) -> tuple[Manifest, list[Restored]] | None:
    """Restore the first candidate whose files are whole. None when there is none.

    `pass_over` learns of each that is damaged, before the next is tried, and may raise to end the search.
    """
    for candidate in candidates:
        try:
            manifest = manifest_of(candidate)
            return manifest, restore(manifest)
        except CorruptSnapshot as error:
            pass_over(candidate, error)
    return None


def restore_parts(parts: Iterable[Part], restore: Callable[[Part], Restored]) -> list[Restored]:
    """Restore every task, or none: when one can't be, the stores of those before it are closed again."""
    restored: list[Restored] = []
    with ExitStack() as opened:
        for part in parts:
            each = restore(part)
            opened.callback(each.overlay.backend.close)
            restored.append(each)
        opened.pop_all()
    return restored


def open_base(store: BaseStore, name: str, path: Path, memory: RocksMemory) -> Backend:
    """A store of its own at `path` with the content of the base `name`; empty for the name ""."""
    if name:
        files = base_on_its_way(path)
        shutil.rmtree(files, ignore_errors=True)
        store.fetch(name, files)
        fault("restore.half")
        restore_base(files, path)
        shutil.rmtree(files)
    return RocksBackend.open(path, memory)


def base_on_its_way(path: Path) -> Path:
    """Where the files of a base are before they become the store at `path`."""
    return path.with_name(f"{path.name}.base")


def close_stores(restored: Iterable[Restored]) -> None:
    for each in restored:
        each.overlay.backend.close()
