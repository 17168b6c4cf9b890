"""Kafka as an egress, against a real broker: the contract of sinks, and processes that are killed or left behind."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from penstock.errors import Fenced, Unavailable
from penstock.functions.formats import Raw
from penstock.functions.kafka_egress import KafkaEgress
from penstock.records import EgressRow
from penstock.router import kafka_transactions
from penstock.router.formats import encoder_for
from penstock.router.kafka_batches import Record
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_sink import CAUSE_HEADER, KafkaSinks
from penstock.router.schema_registry import Registries
from penstock.router.sink import RowsRefused, Sink
from tests.kafka.committing import PARTITIONS, ROWS, value_of
from tests.kafka.plainly import create_topic, records_of, synchronous
from tests.router.sink_contract import SinkContract, rows

pytestmark = pytest.mark.kafka

KILLS = 15


@pytest.fixture
def topics(kafka: str, kafka_app: str) -> str:
    """Topics for rows and markers of an application, whose name this is."""

    async def create() -> None:
        await create_topic(kafka, f"{kafka_app}-rows", partitions=PARTITIONS)
        await create_topic(kafka, f"{kafka_app}-marks", partitions=3, settings={"cleanup.policy": "compact"})

    asyncio.run(create())
    return kafka_app


def spec_of(app: str, **arguments: Any) -> KafkaEgress:
    return KafkaEgress(f"{app}-rows", format=Raw(), **arguments)


def sinks_of(kafka: str, app: str, **arguments: Any) -> KafkaSinks:
    return KafkaSinks(KafkaOptions(kafka), app, marks=f"{app}-marks", **arguments)


@asynccontextmanager
async def opened(sinks: KafkaSinks, spec: KafkaEgress, egress: str = "shop/out") -> AsyncIterator[Any]:
    sink = sinks.sink(egress, spec, encoder_for(spec.format, Registries()))
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close(final=True)


async def values_in(kafka: str, app: str) -> list[bytes]:
    return [record.value for record in await records_of(kafka, f"{app}-rows")]


class TestKafkaSink(SinkContract):
    @pytest.fixture(autouse=True)
    def _topics(self, kafka: str, topics: str) -> None:
        self.kafka, self.app = kafka, topics

    async def make_sink(self) -> Sink:
        spec = KafkaEgress(f"{self.app}-rows", format=Raw(), partition=lambda value: 0)
        sink = sinks_of(self.kafka, self.app).sink("shop/out", spec, encoder_for(spec.format, Registries()))
        await sink.open()
        return sink

    async def visible(self) -> Sequence[int]:
        # Without a key, the rows of a commit go to one partition together.
        found = await records_of(self.kafka, f"{self.app}-rows")
        return [msgspec.json.decode(record.value)["n"] for record in sorted(found, key=lambda record: record.timestamp)]


@synchronous
async def test_everything_of_a_row_arrives(kafka: str, topics: str) -> None:
    await create_topic(kafka, f"{topics}-other")
    async with opened(sinks_of(kafka, topics, compression="lz4"), spec_of(topics, tombstones=True)) as sink:
        await sink.read_marker(0)
        rows = [
            EgressRow(b"a", 1, b"key", headers=(("h", "ä"),), partition=2, timestamp_ms=1_000_000_000_000),
            EgressRow(b"", 2, b"key", partition=2),
            EgressRow(b"b", 3, topic=f"{topics}-other"),
        ]
        await sink.commit(0, rows, {1: 1})

    first, second = await records_of(kafka, f"{topics}-rows")
    (other,) = await records_of(kafka, f"{topics}-other")
    assert (first.key, first.value, first.partition, first.timestamp) == (b"key", b"a", 2, 1_000_000_000_000)
    assert first.headers == (("h", "ä".encode()),)
    assert (second.value, other.value) == (None, b"b")


@synchronous
async def test_egresses_of_a_task_share_transactions_and_have_markers_of_their_own(kafka: str, topics: str) -> None:
    sinks = sinks_of(kafka, topics)
    async with opened(sinks, spec_of(topics), "shop/a") as a, opened(sinks, spec_of(topics), "shop/b") as b:
        for sink in (a, b):
            assert await sink.read_marker(0) == {}
        await asyncio.gather(a.commit(0, rows(1), {1: 1}), b.commit(0, rows(2), {1: 2}))
        await a.commit(0, rows(3), {1: 3})
    async with opened(sinks_of(kafka, topics), spec_of(topics), "shop/b") as b:
        assert await b.read_marker(0) == {1: 2}
        await b.commit(0, rows(4), {1: 4})
    async with opened(sinks_of(kafka, topics), spec_of(topics), "shop/a") as a:
        assert await a.read_marker(0) == {1: 3}

    assert sorted(await values_in(kafka, topics)) == [b'{"n":%d}\n' % n for n in (1, 2, 3, 4)]
    markers = await records_of(kafka, f"{topics}-marks")
    assert len(markers) == 3, "two commits at the same time are one transaction"


@synchronous
async def test_refused_rows_are_named_and_leave_other_egresses_alone(
    kafka: str, topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_transactions, "TOPIC_PATIENCE_S", 0.3)
    sinks = sinks_of(kafka, topics)
    async with opened(sinks, spec_of(topics), "shop/a") as a, opened(sinks, spec_of(topics), "shop/b") as b:
        for sink in (a, b):
            await sink.read_marker(0)
        bad = EgressRow(b"x", 7, topic=f"{topics}-none")
        other = asyncio.create_task(b.commit(0, rows(2), {1: 1}))
        with pytest.raises(RowsRefused) as caught:
            await a.commit(0, [*rows(1), bad], {1: 1})
        assert [index for index, _ in caught.value.refused] == [1]
        await other
        with pytest.raises(RowsRefused):
            await a.commit(0, [EgressRow(bytes(2 << 20), 1), *rows(1)], {1: 1})
        await a.commit(0, rows(1), {1: 1})
        assert await a.read_marker(0) == {1: 1}

    assert sorted(await values_in(kafka, topics)) == [b'{"n":1}\n', b'{"n":2}\n']


@synchronous
async def test_markers_of_another_history_are_passed_over(kafka: str, topics: str) -> None:
    async with opened(sinks_of(kafka, topics, history="first"), spec_of(topics)) as sink:
        await sink.read_marker(0)
        await sink.commit(0, rows(1), {1: 1})
    async with opened(sinks_of(kafka, topics, history="second"), spec_of(topics)) as sink:
        assert await sink.read_marker(0) == {}
        await sink.commit(0, rows(2), {1: 1})
        assert await sink.read_marker(0) == {1: 1}


@synchronous
async def test_a_marker_is_found_behind_many_transactions_of_others(kafka: str, topics: str) -> None:
    transactions = kafka_transactions.KafkaTransactions(KafkaOptions(kafka), f"{topics}-egress-0")
    async with opened(sinks_of(kafka, topics), spec_of(topics)) as sink:
        await sink.read_marker(0)
        await sink.commit(0, rows(1), {1: 1})
    await transactions.fence()
    noise = Record(f"{topics}-marks", 0, b"", b"another key")
    await transactions.commit([noise] * 500)
    await transactions.close()
    async with opened(sinks_of(kafka, topics), spec_of(topics)) as sink:
        assert await sink.read_marker(0) == {1: 1}


@synchronous
async def test_who_was_replaced_can_not_commit_and_reads_what_his_successor_did(kafka: str, topics: str) -> None:
    async with (
        opened(sinks_of(kafka, topics), spec_of(topics)) as old,
        opened(sinks_of(kafka, topics), spec_of(topics)) as new,
    ):
        assert await old.read_marker(0) == {}
        await old.commit(0, rows(1), {1: 1})
        assert await new.read_marker(0) == {1: 1}
        with pytest.raises((Fenced, Unavailable)):
            await old.commit(0, rows(2), {1: 2})
        await new.commit(0, rows(2), {1: 2})

        assert await old.read_marker(0) == {1: 2}  # Taken back, as the owner of a task may.
        with pytest.raises((Fenced, Unavailable)):
            await new.commit(0, rows(3), {1: 3})
        await old.commit(0, rows(3), {1: 3})

    assert sorted(await values_in(kafka, topics)) == [b'{"n":%d}\n' % n for n in (1, 2, 3)]


@synchronous
async def test_a_task_that_left_can_come_back(kafka: str, topics: str) -> None:
    here, there = sinks_of(kafka, topics), sinks_of(kafka, topics)
    async with opened(here, spec_of(topics)) as first, opened(there, spec_of(topics)) as second:
        for number, sink in enumerate((first, second, first, second), start=1):
            marker = await sink.read_marker(0)
            assert marker == ({1: number - 1} if number > 1 else {})
            await sink.commit(0, rows(number), {1: number})
            await sink.release(0, final=False)

    assert len(await values_in(kafka, topics)) == 4


@synchronous
async def test_rows_that_do_not_wait_carry_their_cause(kafka: str, topics: str) -> None:
    async with opened(sinks_of(kafka, topics), spec_of(topics, delivery="eager")) as sink:
        await sink.commit(0, [EgressRow(b"a", 7, headers=(("h", "1"),)), EgressRow(b"b", 2**64 - 1)], {})
        assert await sink.read_marker(0) == {}

    found = {record.value: dict(record.headers) for record in await records_of(kafka, f"{topics}-rows")}
    assert found[b"a"] == {"h": b"1", CAUSE_HEADER: b"0000000000000007"}
    assert found[b"b"][CAUSE_HEADER] == b"f" * 16


@synchronous
async def test_rows_that_do_not_wait_are_refused_by_name(kafka: str, topics: str) -> None:
    async with opened(sinks_of(kafka, topics), spec_of(topics, delivery="eager")) as sink:
        good = rows(1, 2, 3)
        with pytest.raises(RowsRefused) as caught:
            await sink.commit(0, [good[0], EgressRow(bytes(2 << 20), 1), *good[1:]], {})
        assert [index for index, _ in caught.value.refused] == [1]
        await sink.commit(0, good, {})

    assert len(await values_in(kafka, topics)) == 3, "what was written with the refused row is not written again"


@pytest.mark.slow
def test_processes_that_are_killed_and_replaced_write_each_row_once_and_in_order(kafka: str, topics: str) -> None:
    """Half of the successors take over while their predecessor still runs, the others after it was killed."""
    dice = random.Random(7)
    last = 10**9
    processes: list[subprocess.Popen[str]] = []

    def start(until: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.kafka.committing", kafka, topics, str(until)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return process

    def first_line(process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        return int(process.stdout.readline())

    try:
        reached = 0
        for _ in range(KILLS):
            process = start(last)
            reached = first_line(process)
            time.sleep(dice.random() * 0.3)
            if dice.random() < 0.5:
                follower = start(last)
                reached = first_line(follower)
                process.kill()
                process = follower
                time.sleep(dice.random() * 0.1)
            process.kill()
            process.wait()
        last = reached + 500
        final = start(last)
        final.communicate(timeout=60)
        assert final.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    found = asyncio.run(records_of(kafka, f"{topics}-rows"))
    for partition in range(PARTITIONS):
        expected = [value_of(k, n) for k in range(1, last + 1) for n in range(partition, ROWS, PARTITIONS)]
        assert [record.value for record in found if record.partition == partition] == expected
