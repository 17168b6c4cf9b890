"""Reads records of assigned Kafka partitions, fetched ahead into queues of its own.

    brokers -> fetches, one or two at a time for each broker -> a queue for each partition -> take

What always holds: each record between the offset given and the position comes exactly once and in order, or an error
says why not: an offset that is out of range, a topic that is gone or was created anew, and a damaged batch are fatal,
never skipped. Queues are bounded in bytes; a partition that is full or paused is left out of fetches, and what it has
stays. Outages are waited out, and `unavailable` says so meanwhile. Belongs to no consumer group, commits nothing, and
decides nothing about what partitions there are.
"""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.protocol.fetch import FetchRequest

from penstock.errors import PenstockError, ProtocolError, Refused, Unavailable
from penstock.router.kafka_client import Isolation, KafkaClient, Place, not_authorized, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_records import Columns, Damaged, Fetched, Proof, Segment, fetched_of, proof_of

OUT_OF_RANGE = "PEN0721"
"""The code of the error for records that are not there any more."""
FETCH_WAIT_MS = 500
"""How long a broker holds a fetch that finds nothing: the idle cost is two requests a second and broker."""
SIDE_WAIT_MS = 20
"""The same for a fetch that was sent because the other connection waits: soon both are one again."""
BUFFER_BYTES = 32 << 20
PARTITION_BYTES_MIN, PARTITION_BYTES_MAX = 64 << 10, 1 << 20
"""Fetched from a partition at a time. A larger batch comes whole all the same."""
RETRY_S = 0.2
REBUILD_S = 20.0
"""After an outage of this length the client is made anew, from the addresses in the options: all brokers may have
moved meanwhile."""
GONE_S = 15.0
"""A topic that brokers don't know for as long is gone. One that restarts may not know its topics for some seconds."""
DOUBT_S = 5.0
"""Brokers are asked more often than that. When they were not, because this process stood still or they did not answer,
what they said before says nothing about the time between."""


@dataclass(eq=False, slots=True)
class _Partition:
    """One assigned partition, and what was fetched from it and is not yet taken."""

    place: Place
    position: int
    """Of the next record to be taken."""
    fetch_from: int
    end: int = -1
    segments: deque[Segment] = field(default_factory=deque)
    buffered_bytes: int = 0
    fetching: bool = False
    paused: bool = False
    proof: Proof | None = None
    """The record before the position, to be recognised when it is fetched again."""
    last: Proof | None = None
    """The last record taken."""
    doubted: bool = False
    """A broker did not know the topic: it may be a new one of the same name."""
    unknown_since: float | None = None
    unknown_at: float = 0.0
    """When brokers last said that they don't know the topic."""
    retry_at: float = 0.0
    leaderless: bool = False
    """Waits for news of a leader."""
    failed: bool = False

    def prove(self, proof: Proof | None) -> None:
        """Fetch from the record of `proof` on, to compare it, or from the position."""
        self.proof = proof
        self.fetch_from = self.position if proof is None else proof.offset


@dataclass(eq=False, slots=True)
class _Node:
    """One broker. It answers one request of a connection after the other, so a partition that is added while it holds a
    fetch goes by a second connection. When one of the two finds nothing it waits for the other, and both are one."""

    main: bool = False
    side: bool = False
    merging: bool = False


class KafkaReader:
    """See the module. `on_records` is called when there is something to take; `failed` gets what no retry can mend,
    once for each partition."""

    def __init__(
        self,
        options: KafkaOptions,
        *,
        isolation: Isolation = "read_committed",
        on_records: Callable[[], None] = lambda: None,
        failed: Callable[[PenstockError], None],
        buffer_bytes_max: int = BUFFER_BYTES,
        fetch_wait_ms: int = FETCH_WAIT_MS,
        gone_s: float = GONE_S,
    ) -> None:
        self._options = options
        self._committed = isolation == "read_committed"
        self._isolation: Isolation = isolation
        self._on_records = on_records
        self._failed = failed
        self._buffer_bytes_max = buffer_bytes_max
        self._fetch_wait_ms = fetch_wait_ms
        self._gone_s = gone_s
        self._client = KafkaClient(options, on_metadata=self._relearned)
        self._partitions: dict[Place, _Partition] = {}
        self._nodes: defaultdict[int, _Node] = defaultdict(_Node)
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._down_since: float | None = None
        self._started = self._rebuilding = False
        self.taken = 0
        """Records given out since the start."""
        self.unavailable = ""
        """Why nothing comes, while it is an outage; otherwise empty."""

    # Life.

    async def start(self) -> None:
        """Connect and begin to fetch. Raises Unavailable when no broker answers."""
        await self._client.start()
        self._started = True
        self._dispatch()

    async def close(self) -> None:
        self._started = False
        if self._retry is not None:
            self._retry.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        await self._client.close()

    # What is read.

    def assign(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets, and no others."""
        self._partitions = {place: _Partition(place, offset, offset) for place, offset in positions.items()}
        self._assigned()

    def add(self, topic: str, partition: int, offset: int, *, proof: Proof | None = None) -> None:
        """Read one partition more. With `proof` of the record before `offset`, a topic that is no longer the one it
        was is refused."""
        place = (topic, partition)
        added = self._partitions[place] = _Partition(place, offset, offset, last=proof)
        added.prove(proof)
        self._assigned()

    def remove(self, topic: str, partition: int) -> None:
        """Read it no more; what is queued of it is forgotten."""
        self._partitions.pop((topic, partition), None)
        self._assigned()

    def pause(self, topic: str, partition: int) -> None:
        """Fetch no more of it. What is queued can be taken."""
        self._partitions[topic, partition].paused = True

    def resume(self, topic: str, partition: int) -> None:
        self._partitions[topic, partition].paused = False
        self._dispatch()

    def position(self, topic: str, partition: int) -> int:
        """The offset behind everything that was taken, or passed because it is no record."""
        return self._partitions[topic, partition].position

    def end(self, topic: str, partition: int) -> int:
        """The last known end of what can be read; -1 before the first answer."""
        return self._partitions[topic, partition].end

    @property
    def assigned(self) -> Iterable[Place]:
        return self._partitions.keys()

    @property
    def buffered_bytes(self) -> int:
        """Fetched and not yet taken."""
        return sum(partition.buffered_bytes for partition in self._partitions.values())

    # Taking.

    def take(self, topic: str, partition: int, count_max: int) -> list[Fetched]:
        """The next records of a partition, without waiting."""
        return list(map(fetched_of, self._take(self._partitions[topic, partition], count_max)))

    def take_columns(self, topic: str, partition: int, count_max: int) -> Columns | None:
        """The same as columns; None when there is nothing, and nothing was passed."""
        taken_from = self._partitions[topic, partition]
        before = taken_from.position
        records: Sequence[Any] = ()
        # The parser makes two objects for each record, which die before this returns. The collector of cycles would
        # look at them again and again meanwhile, for half of what reading costs.
        collecting = gc.isenabled()
        gc.disable()
        try:
            records = self._take(taken_from, count_max)
            return Columns.of(records, taken_from.position) if taken_from.position > before else None
        finally:
            records = ()
            if collecting:
                gc.enable()

    def _take(self, partition: _Partition, count_max: int) -> Sequence[Any]:
        records: list[Any] = []
        if partition.failed:
            return records
        before = partition.buffered_bytes
        while partition.segments and len(records) < count_max:
            segment = partition.segments[0]
            try:
                taken = segment.take(count_max - len(records))
            except Damaged as damage:
                self._fail(partition, _damaged(partition, damage))
                break
            if taken and taken[0].offset < partition.position:
                taken = self._behind(partition, taken)
                if partition.failed:
                    break
            records += taken
            partition.position = max(partition.position, segment.next_offset)
            if segment.done:
                partition.buffered_bytes -= segment.size_bytes
                partition.segments.popleft()
        if records:
            self.taken += len(records)
            partition.last = proof_of(records[-1])
        share = self._share
        if partition.buffered_bytes < share <= before or (partition.doubted and not partition.segments):
            self._dispatch()
        return records

    def _behind(self, partition: _Partition, taken: Sequence[Any]) -> list[Any]:
        """The records not before the position, which the rest of their batch came with; the proof is among the
        others."""
        proof, partition.proof = partition.proof, None
        if proof is not None:
            for record in taken:
                if record.offset == proof.offset and proof_of(record) != proof:
                    self._fail(partition, _recreated(partition, proof))
                    return []
        return [record for record in taken if record.offset >= partition.position]

    # Fetching.

    @property
    def _share(self) -> int:
        """Half of what a partition may hold: below it more is fetched, of up to as much again."""
        return max(PARTITION_BYTES_MIN, self._buffer_bytes_max // (2 * max(1, len(self._partitions))))

    def _assigned(self) -> None:
        self._client.watch({topic for topic, _ in self._partitions})
        self._dispatch()

    def _dispatch(self) -> None:
        """Send every fetch that can be sent now."""
        if not self._started or self._rebuilding:
            return
        now, share = asyncio.get_running_loop().time(), self._share
        wanted: defaultdict[int, list[_Partition]] = defaultdict(list)
        again_at: list[float] = []
        for partition in self._partitions.values():
            if partition.fetching or partition.paused or partition.failed or partition.buffered_bytes >= share:
                continue
            if partition.doubted:
                if partition.segments:
                    continue
                partition.doubted = False
                partition.prove(partition.last)
            if partition.retry_at <= now:
                node = self._client.leader(partition.place)
                if node is not None:
                    wanted[node].append(partition)
                    continue
                partition.leaderless = True
                self._leaderless(partition, now)
            again_at.append(partition.retry_at)
        for node, partitions in wanted.items():
            self._dispatch_to(node, partitions, min(share, PARTITION_BYTES_MAX))
        if again_at:
            self._dispatch_at(min(again_at))

    def _relearned(self) -> None:
        """Who leads is known anew: fetch what waited for it."""
        waiting = [partition for partition in self._partitions.values() if partition.leaderless]
        for partition in waiting:
            if self._client.leader(partition.place) is not None:
                partition.leaderless, partition.retry_at = False, 0.0
        if any(not partition.leaderless for partition in waiting):
            self._dispatch()

    def _dispatch_to(self, number: int, partitions: list[_Partition], bytes_max: int) -> None:
        node = self._nodes[number]
        if not node.main and not (node.merging and node.side):
            node.main = True
            wait_ms, side = self._fetch_wait_ms, False
        elif not node.side and not node.merging:
            node.side = True
            wait_ms, side = min(self._fetch_wait_ms, SIDE_WAIT_MS), True
        else:
            return  # The end of the fetch that is under way dispatches again.
        partitions.sort(key=lambda partition: partition.buffered_bytes)  # A full answer leaves out the last ones.
        for partition in partitions:
            partition.fetching = True  # At once: before the task begins, others may dispatch.
        self._spawn(self._fetch(number, partitions, bytes_max, wait_ms=wait_ms, side=side))

    def _dispatch_at(self, when: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_at(when, self._dispatch)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            for partition in self._partitions.values():
                self._fail(partition, _unexpected(self._options, error))

    async def _fetch(
        self, number: int, partitions: Sequence[_Partition], bytes_max: int, *, wait_ms: int, side: bool
    ) -> None:
        topics: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for partition in partitions:
            topics[partition.place[0]].append((partition.place[1], partition.fetch_from, bytes_max))
        request = FetchRequest(wait_ms, 1, 4 * PARTITION_BYTES_MAX, int(self._committed), list(topics.items()))
        node = self._nodes[number]
        found = False
        try:
            response = await self._client.send(number, request, side=side)
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            self._outage(partitions, error)
        else:
            self.unavailable, self._down_since = "", None
            found = self._received(response, {partition.place: partition for partition in partitions})
        finally:
            for partition in partitions:
                partition.fetching = False
            if side:
                node.side = node.merging = False
            else:
                node.main, node.merging = False, node.side and not found
        if found:
            self._on_records()
        self._dispatch()

    def _received(self, response: Any, asked: Mapping[Place, _Partition]) -> bool:
        found = False
        for topic, answers in response.topics:
            for number, code, high, *rest in answers:
                partition = asked[topic, number]
                if self._partitions.get(partition.place) is partition and not partition.failed:
                    found |= self._received_from(partition, code, high, rest, response.API_VERSION)
        return found

    def _received_from(self, partition: _Partition, code: int, high: int, rest: Sequence[Any], version: int) -> bool:
        """Queue what came from one partition; whether that is anything."""
        if code:
            self._refused(partition, code)
            return False
        # From version 11 on a preferred replica stands between the aborted transactions and the records.
        stable, data, aborted = rest[0], rest[-1], rest[-3] if version >= 11 else rest[-2]
        partition.unknown_since = None
        partition.end = stable if self._committed and stable >= 0 else high
        if not data:
            return False
        segment = Segment(data, aborted, partition.fetch_from, committed=self._committed)
        if segment.end == partition.fetch_from:
            self._fail(partition, _cut_off(partition, len(data)))
            return False
        partition.fetch_from = segment.end
        partition.segments.append(segment)
        partition.buffered_bytes += segment.size_bytes
        return True

    # What goes wrong.

    def _refused(self, partition: _Partition, code: int) -> None:
        error = kafka_errors.for_code(code)
        now = asyncio.get_running_loop().time()
        if error is kafka_errors.OffsetOutOfRangeError:
            if partition.proof is not None:
                partition.prove(None)  # Retention may have deleted that record, and none after it.
            elif not partition.segments:
                partition.retry_at = now + self._options.request_timeout_s
                self._spawn(self._out_of_range(partition))
            else:
                partition.retry_at = now + RETRY_S  # The error comes after the records before it.
        elif error is kafka_errors.TopicAuthorizationFailedError:
            self._fail(partition, not_authorized(partition.place[0]))
        elif error is kafka_errors.UnknownTopicOrPartitionError:
            self._leaderless(partition, now)
        else:
            # A leader that has moved, or a broker that is not ready: all others may pass as well.
            partition.retry_at = now + RETRY_S
            self._client.refresh()

    def _leaderless(self, partition: _Partition, now: float) -> None:
        """No broker is known to have it: because it moves, or because it is gone."""
        partition.retry_at = now + RETRY_S
        if not self._client.may_read(partition.place[0]):
            self._fail(partition, not_authorized(partition.place[0]))
            return
        if self._down_since is not None:
            partition.unknown_since = None  # Nobody can tell.
            return
        if partition.unknown_since is None or now - partition.unknown_at > DOUBT_S:
            partition.unknown_since = now
            partition.doubted = True
        elif now - partition.unknown_since > self._gone_s and not self._client.knows(partition.place):
            self._fail(partition, _gone(partition))
        partition.unknown_at = now
        self._client.refresh()

    def _outage(self, partitions: Sequence[_Partition], error: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        self.unavailable = str(self._client.unavailable(error))
        for partition in self._partitions.values():
            partition.unknown_since = None  # Whoever starts again may know no topic yet.
        for partition in partitions:
            partition.retry_at = now + RETRY_S
        self._client.refresh()
        if self._down_since is None:
            self._down_since = now
        elif now - self._down_since > REBUILD_S and not self._rebuilding:
            self._rebuilding = True
            self._spawn(self._rebuild())

    async def _rebuild(self) -> None:
        """Make the client anew, however long it takes."""
        await self._client.close()
        while True:
            try:
                await self._client.start()
                break
            except Unavailable as error:
                self.unavailable = str(error)
                await asyncio.sleep(RETRY_S * 5)
        self._rebuilding, self._down_since = False, None
        self._dispatch()

    async def _out_of_range(self, partition: _Partition) -> None:
        try:
            bounds = (await offsets(self._options, [partition.place], isolation=self._isolation))[partition.place]
        except PenstockError:
            partition.retry_at = 0.0  # It is fetched again, and with it this error comes again.
            self._dispatch()
            return
        if bounds.start <= partition.position <= bounds.end:
            partition.retry_at = 0.0  # Of a follower that lags behind, or of a leader that had just changed.
            self._dispatch()
            return
        topic, number = partition.place
        self._fail(
            partition,
            Refused(
                OUT_OF_RANGE,
                f"Offset {partition.position} of topic {topic} partition {number} is out of range: Kafka has "
                f"{bounds.start} to {bounds.end}. Records were deleted before they were read, or the topic was created "
                "anew. Start from where it is still complete (--from), or give the ingress a new name and a start "
                "position. Nothing was skipped.",
            ),
        )

    def _fail(self, partition: _Partition, error: PenstockError) -> None:
        if not partition.failed:
            partition.failed = True
            self._failed(error)


async def read_range(
    options: KafkaOptions,
    topic: str,
    partition: int,
    start: int,
    end: int | None = None,
    *,
    isolation: Isolation = "read_committed",
) -> list[Fetched]:
    """All records from `start` up to `end`, or to where the partition ends now.

    Raises Unavailable when nothing comes for the length of the request timeout, and what a reader fails with.
    """
    place = (topic, partition)
    if end is None:
        end = (await offsets(options, [place], isolation=isolation))[place].end
    arrived = asyncio.Event()
    failures: list[PenstockError] = []

    def fail(error: PenstockError) -> None:
        failures.append(error)
        arrived.set()

    reader = KafkaReader(options, isolation=isolation, on_records=arrived.set, failed=fail)
    reader.assign({place: start})
    found: list[Fetched] = []
    try:
        if start < end:
            await reader.start()
        while reader.position(*place) < end:
            try:
                async with asyncio.timeout(options.request_timeout_s):
                    await arrived.wait()
            except TimeoutError:
                raise Unavailable(
                    "PEN0720",
                    f"Topic {topic} partition {partition} was read up to offset {reader.position(*place)} of {end}; "
                    f"then nothing came: {reader.unavailable or 'an open transaction may hide it'}. Try again.",
                ) from None
            arrived.clear()
            if failures:
                raise failures[0]
            while records := reader.take(*place, 10_000):
                found += records
    finally:
        await reader.close()
    return [record for record in found if record.offset < end]


def _place(partition: _Partition) -> str:
    return f"topic {partition.place[0]} partition {partition.place[1]}"


def _recreated(partition: _Partition, proof: Proof) -> Refused:
    return Refused(
        "PEN0724",
        f"The record at offset {proof.offset} of {_place(partition)} is not the one that was read before: the topic "
        "was deleted and created anew, so positions in it mean nothing any more. Give the ingress a new name to read "
        "the new topic from its beginning, or start fresh with --from none. Nothing was skipped.",
    )


def _gone(partition: _Partition) -> Refused:
    return Refused(
        "PEN0722",
        f"No broker knows {_place(partition)} any more, which was read up to offset {partition.position}. If it was "
        "deleted on purpose, remove it from the ingress; otherwise restore it, with its records.",
    )


def _damaged(partition: _Partition, damage: Damaged) -> ProtocolError:
    return ProtocolError(
        "PEN0725",
        f"Records of {_place(partition)} after offset {partition.position} can't be read: {damage}. Start again: they "
        "are fetched anew. If it stays, the broker's copy is damaged: restore it from a replica.",
    )


def _cut_off(partition: _Partition, size: int) -> ProtocolError:
    return ProtocolError(
        "PEN0725",
        f"Kafka answered {size:,} bytes for {_place(partition)} at offset {partition.position}, which hold no whole "
        "batch. Look at the broker's log segment, and at whatever stands between.",
    )


def _unexpected(options: KafkaOptions, error: BaseException) -> ProtocolError:
    return ProtocolError(
        "PEN0725",
        f"An answer of Kafka at {options.bootstrap} can't be understood: {type(error).__name__}: {error}. Check that "
        "the brokers' version is supported: 3.9 to 4.x.",
    )
