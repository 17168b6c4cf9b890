"""Kafka ingresses as inputs of tasks.

    KafkaPartitions        one for each ingress of a process: knows its partitions, and reads those of the tasks here
      KafkaTaskFeed        the partitions that one task has of it: what the unit takes from
        KafkaIngressFeed   one partition

What always holds: partition j belongs to task j modulo the parallelism, whoever hosts the task (PROTOCOL 2); the start
position that a declaration asks for applies once, to the partitions that exist when the ingress is first read, and a
snapshot tells which those were; a partition that appears later is read from its first record. Positions go with the
inputs and return through the task's state; what a consumer group is told of them nobody reads back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import Any, NamedTuple, Protocol

from penstock.engine.effects import Column, Deliveries, Input, Rejected
from penstock.engine.feeds import FeedKind
from penstock.errors import ConfigurationError, InvalidInput, PenstockError, Refused, Unavailable
from penstock.functions.app import Ingress
from penstock.functions.kafka import KafkaIngress
from penstock.ids import cause_of
from penstock.logs import logger
from penstock.records import Envelope, Meta
from penstock.router.formats import MissingSchema, learn_patiently
from penstock.router.ingress import Progress
from penstock.router.kafka_client import EARLIEST, LATEST, KafkaClient, Place
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader
from penstock.router.kafka_records import Columns, Proof
from penstock.router.kafka_routing import KafkaRouter, Keyed, key_and_headers
from penstock.router.kafka_topics import group_name, is_own

REFRESH_S = 15.0
"""How often it is asked whether there are new partitions or topics. They are read from their beginning, so nothing is
lost by learning of them late."""
TELL_S = 5.0
"""How often the consumer group is told: often enough for tools that show lag once in some ten seconds."""
CLOSE_S = 2.0
_OFFSETS_MAX = 1 << 48
_RUN_MIN = 8
"""Records between two gaps, on average, below which an envelope for each costs less than a column for each run."""

Admitted = Column | Deliveries
Position = list[int]
"""The offset to continue at, and what the last record before it is recognised by, if there was one."""


class Lag(NamedTuple):
    """How far one partition has been read."""

    topic: str
    partition: int
    position: int
    end: int
    """Of what can be read; -1 while it isn't known."""


class ColumnReader(Protocol):
    """Reads assigned partitions: see `KafkaReader`."""

    def add(self, topic: str, partition: int, offset: int, *, proof: Proof | None = None) -> None: ...

    def remove(self, topic: str, partition: int) -> None: ...

    def take_columns(self, topic: str, partition: int, count_max: int) -> Columns | None: ...

    def position(self, topic: str, partition: int) -> int: ...

    def end(self, topic: str, partition: int) -> int: ...


class KafkaIngressFeed:
    """One partition of an ingress. `wake` is called when a take that found nothing is worth repeating."""

    done = False
    """A topic has no end."""

    def __init__(
        self,
        application: str,
        ingress: str,
        topic: str,
        partition: int,
        reader: ColumnReader,
        router: KafkaRouter,
        wake: Callable[[], None],
    ) -> None:
        self.name = ingress
        self.topic = topic
        self.partition = partition
        self.source = source_of(ingress, topic, partition)
        """The name that its position is stored under."""
        self.records = 0
        """Read since the feed started."""
        self._reader = reader
        self._router = router
        self._wake = wake
        self._cause = cause_of(f"{application}/{self.source}") >> 1
        """One bit less, so that an offset can be added without leaving 64 bits (PROTOCOL 6)."""
        self._proof: Proof | None = None
        self._left: tuple[Columns, int] | None = None
        """What was taken from the reader and waits for a schema, from this index on."""
        self._learning: asyncio.Task[None] | None = None
        self._reads = False
        """Whether the partition of the reader is the one that this feed has added."""

    def seek(self, position: Position) -> None:
        """Continue at a position that came with an input. Takes refuse the topic if it is no longer the same one."""
        offset, *proof = position
        self._proof = Proof(*proof) if proof else None
        self._left = None
        self._reader.add(self.topic, self.partition, offset, proof=self._proof)
        self._reads = True

    def take(self, count_max: int) -> list[Admitted]:
        if self._learning is not None:
            if not self._learning.done():
                return []
            self._learning.result()
            self._learning = None
        if self._left is not None:
            return self._one_by_one(*self._left)
        taken = self._reader.take_columns(self.topic, self.partition, count_max)
        if taken is None:
            return []
        self.records += len(taken.keys)
        keyed = self._router.keyed(taken)
        return self._one_by_one(taken, 0) if keyed is None else self._columns(taken, keyed)

    @property
    def behind(self) -> int:
        """Offsets not yet taken, as far as is known."""
        left = len(self._left[0].keys) - self._left[1] if self._left is not None else 0
        return left + max(0, self._reader.end(self.topic, self.partition) - self._position)

    @property
    def lag(self) -> Lag:
        return Lag(self.topic, self.partition, self._position, self._reader.end(self.topic, self.partition))

    @property
    def _position(self) -> int:
        return self._reader.position(self.topic, self.partition)

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands; empty when it is none of this partition."""
        offset = cause - self._cause
        return self._place(offset) if 0 <= offset < _OFFSETS_MAX else ""

    async def close(self) -> None:
        if self._reads:
            self._reader.remove(self.topic, self.partition)
        self.leave()

    def leave(self) -> None:
        """Another feed reads this partition from now on."""
        self._reads = False
        if self._learning is not None:
            self._learning.cancel()

    def _place(self, offset: int) -> str:
        return f"topic {self.topic} partition {self.partition} offset {offset}"

    def _passed(self, taken: Columns) -> Position:
        """The position behind all that was taken."""
        self._proof = taken.last or self._proof
        return _position(taken.next_offset, self._proof)

    def _columns(self, taken: Columns, keyed: Keyed) -> list[Admitted]:
        offsets, cause = taken.offsets, self._cause
        typename, ids, payloads = keyed
        if isinstance(offsets, range):
            return [Column(self.source, self._passed(taken), typename, ids, payloads, cause + offsets.start)]
        runs = list(_runs(offsets))
        if len(runs) * _RUN_MIN > len(offsets):
            envelopes = [
                Envelope(typename, id, payload, cause + offset, None, None)
                for offset, id, payload in zip(offsets, ids, payloads, strict=True)
            ]
            return [Deliveries(self.source, self._passed(taken), envelopes)]
        proof, passed = self._proof, self._passed(taken)
        return [
            Column(
                self.source,
                passed if stop == len(offsets) else _position(offsets[stop - 1] + 1, proof),
                typename,
                ids[first:stop],
                payloads[first:stop],
                cause + offsets[first],
            )
            for first, stop in runs
        ]

    def _one_by_one(self, taken: Columns, start: int) -> list[Admitted]:
        """Messages of records from index `start` on, up to one whose schema has to be learnt first."""
        envelopes: list[Envelope] = []
        refused: list[Rejected] = []
        route, cause = self._router.route, self._cause
        for index in range(start, len(taken.keys)):
            offset, key, value = taken.offsets[index], taken.keys[index], taken.values[index]
            headers = taken.headers[index] if taken.headers is not None else ()
            try:
                routed = route(key, value, headers, self._place(offset))
            except MissingSchema as missing:
                self._left = taken, index
                self._learn(missing.schema_id)
                if index == start:
                    return []
                return [Deliveries(self.source, _position(offset, self._proof), envelopes, refused)]
            except InvalidInput as error:
                texts = key_and_headers(key, headers)
                bad = Rejected(error.code, error.message, self._place(offset), self.name, "", value or b"", texts)
                refused.append(bad)
            else:
                envelopes += [
                    Envelope(typename, id, payload, cause + offset, None, Meta(headers=dict(texts)) if texts else None)
                    for typename, id, payload, texts in routed
                ]
        self._left = None
        return [Deliveries(self.source, self._passed(taken), envelopes, refused)]

    def _learn(self, schema_id: int) -> None:
        learning = learn_patiently(self._router.decoder, schema_id, warn=lambda error: logger.warning("%s", error))
        self._learning = asyncio.get_running_loop().create_task(learning)
        self._learning.add_done_callback(lambda _: self._wake())


class KafkaTaskFeed:
    """The partitions that one task has of an ingress, each first in its turn. `known` are the topics and their numbers
    of partitions when the ingress was first read, `firsts` where partitions begin that have no position yet: both are
    given on before any record, so that a snapshot has them."""

    kind: FeedKind = "ingress"
    done = False

    def __init__(
        self,
        name: str,
        partitions: Sequence[KafkaIngressFeed],
        known: Mapping[str, int] | None,
        firsts: Mapping[str, Position],
    ) -> None:
        self.name = name
        self.partitions = list(partitions)
        self._notes: list[Input] = [] if known is None else [Deliveries(name, dict(known), [])]
        self._notes += [Deliveries(source, position, []) for source, position in firsts.items()]

    def add(self, partition: KafkaIngressFeed, first: Position) -> None:
        """Read a partition more, from `first` on."""
        self.partitions.append(partition)
        self._notes.append(Deliveries(partition.source, first, []))

    def take(self, count_max: int) -> list[Input]:
        inputs, self._notes = self._notes, []
        for _ in range(len(self.partitions)):
            if count_max <= 0:
                break
            partition = self.partitions.pop(0)
            self.partitions.append(partition)
            taken = partition.take(count_max)
            for each in taken:
                count_max -= len(each.ids if isinstance(each, Column) else each.envelopes)
            inputs += taken
        return inputs

    @property
    def behind(self) -> int:
        return sum(partition.behind for partition in self.partitions)

    @property
    def records(self) -> int:
        """Read since the feed started."""
        return sum(partition.records for partition in self.partitions)

    @property
    def records_total(self) -> int:
        return self.records

    @property
    def lag(self) -> int | None:
        return self.behind

    @property
    def lags(self) -> list[Lag]:
        return [partition.lag for partition in self.partitions]

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands; empty when it is none of these partitions."""
        return next((origin for partition in self.partitions if (origin := partition.origin_of(cause))), "")

    def progress(self) -> Progress | None:
        """A topic has no end."""
        return None

    async def close(self) -> None:
        for partition in self.partitions:
            await partition.close()


class KafkaPartitions:
    """The partitions of one ingress, in one process. `failed` gets what must end the worker."""

    def __init__(
        self,
        application: str,
        ingress: Ingress,
        router: KafkaRouter,
        options: KafkaOptions,
        *,
        tasks: int,
        wake: Callable[[], None],
        failed: Callable[[PenstockError], None],
        refresh_s: float = REFRESH_S,
        tell_s: float = TELL_S,
    ) -> None:
        assert isinstance(ingress.spec, KafkaIngress)
        self.name = ingress.name
        self._spec = ingress.spec
        self._application = application
        self._router = router
        self._tasks = tasks
        self._wake = wake
        self._failed = failed
        self._refresh_s = refresh_s
        self._tell_s = tell_s
        if self._spec.brokers is not None:
            options = KafkaOptions(self._spec.brokers, self._spec.properties)
        self._client = KafkaClient(options)
        self._reader = KafkaReader(options, isolation=self._spec.isolation, on_records=wake, failed=failed)
        self._counts: dict[str, int] = {}
        """Topic -> number of its partitions."""
        self._earliest: dict[Place, int] = {}
        self._starts: dict[Place, int] = {}
        """Where the declaration says to begin."""
        self._feeds: dict[int, KafkaTaskFeed] = {}
        self._complete: dict[Place, int] = {}
        """Positions of the last complete checkpoint."""
        self._told: dict[Place, int] = {}
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, and learn what partitions there are and where they begin.

        Raises Unavailable, and ConfigurationError for a topic that is not there or a start position that can't be.
        """
        await self._client.start()
        await self._reader.start()
        counts = await self._discover()
        self._check(counts)
        places = [(topic, partition) for topic, number in counts.items() for partition in range(number)]
        self._counts = counts
        self._earliest = await self._client.offsets(places, EARLIEST)
        self._starts = await self._first_offsets(places)
        self._background = [
            asyncio.get_running_loop().create_task(self._watch()),
            asyncio.get_running_loop().create_task(self._tell()),
        ]

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        for task in self._background:
            with suppress(asyncio.CancelledError):
                await task
        with suppress(PenstockError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):  # An outage shall not hold up a stop for what is only advice.
                await self._tell_once()
        await self._reader.close()
        await self._client.close()

    def feed_for(self, task: int, positions: Mapping[str, Any]) -> KafkaTaskFeed:
        """What `task` reads, from the positions of its snapshot on.

        Raises Refused if a partition that was read is not there any more.
        """
        if (before := self._feeds.pop(task, None)) is not None:
            for each in before.partitions:
                each.leave()
        known = positions.get(self.name)
        firsts: dict[str, Position] = {}
        partitions = []
        for topic, number in self._counts.items():
            for partition in range(task, number, self._tasks):
                feed = self._partition(topic, partition)
                position = positions.get(feed.source)
                if position is None:
                    position = firsts[feed.source] = [self._first((topic, partition), first_time=known is None)]
                feed.seek(position)
                partitions.append(feed)
        self._check_gone(positions)
        self.completed(positions)  # What a task is restored to was complete, and may not have been told.
        made = KafkaTaskFeed(self.name, partitions, self._counts if known is None else None, firsts)
        self._feeds[task] = made
        return made

    def drop(self, task: int) -> None:
        """`task` is not here any more: others tell the group of it. Its feed is closed by whoever has it."""
        self._feeds.pop(task, None)
        for place in [place for place in self._complete if place[1] % self._tasks == task]:
            del self._complete[place]
            self._told.pop(place, None)

    def completed(self, positions: Mapping[str, Any]) -> None:
        """A checkpoint with these positions is complete: the consumer group may be told."""
        for topic, number in self._counts.items():
            for partition in range(number):
                position = positions.get(source_of(self.name, topic, partition))
                if position is not None:
                    self._complete[topic, partition] = position[0]

    @property
    def unavailable(self) -> str:
        """Why nothing comes, while it is an outage; otherwise empty."""
        return self._reader.unavailable

    @property
    def lags(self) -> list[Lag]:
        return [lag for feed in self._feeds.values() for lag in feed.lags]

    # What there is.

    async def _discover(self) -> dict[str, int]:
        if self._spec.pattern is None:
            return await self._client.partitions(tuple(self._spec.topics))
        found = await self._client.partitions(re.compile(self._spec.pattern))
        return {topic: number for topic, number in found.items() if not is_own(self._application, topic)}

    def _check(self, counts: Mapping[str, int]) -> None:
        missing = [topic for topic in self._spec.topics if topic not in counts]
        if missing:
            raise ConfigurationError(
                "PEN0727",
                f"Ingress {self.name} reads topic {missing[0]}, which Kafka does not have. Create it, or correct the "
                "name in KafkaIngress.",
            )
        if not counts:
            logger.warning("Ingress %s: no topic matches %s yet.", self.name, self._spec.pattern)
        if isinstance(self._spec.start, Mapping):
            (number,) = counts.values()
            if (highest := max(self._spec.start, default=0)) >= number:
                raise ConfigurationError(
                    "PEN0727",
                    f"Ingress {self.name} has a start for partition {highest}, but topic {self._spec.name} has only "
                    f"partitions 0 to {number - 1}. Correct start=.",
                )

    def _check_gone(self, positions: Mapping[str, Any]) -> None:
        for source in positions:
            topic, _, partition = source.removeprefix(f"{self.name}/").rpartition("/")
            if "/" in topic or not partition.isdigit() or source != source_of(self.name, topic, int(partition)):
                continue  # Of another ingress.
            if topic in self._counts and int(partition) >= self._counts[topic]:
                raise Refused(
                    "PEN0724",
                    f"Topic {topic} has {self._counts[topic]} partitions, but partition {partition} of it was read up "
                    f"to offset {positions[source][0]}: it was deleted and created anew. Give the ingress a new name "
                    "to read the new topic from its beginning, or start fresh with --from none. Nothing was skipped.",
                )
            if topic not in self._counts:
                logger.warning("Ingress %s reads topic %s no longer.", self.name, topic)

    async def _first_offsets(self, places: Sequence[Place]) -> dict[Place, int]:
        start = self._spec.start
        if start == "earliest":
            return dict(self._earliest)
        if isinstance(start, Mapping):
            return {place: start.get(place[1], self._earliest[place]) for place in places}
        latest = await self._client.offsets(places, LATEST, isolation=self._spec.isolation)
        if isinstance(start, datetime):
            young = await self._client.offsets(places, int(start.timestamp() * 1000))
            return {place: young[place] if young[place] >= 0 else latest[place] for place in places}
        return latest

    def _first(self, place: Place, *, first_time: bool) -> int:
        """Where a partition begins that has no position. One that appeared after the ingress was first read begins at
        its first record, else what was written meanwhile would be lost."""
        return self._starts.get(place, self._earliest[place]) if first_time else self._earliest[place]

    def _partition(self, topic: str, partition: int) -> KafkaIngressFeed:
        return KafkaIngressFeed(self._application, self.name, topic, partition, self._reader, self._router, self._wake)

    # In the background.

    async def _watch(self) -> None:
        """Pick up partitions and topics that appear."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self._refresh()
            except Unavailable as error:
                logger.warning("%s", error)
            except PenstockError as error:
                self._failed(error)
                return

    async def _refresh(self) -> None:
        found = await self._discover()
        added = [
            (topic, partition)
            for topic, number in found.items()
            for partition in range(self._counts.get(topic, 0), number)
        ]
        if not added:
            return
        earliest = await self._client.offsets(added, EARLIEST)
        self._earliest |= earliest
        for topic, partition in added:
            self._counts[topic] = max(partition + 1, self._counts.get(topic, 0))
            feed = self._feeds.get(partition % self._tasks)
            if feed is not None:
                made = self._partition(topic, partition)
                made.seek([earliest[topic, partition]])
                feed.add(made, [earliest[topic, partition]])
                logger.info("Ingress %s reads topic %s partition %d from now on.", self.name, topic, partition)
        self._wake()

    async def _tell(self) -> None:
        for attempt in count():
            await asyncio.sleep(self._tell_s)
            try:
                await self._tell_once()
            except PenstockError as error:
                if attempt == 0 or not isinstance(error, Unavailable):
                    logger.warning("The consumer group of ingress %s can't be told positions: %s", self.name, error)

    async def _tell_once(self) -> None:
        """Tell the group what has changed. It is for people: whatever goes wrong stops nothing."""
        news = {place: offset for place, offset in self._complete.items() if self._told.get(place) != offset}
        if news:
            await self._client.commit(self._spec.group or group_name(self._application), news)
            self._told |= news


def source_of(ingress: str, topic: str, partition: int) -> str:
    """The name that the position of a partition is stored under. The name of the ingress alone stands for what was
    known when it was first read."""
    return f"{ingress}/{topic}/{partition}"


def _position(offset: int, proof: Proof | None) -> Position:
    return [offset] if proof is None else [offset, *proof]


def _runs(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where consecutive offsets begin and stop, as indexes."""
    first = 0
    for index in range(1, len(offsets)):
        if offsets[index] != offsets[index - 1] + 1:
            yield first, index
            first = index
    yield first, len(offsets)
