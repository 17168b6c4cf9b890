"""Topics made and records read with nothing but the client library: what tests of our own clients are judged by."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

P = ParamSpec("P")


def synchronous(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an asynchronous test in an event loop of its own, for a minute at most."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def call() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        asyncio.run(call())

    return run


async def create_topic(
    bootstrap: str, topic: str, *, partitions: int = 1, replicas: int = 1, settings: Mapping[str, str] | None = None
) -> None:
    """Create a topic, and wait until all brokers know it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, replicas, topic_configs=dict(settings or {}))])
        while not await _partitions(admin, topic):
            pass
    finally:
        await admin.close()


async def partition_count(bootstrap: str, topic: str) -> int:
    """How many partitions `topic` has; 0 when there is none, or not all of them have a leader."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return await _partitions(admin, topic)
    finally:
        await admin.close()


async def _partitions(admin: AIOKafkaAdminClient, topic: str) -> int:
    (found,) = await admin.describe_topics([topic])
    leaders = [partition["leader"] for partition in found["partitions"]]
    return len(leaders) if min(leaders, default=-1) >= 0 else 0


async def records_of(bootstrap: str, topic: str, *, isolation: str = "read_committed") -> list[Any]:
    """Every record of `topic` that can be read now: the partitions one after the other, each in order."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level=isolation, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(await partition_count(bootstrap, topic))]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[TopicPartition, list[Any]] = {partition: [] for partition in partitions}
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                for source, records in (await consumer.getmany(timeout_ms=100)).items():
                    found[source] += records
        return [record for partition in partitions for record in found[partition]]
    finally:
        await consumer.stop()
