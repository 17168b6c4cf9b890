"""What a run looks like in time: how many orders came to what, how long they took, second by second.

Every function is pure. What always holds: the counts of two halves of the orders add up to those of the whole; an order
belongs to the second in which it was meant to be sent, however late its answer; windows that are cut off are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from penstock.compare.orders import Order, Outcome
from penstock.compare.statistics import percentile

SHARES: Final = (*(percent / 100 for percent in range(1, 100)), 0.995, 0.999, 1.0)
"""Where a distribution is kept."""
TENTHS: Final = 10
"""Slots of a timeline in a second."""


class Counts(msgspec.Struct, frozen=True):
    """What became of the orders. They add up: every order offered is in exactly one of the four."""

    offered: int = 0
    confirmed: int = 0
    rejected: int = 0
    failed: int = 0
    silent: int = 0
    right: int = 0
    """Of those confirmed and rejected: the ones that no violated invariant names."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(a + b for a, b in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True))
        )


class Latency(msgspec.Struct, frozen=True):
    """Of orders that got a result, in milliseconds from the intended time."""

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    largest: float


class Second(msgspec.Struct, frozen=True):
    """The orders that were meant to be sent within one second."""

    start_s: float
    offered: int
    right: int
    p99_ms: float | None

    @property
    def availability(self) -> float | None:
        return self.right / self.offered if self.offered else None


class Timeline(msgspec.Struct, frozen=True):
    """Per tenth of a second from second 0: requests by their intended time, results and errors by when they came."""

    offered: list[int]
    good: list[int]
    errors: list[int]


def counts_of(orders: Iterable[Order]) -> Counts:
    listed = list(orders)
    outcomes = Counter(order.outcome for order in listed)
    return Counts(
        offered=len(listed),
        confirmed=outcomes[Outcome.CONFIRMED],
        rejected=outcomes[Outcome.REJECTED],
        failed=outcomes[Outcome.FAILED],
        silent=outcomes[Outcome.SILENT],
        right=sum(order.right for order in listed),
    )


def latency_of(orders: Iterable[Order]) -> Latency | None:
    """None if no order got a result. Errors are no answers: how fast they came is not in here."""
    values = sorted(_results(orders))
    if not values:
        return None
    return Latency(
        count=len(values),
        p50=percentile(values, 0.5),
        p90=percentile(values, 0.9),
        p99=percentile(values, 0.99),
        p999=percentile(values, 0.999),
        largest=values[-1],
    )


def quantiles_of(orders: Iterable[Order]) -> list[float]:
    """At `SHARES`, to draw the distribution without keeping every latency."""
    values = latencies_of(orders)
    return [percentile(values, share) for share in SHARES] if values else []


def latencies_of(orders: Iterable[Order]) -> list[float]:
    """In milliseconds, ascending."""
    return sorted(_results(orders))


def _results(orders: Iterable[Order]) -> Iterable[float]:
    terminal = (Outcome.CONFIRMED, Outcome.REJECTED)
    return (order.latency_ms for order in orders if order.latency_ms is not None and order.outcome in terminal)


def seconds_of(orders: Iterable[Order], seconds: float, *, from_s: float = 0.0) -> list[Second]:
    """Whole seconds only, counted from `from_s`: a window that is cut off would look like an outage."""
    windows: list[list[Order]] = [[] for _ in range(max(math.floor(seconds - from_s + 1e-9), 0))]
    for order in orders:
        place = math.floor(order.offered_s - from_s)
        if 0 <= place < len(windows):
            windows[place].append(order)
    return [_second(from_s + place, window) for place, window in enumerate(windows)]


def _second(start_s: float, orders: list[Order]) -> Second:
    values = latencies_of(orders)
    return Second(
        start_s, len(orders), sum(order.right for order in orders), percentile(values, 0.99) if values else None
    )


def timeline_of(orders: Iterable[Order], seconds: float) -> Timeline:
    slots = math.ceil(seconds * TENTHS - 1e-9)
    line = Timeline([0] * slots, [0] * slots, [0] * slots)
    for order in orders:
        _add(line.offered, order.offered_s)
        if order.answered_s is not None:
            _add(line.good if order.right else line.errors, order.answered_s)
    return line


def _add(slots: list[int], t: float) -> None:
    place = math.floor(t * TENTHS)
    if 0 <= place < len(slots):
        slots[place] += 1
