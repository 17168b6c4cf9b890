"""Puts an application together for one process: from declarations and restored tasks to units that can take turns.

    sinks, opened -> for each task: core, protocol, feeds, a driver for each sink -> rows whose fate is unknown

What always holds: everything that was opened can be closed, however far the building came; ingresses are dealt out to
the tasks by the hash of their names, so that every start gives the same task the same one, whatever else is declared
meanwhile. Decides nothing about
when units take turns or checkpoints: it reports what happens to them by the callbacks it was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from penstock.checkpoint.control import AttemptBegun, Manifest
from penstock.checkpoint.coordinator import RESERVED_IDS
from penstock.checkpoint.sinks import Restored as RowsRestored
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.engine.config import Config
from penstock.engine.feeds import Completions, Feed, InboxFeed, IngressFeed, RequestFeed
from penstock.engine.logs import logger
from penstock.engine.migrate import migrate_task
from penstock.engine.restore import Restored
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.task import TaskCore, TaskOptions
from penstock.engine.unit import Suspended, TaskUnit
from penstock.errors import ConfigurationError, Unavailable
from penstock.functions.app import App, Ingress
from penstock.functions.context import Outlet
from penstock.functions.types import codec_for
from penstock.ids import key_group
from penstock.records import EgressRow
from penstock.router.egress import sink_for
from penstock.router.ingress import reader_for
from penstock.router.log import Log
from penstock.router.routing import IngressRouter
from penstock.router.sink import Sink

SINK_TICK_S = 1.0

Bury = Callable[[str, Sequence[tuple[EgressRow, str]]], asyncio.Future[None]]
"""Keeps rows that the sink of an egress refuses, each with the reason."""


class Assembly:
    """See the module. `wake` says that a unit has something to do again; `failed` gets what must end the worker."""

    def __init__(
        self, app: App, config: Config, *, wake: Callable[[], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._app = app
        self._config = config
        self._wake = wake
        self._failed = failed
        self._eager = frozenset(e.name for e in app.egresses.values() if e.spec.delivery == "eager")
        self._sinks: dict[str, Sink] = {}
        self._suspended: list[Suspended] = []
        self.units: list[TaskUnit] = []
        self.ingresses: list[IngressFeed] = []

    # Putting together.

    async def open_sinks(self) -> int:
        """Open every sink. Returns the highest attempt that a marker names; 0 when there is none."""
        for egress in self._app.egresses.values():
            sink = sink_for(egress.spec, self._config.directory, application=self._app.name, egress=egress.name)
            self._sinks[egress.name] = sink
            await sink.open()
        tasks = range(self._config.parallelism)
        markers = [await sink.read_marker(task) for sink in self._sinks.values() for task in tasks]
        return max((attempt for marker in markers for attempt in marker), default=0)

    def build(
        self,
        attempt: AttemptBegun,
        manifest: Manifest | None,
        restored: Sequence[Restored],
        log: Log,
        *,
        retained: frozenset[int] | None,
        bury: Bury,
    ) -> None:
        """Make a unit of every restored task, which continues in `attempt`. The sinks are open by now; their markers
        keep what they say of the attempts `retained`, or of all.

        Raises ConfigurationError for declarations that make no sense, and FunctionError for a migration that fails.
        """
        outlets: dict[Any, Outlet] = {}
        for egress in self._app.egresses.values():
            outlet = Outlet(egress.name, egress.spec.encode, self._config.message_bytes_max)
            outlets[egress.name] = outlets[egress] = outlet
        for task, each in enumerate(restored):
            self.units.append(self._build_unit(task, each, attempt, manifest, log, outlets))
        for unit in self.units:
            for name, sink in self._sinks.items():
                driver = unit.sinks[name] = self._driver(unit, name, sink, bury)
                if isinstance(driver, SinkDriver) and retained is not None:
                    driver.retain(retained | attempt.lineage.attempts)

    def resume(self, restored: Sequence[Restored]) -> None:
        """The attempt has begun: hand over the rows that the checkpoint decided and whose fate is not known."""
        for unit, each in zip(self.units, restored, strict=True):
            for name, driver in unit.sinks.items():
                if isinstance(driver, SinkDriver):
                    driver.handle(RowsRestored(each.staged.get(name, ())))

    def _build_unit(
        self,
        task: int,
        restored: Restored,
        attempt: AttemptBegun,
        manifest: Manifest | None,
        log: Log,
        outlets: dict[Any, Outlet],
    ) -> TaskUnit:
        app, config = self._app, self._config
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
        migrate_task(app, manifest, core, restored.overlay)
        core.restore(restored.meta, restored.queues)
        epoch = attempt.high - RESERVED_IDS  # The highest id reserved before: nothing was ever sent in a later epoch.
        snapshot = SnapshotTask(
            task, attempt.lineage, epoch, base=restored.base, head=restored.head, checksum=restored.checksum
        )
        core.origin_of = self._origin_of
        feeds = self._feeds(task, core, snapshot, log, fresh=manifest is None)
        unit = TaskUnit(task, core, restored.overlay, snapshot, completions, feeds, {}, log, time.perf_counter)
        unit.adopt(restored)
        return unit

    def _origin_of(self, cause: int) -> str:
        """Where the record that caused something stands, for people; empty when no ingress knows it."""
        return next((origin for feed in self.ingresses if (origin := feed.origin_of(cause))), "")

    def _feeds(self, task: int, core: TaskCore, snapshot: SnapshotTask, log: Log, *, fresh: bool) -> list[Feed]:
        meta = core.meta
        requests = RequestFeed(log, task)
        requests.seek(meta.ingress_positions.get(RequestFeed.SOURCE))
        feeds: list[Feed] = [requests]
        if self._config.parallelism > 1:
            inbox = InboxFeed(log, task, snapshot)
            inbox.seek(None if fresh else meta.inbox_position)
            feeds.append(inbox)
        for ingress in self._app.ingresses.values():
            if key_group(ingress.name) % self._config.parallelism == task:
                feed = self._ingress_feed(ingress)
                feed.seek(meta.ingress_positions.get(ingress.name))
                feeds.append(feed)
        return feeds

    def _ingress_feed(self, ingress: Ingress) -> IngressFeed:
        router = IngressRouter.compile(
            ingress.name,
            ingress.spec,
            to=ingress.to,
            key=ingress.key,
            router=ingress.router,
            value_codec=codec_for(ingress.spec.type) if ingress.spec.type is not None else None,
            resolve=self._resolve,
            message_bytes_max=self._config.message_bytes_max,
        )
        feed = IngressFeed(self._app.name, ingress, reader_for(ingress.spec), router, self._wake)
        self.ingresses.append(feed)
        return feed

    def _resolve(self, target: Any) -> tuple[str, Any]:
        """A function or typename as a target of an ingress."""
        name = target if isinstance(target, str) else getattr(target, "typename", str(target))
        function = self._app.functions.get(name)
        if function is None:
            known = ", ".join(sorted(self._app.functions)) or "none"
            raise ConfigurationError("PEN0105", f"{name} is no function of this application. Known: {known}.")
        return name, function.message_codec

    def _driver(self, unit: TaskUnit, name: str, sink: Sink, bury: Bury) -> SinkDriver | EagerDriver:
        if name in self._eager:
            return EagerDriver(name, unit.task, sink, failed=self._failed)
        return SinkDriver(
            name,
            unit.task,
            sink,
            discard=lambda checkpoint: unit.committed(name, checkpoint),
            bury=lambda rows: bury(name, rows),
            failed=self._failed,
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

    async def cancel(self) -> None:
        """Let go of handlers that are suspended and of rows that are under way: the next start has them again."""
        for suspended in self._suspended:
            await suspended.cancel_all(self._config.stop_timeout_ms / 1000)
        for unit in self.units:
            for driver in unit.sinks.values():
                driver.cancel()

    async def close(self, *, final: bool) -> None:
        """Close what is read from and written to; `final` when everything decided is visible."""
        for feed in self.ingresses:
            await feed.close()
        for sink in self._sinks.values():
            await sink.close(final)
