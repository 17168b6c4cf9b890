"""What Kafka tells of an application, while its leader deletes what nobody needs (engine/cluster/looking.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.checkpoint.control import AttemptBegun, Reserve, encode_control
from penstock.checkpoint.lineage import Lineage
from penstock.engine.cluster import looking
from penstock.errors import Refused
from penstock.router.kafka_client import Bounds
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_records import Fetched

KAFKA = KafkaOptions("localhost:9092")
RECORDS = [
    encode_control(AttemptBegun(Lineage(1), 0, 1_000, 0)),
    *(encode_control(Reserve(1_000 + number)) for number in range(1, 30)),
]


class Log:
    """A log of decisions, the beginning of which is deleted when it is first read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, deleted: int, told: bool = True) -> None:
        self.start = 0
        self.deleted = deleted
        self.told = told
        monkeypatch.setattr(looking, "offsets", self.offsets)
        monkeypatch.setattr(looking, "read_range", self.read_range)

    async def offsets(self, _: Any, places: list[tuple[str, int]]) -> dict[tuple[str, int], Bounds]:
        return dict.fromkeys(places, Bounds(self.start, len(RECORDS)))

    async def read_range(self, _: Any, topic: str, partition: int, first: int, end: int) -> list[Fetched]:
        if self.told:
            self.start = self.deleted
        if first < self.deleted:
            raise Refused("PEN0721", f"Offset {first} is out of range.")
        return [Fetched(n, None, RECORDS[n], (), 0) for n in range(first, end)]


def test_what_is_deleted_meanwhile_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    Log(monkeypatch, deleted=15)

    tail = asyncio.run(looking.read_tail(KAFKA, "shop.control"))
    assert (tail.start, tail.first, [offset for offset, _ in tail.records]) == (15, 15, list(range(15, 30)))

    Log(monkeypatch, deleted=15)
    assert asyncio.run(looking.read_history(KAFKA, "shop")).high == 1_029


def test_records_that_are_gone_and_should_be_there_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Log(monkeypatch, deleted=15, told=False)

    with pytest.raises(Refused, match="PEN0721 Offset 0 is out of range"):
        asyncio.run(looking.read_tail(KAFKA, "shop.control"))
