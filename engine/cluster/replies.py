"""Answers on their way back to the worker whose caller waits (PROTOCOL 22).

    task: reply -> row of its snapshot -> COMPLETE -> topic of replies -> worker: caller

What always holds: an answer is a row like any other until it is in the topic, so it survives its task; it leaves after
the checkpoint that decides it; it may come more than once, and the second time nobody waits any more. The topic has no
markers: what is not known to be written is written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

import msgspec

from penstock.logs import logger
from penstock.records import EgressRow, Frozen, Reply
from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import INCARNATION_KEY
from penstock.router.kafka_writer import KafkaWriter

REPLIES = "penstock/replies"
"""The egress of answers, which every application of several workers has."""
RECORDS_MAX = 10_000

_decode = msgspec.msgpack.Decoder(Reply).decode


class Replies:
    """Both ends, for one worker: the sink of what its tasks answer, and what its own callers get."""

    def __init__(self, worker: str, topic: str, partitions: int, reader: KafkaReader, writer: KafkaWriter) -> None:
        self._topic = topic
        self._partition = crc32(worker.encode()) % partitions
        self._reader = reader
        self._writer = writer
        self.prefix = f"{self._partition}/{worker}/"
        """What the names of requests from here begin with: it leads their answers back."""
        self._mine = self.prefix.encode()
        self._here = b"%d/" % self._partition
        """What the keys of all answers in this partition begin with."""

    async def start(self, kafka: KafkaOptions) -> None:
        """Listen from now on."""
        place = (self._topic, self._partition)
        self._reader.add(*place, (await offsets(kafka, [place]))[place].end)

    def take(self) -> list[Reply]:
        """The answers to requests from here that have come since the last call."""
        replies = []
        for record in self._reader.take(self._topic, self._partition, RECORDS_MAX):
            key = record.key or b""
            if key.startswith(self._mine) or not key.startswith((self._here, INCARNATION_KEY)):
                replies += self._open(record)
        return replies

    def _open(self, record: Fetched) -> list[Reply]:
        """The answer in a record; none, and it is said, in one that nobody here has written."""
        try:
            return [_decode(record.value or b"")]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.error(
                "PEN0512 Offset %d of %s-%d holds no answer: %s. Only Penstock may write there; find out who does.",
                record.offset,
                self._topic,
                self._partition,
                error,
            )
            return []

    # As a sink.

    async def open(self) -> None:
        pass  # The writer is open as long as the worker.

    async def read_marker(self, task: int) -> dict[int, int]:
        return {}

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        for row in rows:
            assert row.key is not None
            partition, _, _ = row.key.partition(b"/")
            if partition.isdigit():  # Others are from before the application had several workers.
                self._writer.append(Record(self._topic, int(partition), row.value, key=row.key))
        await self._writer.flush()

    async def release(self, task: int, *, final: bool) -> None:
        pass

    async def tick(self) -> None:
        pass

    async def close(self, final: bool) -> None:
        pass


def replies_apart(frozen: Frozen) -> Frozen:
    """What a task froze, before its answers became rows."""
    egress = {name: rows for name, rows in frozen.egress.items() if name != REPLIES}
    answers = [_decode(row.value) for row in frozen.egress.get(REPLIES, ())]
    return frozen._replace(egress=egress, replies=[*frozen.replies, *answers])
