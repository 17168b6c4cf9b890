"""What a test needs to talk to Kafka: `kafka`, where a broker answers, and `kafka_app`, a name of its own on it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.kafka.jars import missing_programs
from tests.kafka.shared import shared_broker

_CLEAN_S = 30


@pytest.fixture(scope="session")
def java() -> None:
    """Skips the test where no broker can be started. In continuous integration, where it would go unseen, fails it."""
    missing = missing_programs()
    if missing and os.environ.get("CI", "false") != "false":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a broker answers: the one of `KAFKA_BOOTSTRAP`, or one that all tests of this run share.

    Tests that kill it, or want it otherwise, start their own `temporary_cluster`.
    """
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        yield bootstrap
        return
    request.getfixturevalue("java")
    own = tmp_path_factory.getbasetemp()
    with shared_broker(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) as bootstrap:
        yield bootstrap


@pytest.fixture
def kafka_app(kafka: str) -> Iterator[str]:
    """A name for an application. Topics that begin with it are deleted when the test ends."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    asyncio.run(asyncio.wait_for(_delete_topics(kafka, name), _CLEAN_S))


async def _delete_topics(bootstrap: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if topics := [topic for topic in await admin.list_topics() if topic.startswith(prefix)]:
            await admin.delete_topics(topics)
    finally:
        await admin.close()
