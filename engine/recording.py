"""What the log of an application on this machine has kept of the way from one checkpoint to another.

    two manifests -> deltas of each task, with the turns it took -> the inputs of these turns, read once more

What always holds: log and inputs are only read; a turn gets exactly what it got then, or an error says what is missing.
What is done with it is for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from penstock.checkpoint.control import Part
from penstock.engine.build import build_ingress
from penstock.engine.effects import Deliveries, FrameInput, Input
from penstock.engine.feeds import IngressFeed, RequestFeed
from penstock.engine.offline import Directory
from penstock.errors import Refused
from penstock.functions.app import App
from penstock.functions.io import FileIngress
from penstock.records import FRAMES, EpochFrame, Frozen
from penstock.router.frames import FENCE_SOURCE
from penstock.router.ingress import Chunk, Position, Progress, Reader, reader_for, record_of


class Interval(NamedTuple):
    """What one delta of a task tells: how `attempt` got to the cut of `checkpoint`."""

    attempt: int
    checkpoint: int
    frozen: Frozen


class Recording:
    """From checkpoint `first` to checkpoint `last` of a directory."""

    def __init__(self, directory: Directory, first: int, last: int) -> None:
        """Raises InvalidInput for a checkpoint that is not retained, and Refused when `last` does not follow from
        `first`."""
        self._directory = directory
        self.first = directory.journal.manifest(directory.retained(first))
        self.last = directory.journal.manifest(directory.retained(last))
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
        journal = self._directory.journal
        for offset in journal.chain(self.last.parts[task].head, self.first.parts[task].head + 1):
            header, frozen, _ = journal.delta(offset)
            yield Interval(header.attempt, frozen.checkpoint, frozen)

    def frames(self, task: int) -> Iterator[EpochFrame]:
        """Frames that the task could admit behind the first checkpoint, in the order of its inbox."""
        lineage = self.last.lineage
        for frame in self._directory.frames(task, self.first.parts[task].inbox_position):
            if frame.source != FENCE_SOURCE and lineage.accepts(frame.attempt, frame.epoch):
                yield frame

    def sent(self, source: int, destination: int) -> Iterator[EpochFrame]:
        """Frames that one task sent to another behind the first checkpoint, in their order."""
        attempt, cut = self.first.lineage.attempt, self.first.checkpoint
        for frame in self.frames(destination):
            if frame.source == source and (frame.attempt > attempt or frame.epoch >= cut):
                yield frame

    def inputs(self, app: App, task: int, *, message_bytes_max: int) -> TaskInputs:
        """The inputs of the task as `app` routes them."""
        part = self.first.parts[task]
        requests = self._directory.requests(task, part.ingress_positions.get(RequestFeed.SOURCE))
        return TaskInputs(app, part, self.frames(task), requests, message_bytes_max)


class TaskInputs:
    """The inputs of one task, one after the other as turns say that they were taken. Close it."""

    def __init__(
        self,
        app: App,
        part: Part,
        frames: Iterator[EpochFrame],
        requests: Iterator[tuple[int, Any]],
        message_bytes_max: int,
    ) -> None:
        self._app = app
        self._task = part.task
        self._frames = frames
        self._requests = requests
        self._positions = dict(part.ingress_positions)
        self._message_bytes_max = message_bytes_max
        self._feeds: dict[str, tuple[IngressFeed, _Whole]] = {}

    async def take(self, source: str, reached: Any) -> list[Input]:
        """What was taken of `source` to reach that position; of `FRAMES`, so many. Raises Refused when the present
        application or its log has no such input, and as a reader does."""
        if source == FRAMES:
            return [FrameInput(0, self._next_frame()) for _ in range(reached)]
        if source == RequestFeed.SOURCE:
            return self._take_requests(reached)
        before: Any = self._positions.get(source)
        self._positions[source] = reached
        count = record_of(reached) - record_of(before)
        if not count:
            return []
        feed, reader = self._feed(source, before)
        await reader.fill(count)
        return feed.take(count)

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands, for people; empty when it is of no ingress read here."""
        return next((origin for feed, _ in self._feeds.values() if (origin := feed.origin_of(cause))), "")

    async def close(self) -> None:
        for feed, _ in self._feeds.values():
            await feed.close()

    def _next_frame(self) -> EpochFrame:
        frame = next(self._frames, None)
        if frame is None:
            raise self._gone("a frame of another task")
        return frame

    def _take_requests(self, end: int) -> list[Input]:
        envelopes = []
        for offset, envelope in self._requests:
            envelopes.append(envelope)
            if offset + 1 == end:
                return [Deliveries(RequestFeed.SOURCE, end, envelopes)]
        raise self._gone("a request")

    def _feed(self, source: str, position: Any) -> tuple[IngressFeed, _Whole]:
        known = self._feeds.get(source)
        if known is None:
            ingress = next((each for each in self._app.ingresses.values() if each.name == source), None)
            if ingress is None:
                raise Refused(
                    "PEN0443",
                    f"Task {self._task} read ingress {source}, which this code does not declare, so what followed "
                    "can't be run again. Declare it under that name.",
                )
            spec = ingress.spec
            reader = _Whole(reader_for(replace(spec, rate=None) if isinstance(spec, FileIngress) else spec))
            feed = build_ingress(
                self._app, ingress, reader, message_bytes_max=self._message_bytes_max, wake=lambda: None
            )
            feed.seek(position)
            known = self._feeds[source] = feed, reader
        return known

    def _gone(self, what: str) -> Refused:
        return Refused(
            "PEN0443",
            f"The log does not hold {what} that task {self._task} took. Choose a later checkpoint to begin at.",
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
