"""Kafka ingresses as inputs of tasks, from records of a real broker to what a batch admits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaError

from penstock.engine.effects import Column, Deliveries, Input, Rejected
from penstock.engine.kafka_feeds import KafkaIngressFeed, KafkaPartitions, KafkaTaskFeed
from penstock.errors import ConfigurationError, DecodeError, PenstockError, Refused
from penstock.functions.app import Ingress
from penstock.functions.formats import Raw
from penstock.functions.kafka import KafkaIngress
from penstock.functions.types import codec_for
from penstock.ids import key_group
from penstock.router.formats import Decoder, MissingSchema
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader
from penstock.router.kafka_routing import KafkaRouter
from penstock.router.schema_registry import Registries
from tests.kafka.plainly import create_topic, synchronous

pytestmark = pytest.mark.kafka

TARGET = "shop/raw"


def router_for(spec: KafkaIngress, **arguments: Any) -> KafkaRouter:
    return KafkaRouter.compile(
        "orders",
        spec,
        to=TARGET,
        resolve=lambda target: (target, codec_for(bytes)),
        registries=Registries({}),
        message_bytes_max=1 << 20,
        **arguments,
    )


class Task:
    """What one task has taken, as its core would remember it."""

    def __init__(self, feed: KafkaTaskFeed, arrived: asyncio.Event, failures: Sequence[PenstockError]) -> None:
        self.feed = feed
        self.arrived = arrived
        self.failures = failures
        self.positions: dict[str, Any] = {}
        self.inputs: list[Input] = []
        self.messages: list[tuple[str, bytes, int]] = []
        """Id, payload and cause of each."""
        self.rejected: list[Rejected] = []

    def take(self, count_max: int = 1_000) -> None:
        for each in self.feed.take(count_max):
            assert isinstance(each, Column | Deliveries)
            self.inputs.append(each)
            self.positions[each.source] = each.position
            if isinstance(each, Column):
                causes = range(each.cause, each.cause + len(each.ids))
                self.messages += zip(each.ids, each.payloads, causes, strict=True)
            else:
                self.messages += [(sent.id, sent.payload, sent.cause) for sent in each.envelopes]
                self.rejected += each.rejected

    async def until(self, messages: int, rejected: int = 0) -> None:
        """Take until as many have come."""
        self.take()
        while len(self.messages) < messages or len(self.rejected) < rejected:
            await self.arrived.wait()
            self.arrived.clear()
            assert not self.failures, self.failures
            self.take()
        assert (len(self.messages), len(self.rejected)) == (messages, rejected)

    @property
    def values(self) -> list[bytes]:
        return [payload for _, payload, _ in self.messages]


class Worker:
    def __init__(self, bootstrap: str, spec: KafkaIngress, tasks: int, application: str, **arguments: Any) -> None:
        self.arrived = asyncio.Event()
        self.failures: list[PenstockError] = []
        self.partitions = KafkaPartitions(
            application,
            Ingress("orders", spec, TARGET, None, None),
            router_for(spec),
            KafkaOptions(bootstrap),
            tasks=tasks,
            wake=self.arrived.set,
            failed=self._failed,
            **arguments,
        )

    def _failed(self, error: PenstockError) -> None:
        self.failures.append(error)
        self.arrived.set()

    def task(self, number: int = 0, positions: Mapping[str, Any] | None = None) -> Task:
        return Task(self.partitions.feed_for(number, positions or {}), self.arrived, self.failures)


@asynccontextmanager
async def working(
    bootstrap: str, spec: KafkaIngress, *, tasks: int = 1, application: str = "app", **arguments: Any
) -> AsyncIterator[Worker]:
    worker = Worker(bootstrap, spec, tasks, application, **arguments)
    try:
        await worker.partitions.start()
        yield worker
    finally:
        await worker.partitions.close()


def raw(topics: str | Sequence[str] = (), **arguments: Any) -> KafkaIngress:
    return KafkaIngress(topics, format=Raw(), **arguments)


async def produce(
    bootstrap: str,
    topic: str,
    records: Sequence[tuple[bytes | None, bytes | None]],
    *,
    partition: int | None = 0,
    headers: Sequence[tuple[str, bytes]] = (),
    timestamp_ms: int | None = None,
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        for key, value in records:
            await producer.send(
                topic, value, key, partition=partition, headers=list(headers), timestamp_ms=timestamp_ms
            )
        await producer.flush()
    finally:
        await producer.stop()


@asynccontextmanager
async def administrating(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def delete_topic(bootstrap: str, topic: str) -> None:
    async with administrating(bootstrap) as admin:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            pass


# Records and positions.


@synchronous
async def test_records_come_as_columns_and_go_on_from_a_position(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k%d" % number, b"%d" % number) for number in range(10)])
    async with working(kafka, raw(kafka_app)) as worker:
        task = worker.task()
        task.take()
        assert task.positions == {"orders": {kafka_app: 1}, f"orders/{kafka_app}/0": [0]}
        await task.until(10)

        assert task.values == [b"%d" % number for number in range(10)]
        assert isinstance(task.inputs[-1], Column)
        first = task.messages[0][2]
        assert [cause for _, _, cause in task.messages] == list(range(first, first + 10))
        assert task.feed.origin_of(first + 3) == f"topic {kafka_app} partition 0 offset 3"
        assert task.feed.origin_of(first - 1) == ""
        assert (task.feed.behind, task.feed.records) == (0, 10)
        assert task.feed.lags == [(kafka_app, 0, 10, 10)]
        position = task.positions[f"orders/{kafka_app}/0"]
        assert position[:2] == [10, 9]
    await produce(kafka, kafka_app, [(b"k", b"10")])
    async with working(kafka, raw(kafka_app)) as worker:
        again = worker.task(0, task.positions)
        await again.until(1)
        assert again.messages == [("k", b"10", first + 10)]
        assert list(again.positions) == [f"orders/{kafka_app}/0"]


@synchronous
async def test_gaps_part_columns_and_markers_move_the_position(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=kafka_app)
    await producer.start()
    for number, (size, commit) in enumerate([(20, True), (3, False), (20, True)]):
        await producer.begin_transaction()
        for index in range(size):
            await producer.send(kafka_app, b"%d.%d" % (number, index), b"k", partition=0)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    await producer.stop()
    async with working(kafka, raw(kafka_app)) as worker:
        task = worker.task()
        await task.until(40)
        while task.positions[f"orders/{kafka_app}/0"][0] < 46:
            await task.arrived.wait()
            task.arrived.clear()
            task.take()

        first = task.messages[0][2]
        assert [cause - first for _, _, cause in task.messages] == [*range(20), *range(25, 45)]
        columns = [each for each in task.inputs if isinstance(each, Column)]
        assert all(len(each.ids) == 20 for each in columns)
        assert task.positions[f"orders/{kafka_app}/0"][:2] == [46, 44]


@synchronous
async def test_what_can_be_no_message_is_rejected_with_all_that_is_known_of_it(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    bad: list[tuple[bytes | None, bytes | None]] = [(None, b"1"), (b"", b"2"), (b"\xff", b"3"), (b"k", None)]
    await produce(kafka, kafka_app, [(b"good", b"0")])
    await produce(kafka, kafka_app, bad, headers=[("h", b"x")])
    await produce(kafka, kafka_app, [(b"good", b"5")])
    async with working(kafka, raw(kafka_app)) as worker:
        task = worker.task()
        await task.until(2, 4)

        assert task.values == [b"0", b"5"]
        assert [(each.code, each.payload) for each in task.rejected] == [
            ("PEN0730", b"1"),
            ("PEN0730", b"2"),
            ("PEN0730", b"3"),
            ("PEN0731", b""),
        ]
        assert [dict(each.headers or {}) for each in task.rejected] == [
            {"h": "x"},
            {"h": "x", "kafka.key": ""},
            {"h": "x", "kafka.key": "base64:/w=="},
            {"h": "x", "kafka.key": "k"},
        ]
        assert task.rejected[2].origin == f"topic {kafka_app} partition 0 offset 3"
        assert task.rejected[2].typename == "orders"


@synchronous
async def test_headers_reach_the_message(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"v")], headers=[("h", b"x")])
    async with working(kafka, raw(kafka_app)) as worker:
        task = worker.task()
        await task.until(1)

        (delivered,) = (each for each in task.inputs if isinstance(each, Deliveries) and each.envelopes)
        meta = delivered.envelopes[0].meta
        assert meta is not None
        assert meta.headers == {"h": "x"}


# Partitions and tasks.


@synchronous
async def test_partitions_are_those_of_the_default_partitioner_so_that_no_id_needs_a_hop(
    kafka: str, kafka_app: str
) -> None:
    await create_topic(kafka, kafka_app, partitions=4)
    ids = [f"id-{number}-é" for number in range(100)]
    await produce(kafka, kafka_app, [(id.encode(), b"") for id in ids], partition=None)
    async with working(kafka, raw(kafka_app), tasks=4) as worker:
        tasks = [worker.task(number) for number in range(4)]
        found: set[str] = set()
        while len(found) < 100:
            for number, task in enumerate(tasks):
                task.take()
                assert all(key_group(id) % 4 == number for id, _, _ in task.messages)
                found |= {id for id, _, _ in task.messages}
            await asyncio.sleep(0.01)
        assert found == set(ids)


@synchronous
async def test_partitions_are_dealt_out_to_tasks_and_taken_in_turn(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=4)
    for partition in range(4):
        await produce(kafka, kafka_app, [(b"k", b"%d" % partition)] * 5, partition=partition)
    async with working(kafka, raw(kafka_app), tasks=2) as worker:
        task = worker.task(1)
        while task.feed.behind < 10:  # noqa: ASYNC110  # Fetches of either partition wake it.
            await asyncio.sleep(0.01)
        task.take(5)
        task.take(5)
        assert task.values == [b"1"] * 5 + [b"3"] * 5 or task.values == [b"3"] * 5 + [b"1"] * 5
        await task.feed.close()
        worker.partitions.drop(1)
        assert worker.partitions.lags == []


@synchronous
async def test_a_task_that_is_placed_again_is_not_hindered_by_the_end_of_its_former_feed(
    kafka: str, kafka_app: str
) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"1")])
    async with working(kafka, raw(kafka_app)) as worker:
        former = worker.task()
        await former.until(1)
        task = worker.task(0, former.positions)
        await former.feed.close()
        await produce(kafka, kafka_app, [(b"k", b"2")])
        await task.until(1)
        assert task.values == [b"2"]


@synchronous
async def test_partitions_that_are_added_are_read_from_their_beginning(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"old")])
    async with working(kafka, raw(kafka_app, start="latest"), refresh_s=0.05) as worker:
        task = worker.task()
        task.take()
        assert task.positions[f"orders/{kafka_app}/0"] == [1]
        positions = dict(task.positions)
        async with administrating(kafka) as admin:
            await admin.create_partitions({kafka_app: NewPartitions(2)})
        await produce(kafka, kafka_app, [(b"k", b"new")], partition=1)
        await task.until(1)
        assert task.values == [b"new"]
    async with working(kafka, raw(kafka_app, start="latest")) as worker:
        restored = worker.task(0, positions)
        await restored.until(1)
        assert restored.values == [b"new"]


@synchronous
async def test_topics_that_match_later_are_read_from_their_beginning(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, f"{kafka_app}-1")
    await create_topic(kafka, f"{kafka_app}.inbox")
    await produce(kafka, f"{kafka_app}-1", [(b"k", b"1")])
    spec = raw(pattern=f"{kafka_app}.*", start="latest")
    async with working(kafka, spec, application=kafka_app, refresh_s=0.05) as worker:
        task = worker.task()
        task.take()
        assert task.positions["orders"] == {f"{kafka_app}-1": 1}
        await create_topic(kafka, f"{kafka_app}-2")
        await produce(kafka, f"{kafka_app}-2", [(b"k", b"2")])
        await task.until(1)
        assert task.values == [b"2"]


# Where it begins.


@synchronous
async def test_start_positions(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    for number in range(4):
        await produce(kafka, kafka_app, [(b"k", b"%d" % number)], timestamp_ms=1_000_000 + number * 1_000)
    await produce(kafka, kafka_app, [(b"k", b"other")], partition=1, timestamp_ms=1_000_000)

    async def begins(**arguments: Any) -> list[int]:
        async with working(kafka, raw(kafka_app, **arguments)) as worker:
            task = worker.task()
            task.take()
            return [task.positions[f"orders/{kafka_app}/{partition}"][0] for partition in range(2)]

    assert await begins() == [0, 0]
    assert await begins(start="latest") == [4, 1]
    assert await begins(start={0: 2}) == [2, 0]
    assert await begins(start=datetime.fromtimestamp(1_001.5, UTC)) == [2, 1]


@synchronous
async def test_topics_and_partitions_that_are_not_there_are_refused(kafka: str, kafka_app: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with working(kafka, raw(kafka_app)):
            pass
    assert caught.value.code == "PEN0727"
    await create_topic(kafka, kafka_app)
    with pytest.raises(ConfigurationError) as caught:
        async with working(kafka, raw(kafka_app, start={1: 0})):
            pass
    assert "partition 1" in caught.value.message
    async with working(kafka, raw(kafka_app, start={0: 7})) as worker:
        task = worker.task()
        task.take()
        while not worker.failures:
            await task.arrived.wait()
            task.arrived.clear()
        assert worker.failures[0].code == "PEN0721"


@synchronous
async def test_a_topic_created_anew_is_refused(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    await produce(kafka, kafka_app, [(b"k", b"1")])
    async with working(kafka, raw(kafka_app)) as worker:
        task = worker.task()
        await task.until(1)
    await delete_topic(kafka, kafka_app)
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"other"), (b"k", b"2")])
    async with working(kafka, raw(kafka_app)) as worker:
        with pytest.raises(Refused) as caught:
            worker.task(0, task.positions)
        assert caught.value.code == "PEN0724"
    del task.positions[f"orders/{kafka_app}/1"]
    async with working(kafka, raw(kafka_app)) as worker:
        again = worker.task(0, task.positions)
        while not worker.failures:
            await again.arrived.wait()
            again.arrived.clear()
            again.take()
        assert worker.failures[0].code == "PEN0724"
        assert again.messages == []


# What a group is told, and schemas.


@synchronous
async def test_the_group_is_told_positions_of_complete_checkpoints(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"1"), (b"k", b"2")])
    async with (
        working(kafka, raw(kafka_app), application=kafka_app, tell_s=0.02) as worker,
        administrating(kafka) as admin,
    ):
        task = worker.task()
        await task.until(2)
        worker.partitions.completed(task.positions)
        told: dict[TopicPartition, Any] = {}
        while not told:
            with suppress(KafkaError):  # The first group of a cluster waits for the topic of groups.
                told = await admin.list_consumer_group_offsets(kafka_app)
        assert told[TopicPartition(kafka_app, 0)].offset == 2


@synchronous
async def test_the_group_is_told_by_whoever_has_the_task(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, [(b"k", b"1"), (b"k", b"2")])
    options: Any = {"application": kafka_app, "tell_s": 3_600.0}  # They tell when they are closed.
    async with administrating(kafka) as admin:
        async with working(kafka, raw(kafka_app), **options) as before:
            task = before.task()
            await task.until(2)
            (source,) = (name for name in task.positions if name.endswith("/0"))
            before.partitions.completed({source: [1]})
            before.partitions.drop(0)
            async with working(kafka, raw(kafka_app), **options) as after:
                after.task(positions=task.positions)  # Nothing comes any more: what is restored is all there is.
        told = await admin.list_consumer_group_offsets(kafka_app)
        assert told[TopicPartition(kafka_app, 0)].offset == 2


class Learner(Decoder):
    """Knows no schema at first."""

    def __init__(self) -> None:
        self.known: set[int] = set()

    def decode(self, value: bytes, headers: Any) -> tuple[Any, Any]:
        if value == b"bad":
            raise DecodeError("PEN0201", "it is bad.")
        if value[0] not in self.known:
            raise MissingSchema(value[0])
        return value, headers

    async def learn(self, schema_id: int) -> None:
        self.known.add(schema_id)


@synchronous
async def test_records_wait_in_order_for_their_schemas(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    values = [b"bad", b"\1a", b"\1b", b"\2a", b"\1c"]
    await produce(kafka, kafka_app, [(b"k", value) for value in values])
    arrived = asyncio.Event()
    reader = KafkaReader(KafkaOptions(kafka), on_records=arrived.set, failed=lambda error: None)
    router = router_for(raw(kafka_app), key=len)
    router.decoder = Learner()
    await reader.start()
    feed = KafkaIngressFeed("app", "orders", kafka_app, 0, reader, router, arrived.set)
    feed.seek([0])
    task = Task(KafkaTaskFeed("orders", [feed], None, {}), arrived, [])
    await task.until(4, 1)

    assert task.values == [b"\1a", b"\1b", b"\2a", b"\1c"]
    positions = [each.position[0] for each in task.inputs if isinstance(each, Deliveries)]
    assert positions == sorted(positions)
    assert positions[-1] == 5
    assert feed.behind == 0
    await feed.close()
    await reader.close()
