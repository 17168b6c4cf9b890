"""What the log of an application has kept of the way from one checkpoint to another.

    two manifests -> deltas of each task, with the turns it took -> the inputs of these turns, read once more

What always holds: log and inputs are only read, each inbox once; a turn gets exactly what it got then, or an error says
what is missing. What is done with it is for others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.checkpoint.control import Part
from penstock.engine.build import build_ingress, missing_client
from penstock.engine.effects import Deliveries, FrameInput, Input, Performed, Rejected
from penstock.engine.feeds import FOREIGN, IngressFeed, RequestFeed
from penstock.engine.offline import Recorded
from penstock.errors import Refused
from penstock.functions.app import App, Ingress
from penstock.functions.io import FileIngress
from penstock.functions.kafka import KafkaIngress
from penstock.records import FRAMES, PERFORMED, Envelope, EpochFrame, Frozen, TaskMeta
from penstock.router.frames import FENCE_SOURCE
from penstock.router.ingress import Chunk, Position, Progress, Reader, reader_for, record_of
from penstock.router.kafka_options import KafkaOptions

if TYPE_CHECKING:  # It needs the client library, which not every installation has.
    from penstock.engine.kafka_recording import KafkaRecords


class Interval(NamedTuple):
    """What one delta of a task tells: how it got to the cut of `checkpoint`."""

    attempt: int
    checkpoint: int
    frozen: Frozen
    anew: bool
    """Whether another process began it than the one that made the cut before: handlers that waited began anew."""


class Recording:
    """From checkpoint `first` to checkpoint `last` of an application."""

    def __init__(self, recorded: Recorded, first: int, last: int) -> None:
        """Raises InvalidInput for a checkpoint that is not retained, and Refused when `last` does not follow from
        `first`."""
        self._recorded = recorded
        self.first = recorded.manifest(recorded.retained(first))
        self.last = recorded.manifest(recorded.retained(last))
        follows = first < last and self.last.lineage.contains(self.first.lineage.attempt, first)
        if not follows or self.first.generation != self.last.generation:
            raise Refused(
                "PEN0443",
                f"Checkpoint {last} does not follow from checkpoint {first}: it is not newer, or somebody went back to "
                "one before, or changed the parallelism in between. Choose two of one history: penstock checkpoint "
                "list.",
            )

    def intervals(self, task: int) -> Iterator[Interval]:
        """What the task did between the checkpoints, oldest first."""
        recorded, part = self._recorded, self.last.parts[task]
        deltas = recorded.deltas(part)
        attempt, before = self.first.lineage.attempt, self.first.checkpoint
        moved = {(number, cut) for number, each, cut in recorded.moved if each == task}
        for offset in deltas.chain(part.head, self.first.parts[task].head + 1):
            header, frozen, _ = deltas.delta(offset)
            cuts = range(before, frozen.checkpoint)
            anew = header.attempt != attempt or any(number == attempt and cut in cuts for number, cut in moved)
            attempt, before = header.attempt, frozen.checkpoint
            yield Interval(attempt, before, recorded.as_frozen(frozen), anew)

    def inboxes(self, metas: Sequence[TaskMeta], tasks: Collection[int]) -> list[Inbox]:
        """The inboxes of all tasks, for those `tasks` that are run. `metas` are those of all at the first
        checkpoint."""
        lineage, cut = self.last.lineage, (self.first.lineage.attempt, self.first.checkpoint)

        def accepted(part: Part) -> Iterator[EpochFrame]:
            for frame in self._recorded.frames(part.task, part.inbox_position):
                if frame.source != FENCE_SOURCE and lineage.accepts(frame.attempt, frame.epoch):
                    yield frame

        return [
            Inbox(part.task, accepted(part), meta.marks, cut, tasks)
            for part, meta in zip(self.first.parts, metas, strict=True)
        ]

    def inputs(self, inbox: Inbox, ingresses: Ingresses) -> TaskInputs:
        """The inputs of the task whose inbox it is."""
        return TaskInputs(self._recorded, self.first.parts[inbox.task], inbox, ingresses)


class Inbox:
    """The frames in the inbox of one task behind the first checkpoint. It is read once: what is there for others than
    the one who asks waits for them."""

    def __init__(
        self,
        task: int,
        frames: Iterator[EpochFrame],
        marks: Mapping[int, tuple[int, int]],
        cut: tuple[int, int],
        readers: Collection[int],
    ) -> None:
        """`frames` are those that belong to the history; the task had admitted those up to its `marks`. `cut` is the
        attempt and the checkpoint that the recording begins with; `readers` are the tasks that ask."""
        self.task = task
        self._frames = frames
        self._marks = dict(marks)
        self._cut = cut
        self._waiting: dict[int, deque[EpochFrame]] = {reader: deque() for reader in readers}
        """What each of them sent, and of the task itself, which sends itself nothing, what it admits."""

    def admitted(self) -> EpochFrame:
        """The next frame that the task admitted. Raises Refused when there is none."""
        return self._next(self.task)

    def sent(self, source: int, attempt: int, sequence: int) -> Iterator[Envelope]:
        """What `source` sent behind what was asked for before, up to the frame with this number of this attempt.
        Raises Refused when that is not there."""
        while True:
            frame = self._next(source)
            yield from frame.messages
            if (frame.attempt, frame.sequence) >= (attempt, sequence):
                return

    def _next(self, reader: int) -> EpochFrame:
        queue = self._waiting[reader]
        while not queue:
            frame = next(self._frames, None)
            if frame is None:
                raise _gone("a frame of another task", self.task)
            self._deal_out(frame)
        return queue.popleft()

    def _deal_out(self, frame: EpochFrame) -> None:
        stamp = (frame.attempt, frame.sequence)
        if stamp <= self._marks.get(frame.source, (0, 0)):
            return  # It came before: in a record that was half admitted at the cut, or that was sent twice.
        self._marks[frame.source] = stamp
        if self.task in self._waiting:
            self._waiting[self.task].append(frame)
        attempt, checkpoint = self._cut
        if frame.source in self._waiting and (frame.attempt > attempt or frame.epoch >= checkpoint):
            self._waiting[frame.source].append(frame)


class Ingresses:
    """The ingresses of an application, read once more by all of its tasks. Close it."""

    def __init__(self, app: App, kafka: KafkaOptions | None, *, message_bytes_max: int) -> None:
        """`kafka` is the cluster of the application, if it has one."""
        self._app = app
        self._kafka = kafka
        self._message_bytes_max = message_bytes_max
        self._feeds: dict[str, tuple[IngressFeed, _Whole]] = {}
        self._records: KafkaRecords | None = None

    async def take(self, task: int, source: str, before: Any, reached: Any) -> list[Input]:
        """What `task` took of `source` from the position `before` to `reached`. Raises Refused when the application
        does not declare such an ingress, or that holds it no more; and as a reader does."""
        ingress = self._ingress(task, source)
        if isinstance(ingress.spec, KafkaIngress):
            # What it knew of its partitions before it read a record, and where each begins, are positions, too.
            noted = before is None or source == ingress.name
            return (
                [Deliveries(source, reached, [])]
                if noted
                else await self._kafka_records().take(ingress, source, before, reached)
            )
        count = record_of(reached) - record_of(before)
        if not count:
            return []
        feed, reader = self._feed(ingress, before)
        await reader.fill(count)
        return feed.take(count)

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands, for people; empty when it is of no ingress read here."""
        origins = (feed.origin_of(cause) for feed, _ in self._feeds.values())
        of_kafka = self._records.origin_of(cause) if self._records is not None else ""
        return next((origin for origin in origins if origin), of_kafka)

    async def close(self) -> None:
        for feed, _ in self._feeds.values():
            await feed.close()
        if self._records is not None:
            await self._records.close()

    def _ingress(self, task: int, source: str) -> Ingress:
        """The one whose position stands under this name: under its own, or with a topic and a partition."""
        declared = self._app.ingresses.get(source)
        if declared is None:
            partitioned = self._app.ingresses.get(source.rsplit("/", 2)[0])
            declared = partitioned if partitioned is not None and isinstance(partitioned.spec, KafkaIngress) else None
        if declared is None:
            raise Refused(
                "PEN0443",
                f"Task {task} read ingress {source}, which this code does not declare, so what followed can't be run "
                "again. Declare it under that name.",
            )
        return declared

    def _feed(self, ingress: Ingress, position: Any) -> tuple[IngressFeed, _Whole]:
        known = self._feeds.get(ingress.name)
        if known is None:
            spec = ingress.spec
            reader = _Whole(reader_for(replace(spec, rate=None) if isinstance(spec, FileIngress) else spec))
            feed = build_ingress(
                self._app, ingress, reader, message_bytes_max=self._message_bytes_max, wake=lambda: None
            )
            feed.seek(position)
            known = self._feeds[ingress.name] = feed, reader
        return known

    def _kafka_records(self) -> KafkaRecords:
        if self._records is None:
            try:
                from penstock.engine.kafka_recording import KafkaRecords
            except ImportError as error:
                raise missing_client(error) from error
            self._records = KafkaRecords(self._app, self._kafka, message_bytes_max=self._message_bytes_max)
        return self._records


class TaskInputs:
    """The inputs of one task, one after the other as turns say that they were taken."""

    def __init__(self, recorded: Recorded, part: Part, inbox: Inbox, ingresses: Ingresses) -> None:
        self._recorded = recorded
        self._task = part.task
        self._inbox = inbox
        self._ingresses = ingresses
        self._positions = dict(part.ingress_positions)
        self._requests = recorded.requests(part.task, part.ingress_positions.get(RequestFeed.SOURCE))

    async def take(self, source: str, reached: Any) -> list[Input]:
        """What was taken of `source` to reach that position; of `FRAMES`, so many; of `PERFORMED`, that. Raises Refused
        when the present application or its log has no such input, and as a reader does."""
        if source == FRAMES:
            return [FrameInput(0, self._inbox.admitted()) for _ in range(reached)]
        if source == PERFORMED:
            return [Performed(*reached)]
        if source == RequestFeed.SOURCE:
            return self._take_requests(reached)
        if source == FOREIGN:
            return [Deliveries(FOREIGN, reached, [], [self._recorded.foreign(self._task, reached - 1)])]
        before, self._positions[source] = self._positions.get(source), reached
        return await self._ingresses.take(self._task, source, before, reached)

    def _take_requests(self, end: int) -> list[Input]:
        envelopes: list[Envelope] = []
        rejected: list[Rejected] = []
        for offset, request in self._requests:
            if isinstance(request, Envelope):
                envelopes.append(request)
            elif request is not None:
                rejected.append(request)
            if offset + 1 == end:
                return [Deliveries(RequestFeed.SOURCE, end, envelopes, rejected)]
        raise _gone("a request", self._task)


def _gone(what: str, task: int) -> Refused:
    return Refused(
        "PEN0443", f"The log does not hold {what} that task {task} took. Choose a later checkpoint to begin at."
    )


class _Whole:
    """Reads chunks of exactly as many records as are asked for, wherever the input has its own borders."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._chunks: list[Chunk] = []
        self._count = 0

    async def fill(self, count: int) -> None:
        """Have so many records at hand. Raises Refused when the input ends before."""
        while self._count < count:
            chunk = self._reader.read(count - self._count)
            if chunk is None:
                await self._reader.wait_ready()
                continue
            self._chunks.append(chunk)
            self._count += len(chunk.records)
            if chunk.done and self._count < count:
                raise Refused(
                    "PEN0443",
                    f"An input ends at {self._reader.locate(chunk.first + len(chunk.records))}, and more was read of "
                    "it. Bring it back to what it was, or choose an earlier checkpoint to end at.",
                )

    def seek(self, position: Position | None) -> None:
        self._reader.seek(position)

    def read(self, records_max: int) -> Chunk | None:
        chunks, self._chunks, self._count = self._chunks, [], 0
        if len(chunks) == 1:
            return chunks[0]
        records = [record for chunk in chunks for record in chunk.records]
        return Chunk(chunks[0].first, records, chunks[-1].position, chunks[-1].done)

    async def wait_ready(self) -> None:
        """`fill` waits."""

    def locate(self, record: int) -> str:
        return self._reader.locate(record)

    def progress(self) -> Progress | None:
        return self._reader.progress()

    async def close(self) -> None:
        await self._reader.close()
