"""What a Kafka cluster is asked besides records: its topics and leaders, where partitions begin and end, and the
positions a group is told.

What always holds: asking changes nothing (no topic comes into being because its name was mentioned); every call ends
within the request timeout of the options, as an answer or as a coded error. It is also the one place that reaches
beneath the public surface of the client library, so that a reader decides itself what is fetched, and when: therefore
the version is checked.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from re import Pattern
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import aiokafka
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from penstock.errors import ConfigurationError, Refused, Unavailable
from penstock.router.kafka_connections import Connections
from penstock.router.kafka_options import KafkaOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Place: TypeAlias = tuple[str, int]
"""A topic and the number of one of its partitions."""
Isolation = Literal["read_committed", "read_uncommitted"]

EARLIEST, LATEST = -2, -1
"""Instead of a time: the first record, and behind the last."""
RETRY_S = 0.1
VERSIONS = ("0.14.",)
"""Of the client library, whose inner parts are known to be as they are used here."""

_DENIED = (kafka_errors.ClusterAuthorizationFailedError, kafka_errors.GroupAuthorizationFailedError)
_ISOLATIONS: Mapping[Isolation, int] = {"read_uncommitted": 0, "read_committed": 1}


class Bounds(NamedTuple):
    """Where a partition begins, and the offset behind its last record that can be read."""

    start: int
    end: int


class KafkaClient:
    """Connections to the brokers of one cluster."""

    def __init__(self, options: KafkaOptions, *, on_metadata: Callable[[], None] | None = None) -> None:
        """`on_metadata` is called each time when it was learnt anew who leads."""
        check_version(aiokafka.__version__)
        self._options = options
        self._on_metadata = on_metadata
        self._client: Any = None
        self._topics: set[str] = set()

    async def start(self) -> None:
        """Connect. Raises Unavailable when no broker answers; may be called again after `close`."""
        client = _Client(**self._options.client_arguments())
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                await client.bootstrap()
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            raise self.unavailable(error) from error
        self._client = client
        if self._on_metadata is not None:
            listener = self._on_metadata
            client.cluster.add_listener(lambda _: listener())
        client.set_topics(self._topics)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _closed(client)

    def unavailable(self, error: BaseException) -> Unavailable:
        """The error to report when `error` is why no broker can be reached."""
        return Unavailable(
            "PEN0720",
            f"Kafka at {self._options.bootstrap} does not answer: {_text(error)}. Check the addresses, the security "
            "settings and that the brokers run; penstock doctor --kafka looks at each.",
        )

    async def send(self, node: int, request: Any, *, side: bool = False) -> Any:
        """The answer of broker `node`. `side` uses a connection of its own, which no long poll holds up.

        Raises errors of the client library, or TimeoutError.
        """
        group = ConnectionGroup.COORDINATION if side else ConnectionGroup.DEFAULT
        async with asyncio.timeout(self._options.request_timeout_s + 1):
            return await self._client.send(node, request, group=group)

    # Topics and leaders.

    def watch(self, topics: Iterable[str]) -> None:
        """Keep the leaders of these topics known."""
        self._topics = set(topics)
        if self._client is not None:
            self._client.set_topics(self._topics)

    def refresh(self) -> None:
        """Learn anew who leads, soon."""
        if self._client is not None:
            self._client.force_metadata_update()

    def leader(self, place: Place) -> int | None:
        """The broker that leads a partition; None while it isn't known."""
        node = self._client.cluster.leader_for_partition(TopicPartition(*place)) if self._client is not None else None
        return None if node is None or node < 0 else int(node)

    def knows(self, place: Place) -> bool:
        """Whether the brokers say that this partition exists, with a leader or without."""
        partitions = self._client.cluster.partitions_for_topic(place[0]) if self._client is not None else None
        return partitions is not None and place[1] in partitions

    def may_read(self, topic: str) -> bool:
        """Whether no broker has refused to talk about `topic`."""
        return self._client is None or topic not in self._client.cluster.unauthorized_topics

    async def partitions(self, topics: Collection[str] | Pattern[str]) -> dict[str, int]:
        """How many partitions each of these topics has, or each that matches; without those that don't exist.

        Kafka's own topics never match. Raises ConfigurationError for a topic that may not be read.
        """
        named = None if isinstance(topics, Pattern) else sorted(topics)
        response = await self._patiently(self._metadata, named)
        counts: dict[str, int] = {}
        for code, topic, internal, partitions in response.topics:
            if isinstance(topics, Pattern) and (internal or not topics.fullmatch(topic)):
                continue
            error = kafka_errors.for_code(code)
            if error is kafka_errors.TopicAuthorizationFailedError:
                raise not_authorized(topic)
            if error is kafka_errors.NoError:
                counts[topic] = len(partitions)
            elif error not in (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError):
                raise self.unavailable(error())
        return counts

    async def _metadata(self, topics: list[str] | None) -> Any:
        request = MetadataRequest(topics, allow_auto_topic_creation=False)
        return await self._client.send_to_any(request)

    # Offsets.

    async def offsets(
        self, places: Collection[Place], time_ms: int, *, isolation: Isolation = "read_committed"
    ) -> dict[Place, int]:
        """The first offset at or after a time (-1 where nothing is so young); or `EARLIEST`, or `LATEST`, which for
        committed reading is where the oldest open transaction begins.

        Raises Refused for a partition that does not exist.
        """
        found: dict[Place, int] = await self._patiently(self._offsets, places, time_ms, isolation)
        return found

    async def _offsets(self, places: Collection[Place], time_ms: int, isolation: Isolation) -> dict[Place, int]:
        self._client.set_topics(self._topics | {topic for topic, _ in places})
        await self._client.force_metadata_update()
        by_node: defaultdict[int, defaultdict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for place in places:
            if not self.may_read(place[0]):
                raise not_authorized(place[0])
            node = self.leader(place)
            if node is None:
                raise kafka_errors.LeaderNotAvailableError(place)
            by_node[node][place[0]].append((place[1], time_ms))
        found: dict[Place, int] = {}
        for node, topics in by_node.items():
            response = await self.send(node, OffsetRequest(-1, _ISOLATIONS[isolation], list(topics.items())))
            for topic, partitions in response.topics:
                for partition, code, _, offset in partitions:
                    _raise_for(code, topic, partition)
                    found[topic, partition] = offset
        return found

    async def bounds(
        self, places: Collection[Place], *, isolation: Isolation = "read_committed"
    ) -> dict[Place, Bounds]:
        """Where partitions begin and end now."""
        starts = await self.offsets(places, EARLIEST, isolation=isolation)
        ends = await self.offsets(places, LATEST, isolation=isolation)
        return {place: Bounds(starts[place], ends[place]) for place in places}

    async def commit(self, group: str, positions: Mapping[Place, int]) -> None:
        """Tell the group where it stands, for tools that show lag; nobody of ours ever reads it."""
        await self._patiently(self._commit, group, positions)

    async def _commit(self, group: str, positions: Mapping[Place, int]) -> None:
        topics: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for (topic, partition), offset in positions.items():
            topics[topic].append((partition, offset, ""))
        request = OffsetCommitRequest(
            group,
            OffsetCommitRequest.DEFAULT_GENERATION_ID,
            "",
            OffsetCommitRequest.DEFAULT_RETENTION_TIME,
            list(topics.items()),
        )
        node = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
        response = await self.send(node, request, side=True)
        for topic, partitions in response.topics:
            for partition, code in partitions:
                _raise_for(code, topic, partition)

    async def _patiently(self, ask: Any, *arguments: Any) -> Any:
        """What `ask` answers, asked again while it may pass. Raises Unavailable after the request timeout."""
        last: BaseException = TimeoutError("no answer in time")
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                while True:
                    try:
                        return await ask(*arguments)
                    except (kafka_errors.KafkaError, OSError) as error:
                        if isinstance(error, _DENIED):
                            raise _not_permitted(error) from error
                        last = error
                        self.refresh()
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            if isinstance(last, kafka_errors.UnknownTopicOrPartitionError | kafka_errors.LeaderNotAvailableError):
                raise Refused(
                    "PEN0722",
                    f"Kafka at {self._options.bootstrap} knows no leader for {_text(last)}. If the topic was deleted, "
                    "create it again or remove it from the application; otherwise look after the brokers.",
                ) from last
            raise self.unavailable(last) from last


class _Client(Connections):
    """The client of the library, less its habit of creating topics that it asks for."""

    async def send_to_any(self, request: Any) -> Any:
        """The answer of any broker. Raises what the last one asked failed with."""
        nodes: list[Any] = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(nodes)
        if ("bootstrap", ConnectionGroup.DEFAULT) in self._conns:
            nodes.append("bootstrap")
        failure: BaseException = kafka_errors.NodeNotReadyError("no broker is known")
        for node in nodes:
            # Not behind a long poll: whoever takes over a partition waits for this.
            group = ConnectionGroup.DEFAULT if node == "bootstrap" else ConnectionGroup.COORDINATION
            try:
                return await self.send(node, request, group=group)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                failure = error
        raise failure

    async def _metadata_update(self, cluster_metadata: Any, topics: Collection[str]) -> bool:
        try:
            metadata = await self.send_to_any(MetadataRequest(sorted(topics), allow_auto_topic_creation=False))
        except (kafka_errors.KafkaError, TimeoutError) as error:
            cluster_metadata.failed_update(error)
            return False
        cluster_metadata.update_metadata(metadata)
        return bool(metadata.brokers)


@asynccontextmanager
async def connected(options: KafkaOptions) -> AsyncIterator[KafkaClient]:
    """A client for a few questions."""
    client = KafkaClient(options)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def offsets(
    options: KafkaOptions, places: Collection[Place], *, isolation: Isolation = "read_committed"
) -> dict[Place, Bounds]:
    """Where partitions begin and end now. Raises Unavailable, Refused, or ConfigurationError."""
    async with connected(options) as client:
        return await client.bounds(places, isolation=isolation)


def check_version(version: str) -> None:
    """Raise ConfigurationError unless this version of the client library is one that is known."""
    if not version.startswith(VERSIONS):
        raise ConfigurationError(
            "PEN0728",
            f"aiokafka {version} is installed, whose inner parts are not those that Penstock reads records with. "
            f"Install aiokafka {' or '.join(f'{known}*' for known in VERSIONS)}.",
        )


def not_authorized(topic: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0723",
        f"Kafka does not let this application read topic {topic}. Grant READ and DESCRIBE on it; "
        "penstock doctor --kafka prints the commands.",
    )


def _not_permitted(error: BaseException) -> ConfigurationError:
    return ConfigurationError(
        "PEN0723",
        f"Kafka refuses it: {_text(error)}. Grant what is missing; penstock doctor --kafka prints the commands.",
    )


def _raise_for(code: int, topic: str, partition: int) -> None:
    error = kafka_errors.for_code(code)
    if error is kafka_errors.TopicAuthorizationFailedError:
        raise not_authorized(topic)
    if error is not kafka_errors.NoError:
        raise error(f"topic {topic} partition {partition}")


def _text(error: BaseException) -> str:
    """Errors of the library often have a name and no text."""
    text = ", ".join(map(str, error.args)) if isinstance(error, kafka_errors.KafkaError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _closed(client: Any) -> None:
    with suppress(Exception):  # It is given up; what closing it fails with changes nothing.
        async with asyncio.timeout(5):
            await client.close()
