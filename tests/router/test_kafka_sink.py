"""Kafka as an egress without transactions, over a writer that is slow: rows stay on their way, and go out once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from penstock.errors import Unavailable
from penstock.functions.formats import Raw
from penstock.functions.kafka_egress import KafkaEgress
from penstock.records import EgressRow
from penstock.router import kafka_sink
from penstock.router.formats import encoder_for
from penstock.router.kafka_batches import Record
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_sink import KafkaSinks
from penstock.router.kafka_writer import KafkaWriter
from penstock.router.schema_registry import Registries
from tests.router.sink_contract import synchronous

ROWS = [EgressRow(b"%d" % number, number) for number in range(4)]


class SlowWriter(KafkaWriter):
    """Acknowledges a record when told to."""

    def __init__(self) -> None:
        super().__init__(KafkaOptions("nowhere:1"))
        self.appended: list[bytes | None] = []
        self.futures: list[asyncio.Future[int]] = []
        self.unavailable = "PEN0706 it is down"

    def append(self, record: Record) -> asyncio.Future[int]:
        self.appended.append(record.value)
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> SlowWriter:
    made = SlowWriter()

    async def writer_of(sinks: KafkaSinks) -> KafkaWriter:
        return made

    monkeypatch.setattr(KafkaSinks, "writer", writer_of)
    monkeypatch.setattr(kafka_sink, "PATIENCE_S", 0.01)
    return made


def commit_of() -> Callable[[int, list[EgressRow], dict[int, int]], Awaitable[None]]:
    spec = KafkaEgress("t", format=Raw(), delivery="at-least-once")
    sinks = KafkaSinks(KafkaOptions("nowhere:1"), "app", marks="marks")
    return sinks.sink("shop/out", spec, encoder_for(spec.format, Registries())).commit


@synchronous
async def test_rows_on_their_way_are_not_sent_again_when_they_are_given_again(writer: SlowWriter) -> None:
    commit = commit_of()
    with pytest.raises(Unavailable) as caught:
        await commit(0, ROWS[:2], {})
    assert "it is down" in str(caught.value)

    for future in writer.futures:
        future.set_result(0)
    with pytest.raises(Unavailable):
        await commit(0, ROWS, {})  # Those, and what came since.
    for future in writer.futures[2:]:
        future.set_result(0)
    await commit(0, ROWS, {})

    assert writer.appended == [b"0", b"1", b"2", b"3"]


@synchronous
async def test_other_rows_are_sent_whatever_is_on_its_way(writer: SlowWriter) -> None:
    commit = commit_of()
    for task, rows in ((0, ROWS[:2]), (0, ROWS[1:3]), (1, ROWS[:2])):
        with pytest.raises(Unavailable):
            await commit(task, rows, {})

    assert writer.appended == [b"0", b"1", b"1", b"2", b"0", b"1"]
