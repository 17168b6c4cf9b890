"""Records on their way to Kafka: which partition each goes to, how they become batches, and what a refusal means.

What always holds: a record with a key goes where Kafka's default partitioner puts it; the records of one partition
leave in the order they were given; an error is either about the records (they can never be written), about who may
write (a person must act), or about the moment (try again). Sends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from aiokafka import errors as kafka

from penstock.errors import ConfigurationError, Fenced, InvalidInput, PenstockError, Unavailable
from penstock.ids import murmur2

BATCH_BYTES = 256 << 10
"""Of a batch that is full. It must be below Kafka's default limit of 1 MiB for a batch, or a topic with that limit
would refuse every full one; and large enough that the cost of a request, 0.25 ms, is spread over many records."""
STICKY_BYTES = 64 << 10
"""Records without a key go to one partition until they are so much, then to the next: few and full batches."""


class Record(NamedTuple):
    """One record to be written. Without a `partition` the key decides, or, without a key, nobody."""

    topic: str
    partition: int | None
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int | None = None
    """When it happened; None means now. A topic that keeps the time of appending ignores it."""


Fields: TypeAlias = tuple[str, int | None, bytes | None, bytes | None, Sequence[tuple[str, bytes]], int | None]
"""A `Record`, or a bare tuple of what one holds: many of those are made by one call, and cost the garbage collector
nothing."""


class RecordsRefused(InvalidInput):
    """Kafka will never write some records, however often they are sent."""

    def __init__(self, code: str, message: str, refused: Sequence[tuple[int, str]]) -> None:
        super().__init__(code, message)
        self.refused = refused
        """The index of each among the records that were given, and why it was refused."""


class Spread:
    """Chooses partitions for the records of one topic."""

    def __init__(self) -> None:
        self._sticky = 0
        self._sticky_bytes = 0

    def turn(self) -> None:
        """Let records without a key go to another partition from here on."""
        self._sticky += 1
        self._sticky_bytes = 0

    def choose(self, key: bytes | None, value_bytes: int, partitions: int) -> int:
        """The partition for a record, among `partitions`."""
        if key is not None:
            return hash_of(key) % partitions
        if self._sticky_bytes >= STICKY_BYTES:
            self.turn()
        self._sticky_bytes += value_bytes
        return self._sticky % partitions


@lru_cache(maxsize=65_536)
def hash_of(key: bytes) -> int:
    """What Kafka's default partitioner takes modulo the number of partitions."""
    return murmur2(key) & 0x7FFFFFFF


def fill(builder: Any, records: Iterable[Fields], bytes_max: int) -> int:
    """Append the first of `records` to an empty batch, until it is full. Returns how many: at least one.

    `builder` is what `create_batch` of a producer returns; it takes its first record whatever the size, and none that
    would make it larger than the producer's limit. `bytes_max` may be less than that.
    """
    inner = builder._builder  # What its own methods call: for each record they would cost as much as all else here.
    append, size = inner.append, inner.size
    none: list[tuple[str, bytes]] = []
    now_ms = int(time.time() * 1000)
    count = 0
    for _, _, value, key, headers, timestamp_ms in records:
        at_ms = now_ms if timestamp_ms is None else timestamp_ms
        if append(count, at_ms, key, value, list(headers) if headers else none) is None:
            break
        count += 1
        if size() >= bytes_max:
            break
    assert count, "a batch takes its first record"
    builder._relative_offset = count
    builder.close()
    return count


# What errors mean.


class InvalidRecord(kafka.BrokerResponseError):  # type: ignore[misc]  # The library has no types.
    """A broker's INVALID_RECORD, which the client library does not know by name: it would pass for a failure of the
    moment, and be tried for ever."""

    errno = 87
    message = "INVALID_RECORD"


_ABOUT_RECORDS: dict[type[BaseException], str] = {
    InvalidRecord: "the topic does not take it; a compacted topic takes no record without a key",
    kafka.MessageSizeTooLargeError: "it is larger than max.message.bytes of the topic",
    kafka.RecordListTooLargeError: "it is larger than a segment of the topic",
    kafka.InvalidTopicError: "this is no name of a topic that may be written to",
    kafka.TopicAuthorizationFailedError: "this user may not write to the topic",
    kafka.InvalidTimestampError: "the topic does not take its timestamp",
    kafka.PolicyViolationError: "a policy of the cluster forbids it",
    kafka.UnknownTopicOrPartitionError: "there is no such topic or partition",
}
_ABOUT_ACCESS = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.ClusterAuthorizationFailedError,
    kafka.IllegalSaslStateError,
    kafka.InvalidTransactionTimeout,
    kafka.SaslAuthenticationFailed,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.UnsupportedVersionError,
)


def refusal(error: BaseException) -> str | None:
    """Why Kafka will never write the records of a batch; None when `error` says nothing about them."""
    return next((reason for type_, reason in _ABOUT_RECORDS.items() if isinstance(error, type_)), None)


def is_too_large(error: BaseException) -> bool:
    """Whether a batch was refused for its size, so that smaller ones may pass."""
    return isinstance(error, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError)


def is_about_topic(error: BaseException) -> bool:
    """Whether it is the topic that takes nothing from us, and not one record of a batch that it refuses."""
    return isinstance(
        error, kafka.InvalidTopicError | kafka.TopicAuthorizationFailedError | kafka.UnknownTopicOrPartitionError
    )


def coded(error: BaseException, what: str) -> PenstockError:
    """The error to raise when `what` could not be done because of `error`, which is not about records."""
    if isinstance(error, PenstockError):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, kafka.ProducerFenced):
        return Fenced("PEN0707", f"{what}: another process has taken over. This one must stop.")
    if isinstance(error, _ABOUT_ACCESS):
        return ConfigurationError(
            "PEN0708",
            f"{what}: Kafka refuses this user or client: {text}. Check the properties of the connection, and the "
            "permissions of the user: WRITE on the topics, WRITE and DESCRIBE on the transactional id.",
        )
    return Unavailable("PEN0706", f"{what}: Kafka does not answer: {text}. Check its brokers; it is tried again.")
