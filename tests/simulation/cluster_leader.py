"""A leader of a simulated cluster: the real core, and what performs its actions, one at a time.

What always holds, as with Kafka: decisions are committed one after the other under one transactional id, and whoever
fenced it last is the only one who can; who does not learn the outcome ends. Hints and fences are written plainly, so a
leader that leads no longer may go on giving them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from penstock.checkpoint.control import ControlRecord, Recap, encode_control
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
from penstock.checkpoint.reports import Begin, Hint, Leading, decode_report, encode_message
from penstock.engine.cluster.topics import DECISIONS, HINTS
from penstock.router.frames import encode_fence
from penstock.router.kafka_batches import Record
from tests.simulation.cluster_kafka import SimulatedReader, SimulatedWriter
from tests.simulation.cluster_stage import Work
from tests.simulation.cluster_worker import TOPICS

if TYPE_CHECKING:
    from tests.simulation.cluster_world import ClusterWorld

LEADER_ID = "leader"
REPORTS_MAX = 1_000


class SimulatedLeader:
    """See the module."""

    def __init__(self, world: ClusterWorld, options: LeaderOptions) -> None:
        self.world = world
        self.name = options.name
        world.kafka.fence(LEADER_ID, self)
        decisions = list(world.decisions())
        recaps = [number for number, (_, record) in enumerate(decisions) if isinstance(record, Recap)]
        first = recaps[-1] if recaps else 0
        self.earlier = decisions[:first]
        """What it was not told yet of what was decided before."""
        self.core = Leader(options, decisions[first:], world.clock_ms)
        self.reader = SimulatedReader(world.kafka)
        self.reader.add(TOPICS.reports, 0, world.kafka.partition((TOPICS.reports, 0)).end)
        self.writer = SimulatedWriter(world.kafka)
        self.to_write: deque[ControlRecord] = deque()
        self.works: list[Work] = []
        self.ended = False
        self._tell(Leading(options.name))

    # What the world lets happen.

    def hear(self) -> None:
        for record in self.reader.take(TOPICS.reports, 0, REPORTS_MAX):
            assert record.value is not None
            self.handle(Heard(decode_report(record.value)))
        self.handle(Ticked())

    def age(self) -> None:
        self.handle(Aged())

    def recall(self) -> None:
        """Read some of what was decided before, the newest first."""
        count = min(len(self.earlier), 1 + self.world.dice.below(8))
        some = self.earlier[len(self.earlier) - count :]
        del self.earlier[len(self.earlier) - count :]
        self.handle(Recalled(some, last=not self.earlier))

    def step_works(self) -> None:
        for work in list(self.works):
            work.step()
        self.works = [work for work in self.works if not work.done()]

    def decide(self) -> None:
        """Commit the next decision, if there is one."""
        if not self.to_write or (TOPICS.control, DECISIONS) in self.world.kafka.refusing:
            return
        if not self.world.kafka.holds(LEADER_ID, self):
            self.end()
            return
        record = self.to_write[0]
        offset = self.append(record)
        self.to_write.popleft()
        self.handle(Written(offset))

    def doubt(self) -> None:
        """The next decision is durable or not, and nobody says which."""
        if self.to_write:
            refused = (TOPICS.control, DECISIONS) in self.world.kafka.refusing
            if self.world.kafka.holds(LEADER_ID, self) and not refused and self.world.dice.chance(0.7):
                self.append(self.to_write[0])
            self.end()

    def append(self, record: ControlRecord) -> int:
        offset = self.world.kafka.partition((TOPICS.control, DECISIONS)).append(encode_control(record))
        self.world.decided(offset, record)
        return offset

    def end(self) -> None:
        self.ended = True
        for work in self.works:
            work.cancel()
        self.writer.crash()

    @property
    def busy(self) -> bool:
        return bool(self.to_write or self.works or self.earlier) or not self.writer.idle

    # How actions are performed.

    def handle(self, event: Event) -> None:
        for action in self.core.handle(event, self.world.clock_ms):
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Write(record):
                self.to_write.append(record)
            case Tell(hint):
                self._tell(hint)
            case Fence(attempt):
                self.works.append(Work(self._fence(attempt), _raise))
            case Forget():
                self.world.forget(self, action)
            case Note(text):
                self.world.noted(text)
            case Announce():
                pass

    def _tell(self, hint: Hint) -> None:
        if isinstance(hint, Begin):
            self.world.begun(self, hint)
        self.writer.append(Record(TOPICS.control, HINTS, encode_message(hint)))

    def _fence(self, attempt: int) -> Coroutine[Any, Any, None]:
        async def fence() -> None:
            for task in range(self.world.tasks):
                self.writer.append(Record(TOPICS.inbox, task, encode_fence(attempt)))
            await self.writer.flush()
            self.handle(FencesWritten(attempt))

        return fence()


def _raise(error: BaseException) -> None:
    raise error
