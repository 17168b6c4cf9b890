"""Performs what a `Leader` decides, on Kafka.

    fence older leaders -> read the newest decisions -> listen to reports -> { decide -> write, in order -> tell }

What always holds: records reach the control log one after the other, each in a transaction under the one id that fences
every other leader; when a write fails, or nobody knows, this leader ends, and the next one reads what became of it. One
that has nothing to write ends as well when it hears that another leads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from logging import INFO, WARNING
from typing import Any

from penstock.checkpoint.control import (
    Assign,
    AttemptBegun,
    Complete,
    ControlRecord,
    Manifest,
    Recap,
    Reserve,
    encode_control,
)
from penstock.checkpoint.leader import (
    Action,
    Aged,
    Announce,
    Event,
    Fence,
    FencesWritten,
    Forget,
    Heard,
    Leader,
    LeaderOptions,
    Note,
    Recalled,
    Tell,
    Ticked,
    Write,
    Written,
)
from penstock.checkpoint.reports import Acknowledgement, Begin, Hint, Leading, Report, decode_report, encode_message
from penstock.engine.background import Background
from penstock.engine.cluster.looking import decisions, read_beside_trimming, read_tail
from penstock.engine.cluster.topics import DECISIONS, HINTS, Topics, hint_in
from penstock.engine.cluster.trimming import Trimming
from penstock.errors import Fenced, PenstockError, ProtocolError
from penstock.faults import fault
from penstock.logs import logger
from penstock.router.frames import encode_fence
from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import Bounds, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader, read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import is_incarnation, leader_id, refuse_recreated
from penstock.router.kafka_transactions import KafkaTransactions
from penstock.router.kafka_writer import KafkaWriter

REPORTS_MAX = 10_000
HINTS_MAX = 1_000
RECALLED_OFFSETS = 4_000
"""How much of the log is read at a time for a leader that leads already: some 4 MB."""
RECALLED_RECORDS = 50
"""How many of these are taken in between two looks at everything else: a few milliseconds."""
RESIGN_S = 1.0
DEAF_S = 0.5
AGE_S = 10.0
"""How often it is looked whether something need not be retained any more."""
_POINTS: dict[type[ControlRecord], tuple[str, str]] = {
    Reserve: ("reserve.writing", "reserve.durable"),
    AttemptBegun: ("attempt.writing", "attempt.durable"),
    Complete: ("complete.writing", "complete.durable"),
    Assign: ("assign.writing", "assign.durable"),
    Recap: ("recap.writing", "recap.durable"),
}
"""The faults before and behind each kind of decision."""


class LeaderService:
    """See the module. `run` ends by an error: Fenced when somebody else leads, whatever else made it impossible to go
    on. Start another one then."""

    def __init__(
        self,
        kafka: KafkaOptions,
        options: LeaderOptions,
        *,
        clock: Callable[[], float],
        trimming: Trimming,
    ) -> None:
        self._kafka = kafka
        self._options = options
        self._clock = clock
        self._trimming = trimming
        self._topics = Topics.of(options.application, options.generation)
        self._transactions = KafkaTransactions(kafka, leader_id(options.application))
        self._writer = KafkaWriter(kafka, failed=self._fail)
        self._reader = KafkaReader(kafka, isolation="read_uncommitted", on_records=self._woken, failed=self._fail)
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._to_write: deque[ControlRecord] = deque()
        self._writable = asyncio.Event()
        self._rival = ""
        """Who was heard to lead beside this one, since that was last looked into."""
        self._background = Background(self._fail)
        self._told: deque[Report] = deque()
        self._shown: tuple[float, asyncio.Future[int] | None] = (0.0, None)
        """When the leader last showed that it is there, and whether that is written."""
        self.leader: Leader | None = None
        self.announced: Manifest | None = None
        """The newest complete checkpoint of this leader."""
        self.written = 0
        """Decisions, each in a transaction."""

    async def run(self) -> None:
        """Lead until something fails."""
        try:
            await self._transactions.fence()
            await self._writer.start()
            await self._reader.start()
            leader = await self._begin()
            self._spawn(self._write_all())
            self._spawn(self._age())
            await self._lead(leader)
        finally:
            await self._close()

    def hear(self, report: Report) -> None:
        """A report that did not come by Kafka: of whoever watches the processes of the workers."""
        self._told.append(report)
        self._woken()

    async def _begin(self) -> Leader:
        hints, reports = (self._topics.control, HINTS), (self._topics.reports, 0)
        bounds = await offsets(self._kafka, [hints, reports])
        start, first, records = await read_tail(self._kafka, self._topics.control)
        leader = self.leader = Leader(self._options, records, self._now_ms())
        if leader.history.assigned is not None and not self._options.fresh:
            refuse_recreated(leader.history.assigned.topics, self._options.topics)
        for place in (reports, hints):
            self._reader.add(*place, bounds[place].end)
        fault("lead.begun")
        self._spawn(self._recall(leader, start, first))
        # Workers answer it with a report each, so that the leader knows at once who is there.
        self._tell(Leading(self._options.name))
        logger.info("%s leads %s", self._options.name, self._options.application)
        return leader

    async def _recall(self, leader: Leader, start: int, end: int) -> None:
        """Read what stands in the log before the records this leader began with, while it leads."""
        while end > start and leader.history.missing:
            read = partial(self._read_before, end)
            start, first, records = await read_beside_trimming(self._kafka, self._topics.control, read)
            for number in range(0, len(records), RECALLED_RECORDS):
                some = list(decisions(self._topics.control, records[number : number + RECALLED_RECORDS]))
                self._handle(Recalled(some, last=False))
                await asyncio.sleep(0)
            end = first
        self._handle(Recalled([], last=True))
        self._woken()

    async def _read_before(self, end: int, bounds: Bounds) -> tuple[int, int, list[Fetched]]:
        """Where the log begins, and some of it before `end`, with the offset from which on that is."""
        first = max(bounds.start, end - RECALLED_OFFSETS)
        return bounds.start, first, await read_range(self._kafka, self._topics.control, DECISIONS, first, end)

    async def _lead(self, leader: Leader) -> None:
        while True:
            for record in self._reader.take(self._topics.reports, 0, REPORTS_MAX):
                report = _report(record)
                if report is not None:
                    self._handle(Heard(report))
            for record in self._reader.take(self._topics.control, HINTS, HINTS_MAX):
                self._suspect(hint_in(record))
            while self._told:
                self._handle(Heard(self._told.popleft()))
            self._handle(Ticked(deaf=self._deaf))
            if self._failure is not None:
                raise self._failure
            with suppress(TimeoutError):
                async with asyncio.timeout(leader.due_in_ms(self._now_ms()) / 1000 + 0.001):
                    await self._wake.wait()
            self._wake.clear()

    def _suspect(self, hint: Hint | None) -> None:
        """Of two leaders one does not know yet that it leads no longer."""
        if isinstance(hint, Leading) and hint.leader not in ("", self._options.name):
            self._rival = hint.leader
            self._writable.set()

    def _handle(self, event: Event) -> None:
        assert self.leader is not None
        if isinstance(event, Heard) and isinstance(event.report, Acknowledgement):
            fault("acknowledgement.heard")
        for action in self.leader.handle(event, self._now_ms()):
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Write(record):
                self._to_write.append(record)
                self._writable.set()
            case Tell(Begin() as hint):
                fault("begin.telling")
                self._tell(hint)
                fault("begin.told")
            case Tell(hint):
                self._tell(hint)
            case Fence(attempt):
                self._spawn(self._fence(attempt))
            case Announce(manifest):
                self.announced = manifest
            case Forget():
                self._spawn(self._trimming.forget(action))
            case Note(text, ordinary):
                logger.log(INFO if ordinary else WARNING, "%s", text)

    def _tell(self, hint: Hint) -> None:
        written = self._writer.append(Record(self._topics.control, HINTS, encode_message(hint)))
        if isinstance(hint, Leading):
            self._shown = (self._clock(), written)

    @property
    def _deaf(self) -> bool:
        """Whether Kafka does not answer: then what was last shown is not written after a while, and what workers say
        does not come through either."""
        at_s, written = self._shown
        return written is not None and not written.done() and self._clock() - at_s > DEAF_S

    async def _fence(self, attempt: int) -> None:
        for task in range(self._options.tasks):
            self._writer.append(Record(self._topics.inbox, task, encode_fence(attempt)))
            fault("fence.half")
        await self._writer.flush()
        fault("fence.written")
        self._handle(FencesWritten(attempt))
        self._woken()

    async def _write_all(self) -> None:
        """Write decisions, one after the other."""
        while True:
            self._writable.clear()
            while self._to_write:
                decision = self._to_write[0]
                writing, durable = _POINTS[type(decision)]
                fault(writing)
                record = Record(self._topics.control, DECISIONS, encode_control(decision))
                written = await self._transactions.commit([record])
                fault(durable)
                self._to_write.popleft()
                self.written += 1
                self._handle(Written(written[0]))
                self._woken()
                await self._hold()
            if self._rival:
                self._rival = ""
                await self._hold()
            await self._writable.wait()

    async def _hold(self) -> None:
        """Be sure of the role. Raises Fenced when somebody else has it, or had it in between."""
        if not await self._transactions.fence():
            raise Fenced(
                "PEN0772", f"{self._options.name} leads no longer: somebody else has taken the role in between."
            )

    async def _age(self) -> None:
        while True:
            await asyncio.sleep(AGE_S)
            self._handle(Aged())

    async def _close(self) -> None:
        await self._background.cancel_all()
        await self._resign()
        await self._reader.close()
        await self._writer.close()
        await self._transactions.close()

    async def _resign(self) -> None:
        """Say that nobody leads now, if nobody has taken over, so that the next leader need not wait."""
        if self.leader is not None and not isinstance(self._failure, Fenced):
            self._tell(Leading(""))
            with suppress(PenstockError, TimeoutError):
                async with asyncio.timeout(RESIGN_S):
                    await self._writer.flush()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.spawn(work)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._woken()

    def _woken(self) -> None:
        self._wake.set()

    def _now_ms(self) -> float:
        return self._clock() * 1000


def _report(record: Fetched) -> Report | None:
    """What a record of the reports says; None for one that is no report."""
    if is_incarnation(record.key):
        return None
    try:
        return decode_report(record.value or b"")
    except ProtocolError as error:
        logger.error("%s", error)
        return None
