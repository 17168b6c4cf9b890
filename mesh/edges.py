"""Counts what goes from whom to whom: requests, attempts, and how long they took.

What always holds: a call counts once, whatever it took to answer it (the effective success rate), and every attempt of
it counts once (the actual one); without the two side by side, a mesh that retries hides the faults it is there for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final, NamedTuple

from penstock.mesh.policies.outcomes import Outcome

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OUTSIDE: Final = "outside"
"""Stands for who asks without being a function."""


class EdgeName(NamedTuple):
    source: str
    target: str


class Edge:
    """From one function to another."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        """By the status that ended them."""
        self.attempts: Counter[str] = Counter()
        """By their status, or why they had none."""
        self.attempts_succeeded = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        """Calls by duration: up to each bound, and above all."""

    @property
    def effective_success_rate(self) -> float:
        """What callers saw."""
        return _share(sum(count for status, count in self.calls.items() if status < 500), self.calls.total())

    @property
    def actual_success_rate(self) -> float:
        """What hosts did."""
        return _share(self.attempts_succeeded, self.attempts.total())


class Edges:
    """Of one process."""

    def __init__(self) -> None:
        self.known: dict[EdgeName, Edge] = {}

    def called(self, name: EdgeName, status: int, seconds: float) -> None:
        """A call has ended."""
        edge = self._edge(name)
        edge.calls[status] += 1
        edge.seconds += seconds
        edge.buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def tried(self, name: EdgeName, outcome: Outcome) -> None:
        """An attempt has ended."""
        edge = self._edge(name)
        edge.attempts[outcome.failure.value if outcome.failure is not None else str(outcome.status)] += 1
        edge.attempts_succeeded += outcome.succeeded

    def _edge(self, name: EdgeName) -> Edge:
        edge = self.known.get(name)
        if edge is None:
            edge = self.known[name] = Edge()
        return edge


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
