"""The brokers of the tests do what other tests take for granted."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ClusterAuthorizationFailedError, KafkaConnectionError

from tests.kafka.broker import ADMINISTRATOR, PASSWORD, Cluster, brokers_known_to, temporary_cluster
from tests.kafka.jars import OLDEST
from tests.kafka.shared import shared_broker

pytestmark = pytest.mark.kafka

VALUES = [b"one", b"two", b"three"]
WAIT_S = 60


async def create(bootstrap: str, topic: str, replicas: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        answer = await admin.create_topics([NewTopic(topic, 1, replicas)])
        assert [error for _, error, _ in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def write(bootstrap: str, topic: str, values: Sequence[bytes], **options: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, **options)
    try:
        await producer.start()
        for value in values:
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    try:
        await consumer.start()
        consumer.assign([TopicPartition(topic, 0)])
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def bounded(*steps: Any) -> Any:
    """The result of the last of some coroutines."""
    result = None
    async with asyncio.timeout(WAIT_S):
        for step in steps:
            result = await step
    return result


@pytest.fixture
def topic(kafka_app: str) -> str:
    return f"{kafka_app}.topic"


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_what_is_written_to_the_shared_broker_can_be_read(kafka: str, topic: str, codec: str | None) -> None:
    written = write(kafka, topic, VALUES, compression_type=codec)

    assert asyncio.run(bounded(create(kafka, topic), written, read(kafka, topic, 3))) == VALUES


@pytest.mark.usefixtures("java")
def test_a_killed_broker_has_its_records_when_it_starts_again() -> None:
    with temporary_cluster() as cluster:
        asyncio.run(bounded(create(cluster.bootstrap, "topic"), write(cluster.bootstrap, "topic", VALUES)))

        cluster.nodes[0].kill()
        assert not brokers_known_to(cluster.bootstrap)
        cluster.nodes[0].start()

        assert asyncio.run(bounded(read(cluster.bootstrap, "topic", 3))) == VALUES


@pytest.mark.usefixtures("java")
def test_a_frozen_broker_answers_once_it_is_thawed() -> None:
    with temporary_cluster() as cluster:
        cluster.nodes[0].freeze()
        assert not brokers_known_to(cluster.bootstrap, timeout_s=0.2)

        cluster.nodes[0].thaw()

        assert brokers_known_to(cluster.bootstrap) == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_three_nodes_lose_nothing_when_one_is_killed() -> None:
    with temporary_cluster(nodes=3) as cluster:
        bootstrap = cluster.bootstrap
        asyncio.run(bounded(create(bootstrap, "topic", 3), write(bootstrap, "topic", VALUES)))

        cluster.nodes[0].kill()

        assert asyncio.run(bounded(write(bootstrap, "topic", VALUES), read(bootstrap, "topic", 6))) == VALUES * 2
        cluster.nodes[0].start()
        assert brokers_known_to(cluster.nodes[0].address) == {1, 2, 3}


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_the_oldest_supported_version_runs_as_well() -> None:
    with temporary_cluster(version=OLDEST) as cluster:
        bootstrap = cluster.bootstrap
        steps = (create(bootstrap, "topic"), write(bootstrap, "topic", VALUES), read(bootstrap, "topic", 3))

        assert asyncio.run(bounded(*steps)) == VALUES


@pytest.mark.usefixtures("java")
def test_users_may_do_what_they_were_allowed_and_log_in_with_their_own_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def login(user: str, password: str) -> dict[str, Any]:
        names = {"sasl_plain_username": user, "sasl_plain_password": password}
        return {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", **names}

    caplog.set_level(logging.ERROR, logger="aiokafka")
    with temporary_cluster(users={"alice": "secret"}) as cluster:
        place = (cluster.bootstrap_sasl, "topic", VALUES)
        asyncio.run(bounded(create(cluster.bootstrap, "topic"), write(*place, **login(ADMINISTRATOR, PASSWORD))))

        with pytest.raises(ClusterAuthorizationFailedError):
            asyncio.run(bounded(write(*place, **login("alice", "secret"))))
        cluster.allow("alice", "Write", "Describe", topic="top")
        asyncio.run(bounded(write(*place, **login("alice", "secret"))))
        with pytest.raises(KafkaConnectionError):
            asyncio.run(bounded(write(*place, **login("alice", "wrong"))))
        # The client only logs the reason.
        assert "Invalid username or password" in caplog.text


@pytest.mark.usefixtures("java")
def test_tls_is_served_with_a_certificate_that_clients_can_check() -> None:
    with temporary_cluster(tls=True) as cluster:
        trusting = ssl.create_default_context(cafile=str(cluster.certificate))
        options = {"security_protocol": "SSL", "ssl_context": trusting}
        written = write(cluster.bootstrap_tls, "topic", VALUES, **options)

        steps = (create(cluster.bootstrap, "topic"), written, read(cluster.bootstrap, "topic", 3))
        assert asyncio.run(bounded(*steps)) == VALUES


@pytest.mark.usefixtures("java")
def test_properties_are_those_of_kafka_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, properties={"num.io.threads": "many"})

    with pytest.raises(AssertionError, match=r"num\.io\.threads"):
        cluster.start()


@pytest.mark.usefixtures("java")
def test_a_broker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = """
import pathlib, sys
from tests.kafka.broker import Cluster
with Cluster(pathlib.Path(sys.argv[1])) as cluster:
    print(cluster.nodes[0].pid, cluster.bootstrap, flush=True)
    input()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, bootstrap = parent.stdout.readline().split()
        assert brokers_known_to(bootstrap)
        # Readable once the process has ended, whosever child it is.
        ended = os.pidfd_open(int(pid))
        parent.kill()

    try:
        assert select.select([ended], [], [], WAIT_S)[0], "the broker outlived its parent"
    finally:
        os.close(ended)
    assert not brokers_known_to(bootstrap)


@pytest.mark.usefixtures("java")
def test_a_shared_broker_is_started_by_its_first_user_and_stops_after_its_last(tmp_path: Path) -> None:
    with shared_broker(tmp_path) as first:
        with shared_broker(tmp_path) as second:
            assert second == first
        assert brokers_known_to(first)

    deadline = time.monotonic() + WAIT_S
    while brokers_known_to(first):
        assert time.monotonic() < deadline, "nobody uses it, and it still runs"
    with shared_broker(tmp_path) as other:
        assert other != first
        assert brokers_known_to(other)
