"""One of the workers of an application: its life, and the loop of its turns.

    start   topics verified -> producers, readers, sinks -> known to the leader
    serve   what the leader decided -> every task in turn -> frames out -> what changed is reported
    finish  asked to be relieved -> last checkpoint -> output committed -> everything closed

What always holds: tasks take turns, are cut and change hands by this loop alone, so nothing happens to one during its
turn; what was decided about a task is done before its next turn; a failure that could lose data ends the process, and
the leader begins a new attempt. The one that decides is `Member`, on what the leader says; this performs it.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from msgspec.structs import replace

from penstock.checkpoint.control import AttemptBegun, Manifest
from penstock.checkpoint.leader import refuse_other_functions
from penstock.checkpoint.member import (
    Action,
    Adopt,
    Cut,
    Drop,
    End,
    Fetch,
    GoOn,
    Halt,
    Leave,
    Restore,
    Settle,
)
from penstock.checkpoint.reports import Alive, Changed, Fault, Prepared
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import Savepoint
from penstock.checkpoint.stores import open_store
from penstock.engine.background import Background
from penstock.engine.build import Assembly
from penstock.engine.clock import SteadyClock
from penstock.engine.cluster.candidate import Candidate, leader_options
from penstock.engine.cluster.copying import copy_aside
from penstock.engine.cluster.feeds import TopicInbox, TopicRequests
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.link import LeaderLink
from penstock.engine.cluster.looking import Topology, read_manifest, read_newest, read_retained, read_topology
from penstock.engine.cluster.options import ClusterOptions, instance_of, new_name
from penstock.engine.cluster.replies import REPLIES, Replies
from penstock.engine.cluster.snapshots import Snapshots
from penstock.engine.cluster.tasks import Placed, Tasks
from penstock.engine.cluster.topics import DEAD, Topics, ensure_topics
from penstock.engine.config import Config
from penstock.engine.data import Progress
from penstock.engine.feeds import InputFeed
from penstock.engine.interpreter import prepare_interpreter, release_interpreter
from penstock.engine.looks import Looks, Question, id_of_task
from penstock.engine.migrate import check_shapes
from penstock.engine.operations import Look
from penstock.engine.requests import Requests
from penstock.engine.rota import Rota
from penstock.engine.savepoints import open_place_of
from penstock.engine.serving import CheckpointStatistics, Recovery, SharedStatistics
from penstock.engine.totals import Totals
from penstock.engine.unit import TaskUnit
from penstock.engine.upkeep import CROWDED, Upkeep
from penstock.errors import Fenced, PenstockError, ProtocolError
from penstock.faults import fault
from penstock.files import DirectoryLock, make_directory
from penstock.functions.app import App
from penstock.ids import Address
from penstock.logs import counted, logger
from penstock.router.kafka_batches import Record
from penstock.router.kafka_reader import KafkaReader
from penstock.router.kafka_writer import KafkaWriter

BASE_BYTES = 48 << 20
"""Deltas of all tasks here behind their newest bases: a restart reads them from Kafka, at about 100 MB a second."""

LETTERS_S = 10.0
"""Between two lines about dead letters."""


class ClusterWorker:
    """See the module. `await run()` does everything; `stop()` ends it in an orderly way."""

    def __init__(
        self,
        app: App,
        config: Config,
        cluster: ClusterOptions,
        *,
        clock: Callable[[], float] = time.time,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.config = config
        self.cluster = cluster
        self._clock = SteadyClock(clock)
        self._progress = progress
        self.started_at = self._clock()
        self.stopping = False
        self.recovery = Recovery(0, 0, 0, 0.0)
        self.last_checkpoint: Manifest | None = None
        self.last_checkpoint_ms = 0.0
        self.name = cluster.name or new_name(cluster.instance or instance_of(config.directory))
        self._instance = self.name.rpartition("#")[0]
        self._topology = Topology()
        self._topics = Topics.of(app.name)
        """Those of the generation that is found when the worker starts."""
        self._wake_event = asyncio.Event()
        self._fatal: BaseException | None = None
        self._rota = Rota()
        self._worked_at = 0.0
        self._serving = False
        self._counters = _Counters()
        self._letters_told, self._letters_told_s = 0, -math.inf
        """Dead letters of the tasks here that were told of, and when."""
        self._restored: dict[int, int] = {}
        """How many percent of each task that is on its way here."""
        self._changed_ms: float | None = None
        """Since when something here is in no complete checkpoint."""
        self._candidate: Candidate | None = None
        self._final = False
        """Whether this worker has given back everything it had."""
        self._ended = "stopped"
        """Why, for the leader."""
        self._opened = AsyncExitStack()
        self._background = Background(self._fail)
        self._assembly = Assembly(app, config, wake=self._wake, failed=self._fail, contested=True, kafka=cluster.kafka)

    # The life of a worker.

    async def run(self, started: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Start, run until `stop` is called, the work is done or this worker is fenced, and stop. Raises what made it
        fail."""
        try:
            await self.start(started)
            await self.serve()
            self._final = True
        except BaseException as error:
            self._ended = str(error) or type(error).__name__
            if self._serving:
                self.link.end(self._ended)  # At once: closing may take its time.
            raise
        finally:
            self._serving = False
            await self._close()

    async def start(self, started: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Get ready for tasks. Raises ConfigurationError, Refused, Fenced or Unavailable."""
        self.app.check()
        config, kafka = self.config, self.cluster.kafka
        make_directory(config.directory)
        started_at = datetime.fromtimestamp(self._clock(), UTC).astimezone()
        self._lock = DirectoryLock(config.directory, command="penstock run", started=started_at)
        self._opened.callback(self._lock.release)
        self._topology = await read_topology(kafka, self.app.name)
        self._topics = Topics.of(self.app.name, self._topology.generation)
        ensured = await ensure_topics(self.app.name, config.parallelism, self.cluster, self._topology.generation)
        self._writer = KafkaWriter(kafka, failed=self._fail)
        await self._writer.start()
        self._opened.push_async_callback(self._close_writer)
        self._reader = KafkaReader(kafka, isolation="read_uncommitted", on_records=self._wake, failed=self._fail)
        await self._reader.start()
        self._opened.push_async_callback(self._reader.close)
        self._opened.push_async_callback(lambda: self._assembly.close(final=self._final))
        await self._open_parts(ensured.incarnations[self._topics.control])
        await self._refuse_misfit()
        if started is not None:
            await started()
        self._opened.push_async_callback(lambda: self.link.close(self._ended))
        await self.link.start()
        # The last to be opened are the first to be closed: nothing runs any more when its parts go.
        self._opened.push_async_callback(self.tasks.close)
        self._opened.push_async_callback(self._background.cancel_all)
        self._opened.push_async_callback(self._assembly.cancel)
        if self.cluster.candidate:
            generation = self._topology.generation
            options = leader_options(self.app, config, self.cluster, self.name, ensured, generation)
            self._candidate = Candidate(self.cluster, options, self.link, self.store)
            self._background.spawn(self._candidate.run())
        self._serving = True
        prepare_interpreter()
        self._opened.callback(release_interpreter)

    async def _open_parts(self, history: str) -> None:
        """Make what the worker consists of. `history` names the one that the topics hold."""
        app, config, cluster, kafka = self.app, self.config, self.cluster, self.cluster.kafka
        self._frames = FrameWriter(self._writer, self._topics.inbox)
        self.replies = Replies(self.name, self._topics.replies, config.parallelism, self._reader, self._writer)
        await self.replies.start(kafka)
        self.requests = Requests(
            app.name,
            config.parallelism,
            lambda task, record: self._writer.append(Record(self._topics.requests, task, record)),
            flush=self._writer.flush,
            accepting=lambda: not self.stopping,
            wake=self._wake,
            prefix=self.replies.prefix,
        )
        generation = self._topology.generation
        await self._assembly.open_sinks(history, generation=generation)
        await self._assembly.open_dead_sink(DEAD, self._topics.dead, history, generation=generation)
        await self._assembly.open_inputs()
        self._assembly.add_reply_sink(REPLIES, self.replies)
        alive = Alive(self.name, self._instance, socket.gethostname(), os.getpid())
        self.link = LeaderLink(
            kafka,
            app.name,
            alive,
            self._writer,
            generation=generation,
            heartbeat_ms=cluster.heartbeat_ms,
            received=self._wake,
            failed=self._fail,
        )
        self.store = open_store(cluster.store, cluster.store_options, cache=cluster.cache or config.directory / "cache")
        self._make_parts()

    def _make_parts(self) -> None:
        """Make what changes, cuts and keeps the tasks. It opens nothing."""
        app, config, kafka = self.app, self.config, self.cluster.kafka
        self.snapshots = Snapshots(
            self.name,
            app.name,
            self._topology.generation,
            self._writer,
            self._frames,
            fingerprints=self._other_fingerprints,
            report=self.link.report,
            done=lambda unit: unit.idle and self._assembly.done,
            spawn=self._background.spawn,
        )
        self.tasks = Tasks(
            config,
            kafka,
            self._topics,
            self.store,
            self._assembly,
            self._reader,
            self._frames,
            directory=config.directory,
            check=self._check,
            bury=self.requests.bury,
            placed=self._placed,
            damaged=self._damaged,
            forget=self.snapshots.forget,
            leave=self._leave,
            failed=self._fail,
            progress=self._restoring,
        )
        self._upkeep = Upkeep(
            config,
            self._assembly.units,
            self.store,
            self.tasks.path_of,
            rebased=self._rebased,
            spawn=self._background.spawn,
            base_bytes=BASE_BYTES,
        )

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, object]]:
        return self.app.fingerprints()

    def _other_fingerprints(self) -> dict[str, dict[str, object]] | None:
        """Those of the code here, where the leader began the attempt with others: another version runs there."""
        attempt = self.link.member.attempt
        same = attempt is None or attempt.fingerprints in ({}, self._fingerprints)
        return None if same else self._fingerprints

    def _check(self, attempt: AttemptBegun | None, manifest: Manifest | None, tasks: Collection[int]) -> None:
        """Raise Refused when these tasks of a checkpoint can't be continued here, or the attempt is not of this
        application. What counts is the code that ran each task last, whatever the leader has."""
        if attempt is not None:
            refuse_other_functions(self.app.name, attempt.fingerprints, self._fingerprints)
        if manifest is None:
            return
        refuse_other_functions(self.app.name, manifest.fingerprints, self._fingerprints)
        check_shapes(self.app, manifest)
        for part in manifest.parts:
            if part.fingerprints is not None and part.task in tasks:
                check_shapes(self.app, manifest.of(part.task))

    async def _refuse_misfit(self) -> None:
        """Raise Refused when the application can't be continued here, before anybody counts on this worker: otherwise
        each of its starts would cost the others an attempt."""
        if self.config.fresh or self.config.from_checkpoint is not None:
            return  # Then it begins anew, or is asked for by somebody who has looked.
        history, newest = await read_newest(self.cluster.kafka, self.app.name)
        if history.attempt is not None:
            self._check(history.attempt, newest, range(self.config.parallelism))

    def stop(self) -> None:
        """Give all tasks back after a last checkpoint, and return from `run`."""
        self.stopping = True
        self._wake()

    async def _close(self) -> None:
        """Close what was opened. What goes wrong meanwhile is said, and the rest is closed all the same."""
        if hasattr(self, "requests"):
            self.requests.close()
        try:
            await self._opened.aclose()
        except Exception as error:  # noqa: BLE001  # As above.
            logger.warning("closing: %s", error)

    async def _close_writer(self) -> None:
        with suppress(TimeoutError, PenstockError):
            async with asyncio.timeout(2):
                await self._writer.flush()
        await self._writer.close()

    # Turns.

    async def serve(self) -> None:
        """Take turns until this worker has nothing to do any more, or something fails for good, which is raised."""
        leave_by: float | None = None
        while self._fatal is None:
            for action in self.link.actions():
                self._obey(action)
            if self.stopping and leave_by is None:
                self.link.leave()
                leave_by = time.monotonic() + self.config.stop_timeout_ms / 1000
            if leave_by is not None and (self._relieved or time.monotonic() > leave_by):
                break
            for reply in self.replies.take():
                self.requests.tell(reply)
            now_ms = int(self._clock() * 1000)
            worked = self._take_turns(now_ms)
            self._frames.seal_due(idle=not worked)
            self._report_changes()
            self._upkeep.start_due(self._clock() - self._worked_at)
            if worked:
                self._worked_at = now_ms / 1000
                await asyncio.sleep(0)
            else:
                await self._wait(now_ms)
        if self._fatal is not None:
            raise self._fatal
        if not self._relieved:
            logger.error(
                "PEN0604 Stopping took longer than %g s, so the last checkpoint or its output may be missing. Nothing "
                "is lost: the other workers, or the next start, continue from the last checkpoint.",
                self.config.stop_timeout_ms / 1000,
            )

    @property
    def _relieved(self) -> bool:
        """Whether this worker has no task any more, nothing left to do for one it had, and nobody who waits here for an
        answer of another."""
        idle = not self.link.member.tasks and self.tasks.quiet and not self.units
        return idle and not (self.requests.in_flight and self._others)

    @property
    def _others(self) -> bool:
        """Whether there are workers that do not stop."""
        return any(worker.worker != self.name and not worker.leaving for worker in self.link.workers)

    def _take_turns(self, now_ms: int) -> bool:
        """A turn of each unit whose turn it is. Returns whether any had something to do."""
        pressure, burying = self._upkeep.pressure, self.requests.burying

        def turn(unit: TaskUnit) -> bool:
            if self.tasks.halted:
                return False
            try:
                effects = unit.turn(now_ms, paused=pressure >= 1, crowded=pressure >= CROWDED, burying=burying)
            except ProtocolError as error:
                self._give_up_attempt(unit, error)
                return False
            self._cut_if_due(unit)
            return effects is not None

        return self._rota.take_turns(self._at_work(), turn)

    def _at_work(self) -> list[TaskUnit]:
        """The units that take turns, and are cut: those that neither stand still nor are given away."""
        still, leaving = self.link.member.still, self.tasks.leaving
        return [unit for unit in self.units if unit.task not in still and unit.task not in leaving]

    def _cut_if_due(self, unit: TaskUnit) -> None:
        """A frame of a newer epoch waits: all tasks here cut before it is processed (Rule F)."""
        for feed in unit.feeds:
            if isinstance(feed, TopicInbox) and feed.cut_due:
                due, feed.cut_due = feed.cut_due, 0
                self._cut(due, frozenset())

    def _give_up_attempt(self, unit: TaskUnit, error: ProtocolError) -> None:
        """This attempt can't go on; the leader begins another."""
        logger.error("task %d: %s", unit.task, error)
        self.tasks.halt()
        self.link.give_up(Fault(self.name, unit.snapshot.attempt, str(error)))

    async def _wait(self, now_ms: int) -> None:
        """Sleep until something is due or `_wake` is called."""
        due_ms = self._due_in_ms(now_ms)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_ms is None else due_ms / 1000):
                await self._wake_event.wait()
        self._wake_event.clear()

    def _due_in_ms(self, now_ms: int) -> int | None:
        """How long until there may be something to do though nobody says so; None for ever."""
        # What is due in a unit that takes no turn stays due: it would keep this loop from sleeping.
        at_work = [] if self.tasks.halted else self._at_work()
        due = [at - now_ms for unit in at_work if (at := unit.core.next_due_ms()) is not None]
        upkeep_ms = self._upkeep.due_in_ms()
        if upkeep_ms is not None:
            due.append(upkeep_ms)
        if self.stopping:
            due.append(20)
        return max(0, min(due)) if due else None

    def _report_changes(self) -> None:
        """Tell the leader that a checkpoint is worth while, and how urgent it is."""
        urgent, changed = "", False
        for unit in self.units:
            if unit.core.changed:
                changed = True
                if unit.core.has_output:
                    urgent = "output"
                    break
                if unit.core.has_steps:
                    urgent = "step"
        if changed:
            self._changed_ms = self._changed_ms or self._clock() * 1000
            self.link.changed(urgent)

    # What the leader decides.

    def _obey(self, action: Action) -> None:
        match action:
            case Halt():
                logger.warning("a new attempt begins")
                self._counters.rollbacks += 1
                self.tasks.halt()
            case Restore() | Adopt() | Drop():
                self._counters.count(action)
                self.tasks.change(action)
            case GoOn(tasks):
                self._join_round([unit for unit in self.units if unit.task in tasks])
            case Cut(checkpoint, release):
                self._cut(checkpoint, release)
            case Settle(manifest):
                self._settle(manifest)
            case Fetch():
                self._background.spawn(self.tasks.fetch(action, self._prepared))
            case Leave():
                self.stop()
            case End(reason):
                raise Fenced(
                    "PEN0770",
                    f"Worker {self.name} was fenced: it {reason}. Its tasks are with others, and nothing it did since "
                    "counts. Start it again: it joins as a new worker.",
                )

    def _cut(self, checkpoint: int, release: frozenset[int]) -> None:
        """Every task that takes turns cuts; those to be released stand still from here on."""
        if self.tasks.halted:
            return
        member = self.link.member
        units = self._at_work()
        standing = frozenset(unit.task for unit in units if unit.task in release and unit.snapshot.wants(checkpoint))
        self.snapshots.cut(units, checkpoint, standing)
        member.released(standing, checkpoint)
        self.link.cut()
        if standing:
            fault("handoff.standing")

    def _settle(self, manifest: Manifest) -> None:
        for unit in self.units:
            if unit.snapshot.attempt != manifest.lineage.attempt:
                continue  # Of an attempt that is over, on its way out: what it has staged was rolled back.
            unit.completed(manifest)
            self._assembly.completed(manifest.parts[unit.task].ingress_positions)
        self.last_checkpoint = manifest
        self.last_checkpoint_ms = self._clock() * 1000
        self._changed_ms = None
        self._counters.completed += 1
        self._say_letters()

    def _say_letters(self) -> None:
        """What nobody asked for an answer to fails without a word: tell of it now and then."""
        written, told = sum(unit.core.statistics().dead_letters for unit in self.units), self._letters_told
        now_s = time.monotonic()
        if written > told and now_s - self._letters_told_s > LETTERS_S:
            logger.warning("%s more: penstock dead list", counted(written - told, "dead letter"))
            self._letters_told_s = now_s
        elif written > told:
            return
        self._letters_told = written  # Also when it is less: tasks went elsewhere.

    def _placed(self, units: Sequence[TaskUnit], placed: Placed) -> None:
        """Tasks are here: they take part in the checkpoint under way, and take turns from now on."""
        self.recovery = Recovery(placed.attempt, placed.checkpoint, placed.deltas, placed.took_s)
        self._restored.clear()
        self._clock.not_before(max((unit.core.clock_ms for unit in units), default=0) / 1000)
        for feed in (feed for unit in units for feed in unit.feeds):
            if isinstance(feed, TopicInbox):
                feed.cut_due = 0
        self._join_round(units)
        logger.info(
            "attempt %d: %s continued from checkpoint %d, after %s, in %.2f s",
            placed.attempt,
            counted(placed.tasks, "task"),
            placed.checkpoint,
            counted(placed.deltas, "delta"),
            placed.took_s,
        )

    def _join_round(self, units: Sequence[TaskUnit]) -> None:
        """These take turns from now on, and part in the checkpoint under way."""
        begun = self.link.member.begun
        if begun and not self.tasks.halted:
            self.snapshots.cut(units, begun, frozenset())
        self._wake()

    async def _rebased(self) -> None:
        """A base that no manifest names is deleted after an hour: let the next checkpoint name it, also when nothing
        else calls for one."""
        self.link.report(Changed(self.name, self.link.member.number))

    async def _leave(self, unit: TaskUnit) -> None:
        await self._upkeep.leave(unit)

    def _prepared(self, tasks: tuple[int, ...]) -> None:
        self.link.report(Prepared(self.name, tasks))

    def _damaged(self, attempt: int, checkpoint: int, reason: str) -> None:
        self.tasks.halted = True
        self.link.give_up(Fault(self.name, attempt, reason, checkpoint))

    # What the parts report.

    def _wake(self) -> None:
        self._wake_event.set()

    def _fail(self, error: BaseException) -> None:
        """Something ended this worker that no retry can mend."""
        self._fatal = self._fatal or error
        self._wake()

    def _restoring(self, progress: Progress) -> None:
        self._restored[progress.task] = 100 * progress.done // max(1, progress.total)
        self._progress(progress)

    # As `Served`: what concerns a task is asked by way of the log, wherever the task is.

    @property
    def units(self) -> Sequence[TaskUnit]:
        return self._assembly.units

    @property
    def ingresses(self) -> Sequence[InputFeed]:
        return self._assembly.ingresses

    @property
    def ready(self) -> bool:
        """A worker that has no tasks is ready: it takes requests for all of them, and tasks when others go."""
        if not self._serving or self.tasks.halted:
            return False
        member = self.link.member
        return bool(member.number) and (not member.tasks or self.recovery.attempt == member.number)

    @property
    def problem(self) -> str:
        if not self._serving:
            return "starting"
        silent_s = self._silent_s()
        if silent_s * 1000 > self.cluster.session_ms:
            return "nobody leads" if math.isinf(silent_s) else f"nobody has led for {silent_s:.0f}s"
        if not self.link.member.number:
            return "waits for the leader to take it in"
        if not self.ready:
            return f"restores tasks of attempt {self.link.member.number}"
        return self._writer.unavailable or self._reader.unavailable

    @property
    def restoring(self) -> Mapping[int, int]:
        if not self._serving:
            return {}
        missing = self.link.member.tasks - {unit.task for unit in self.units if not self.tasks.halted}
        return {task: self._restored.get(task, 0) for task in sorted(missing)}

    def totals(self) -> Totals:
        return self._assembly.totals()

    def checkpoint_statistics(self) -> CheckpointStatistics:
        taken, counters = self.snapshots, self._counters
        return CheckpointStatistics(
            counters.completed,
            taken.given_up,
            self._changed_ms,
            taken.taken,
            taken.duration_ms_sum,
            taken.durations_ms,
            None,
        )

    @property
    def shared(self) -> SharedStatistics:
        member, counters = self.link.member, self._counters
        lag: Counter[str] = Counter(inbox=0, requests=0)
        for feed in (feed for unit in self.units for feed in unit.feeds):
            if isinstance(feed, TopicInbox | TopicRequests):
                lag[feed.name] += feed.behind
        return SharedStatistics(
            worker=self.name,
            attempt=member.number,
            leader=self.link.leader,
            leads=self._candidate is not None and self._candidate.service is not None,
            leader_silent_s=min(self._silent_s(), time.monotonic()),
            members=self.link.workers,
            tasks=sorted(member.tasks),
            still=sorted(member.still),
            paused=self._upkeep.under_pressure,
            lag=lag,
            unflushed_bytes=self._writer.unflushed_bytes,
            records_read=self._reader.taken,
            records_written=self._writer.written,
            adopted=counters.adopted,
            given=counters.given,
            rollbacks=counters.rollbacks,
            decisions=self._candidate.written if self._candidate is not None else 0,
        )

    def _silent_s(self) -> float:
        return asyncio.get_running_loop().time() - self.link.leader_heard_s

    async def checkpoints(self) -> Sequence[Retained]:
        return await read_retained(
            self.cluster.kafka, self.app.name, self.config.retention, now_ms=int(self._clock() * 1000)
        )

    async def manifest(self, retained: Retained) -> Manifest:
        return await read_manifest(self.cluster.kafka, self.app.name, retained)

    async def take_checkpoint(self) -> int:
        """Every task answers something, which it can't before a checkpoint holds all that was asked of it before."""
        await Looks(self.config.parallelism, self.look).settle()
        newest = (await read_newest(self.cluster.kafka, self.app.name))[1]
        assert newest is not None, "an answer was given before a checkpoint was complete"
        return newest.checkpoint

    async def take_savepoint(self, place: str) -> Savepoint:
        open_place_of(place, self.config)  # Which refuses what is no place.
        await self.take_checkpoint()
        return await copy_aside(self.config, self.cluster, self.app.name, place, self._assembly.sinks)

    async def look(self, task: int, question: Question) -> Any:
        return await self.requests.operate(Address("", id_of_task(task, self.config.parallelism)), Look(question))

    def announce(self, url: str) -> None:
        self._lock.announce(url)
        self.link.alive = replace(self.link.alive, url=url)


@dataclass
class _Counters:
    """Since the start of the worker."""

    completed: int = 0
    adopted: int = 0
    given: int = 0
    rollbacks: int = 0

    def count(self, change: Restore | Adopt | Drop) -> None:
        match change:
            case Adopt(_, tasks, _):
                self.adopted += len(tasks)
            case Drop(tasks, _):
                self.given += len(tasks)
            case Restore():
                pass  # A new attempt is counted when it halts the one before.
