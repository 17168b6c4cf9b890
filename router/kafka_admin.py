"""Asks a Kafka cluster about itself and changes topics: the one connection of those who look after a cluster.

What always holds: every wait is bounded; whatever the cluster or the network does becomes a coded error, or a `Refusal`
that the caller explains; no question creates a topic. Knows nothing of applications and their topics.

Kafka's protocol is spoken through aiokafka's client, which negotiates a version of each request and knows most of them.
Two are written down here: metadata from version 10 on, for the ids of topics (they alone tell a topic from another one
that was created under its name) and for what one is allowed to do; and the sizes of logs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID

from aiokafka import AIOKafkaProducer
from aiokafka.client import CoordinationType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    BrokerResponseError,
    IncompatibleBrokerVersion,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.admin import (
    ApiVersionRequest,
    CreateTopicsRequest,
    DeleteGroupsRequest,
    DeleteRecordsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from penstock.errors import ConfigurationError, PenstockError, Refused, Unavailable
from penstock.router.kafka_connections import Connections
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import OUT_OF_RANGE, read_range
from penstock.router.kafka_records import Fetched

OLDEST: Final = "3.9"
"""The oldest release of Kafka that is tested."""
RETRY_S: Final = 0.1
"""Between two looks at what the cluster has not done yet."""
MARGIN_S: Final = 5.0
"""What a request may take beyond its own timeout, which the client keeps itself unless it is stuck."""
_FIRST, _END = -2, -1
"""What to ask for instead of a time, to get the first and the next offset."""
UNKNOWN_TOPIC: Final = 3
_NO_LEADER: Final = 5
TOPIC_EXISTS: Final = 36
_STALE: Final = frozenset({3, 5, 6, 7, 15, 41})
"""Codes of a broker that is not, or not yet, the one to ask: look again."""
_LOADING: Final = frozenset({14, 15, 16, 51})
"""Codes of a coordinator that is on its way."""
_DENIED: Final = frozenset({29, 30, 31, 53})
_CREDENTIALS: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
_GROUP_UNKNOWN: Final = 69
_NO_GROUP: Final = frozenset({"", "Dead"})
"""States of groups that do not exist."""
_TOPIC, _BROKER = 2, 4
"""Kinds of resources that have settings, as the protocol numbers them."""

OPERATIONS: Final = {
    3: "Read",
    4: "Write",
    5: "Create",
    6: "Delete",
    7: "Alter",
    8: "Describe",
    9: "ClusterAction",
    10: "DescribeConfigs",
    11: "AlterConfigs",
    12: "IdempotentWrite",
}
"""As `kafka-acls.sh` names them."""

T = TypeVar("T")


class Partition(NamedTuple):
    leader: int
    """Broker, or -1 while there is none."""
    replicas: int
    in_sync: int


class Topic(NamedTuple):
    name: str
    topic_id: str
    """Given by the cluster when the topic was created: another one under the same name has another."""
    partitions: tuple[Partition, ...]
    allowed: frozenset[str]
    """Operations on it that this client is allowed, as in `OPERATIONS`."""

    @property
    def led(self) -> bool:
        """Whether every partition has a leader: a moment after its creation, and while enough brokers run."""
        return bool(self.partitions) and all(partition.leader >= 0 for partition in self.partitions)


class Cluster(NamedTuple):
    cluster_id: str
    brokers: Mapping[int, str]
    controller: int


class NewTopic(NamedTuple):
    name: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]


class Refusal(NamedTuple):
    """What a broker said instead of doing it."""

    code: int
    name: str
    """Of the error, without numbers: `PolicyViolation`."""
    text: str

    @property
    def denied(self) -> bool:
        """Whether a permission is missing."""
        return self.code in _DENIED

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name


class Appended(NamedTuple):
    timestamp_ms: int
    by_broker: bool
    """Whether the broker's clock gave the timestamp."""


def refusal(code: int, text: str | None = None) -> Refusal:
    name = for_code(code).__name__.removesuffix("Error")
    return Refusal(code, name, " ".join((text or "").split()))


def principal(options: KafkaOptions) -> str:
    """Who the cluster takes this client for, as far as the options tell."""
    return f"User:{options.client_arguments().get('sasl_plain_username', 'ANONYMOUS')}"


def denied(options: KafkaOptions, operations: Sequence[str], kind: str, name: str) -> Refused:
    """The error for a missing permission, with the line that grants it. `kind` is topic, group or transactional-id."""
    user = principal(options)
    flags = " ".join(f"--operation {operation}" for operation in operations)
    return Refused(
        "PEN0742",
        f"{user} may not {' and '.join(operations)} {kind} {name}. Grant it: kafka-acls.sh --bootstrap-server "
        f"{options.bootstrap} --add --allow-principal {user} {flags} --{kind} {name}. "
        f"All that is needed: penstock doctor --kafka ... --acls {user}.",
    )


class Admin:
    """A connection to a cluster, for `async with`. Raises Unavailable, ConfigurationError or Refused."""

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self._timeout_s = options.request_timeout_s
        self._client: Any = None

    async def __aenter__(self) -> Self:
        arguments = self.options.client_arguments()
        self._client = Connections(**arguments)
        try:
            async with asyncio.timeout(self._timeout_s + MARGIN_S):
                await self._client.bootstrap()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._close()
            raise await unreachable(self.options, type(error).__name__) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        with suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(MARGIN_S):
                await self._client.close()

    # Questions.

    async def cluster(self) -> Cluster:
        found = await self._metadata([])
        return Cluster(
            found.cluster_id or "",
            {broker[0]: f"{broker[1]}:{broker[2]}" for broker in found.brokers},
            found.controller_id,
        )

    async def topics(self, names: Iterable[str] | None) -> dict[str, Topic]:
        """Those there are of `names`, or all there are. Raises Refused when one may not be described."""
        wanted = None if names is None else sorted(set(names))
        found: dict[str, Topic] = {}
        hidden: list[str] = []
        for code, name, topic_id, _, partitions, operations, _ in (await self._metadata(wanted)).topics:
            if code == 0 or code in _STALE - {UNKNOWN_TOPIC}:
                ordered = sorted(partitions, key=lambda each: each[1])
                parts = tuple(Partition(each[2], len(each[4]), len(each[5])) for each in ordered)
                found[name] = Topic(name, topic_id.hex, parts, _operations(operations))
            elif code in _DENIED:
                hidden.append(name)
            elif code != UNKNOWN_TOPIC:
                raise self._failed(f"looking at topic {name}", refusal(code))
        if hidden:
            raise denied(self.options, ["Describe"], "topic", min(hidden))
        return found

    async def topic_settings(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Every setting of these topics, defaults included. Raises Refused."""
        names = sorted(names)
        if not names:
            return {}
        answer = await self._send(DescribeConfigsRequest([(_TOPIC, name, None) for name in names]))
        found = {}
        for code, text, _, name, entries in (resource[:5] for resource in answer.resources):
            if code in _DENIED:
                raise denied(self.options, ["DescribeConfigs"], "topic", name)
            if code:
                raise self._failed(f"reading the settings of topic {name}", refusal(code, text))
            found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def broker_settings(self, broker: int) -> dict[str, str] | None:
        """Every setting of a broker, or None when this client may not see them."""
        answer = await self._send(DescribeConfigsRequest([(_BROKER, str(broker), None)]), broker)
        code, text, _, _, entries = answer.resources[0][:5]
        if code in _DENIED:
            return None
        if code:
            raise self._failed(f"reading the settings of broker {broker}", refusal(code, text))
        return {entry[0]: entry[1] for entry in entries}

    async def versions(self, broker: int) -> dict[int, tuple[int, int]]:
        """Which requests a broker understands, from and to which version."""
        answer = await self._send(ApiVersionRequest(), broker)
        return {key: (lowest, highest) for key, lowest, highest in answer.api_versions}

    async def sizes(self, names: Collection[str]) -> dict[str, int] | None:
        """Bytes on the disks of all brokers by topic, or None when this client may not see them."""
        topics = await self.topics(names)
        request = _LogDirsRequest([(name, list(range(len(topic.partitions)))) for name, topic in topics.items()])
        sizes = dict.fromkeys(topics, 0)
        for broker in (await self.cluster()).brokers:
            answer = await self._send(request, broker)
            if not answer.results:  # How a broker says so, in this version.
                return None
            for code, _, found in answer.results:
                if code in _DENIED:
                    return None
                for name, partitions in found:
                    sizes[name] += sum(size for _, size, _, _ in partitions)
        return sizes

    async def offsets(self, partitions: Collection[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """The first offset there is, and the next one to be written. Raises Unavailable or Refused."""

        async def ask(which: int) -> dict[tuple[str, int], int]:
            found = {}
            for leader, wanted in (await self._by_leader(dict.fromkeys(partitions, which))).items():
                answer = await self._send(OffsetRequest(-1, 0, wanted), leader)
                for topic, results in answer.topics:
                    for partition, code, _, offset, *_ in results:
                        self._check(code, f"looking up offsets of partition {partition}", topic, "Describe")
                        found[topic, partition] = offset
            return found

        first = await self._patiently(lambda: ask(_FIRST))
        end = await self._patiently(lambda: ask(_END))
        return {each: (first[each], end[each]) for each in partitions}

    async def first_records(self, partitions: Collection[tuple[str, int]]) -> dict[tuple[str, int], Fetched]:
        """The first record of each partition that has one."""
        return await self._read(partitions, lambda first, _: first)

    async def last_records(self, partitions: Collection[tuple[str, int]]) -> dict[tuple[str, int], Fetched]:
        """The newest record of each partition that has one. Not for partitions written in transactions, whose last
        offset is the end of one and no record."""
        return await self._read(partitions, lambda _, end: end - 1)

    # Changes.

    async def create(self, topics: Sequence[NewTopic], *, validate_only: bool = False) -> dict[str, Refusal]:
        """Create topics, or only ask whether they could be. Returns what was refused."""
        wanted: list[Any] = [
            (each.name, each.partitions, each.replicas, [], list(each.settings.items())) for each in topics
        ]
        request = CreateTopicsRequest(wanted, int(self._timeout_s * 1000), validate_only)
        answer = await self._to_controller(request)
        return {name: refusal(code, text) for name, code, text in answer.topic_errors if code}

    async def delete(self, names: Collection[str]) -> dict[str, Refusal]:
        """Delete topics. Returns what was refused."""
        answer = await self._to_controller(DeleteTopicsRequest(sorted(names), int(self._timeout_s * 1000)))
        return {name: refusal(code) for name, code in answer.topic_error_codes if code}

    async def delete_records(self, before: Mapping[tuple[str, int], int]) -> None:
        """Give up the records before these offsets. Raises Unavailable or Refused; then some may have been given up."""

        async def ask() -> None:
            for leader, wanted in (await self._by_leader(before)).items():
                answer = await self._send(DeleteRecordsRequest(wanted, int(self._timeout_s * 1000)), leader)
                for topic, partitions, *_ in answer.topics:
                    for each in partitions:
                        self._check(each[2], f"giving up records of partition {each[0]}", topic, "Delete")

        await self._patiently(ask)

    async def has_group(self, group: str) -> bool | None:
        """Whether anything is committed for a group, or None when this client may not see it."""
        code, answer = await self._of_coordinator(
            CoordinationType.GROUP, group, DescribeGroupsRequest([group]), lambda answer: answer.groups[0][0]
        )
        if code in _DENIED:
            return None
        return not code and answer.groups[0][2] not in _NO_GROUP

    async def delete_group(self, group: str) -> Refusal | None:
        """Forget the offsets committed for a group. One that does not exist is none to complain about."""
        code, _ = await self._of_coordinator(
            CoordinationType.GROUP, group, DeleteGroupsRequest([group]), lambda answer: answer.results[0][1]
        )
        return refusal(code) if code not in (0, _GROUP_UNKNOWN) else None

    async def try_transactional_id(self, name: str, timeout_ms: int) -> Refusal | None:
        """Claim a transactional id as producers do, with this timeout; says why one would be refused. Fences whoever
        uses the id."""
        request = InitProducerIdRequest(name, timeout_ms)
        code, _ = await self._of_coordinator(
            CoordinationType.TRANSACTION, name, request, lambda answer: answer.error_code
        )
        return refusal(code) if code else None

    async def append(self, records: Sequence[tuple[str, int, bytes, bytes]]) -> list[Appended]:
        """Write (topic, partition, key, value), durably, one after the other. Raises Unavailable or Refused."""
        producer = AIOKafkaProducer(**self.options.client_arguments(), enable_idempotence=True)
        appended = []
        try:
            await self._bounded(producer.start(), "writing", needs=("Write", records[0][0]))
            for topic, partition, key, value in records:
                writing = producer.send_and_wait(topic, value, key=key, partition=partition)
                written = await self._bounded(writing, f"writing to {topic}", needs=("Write", topic))
                appended.append(Appended(written.timestamp, written.timestamp_type == 1))
        finally:
            await self._stop(producer)
        return appended

    # How it is asked.

    async def _metadata(self, names: Sequence[str] | None) -> Any:
        return await self._send(_MetadataRequest(names))

    async def _of_coordinator(
        self, kind: CoordinationType, name: str, request: Request[Any], code_of: Callable[[Any], int]
    ) -> tuple[int, Any]:
        """The answer of the broker that looks after a group or transactional id, behind its code. A broker that is on
        its way to do that is waited for as long as a request may take."""
        deadline = _now() + self._timeout_s
        while True:
            answer = await self._send(FindCoordinatorRequest(name, kind))
            code: int = answer.error_code
            if not code:
                answer = await self._send(request, answer.coordinator_id)
                code = code_of(answer)
            if code not in _LOADING or _now() > deadline:
                return code, answer
            await asyncio.sleep(RETRY_S)

    async def _read(
        self, partitions: Collection[tuple[str, int]], where: Callable[[int, int], int]
    ) -> dict[tuple[str, int], Fetched]:
        """The record that `where` chooses from the first offset and the end, of each partition that has one."""
        for topic in (await self.topics({topic for topic, _ in partitions})).values():
            if "Read" not in topic.allowed:
                raise denied(self.options, ["Read"], "topic", topic.name)
        before = None
        while True:
            offsets = await self.offsets(partitions)
            chosen = {each: where(first, end) for each, (first, end) in offsets.items() if first < end}
            try:
                found = await self._read_at(chosen)
            except Refused as error:
                if error.code != OUT_OF_RANGE or offsets == before:
                    raise
                before = offsets  # Deleted in between, by whoever needs it no more: another one is the first now.
            else:
                return found

    async def _read_at(self, chosen: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Fetched]:
        reading = [
            read_range(self.options, topic, partition, offset, offset + 1, isolation="read_uncommitted")
            for (topic, partition), offset in chosen.items()
        ]
        results = await asyncio.gather(*reading, return_exceptions=True)
        found = {}
        for place, result in zip(chosen, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            if result:
                found[place] = result[0]
        return found

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, asked again as long as a request may take while partitions change their leaders."""
        deadline = _now() + self._timeout_s
        while True:
            try:
                return await ask()
            except Unavailable:  # The leader ended, and the others do not know it yet.
                if _now() > deadline:
                    raise
            except _NotYetError as error:
                if _now() > deadline:
                    raise self._failed(error.doing, error.why) from error
            await asyncio.sleep(RETRY_S)

    def _check(self, code: int, doing: str, topic: str, operation: str) -> None:
        if code in _DENIED:
            raise denied(self.options, [operation], "topic", topic)
        if code in _STALE:
            raise _NotYetError(f"{doing} of {topic}", refusal(code))
        if code:
            raise self._failed(f"{doing} of {topic}", refusal(code))

    async def _by_leader(
        self, values: Mapping[tuple[str, int], int]
    ) -> dict[int, list[tuple[str, list[tuple[int, int]]]]]:
        """By the broker to ask: topics, with partitions and their values."""
        topics = await self.topics({topic for topic, _ in values})
        found: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for (topic, partition), value in values.items():
            leader = topics[topic].partitions[partition].leader if topic in topics else -1
            if leader < 0:
                raise _NotYetError(f"looking for the leader of partition {partition} of {topic}", refusal(_NO_LEADER))
            found[leader][topic].append((partition, value))
        return {leader: list(wanted.items()) for leader, wanted in found.items()}

    async def _stop(self, client: Any) -> None:
        """A client that can't even be stopped has nothing left that matters: what it did has been confirmed."""
        with suppress(Unavailable):
            await self._bounded(client.stop(), "closing a connection")

    async def _to_controller(self, request: Request[Any]) -> Any:
        return await self._send(request, (await self.cluster()).controller)

    async def _send(self, request: Request[Any], broker: int | None = None) -> Any:
        """The answer of `broker`, or of any."""
        brokers = [broker] if broker is not None else [each.nodeId for each in self._client.cluster.brokers()]
        name = type(request).__name__.strip("_").removesuffix("Request")

        async def ask(each: int) -> Any:
            return await self._bounded(self._client.send(each, request), f"{name} at broker {each}")

        for each in brokers[:-1]:
            with suppress(Unavailable):
                return await ask(each)
        return await ask(brokers[-1])

    async def _bounded(self, waiting: Awaitable[Any], doing: str, *, needs: tuple[str, str] | None = None) -> Any:
        """What `waiting` becomes, in bounded time. `needs` is the operation on a topic that may not be permitted."""
        try:
            async with asyncio.timeout(self._timeout_s + MARGIN_S):
                return await waiting
        except (IncompatibleBrokerVersion, NotImplementedError) as error:
            raise ConfigurationError(
                "PEN0750",
                f"The Kafka cluster at {self.options.bootstrap} is too old: {doing} is not known there in a version "
                f"that is needed. Upgrade it to {OLDEST} or newer.",
            ) from error
        except BrokerResponseError as error:
            if error.errno in _DENIED and needs is not None:
                operation, topic = needs
                raise denied(self.options, [operation], "topic", topic) from error
            raise self._failed(doing, refusal(error.errno)) from error
        except (KafkaError, OSError, TimeoutError) as error:
            raise self._failed(doing, Refusal(-1, type(error).__name__, str(error))) from error

    def _failed(self, doing: str, why: Refusal) -> Unavailable:
        return Unavailable(
            "PEN0749",
            f"The Kafka cluster at {self.options.bootstrap} did not answer as it should: {doing} failed with {why}. "
            "Try again, and look at the brokers' logs if it lasts.",
        )


class _NotYetError(Exception):
    """The broker that was asked does not lead the partition, or nobody does yet."""

    def __init__(self, doing: str, why: Refusal) -> None:
        super().__init__(doing, why)
        self.doing = doing
        self.why = why


async def unreachable(options: KafkaOptions, seen: str) -> PenstockError:
    """The error for a cluster that can't be reached, after a look at each address for the reason, which aiokafka does
    not tell. `seen` is what is known without that look."""
    reasons = []
    for host, port, _ in collect_hosts(options.client_arguments()["bootstrap_servers"], randomize=False):
        try:
            async with asyncio.timeout(MARGIN_S):
                (await _connect(options, host, port)).close()
            reasons.append(f"{host}:{port} accepts connections, and answers no question ({seen})")
        except _CREDENTIALS as error:
            return _credentials(
                options, f"{host}:{port}", f"{principal(options)}: {type(error).__name__.removesuffix('Error')}"
            )
        except ssl.SSLError as error:
            return _credentials(options, f"{host}:{port}", f"TLS: {error.reason or error}")
        except socket.gaierror:
            reasons.append(f"{host} is no known host")
        except TimeoutError:
            reasons.append(f"{host}:{port} does not answer")
        except ConnectionRefusedError:
            reasons.append(f"nothing listens on {host}:{port}")
        except (KafkaError, OSError) as error:
            reasons.append(f"{host}:{port}: {type(error).__name__} {error}".rstrip())
    return Unavailable(
        "PEN0740",
        f"No Kafka broker can be reached: {'; '.join(reasons)}. Check the addresses, that the brokers run, and that "
        f"security.protocol fits the listener (it is {options.properties.get('security.protocol', 'PLAINTEXT')}).",
    )


async def _connect(options: KafkaOptions, host: str, port: int) -> Any:
    known = options.client_arguments()
    names = ("client_id", "ssl_context", "security_protocol", "sasl_mechanism")
    arguments = {name: known[name] for name in (*names, "sasl_plain_username", "sasl_plain_password") if name in known}
    if "security_protocol" in known and known["security_protocol"].startswith("SASL"):
        arguments.setdefault("sasl_mechanism", "PLAIN")
    return await create_conn(host, port, **arguments)


def _credentials(options: KafkaOptions, address: str, why: str) -> ConfigurationError:
    protocol = options.properties.get("security.protocol", "PLAINTEXT")
    return ConfigurationError(
        "PEN0741",
        f"The Kafka broker at {address} does not let this client in ({protocol}, {why}). Correct the user, the "
        "password, the certificates or the mechanism in the properties.",
    )


def _operations(bits: int) -> frozenset[str]:
    return frozenset(name for bit, name in OPERATIONS.items() if bits >= 0 and bits >> bit & 1)


def _now() -> float:
    return asyncio.get_running_loop().time()


# The two requests that aiokafka does not have, as the protocol defines them.


class _Uuid:
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("allowed", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_allowed", Int32),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("create", Boolean),
        ("with_cluster_allowed", Boolean),
        ("with_topics_allowed", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):  # type: ignore[misc]
    """Topics by name, or all for None, with what this client is allowed. Never creates one."""

    API_KEY = 3

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        names: Any = None if self._names is None else [(UUID(int=0), name, {}) for name in self._names]
        return request_struct_class(names, False, False, True, {})


class _LogDirsResponse(Response):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("directory", String("utf-8")),
                (
                    "topics",
                    Array(
                        ("name", String("utf-8")),
                        (
                            "partitions",
                            Array(("partition", Int32), ("size", Int64), ("lag", Int64), ("is_future", Boolean)),
                        ),
                    ),
                ),
            ),
        ),
    )


class _LogDirsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = _LogDirsResponse
    SCHEMA = Schema(("topics", Array(("name", String("utf-8")), ("partitions", Array(Int32)))))


class _LogDirsRequest(Request[_LogDirsStruct]):  # type: ignore[misc]
    """How large the logs of these partitions are on one broker."""

    API_KEY = 35

    def __init__(self, partitions: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._partitions = partitions

    def build(self, request_struct_class: type[_LogDirsStruct]) -> _LogDirsStruct:
        return request_struct_class(self._partitions)
