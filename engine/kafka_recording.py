"""Records of Kafka ingresses, read once more from one position to another.

    position before, position reached -> the records between them -> the feed of the partition -> inputs

What always holds: topics are only read, and no consumer group is told; a task gets the records it got then, in portions
of the same borders, since what is routed together runs together. Knows no task and no checkpoint.
"""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from penstock.engine.effects import Input
from penstock.engine.kafka_feeds import Admitted, KafkaIngressFeed, Position
from penstock.engine.kafka_ports import cluster_of, compile_kafka_router
from penstock.errors import PenstockError, Refused, Unavailable
from penstock.functions.app import App, Ingress
from penstock.functions.kafka import KafkaIngress
from penstock.functions.outlets import resolve_function
from penstock.router.kafka_client import Place
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import OUT_OF_RANGE, KafkaReader
from penstock.router.kafka_records import Columns, Headers, Proof
from penstock.router.kafka_routing import KafkaRouter
from penstock.router.schema_registry import Registries

TAKEN_RECORDS = 10_000


class KafkaRecords:
    """See the module. Close it."""

    def __init__(self, app: App, kafka: KafkaOptions | None, *, message_bytes_max: int) -> None:
        """`kafka` is the cluster of the application, if it has one."""
        self._app = app
        self._kafka = kafka
        self._message_bytes_max = message_bytes_max
        self._registries = Registries()
        self._ingresses: dict[str, tuple[_Portions, KafkaRouter]] = {}
        self._partitions: dict[str, _Partition] = {}

    async def take(self, ingress: Ingress, source: str, before: Position, reached: Position) -> list[Input]:
        """What was taken of a partition between two positions. Raises Refused when it is not there any more, and what
        reading fails with."""
        partition = self._partitions.get(source)
        if partition is None:
            partition = self._partitions[source] = await self._open(ingress, source, before)
        return [each._replace(position=reached) for each in await partition.take(reached[0])]

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands; empty when it is of no partition read here."""
        origins = (partition.feed.origin_of(cause) for partition in self._partitions.values())
        return next((origin for origin in origins if origin), "")

    async def close(self) -> None:
        for partition in self._partitions.values():
            await partition.feed.close()
        for portions, _ in self._ingresses.values():
            await portions.close()
        await self._registries.close()

    async def _open(self, ingress: Ingress, source: str, position: Position) -> _Partition:
        portions, router = await self._open_ingress(ingress)
        topic, number = source.removeprefix(f"{ingress.name}/").rsplit("/", 1)
        woken = asyncio.Event()
        feed = KafkaIngressFeed(self._app.name, ingress.name, topic, int(number), portions, router, woken.set)
        feed.seek(position)
        return _Partition(feed, portions, woken)

    async def _open_ingress(self, ingress: Ingress) -> tuple[_Portions, KafkaRouter]:
        known = self._ingresses.get(ingress.name)
        if known is None:
            spec = ingress.spec
            assert isinstance(spec, KafkaIngress)
            resolve = partial(resolve_function, self._app)
            router = compile_kafka_router(ingress, spec, resolve, self._registries, self._message_bytes_max)
            portions = _Portions(cluster_of(spec, self._kafka, f"Ingress {ingress.name} reads"), spec)
            known = self._ingresses[ingress.name] = portions, router
            await portions.start()
        return known


class _Partition(NamedTuple):
    """One partition of an ingress. `woken` is set when its feed can go on."""

    feed: KafkaIngressFeed
    portions: _Portions
    woken: asyncio.Event

    async def take(self, end: int) -> list[Admitted]:
        """The records before the offset `end`, as messages."""
        await self.portions.fill((self.feed.topic, self.feed.partition), end)
        inputs: list[Admitted] = []
        while not inputs or inputs[-1].position[0] < end:
            taken = self.feed.take(sys.maxsize)
            inputs += taken
            if not taken:  # A schema is being asked for.
                await self.woken.wait()
                self.woken.clear()
        return inputs


class _Portions:
    """Gives feeds one portion of a partition at a time, wherever the answers of brokers have their borders."""

    def __init__(self, options: KafkaOptions, spec: KafkaIngress) -> None:
        self._timeout_s = options.request_timeout_s
        self._arrived = asyncio.Event()
        self._failure: PenstockError | None = None
        self._reader = KafkaReader(options, isolation=spec.isolation, on_records=self._arrived.set, failed=self._fail)
        self._left: dict[Place, Columns] = {}
        """What came with the last portion and stands behind it."""
        self._portion: dict[Place, Columns] = {}

    async def start(self) -> None:
        await self._reader.start()

    async def close(self) -> None:
        await self._reader.close()

    async def fill(self, place: Place, end: int) -> None:
        """Have the records of a partition before this offset at hand."""
        parts: list[Columns] = []
        taken = self._left.pop(place, None) or await self._read(place)
        while taken.next_offset < end:
            parts.append(taken)
            taken = await self._read(place)
        portion, left = _split(taken, end)
        if left is not None:
            self._left[place] = left
        self._portion[place] = _joined([*parts, portion])

    async def _read(self, place: Place) -> Columns:
        """The next records, however few. Raises Refused when they are not there any more, and Unavailable when nothing
        comes."""
        while True:
            if self._failure is not None:
                raise self._failure
            taken = self._reader.take_columns(*place, TAKEN_RECORDS)
            if taken is not None:
                return taken
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                topic, partition = place
                raise Unavailable(
                    "PEN0720",
                    f"Topic {topic} partition {partition} was read up to offset {self._reader.position(*place)}; then "
                    f"nothing came: {self._reader.unavailable or 'it has no more'}. Try again.",
                ) from None
            self._arrived.clear()

    def _fail(self, error: PenstockError) -> None:
        if error.code == OUT_OF_RANGE:
            error = Refused(
                "PEN0443",
                f"What was read of a topic is not there any more. {error.message} For a replay, choose a later "
                "checkpoint to begin at.",
            )
        self._failure = self._failure or error
        self._arrived.set()

    # As a feed knows it.

    def add(self, topic: str, partition: int, offset: int, *, proof: Proof | None = None) -> None:
        self._reader.add(topic, partition, offset, proof=proof)

    def remove(self, topic: str, partition: int) -> None:
        self._reader.remove(topic, partition)

    def take_columns(self, topic: str, partition: int, count_max: int) -> Columns | None:
        return self._portion.pop((topic, partition), None)

    def position(self, topic: str, partition: int) -> int:
        return self._reader.position(topic, partition)

    def end(self, topic: str, partition: int) -> int:
        return self._reader.end(topic, partition)


def _split(columns: Columns, end: int) -> tuple[Columns, Columns | None]:
    """The records before the offset `end`, and the others, if there are any."""
    if columns.next_offset <= end:
        return columns, None
    index = bisect_left(columns.offsets, end)
    offsets, keys, values, headers, next_offset, last = columns
    first, second = (None, None) if headers is None else (headers[:index], headers[index:])
    return (
        Columns(offsets[:index], keys[:index], values[:index], first, end, None),
        Columns(offsets[index:], keys[index:], values[index:], second, next_offset, last),
    )


def _joined(parts: Sequence[Columns]) -> Columns:
    """All of them as one, as if they had come together."""
    offsets = list(chain.from_iterable(part.offsets for part in parts))
    dense = bool(offsets) and offsets[-1] - offsets[0] + 1 == len(offsets)
    headers: list[Headers] = []
    for part in parts:
        headers += part.headers if part.headers is not None else [()] * len(part.keys)
    return Columns(
        range(offsets[0], offsets[-1] + 1) if dense else offsets,
        list(chain.from_iterable(part.keys for part in parts)),
        list(chain.from_iterable(part.values for part in parts)),
        headers if any(headers) else None,
        parts[-1].next_offset,
        parts[-1].last,
    )
