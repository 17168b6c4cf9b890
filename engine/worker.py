"""The application at work in one process: opens a data directory, restores, runs turns, takes checkpoints, stops.

    start   lock -> log -> history -> restore tasks -> open sinks -> begin an attempt -> build tasks and feeds
    turns   every task in turn; yield to the event loop; wait when there is nothing to do
    cut     freeze all tasks -> encode in slices -> what was sent is durable -> deltas and COMPLETE in one sync
    upkeep  fold settled changes, make bases, drop old checkpoints, truncate

What always holds: all tasks are frozen in one step, between turns; nothing is visible before its COMPLETE is durable,
eager egresses excepted; a failure that could lose data ends the process, and the next start restores. Decisions are made
by the cores (`TaskCore`, `SnapshotTask`, `Coordinator`, `TwoPhaseSink`); this module performs them.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from penstock.checkpoint.control import AttemptBegun, Complete, ControlRecord, Manifest, Part
from penstock.checkpoint.coordinator import (
    RESERVED_IDS,
    Abandoned,
    Acknowledged,
    Action,
    Announce,
    Begin,
    Coordinator,
    CoordinatorOptions,
    Durable,
    Phase,
    Tick,
    Write,
)
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.retention import Retained, decide, oldest_of_attempts, truncation_point
from penstock.checkpoint.sinks import Restored as RowsRestored
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.checkpoint.store import DirectoryStore
from penstock.engine.config import Config
from penstock.engine.feeds import Completions, Feed, InboxFeed, IngressFeed, RequestFeed, request_envelope
from penstock.engine.journal import Journal
from penstock.engine.logs import logger
from penstock.engine.migrate import check_shapes, migrate_task
from penstock.engine.operations import BuryRows, Operation, encode_operation
from penstock.engine.restore import Restored, restore_task
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.task import TaskCore, TaskOptions
from penstock.engine.unit import Suspended, TaskUnit, Writing
from penstock.errors import ConfigurationError, CorruptSnapshot, InvalidInput, Refused, Unavailable
from penstock.files import DirectoryLock, make_directory
from penstock.functions.app import App
from penstock.functions.context import Outlet
from penstock.functions.types import codec_for
from penstock.ids import Address, Offset, key_group
from penstock.records import EgressRow, Envelope, Reply
from penstock.router.egress import sink_for
from penstock.router.embedded import EmbeddedLog
from penstock.router.ingress import reader_for
from penstock.router.requests import encode_request
from penstock.router.routing import IngressRouter
from penstock.router.sink import Sink
from penstock.state.backend import Backend
from penstock.state.rocksdb import RocksBackend, RocksMemory
from penstock.state.rocksdb import restore as restore_base

FOLD_SHARE = 3
"""Settled rows are folded when they fill a third of the memory for pending changes: the rest is for what comes meanwhile."""
IDLE_FOLD_S = 1.0
"""Settled rows are folded, however few, when nothing has happened for so long."""
BASE_BYTES = 128 << 20
"""Deltas behind the newest base. It bounds what a restart replays: about 0.3 s."""
BASE_DELTAS = 2_000
UNREFERENCED_S = 3_600
STORAGE_RETRY_S = 1.0
SWITCH_INTERVAL_S = 0.0005
ENCODE_S = 0.001
"""CPU time spent on a delta between two turns."""
GENERATION = 1
"""Of the topology. It grows when the parallelism of a data directory changes."""
ROW_BYTES_ASSUMED = 512
"""For the memory bound: a changed row with its key and bookkeeping."""


class Progress(NamedTuple):
    """How far a restore has come, for people."""

    task: int
    done: int
    total: int


class Recovery(NamedTuple):
    """What the start of the worker had to do."""

    attempt: int
    restored: int
    deltas: int
    took_s: float
    notes: tuple[str, ...]


class Worker:
    """See the module. `await run()` does everything; `stop()` ends it in an orderly way."""

    def __init__(
        self,
        app: App,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.config = config
        self._clock = clock
        self._progress = progress
        self._wake_event = asyncio.Event()
        self._stopping = False
        self._fatal: BaseException | None = None
        self._urgent_reason = ""
        self._worked_at = 0.0
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._completed_events: dict[int, list[asyncio.Future[None]]] = {}
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._upkeep_task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._units: list[TaskUnit] = []
        self._ingresses: list[IngressFeed] = []
        self._sinks: dict[str, Sink] = {}
        self._suspended: list[Suspended] = []
        self.last_checkpoint: Manifest | None = None
        self.last_checkpoint_ms = 0.0
        self.started_at = clock()
        self.ready = False
        self.checkpoint_durations_ms: list[float] = []
        """Of the last 1,000."""
        self.checkpoint_duration_ms_sum = 0.0
        """Of all since the start."""
        self.recovery = Recovery(0, 0, 0, 0.0, ())
        self.storage_error = ""
        """Why nothing can be made durable at present; empty when all is well."""

    # The life of a worker.

    async def run(self, started: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Start, run until `stop` is called or the work is done, and stop. Raises what made it fail.

        `started` runs between the start and the first turn: there a caller opens what serves this worker.
        """
        await self.start()
        try:
            if started is not None:
                await started()
            await self.serve()
        except BaseException:
            await self._abort()
            raise
        await self.finish()

    async def start(self) -> None:
        """Restore and get ready. Raises ConfigurationError, Refused, Fenced or CorruptSnapshot, with nothing changed."""
        self.app.check()
        directory = self.config.directory
        make_directory(directory)
        started = datetime.fromtimestamp(self._clock(), UTC).astimezone()
        self.lock = DirectoryLock(directory, command="penstock run", started=started)
        try:
            await self._open(directory)
        except BaseException:
            await self._abort()
            raise
        # Under load a thread that has synced a file would wait 5 ms (the default) for each return into the interpreter.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.ready = True

    def stop(self) -> None:
        """Stop taking input, take a last checkpoint, commit, and return from `run`."""
        self._stopping = True
        self._wake()

    async def _open(self, directory: Path) -> None:
        began = time.monotonic()
        self._log = EmbeddedLog(directory / "log")
        self._journal = Journal(self._log, directory / "index")
        self._store = DirectoryStore(directory / "store")
        self._memory = RocksMemory(self.config.store_bytes)
        self._history = self._journal.read_history()
        notes = [*self._log.recovered, *self._journal.notes]
        manifest, restored = self._restore(directory, notes)
        try:
            # An attempt must not share its number with one in a marker, or the marker would cover rows it never saw.
            self._history.pass_attempt(await self._open_sinks())
        except BaseException:
            _close_all(restored)
            raise
        attempt = self._begin_attempt(manifest)
        self._build(attempt, restored)
        self._restore_rows(restored)
        self._journal.write_index(self._history)
        took = time.monotonic() - began
        self.recovery = Recovery(
            attempt.lineage.attempt, attempt.restored, sum(r.deltas for r in restored), took, tuple(notes)
        )
        for note in notes:
            logger.warning("%s", note)

    # Restoring.

    def _restore(self, directory: Path, notes: list[str]) -> tuple[Manifest | None, list[Restored]]:
        """The first candidate whose files are whole, restored; going back further than wished is noted."""
        for candidate in self._candidates():
            try:
                manifest = self._journal.manifest(candidate)
                self._check_manifest(manifest)
                return manifest, self._restore_parts(manifest.parts, directory)
            except CorruptSnapshot as error:
                notes.append(f"Checkpoint {candidate.checkpoint} can't be restored. {error}")
                self._history.checkpoints.pop(candidate.checkpoint)
        if notes and self._history.attempt is not None and not self.config.fresh:
            raise CorruptSnapshot(
                "PEN0404",
                f"No checkpoint of {directory} can be restored: {notes[-1]} Restore the directory from a backup, or start "
                "from nothing with --from none.",
            )
        return None, self._restore_parts([_empty_part(task) for task in range(self.config.parallelism)], directory)

    def _candidates(self) -> Iterator[Retained]:
        if self.config.fresh:
            return iter(())
        if self.config.from_checkpoint is not None:
            return iter([self._history.chosen(self.config.from_checkpoint)])
        return iter(list(self._history.candidates()))

    def _check_manifest(self, manifest: Manifest) -> None:
        if manifest.application != self.app.name:
            raise Refused(
                "PEN0304",
                f"{self.config.directory} holds the state of application {manifest.application!r}, not of "
                f"{self.app.name!r}. Choose another directory with --dir.",
            )
        if manifest.parallelism != self.config.parallelism:
            raise Refused(
                "PEN0305",
                f"{self.config.directory} was made with parallelism {manifest.parallelism}, and {self.config.parallelism} "
                f"was asked for. Start with --parallelism {manifest.parallelism}.",
            )
        check_shapes(self.app, manifest)

    def _restore_parts(self, parts: Sequence[Part], directory: Path) -> list[Restored]:
        restored: list[Restored] = []
        try:
            for part in parts:
                restored.append(self._restore_part(part, directory))
        except BaseException:
            _close_all(restored)
            raise
        return restored

    def _restore_part(self, part: Part, directory: Path) -> Restored:
        path = directory / "tasks" / str(part.task)
        shutil.rmtree(path, ignore_errors=True)  # Of an earlier attempt: bases and deltas are the truth.
        make_directory(path.parent)

        def open_base(name: str) -> Backend:
            if name:
                fetched = path.with_suffix(".base")
                shutil.rmtree(fetched, ignore_errors=True)
                self._store.fetch(name, fetched)
                restore_base(fetched, path)
                shutil.rmtree(fetched)
            return RocksBackend.open(path, self._memory)

        return restore_task(
            part,
            self._journal,
            open_base,
            cache_bytes_max=self.config.cache_bytes // self.config.parallelism,
            progress=lambda done, total: self._progress(Progress(part.task, done, total)),
        )

    def _begin_attempt(self, manifest: Manifest | None) -> AttemptBegun:
        lineage = manifest.lineage if manifest is not None else None
        restored = manifest.checkpoint if manifest is not None else 0
        reason = "replay" if self.config.from_checkpoint is not None else "start"
        attempt = self._history.next_attempt(lineage, restored, int(self._clock() * 1000), reason)
        offset = self._journal.append_control(attempt)
        self._log.flush_nowait()
        self._history.apply(offset, attempt)
        self._manifest = manifest
        self._lineage: Lineage = attempt.lineage
        return attempt

    # Building.

    def _build(self, attempt: AttemptBegun, restored: list[Restored]) -> None:
        app, config = self.app, self.config
        outlets: dict[Any, Outlet] = {}
        for egress in app.egresses.values():
            outlet = Outlet(egress.name, egress.spec.encode, config.message_bytes_max)
            outlets[egress.name] = outlets[egress] = outlet
        self._eager = frozenset(e.name for e in app.egresses.values() if e.spec.delivery == "eager")
        epoch = attempt.high - RESERVED_IDS  # The highest id reserved before: nothing was ever sent in a later epoch.
        for task, each in enumerate(restored):
            self._units.append(self._build_unit(task, each, outlets, epoch))
        self._coordinator = Coordinator(
            CoordinatorOptions(
                application=app.name,
                tasks=config.parallelism,
                fingerprints=app.fingerprints(),
                interval_ms=config.interval_ms,
                timeout_ms=config.checkpoint_timeout_ms,
            ),
            attempt,
        )

    def _build_unit(self, task: int, restored: Restored, outlets: dict[Any, Outlet], epoch: int) -> TaskUnit:
        app, config = self.app, self.config
        completions = Completions()
        suspended = Suspended(completions, self._wake)
        self._suspended.append(suspended)
        core = TaskCore(
            app.functions.values(),
            outlets,
            restored.overlay,
            TaskOptions(
                task=task,
                tasks=config.parallelism,
                message_bytes_max=config.message_bytes_max,
                eager=self._eager,
                idempotency_keep_ms=config.idempotency_keep_ms,
            ),
            suspended.start,
        )
        migrate_task(app, self._manifest, core, restored.overlay)
        core.restore(restored.meta, restored.queues)
        snapshot = SnapshotTask(
            task, self._lineage, epoch, base=restored.base, head=restored.head, checksum=restored.checksum
        )
        feeds = self._feeds(task, core, snapshot)
        unit = TaskUnit(task, core, restored.overlay, snapshot, completions, feeds, {}, self._log, time.perf_counter)
        unit.adopt(restored)
        for name, sink in self._sinks.items():
            unit.sinks[name] = self._driver(unit, name, sink)
        return unit

    def _feeds(self, task: int, core: TaskCore, snapshot: SnapshotTask) -> list[Feed]:
        meta = core.meta
        requests = RequestFeed(self._log, task)
        requests.seek(meta.ingress_positions.get(RequestFeed.SOURCE))
        feeds: list[Feed] = [requests]
        if self.config.parallelism > 1:
            inbox = InboxFeed(self._log, task, snapshot)
            inbox.seek(meta.inbox_position)
            feeds.append(inbox)
        for number, ingress in enumerate(self.app.ingresses.values()):
            if number % self.config.parallelism != task:
                continue
            router = IngressRouter.compile(
                ingress.name,
                ingress.spec,
                to=ingress.to,
                key=ingress.key,
                router=ingress.router,
                value_codec=codec_for(ingress.spec.type) if ingress.spec.type is not None else None,
                resolve=self._resolve,
                message_bytes_max=self.config.message_bytes_max,
            )
            feed = IngressFeed(self.app.name, ingress, reader_for(ingress.spec), router, self._wake)
            feed.seek(meta.ingress_positions.get(ingress.name))
            feeds.append(feed)
            self._ingresses.append(feed)
        return feeds

    def _resolve(self, target: Any) -> tuple[str, Any]:
        """A function or typename as a target of an ingress."""
        name = target if isinstance(target, str) else getattr(target, "typename", str(target))
        function = self.app.functions.get(name)
        if function is None:
            known = ", ".join(sorted(self.app.functions)) or "none"
            raise ConfigurationError("PEN0105", f"{name} is no function of this application. Known: {known}.")
        return name, function.message_codec

    def _driver(self, unit: TaskUnit, name: str, sink: Sink) -> SinkDriver | EagerDriver:
        if name in self._eager:
            return EagerDriver(name, unit.task, sink, failed=self._fail)
        return SinkDriver(
            name,
            unit.task,
            sink,
            discard=lambda checkpoint: unit.committed(name, checkpoint),
            bury=lambda rows: self._bury(unit, name, rows),
            failed=self._fail,
        )

    async def _open_sinks(self) -> int:
        """Open every sink. Returns the highest attempt that a marker names; 0 when there is none."""
        for egress in self.app.egresses.values():
            sink = sink_for(egress.spec, self.config.directory, application=self.app.name, egress=egress.name)
            self._sinks[egress.name] = sink
            await sink.open()
        tasks = range(self.config.parallelism)
        markers = [await sink.read_marker(task) for sink in self._sinks.values() for task in tasks]
        return max((attempt for marker in markers for attempt in marker), default=0)

    def _restore_rows(self, restored: list[Restored]) -> None:
        """Hand over the rows that the checkpoint decided and whose fate is not known."""
        for unit, each in zip(self._units, restored, strict=True):
            for name, driver in unit.sinks.items():
                if isinstance(driver, SinkDriver):
                    driver.retain(self._lineage.attempts)
                    driver.handle(RowsRestored(each.staged.get(name, ())))
        self._spawn(self._tick_sinks())

    async def _tick_sinks(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for sink in self._sinks.values():
                try:
                    await sink.tick()
                except Unavailable as error:
                    logger.warning("%s", error)

    # Turns.

    async def serve(self) -> None:
        """Take turns until `stop` is called, the work is done, or something fails for good, which is raised."""
        while self._fatal is None and not self._stopping:
            now_ms = int(self._clock() * 1000)
            worked = False
            paused = self._under_pressure()
            for unit in self._units:
                effects = unit.turn(now_ms, paused=paused)
                if effects is not None:
                    worked = True
                    if effects.replies:
                        self._urgent_reason = "request"
            self._tick(now_ms)
            self._upkeep()
            if worked:
                self._worked_at = now_ms / 1000
                await asyncio.sleep(0)
            elif self.config.until_done and self._is_done():
                break
            else:
                await self._wait(now_ms)
        if self._fatal is not None:
            raise self._fatal

    async def _wait(self, now_ms: int) -> None:
        """Sleep until something is due or `_wake` is called."""
        due = [at - now_ms for unit in self._units if (at := unit.core.next_due_ms()) is not None]
        checkpoint = self._coordinator.due_in_ms(now_ms, dirty=self._dirty(), urgent=bool(self._urgent_reason))
        if checkpoint is not None:
            due.append(int(checkpoint) + 1)
        if any(unit.overlay.settled_rows for unit in self._units):
            due.append(int(IDLE_FOLD_S * 1000) + 1)
        timeout_s = max(0, min(due)) / 1000 if due else None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake_event.wait()
        self._wake_event.clear()

    def _wake(self) -> None:
        self._wake_event.set()

    def _is_done(self) -> bool:
        return all(feed.done for feed in self._ingresses) and all(unit.idle for unit in self._units)

    def _dirty(self) -> bool:
        return self._coordinator.owing or any(unit.core.changed for unit in self._units)

    def _under_pressure(self) -> bool:
        """Whether inputs must wait: unsettled changes and queues fill their share of the memory (PROTOCOL 25)."""
        rows = 0
        for unit in self._units:
            statistics = unit.overlay.statistics()
            rows += statistics.unsettled + statistics.settled + unit.core.queued
        return rows * ROW_BYTES_ASSUMED > self.config.pending_bytes

    def _fail(self, error: BaseException) -> None:
        """Something ended the application that no retry can mend."""
        self._fatal = self._fatal or error
        self._wake()

    # Checkpoints.

    def _tick(self, now_ms: float) -> None:
        tick = Tick(now_ms, self._dirty(), bool(self._urgent_reason), self._urgent_reason or "interval")
        self._perform(self._coordinator.handle(tick))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begin(checkpoint):
                    self._urgent_reason = ""
                    self._checkpoint_task = self._spawn(self._checkpoint(checkpoint))
                case Write(record):
                    self._spawn(self._make_durable(self._journal.append_control(record), record))
                case Announce(manifest):
                    self._announce(manifest)
                case Abandoned(checkpoint, reason):
                    logger.error("PEN0401 Checkpoint %d was given up: %s", checkpoint, reason)

    async def _make_durable(self, offset: int, record: ControlRecord) -> None:
        """For records outside a checkpoint: reserved ids."""
        await self._flush()
        self._history.apply(offset, record)
        self._perform(self._coordinator.handle(Durable(self._clock() * 1000)))
        self._wake()

    async def _flush(self) -> None:
        """Make everything appended durable. While the disk refuses, nothing is lost: it waits, and is not ready."""
        while True:
            try:
                await self._log.flush()
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

    async def _checkpoint(self, checkpoint: int) -> None:
        """Take one checkpoint, from the freeze to the announcement."""
        began, cpu = time.perf_counter(), time.thread_time()
        writings = [unit.cut(checkpoint, self.app.name, GENERATION) for unit in self._units]
        cost_s = time.thread_time() - cpu
        sent = self._log.statistics().unflushed_records
        for writing in writings:
            cost_s += await self._write(writing)
        if sent:
            await self._flush()  # Everything sent before the cut, before the COMPLETE that refers to it (PROTOCOL 9).
        if self._coordinator.current != checkpoint:
            for unit in self._units:
                unit.abandoned(checkpoint)
            return
        manifest, offset = self._complete(checkpoint, writings)
        await self._flush()
        self._history.apply(offset, Complete(manifest))
        took_ms = (time.perf_counter() - began) * 1000
        self.checkpoint_duration_ms_sum += took_ms
        self.checkpoint_durations_ms.append(took_ms)
        del self.checkpoint_durations_ms[:-1000]
        self._perform(self._coordinator.handle(Durable(self._clock() * 1000, cost_s * 1000)))
        self._wake()

    async def _write(self, writing: Writing) -> float:
        """Encode a delta and append it, in slices with turns between them. Returns the CPU seconds it took."""
        encoder, cost_s = writing.encoder, 0.0
        while not encoder.done:
            began = time.thread_time()
            took = 0.0
            while not encoder.done and took < ENCODE_S:
                record = encoder.step()
                if record is not None:
                    offset = self._journal.append_delta(record)
                    writing.offset = offset if writing.offset < 0 else writing.offset
                took = time.thread_time() - began
            cost_s += took
            if not encoder.done:
                await asyncio.sleep(0)
        return cost_s

    def _complete(self, checkpoint: int, writings: list[Writing]) -> tuple[Manifest, int]:
        """COMPLETE behind the deltas: one sync makes them durable, and it can't be durable without them."""
        actions: list[Action] = []
        for unit, writing in zip(self._units, writings, strict=True):
            part = unit.written(writing)
            actions += self._coordinator.handle(Acknowledged(checkpoint, part, writing.encoder.bytes))
        (decision,) = actions
        assert isinstance(decision, Write)
        assert isinstance(decision.record, Complete)
        return decision.record.manifest, self._journal.append_control(decision.record)

    def _announce(self, manifest: Manifest) -> None:
        self.last_checkpoint = manifest
        self.last_checkpoint_ms = self._clock() * 1000
        for unit in self._units:
            for reply in unit.completed(manifest):
                self._tell(reply)
        for checkpoint in [c for c in self._completed_events if c <= manifest.checkpoint]:
            for future in self._completed_events.pop(checkpoint):
                if not future.done():
                    future.set_result(None)

    async def wait_checkpoint(self, reason: str) -> int:
        """Take a checkpoint of everything admitted so far, and return its number once it is complete."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        following = (self._coordinator.current or self._coordinator.last_id) + 1
        self._completed_events.setdefault(following, []).append(future)
        self._urgent_reason = reason
        self._wake()
        await future
        assert self.last_checkpoint is not None
        return self.last_checkpoint.checkpoint

    # Requests from outside.

    async def send(
        self,
        address: Address,
        payload: bytes,
        *,
        idempotency_key: str = "",
        headers: dict[str, str] | None = None,
        origin: str = "",
    ) -> None:
        """Give a message to an address. It is durable when this returns. Raises Refused while the worker stops."""
        self._append_request(
            request_envelope(
                address,
                payload,
                request_id="",
                idempotency_key=idempotency_key,
                headers=headers,
                origin=origin,
            )
        )
        await self._flush()

    async def call(
        self,
        address: Address,
        payload: bytes,
        *,
        idempotency_key: str = "",
        headers: dict[str, str] | None = None,
        origin: str = "",
        operation: str = "",
    ) -> Reply:
        """The same, and wait for the answer, which can't be rolled back any more when this returns."""
        request_id = uuid.uuid4().hex
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            self._append_request(
                request_envelope(
                    address,
                    payload,
                    request_id=request_id,
                    idempotency_key=idempotency_key,
                    headers=headers,
                    origin=origin,
                    operation=operation,
                )
            )
            return await future
        finally:
            del self._waiting[request_id]

    async def operate(self, address: Address, operation: Operation) -> Any:
        """Carry out an operation at the task that owns the address, and return its answer. Raises InvalidInput."""
        name, payload = encode_operation(operation)
        reply = await self.call(address, payload, operation=name, origin="operator")
        if reply.error:
            code, _, message = reply.error.partition(" ")
            raise InvalidInput(code, message)
        return msgspec.msgpack.decode(reply.value)

    def _append_request(self, envelope: Envelope) -> None:
        if self._stopping or not self.ready:
            raise Refused("PEN0603", f"{self.app.name} is stopping and takes no requests. Try again when it runs.")
        owner = key_group(envelope.id) % self.config.parallelism
        self._log.append(f"requests-{owner}", encode_request(envelope))
        self._wake()

    def _tell(self, reply: Reply) -> None:
        """Answer whoever waits. A caller from before a restart, or that went away, is not there any more."""
        future = self._waiting.get(reply.request_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def _bury(self, unit: TaskUnit, egress: str, rows: Sequence[tuple[EgressRow, str]]) -> asyncio.Future[None]:
        """Keep rows that a sink refuses as dead letters; done when a complete checkpoint holds them."""
        operation = BuryRows(egress, [(row.value, row.cause, reason) for row, reason in rows])

        async def bury() -> None:
            await self.operate(Address("", f"egress/{egress}"), operation)

        return asyncio.ensure_future(bury())

    # Upkeep: folding, bases, retention.

    def _upkeep(self) -> None:
        """Start what is due in the background, one thing at a time."""
        if self._upkeep_task is None or self._upkeep_task.done():
            for unit in self._units:
                counters = unit.counters
                wants_base = counters.delta_bytes > BASE_BYTES or counters.deltas > BASE_DELTAS
                settled = unit.overlay.settled_rows
                full = settled * ROW_BYTES_ASSUMED * FOLD_SHARE > self.config.pending_bytes
                idle = settled > 0 and self._clock() - self._worked_at > IDLE_FOLD_S
                if wants_base or full or idle:
                    self._upkeep_task = self._spawn(self._fold(unit, with_base=wants_base))
                    return

    async def _fold(self, unit: TaskUnit, *, with_base: bool) -> None:
        """Write settled changes into the store, slice by slice; then, if wanted, make a base of it."""
        while unit.begin_fold():
            while unit.overlay.fold_slice():
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        if with_base:
            await self._make_base(unit)
            self._retain()

    async def _make_base(self, unit: TaskUnit) -> None:
        checkpoint = unit.overlay.folded_checkpoint
        if checkpoint <= unit.snapshot.base_checkpoint:
            return
        name = f"{checkpoint:012d}-{self._lineage.attempt}-{unit.task}"
        path = self.config.directory / "tasks" / f"{unit.task}.checkpoint"
        backend = unit.overlay.backend
        try:
            await asyncio.to_thread(backend.flush)
            shutil.rmtree(path, ignore_errors=True)
            backend.checkpoint(path)
            await asyncio.to_thread(self._store.put, name, path)
            await asyncio.to_thread(shutil.rmtree, path)
        except Unavailable as error:
            logger.error("%s", error)
            return
        unit.rebase(name, checkpoint)

    def _retain(self) -> None:
        """Forget old checkpoints, and what only they needed."""
        history, now_s = self._history, self._clock()
        needed = frozenset({history.attempt.restored} if history.attempt is not None else ())
        verdict = decide(list(history.checkpoints.values()), self.config.retention, int(now_s * 1000), needed=needed)
        for dropped in verdict.over_limit:
            logger.warning(
                "PEN0402 Checkpoint %d is dropped before its time: checkpoints reached their limit of %s bytes.",
                dropped.checkpoint,
                f"{self.config.retention.bytes_max:,}",
            )
        history.checkpoints = {each.checkpoint: each for each in verdict.kept}
        self._journal.write_index(history)
        point = truncation_point(verdict.kept)
        if point is not None:
            self._journal.truncate(point)
        bases = {base for each in verdict.kept for base in each.bases}
        bases |= {unit.snapshot.base_name for unit in self._units}
        self._store.collect(bases, lambda path: now_s - path.stat().st_mtime > UNREFERENCED_S)
        self._truncate_inputs(verdict.kept)

    def _truncate_inputs(self, kept: Sequence[Retained]) -> None:
        """Requests and frames before the positions of every retained checkpoint are needed by nobody."""
        floors: dict[str, int] = {}
        for each in oldest_of_attempts(kept):
            try:
                manifest = self._journal.manifest(each)
            except CorruptSnapshot as error:
                logger.error("%s", error)
                return
            for part in manifest.parts:
                requests = part.ingress_positions.get(RequestFeed.SOURCE)
                positions = {
                    f"inbox-{part.task}": part.inbox_position,
                    f"requests-{part.task}": requests if isinstance(requests, int) else 0,
                }
                for partition, position in positions.items():
                    floors[partition] = min(position, floors.get(partition, position))
        for partition, floor in floors.items():
            self._log.truncate(partition, Offset(floor))

    # The end.

    async def finish(self) -> None:
        """Stop in an orderly way: what is done is checkpointed and committed, what is not stays in the snapshot."""
        try:
            async with asyncio.timeout(self.config.stop_timeout_ms / 1000):
                await self._last_checkpoint()
                for unit in self._units:
                    for driver in unit.sinks.values():
                        await driver.wait_quiet()
        except TimeoutError:
            logger.error(
                "PEN0604 Stopping took longer than %g s, so the last checkpoint or its output may be missing. Nothing is "
                "lost: the next start continues from checkpoint %s.",
                self.config.stop_timeout_ms / 1000,
                self.last_checkpoint.checkpoint if self.last_checkpoint else "none",
            )
        await self._close(final=True)

    async def _last_checkpoint(self) -> None:
        """Checkpoint until nothing has changed since the last one. Nothing new is admitted meanwhile."""
        while self._dirty() or self._coordinator.phase is not Phase.IDLE:
            self._urgent_reason = "stop"
            self._tick(self._clock() * 1000)
            await asyncio.sleep(0.001)

    async def _abort(self) -> None:
        """End at once, keeping what is durable."""
        with suppress(Exception):
            await self._close(final=False)

    async def _close(self, *, final: bool) -> None:
        self.ready = False
        for suspended in self._suspended:
            await suspended.cancel_all()
        for unit in self._units:
            for driver in unit.sinks.values():
                driver.cancel()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for feed in self._ingresses:
            await feed.close()
        for sink in self._sinks.values():
            await sink.close(final)
        if final:
            self._journal.write_index(self._history)
        for unit in self._units:
            unit.overlay.backend.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Refused("PEN0603", f"{self.app.name} stopped before the answer was there."))
        if hasattr(self, "_log"):
            self._log.close()
        self.lock.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background. What it raises ends the worker."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # What people ask.

    @property
    def units(self) -> Sequence[TaskUnit]:
        return self._units

    @property
    def ingresses(self) -> Sequence[IngressFeed]:
        return self._ingresses

    @property
    def completed(self) -> int:
        """Checkpoints completed since the start."""
        return self._coordinator.completed

    @property
    def checkpoints(self) -> Sequence[Retained]:
        """The retained checkpoints, oldest first."""
        return list(self._history.checkpoints.values())

    @property
    def journal(self) -> Journal:
        return self._journal

    @property
    def coordinator(self) -> Coordinator:
        return self._coordinator

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    @property
    def calls_in_flight(self) -> int:
        return len(self._waiting)

    def unit_of(self, id: str) -> TaskUnit:
        """The task that owns an id."""
        return self._units[key_group(id) % self.config.parallelism]


def _close_all(restored: Sequence[Restored]) -> None:
    for each in restored:
        each.overlay.backend.close()


def _empty_part(task: int) -> Part:
    return Part(task, "", 0, -1, 0, -1, 0, 0)
