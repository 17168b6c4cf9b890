"""The reader against a real broker: what it gives, what it leaves out, and what it refuses to go on with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import UnknownTopicOrPartitionError

from penstock.errors import ConfigurationError, PenstockError, Refused, Unavailable
from penstock.router.kafka_client import connected, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader, read_range
from penstock.router.kafka_records import Columns, Fetched, Proof
from tests.kafka.broker import temporary_cluster
from tests.kafka.plainly import create_topic, partition_count, synchronous

pytestmark = pytest.mark.kafka


class Reading:
    """A reader, and waiting for what it gives."""

    def __init__(self, options: KafkaOptions, **arguments: Any) -> None:
        self.arrived = asyncio.Event()
        self.failures: list[PenstockError] = []
        self.reader = KafkaReader(options, on_records=self.arrived.set, failed=self._failed, **arguments)

    def _failed(self, error: PenstockError) -> None:
        self.failures.append(error)
        self.arrived.set()

    async def records(self, topic: str, count: int, partition: int = 0) -> list[Fetched]:
        found: list[Fetched] = []
        while len(found) < count:
            found += self.reader.take(topic, partition, count - len(found))
            if len(found) < count:
                await self.wait()
        return found

    async def columns(self, topic: str) -> Columns:
        while (columns := self.reader.take_columns(topic, 0, 1_000)) is None:
            await self.wait()
        return columns

    async def passed(self, topic: str, offset: int) -> list[bytes | None]:
        """The values up to `offset`, and that nothing else comes before it."""
        found: list[bytes | None] = []
        while self.reader.position(topic, 0) < offset:
            found += (await self.columns(topic)).values
        return found

    async def failure(self) -> PenstockError:
        """What goes wrong instead of giving anything."""
        while not self.failures:
            await self.wait()
            for place in self.reader.assigned:
                assert self.reader.take(*place, 10) == []
        return self.failures[0]

    async def wait(self) -> None:
        await self.arrived.wait()
        self.arrived.clear()


@asynccontextmanager
async def reading(
    bootstrap: str, properties: Mapping[str, str] | None = None, **arguments: Any
) -> AsyncIterator[Reading]:
    made = Reading(KafkaOptions(bootstrap, properties or {}), **arguments)
    await made.reader.start()
    try:
        yield made
    finally:
        await made.reader.close()


@asynccontextmanager
async def producing(bootstrap: str, **arguments: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, **arguments)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(bootstrap: str, topic: str, *values: bytes, partition: int = 0, timestamp_ms: int = 1_000) -> None:
    async with producing(bootstrap) as producer:
        for value in values:
            await producer.send(topic, value, partition=partition, timestamp_ms=timestamp_ms)
        await producer.flush()


async def delete_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():
            pass
    finally:
        await admin.close()


async def delete_records(bootstrap: str, topic: str, before: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


# What comes.


@synchronous
async def test_records_come_whole_and_in_order_from_the_offset_on(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with producing(kafka) as producer:
        for number in range(10):
            headers = [("a", b"\xff"), ("a", b"2")] if number == 4 else None
            key = None if number == 3 else b"k"
            value = None if number == 5 else b"%d" % number
            await producer.send(kafka_app, value, key, partition=0, timestamp_ms=number, headers=headers)
    async with reading(kafka) as read:
        read.reader.assign({(kafka_app, 0): 3})

        first, *others = await read.records(kafka_app, 7)
        assert first == Fetched(3, None, b"3", [], 3)
        assert list(others[0].headers) == [("a", b"\xff"), ("a", b"2")]
        assert others[1].value is None
        assert [record.offset for record in others] == list(range(4, 10))
        assert read.reader.position(kafka_app, 0) == read.reader.end(kafka_app, 0) == 10
        await produce(kafka, kafka_app, b"later")
        columns = await read.columns(kafka_app)
        assert (columns.offsets, columns.keys, columns.values) == (range(10, 11), [None], [b"later"])
        assert columns.headers is None


@synchronous
async def test_committed_records_come_and_aborted_ones_do_not(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with producing(kafka, transactional_id=kafka_app) as producer:
        for number, commit in enumerate([True, False, True, False]):
            await producer.begin_transaction()
            for index in range(2):
                await producer.send(kafka_app, b"%d.%d" % (number, index), partition=0)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    async with reading(kafka) as committed, reading(kafka, isolation="read_uncommitted") as all_of_them:
        committed.reader.assign({(kafka_app, 0): 0})
        all_of_them.reader.assign({(kafka_app, 0): 0})

        assert await committed.passed(kafka_app, 12) == [b"0.0", b"0.1", b"2.0", b"2.1"]
        assert len(await all_of_them.passed(kafka_app, 12)) == 8
    bounds = await offsets(KafkaOptions(kafka), [(kafka_app, 0)])
    assert bounds == {(kafka_app, 0): (0, 12)}


@synchronous
async def test_an_open_transaction_hides_what_follows_until_it_ends(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with reading(kafka) as read, producing(kafka, transactional_id=kafka_app) as producer:
        read.reader.assign({(kafka_app, 0): 0})
        await producer.begin_transaction()
        await producer.send_and_wait(kafka_app, b"held", partition=0)
        await produce(kafka, kafka_app, b"behind it")
        ends = await offsets(KafkaOptions(kafka), [(kafka_app, 0)])
        assert ends[kafka_app, 0].end == 0
        assert read.reader.take(kafka_app, 0, 10) == []
        await producer.commit_transaction()

        assert [record.value for record in await read.records(kafka_app, 2)] == [b"held", b"behind it"]


@synchronous
async def test_a_partition_that_is_added_does_not_wait_for_the_poll_of_others(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    await produce(kafka, kafka_app, b"there", partition=1)
    async with reading(kafka, fetch_wait_ms=20_000) as read:
        read.reader.add(kafka_app, 0, 0)
        await asyncio.sleep(0.1)  # The poll is under way, and would hold it up for 20 s.
        async with asyncio.timeout(10):
            read.reader.add(kafka_app, 1, 0)
            assert [record.value for record in await read.records(kafka_app, 1, partition=1)] == [b"there"]
        read.reader.remove(kafka_app, 1)
        assert list(read.reader.assigned) == [(kafka_app, 0)]


@synchronous
async def test_queues_are_bounded_and_nothing_is_lost_by_it(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with producing(kafka, linger_ms=5) as producer:
        sent = [await producer.send(kafka_app, b"%01000d" % number, partition=0) for number in range(2_000)]
        await asyncio.gather(*sent)
    async with reading(kafka, buffer_bytes_max=256 << 10) as read:
        read.reader.assign({(kafka_app, 0): 0})
        found: list[int] = []
        largest = 0
        while len(found) < 2_000:
            await read.wait()
            await asyncio.sleep(0.005)  # As somebody who is slow.
            largest = max(largest, read.reader.buffered_bytes)
            found += [int(record.value or b"") for record in read.reader.take(kafka_app, 0, 100)]
            read.arrived.set()

        assert found == list(range(2_000))
        assert 0 < largest <= 256 << 10


@synchronous
async def test_what_a_paused_partition_has_stays(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"1", b"2")
    async with reading(kafka) as read:
        read.reader.assign({(kafka_app, 0): 0})
        assert [record.value for record in await read.records(kafka_app, 1)] == [b"1"]
        read.reader.pause(kafka_app, 0)
        assert [record.value for record in read.reader.take(kafka_app, 0, 1)] == [b"2"]
        read.reader.resume(kafka_app, 0)
        await produce(kafka, kafka_app, b"3")
        assert [record.value for record in await read.records(kafka_app, 1)] == [b"3"]


@synchronous
async def test_a_range_is_read_to_its_end(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, *(b"%d" % number for number in range(30)))
    options = KafkaOptions(kafka)

    assert [record.offset for record in await read_range(options, kafka_app, 0, 10, 20)] == list(range(10, 20))
    assert len(await read_range(options, kafka_app, 0, 0)) == 30
    assert await read_range(options, kafka_app, 0, 30) == []
    with pytest.raises(Unavailable):
        await read_range(KafkaOptions(kafka, {"request.timeout.ms": "700"}), kafka_app, 0, 10, 31)


# What can't go on.


@synchronous
@pytest.mark.parametrize("offset", [0, 9])
async def test_an_offset_out_of_range_is_refused(kafka: str, kafka_app: str, offset: int) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"0", b"1", b"2", b"3")
    await delete_records(kafka, kafka_app, before=2)
    async with reading(kafka) as read:
        read.reader.assign({(kafka_app, 0): offset})

        error = await read.failure()
        assert isinstance(error, Refused)
        assert error.code == "PEN0721"
        assert "Kafka has 2 to 4" in error.message
        assert read.reader.take(kafka_app, 0, 10) == []


@synchronous
async def test_a_deleted_topic_is_refused_and_not_created_by_asking(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"0")
    async with reading(kafka, gone_s=1) as read:
        read.reader.assign({(kafka_app, 0): 0})
        await read.records(kafka_app, 1)
        await delete_topic(kafka, kafka_app)

        error = await read.failure()
        assert error.code == "PEN0722"
        assert await partition_count(kafka, kafka_app) == 0
    with pytest.raises(Refused) as caught:
        await offsets(KafkaOptions(kafka, {"request.timeout.ms": "700"}), [(kafka_app, 0)])
    assert caught.value.code == "PEN0722"


@synchronous
async def test_a_topic_is_gone_only_if_brokers_have_said_so_all_the_time(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with reading(kafka, gone_s=1) as read:
        reader = read.reader
        reader.assign({(kafka_app, 0): 0})
        partition = reader._partitions[kafka_app, 0]
        reader._client.knows = lambda place: False  # type: ignore[method-assign]
        now = asyncio.get_running_loop().time()

        # Long ago, before this process stood still.
        partition.unknown_since, partition.unknown_at = now - 60, now - 30
        reader._refused(partition, UnknownTopicOrPartitionError.errno)
        assert not partition.failed
        # Before no broker could be reached.
        partition.unknown_since, partition.unknown_at = now - 60, now
        reader._outage([], ConnectionError())
        reader._down_since = None
        reader._refused(partition, UnknownTopicOrPartitionError.errno)
        assert not partition.failed

        partition.unknown_since, partition.unknown_at = now - 60, now
        reader._refused(partition, UnknownTopicOrPartitionError.errno)
        assert (await read.failure()).code == "PEN0722"


@synchronous
async def test_a_topic_created_anew_is_recognised_by_the_record_read_last(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"0", b"1", b"2")
    async with reading(kafka) as read:
        read.reader.assign({(kafka_app, 0): 0})
        await read.records(kafka_app, 1)
        proof = read.reader._partitions[kafka_app, 0].last
        read.reader.add(kafka_app, 0, 1, proof=proof)
        assert [record.offset for record in await read.records(kafka_app, 2)] == [1, 2]
    await delete_topic(kafka, kafka_app)
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"other", b"1", b"2")
    async with reading(kafka) as read:
        read.reader.add(kafka_app, 0, 1, proof=proof)

        error = await read.failure()
        assert error.code == "PEN0724"
        assert read.reader.take(kafka_app, 0, 10) == []


@synchronous
async def test_a_topic_created_anew_while_it_is_read_is_recognised(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"0")
    async with reading(kafka) as read:
        read.reader.assign({(kafka_app, 0): 0})
        await read.records(kafka_app, 1)
        await delete_topic(kafka, kafka_app)
        while read.reader._partitions[kafka_app, 0].unknown_since is None:  # noqa: ASYNC110  # It tells nobody.
            await asyncio.sleep(0.01)
        await create_topic(kafka, kafka_app)
        await produce(kafka, kafka_app, b"other", b"1", b"2")

        assert (await read.failure()).code in {"PEN0721", "PEN0724"}
        assert read.reader.take(kafka_app, 0, 10) == []


@synchronous
async def test_a_proof_that_retention_deleted_is_no_obstacle(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    await produce(kafka, kafka_app, b"0", b"1", b"2")
    await delete_records(kafka, kafka_app, before=2)
    async with reading(kafka) as read:
        read.reader.add(kafka_app, 0, 2, proof=Proof(1, 1_000, 0))

        assert [record.offset for record in await read.records(kafka_app, 1)] == [2]


@synchronous
async def test_nobody_there_is_told_at_the_start() -> None:
    reader = KafkaReader(KafkaOptions("127.0.0.1:1"), failed=lambda error: None)

    with pytest.raises(Unavailable):
        await reader.start()
    await reader.close()


# Brokers that fail.


@pytest.mark.slow
@synchronous
async def test_a_restart_of_the_broker_is_waited_out() -> None:
    with temporary_cluster() as cluster:
        await create_topic(cluster.bootstrap, "t")
        await produce(cluster.bootstrap, "t", b"0", b"1")
        async with reading(cluster.bootstrap, gone_s=10) as read:
            read.reader.assign({("t", 0): 0})
            await read.records("t", 2)
            cluster.nodes[0].kill()
            while not read.reader.unavailable:  # noqa: ASYNC110  # It tells nobody.
                await asyncio.sleep(0.01)
            assert "PEN0720" in read.reader.unavailable
            await asyncio.to_thread(cluster.nodes[0].start)
            await produce(cluster.bootstrap, "t", b"2")

            assert [record.value for record in await read.records("t", 1)] == [b"2"]
            assert read.reader.unavailable == ""
            assert read.failures == []


@pytest.mark.slow
@synchronous
async def test_gaps_of_compaction_are_told_and_the_rights_to_read_are_needed() -> None:
    quick = {"log.cleaner.backoff.ms": "50"}
    with temporary_cluster(properties=quick, users={"reader": "secret"}) as cluster:
        compact = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.001", "segment.ms": "100"}
        await create_topic(cluster.bootstrap, "t", settings=compact)
        async with producing(cluster.bootstrap) as producer:
            for number in range(20):
                await producer.send_and_wait("t", b"%d" % number, b"k%d" % (number % 3), partition=0)
                await asyncio.sleep(0.02)  # Only segments that are full or old are compacted.
        found: list[Fetched] = []
        while not 0 < len(found) < 20:
            found = await read_range(KafkaOptions(cluster.bootstrap), "t", 0, 0)
        assert {record.key for record in found} == {b"k0", b"k1", b"k2"}
        assert [record.offset for record in found] == [int(record.value or b"") for record in found]
        assert found[-1].offset == 19
        async with reading(cluster.bootstrap) as read:
            read.reader.assign({("t", 0): 0})
            assert len(await read.passed("t", 20)) <= len(found)

        login = {"security.protocol": "SASL_PLAINTEXT", "sasl.username": "reader", "sasl.password": "secret"}
        async with reading(cluster.bootstrap_sasl, login) as read:
            read.reader.assign({("t", 0): 0})
            assert isinstance(error := await read.failure(), ConfigurationError)
            assert error.code == "PEN0723"
        async with connected(KafkaOptions(cluster.bootstrap_sasl, login)) as client:
            with pytest.raises(ConfigurationError):
                await client.offsets([("t", 0)], -1)
