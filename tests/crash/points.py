"""What is tried: at which point, in which process, at which passing, and what happens there.

What always holds: every point of `penstock.faults` is tried where it can be passed; the passing is one that a running
application comes to within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from penstock.faults import POINTS

VARIABLE = "CRASH_FAULTS"
"""Names the file with the faults to be armed, in the environment of `tests.crash.app`."""


class Case(NamedTuple):
    """One fault."""

    point: str
    who: str = "worker"
    action: str = "kill"
    trigger: str = ""
    """What is killed so that the point is passed; empty for a point that a working application passes."""
    also: str = ""
    """What is killed as soon as the fault has struck."""
    passing: int = 1

    @property
    def reads_base(self) -> bool:
        """Whether the point is passed only where a checkpoint has a base."""
        return self.point.startswith("restore")

    @property
    def ends_all(self) -> bool:
        """Whether the application ends, and a person has to start it again: a sink that raises what it should not would
        do so again."""
        return self.who == "supervisor" or (self.action == "raise" and self.point.startswith("egress"))

    @property
    def name(self) -> str:
        return f"{self.who}{f' and {self.also}' if self.also else ''}: {self.point}, {self.action}"

    @property
    def fault(self) -> str:
        return f"{self.point}:{self.passing}:{self.action}"


ACTIONS = ("kill", "raise", "hang")
ON_KAFKA = frozenset(point for point, what in POINTS.items() if what.startswith("on Kafka"))

_COUNTS = {
    "turn": 40,
    "cut": 6,
    "settle": 6,
    "delta": 6,
    "delta.written": 2,
    "egress": 5,
    "egress.marked": 2,
    "file": 5,
    "fold": 3,
    "transaction": 5,
    "complete": 2,
    "acknowledgement": 3,
}
"""Points that are passed again and again, and for each task: some tenths of a second, and neither the first nor always
the same task."""


def count_of(point: str) -> int:
    return _COUNTS.get(point, _COUNTS.get(point.partition(".")[0], 1))


# One process, one directory.


def embedded(action: str) -> list[Case]:
    """Every point that one process passes. Those of a start are passed when it is killed and started again."""
    starting = ("restore", "attempt", "egress.marked")
    return [
        Case(point, "worker", action, "worker" if point.startswith(starting) else "", "", count_of(point))
        for point in POINTS
        if point not in ON_KAFKA and not point.startswith("supervisor")
    ]


# Two workers, a leader and their supervisor, on Kafka.

_DECIDING = ("lead", "reserve", "begin", "acknowledgement", "complete", "attempt", "fence", "assign", "recap", "forget")
_TRIGGERS = {
    # A worker is gone: a new attempt begins, and the other restores all tasks.
    "restore": "worker-1",
    "egress.marked": "worker-1",
    "attempt": "worker-1",
    "fence": "worker-1",
    "assign": "worker-1",
    # It is there again, and gets tasks of the other.
    "handoff": "worker-1",
    "lead": "leader",
    "supervisor": "worker-1",
}


def on_kafka(action: str, *, both: bool = False) -> Iterator[Case]:
    """Every point that can be passed there, by whoever passes it; or the same with leader and worker dying together."""
    for number, point in enumerate(POINTS):
        area = point.partition(".")[0]
        if area == "file":
            continue
        trigger = _TRIGGERS.get(point, _TRIGGERS.get(area, ""))
        if area == "supervisor":
            who = ["supervisor"]
        elif area in _DECIDING:
            who = ["leader"]
        elif area == "transaction":
            who = ["worker-0", "leader"]
        elif point.startswith("handoff.adopt"):
            who = ["worker-1"]
        else:
            who = ["worker-0" if trigger or number % 2 else "worker-1"]
        for each in who:
            if both and each == "supervisor":
                continue
            also = ("worker-0" if each == "leader" else "leader") if both else ""
            yield Case(point, each, action, trigger, also, count_of(point))


QUICK = frozenset(
    {
        ("worker", "turn.run"),
        ("worker", "delta.written"),
        ("worker", "cut.durable"),
        ("worker", "cut.acknowledged"),
        ("worker", "settle.told"),
        ("worker", "fold.half"),
        ("worker", "base.half"),
        ("worker", "base.stored"),
        ("worker", "restore.half"),
        ("worker", "restore.delta"),
        ("worker", "handoff.standing"),
        ("worker", "handoff.adopted"),
        ("worker", "transaction.sent"),
        ("worker", "transaction.committed"),
        ("leader", "lead.begun"),
        ("leader", "reserve.durable"),
        ("leader", "complete.writing"),
        ("leader", "complete.durable"),
        ("leader", "attempt.durable"),
        ("leader", "fence.half"),
        ("leader", "assign.durable"),
        ("leader", "forget.half"),
        ("supervisor", "supervisor.ended"),
    }
)
"""On Kafka, those that run with all other tests."""
QUICK_BOTH = frozenset({("worker", "cut.durable"), ("leader", "complete.durable")})


def quick() -> list[Case]:
    return [
        *(case for case in on_kafka("kill") if (case.who.partition("-")[0], case.point) in QUICK),
        *(case for case in on_kafka("kill", both=True) if (case.who.partition("-")[0], case.point) in QUICK_BOTH),
    ]
