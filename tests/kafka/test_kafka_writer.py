"""The writer against a real broker: order, refusals, and outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.errors import PenstockError, Unavailable
from penstock.ids import murmur2
from penstock.router import kafka_writer
from penstock.router.kafka_batches import STICKY_BYTES, Record, RecordsRefused
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_writer import KafkaWriter
from tests.kafka.broker import temporary_cluster
from tests.kafka.plainly import create_topic, records_of, synchronous

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def writing(bootstrap: str, **arguments: Any) -> AsyncIterator[KafkaWriter]:
    writer = KafkaWriter(KafkaOptions(bootstrap), **arguments)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.close()


@synchronous
async def test_records_of_a_partition_are_written_in_order(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    async with writing(kafka) as writer:
        futures = [writer.append(Record(kafka_app, number % 2, b"%d" % number)) for number in range(1_000)]
        assert writer.unflushed == 1_000
        assert writer.unflushed_bytes > 1_000
        await writer.flush()

        assert [future.result() for future in futures[::2]] == list(range(500))
        assert (writer.unflushed, writer.unflushed_bytes, writer.unavailable) == (0, 0, "")
    values = [int(record.value) for record in await records_of(kafka, kafka_app)]
    assert values == [*range(0, 1_000, 2), *range(1, 1_000, 2)]


@synchronous
async def test_everything_of_a_record_arrives(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, settings={"cleanup.policy": "compact"})
    async with writing(kafka, compression="lz4") as writer:
        writer.append(Record(kafka_app, 0, b"value", b"key", (("a", b"1"), ("b", b"")), 1_000_000_000_000))
        writer.append(Record(kafka_app, 0, None, b"deleted"))
        await writer.flush()

    first, second = await records_of(kafka, kafka_app)
    assert (first.key, first.value, first.timestamp) == (b"key", b"value", 1_000_000_000_000)
    assert first.headers == (("a", b"1"), ("b", b""))
    assert (second.key, second.value) == (b"deleted", None)


@synchronous
async def test_the_key_decides_as_in_kafka_itself_and_others_are_spread(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=4)
    keys = [b"key-%d" % number for number in range(50)]
    async with writing(kafka) as writer:
        for key in keys:
            writer.append(Record(kafka_app, None, b"keyed", key))
        for _ in range(8):
            writer.append(Record(kafka_app, None, bytes(STICKY_BYTES // 2)))
        await writer.flush()

    records = await records_of(kafka, kafka_app)
    found = {record.key: record.partition for record in records if record.key}
    assert found == {key: (murmur2(key) & 0x7FFFFFFF) % 4 for key in keys}
    keyless = [record.partition for record in records if record.key is None]
    assert sorted(keyless) == [0, 0, 1, 1, 2, 2, 3, 3]


@synchronous
async def test_what_is_appended_after_a_start_waits_for_the_topic_in_order(kafka: str, kafka_app: str) -> None:
    async with writing(kafka) as writer:
        futures = [writer.append(Record(kafka_app, None if number % 2 else 0, b"%d" % number)) for number in range(10)]
        await create_topic(kafka, kafka_app)
        futures.append(writer.append(Record(kafka_app, 0, b"10")))
        await writer.flush()

        assert [future.result() for future in futures] == list(range(11))
    assert [int(record.value) for record in await records_of(kafka, kafka_app)] == list(range(11))


@synchronous
async def test_a_record_that_is_too_large_is_refused_and_no_other(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, settings={"max.message.bytes": "10000"})
    told: list[PenstockError] = []
    async with writing(kafka, failed=told.append) as writer:
        good = [writer.append(Record(kafka_app, 0, bytes(900))) for _ in range(50)]
        bad = writer.append(Record(kafka_app, 0, bytes(20_000)))
        good += [writer.append(Record(kafka_app, 0, bytes(900))) for _ in range(50)]
        with pytest.raises(RecordsRefused) as caught:
            await writer.flush()

        assert [future.result() for future in good] == list(range(100))
        error = bad.exception()
        assert isinstance(error, RecordsRefused)
        assert "max.message.bytes" in str(error)
        assert told == [error] == [caught.value]
    assert len(await records_of(kafka, kafka_app)) == 100


@synchronous
async def test_a_topic_or_partition_that_does_not_exist_is_refused(
    kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_writer, "TOPIC_PATIENCE_S", 0.3)
    await create_topic(kafka, kafka_app)
    async with writing(kafka) as writer:
        nowhere = [writer.append(Record(f"{kafka_app}-none", 0, b"")), writer.append(Record(kafka_app, 7, b""))]
        good = writer.append(Record(kafka_app, 0, b""))
        await asyncio.wait([*nowhere, good])

        assert [type(future.exception()) for future in nowhere] == [RecordsRefused, RecordsRefused]
        assert good.result() == 0


@synchronous
async def test_a_compacted_topic_refuses_records_without_a_key(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, settings={"cleanup.policy": "compact"})
    async with writing(kafka) as writer:
        refused = writer.append(Record(kafka_app, 0, b"value"))
        await asyncio.wait([refused])

        assert isinstance(refused.exception(), RecordsRefused)


@synchronous
async def test_nobody_answers() -> None:
    with pytest.raises(Unavailable) as caught:
        await KafkaWriter(KafkaOptions("127.0.0.1:1")).start()

    assert caught.value.code == "PEN0706"


@synchronous
async def test_what_is_given_up_at_the_end_is_cancelled(kafka: str, kafka_app: str) -> None:
    async with writing(kafka) as writer:
        future = writer.append(Record(f"{kafka_app}-none", 0, b""))

    assert future.cancelled()
    assert writer.unflushed == 0


@pytest.mark.slow
def test_an_outage_loses_nothing_and_keeps_the_order(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_writer, "LATE_S", 0.4)
    with temporary_cluster() as cluster:
        topic = "outage"

        async def write() -> None:
            await create_topic(cluster.bootstrap, topic, partitions=2)
            async with writing(cluster.bootstrap) as writer:
                numbers = iter(range(10**9))
                for stop in (cluster.nodes[0].kill, cluster.nodes[0].stop):
                    feed = asyncio.create_task(feeding(writer, numbers))
                    await writer.append(Record(topic, 0, b"-1"))
                    await asyncio.to_thread(stop)
                    while not writer.unavailable:  # noqa: ASYNC110  # It is an attribute: there is no event.
                        await asyncio.sleep(0.05)
                    cluster.nodes[0].launch()  # Not in another thread: the broker would end with it.
                    await asyncio.to_thread(cluster.nodes[0].wait_ready)
                    feed.cancel()
                    await asyncio.wait([feed])
                    await writer.flush()
                    assert writer.unavailable == ""

        async def feeding(writer: KafkaWriter, numbers: Any) -> None:
            for number in numbers:
                for partition in (0, 1):
                    writer.append(Record(topic, partition, b"%d" % number))
                await asyncio.sleep(0.001)

        asyncio.run(write())
        records = asyncio.run(records_of(cluster.bootstrap, topic))
    for partition in (0, 1):
        found = [int(record.value) for record in records if record.partition == partition and record.value != b"-1"]
        first_seen = list(dict.fromkeys(found))
        assert len(first_seen) > 100
        assert first_seen == list(range(len(first_seen)))
