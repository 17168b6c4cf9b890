"""Counts of what tasks have done here, which outlive the tasks: where there are several workers, tasks come and go.

What always holds: no count ever falls while the process lives, so rates made of them are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

from penstock.engine.feeds import InputFeed
from penstock.engine.sinks import SinkDriver
from penstock.engine.unit import TaskUnit


@dataclass
class Totals:
    """See the module. Since the process started."""

    messages: Counter[str] = field(default_factory=Counter)
    """By function."""
    failures: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    """Records, by ingress."""
    committed: Counter[str] = field(default_factory=Counter)
    """Rows, by egress."""
    commits: Counter[str] = field(default_factory=Counter)
    """By egress that waits for checkpoints: of Kafka, transactions."""
    frames_dropped: int = 0
    """Of attempts that are over."""

    def add(self, unit: TaskUnit, ingresses: Iterable[InputFeed]) -> None:
        """Count what a unit and its ingresses have done."""
        self.messages.update(unit.core.messages)
        self.failures.update(unit.core.failures)
        self.frames_dropped += unit.snapshot.dropped
        for feed in ingresses:
            self.read[feed.name] += feed.records
        for name, driver in unit.sinks.items():
            if isinstance(driver, SinkDriver):
                statistics = driver.statistics()
                self.committed[name] += statistics.rows_committed
                self.commits[name] += statistics.commits
            else:
                self.committed[name] += driver.written

    def copy(self) -> Totals:
        return deepcopy(self)
