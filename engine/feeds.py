"""Where the inputs of a task come from: each feed is one source with a position.

A feed gives its next inputs without waiting, or says that it has none now; `seek` sets it to where a snapshot left it.
Positions travel with the inputs and return through the task's state, never through the feed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from penstock.checkpoint.snapshot import Admission, SnapshotTask
from penstock.engine.effects import Column, Deliveries, FrameInput, Input, Rejected
from penstock.errors import FunctionError, PenstockError
from penstock.functions.app import Ingress
from penstock.ids import Address, Offset, cause_of
from penstock.records import Envelope, Meta
from penstock.router.frames import decode_frames
from penstock.router.ingress import Chunk, Progress, Reader
from penstock.router.log import Log, check_offset
from penstock.router.requests import decode_request
from penstock.router.routing import RoutedChunk

READ_BYTES = 4 << 20
"""Read from a log at a time."""
FOREIGN = "inbox"
"""Source of what is in an inbox of Kafka and no frame. Its position is the offset behind the last such record: what
stands before it may be read again, and is a dead letter already."""


FeedKind = Literal["ingress", "requests", "inbox"]


class Feed(Protocol):
    """One source of a task."""

    @property
    def kind(self) -> FeedKind:
        """Under pressure, inputs from outside wait first, and frames of other tasks last (PROTOCOL 25)."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing will ever come again."""
        ...

    def take(self, count_max: int) -> list[Input]:
        """The next inputs, holding about `count_max` messages; empty when there is nothing now."""
        ...


class InputFeed(Feed, Protocol):
    """What one task reads of a declared ingress."""

    name: str

    @property
    def records(self) -> int:
        """Read since the feed started."""
        ...

    @property
    def records_total(self) -> int:
        """Read since the beginning of the input, as far as is known."""
        ...

    @property
    def lag(self) -> int | None:
        """Records that are there and not read yet; None where nobody knows."""
        ...

    def progress(self) -> Progress | None:
        """How far the input has been read, for people; None where nobody knows its end."""
        ...

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands, for people; empty when it is none of this ingress."""
        ...

    async def close(self) -> None: ...


class Router(Protocol):
    """Where the records of an ingress go: see `IngressRouter`."""

    def column(self, records: Sequence[Any]) -> tuple[str, Sequence[str], Sequence[bytes]] | None: ...

    def route_chunk(self, records: Sequence[Any], first: int, locate: Callable[[int], str]) -> RoutedChunk: ...


class IngressFeed:
    """One partition of a declared ingress. `wake` is called when a read that found nothing is worth repeating."""

    kind: FeedKind = "ingress"

    def __init__(
        self, application: str, ingress: Ingress, reader: Reader, router: Router, wake: Callable[[], None]
    ) -> None:
        self.name = ingress.name
        self.partition = 0
        self._reader = reader
        self._router = router
        self._wake = wake
        self._cause = cause_of(f"{application}/{ingress.name}/{self.partition}") >> 1
        """One bit less, so that the number of a record can be added without leaving 64 bits (PROTOCOL 6)."""
        self._waiting: asyncio.Task[None] | None = None
        self.done = False
        self.records = 0
        """Read since the feed started."""
        self.records_total = 0
        """Read since the beginning of the input, as far as is known: 0 until the feed has read."""

    def seek(self, position: Any) -> None:
        self._reader.seek(position)

    def take(self, count_max: int) -> list[Input]:
        if self.done or (self._waiting is not None and not self._waiting.done()):
            return []
        chunk = self._read(count_max)
        if chunk is None:
            self._waiting = asyncio.get_running_loop().create_task(self._reader.wait_ready())
            self._waiting.add_done_callback(lambda _: self._wake())
            return []
        self.done = chunk.done
        self.records += len(chunk.records)
        self.records_total = chunk.first + len(chunk.records)
        return [self._route(chunk)]

    def origin_of(self, cause: int) -> str:
        """Where the record with this cause stands; empty when it is none of this ingress."""
        number = cause - self._cause
        return self._reader.locate(number) if 0 <= number < 1 << 48 else ""

    @property
    def lag(self) -> int | None:
        return 0 if self.done else None

    def progress(self) -> Progress | None:
        """How far the input has been read, for people; None where nobody knows its end, and once it is closed."""
        return self._reader.progress()

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        await self._reader.close()

    def _read(self, count_max: int) -> Chunk | None:
        """The next records. Raises what failed here or while the feed waited: such an input can't go on."""
        waited, self._waiting = self._waiting, None
        try:
            if waited is not None:
                waited.result()
            return self._reader.read(count_max)
        except PenstockError:
            raise
        except Exception as error:
            raise FunctionError(
                "PEN0226",
                f"Ingress {self.name} failed with {type(error).__name__}: {error}. Correct what it names and start "
                "again: it is read on from the last checkpoint.",
            ) from error

    def _route(self, chunk: Chunk) -> Column | Deliveries:
        cause = self._cause + chunk.first
        column = self._router.column(chunk.records)
        if column is not None:
            typename, ids, payloads = column
            return Column(self.name, chunk.position, typename, ids, payloads, cause)
        routed = self._router.route_chunk(chunk.records, chunk.first, self._reader.locate)
        if _is_column(routed, len(chunk.records)):
            typenames, ids, payloads, _ = zip(*routed.messages, strict=True)
            return Column(self.name, chunk.position, typenames[0], ids, payloads, cause)
        return Deliveries(
            self.name,
            chunk.position,
            [
                Envelope(typename, id, payload, cause + owner, None, Meta(headers=dict(headers)) if headers else None)
                for (typename, id, payload, headers), owner in zip(routed.messages, routed.owners, strict=True)
            ],
            [self._rejected(chunk, index, error) for index, error in routed.errors],
        )

    def _rejected(self, chunk: Chunk, index: int, error: Any) -> Rejected:
        record = chunk.records[index]
        raw = getattr(record, "raw", record)
        data = raw if isinstance(raw, bytes) else repr(raw).encode()
        return Rejected(error.code, error.message, self._reader.locate(chunk.first + index), self.name, "", data)


def _is_column(routed: RoutedChunk, records: int) -> bool:
    """Whether each record became one message without headers, all to one function: by far the most frequent case."""
    messages = routed.messages
    if routed.errors or not messages or len(messages) != records or routed.owners[-1] != records - 1:
        return False
    typename = messages[0][0]
    return all(message[0] == typename and not message[3] for message in messages)


class RequestFeed:
    """What was asked from outside, for this task: the partition `requests-<task>` of the log."""

    SOURCE = "requests"
    kind: FeedKind = "requests"
    done = True
    """It never ends, and nobody waits for it to."""

    def __init__(self, log: Log, task: int) -> None:
        self._log = log
        self.partition = f"requests-{task}"
        self._position = Offset(0)

    def seek(self, position: Any) -> None:
        """Continue at `position`, or, with None, with the first that is stored.

        Raises ProtocolError when requests from there on are no longer stored: passing over them would lose them.
        """
        start = self._log.start(self.partition)
        self._position = Offset(start if position is None else position)
        check_offset(self.partition, self._position, start=start, end=self._log.end(self.partition))

    def append(self, record: bytes) -> None:
        self._log.append(self.partition, record)

    @property
    def behind(self) -> int:
        """Requests not yet taken."""
        return self._log.end(self.partition) - self._position

    def take(self, count_max: int) -> list[Input]:
        if self._log.end(self.partition) == self._position:
            return []
        records = self._log.read(self.partition, self._position, count_max, READ_BYTES)
        envelopes = [decode_request(record, place=f"Record {offset} of {self.partition}") for offset, record in records]
        self._position = Offset(self._position + len(records))
        return [Deliveries(self.SOURCE, self._position, envelopes)]


class InboxFeed:
    """Frames of the other tasks: the partition `inbox-<task>` of the log, filtered by the protocol."""

    kind: FeedKind = "inbox"
    done = True

    def __init__(self, log: Log, task: int, snapshot: SnapshotTask) -> None:
        self._log = log
        self.partition = f"inbox-{task}"
        self._snapshot = snapshot
        self._position = Offset(0)

    def seek(self, position: int | None) -> None:
        """Continue at `position`, or, with None, behind what earlier histories have left to be forgotten.

        Raises ProtocolError when frames from there on are no longer stored: passing over them would lose messages.
        """
        start = self._log.start(self.partition)
        if position is None:
            position = start
        check_offset(self.partition, Offset(position), start=start, end=self._log.end(self.partition))
        self._position = Offset(position)

    @property
    def behind(self) -> int:
        return self._log.end(self.partition) - self._position

    def take(self, count_max: int) -> list[Input]:
        """Frames that count. What a rolled-back attempt has left is passed over in the same call: a turn that took
        nothing would be taken for the last one, with frames behind those still waiting."""
        inputs: list[Input] = []
        while not inputs and self.behind:
            self._take_some(count_max, inputs)
        return inputs

    def _take_some(self, count_max: int, inputs: list[Input]) -> None:
        for offset, record in self._log.read(self.partition, self._position, count_max, READ_BYTES):
            for frame in decode_frames(record, place=f"Record {offset} of {self.partition}"):
                admission = self._snapshot.admit(frame)
                # All tasks of one process cut in one step, so no frame of a newer epoch can be waiting here.
                assert admission is not Admission.CUT_FIRST
                if admission is Admission.PROCESS:
                    inputs.append(FrameInput(offset + 1, frame))
            self._position = Offset(offset + 1)


class Completions:
    """Suspended handlers that have ended, in the order they did."""

    done = True

    def __init__(self) -> None:
        self._ended: deque[Input] = deque()

    def add(self, completed: Input) -> None:
        self._ended.append(completed)

    def take(self, count_max: int) -> list[Input]:
        return [self._ended.popleft() for _ in range(min(count_max, len(self._ended)))]


def request_envelope(
    address: Address,
    payload: bytes,
    *,
    request_id: str,
    idempotency_key: str = "",
    headers: dict[str, str] | None = None,
    origin: str = "",
    operation: str = "",
) -> Envelope:
    """A message from outside. Its cause is the request's own name: the Idempotency-Key, if it has one (PROTOCOL 6).

    With neither key nor `request_id` each message is one of its own kind: it gets a name that no other has.
    """
    meta = Meta(
        headers=headers or {},
        request_id=request_id,
        idempotency_key=idempotency_key,
        origin=origin,
        operation=operation,
    )
    name = f"{address}/{idempotency_key}" if idempotency_key else request_id or uuid.uuid4().hex
    cause = cause_of(name)
    return Envelope(address.typename, address.id, payload, cause, None, meta)
