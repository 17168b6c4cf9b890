"""Checkpoints of an application on Kafka, for somebody who takes no part in it: to look at, to copy, to put one there.

    decisions -> manifests -> deltas, frames and requests of the checkpoints that are wanted, read once into memory

What always holds: reading changes nothing, and works while the application runs; putting a checkpoint there is one
record, written under the id of the leader, into topics that have no checkpoint yet. Bases stay in their store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from penstock.checkpoint.control import Complete, Manifest, Part, encode_control
from penstock.checkpoint.recovery import History
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import SavepointReader
from penstock.checkpoint.store import BaseStore
from penstock.engine.background import in_thread
from penstock.engine.build import Assembly
from penstock.engine.cluster.deltas import Deltas
from penstock.engine.cluster.feeds import frames_of, request_of
from penstock.engine.cluster.looking import read_history, read_manifest, refuse_alive
from penstock.engine.cluster.topics import DEAD, DECISIONS, Topics
from penstock.engine.config import Config
from penstock.engine.effects import Rejected
from penstock.engine.feeds import RequestFeed
from penstock.engine.offline import Checkpoints, Markers
from penstock.engine.savepoints import Target, refuse_checkpoints, restore_tasks
from penstock.functions.app import App
from penstock.records import Envelope, EpochFrame
from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import Bounds, Place, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import leader_id, refuse_absent
from penstock.router.kafka_transactions import KafkaTransactions


class KafkaCheckpoints(Checkpoints):
    """See the module. `path` is where scratch files may lie."""

    def __init__(self, kafka: KafkaOptions, application: str, store: BaseStore, path: Path) -> None:
        self.path = path
        self.place = f"{application} on {kafka.bootstrap}"
        self.store = store
        self.history = History(deltas_apart=True)
        self._kafka = kafka
        self._application = application
        self._topics = Topics.of(application)
        """Those of the generation that is found."""
        self._manifests: dict[int, Manifest] = {}
        self._deltas: dict[tuple[int, int], Deltas] = {}
        """By task and head."""
        self._inbox: dict[int, list[Fetched]] = {}
        self._requests: dict[int, list[Fetched]] = {}

    async def load(self, numbers: Iterable[int], *, waiting: bool = False) -> None:
        """Read what was decided, and these checkpoints, or the newest if there are none; with `waiting`, what they had
        not admitted, too. Raises InvalidInput for one that is not there, as an application may be."""
        await self.refuse_absent()
        self.history = await read_history(self._kafka, self._application)
        self._topics = Topics.of(self._application, self.history.generation)
        newest = self.newest()
        for number in list(numbers) or ([newest.checkpoint] if newest is not None else []):
            for part in (await self.load_manifest(number)).parts:
                await self._load_part(part, waiting=waiting)

    async def refuse_absent(self) -> None:
        """Raise InvalidInput when no such application was ever started."""
        await refuse_absent(self._kafka, self._application)

    async def load_manifest(self, number: int) -> Manifest:
        """Read one of the checkpoints that were decided. Raises InvalidInput for one that was not."""
        found = await read_manifest(self._kafka, self._application, self.retained(number))
        self._manifests[number] = found
        return found

    async def _load_part(self, part: Part, *, waiting: bool) -> None:
        first = part.first if 0 <= part.first <= part.head else None
        self._deltas[part.task, part.head] = await self._read_deltas(part.task, first)
        if waiting:
            await self._load_inputs(part, part.inbox_end, None)

    async def _read_deltas(self, task: int, first: int | None) -> Deltas:
        """The deltas of a task from an offset on, as far as they are there; none if that is None."""
        place = (self._topics.deltas, task)
        start = (await self._bounds(place)).start
        records = await self._read_some(place, max(first, start)) if first is not None else []
        return Deltas(f"{place[0]}-{task}", records)

    async def _load_inputs(self, part: Part, inbox_end: int, requests_end: int | None) -> None:
        """What a task had not taken: frames before this offset of its inbox, and requests before this one, or all."""
        inbox, requests = (self._topics.inbox, part.task), (self._topics.requests, part.task)
        self._inbox[part.task] = await self._read_some(inbox, part.inbox_position, inbox_end)
        position = part.ingress_positions.get(RequestFeed.SOURCE)
        first = position if isinstance(position, int) else (await self._bounds(requests)).start
        self._requests[part.task] = await self._read_some(requests, first, requests_end)

    async def _read_some(self, place: Place, first: int, end: int | None = None) -> list[Fetched]:
        """Records of a partition from an offset on, to another or to its end."""
        end = (await self._bounds(place)).end if end is None else end
        return await read_range(self._kafka, *place, first, end, isolation="read_uncommitted") if first < end else []

    async def _bounds(self, place: Place) -> Bounds:
        return (await offsets(self._kafka, [place], isolation="read_uncommitted"))[place]

    # As `Checkpoints`.

    def manifest(self, retained: Retained) -> Manifest:
        return self._manifests[retained.checkpoint]

    def deltas(self, part: Part) -> Deltas:
        return self._deltas[part.task, part.head]

    def waiting_frames(self, part: Part) -> Iterator[EpochFrame]:
        for record in self._inbox[part.task]:
            frames = frames_of(record, f"{self._topics.inbox}-{part.task}")
            # What is no frame is a dead letter of the application that goes on.
            yield from frames if not isinstance(frames, Rejected) else ()

    def waiting_requests(self, part: Part) -> Iterator[Envelope]:
        for record in self._requests[part.task]:
            request = request_of(record, f"{self._topics.requests}-{part.task}")
            if isinstance(request, Envelope):
                yield request


async def markers_of(app: App, config: Config, kafka: KafkaOptions, found: KafkaCheckpoints) -> Markers:
    """What the egresses of a stopped application remember. Whoever wrote to them before is fenced.

    Raises Refused when it runs."""
    await refuse_alive(kafka, app.name)
    async with egresses_of(app, config, kafka, found) as assembly:
        return await assembly.markers() if assembly is not None else {}


@asynccontextmanager
async def egresses_of(
    app: App, config: Config, kafka: KafkaOptions, found: KafkaCheckpoints
) -> AsyncIterator[Assembly | None]:
    """The egresses of a stopped application, opened; None when it has never had an owner of its tasks."""
    newest, assigned, generation = found.newest(), found.history.assigned, found.history.generation
    if newest is None or assigned is None:
        yield None
        return
    topics = Topics.of(app.name, generation)
    tasks = found.manifest(newest).parallelism
    assembly = Assembly(
        app, replace(config, parallelism=tasks), wake=_nothing, failed=_nothing_of, contested=True, kafka=kafka
    )
    history = assigned.topics[topics.control]
    try:
        await assembly.open_sinks(history, generation=generation)
        await assembly.open_dead_sink(DEAD, topics.dead, history, generation=generation)
        yield assembly
    finally:
        await assembly.close(final=False)


def _nothing() -> None:
    """No task waits for anything."""


def _nothing_of(error: BaseException) -> None:
    """No task can fail."""


async def ends_of(kafka: KafkaOptions, topics: Topics, tasks: int) -> dict[int, tuple[int, int]]:
    """Where the inbox and the requests of each task end."""
    places = [(topic, task) for topic in (topics.inbox, topics.requests) for task in range(tasks)]
    bounds = await offsets(kafka, places, isolation="read_uncommitted")
    return {task: (bounds[topics.inbox, task].end, bounds[topics.requests, task].end) for task in range(tasks)}


async def restore_savepoint(
    app: App,
    reader: SavepointReader,
    config: Config,
    kafka: KafkaOptions,
    store: BaseStore,
    *,
    now_ms: int,
    progress: Callable[[int, int], None],
) -> Manifest:
    """Make the savepoint what the next start of an application continues that has topics and no checkpoint.

    Raises Refused, with nothing changed, when it has one, when it runs, or when the savepoint does not fit; and
    CorruptSnapshot when that is damaged.
    """
    await refuse_alive(kafka, app.name)
    history = await read_history(kafka, app.name)
    # Without --replace: leader and workers agree on who has what since the last attempt, which tasks would break.
    refuse_checkpoints(history, f"{app.name} on {kafka.bootstrap}", replacing=False)
    topics = Topics.of(app.name, history.generation)
    target = Target(config.directory, history, store, await ends_of(kafka, topics, config.parallelism))
    manifest = await in_thread(
        lambda: restore_tasks(app, reader, config, target, reason="savepoint", now_ms=now_ms, progress=progress)
    )
    await decide(kafka, manifest)
    return manifest


async def decide(kafka: KafkaOptions, manifest: Manifest) -> None:
    """Make a checkpoint what the next start continues. Whoever led before is fenced."""
    transactions = KafkaTransactions(kafka, leader_id(manifest.application))
    try:
        await transactions.fence()
        control = Topics.of(manifest.application).control
        await transactions.commit([Record(control, DECISIONS, encode_control(Complete(manifest)))])
    finally:
        await transactions.close()
