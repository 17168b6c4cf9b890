"""Leaders against a real broker: who leads, and what whoever leads no longer makes of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from penstock.checkpoint.leader import LeaderOptions
from penstock.engine.cluster.leading import LeaderService
from penstock.errors import Fenced
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import ensure
from tests.kafka.plainly import synchronous

pytestmark = pytest.mark.kafka

TASKS = 2
NEVER_USED: Any = None


async def leader_of(bootstrap: str, application: str, name: str) -> LeaderService:
    kafka = KafkaOptions(bootstrap)
    ensured = await ensure(kafka, application, application_id=application, parallelism=TASKS, replicas=1)
    options = LeaderOptions(name, application, TASKS, {}, topics=dict(ensured.incarnations))
    return LeaderService(kafka, options, clock=time.time, trimming=NEVER_USED)


@synchronous
async def test_a_leader_with_nothing_to_decide_notices_that_another_leads(kafka: str, kafka_app: str) -> None:
    """Or both would tell the workers for ever that they lead."""
    first, second = [await leader_of(kafka, kafka_app, f"{place}#1") for place in ("first", "second")]
    leading = asyncio.create_task(first.run())
    while first.leader is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    succeeding = asyncio.create_task(second.run())
    try:
        async with asyncio.timeout(20):
            with pytest.raises(Fenced):
                await leading
        await asyncio.sleep(1.5)
        assert not succeeding.done()
    finally:
        for each in (leading, succeeding):
            each.cancel()
        await asyncio.gather(leading, succeeding, return_exceptions=True)
