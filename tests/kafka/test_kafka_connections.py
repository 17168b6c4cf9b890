"""Clients that are given up at any moment: while they look for a broker, while a connection comes about, while they
close. None leaves a socket behind."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from penstock.router import kafka_producer
from penstock.router.kafka_admin import Admin
from penstock.router.kafka_client import KafkaClient
from penstock.router.kafka_options import KafkaOptions

pytestmark = pytest.mark.kafka
TIMES = 60
MOMENT_S = 0.03
"""Longer than connecting takes, so that some are given up in each part of it."""


async def read(options: KafkaOptions) -> None:
    client = KafkaClient(options)
    try:
        await client.start()
        asking = asyncio.create_task(client.partitions(["nothing"]))
        await asyncio.sleep(random.random() * 0.01)
    finally:
        await client.close()
    asking.cancel()
    await asyncio.wait({asking})


async def write(options: KafkaOptions) -> None:
    producer = await kafka_producer.connect(options, compression=None, transactional_id="given-up")
    try:
        await asyncio.sleep(random.random() * 0.01)
    finally:
        await kafka_producer.discard(producer)


async def look_after(options: KafkaOptions) -> None:
    async with Admin(options) as admin:
        await admin.cluster()


@pytest.mark.parametrize("use", [read, write, look_after])
def test_whoever_is_given_up_leaves_no_connection_open(
    kafka: str, use: Callable[[KafkaOptions], Awaitable[None]]
) -> None:
    random.seed(1)

    async def scenario() -> None:
        options = KafkaOptions(kafka)
        for _ in range(TIMES):
            using = asyncio.ensure_future(use(options))
            await asyncio.wait({using}, timeout=random.random() * MOMENT_S)
            using.cancel()
            with suppress(asyncio.CancelledError):
                await using

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(scenario())
        gc.collect()

    assert [str(warning.message) for warning in said] == []
