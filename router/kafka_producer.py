"""Producers of the client library, as Penstock uses them: made, re-initialised and given up in bounded time.

What always holds: whatever state a producer is in, `discard` ends it; `renew` gives a transactional producer its next
epoch, or finds that somebody else has taken its id. It is the one place that reaches beneath the public surface of a
producer, so it checks the version; with another one `renew` is impossible, and a new producer has to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import aiokafka
import aiokafka.producer.producer
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.producer.transaction_manager import PidAndEpoch, TransactionState
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactString, Int16, Int32, Int64, Schema, TaggedFields

from penstock.errors import Unavailable
from penstock.router.kafka_batches import BATCH_BYTES, InvalidRecord, coded
from penstock.router.kafka_connections import Connections
from penstock.router.kafka_options import KafkaOptions

VERSIONS = ("0.14.",)
"""Of the client library, whose inner parts are known to be as they are used here."""
STOP_S = 1.0
"""For each step of giving a producer up. Nobody waits for what it was doing."""
TOPIC_POLL_S = 0.1
RENEW_RETRY_S = 0.001
"""Doubled each time up to the producer's own back-off: right behind a transaction, the brokers need a few milliseconds
to finish it, and nothing else can be done meanwhile."""


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
    # Futures of its own that failed and that it never looks at, each of which would be complained about.
    waiters = [batch._drain_waiter for batches in producer._message_accumulator._batches.values() for batch in batches]
    for waiter in (producer._txn_manager._transaction_waiter, *waiters):
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()


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
    """Give the transactional id of a live producer its next epoch, and only if nobody has taken the id since its last
    (KIP-360): a producer that slept can't take it back from whoever came after.

    Raises ProducerFenced when somebody has, and whatever else the client library fails with. Then the producer is of no
    more use.
    """
    assert renewable(producer), "a renewed producer is idle"
    manager, sender = producer._txn_manager, producer._sender
    delay_s = RENEW_RETRY_S
    while True:
        node = await sender._find_coordinator(CoordinationType.TRANSACTION, manager.transactional_id)
        request = _RenewRequest(
            manager.transactional_id, manager.transaction_timeout_ms, manager.producer_id, manager.producer_epoch
        )
        answer = await producer.client.send(node, request, group=ConnectionGroup.COORDINATION)
        error = kafka.for_code(answer.error_code)
        if error is kafka.NoError:
            manager._pid_and_epoch = PidAndEpoch(answer.producer_id, answer.producer_epoch)
            manager._sequence_numbers.clear()
            return
        if error in _ELSEWHERE:
            sender._coordinator_dead(CoordinationType.TRANSACTION)
        elif error not in _LATER:
            raise kafka.ProducerFenced if error is kafka.InvalidProducerEpoch else error
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, sender._retry_backoff)


def _is_known() -> bool:
    return bool(aiokafka.__version__.startswith(VERSIONS))


def _silent(topic: str) -> Unavailable:
    error = coded(TimeoutError("no answer"), f"Asking for topic {topic}")
    assert isinstance(error, Unavailable)
    return error


def _prepare_library() -> None:
    """Teach the client library an error it does not know, to close what it opens, and to say nothing of its own: every
    failure arrives here as an error, and in an outage it would write several lines a second. A level that somebody set
    is left alone."""
    kafka.kafka_errors.setdefault(InvalidRecord.errno, InvalidRecord)
    aiokafka.producer.producer.AIOKafkaClient = Connections
    logger = logging.getLogger("aiokafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


_ELSEWHERE = (kafka.CoordinatorNotAvailableError, kafka.NotCoordinatorError)
_LATER = (kafka.CoordinatorLoadInProgressError, kafka.ConcurrentTransactions)


# The request as the protocol has it since version 3; the client library has only version 0.


class _RenewResponse(Response):  # type: ignore[misc]
    API_KEY = 22
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class _RenewStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 22
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _RenewResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("transaction_timeout_ms", Int32),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("tags", TaggedFields),
    )


class _RenewRequest(Request[_RenewStruct]):  # type: ignore[misc]
    API_KEY = 22
    CLASSES: ClassVar = [_RenewStruct]

    def __init__(self, transactional_id: str, timeout_ms: int, producer: int, epoch: int) -> None:
        self._fields: tuple[Any, ...] = (transactional_id, timeout_ms, producer, epoch, {})

    def build(self, request_struct_class: type[_RenewStruct]) -> _RenewStruct:
        return request_struct_class(*self._fields)
