"""A leader with workers that do at once what it says. What many of them make of delays is simulated elsewhere."""

from __future__ import annotations

from penstock.checkpoint.control import Part
from penstock.checkpoint.leader import Event as LeaderEvent
from penstock.checkpoint.leader import Fence, FencesWritten, Heard, Leader, LeaderOptions, Tell, Ticked, Write, Written
from penstock.checkpoint.reports import Acknowledgement, Alive, Begin, Changed, Ended, Prepared

TASKS = 4


class Led:
    """A leader whose records are durable at once, and the newest checkpoint it has begun."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.leader = Leader(LeaderOptions("leader#1", "shop", TASKS, {}, workers_expected=2), (), self.now_ms)
        self.begun: Begin | None = None
        self._offset = 0

    def tell(self, event: LeaderEvent) -> None:
        waiting = [event]
        while waiting:
            for action in self.leader.handle(waiting.pop(0), self.now_ms):
                match action:
                    case Write():
                        waiting.append(Written(self._offset))
                        self._offset += 1
                    case Fence(attempt):
                        waiting.append(FencesWritten(attempt))
                    case Tell(hint) if isinstance(hint, Begin):
                        self.begun = hint

    def pass_time(self, ms: float) -> None:
        self.now_ms += ms
        self.tell(Ticked())

    def begin(self) -> Begin:
        """Let a checkpoint be begun."""
        self.begun = None
        attempt = self.leader.attempt
        assert attempt is not None
        self.tell(Heard(Changed("w", attempt.lineage.attempt, "output")))
        for _ in range(10):
            if self.begun is None:
                self.pass_time(300)
        assert self.begun is not None
        return self.begun

    def acknowledge(self, begun: Begin) -> None:
        """All workers cut, and let stand still what they are asked to."""
        for worker in sorted(set(self.leader.owners.values())):
            tasks = [task for task, owner in self.leader.owners.items() if owner == worker]
            parts = tuple(Part(task, "", 0, -1, 0, -1, 0, 0) for task in tasks)
            released = tuple(task for task in tasks if task in begun.release)
            self.tell(Heard(Acknowledgement(worker, begun.attempt, begun.checkpoint, parts, {}, released)))

    def alive(self, worker: str, *, leaving: bool = False) -> None:
        self.tell(Heard(Alive(worker, worker.partition("#")[0], leaving=leaving)))


def test_what_goes_to_nobody_goes_all_at_once() -> None:
    """Tasks are on their way to a worker that leaves, when all others leave, too."""
    led = Led()
    led.alive("a#1")
    led.pass_time(1_000)
    led.alive("b#1")
    assert led.begun is not None
    led.acknowledge(led.begun)
    led.tell(Heard(Prepared("b#1", tuple(range(TASKS)))))
    moving = led.begin()
    assert 0 < len(moving.release) < TASKS

    led.alive("a#1", leaving=True)
    led.alive("b#1", leaving=True)
    led.tell(Heard(Ended("b#1", "stopped")))
    led.acknowledge(moving)
    assert set(led.leader.owners) == set(range(TASKS))

    last = led.begin()
    assert set(last.release) == set(range(TASKS))
    led.acknowledge(last)
    assert led.leader.owners == {}
