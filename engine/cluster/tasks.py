"""The tasks that a worker has at present: restored, taken over, given away.

    part of a manifest -> base fetched -> deltas read -> store opened -> unit, which takes turns from then on

What always holds: changes are made one after the other, in the order they were asked for; `halt` drops those that are
not made yet, and the one that is being made goes no further than the next delta; the deltas of a few tasks at a time
are in memory; the store of a task lies in a directory of its own for each time it comes here, where nothing is left of
an earlier time, or of a process that was killed, and which goes when that time ends. Reports what can't be restored.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from penstock.checkpoint.control import AttemptBegun, Manifest, Part
from penstock.checkpoint.member import Adopt, Drop, Fetch, Restore
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.checkpoint.store import BaseStore
from penstock.engine.background import in_thread
from penstock.engine.build import Assembly, Bury, Origin, origin_of_attempt
from penstock.engine.cluster.deltas import Deltas
from penstock.engine.cluster.feeds import TopicInbox, TopicRequests
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.topics import Topics
from penstock.engine.config import Config
from penstock.engine.data import Progress, base_on_its_way, close_stores, open_base
from penstock.engine.feeds import FOREIGN, Feed, RequestFeed
from penstock.engine.restore import Restored, restore_task
from penstock.engine.unit import Channels, TaskUnit
from penstock.errors import CorruptSnapshot, Unavailable
from penstock.faults import fault
from penstock.files import make_directory
from penstock.logs import logger
from penstock.records import TaskMeta
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader, read_range
from penstock.state.rocksdb import RocksMemory

DRAIN_S = 10.0
RETRY_S = 1.0
RESTORES_MAX = 2
"""Tasks that are restored at a time: the deltas of one are read while those of the other are applied."""


class _Superseded(Exception):
    """What is being restored is of an attempt that is over."""


class TopicWiring:
    """Connects tasks to the topics of the application. `starts`: where partitions begin that nobody has read yet."""

    def __init__(self, reader: KafkaReader, topics: Topics, frames: FrameWriter) -> None:
        self.channels: Channels = frames
        self.starts: dict[tuple[str, int], int] = {}
        self._reader = reader
        self._topics = topics

    def feeds(self, task: int, meta: TaskMeta, snapshot: SnapshotTask, *, fresh: bool) -> list[Feed]:
        topics = self._topics
        if fresh:  # A snapshot taken before the first frame must say so, too: what lies before may be deleted.
            meta.inbox_position = self.starts[topics.inbox, task]
        requests_at = meta.ingress_positions.get(RequestFeed.SOURCE)
        if requests_at is None:
            requests_at = self.starts[topics.requests, task]
        return [
            TopicRequests(self._reader, topics.requests, task, requests_at),
            TopicInbox(
                self._reader,
                topics.inbox,
                task,
                snapshot,
                meta.inbox_position,
                meta.ingress_positions.get(FOREIGN, 0),
            ),
        ]


class Placed(NamedTuple):
    """What is known of a restore, for people."""

    attempt: int
    checkpoint: int
    tasks: int
    deltas: int
    took_s: float


class Tasks:
    """See the module. `check` refuses an attempt or tasks of a checkpoint that this application can't go on with;
    `placed` learns of each unit that is there, and `damaged` of a checkpoint that can't be restored; `forget` gives up
    the snapshots of units that go, and `leave` what else is under way for one; `failed` gets everything else that goes
    wrong."""

    def __init__(
        self,
        config: Config,
        kafka: KafkaOptions,
        topics: Topics,
        store: BaseStore,
        assembly: Assembly,
        reader: KafkaReader,
        frames: FrameWriter,
        *,
        directory: Path,
        check: Callable[[AttemptBegun | None, Manifest | None, Collection[int]], None],
        bury: Bury,
        placed: Callable[[Sequence[TaskUnit], Placed], None],
        damaged: Callable[[int, int, str], None],
        forget: Callable[[Sequence[TaskUnit]], None],
        leave: Callable[[TaskUnit], Coroutine[Any, Any, None]],
        failed: Callable[[BaseException], None],
        progress: Callable[[Progress], None],
    ) -> None:
        self._config = config
        self._kafka = kafka
        self._topics = topics
        self._store = store
        self._assembly = assembly
        self._wiring: TopicWiring = TopicWiring(reader, self._topics, frames)
        self._frames = frames
        self._stores = _emptied(directory / "tasks")
        self._fetched = _emptied(directory / "prepared")
        self._check = check
        self._bury = bury
        self._placed = placed
        self._damaged = damaged
        self._forget = forget
        self._leave = leave
        self._failed = failed
        self._progress = progress
        self._memory = RocksMemory(config.store_bytes)
        self._asked: deque[Restore | Adopt | Drop] = deque()
        self._changing: asyncio.Task[None] | None = None
        self._times = 0
        self._paths: dict[int, Path] = {}
        self.halted = False
        """Whether a new attempt has begun and its tasks are not here yet."""
        self._halts = 0
        self.leaving: set[int] = set()
        """Tasks that are given away, and whose units are still here: they take no turn, and are not cut."""

    @property
    def units(self) -> list[TaskUnit]:
        return self._assembly.units

    def path_of(self, task: int) -> Path:
        """Where the store of a task lies while it is here."""
        return self._paths[task]

    @property
    def quiet(self) -> bool:
        """Whether every change that was asked for is made."""
        return not self._asked and (self._changing is None or self._changing.done())

    # What the leader asks for.

    def halt(self) -> None:
        """All tasks stop: what they have done since the last checkpoint is void."""
        self.halted = True
        self._halts += 1
        self._forget(self.units)
        self._asked.clear()

    def change(self, asked: Restore | Adopt | Drop) -> None:
        """Make this change, after those asked for before."""
        if isinstance(asked, Restore):
            self.halt()
        if isinstance(asked, Drop):
            self.leaving.update(asked.tasks)
        self._asked.append(asked)
        if self._changing is None or self._changing.done():
            self._changing = asyncio.get_running_loop().create_task(self._change_all())

    async def fetch(self, asked: Fetch, prepared: Callable[[tuple[int, ...]], None]) -> None:
        """Bring the bases of tasks here that will come. Raises Refused when they can't be taken over."""
        self._check(None, asked.manifest, asked.tasks)
        parts = asked.manifest.parts if asked.manifest is not None else ()
        for part in parts:
            if part.task in asked.tasks and part.base:
                target = self._new_path(self._fetched, part.task)
                try:
                    await in_thread(self._store.fetch, part.base, target)
                except (CorruptSnapshot, Unavailable, OSError) as error:
                    logger.warning("%s", error)  # Whoever takes the task over meets it again.
                await in_thread(shutil.rmtree, target, True)
        prepared(asked.tasks)

    async def close(self) -> None:
        """Let go of everything."""
        if self._changing is not None:
            self._changing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._changing
        await self._remove(list(self.units))

    # How it is done.

    async def _change_all(self) -> None:
        try:
            while self._asked:
                await self._change_patiently(self._asked.popleft())
        except Exception as error:  # noqa: BLE001  # Whatever it is, this worker has not the tasks it should have.
            self._failed(error)

    async def _change_patiently(self, asked: Restore | Adopt | Drop) -> None:
        """Through outages, until there is something newer to do."""
        halts = self._halts
        while True:
            try:
                return await self._change(asked, halts)
            except _Superseded:
                return None
            except Unavailable as error:
                logger.warning("%s", error)
                await asyncio.sleep(RETRY_S)

    async def _change(self, asked: Restore | Adopt | Drop, halts: int) -> None:
        match asked:
            case Restore(attempt, tasks, manifest):
                await self._remove(list(self.units))
                self._frames.begin_attempt()
                self.halted = halts != self._halts  # A newer attempt may have begun meanwhile.
                await self._place(tasks, origin_of_attempt(attempt, manifest), halts)
            case Adopt(attempt, tasks, manifest):
                epoch = manifest.checkpoint if manifest is not None else 0
                fault("handoff.adopting")
                await self._place(tasks, Origin(attempt, manifest, epoch, attempt_starts=False), halts)
                fault("handoff.adopted")
            case Drop(tasks, orphaned):
                leaving = [unit for unit in self.units if unit.task in tasks]
                fault("handoff.dropping")
                await self._drain(unit for unit in leaving if unit.task in orphaned)
                await self._remove(leaving, orphaned)

    async def _place(self, tasks: Sequence[int], origin: Origin, halts: int) -> None:
        began = asyncio.get_running_loop().time()
        manifest = origin.manifest
        self._check(origin.attempt, manifest, tasks)
        parts = {part.task: part for part in manifest.parts} if manifest is not None else {}
        wanted = [parts.get(task) or _empty_part(task) for task in tasks]
        fault("restore.begun")
        try:
            restored = await self._restore_parts(wanted, halts)
        except CorruptSnapshot as error:
            logger.error("%s", error)
            checkpoint = manifest.checkpoint if manifest is not None else 0
            self._damaged(origin.attempt.lineage.attempt, checkpoint, str(error))
            return
        named = origin.attempt.retained
        retained = None if named is None else frozenset(named)
        units = []
        for part, each in zip(wanted, restored, strict=True):
            own = origin._replace(manifest=manifest.of(part.task)) if manifest is not None else origin
            unit = self._assembly.add(part.task, each, own, self._wiring, retained=retained, bury=self._bury)
            self._assembly.resume(unit, each)
            units.append(unit)
        fault("restore.done")
        took_s = asyncio.get_running_loop().time() - began
        number, deltas = origin.attempt.lineage.attempt, sum(each.deltas for each in restored)
        checkpoint = manifest.checkpoint if manifest is not None else 0
        self._placed(units, Placed(number, checkpoint, len(units), deltas, took_s))

    async def _restore_parts(self, parts: Sequence[Part], halts: int) -> list[Restored]:
        """Restore all, or none: then nothing is left of what was begun."""
        restored: list[Restored] = []
        try:
            self._go_on(halts)
            starts = await self._find_starts(parts)
            for first in range(0, len(parts), RESTORES_MAX):
                some = parts[first : first + RESTORES_MAX]
                restored += await _restore_all(
                    self._restore(part, starts[self._topics.deltas, part.task], halts) for part in some
                )
            self._go_on(halts)
        except BaseException:
            close_stores(restored)
            for part in parts:
                await self._clear(part.task)
            raise
        return restored

    def _go_on(self, halts: int) -> None:
        """Raise _Superseded when the attempt is over for which something is being done."""
        if halts != self._halts:
            raise _Superseded

    async def _restore(self, part: Part, start: int, halts: int) -> Restored:
        """`start` is the first delta that is still there."""
        self._go_on(halts)
        path = self._paths[part.task] = self._new_path(self._stores, part.task)
        deltas = Deltas("", ())
        if part.first >= 0 and part.head >= part.first:
            place = (self._topics.deltas, part.task)
            records = await read_range(self._kafka, *place, max(part.first, start), isolation="read_uncommitted")
            self._go_on(halts)
            deltas = Deltas(f"{place[0]}-{part.task}", records)

        def progress(done: int, total: int) -> None:
            self._go_on(halts)
            self._progress(Progress(part.task, done, total))

        return await in_thread(
            lambda: restore_task(
                part,
                deltas,
                lambda base: open_base(self._store, base, path, self._memory),
                cache_bytes_max=self._config.cache_bytes // self._config.parallelism,
                progress=progress,
            )
        )

    async def _find_starts(self, parts: Iterable[Part]) -> Mapping[tuple[str, int], int]:
        """Where the partitions of these tasks begin."""
        topics = self._topics
        places = [(topic, part.task) for part in parts for topic in (topics.inbox, topics.requests, topics.deltas)]
        bounds = await offsets(self._kafka, places, isolation="read_uncommitted") if places else {}
        self._wiring.starts.update((place, found.start) for place, found in bounds.items())
        return self._wiring.starts

    def _new_path(self, directory: Path, task: int) -> Path:
        """Where nothing has been since this process began."""
        self._times += 1
        make_directory(directory)
        return directory / f"{task}-{self._times}"

    async def _drain(self, units: Iterable[TaskUnit]) -> None:
        """Nobody takes these tasks: make visible what is decided, for as long as that may take."""
        waiting = list(units)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not all(driver.quiet for unit in waiting for driver in unit.sinks.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    async def _remove(self, units: list[TaskUnit], orphaned: Collection[int] = ()) -> None:
        self._forget(units)
        for unit in units:
            for feed in unit.feeds:
                if isinstance(feed, TopicInbox | TopicRequests):
                    feed.close()
            await self._leave(unit)
            final = unit.task in orphaned and all(driver.quiet for driver in unit.sinks.values())
            await self._assembly.remove(unit, final=final)
            self.leaving.discard(unit.task)
            await self._clear(unit.task)

    async def _clear(self, task: int) -> None:
        """Delete the store of a task, if there is one, and what of its base was on the way."""
        path = self._paths.pop(task, None)
        if path is not None:
            for each in (path, base_on_its_way(path)):
                await in_thread(shutil.rmtree, each, True)


def _emptied(directory: Path) -> Path:
    """Without what a process left that was killed: nobody else works below the directory of a worker."""
    shutil.rmtree(directory, ignore_errors=True)
    return directory


async def _restore_all(works: Iterable[Coroutine[Any, Any, Restored]]) -> list[Restored]:
    """Restore all at once. When one can't be, the stores of the others are closed before its error is raised."""
    results = await asyncio.gather(*works, return_exceptions=True)
    errors = [each for each in results if isinstance(each, BaseException)]
    restored = [each for each in results if not isinstance(each, BaseException)]
    if errors:
        close_stores(restored)
        raise errors[0]
    return restored


def _empty_part(task: int) -> Part:
    return Part(task, "", 0, -1, 0, -1, 0, 0)
