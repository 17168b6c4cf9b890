"""Checkpoints of an application on Kafka, for somebody who takes no part in it: to look at, to copy, to put one there.

    decisions -> manifests -> deltas, frames and requests of the checkpoints that are wanted, read once into memory

What always holds: reading changes nothing, and works while the application runs; putting a checkpoint there is one
record, written under the id of the leader, into topics that have no checkpoint yet. Bases stay in their store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from penstock.engine.cluster.looking import read_history, read_manifest, refuse_alive
from penstock.engine.cluster.topics import DEAD, DECISIONS, Topics
from penstock.engine.config import Config
from penstock.engine.feeds import RequestFeed
from penstock.engine.offline import Checkpoints, Markers
from penstock.engine.savepoints import Target, refuse_checkpoints, restore_tasks
from penstock.errors import ProtocolError
from penstock.functions.app import App
from penstock.records import Envelope, EpochFrame
from penstock.router.frames import FENCE_SOURCE, decode_frames
from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import is_incarnation, leader_id, refuse_absent
from penstock.router.kafka_transactions import KafkaTransactions
from penstock.router.requests import decode_request


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
        newest = self.newest()
        for number in list(numbers) or ([newest.checkpoint] if newest is not None else []):
            manifest = self._manifests[number] = await read_manifest(
                self._kafka, self._application, self.retained(number)
            )
            for part in manifest.parts:
                await self._load_part(part, waiting=waiting)

    async def refuse_absent(self) -> None:
        """Raise InvalidInput when no such application was ever started."""
        await refuse_absent(self._kafka, self._application)

    async def _load_part(self, part: Part, *, waiting: bool) -> None:
        topics, task = self._topics, part.task
        places = [(topic, task) for topic in (topics.deltas, topics.requests)]
        bounds = await offsets(self._kafka, places, isolation="read_uncommitted")
        records: list[Fetched] = []
        if part.first >= 0 and part.head >= part.first:
            start = max(part.first, bounds[places[0]].start)
            records = await read_range(self._kafka, *places[0], start, isolation="read_uncommitted")
        self._deltas[task, part.head] = Deltas(f"{topics.deltas}-{task}", records)
        if waiting:
            self._inbox[task] = await self._read_waiting(topics.inbox, task, part.inbox_position, part.inbox_end)
            position = part.ingress_positions.get(RequestFeed.SOURCE)
            start = position if isinstance(position, int) else bounds[places[1]].start
            self._requests[task] = await self._read_waiting(topics.requests, task, start, bounds[places[1]].end)

    async def _read_waiting(self, topic: str, task: int, start: int, end: int) -> list[Fetched]:
        if start >= end:
            return []
        return await read_range(self._kafka, topic, task, start, end, isolation="read_uncommitted")

    # As `Checkpoints`.

    def manifest(self, retained: Retained) -> Manifest:
        return self._manifests[retained.checkpoint]

    def deltas(self, part: Part) -> Deltas:
        return self._deltas[part.task, part.head]

    def waiting_frames(self, part: Part) -> Iterator[EpochFrame]:
        for record in self._inbox[part.task]:
            place = f"Offset {record.offset} of {self._topics.inbox}-{part.task}"
            try:
                frames = decode_frames(record.value or b"", place=place)
            except ProtocolError:
                continue  # What is no frame is a dead letter of the application that goes on.
            yield from (frame for frame in frames if frame.source != FENCE_SOURCE)

    def waiting_requests(self, part: Part) -> Iterator[Envelope]:
        for record in self._requests[part.task]:
            if is_incarnation(record.key):
                continue
            try:
                yield decode_request(
                    record.value or b"", place=f"Offset {record.offset} of {self._topics.requests}-{part.task}"
                )
            except ProtocolError:
                continue  # As above.


async def markers_of(app: App, config: Config, kafka: KafkaOptions, found: KafkaCheckpoints) -> Markers:
    """What the egresses of a stopped application remember. Whoever wrote to them before is fenced.

    Raises Refused when it runs."""
    await refuse_alive(kafka, app.name)
    newest, assigned, topics = found.newest(), found.history.assigned, Topics.of(app.name)
    if newest is None or assigned is None:
        return {}
    tasks = found.manifest(newest).parallelism
    assembly = Assembly(
        app, replace(config, parallelism=tasks), wake=_nothing, failed=_nothing_of, contested=True, kafka=kafka
    )
    history = assigned.topics[topics.control]
    try:
        await assembly.open_sinks(history)
        await assembly.open_dead_sink(DEAD, topics.dead, history)
        return await assembly.markers()
    finally:
        await assembly.close(final=False)


def _nothing() -> None:
    """No task waits for anything."""


def _nothing_of(error: BaseException) -> None:
    """No task can fail."""


async def ends_of(kafka: KafkaOptions, application: str, tasks: int) -> dict[int, tuple[int, int]]:
    """Where the inbox and the requests of each task end."""
    topics = Topics.of(application)
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
    target = Target(config.directory, history, store, await ends_of(kafka, app.name, config.parallelism))
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
