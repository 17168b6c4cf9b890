"""Writes records under one transactional id: all of a commit become visible together, or none.

    fence -> commit -> fence -> commit ...

What always holds: a commit follows a fence, so each transaction has an epoch of its own, and a request that was delayed
on its way can't decide a later one (KAFKA-17754); a transaction is committed only when every one of its batches was
acknowledged, which the client library does not look at by itself. What was committed before, and by whom, is not known
here: whoever needs it reads a marker after the fence.

After a fence the first request of a transaction never meets the end of the last one, on which the client library would
sleep 20 ms. The fence itself may, and then tries again within a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from penstock.errors import Unavailable
from penstock.faults import fault
from penstock.router.kafka_batches import (
    BATCH_BYTES,
    Fields,
    RecordsRefused,
    Spread,
    coded,
    fill,
    hash_of,
    is_about_topic,
    is_too_large,
    refusal,
)
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_producer import connect, discard, partitions_of, renew, renewable

RETRY_BACKOFF_MS = 10
"""Ten times less than the client library's own: to finish what another left open takes a few milliseconds."""
FENCE_S = 10.0
COMMIT_S = 20.0
TRANSACTION_TIMEOUT_MS = 30_000
"""More than `COMMIT_S`, or the brokers would abort what we still wait for. So long can a process that froze inside a
transaction hold up those who read only what is committed, unless somebody takes over its task."""
TOPIC_PATIENCE_S = 5.0
RECORDS_MAX = 8_192
"""Of a batch: it bounds how long the event loop stands still while one is filled, to some 4 ms."""

_Place: TypeAlias = tuple[str, int]
_topic_of: Callable[[Fields], str] = itemgetter(0)


class _Failure(NamedTuple):
    """A batch that was not written: the records it held, as a range of those of its partition."""

    place: _Place
    start: int
    size: int
    error: BaseException


class KafkaTransactions:
    """See the module. `compression` is gzip, snappy, lz4 or zstd."""

    def __init__(self, options: KafkaOptions, transactional_id: str, *, compression: str | None = None) -> None:
        self._options = options
        self._id = transactional_id
        self._compression = compression
        self._producer: Any = None
        self._spreads: dict[str, Spread] = {}
        self._limits: dict[str, int] = {}
        """Topics that refuse a full batch, and what they may take."""
        self.ready = False
        """Whether a fence succeeded and nothing was committed since."""

    @property
    def held(self) -> bool:
        """Whether the id was ours when we last heard, so that a fence renews it and takes it from nobody."""
        return self._producer is not None and renewable(self._producer)

    async def fence(self) -> bool:
        """Take the transactional id, or renew it: older owners can't commit any more, and what they left open is
        finished.

        Returns whether it was ours since our own last fence: then what we knew of the committed records still holds.
        Raises Fenced when somebody has taken it since; the next call takes it back. Raises Unavailable when that is not
        known.
        """
        self.ready = False
        renewing = self.held
        try:
            async with asyncio.timeout(FENCE_S):
                await (renew(self._producer) if renewing else self._replace())
        except BaseException as error:
            await self._drop()
            if isinstance(error, Exception):
                raise coded(error, f"Taking the transactional id {self._id}") from error
            raise
        self.ready = True
        fault("transaction.fenced")
        return renewing

    async def commit(self, records: Sequence[Fields]) -> list[int]:
        """Write `records` in one transaction, those of a partition in this order. Returns the offset of each.

        Raises RecordsRefused when Kafka will never take some of them: nothing is visible then. Raises Unavailable when
        the outcome is not known, and Fenced when another owner has taken the id. In any case, fence before the next.
        """
        assert self.ready, "a commit follows a fence"
        try:
            async with asyncio.timeout(COMMIT_S):
                return await self._commit(records)
        except RecordsRefused:
            raise
        except BaseException as error:
            await self._drop()
            if isinstance(error, Exception):
                raise coded(error, f"Committing under the transactional id {self._id}") from error
            raise
        finally:
            self.ready = False

    async def close(self) -> None:
        """Let go of the id. Nothing may be under way."""
        await self._drop()

    async def _drop(self) -> None:
        self.ready = False
        producer, self._producer = self._producer, None
        await discard(producer)

    async def _replace(self) -> None:
        await self._drop()
        self._producer = await connect(
            self._options,
            compression=self._compression,
            transactional_id=self._id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )

    # One transaction.

    async def _commit(self, records: Sequence[Fields]) -> list[int]:
        places = self._place(records, await self._partitions(records))
        limits = dict(self._limits)
        while True:
            await self._producer.begin_transaction()
            fault("transaction.begun")
            offsets, failures = await self._send_all(records, places, limits)
            if not failures:
                fault("transaction.sent")
                await self._producer.commit_transaction()
                fault("transaction.committed")
                return offsets
            refused = self._judge(failures, places, limits)
            await self._producer.abort_transaction()
            if refused:
                raise _refused_error(refused)
            # Smaller batches will show which record it is, or pass. Without the certainty that nobody had the id
            # meanwhile, the records might be committed already.
            if not await self.fence():
                raise Unavailable("PEN0710", f"Batches for {self._id} were too large, and are tried smaller.")

    async def _partitions(self, records: Sequence[Fields]) -> dict[str, int]:
        """How many partitions each topic has. Raises RecordsRefused for topics that nobody can write to."""
        counts: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for topic in dict.fromkeys(map(_topic_of, records)):
            try:
                counts[topic] = await partitions_of(self._producer, topic, TOPIC_PATIENCE_S)
            except Exception as error:
                reason = refusal(error)
                if reason is None:
                    raise
                reasons[topic] = f"topic {topic}: {reason}"
        if reasons:
            raise _refused_error(
                {index: reasons[topic] for index, topic in enumerate(map(_topic_of, records)) if topic in reasons}
            )
        return counts

    def _place(self, records: Sequence[Fields], counts: Mapping[str, int]) -> dict[_Place, list[int]]:
        """The records of each partition, as their indices."""
        for topic in counts:
            self._spreads.setdefault(topic, Spread()).turn()  # Few and full batches now, all partitions in time.
        places: defaultdict[_Place, list[int]] = defaultdict(list)
        keyed = {topic: [places[topic, partition].append for partition in range(counts[topic])] for topic in counts}
        refused: dict[int, str] = {}
        for index, (topic, partition, value, key, _, _) in enumerate(records):
            if partition is not None:
                if not 0 <= partition < counts[topic]:
                    refused[index] = f"topic {topic} has no partition {partition}: it has {counts[topic]}"
                places[topic, partition].append(index)
            elif key is not None:
                appends = keyed[topic]
                appends[hash_of(key) % len(appends)](index)
            else:
                chosen = self._spreads[topic].choose(key, len(value or b""), counts[topic])
                places[topic, chosen].append(index)
        if refused:
            raise _refused_error(refused)
        return {place: indices for place, indices in places.items() if indices}

    async def _send_all(
        self, records: Sequence[Fields], places: Mapping[_Place, Sequence[int]], limits: Mapping[str, int]
    ) -> tuple[list[int], list[_Failure]]:
        """Send every batch of the transaction and wait for all answers."""
        offsets = [-1] * len(records)
        failures: list[_Failure] = []

        async def send(place: _Place, indices: Sequence[int]) -> None:
            topic, partition = place
            limit = limits.get(topic, BATCH_BYTES)
            sent: list[tuple[int, int, asyncio.Future[Any]]] = []
            start = 0
            while start < len(indices):
                builder = self._producer.create_batch()
                count = fill(builder, [records[i] for i in indices[start : start + RECORDS_MAX]], limit)
                sent.append((start, count, await self._producer.send_batch(builder, topic, partition=partition)))
                fault("transaction.half")
                start += count
            await asyncio.wait([future for _, _, future in sent])
            for start, count, future in sent:
                error = future.exception()
                if error is not None:
                    failures.append(_Failure(place, start, count, error))
                    for _, _, later in sent:  # Those behind it fail for the gap that it left.
                        later.exception()
                    return
                first = future.result().offset
                for offset, index in enumerate(indices[start : start + count], first):
                    offsets[index] = offset

        await asyncio.gather(*(send(place, indices) for place, indices in places.items()))
        return offsets, failures

    def _judge(
        self, failures: Sequence[_Failure], places: Mapping[_Place, Sequence[int]], limits: dict[str, int]
    ) -> dict[int, str]:
        """The records that can never be written, and why. When none is named, `limits` are smaller than before.

        Raises the first error that is about no record.
        """
        refused: dict[int, str] = {}
        for place, start, size, error in failures:
            topic = place[0]
            reason = refusal(error)
            if reason is None:
                raise error
            if is_about_topic(error):
                hit = [index for (name, _), indices in places.items() if name == topic for index in indices]
                refused |= dict.fromkeys(hit, f"topic {topic}: {reason}")
            elif size == 1:
                refused[places[place][start]] = f"topic {topic}: {reason}"
            else:
                limits[topic] = max(1, limits.get(topic, BATCH_BYTES) // 4)
                if is_too_large(error):
                    self._limits[topic] = limits[topic]
        return refused


def _refused_error(refused: Mapping[int, str]) -> RecordsRefused:
    first = min(refused)
    return RecordsRefused(
        "PEN0709",
        f"Kafka refuses {len(refused)} of the records to commit, the first because of {refused[first]}. "
        "Correct the topic or the records.",
        sorted(refused.items()),
    )
