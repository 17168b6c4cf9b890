"""Puts an application together for one process: from declarations and restored tasks to units that can take turns.

    sinks, opened -> for each task: core, protocol, feeds, a driver for each sink -> rows whose fate is unknown

What always holds: everything that was opened can be closed, however far the building came; ingresses are dealt out to
the tasks by the hash of their names, so that every start gives the same task the same one, whatever else is declared
meanwhile. Decides nothing about
when units take turns or checkpoints: it reports what happens to them by the callbacks it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from penstock.checkpoint.control import AttemptBegun, Manifest
from penstock.checkpoint.coordinator import RESERVED_IDS
from penstock.checkpoint.sinks import Restored as RowsRestored
from penstock.checkpoint.sinks import no_replay
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.engine.clock import WorkClock
from penstock.engine.config import Config
from penstock.engine.feeds import Completions, Feed, InboxFeed, IngressFeed, InputFeed, RequestFeed
from penstock.engine.migrate import migrate_task
from penstock.engine.restore import Restored
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.task import Start, TaskCore, TaskOptions
from penstock.engine.totals import Totals
from penstock.engine.unit import Channels, LogChannels, Suspended, TaskUnit
from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.functions.app import App, Egress, Ingress
from penstock.functions.context import Outlet
from penstock.functions.formats import Raw
from penstock.functions.kafka import KafkaIngress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.functions.outlets import outlets_of, resolve_function
from penstock.ids import key_group
from penstock.logs import logger
from penstock.records import EgressRow, TaskMeta
from penstock.router.egress import instance_of, sink_for
from penstock.router.ingress import Reader, reader_for
from penstock.router.kafka_options import KafkaOptions
from penstock.router.log import Log
from penstock.router.routing import compile_router
from penstock.router.sink import Sink

if TYPE_CHECKING:  # They need the client library, which not every installation has.
    from penstock.engine.kafka_ports import KafkaPorts

SINK_TICK_S = 1.0

Bury = Callable[[str, Sequence[tuple[EgressRow, str]]], asyncio.Future[None]]
"""Keeps rows that the sink of an egress refuses, each with the reason."""


class Wiring(Protocol):
    """What connects tasks to the log they live on."""

    channels: Channels

    def feeds(self, task: int, meta: TaskMeta, snapshot: SnapshotTask, *, fresh: bool) -> list[Feed]:
        """Requests from outside and frames of other tasks, from where `meta` says; `fresh`: from the first there is."""
        ...


class LogWiring:
    """Of a log that all tasks share in one process."""

    def __init__(self, log: Log, tasks: int) -> None:
        self.channels: Channels = LogChannels(log)
        self._log = log
        self._tasks = tasks

    def feeds(self, task: int, meta: TaskMeta, snapshot: SnapshotTask, *, fresh: bool) -> list[Feed]:
        requests = RequestFeed(self._log, task)
        requests.seek(meta.ingress_positions.get(RequestFeed.SOURCE))
        if self._tasks == 1:
            return [requests]
        inbox = InboxFeed(self._log, task, snapshot)
        if fresh:  # A snapshot taken before the first frame must say so, too: what lies before may be deleted.
            meta.inbox_position = self._log.start(inbox.partition)
        inbox.seek(meta.inbox_position)
        return [requests, inbox]


class Origin(NamedTuple):
    """What a task continues from."""

    attempt: AttemptBegun
    manifest: Manifest | None
    """None: from nothing."""
    epoch: int
    """The last cut that any task of the attempt may have passed before this one goes on."""
    attempt_starts: bool = True
    """Whether all tasks begin anew with it, so that frames are numbered from one again."""


def origin_of_attempt(attempt: AttemptBegun, manifest: Manifest | None) -> Origin:
    """Where every task starts in a new attempt: nothing was ever sent in an epoch above the ids reserved before."""
    return Origin(attempt, manifest, attempt.high - RESERVED_IDS)


def build_core(
    app: App,
    config: Config,
    task: int,
    restored: Restored,
    outlets: Mapping[Any, Outlet],
    start: Start,
    *,
    manifest: Manifest | None,
    internal: Container[str] = (),
    dead_egress: str = "",
    attempt_starts: bool = True,
    kind: type[TaskCore] = TaskCore,
) -> TaskCore:
    """The core of one task, migrated to `app` and as `restored` left it. Rows for egresses that are neither declared
    nor `internal` become dead letters, of which `dead_egress` gets copies.

    Raises FunctionError for a migration that fails.
    """
    core = kind(
        app.functions.values(),
        outlets,
        restored.overlay,
        TaskOptions(
            task=task,
            tasks=config.parallelism,
            message_bytes_max=config.message_bytes_max,
            eager=eager_egresses(app),
            idempotency_keep_ms=config.idempotency_keep_ms,
            check_state=config.check_state,
            always_replay=config.always_replay,
            dead_egress=dead_egress,
        ),
        start,
        app.schedules,
    )
    migrate_task(app, manifest, core, restored.overlay)
    declared = {name: rows for name, rows in restored.staged.items() if name not in internal}
    core.restore(restored.meta, restored.queues, declared, attempt_starts=attempt_starts)
    return core


def build_ingress(
    app: App, ingress: Ingress, reader: Reader, *, message_bytes_max: int, wake: Callable[[], None]
) -> IngressFeed:
    """The feed of an ingress that is read by `reader`. Raises ConfigurationError as `compile_router` does."""
    return IngressFeed(app.name, ingress, reader, compile_router(app, ingress, message_bytes_max), wake)


def eager_egresses(app: App) -> frozenset[str]:
    return frozenset(egress.name for egress in app.egresses.values() if egress.spec.delivery == "eager")


class _Placed(NamedTuple):
    """A unit, and what was made for it alone."""

    unit: TaskUnit
    suspended: Suspended
    ingresses: list[InputFeed]


class Assembly:
    """See the module. `wake` says that a unit has something to do again; `failed` gets what must end the worker.
    `contested`: tasks come and go, and another worker may believe for a while that one of ours is its."""

    def __init__(
        self,
        app: App,
        config: Config,
        *,
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
        contested: bool = False,
        kafka: KafkaOptions | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._wake = wake
        self._failed = failed
        self._contested = contested
        self._eager = eager_egresses(app)
        self._outlets = outlets_of(app, config.message_bytes_max)
        self._work_clock = WorkClock()
        self._sinks: dict[str, Sink] = {}
        self._internal: set[str] = set()
        """Egresses that the application did not declare, but the engine."""
        self._reply_egress = self._dead_egress = ""
        self._ports = self._kafka_ports(kafka)
        self._placed: dict[int, _Placed] = {}
        self._past = Totals()
        """Of units that are not here any more."""
        self.units: list[TaskUnit] = []
        """In the order of their tasks."""

    # Putting together.

    async def open_sinks(self, instance: str = "", *, generation: int = 1) -> None:
        """Open every sink. `instance` names the history that markers are of; left out, it is the data directory's.
        `generation` is that of the topics of markers."""
        for egress in self._app.egresses.values():
            self._sinks[egress.name] = sink = await self._sink(egress, instance, generation)
            await sink.open()

    async def open_dead_sink(self, name: str, topic: str, history: str, *, generation: int) -> None:
        """Let every dead letter be copied to a topic of the application's own cluster, as the row of an egress."""
        assert self._ports is not None, "an application of several workers has a cluster"
        self._sinks[name] = sink = await self._ports.sink(name, KafkaEgress(topic, format=Raw()), history, generation)
        self._internal.add(name)
        self._dead_egress = name
        await sink.open()

    async def _sink(self, egress: Egress, instance: str, generation: int) -> Sink:
        if isinstance(egress.spec, KafkaEgress):
            assert self._ports is not None
            history = instance or instance_of(self._config.directory)
            return await self._ports.sink(egress.name, egress.spec, history, generation)
        return sink_for(
            egress.spec,
            self._config.directory,
            application=self._app.name,
            egress=egress.name,
            instance=instance,
            contested=self._contested,
        )

    def _kafka_ports(self, kafka: KafkaOptions | None) -> KafkaPorts | None:
        """What the application reads and writes of Kafka; None when that is nothing."""
        reads = any(isinstance(ingress.spec, KafkaIngress) for ingress in self._app.ingresses.values())
        writes = any(isinstance(egress.spec, KafkaEgress) for egress in self._app.egresses.values())
        if not reads and not writes and kafka is None:
            return None
        try:
            from penstock.engine.kafka_ports import KafkaPorts
        except ImportError as error:
            raise missing_client(error) from error
        return KafkaPorts(
            self._app,
            kafka,
            tasks=self._config.parallelism,
            message_bytes_max=self._config.message_bytes_max,
            resolve=resolve_function,
            wake=self._wake,
            failed=self._failed,
        )

    async def open_inputs(self) -> None:
        """Connect to what is read over a network. Raises Unavailable, and ConfigurationError for what is not there."""
        if self._ports is not None:
            await self._ports.open_inputs()

    def add_reply_sink(self, name: str, sink: Sink) -> None:
        """Let replies be rows, which go out through `sink`."""
        self._sinks[name] = sink
        self._internal.add(name)
        self._reply_egress = name

    async def highest_attempt(self) -> int:
        """The highest attempt that a marker names; 0 when there is none."""
        markers = [marker for of_tasks in (await self.markers()).values() for marker in of_tasks]
        return max((attempt for marker in markers for attempt in marker), default=0)

    async def publish(self, tasks: Collection[int]) -> None:
        """All rows of these tasks are written, and nobody has the tasks any more: nothing stays hidden."""
        for sink in self._sinks.values():
            for task in tasks:
                await sink.release(task, final=True)

    async def markers(self) -> dict[str, list[dict[int, int]]]:
        """By egress, the marker of each task."""
        tasks = range(self._config.parallelism)
        return {name: [await sink.read_marker(task) for task in tasks] for name, sink in self._sinks.items()}

    def add(
        self,
        task: int,
        restored: Restored,
        origin: Origin,
        wiring: Wiring,
        *,
        retained: frozenset[int] | None,
        bury: Bury,
    ) -> TaskUnit:
        """Make a unit of a restored task. The sinks are open by now; their markers keep what they say of the attempts
        `retained`, or of all.

        Raises ConfigurationError for declarations that make no sense, and FunctionError for a migration that fails.
        """
        completions = Completions()
        suspended = Suspended(completions, self._wake)
        core = self._core(task, restored, origin, suspended)
        core.outside = suspended
        lineage = origin.attempt.lineage
        snapshot = SnapshotTask(
            task, lineage, origin.epoch, base=restored.base, head=restored.head, checksum=restored.checksum
        )
        ingresses = self._ingress_feeds(task, core.meta)
        feeds = [*wiring.feeds(task, core.meta, snapshot, fresh=origin.manifest is None), *ingresses]
        unit = TaskUnit(
            task, core, restored.overlay, snapshot, completions, feeds, {}, wiring.channels, self._work_clock
        )
        unit.reply_egress = self._reply_egress
        unit.adopt(restored)
        for name, sink in self._sinks.items():
            driver = unit.sinks[name] = self._driver(unit, name, sink, bury)
            if isinstance(driver, SinkDriver) and retained is not None:
                driver.retain(retained | lineage.attempts)
        self._placed[task] = _Placed(unit, suspended, ingresses)
        self.units[:] = [self._placed[each].unit for each in sorted(self._placed)]
        return unit

    def resume(self, unit: TaskUnit, restored: Restored) -> None:
        """The unit may go on: hand over the rows that the checkpoint decided and whose fate is not known."""
        for name, driver in unit.sinks.items():
            batches = restored.staged.get(name, ())
            if isinstance(driver, SinkDriver):
                driver.handle(RowsRestored(batches))
            elif batches:
                driver.inherit(batches)
                # Only a snapshot says so, and none is complete before these rows are written, as with all eager ones.
                unit.committed(name, batches[-1].checkpoint)

    async def remove(self, unit: TaskUnit, *, final: bool) -> None:
        """Let go of a unit: of its handlers, its rows that are under way, its inputs and its store. `final` when nobody
        else has its task, and all its rows are written."""
        placed = self._placed.pop(unit.task)
        self._past.add(unit, placed.ingresses)
        self.units[:] = [self._placed[each].unit for each in sorted(self._placed)]
        await self._cancel(placed)
        for feed in placed.ingresses:
            await feed.close()
        if self._ports is not None:
            self._ports.drop(unit.task)
        for sink in self._sinks.values():
            await sink.release(unit.task, final=final)
        unit.overlay.backend.close()

    def _core(self, task: int, restored: Restored, origin: Origin, suspended: Suspended) -> TaskCore:
        core = build_core(
            self._app,
            self._config,
            task,
            restored,
            self._outlets,
            suspended.start,
            manifest=origin.manifest,
            internal=self._internal,
            dead_egress=self._dead_egress,
            attempt_starts=origin.attempt_starts,
        )
        core.origin_of = self._origin_of
        return core

    def totals(self) -> Totals:
        """What was done here, also by units that are gone."""
        totals = self._past.copy()
        for placed in self._placed.values():
            totals.add(placed.unit, placed.ingresses)
        return totals

    @property
    def sinks(self) -> Collection[str]:
        """The names of all egresses, also of those that the application did not declare."""
        return self._sinks.keys()

    @property
    def ingresses(self) -> list[InputFeed]:
        return [feed for placed in self._placed.values() for feed in placed.ingresses]

    def _origin_of(self, cause: int) -> str:
        """Where the record that caused something stands, for people; empty when no ingress knows it."""
        return next((origin for feed in self.ingresses if (origin := feed.origin_of(cause))), "")

    def _ingress_feeds(self, task: int, meta: TaskMeta) -> list[InputFeed]:
        feeds: list[InputFeed] = []
        for ingress in self._app.ingresses.values():
            if isinstance(ingress.spec, KafkaIngress):
                assert self._ports is not None
                feeds.append(self._ports.feed(ingress.name, task, meta.ingress_positions))
            elif key_group(ingress.name) % self._config.parallelism == task:
                reader = reader_for(ingress.spec)
                bytes_max = self._config.message_bytes_max
                feed = build_ingress(self._app, ingress, reader, message_bytes_max=bytes_max, wake=self._wake)
                feed.seek(meta.ingress_positions.get(ingress.name))
                feeds.append(feed)
        return feeds

    def _driver(self, unit: TaskUnit, name: str, sink: Sink, bury: Bury) -> SinkDriver | EagerDriver:
        lineage = unit.snapshot.lineage
        # Whoever gets a reply has asked for it, and knows it by the name of the request.
        replay_of = no_replay if name == self._reply_egress else lineage.replay_of
        if name in self._eager:
            return EagerDriver(name, unit.task, sink, failed=self._failed, attempt=lineage.attempt, replay_of=replay_of)
        return SinkDriver(
            name,
            unit.task,
            sink,
            discard=lambda checkpoint: unit.committed(name, checkpoint),
            bury=lambda rows: bury(name, rows),
            failed=self._failed,
            contested=self._contested,
            replay_of=replay_of,
        )

    # At work, and the end.

    @property
    def done(self) -> bool:
        """Whether every ingress has ended, and with it everything that it caused."""
        return all(feed.done for feed in self.ingresses) and all(unit.idle for unit in self.units)

    async def tick_sinks(self) -> None:
        """Let sinks do what is due without a row, such as closing a file that is old enough. Never returns."""
        while True:
            await asyncio.sleep(SINK_TICK_S)
            for sink in self._sinks.values():
                try:
                    await sink.tick()
                except Unavailable as error:
                    logger.warning("%s", error)

    @property
    def quiet(self) -> bool:
        """Whether everything that checkpoints have decided is visible."""
        return all(driver.quiet for unit in self.units for driver in unit.sinks.values())

    def unwritten(self) -> str:
        """Which egresses have rows that are not visible, and why; empty when there are none."""
        found = [
            f"Egress {name} has {driver.unwritten:,} rows that are not written"
            + (f" ({driver.unavailable.rstrip('.')})" if driver.unavailable else "")
            for unit in self.units
            for name, driver in unit.sinks.items()
            if driver.unwritten
        ]
        return "; ".join(found)

    async def cancel(self) -> None:
        """Let go of handlers that are suspended and of rows that are under way: the next start has them again."""
        for placed in self._placed.values():
            await self._cancel(placed)

    async def _cancel(self, placed: _Placed) -> None:
        timeout_s = self._config.stop_timeout_ms / 1000
        placed.unit.core.close()
        await placed.suspended.cancel_all(timeout_s)
        await asyncio.gather(*(driver.stop(timeout_s) for driver in placed.unit.sinks.values()))

    def completed(self, positions: Mapping[str, Any]) -> None:
        """A checkpoint with these positions of inputs is complete."""
        if self._ports is not None:
            self._ports.completed(positions)

    async def close(self, *, final: bool) -> None:
        """Close what is read from and written to; `final` when everything decided is visible."""
        for feed in self.ingresses:
            await feed.close()
        if self._ports is not None:
            await self._ports.close()
        failed: list[PenstockError] = []
        for sink in self._sinks.values():
            try:
                await sink.close(final)
            except PenstockError as error:
                failed.append(error)  # The others are closed all the same.
        for further in failed[1:]:
            logger.error("%s", further)
        if failed:
            raise failed[0]


def missing_client(error: ImportError) -> ConfigurationError:
    """What to tell somebody who uses Kafka and has not installed what it takes."""
    return ConfigurationError(
        "PEN0779", f"For Kafka the client library is missing ({error}). Install it: pip install 'penstock[kafka]'."
    )
