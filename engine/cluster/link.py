"""What a worker hears from its leader, and tells it.

    control topic -> decisions, hints -> Member -> what to do;   heartbeats and reports -> reports topic

What always holds: what there is to do is handed over in the order of the decisions; a heartbeat is sent every second
while the event loop runs, and at once when a new leader shows itself. Does nothing of it: the worker does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from penstock.checkpoint.member import Action, Member
from penstock.checkpoint.reports import Alive, Changed, Ended, Fault, Leading, Report, encode_message
from penstock.engine.cluster.topics import DECISIONS, HINTS, Topics, decision_in, hint_in
from penstock.errors import PenstockError
from penstock.router.kafka_batches import Record
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader, read_range
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_writer import KafkaWriter

RECORDS_MAX = 1_000
LOOKED_AT_MAX = 1_000
"""Hints read to learn who led last: the leader shows itself every second, and begins fewer checkpoints in that."""


class LeaderLink:
    """See the module. `received` is called when `actions` may have something to give."""

    def __init__(
        self,
        kafka: KafkaOptions,
        application: str,
        alive: Alive,
        writer: KafkaWriter,
        *,
        generation: int = 1,
        heartbeat_ms: float,
        received: Callable[[], None],
        failed: Callable[[PenstockError], None],
    ) -> None:
        self.member = Member(alive.worker, generation)
        self.alive = alive
        self._kafka = kafka
        self._topics = Topics.of(application, generation)
        self._writer = writer
        self._heartbeat_ms = heartbeat_ms
        self._reader = KafkaReader(kafka, isolation="read_committed", on_records=received, failed=failed)
        self._beating: asyncio.Task[None] | None = None
        self._told = (0, 0)
        """Attempt of the last report that something changed, and how urgent that was."""
        self._fault: Fault | None = None
        self.leader = ""
        """Who was heard to lead last."""
        self.leader_heard_s = 0.0
        """When, by the clock of the event loop; long ago when it has resigned."""
        self.workers: tuple[Alive, ...] = ()
        """Those the leader knows."""

    async def start(self) -> None:
        """Listen from now on, and make this worker known."""
        places = [(self._topics.control, partition) for partition in (DECISIONS, HINTS)]
        ends = await offsets(self._kafka, places)
        await self._reader.start()
        for place in places:
            self._reader.add(*place, ends[place].end)
        self.leader_heard_s = asyncio.get_running_loop().time()
        if await self._has_led(*ends[places[1]]):
            self.leader_heard_s = -math.inf
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def _has_led(self, start: int, end: int) -> bool:
        """Whether the last to lead was the process that had the place of this one: then nobody leads now, and whoever
        wants to need not wait until that is certain."""
        records = await read_range(self._kafka, self._topics.control, HINTS, max(start, end - LOOKED_AT_MAX), end)
        leaders = [hint.leader for record in records if isinstance(hint := hint_in(record), Leading)]
        return bool(leaders) and bool(leaders[-1]) and leaders[-1].rpartition("#")[0] == self.alive.instance

    def end(self, reason: str) -> None:
        """Say that this worker has ended, and why, and nothing any more: a next leader must not take it for alive."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
            self.report(Ended(self.alive.worker, reason))

    async def close(self, reason: str) -> None:
        self.end(reason)
        await self._reader.close()

    def actions(self) -> list[Action]:
        """What the leader has decided and hinted since the last call."""
        actions: list[Action] = []
        for record in self._reader.take(self._topics.control, DECISIONS, RECORDS_MAX):
            decision = decision_in(record, self._topics.control)
            if decision is not None:
                actions += self.member.decided(decision)
        for record in self._reader.take(self._topics.control, HINTS, RECORDS_MAX):
            actions += self._hinted(record)
        return actions

    def report(self, report: Report) -> None:
        self._writer.append(Record(self._topics.reports, 0, encode_message(report)))

    def changed(self, urgent: str) -> None:
        """Something is in no checkpoint. Told once between two cuts, and once more when it gets `urgent`."""
        level = (self.member.number, 2 if urgent else 1)
        if level > self._told and self.member.number:
            self._told = level
            self.report(Changed(self.alive.worker, self.member.number, urgent))

    def cut(self) -> None:
        """What changes from now on is news again."""
        self._told = (0, 0)

    def give_up(self, fault: Fault) -> None:
        """The attempt can't go on. Told with every heartbeat until another begins: a leader may end before it acts on
        it, and the next one leads this attempt on."""
        self._fault = fault
        self.report(fault)

    def leave(self) -> None:
        """Ask to be relieved of all tasks."""
        self._become(leaving=True)

    def _hinted(self, record: Fetched) -> list[Action]:
        hint = hint_in(record)
        if hint is None:
            return []
        if isinstance(hint, Leading):
            self.leader_heard_s = asyncio.get_running_loop().time() if hint.leader else -math.inf
            self.workers = hint.members or self.workers
            if hint.leader not in ("", self.leader):
                self.report(self.alive)
            self.leader = hint.leader
        return self.member.hinted(hint)

    async def _beat(self) -> None:
        while True:
            self._become()
            await asyncio.sleep(self._heartbeat_ms / 1000)

    def _become(self, **changes: bool) -> None:
        self.alive = msgspec.structs.replace(self.alive, attempt=self.member.number, **changes)
        self.report(self.alive)
        if self._fault is not None and self._fault.attempt == self.member.number:
            self.report(self._fault)
