"""Frames on their way to the inboxes of an application: many of them in one record (PROTOCOL 4).

What always holds: frames for one inbox are written in the order they were sent; `seal` leaves nothing in memory that
the writer does not know; so when the writer has flushed after a `seal`, everything sent before is durable, and when
`probe` has nothing to ask any more, it lies before the `ends`.
"""

from __future__ import annotations

import time
from asyncio import Future
from collections.abc import Callable
from functools import partial
from operator import itemgetter

from penstock.records import Envelope, EpochFrame
from penstock.router.frames import encode_frames
from penstock.router.kafka_batches import Record
from penstock.router.kafka_writer import KafkaWriter

SEAL_S = 0.002
"""How long frames wait for others while there is something to do: framing is the largest lever on throughput."""
RECORD_BYTES = 64 << 10
"""A record is closed when the messages in it are about as large."""
MESSAGE_OVERHEAD_BYTES = 48

_payload_of: Callable[[Envelope], bytes] = itemgetter(2)


class FrameWriter:
    """See the module. One per worker; its tasks share it, and records hold frames of any of them."""

    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic
        self._open: dict[int, list[EpochFrame]] = {}
        self._bytes: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._unplaced: set[int] = set()
        """Inboxes that hold a record of which Kafka no longer knew where it stands, behind the last that it knew."""
        self._opened_s = 0.0
        """When the first of the open frames was sent."""
        self.sent = 0
        """Records written since the start."""

    def send(self, destination: int, frame: EpochFrame) -> None:
        if not self._open:
            self._opened_s = time.monotonic()
        self._open.setdefault(destination, []).append(frame)
        size = self._bytes.get(destination, 0)
        size += sum(map(len, map(_payload_of, frame.messages))) + MESSAGE_OVERHEAD_BYTES * len(frame.messages)
        self._bytes[destination] = size
        if size >= RECORD_BYTES:
            self._close(destination)

    def seal_due(self, *, idle: bool) -> None:
        """The same, if frames have waited long enough, or nothing else is to be done."""
        if self._open and (idle or time.monotonic() - self._opened_s >= SEAL_S):
            self.seal()

    def seal(self) -> None:
        """Give everything sent so far to the writer."""
        for destination in list(self._open):
            self._close(destination)

    def inbox_end(self, task: int) -> int:
        """The offset behind the last record of this worker that is known to be durable."""
        return self._ends.get(task, 0)

    @property
    def ends(self) -> dict[int, int]:
        """The same for every inbox written to since `begin_attempt`."""
        return dict(self._ends)

    def probe(self) -> bool:
        """Ask where the records end of which Kafka did not know it, by a record without frames: it stands behind them.
        Returns whether there were any; then flush, and look again."""
        unplaced, self._unplaced = self._unplaced, set()
        for inbox in unplaced:
            record = Record(self._topic, inbox, encode_frames([]))
            self._writer.append(record).add_done_callback(partial(self._written, inbox, records=0))
        return bool(unplaced)

    def begin_attempt(self) -> None:
        """Forget what an earlier attempt has sent: what of it is not written yet need not be."""
        self._open.clear()
        self._bytes.clear()
        self._ends.clear()
        self._unplaced.clear()

    def _close(self, destination: int) -> None:
        record = Record(self._topic, destination, encode_frames(self._open.pop(destination)))
        del self._bytes[destination]
        self.sent += 1
        self._writer.append(record).add_done_callback(partial(self._written, destination))

    def _written(self, destination: int, future: Future[int], *, records: int = 1) -> None:
        """So many records of frames stand at this offset and not before it."""
        if future.cancelled() or future.exception() is not None:
            return
        offset = future.result()
        if offset < 0:
            self._unplaced.add(destination)
        else:
            self._unplaced.discard(destination)
            self._ends[destination] = max(offset + records, self._ends.get(destination, 0))
