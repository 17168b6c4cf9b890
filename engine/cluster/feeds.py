"""What a task reads of the application's own topics: frames of other tasks, and requests from outside.

What always holds: a frame of a newer epoch stays where it is until the task has cut (Rule F), and `cut_due` names the
cut; a record that is no frame or request becomes a dead letter, and the next one is read.
"""

from __future__ import annotations

from collections import deque

from penstock.checkpoint.snapshot import Admission, SnapshotTask
from penstock.engine.effects import Deliveries, FrameInput, Input, Rejected
from penstock.engine.feeds import FOREIGN, FeedKind, RequestFeed
from penstock.errors import ProtocolError
from penstock.records import Envelope, EpochFrame
from penstock.router.frames import FENCE_SOURCE, decode_frames
from penstock.router.kafka_reader import KafkaReader
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_routing import key_and_headers
from penstock.router.kafka_topics import is_incarnation
from penstock.router.requests import decode_request

RECORDS_MAX = 64
"""Records of an inbox taken at a time: each may hold hundreds of messages."""


class TopicInbox:
    """The inbox of one task: partition `task` of `topic`."""

    name = "inbox"
    kind: FeedKind = "inbox"
    done = True

    def __init__(
        self, reader: KafkaReader, topic: str, task: int, snapshot: SnapshotTask, position: int, foreign: int
    ) -> None:
        """Read from `position` on; `foreign` is where the next foreign record may stand."""
        self._reader = reader
        self._topic = topic
        self._task = task
        self._foreign = foreign
        self._snapshot = snapshot
        self._waiting: deque[tuple[int, EpochFrame]] = deque()
        """Frames taken from the reader and not yet admitted, with the position behind each."""
        self.cut_due = 0
        """The checkpoint to cut at before the next frame can be processed; 0 for none."""
        self._closed = False
        reader.add(topic, task, position)

    @property
    def behind(self) -> int:
        """Records that were not taken yet, as far as is known. None are when the task goes away."""
        if self._closed:
            return 0
        return len(self._waiting) + max(0, self._reader.end(self._topic, self._task) - self._position)

    @property
    def _position(self) -> int:
        return self._reader.position(self._topic, self._task)

    def take(self, count_max: int) -> list[Input]:
        inputs: list[Input] = []
        passed = 0
        if not self._waiting:
            for record in self._reader.take(self._topic, self._task, RECORDS_MAX):
                inputs += self._open(record)
        while self._waiting and count_max > 0:
            position, frame = self._waiting[0]
            admission = self._snapshot.admit(frame)
            if admission is Admission.CUT_FIRST:
                self.cut_due = frame.epoch
                break
            self._waiting.popleft()
            if admission is Admission.PROCESS:
                inputs.append(FrameInput(position, frame))
                count_max -= len(frame.messages)
            else:
                passed = position
        if passed and not (inputs and isinstance(inputs[-1], FrameInput) and inputs[-1].position >= passed):
            inputs.append(FrameInput(passed, None))
        return inputs

    def _open(self, record: Fetched) -> list[Input]:
        """Queue the frames of a record. Only the last of them moves the position behind it: after a restore to a cut
        between them it is read again, and what was admitted of it is dropped by its sequence."""
        frames = frames_of(record, f"{self._topic}-{self._task}")
        if isinstance(frames, Rejected):
            return [Deliveries(FOREIGN, record.offset + 1, [], [frames])] if record.offset >= self._foreign else []
        for number, frame in enumerate(frames, 1):
            self._waiting.append((record.offset + (number == len(frames)), frame))
        return []

    def close(self) -> None:
        self._closed = True
        self._reader.remove(self._topic, self._task)


class TopicRequests:
    """Requests for one task: partition `task` of `topic`."""

    name = RequestFeed.SOURCE
    kind: FeedKind = "requests"
    done = True

    def __init__(self, reader: KafkaReader, topic: str, task: int, position: int) -> None:
        self._reader = reader
        self._topic = topic
        self._task = task
        self._closed = False
        reader.add(topic, task, position)

    @property
    def behind(self) -> int:
        if self._closed:
            return 0
        position = self._reader.position(self._topic, self._task)
        return max(0, self._reader.end(self._topic, self._task) - position)

    def take(self, count_max: int) -> list[Input]:
        records = self._reader.take(self._topic, self._task, count_max)
        if not records:
            return []
        found = [request_of(record, f"{self._topic}-{self._task}") for record in records]
        envelopes = [each for each in found if isinstance(each, Envelope)]
        rejected = [each for each in found if isinstance(each, Rejected)]
        return [Deliveries(RequestFeed.SOURCE, records[-1].offset + 1, envelopes, rejected)]

    def close(self) -> None:
        self._closed = True
        self._reader.remove(self._topic, self._task)


def frames_of(record: Fetched, partition: str) -> list[EpochFrame] | Rejected:
    """The frames of a record of an inbox, which carry messages; or what is to be said of one that is none."""
    place = f"Offset {record.offset} of {partition}"
    try:
        frames = decode_frames(record.value or b"", place=place)
    except ProtocolError as error:
        return [] if is_incarnation(record.key) else _rejected(error, place, record)
    return [frame for frame in frames if frame.source != FENCE_SOURCE]


def request_of(record: Fetched, partition: str) -> Envelope | Rejected | None:
    """The request that a record is, or what is to be said of one that is none; None for the one that says whose the
    topic is."""
    place = f"Offset {record.offset} of {partition}"
    try:
        return decode_request(record.value or b"", place=place)
    except ProtocolError as error:
        return None if is_incarnation(record.key) else _rejected(error, place, record)


def _rejected(error: ProtocolError, place: str, record: Fetched) -> Rejected:
    headers = key_and_headers(record.key, record.headers)
    return Rejected(error.code, error.message, place, "", "", record.value or b"", headers)
