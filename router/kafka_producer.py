"""Producers of the client library, as Penstock uses them: made, re-initialised and given up in bounded time.

What always holds: whatever state a producer is in, `discard` ends it; `renew` gives a transactional producer a new
epoch or fails. It is the one place that reaches beneath the public surface of a producer, so it checks the version;
with another one `renew` is impossible, and a new producer does the same at a higher price.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import aiokafka
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.producer.transaction_manager import PidAndEpoch, TransactionState

from penstock.errors import Unavailable
from penstock.router.kafka_batches import BATCH_BYTES, InvalidRecord, coded
from penstock.router.kafka_options import KafkaOptions

VERSIONS = ("0.14.",)
"""Of the client library, whose inner parts are known to be as they are used here."""
STOP_S = 1.0
"""For each step of giving a producer up. Nobody waits for what it was doing."""
TOPIC_POLL_S = 0.1


class Identity(NamedTuple):
    """What a broker knows a transactional producer by. Each initialisation of its id gives the next epoch; so two that
    follow one another prove that nobody else had the id in between."""

    producer: int
    epoch: int

    def follows(self, earlier: Identity | None) -> bool:
        """Whether this is the very next one."""
        return earlier is not None and self == (earlier.producer, earlier.epoch + 1)


async def connect(options: KafkaOptions, *, compression: str | None, **arguments: Any) -> Any:
    """A producer, started; idempotent, or transactional when `arguments` say so.

    Raises Unavailable when no broker answers, ConfigurationError when they refuse us.
    """
    _prepare_library()
    producer = AIOKafkaProducer(
        **options.client_arguments() | arguments,
        enable_idempotence=True,
        compression_type=compression,
        max_batch_size=BATCH_BYTES,
    )
    try:
        async with asyncio.timeout(options.request_timeout_s):
            await producer.start()
    except BaseException as error:
        await discard(producer)
        if isinstance(error, Exception):
            raise coded(error, f"Connecting to {options.bootstrap}") from error
        raise
    return producer


async def discard(producer: Any) -> None:
    """Give a producer up, in bounded time and whatever it is doing: its batches fail or stay without an answer.

    Whoever is cancelled in here is so afterwards: nothing is left half closed.
    """
    if producer is None:
        return
    ending = asyncio.get_running_loop().create_task(_end(producer))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await asyncio.wait({ending})
        raise


async def _end(producer: Any) -> None:
    producer._closed = True  # Its own `stop` would wait until everything is written.
    # In a task of its own, as the library swallows a cancellation here.
    closing = asyncio.get_running_loop().create_task(producer.client.close())
    await asyncio.wait({closing}, timeout=STOP_S)
    await _cancel(closing)
    if producer._sender.sender_task is not None:
        await _cancel(producer._sender.sender_task)


async def _cancel(task: asyncio.Task[None]) -> None:
    """End a task of the library. At the first time it may only stop taking work and wait for what is under way."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_S)
    if not task.cancelled():
        task.exception()  # Looked at: it is of no interest any more.


async def partitions_of(producer: Any, topic: str, patience_s: float) -> int:
    """How many partitions `topic` has, as the brokers tell the producer.

    Raises an error about records when they have known none for so long, or Unavailable when they don't answer.
    """
    client = producer.client
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience_s
    answered = True
    while not (partitions := client.cluster.partitions_for_topic(topic)):
        if topic in client.cluster.unauthorized_topics:
            raise kafka.TopicAuthorizationFailedError(topic)
        if clock() > deadline:
            raise kafka.UnknownTopicOrPartitionError(topic) if answered else _silent(topic)
        client.add_topic(topic)
        try:
            async with asyncio.timeout_at(deadline):
                answered = await client.force_metadata_update()
        except TimeoutError:
            answered = False
        if not client.cluster.partitions_for_topic(topic):
            await asyncio.sleep(TOPIC_POLL_S)
    return len(partitions)


def identity(producer: Any) -> Identity | None:
    """Under which identity a transactional producer writes; None with a version of the library that is not known."""
    if not _is_known():
        return None
    manager = producer._txn_manager
    return Identity(manager.producer_id, manager.producer_epoch)


def renewable(producer: Any) -> bool:
    """Whether `renew` can be used: between two transactions, on a producer that never failed."""
    return (
        _is_known()
        and producer._txn_manager.state is TransactionState.READY
        and producer._sender.sender_task is not None
        and not producer._sender.sender_task.done()
        and not producer._message_accumulator._batches
        and not producer._message_accumulator._pending_batches
    )


async def renew(producer: Any) -> None:
    """Initialise the transactional id of a live producer again: older owners are fenced, and it gets the next epoch.

    Raises what the client library fails with. Then the producer is of no more use.
    """
    assert renewable(producer), "a renewed producer is idle"
    manager = producer._txn_manager
    manager._pid_and_epoch = PidAndEpoch(-1, -1)
    manager._pid_waiter = asyncio.get_running_loop().create_future()
    manager.state = TransactionState.UNINITIALIZED
    manager._sequence_numbers.clear()
    manager.notify_task_waiter()  # Wakes the sender, which asks for an identity before anything else.
    sender = producer._sender.sender_task
    await asyncio.wait({manager._pid_waiter, sender}, return_when=asyncio.FIRST_COMPLETED)
    if not manager.has_pid():
        raise sender.exception() or kafka.KafkaError("the sender stopped")


def _is_known() -> bool:
    return bool(aiokafka.__version__.startswith(VERSIONS))


def _silent(topic: str) -> Unavailable:
    error = coded(TimeoutError("no answer"), f"Asking for topic {topic}")
    assert isinstance(error, Unavailable)
    return error


def _prepare_library() -> None:
    """Teach the client library an error it does not know, and let it say nothing of its own: every failure arrives here
    as an error, and in an outage it would write several lines a second. A level that somebody set is left alone."""
    kafka.kafka_errors.setdefault(InvalidRecord.errno, InvalidRecord)
    logger = logging.getLogger("aiokafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
