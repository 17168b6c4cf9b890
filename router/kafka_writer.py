"""Writes records to Kafka, many small appends at a time as few large batches, and keeps at it through any outage.

    append -> queue of its partition -> one batch under way per partition -> acknowledged: the futures get offsets
                      ^                               |
                      '--- failed: a new producer ----'

What always holds: the records of one partition are written in the order of their appends; a record leaves its queue
when all replicas in sync have it, or when Kafka will never take it. After a failure a new producer sends again from the
first unacknowledged record of each partition, so a record may be there twice, though never out of order: whoever reads
drops what it has seen. Nothing here is bounded in memory: look at `unflushed_bytes` before appending more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any, TypeAlias

from penstock.errors import PenstockError
from penstock.router.kafka_batches import (
    BATCH_BYTES,
    Record,
    RecordsRefused,
    Spread,
    coded,
    fill,
    is_about_topic,
    is_too_large,
    refusal,
)
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_producer import connect, discard, partitions_of

RECORD_OVERHEAD_BYTES = 300
"""Of a waiting record beside its value: a tuple, a future, and the places of both in a queue."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
"""After an outage of any length the first record is written at most so long after the brokers answer again."""
LATE_S = 2.0
"""A batch that waits longer is a reason to say so: a healthy cluster answers in milliseconds."""
STUCK_S = 20.0
"""A batch that waits longer is given to a new producer. The client library retries by itself meanwhile, which mends a
restart of a broker, but not every move of a partition."""
TOPIC_PATIENCE_S = 10.0
"""How long a topic may be unknown before its records are refused: one that was just created is known in a second."""

_Entries: TypeAlias = deque[tuple[Record, asyncio.Future[int]]]


class _Queue:
    """What waits for one partition; its first `under_way` records are being sent."""

    __slots__ = ("bytes_max", "entries", "key", "since", "under_way")

    def __init__(self, topic: str, partition: int) -> None:
        self.key = (topic, partition)
        self.entries: _Entries = deque()
        self.under_way = 0
        self.since = 0.0
        """When they were sent."""
        self.bytes_max = BATCH_BYTES


class _Topic:
    """A topic that is written to. While its partitions are not known, its records wait here."""

    __slots__ = ("held", "lookup", "partitions", "spread")

    def __init__(self) -> None:
        self.partitions = 0
        self.spread = Spread()
        self.held: _Entries = deque()
        self.lookup: asyncio.Task[None] | None = None


class KafkaWriter:
    """See the module. `failed` is told what no retry can mend, once for each batch of records that are given up; their
    futures get the same error. `compression` is gzip, snappy, lz4 or zstd."""

    def __init__(
        self,
        options: KafkaOptions,
        *,
        compression: str | None = None,
        failed: Callable[[PenstockError], None] | None = None,
    ) -> None:
        self._options = options
        self._compression = compression
        self._failed = failed
        self._producer: Any = None
        self._generation = 0
        """Counts producers: what an earlier one still reports is of no interest."""
        self._queues: dict[tuple[str, int], _Queue] = {}
        self._topics: dict[str, _Topic] = {}
        self._ready: dict[_Queue, None] = {}
        """Queues with records and nothing under way, in the order they became so."""
        self._broken: BaseException | None = None
        self._refusal: PenstockError | None = None
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.unflushed = 0
        """Records appended and not yet acknowledged."""
        self.unflushed_bytes = 0
        """About what they hold."""
        self.written = 0
        """Records acknowledged since the start."""
        self.unavailable = ""
        """Why nothing is acknowledged at present; empty when all is well."""

    async def start(self) -> None:
        """Connect. Raises Unavailable when no broker answers, ConfigurationError when they refuse us."""
        self._producer = await connect(self._options, compression=self._compression)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._pump()), loop.create_task(self._watch())]

    async def close(self) -> None:
        """Stop. What is not acknowledged is given up: flush first. Its futures are cancelled."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cancel_lookups()
        for entries in self._waiting():
            for _, future in entries:
                future.cancel()
            entries.clear()
        self.unflushed = self.unflushed_bytes = 0
        self._generation += 1
        producer, self._producer = self._producer, None
        await discard(producer)

    def append(self, record: Record) -> asyncio.Future[int]:
        """Write `record` behind all that was appended for its partition. Never waits.

        The future gets its offset, or -1 when the record is written and Kafka no longer knows where. It gets
        RecordsRefused when Kafka will never take the record.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.unflushed += 1
        self.unflushed_bytes += _size(record)
        topic = self._topics.get(record.topic)
        if topic is None:
            topic = self._topics[record.topic] = _Topic()
        if topic.partitions and not topic.held:
            self._enqueue(topic, record, future)
        else:
            topic.held.append((record, future))
            self._wake.set()
        return future

    async def flush(self) -> None:
        """Return when all that was appended so far is durable, however long that takes.

        Raises the error of the first record that Kafka refused since the start: from then on there is a gap.
        """
        tails = [queue.entries[-1][1] for queue in self._queues.values() if queue.entries]
        # A held record has no partition yet, so each may be the last of one.
        tails += [future for topic in self._topics.values() for _, future in topic.held]
        if tails:
            await asyncio.wait(tails)
        if self._refusal is not None:
            raise self._refusal

    # Queues.

    def _waiting(self) -> Iterator[_Entries]:
        yield from (queue.entries for queue in self._queues.values())
        yield from (topic.held for topic in self._topics.values())

    def _enqueue(self, topic: _Topic, record: Record, future: asyncio.Future[int]) -> None:
        partition = record.partition
        if partition is None:
            partition = topic.spread.choose(record.key, len(record.value or b""), topic.partitions)
        key = (record.topic, partition)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(*key)
        queue.entries.append((record, future))
        if not queue.under_way and queue not in self._ready:
            self._ready[queue] = None
            self._wake.set()

    def _remove(self, entries: _Entries, count: int) -> list[asyncio.Future[int]]:
        """Take the first `count` records out of a queue, as settled."""
        futures = []
        size = 0
        for _ in range(count):
            record, future = entries.popleft()
            size += _size(record)
            futures.append(future)
        self.unflushed -= count
        self.unflushed_bytes -= size
        return futures

    def _settle(self, queue: _Queue, offset: int) -> None:
        """What is under way is durable, from `offset` on."""
        count, queue.under_way = queue.under_way, 0
        self.written += count
        for number, future in enumerate(self._remove(queue.entries, count)):
            if not future.done():
                future.set_result(offset + number if offset >= 0 else -1)
        if queue.entries:
            self._ready[queue] = None
            self._wake.set()
        self.unavailable = ""

    def _refuse(self, entries: _Entries, count: int, where: str, reason: str) -> None:
        """Kafka will never take the first `count` records: give them up."""
        error = RecordsRefused(
            "PEN0709", f"Kafka refuses a record for {where}: {reason}. Correct the topic or the record.", [(0, reason)]
        )
        for future in self._remove(entries, count):
            if not future.done():
                future.set_exception(error)
                future.exception()  # Whoever only flushes never looks at it, which is no reason for a warning.
        self._refusal = self._refusal or error
        if self._failed is not None:
            self._failed(error)

    # The producer.

    async def _rebuild(self) -> None:
        """Replace a producer that failed, and send everything again that it did not get acknowledged."""
        self._generation += 1
        producer, self._producer = self._producer, None
        self.unavailable = str(coded(self._broken or TimeoutError(), "Writing"))
        await self._cancel_lookups()
        await discard(producer)
        delay_s = BACKOFF_FIRST_S
        while self._producer is None:
            try:
                self._producer = await connect(self._options, compression=self._compression)
            except PenstockError as error:
                # Also what a person must mend: the records are safe here, and permissions do come back.
                self.unavailable = str(error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, BACKOFF_MAX_S)
        self._broken = None
        for queue in self._queues.values():
            queue.under_way = 0
            if queue.entries:
                self._ready[queue] = None

    async def _pump(self) -> None:
        """Keep one batch of every partition under way."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._broken is not None:
                await self._rebuild()
            for name, topic in self._topics.items():
                if topic.held and topic.lookup is None:
                    topic.lookup = asyncio.get_running_loop().create_task(self._look_up(name, topic))
            ready, self._ready = self._ready, {}
            for queue in ready:
                # It may have been sent, as it became ready again while another was.
                if self._broken is None and queue.entries and not queue.under_way:
                    await self._send(queue)

    async def _send(self, queue: _Queue) -> None:
        topic, partition = queue.key
        known = self._topics[topic].partitions = len(self._producer.client.cluster.partitions_for_topic(topic) or ())
        if partition >= known:
            self._hold(queue)
            return
        builder = self._producer.create_batch()
        queue.under_way = fill(builder, map(itemgetter(0), queue.entries), queue.bytes_max)
        queue.since = time.monotonic()
        try:
            # It does not wait: the partition is known, and nothing of it is under way.
            future = await self._producer.send_batch(builder, topic, partition=partition)
        except Exception as error:  # noqa: BLE001  # Whatever it is, this producer is of no more use.
            self._break(error)
        else:
            future.add_done_callback(partial(self._sent, self._generation, queue))

    def _sent(self, generation: int, queue: _Queue, outcome: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if outcome.cancelled() else outcome.exception()
        if generation != self._generation:
            return
        if error is None:
            self._settle(queue, outcome.result().offset)
            return
        reason = refusal(error)
        if reason is not None and queue.under_way > 1 and not is_about_topic(error):
            queue.bytes_max = max(1, queue.bytes_max // 4)  # Smaller batches may pass, or show which record it is.
        elif reason is not None:
            topic, partition = queue.key
            self._refuse(queue.entries, queue.under_way, f"topic {topic} partition {partition}", reason)
            if not is_too_large(error):
                queue.bytes_max = BATCH_BYTES
        self._break(error)  # A batch that is left out leaves a gap in the sequence, which the broker would refuse.

    def _break(self, error: BaseException) -> None:
        self._broken = self._broken or error
        self._wake.set()

    # Topics.

    def _hold(self, queue: _Queue) -> None:
        """The producer does not know the partition: its records wait until more is known of the topic."""
        topic, partition = queue.key
        held = [(record._replace(partition=partition), future) for record, future in queue.entries]
        queue.entries.clear()
        self._topics[topic].held.extendleft(reversed(held))
        self._wake.set()

    async def _look_up(self, name: str, topic: _Topic) -> None:
        """Learn how many partitions a topic has, then let the records go that wait for it."""
        try:
            topic.partitions = await partitions_of(self._producer, name, TOPIC_PATIENCE_S)
        except Exception as error:  # noqa: BLE001  # Either there is no such topic, or the brokers are away.
            reason = refusal(error)
            if reason is None:
                self._break(error)
            else:
                self._refuse(topic.held, len(topic.held), f"topic {name}", reason)
        else:
            self._release(name, topic)
        finally:
            topic.lookup = None

    def _release(self, name: str, topic: _Topic) -> None:
        while topic.held:
            partition = topic.held[0][0].partition
            if partition is not None and partition >= topic.partitions:
                self._refuse(topic.held, 1, f"topic {name} partition {partition}", f"it has {topic.partitions}")
            else:
                self._enqueue(topic, *topic.held.popleft())

    async def _cancel_lookups(self) -> None:
        lookups = [topic.lookup for topic in self._topics.values() if topic.lookup is not None]
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    async def _watch(self) -> None:
        """Notice batches that nobody answers."""
        while True:
            await asyncio.sleep(LATE_S / 2)
            since = min((queue.since for queue in self._queues.values() if queue.under_way), default=None)
            waited_s = 0.0 if since is None else time.monotonic() - since
            if waited_s > LATE_S and self._broken is None:
                error = TimeoutError(f"no acknowledgement for {waited_s:.0f} s")
                self.unavailable = str(coded(error, "Writing"))
                if waited_s > STUCK_S:
                    self._break(error)


def _size(record: Record) -> int:
    return len(record.value or b"") + len(record.key or b"") + RECORD_OVERHEAD_BYTES
