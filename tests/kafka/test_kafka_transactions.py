"""Transactions against a real broker: all or nothing, one owner, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiokafka
import pytest

from penstock.errors import Fenced, Unavailable
from penstock.ids import murmur2
from penstock.router import kafka_transactions
from penstock.router.kafka_batches import STICKY_BYTES, Record, RecordsRefused
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_transactions import KafkaTransactions
from tests.kafka.broker import temporary_cluster
from tests.kafka.plainly import create_topic, records_of, synchronous

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def owning(bootstrap: str, name: str) -> AsyncIterator[KafkaTransactions]:
    transactions = KafkaTransactions(KafkaOptions(bootstrap), name)
    try:
        yield transactions
    finally:
        await transactions.close()


def numbered(topic: str, *numbers: int, partition: int | None = 0) -> list[Record]:
    return [Record(topic, partition, b"%d" % number) for number in numbers]


async def numbers_in(bootstrap: str, topic: str, isolation: str = "read_committed") -> list[int]:
    return [int(record.value) for record in await records_of(bootstrap, topic, isolation=isolation)]


@synchronous
async def test_records_of_several_topics_are_committed_together(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    await create_topic(kafka, f"{kafka_app}-marks")
    async with owning(kafka, kafka_app) as transactions:
        for first in (0, 100):
            await transactions.fence()
            records = [Record(kafka_app, n % 2, b"%d" % n) for n in range(first, first + 100)]
            offsets = await transactions.commit([*records, *numbered(f"{kafka_app}-marks", first)])

            before = 0 if first == 0 else 51  # The end of a transaction takes an offset as well.
            assert offsets[:100:2] == offsets[1:100:2] == [before + n for n in range(50)]

    assert await numbers_in(kafka, kafka_app) == [*range(0, 200, 2), *range(1, 200, 2)]
    assert await numbers_in(kafka, f"{kafka_app}-marks") == [0, 100]


@synchronous
async def test_a_commit_of_many_batches_keeps_the_order(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2)
    async with owning(kafka, kafka_app) as transactions:
        await transactions.fence()
        await transactions.commit([Record(kafka_app, n % 2, b"%0100d" % n) for n in range(20_000)])

    assert await numbers_in(kafka, kafka_app) == [*range(0, 20_000, 2), *range(1, 20_000, 2)]


@synchronous
async def test_the_key_decides_and_others_are_spread(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=4)
    keys = [b"key-%d" % number for number in range(50)]
    async with owning(kafka, kafka_app) as transactions:
        await transactions.fence()
        await transactions.commit([Record(kafka_app, None, b"", key) for key in keys])
        await transactions.fence()
        await transactions.commit([Record(kafka_app, None, bytes(STICKY_BYTES // 2))] * 8)
        for _ in range(4):
            await transactions.fence()
            await transactions.commit([Record(kafka_app, None, b"small")] * 3)

    records = await records_of(kafka, kafka_app)
    assert {record.key: record.partition for record in records if record.key} == {
        key: (murmur2(key) & 0x7FFFFFFF) % 4 for key in keys
    }
    large = [record.partition for record in records if record.key is None and record.value != b"small"]
    assert sorted(large) == [0, 0, 1, 1, 2, 2, 3, 3]
    small = [record.partition for record in records if record.value == b"small"]
    assert sorted(small) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@synchronous
async def test_nothing_is_visible_when_a_record_is_refused(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, partitions=2, settings={"max.message.bytes": "10000"})
    async with owning(kafka, kafka_app) as transactions:
        await transactions.fence()
        records = [Record(kafka_app, n % 2, bytes(20_000) if n in (11, 30) else b"%0900d" % n) for n in range(100)]
        with pytest.raises(RecordsRefused) as caught:
            await transactions.commit(records)

        assert {index for index, _ in caught.value.refused} == {11, 30}
        assert "max.message.bytes" in caught.value.refused[0][1]
        assert await numbers_in(kafka, kafka_app) == []

        assert await transactions.fence()
        await transactions.commit([record for n, record in enumerate(records) if n not in (11, 30)])
    expected = [n for n in (*range(0, 100, 2), *range(1, 100, 2)) if n not in (11, 30)]
    assert await numbers_in(kafka, kafka_app) == expected


@synchronous
async def test_one_record_without_a_key_does_not_spoil_a_compacted_topic(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app, settings={"cleanup.policy": "compact"})
    async with owning(kafka, kafka_app) as transactions:
        await transactions.fence()
        with pytest.raises(RecordsRefused) as caught:
            await transactions.commit([Record(kafka_app, 0, b"v", b"key" if n != 7 else None) for n in range(20)])

    assert [index for index, _ in caught.value.refused] == [7]


@synchronous
async def test_topics_and_partitions_that_do_not_exist_are_refused(
    kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_transactions, "TOPIC_PATIENCE_S", 0.3)
    await create_topic(kafka, kafka_app)
    async with owning(kafka, kafka_app) as transactions:
        for bad, reason in ((f"{kafka_app}-none", "no such topic"), (kafka_app, "no partition 7")):
            await transactions.fence()
            with pytest.raises(RecordsRefused) as caught:
                await transactions.commit([Record(kafka_app, 0, b"1"), Record(bad, 7, b"2")])
            ((index, text),) = caught.value.refused
            assert (index, reason in text) == (1, True)

        assert await numbers_in(kafka, kafka_app, "read_uncommitted") == []


@synchronous
async def test_who_was_replaced_can_not_commit(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with owning(kafka, kafka_app) as old, owning(kafka, kafka_app) as new:
        await old.fence()
        await old.commit(numbered(kafka_app, 1))
        await old.fence()
        await new.fence()
        with pytest.raises(Fenced):
            await old.commit(numbered(kafka_app, 2))
        await new.commit(numbered(kafka_app, 3))

    assert await numbers_in(kafka, kafka_app) == [1, 3]


@synchronous
async def test_a_fence_tells_whether_nobody_else_had_the_id_in_between(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with owning(kafka, kafka_app) as one, owning(kafka, kafka_app) as other:
        assert not await one.fence()
        for number in range(3):
            await one.commit(numbered(kafka_app, number))
            assert await one.fence()
        assert await one.fence()

        assert not await other.fence()
        with pytest.raises(Fenced):
            await one.fence()
        await other.commit(numbered(kafka_app, 3))
        assert await other.fence()

        assert not await one.fence()
        assert await one.fence()
        await one.commit(numbered(kafka_app, 4))

    assert await numbers_in(kafka, kafka_app) == [0, 1, 2, 3, 4]


@synchronous
async def test_a_fence_finishes_what_an_owner_left_open(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=kafka_app)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(kafka_app, b"1", partition=0)
    async with owning(kafka, kafka_app) as successor:
        await successor.fence()
        await successor.commit(numbered(kafka_app, 2))
    await producer.stop()

    assert await numbers_in(kafka, kafka_app) == [2]


@synchronous
async def test_another_version_of_the_library_does_without_private_names(
    kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiokafka, "__version__", "0.15.0")
    await create_topic(kafka, kafka_app)
    async with owning(kafka, kafka_app) as transactions:
        for number in range(3):
            assert not await transactions.fence()
            await transactions.commit(numbered(kafka_app, number))

    assert await numbers_in(kafka, kafka_app) == [0, 1, 2]


@synchronous
async def test_nobody_answers() -> None:
    async with owning("127.0.0.1:1", "nobody") as transactions:
        with pytest.raises(Unavailable) as caught:
            await transactions.fence()

    assert caught.value.code == "PEN0706"


@synchronous
async def test_a_commit_that_is_cancelled_leaves_nothing_behind(kafka: str, kafka_app: str) -> None:
    await create_topic(kafka, kafka_app)
    async with owning(kafka, kafka_app) as transactions:
        await transactions.fence()
        commit = asyncio.create_task(transactions.commit(numbered(kafka_app, *range(1000))))
        await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])
        assert commit.cancelled()

        await transactions.fence()
        await transactions.commit(numbered(kafka_app, 1000))
    assert await numbers_in(kafka, kafka_app) == [1000]


@pytest.mark.slow
def test_after_an_outage_the_id_can_be_taken_again(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_cluster() as cluster:
        (node,) = cluster.nodes

        async def restart() -> None:
            node.launch()  # Not in another thread: the broker would end with it.
            await asyncio.to_thread(node.wait_ready)

        async def run() -> None:
            await create_topic(cluster.bootstrap, "rows")
            async with AsyncExitStack() as stack:
                transactions = await stack.enter_async_context(owning(cluster.bootstrap, "outage"))
                await transactions.fence()
                await transactions.commit(numbered("rows", 1))
                await transactions.fence()
                # Only now: with a broker that has just started the first ones take longer than that.
                monkeypatch.setattr(kafka_transactions, "FENCE_S", 0.5)
                monkeypatch.setattr(kafka_transactions, "COMMIT_S", 0.5)
                node.kill()
                with pytest.raises(Unavailable):
                    await transactions.commit(numbered("rows", 2))
                with pytest.raises(Unavailable):
                    await transactions.fence()
                await restart()
                monkeypatch.undo()
                await transactions.fence()
                await transactions.commit(numbered("rows", 3))

                node.kill()
                with pytest.raises(Unavailable):
                    await transactions.fence()
                await restart()
                await transactions.fence()
                await transactions.commit(numbered("rows", 4))
            assert await numbers_in(cluster.bootstrap, "rows") == [1, 3, 4]

        asyncio.run(run())
