"""A worker of a simulated cluster: the real one, on a stage instead of an event loop and on a simulated Kafka.

What stands in: the writer, the readers, the store of bases, the sinks and their drivers, and time. What is real is all
that decides: the member and its link, the tasks and how they change, snapshots, frames, feeds, units, the second phase.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from penstock.checkpoint import coordinator as coordinator_module
from penstock.checkpoint import delta as delta_module
from penstock.checkpoint import leader as leader_module
from penstock.checkpoint import recovery as recovery_module
from penstock.checkpoint.member import GoOn
from penstock.checkpoint.reports import Acknowledgement, Alive, Report
from penstock.engine import build as build_module
from penstock.engine import unit as unit_module
from penstock.engine.build import Assembly
from penstock.engine.cluster import link as link_module
from penstock.engine.cluster import snapshots as snapshots_module
from penstock.engine.cluster import tasks as tasks_module
from penstock.engine.cluster import worker as worker_module
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.link import LeaderLink
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.replies import REPLIES
from penstock.engine.cluster.topics import DECISIONS, HINTS, Topics
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.effects import Effects
from penstock.engine.feeds import Completions
from penstock.engine.rota import Rota
from penstock.engine.sinks import EagerDriver, SinkDriver
from penstock.engine.unit import TaskUnit, Writing
from penstock.errors import Fenced, PenstockError, ProtocolError
from penstock.logs import logger
from penstock.records import TaskMeta
from tests.simulation import cluster_kafka, cluster_stage
from tests.simulation.cluster_kafka import SimulatedReader, SimulatedWriter
from tests.simulation.cluster_stage import STAGE, Work
from tests.simulation.database import SimulatedDriver
from tests.simulation.invariants import Violation
from tests.simulation.node import Handlers, Source
from tests.simulation.walks import EGRESS, WALKS

if TYPE_CHECKING:
    from tests.simulation.cluster_world import ClusterWorld

TOPICS = Topics.of(WALKS.name)
GENERATION = 1
IDS_RESERVED = 6
"""Few, so that ids are used up and reserved again within a schedule."""
LEADING_MS, PREPARE_MS = 30, 40
RECAP_RECORDS = 5
BODY_BYTES = 400
"""Small, so that deltas are several records, and those of zombies can get between them."""


class ClusterUnit(TaskUnit):
    """A unit whose turns are as long as the world says, and are watched by it."""

    worker: SimulatedWorker
    released_at = 0
    """The newest cut since which it said to stand still."""
    cut_at = 0
    turns_since_cut = 0
    replaced = False
    """Whether another unit has its task, in the same attempt or a later one."""

    @property
    def attempt(self) -> int:
        return self.snapshot.attempt

    def turn(self, clock_ms: int, **options: bool) -> Effects | None:
        world = self.worker.world
        turns = world.turn_size(self)
        if not turns:
            return None
        self._invocations_max = turns
        effects = super().turn(clock_ms, **options)
        if effects is not None:
            self.turns_since_cut += 1
            world.turned(self, effects)
        return effects

    def cut(self, checkpoint: int, application: str, generation: int) -> Writing:
        writing = super().cut(checkpoint, application, generation)
        self.cut_at, self.turns_since_cut = checkpoint, 0
        self.worker.world.cut(self, writing.frozen)
        return writing


class ClusterHandlers(Handlers):
    """Suspended handlers, made and ended as the assembly does it."""

    def __init__(self, completions: Completions, wake: Callable[[], None]) -> None:
        super().__init__(completions)

    # Walks have no steps, which would wait for a checkpoint.

    waits_for_cut = False

    def cut(self, checkpoint: int) -> None:
        pass

    def settle(self, checkpoint: int) -> None:
        pass


class ClusterSource(Source):
    """An ingress partition as an assembly knows it."""

    records = records_total = 0

    def __init__(self, name: str, inputs: list[tuple[str, str, bytes]], position: int) -> None:
        super().__init__(name, inputs, position)
        self.name = name

    def origin_of(self, cause: int) -> str:
        return ""

    async def close(self) -> None:
        pass


class _Sink:
    """What an assembly knows of a sink; all else is the driver's."""

    async def release(self, task: int, *, final: bool) -> None:
        pass


class ReplyTopic:
    """The topic of replies, and all callers. It has no markers: what is written again is told again."""

    def __init__(self, told: Callable[[bytes, int, int], None]) -> None:
        self._told = told

    def open(self, task: int, owner: object) -> dict[int, int]:
        return {}

    def commit(self, task: int, owner: object, rows: Sequence[Any], marker: dict[int, int]) -> bool:
        checkpoint, attempt = max((checkpoint, attempt) for attempt, checkpoint in marker.items())
        for row in rows:
            self._told(row.value, attempt, checkpoint)
        return True


class SimulatedAssembly(Assembly):
    """The real one, with units, handlers, ingresses and drivers of a simulated world."""

    def __init__(self, world: ClusterWorld, worker: SimulatedWorker) -> None:
        super().__init__(WALKS, world.config, wake=_nothing, failed=worker.fail)
        sink: Any = _Sink()
        self._sinks[EGRESS] = sink
        self.add_reply_sink(REPLIES, sink)
        self._world = world
        self._worker = worker
        self.every_unit: list[ClusterUnit] = []

    def add(self, *arguments: Any, **options: Any) -> TaskUnit:
        unit = super().add(*arguments, **options)
        assert isinstance(unit, ClusterUnit)
        self.every_unit.append(unit)
        unit.worker = self._worker
        unit._clock = lambda: 0.0
        self._world.placed(unit, arguments[1], arguments[2])
        return unit

    @property
    def handlers(self) -> list[Any]:
        return [placed.suspended for placed in self._placed.values()]

    async def _cancel(self, placed: Any) -> None:
        placed.suspended.close()  # A driver goes no further when the world does not let it.

    def _ingress_feeds(self, task: int, meta: TaskMeta) -> list[Any]:
        name = f"source-{task}"
        return [ClusterSource(name, self._world.inputs[task], meta.ingress_positions.get(name, 0))]

    def _driver(self, unit: TaskUnit, name: str, sink: Any, bury: Any) -> SinkDriver | EagerDriver:
        world = self._world
        database: Any = world.reply_topic if name == REPLIES else world.database
        driver = SimulatedDriver(unit.task, database, world.dice, lambda checkpoint: unit.committed(name, checkpoint))
        driver.failing = 0.0 if name == REPLIES else world.sink_fails
        return driver


class SimulatedLink(LeaderLink):
    """The real one. The world sees what it reports."""

    world: ClusterWorld
    worker: SimulatedWorker

    def report(self, report: Report) -> None:
        if isinstance(report, Acknowledgement):
            self.world.acknowledged(self.worker, report)
        super().report(report)


class SimulatedWorker(ClusterWorker):
    """See the module. The world calls what the loop of a worker would call."""

    world: ClusterWorld
    _fingerprints: Any = WALKS.fingerprints()

    def __init__(self, world: ClusterWorld, instance: str, name: str) -> None:
        kafka: Any = world.kafka
        self.world = world
        super().__init__(WALKS, world.config, ClusterOptions(kafka=kafka, store="", name=name))
        self.instance = instance
        self._writer: Any = SimulatedWriter(world.kafka)
        self._reader: Any = SimulatedReader(world.kafka)
        self.writer: SimulatedWriter = self._writer
        self.reader: SimulatedReader = self._reader
        self.works: list[Work] = []
        self._clock: Any = _WorkerClock(world)
        self._rota = Rota(self._pass_clock)
        self._background: Any = SimpleNamespace(spawn=self.spawn)
        self.requests: Any = SimpleNamespace(burying=False, bury=None, in_flight=0)
        self._assembly = self.assembly = SimulatedAssembly(world, self)
        writer: Any = self._writer
        self._frames = FrameWriter(writer, TOPICS.inbox)
        self.link: SimulatedLink = SimulatedLink(
            kafka,
            WALKS.name,
            Alive(name, instance),
            writer,
            heartbeat_ms=1,
            received=_nothing,
            failed=self.fail,
        )
        self.link.world, self.link.worker = world, self
        for partition in (DECISIONS, HINTS):
            place = (TOPICS.control, partition)
            self.control.add(*place, world.kafka.partition(place).end)
        store: Any = world.bases
        self.store = store
        self._make_parts()
        self._upkeep: Any = _NoUpkeep()
        self.beat()

    @property
    def control(self) -> SimulatedReader:
        reader: Any = self.link._reader
        assert isinstance(reader, SimulatedReader)
        return reader

    @property
    def actual_units(self) -> Sequence[ClusterUnit]:
        units: Any = self.units
        return units  # type: ignore[no-any-return]

    @property
    def drivers(self) -> Iterator[SimulatedDriver]:
        drivers: Any = (driver for unit in self.units for driver in unit.sinks.values())
        return drivers  # type: ignore[no-any-return]

    # What the world lets happen.

    def loop(self) -> None:
        """What a worker does between two waits (`ClusterWorker.serve`). Raises what ends it."""
        if self._fatal is not None:
            raise self._fatal
        STAGE.spawn = self.spawn
        for action in self.link.actions():
            if isinstance(action, GoOn):
                self.world.count("returned")
            self._obey(action)
        self._take_turns(int(STAGE.clock_ms))
        if self.world.kafka.calm or self.world.dice.chance(0.6):
            self._seal_frames()
        self._report_changes()

    def _pass_clock(self) -> float:
        """Some passes over the tasks are broken off, as if they took long."""
        world = self.world
        return 0.0 if world.kafka.calm else float(world.dice.chance(0.2))

    def _seal_frames(self) -> None:
        """As when frames have waited long enough for others."""
        for destination in list(self._frames._open):
            self._frames._close(destination)

    def step_work(self, times: int) -> None:
        """What runs beside the turns goes on, by so many pauses."""
        STAGE.spawn = self.spawn
        for _ in range(times):
            self.works = [work for work in self.works if not work.done()]
            if not self.works:
                return
            self.world.dice.choose(self.works).step()

    def step_all(self) -> None:
        STAGE.spawn = self.spawn
        for work in list(self.works):
            work.step()
        self.works = [work for work in self.works if not work.done()]

    def beat(self) -> None:
        self.link._become()

    def leave(self) -> None:
        self.stopping = True
        self.link.leave()

    @property
    def relieved(self) -> bool:
        return self.stopping and self._relieved

    def stop(self) -> None:
        self.leave()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Work:
        work = Work(coroutine, self.fail)
        self.works.append(work)
        return work

    def fail(self, error: BaseException) -> None:
        self._fail(error)

    def die(self) -> None:
        """Nothing of it goes on."""
        for work in self.works:
            work.cancel()
        for handlers in self.assembly.handlers:
            handlers.close()
        self.works.clear()

    def take_apart(self) -> None:
        """Nothing of it points back at it."""
        for unit in self.assembly.every_unit:
            for entry in unit.core.entries.values():
                entry.bind({}, {})
                del entry.route
            unit.__dict__.clear()
        self.__dict__.clear()

    @property
    def busy(self) -> bool:
        unsent = bool(self._frames._open) or not self.writer.idle
        return bool(self.works) or unsent or self.reader.behind or self.control.behind

    # What a live worker must never see, and a zombie may.

    def _give_up_attempt(self, unit: TaskUnit, error: ProtocolError) -> None:
        assert isinstance(unit, ClusterUnit)
        if self.world.is_live(unit):
            raise Violation("NoGap", str(error))
        super()._give_up_attempt(unit, error)

    def _damaged(self, attempt: int, checkpoint: int, reason: str) -> None:
        place = self.world.harmed
        if attempt == self.world.newest_attempt and not (place and place in reason):
            raise Violation("Restorable", reason)
        self.world.count("older")
        super()._damaged(attempt, checkpoint, reason)

    def _cut_if_due(self, unit: TaskUnit) -> None:
        before = unit.snapshot.epoch
        super()._cut_if_due(unit)
        if unit.snapshot.epoch != before:
            self.world.count("colour_cuts")


class _NoUpkeep:
    """The world folds and makes bases itself."""

    pressure = 0.0

    async def leave(self, unit: TaskUnit) -> None:
        pass


class _WorkerClock:
    """Of all workers of a world: the time of the world."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world

    def __call__(self) -> float:
        return self._world.clock_ms / 1000

    def not_before(self, seconds: float) -> None:
        pass


ENDINGS = (Fenced, PenstockError)
"""What ends a worker, and not the schedule."""


@contextmanager
def staged() -> Iterator[None]:
    """Let everything that workers and leaders consist of run on the stage, with small numbers."""
    replaced: list[tuple[Any, str, Any]] = [
        (coordinator_module, "RESERVED_IDS", IDS_RESERVED),
        (coordinator_module, "COST_SHARE", 1),
        (recovery_module, "RESERVED_IDS", IDS_RESERVED),
        (build_module, "RESERVED_IDS", IDS_RESERVED),
        (leader_module, "LEADING_MS", LEADING_MS),
        (leader_module, "PREPARE_MS", PREPARE_MS),
        (leader_module, "RECAP_RECORDS", RECAP_RECORDS),
        (delta_module, "BODY_BYTES", BODY_BYTES),
        (build_module, "TaskUnit", ClusterUnit),
        (build_module, "Suspended", ClusterHandlers),
        (link_module, "KafkaReader", SimulatedReader),
        (link_module, "asyncio", cluster_stage.loop),
        (snapshots_module, "asyncio", cluster_stage.loop),
        (snapshots_module, "time", cluster_stage.clock),
        (unit_module, "time", cluster_stage.clock),
        (ClusterWorker, "_check", _nothing),  # It is the same for all, and slow.
        (worker_module, "Assembly", _nothing),  # Each has one of its own.
        (tasks_module, "asyncio", cluster_stage.loop),
        (tasks_module, "in_thread", cluster_stage.in_thread),
        (tasks_module, "offsets", cluster_kafka.offsets),
        (tasks_module, "read_range", cluster_kafka.read_range),
        (tasks_module, "open_base", lambda bases, name, path, memory: bases.open_compared(name)),
        (tasks_module, "RocksMemory", lambda bytes_max: None),
        (tasks_module, "make_directory", _nothing),
        (tasks_module, "shutil", SimpleNamespace(rmtree=_nothing)),
        (logger, "disabled", True),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _nothing(*_: object, **__: object) -> None:
    pass
