"""Kafka as an egress: rows become records, exactly once by transactions, or as soon as they can be.

    rows of all egresses of a task -> one transaction under APP-egress-TASK: the records, and a marker -> fence -> ...

What always holds: the marker, a record in the partition of APP.egress-marks that has the number of the task, becomes
visible together with the rows it speaks of; it is read only after a fence, when nobody else can write it any more, and
only where it is committed; it is taken from memory only while the transactional id was ours without a gap. All egresses
of a task share its transactional id, so that a transaction somebody left open hides no marker of his successor. Their
commits go out in one transaction when they come at the same time, as they do after a checkpoint.

Rows that go out before their checkpoint is complete, or without a marker, carry the header `penstock-cause`, by which a
reader can drop repeats. When to commit is decided in `penstock.checkpoint.sinks`, as for every sink.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import msgspec

from penstock.errors import ConfigurationError, Fenced, InvalidInput, PenstockError, Unavailable
from penstock.functions.kafka_egress import KafkaEgress
from penstock.records import EgressRow
from penstock.router.formats import Encoder
from penstock.router.kafka_batches import Fields, Record, RecordsRefused
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import egress_id
from penstock.router.kafka_transactions import KafkaTransactions
from penstock.router.kafka_writer import KafkaWriter
from penstock.router.sink import RowsRefused

CAUSE_HEADER = "penstock-cause"
MARKER_KEY = b"marker"
MARKER_WINDOW = 64
"""Offsets at the end of a partition of markers that are read first: each commit takes two, and the newest counts."""
PATIENCE_S = 5.0
"""How long rows may be on their way before an outage is reported. They stay on their way."""

Marker = Mapping[int, int]


class _Marks(msgspec.Struct, array_like=True):
    """The value of a marker record: everything that is visible of one task."""

    history: str
    egresses: dict[str, dict[int, int]]


_encode_marks = msgspec.msgpack.Encoder().encode
_decode_marks = msgspec.msgpack.Decoder(_Marks).decode


class KafkaSinks:
    """What the egresses of one application to one cluster share in one process. It connects when it must.

    `marks` is the topic of the markers, which has a partition for each task. `history` names the run of checkpoints
    that markers are of: those of another one, which an earlier life of the application left, are passed over.
    """

    def __init__(
        self,
        options: KafkaOptions,
        application: str,
        *,
        marks: str,
        history: str = "",
        compression: str | None = None,
    ) -> None:
        self.options = options
        self.application = application
        self.marks = marks
        self.history = history
        self.compression = compression
        self._tasks: dict[int, _Task] = {}
        self._writer: KafkaWriter | None = None
        self._turn = asyncio.Lock()
        self._opened: set[object] = set()

    def sink(self, egress: str, spec: KafkaEgress, encoder: Encoder) -> KafkaSink | KafkaDirectSink:
        """The sink of one egress, for all tasks that this process has or will have."""
        records = _RecordMaker(spec, encoder, with_cause=spec.delivery != "exactly-once")
        if spec.delivery == "exactly-once":
            return KafkaSink(self, egress, records)
        return KafkaDirectSink(self, records)

    def task(self, task: int) -> _Task:
        """The transactions of a task."""
        if task not in self._tasks:
            self._tasks[task] = _Task(self, task)
        return self._tasks[task]

    async def release(self, task: int) -> None:
        """The task may go to another process: give up its transactional id, whichever egress says so first."""
        released = self._tasks.pop(task, None)
        if released is not None:
            await released.close()

    async def writer(self) -> KafkaWriter:
        """What writes without transactions. Raises Unavailable when no broker answers at first."""
        async with self._turn:
            if self._writer is None:
                writer = KafkaWriter(self.options, compression=self.compression)
                await writer.start()
                self._writer = writer
            return self._writer

    def opened(self, sink: object) -> None:
        """A sink is in use."""
        self._opened.add(sink)

    async def closed(self, sink: object) -> None:
        """A sink is not in use any more. The last one closes all connections."""
        self._opened.discard(sink)
        if self._opened:
            return
        for task in list(self._tasks):
            await self.release(task)
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()


class _RecordMaker:
    """From the rows of one egress to records."""

    def __init__(self, spec: KafkaEgress, encoder: Encoder, *, with_cause: bool) -> None:
        self._spec = spec
        self._encoder = encoder
        self._with_cause = with_cause

    async def prepare(self) -> None:
        await self._encoder.prepare()

    def records(self, rows: Sequence[EgressRow]) -> Sequence[Fields]:
        """The record of each row. Raises RowsRefused for rows that have no form in the format of the egress."""
        spec = self._spec
        if rows and self._encoder.as_is and not self._with_cause and not spec.tombstones:
            values, _, keys, topics, headers, partitions, timestamps = zip(*rows, strict=True)
            own = [topic or spec.topic for topic in topics] if any(topics) else repeat(spec.topic, len(rows))
            encoded = map(_encoded, headers) if any(headers) else headers
            return list(zip(own, partitions, values, keys, encoded, timestamps, strict=True))
        return self.made(rows)

    def made(self, rows: Sequence[EgressRow]) -> list[Record]:
        """The same, one by one."""
        spec, encode, with_cause = self._spec, self._encoder.encode, self._with_cause
        records: list[Record] = []
        refused: list[tuple[int, str]] = []
        for index, row in enumerate(rows):
            is_tombstone = spec.tombstones and not row.value
            try:
                final = row if is_tombstone else encode(row)
            except InvalidInput as error:
                refused.append((index, str(error)))
                continue
            headers = _encoded(final.headers)
            if with_cause:
                headers = [*headers, (CAUSE_HEADER, b"%016x" % row.cause)]
            value = None if is_tombstone else final.value
            records.append(Record(row.topic or spec.topic, row.partition, value, row.key, headers, row.timestamp_ms))
        if refused:
            raise RowsRefused("PEN0760", f"Rows have no form in the format of the egress: {refused[0][1]}", refused)
        return records


def _encoded(headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, bytes]]:
    return [(name, text.encode()) for name, text in headers] if headers else ()


class KafkaSink:
    """Exactly once: one egress of `KafkaSinks`. Implements `penstock.router.sink.Sink`."""

    def __init__(self, sinks: KafkaSinks, egress: str, records: _RecordMaker) -> None:
        self._sinks = sinks
        self._egress = egress
        self._records = records

    async def open(self) -> None:
        await self._records.prepare()
        self._sinks.opened(self)

    async def read_marker(self, task: int) -> dict[int, int]:
        return await self._sinks.task(task).read_marker(self._egress)

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Marker) -> None:
        await self._sinks.task(task).commit(self._egress, self._records.records(rows), dict(marker))

    async def tick(self) -> None:
        pass

    async def release(self, task: int, *, final: bool) -> None:
        await self._sinks.release(task)

    async def close(self, final: bool) -> None:
        await self._sinks.closed(self)  # A commit is finished when it returns: nothing is left to do.


class _Commit(NamedTuple):
    """What one egress wants to become visible."""

    egress: str
    records: Sequence[Fields]
    marker: dict[int, int]
    done: asyncio.Future[None]


class _Task:
    """The transactions of one task, which its egresses share: whoever has the turn takes along what others wait for."""

    def __init__(self, sinks: KafkaSinks, task: int) -> None:
        self._sinks = sinks
        self._task = task
        self._transactions = KafkaTransactions(
            sinks.options, egress_id(sinks.application, task), compression=sinks.compression
        )
        self._turn = asyncio.Lock()
        self._marks: dict[str, dict[int, int]] | None = None
        """What is visible of every egress; None when it has to be read."""
        self._told: dict[str, dict[int, int]] = {}
        """What each egress believes to be visible: commits build on that."""
        self._waiting: list[_Commit] = []
        self._preparing: asyncio.Task[None] | None = None
        self._lost: Fenced | None = None
        """Somebody took the transactional id, and the egresses don't know yet."""

    async def read_marker(self, egress: str) -> dict[int, int]:
        async with self._turn:
            self._lost = None  # Whoever reads the marker means to own the task.
            marks = await self._prepare()
            self._told[egress] = marker = marks.get(egress, {})
            return dict(marker)

    async def commit(self, egress: str, records: Sequence[Fields], marker: dict[int, int]) -> None:
        commit = _Commit(egress, records, marker, asyncio.get_running_loop().create_future())
        self._waiting.append(commit)
        try:
            await asyncio.sleep(0)  # Other egresses that commit for the same checkpoint do so now.
            async with self._turn:
                if commit in self._waiting:
                    await self._commit_waiting()
        finally:
            if commit in self._waiting:
                self._waiting.remove(commit)
        await commit.done

    async def close(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})
        async with self._turn:
            await self._transactions.close()

    async def _prepare(self) -> dict[str, dict[int, int]]:
        """Have a fence behind the last transaction, and know the markers. Returns them."""
        try:
            if not self._transactions.ready and not await self._transactions.fence():
                self._marks = None
            if self._marks is None:
                self._marks = await self._read_marks()
        except BaseException:
            self._marks = None
            raise
        return self._marks

    def _prepare_soon(self) -> None:
        """Fence while nobody waits for it: renew what is ours, and take nothing back."""

        async def prepare() -> None:
            async with self._turn:
                try:
                    if self._transactions.held:
                        await self._prepare()
                except Fenced as error:
                    self._lost = error
                except PenstockError:
                    pass  # Whoever commits next meets it again.

        self._preparing = asyncio.get_running_loop().create_task(prepare())

    async def _commit_waiting(self) -> None:
        """Commit everything that waits, and say to each commit how it went."""
        commits, self._waiting = self._waiting, []
        left: Sequence[_Commit] = commits
        try:
            if self._lost is not None:
                raise self._lost
            while left:
                left = await self._transact(left, await self._prepare())
        except BaseException as error:
            self._marks = self._lost = None
            for commit in commits:
                _fail(commit, error if isinstance(error, PenstockError) else self._interrupted())
            if not isinstance(error, PenstockError):
                raise
        finally:
            self._prepare_soon()

    async def _transact(self, commits: Sequence[_Commit], marks: Mapping[str, dict[int, int]]) -> list[_Commit]:
        """One transaction. Returns what is to be tried again, because only rows of others were refused."""
        current = [commit for commit in commits if self._told.get(commit.egress) == marks.get(commit.egress, {})]
        for commit in commits:
            if commit not in current:
                _fail(commit, self._outdated(commit.egress))
        if not current:
            return []
        after = {**marks, **{commit.egress: commit.marker for commit in current}}
        value = _encode_marks(_Marks(self._sinks.history, after))
        records = [record for commit in current for record in commit.records]
        try:
            await self._transactions.commit([*records, Record(self._sinks.marks, self._task, value, MARKER_KEY)])
        except RecordsRefused as error:
            return self._refuse(current, error)
        self._marks = after
        for commit in current:
            self._told[commit.egress] = commit.marker
            if not commit.done.done():
                commit.done.set_result(None)
        return []

    def _refuse(self, commits: Sequence[_Commit], error: RecordsRefused) -> list[_Commit]:
        """Say to commits which of their rows were refused. Returns the commits that had none."""
        reasons = dict(error.refused)
        start = 0
        others = []
        for commit in commits:
            refused = [(n, reasons[start + n]) for n in range(len(commit.records)) if start + n in reasons]
            if refused:
                _fail(commit, RowsRefused("PEN0761", f"Kafka refuses rows of {commit.egress}: {error}", refused))
            else:
                others.append(commit)
            start += len(commit.records)
        if len(others) == len(commits):
            raise ConfigurationError(
                "PEN0762",
                f"Markers of task {self._task} can't be written to topic {self._sinks.marks}: {error.message} It needs "
                "a partition for each task and WRITE for this user; penstock doctor --kafka looks at it.",
            ) from error
        return others

    def _outdated(self, egress: str) -> Unavailable:
        return Unavailable(
            "PEN0763",
            f"The marker of {egress} for task {self._task} was written by another process. It is read again before "
            "anything is committed.",
        )

    def _interrupted(self) -> Unavailable:
        return Unavailable("PEN0706", f"A commit of task {self._task} was interrupted. Its marker is read again.")

    async def _read_marks(self) -> dict[str, dict[int, int]]:
        """The newest marker record, as it is committed. The transactional id is ours, so nothing is open any more."""
        options, place = self._sinks.options, (self._sinks.marks, self._task)
        start, end = (await offsets(options, [place]))[place]
        window = MARKER_WINDOW
        while True:
            first = max(start, end - window)
            newest = _newest(await read_range(options, *place, first, end))
            if newest is not None:
                return newest.egresses if newest.history == self._sinks.history else {}
            if first == start:
                return {}
            window *= 16


def _newest(records: Sequence[Fetched]) -> _Marks | None:
    values = [record.value for record in records if record.key == MARKER_KEY and record.value is not None]
    return _decode_marks(values[-1]) if values else None


def _fail(commit: _Commit, error: PenstockError) -> None:
    if not commit.done.done():
        commit.done.set_exception(error)
        commit.done.exception()  # Whoever waited for it may be gone.


class KafkaDirectSink:
    """At least once: rows are written without transactions, and there is no marker. Implements
    `penstock.router.sink.Sink`; rows that were on their way when an outage was reported are not sent once more."""

    def __init__(self, sinks: KafkaSinks, records: _RecordMaker) -> None:
        self._sinks = sinks
        self._records = records
        self._under_way: dict[int, list[tuple[EgressRow, asyncio.Future[int]]]] = {}

    async def open(self) -> None:
        await self._records.prepare()
        self._sinks.opened(self)

    async def read_marker(self, task: int) -> dict[int, int]:
        return {}

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Marker) -> None:
        writer = await self._sinks.writer()
        sent = self._under_way.pop(task, [])
        if [row for row, _ in sent] != list(rows[: len(sent)]):
            sent = []  # Other rows: those were given up, or restored and emitted anew.
        fresh = rows[len(sent) :]
        sent += zip(fresh, map(writer.append, self._records.made(fresh)), strict=True)
        if not await _settled([future for _, future in sent], PATIENCE_S):
            self._under_way[task] = sent
            raise Unavailable("PEN0706", writer.unavailable or "Writing: Kafka is slow. It is waited for.")
        refused = [(n, future.exception()) for n, (_, future) in enumerate(sent) if future.exception() is not None]
        if refused:
            gone = {n for n, _ in refused}
            self._under_way[task] = [entry for n, entry in enumerate(sent) if n not in gone]  # To be given again.
            raise RowsRefused("PEN0761", f"Kafka refuses rows: {refused[0][1]}", [(n, str(e)) for n, e in refused])

    async def tick(self) -> None:
        pass

    async def release(self, task: int, *, final: bool) -> None:
        self._under_way.pop(task, None)

    async def close(self, final: bool) -> None:
        await self._sinks.closed(self)


async def _settled(futures: Sequence[asyncio.Future[int]], patience_s: float) -> bool:
    """Wait until all are done; whether they were in time. One after the other: a batch settles many at once, and a
    callback on each of thousands would cost more than writing them."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience_s
    for future in futures:
        if not future.done():
            await asyncio.wait({future}, timeout=deadline - clock())
            if not future.done():
                return False
    return True
