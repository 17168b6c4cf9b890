"""What a run took: attempts, work that was done again, CPU time, bytes, memory, checkpoints.

Every function is pure. What is sampled belongs to the runtime: the bank and the load generator cost nothing here. What
no record tells is None, and never 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from penstock.compare.impact import Baseline
from penstock.compare.orders import LOAD, Order
from penstock.compare.records import Event, LedgerEntry
from penstock.compare.series import Counts
from penstock.compare.statistics import ratio


class Work(msgspec.Struct, frozen=True):
    """How often things were done."""

    attempts: float
    """Requests that clients sent, again or for the first time, and what the runtime tried again on the way."""
    amplification: float | None
    """Attempts for each order offered."""
    bank_requests: float | None
    """That came to the bank, for each order of which any came: the amplification at the far end."""
    actual_error_rate: float | None
    """Of the attempts: a retry says that the attempt before it failed."""
    effective_error_rate: float | None
    """Of the orders: what the client saw."""
    starts: int | None
    """Handlers that began; None if the application keeps no witness."""
    wasted: float | None
    """Handlers that began more often than for the same orders without a fault, for each that was useful. None without
    such a run of the same seed."""


class Cost(msgspec.Struct, frozen=True):
    cpu_s: float | None
    cpu_ms_per_confirmed: float | None
    bytes_per_confirmed: float | None
    rss_max: int | None
    """The sum over processes of the most that each of them held."""


def work_of(
    orders: Sequence[Order],
    events: Iterable[Event],
    ledger: Iterable[LedgerEntry],
    counts: Counts,
    baseline: Baseline | None,
) -> Work:
    requests = Counter(entry.order for entry in ledger if entry.what == "request")
    own, by_runtime, sent = 0.0, 0.0, 0
    for event in events:
        if event.t < 0:
            continue
        if event.kind == "sent":
            sent += 1
        elif event.kind == "retry" and event.node == LOAD:
            own += 1
        elif event.kind == "retry":
            by_runtime += times_of(event)
    attempts = (sent or counts.offered) + by_runtime
    unanswered = counts.failed + counts.silent
    starts = sum(order.starts for order in orders)
    compared = [order for order in orders if baseline and order.name in baseline.starts]
    repeats = sum(baseline.repeats(order) for order in compared) if baseline else 0
    return Work(
        attempts=attempts,
        amplification=ratio(attempts, counts.offered),
        bank_requests=ratio(requests.total(), len(requests)),
        actual_error_rate=ratio(unanswered + own + by_runtime, attempts),
        effective_error_rate=ratio(unanswered, counts.offered),
        starts=starts or None,
        wasted=ratio(repeats, sum(order.starts for order in compared) - repeats) if compared and starts else None,
    )


def times_of(event: Event) -> float:
    """A record of a counter that was looked at tells by how much it rose; any other record counts once."""
    return 1.0 if event.value is None else event.value


def cost_of(events: Iterable[Event], seconds: float, counts: Counts) -> Cost:
    samples: dict[str, list[Event]] = defaultdict(list)
    sent = 0
    for event in events:
        if event.kind == "proc":
            samples[event.node].append(event)
        elif event.bytes is not None and event.t >= 0:
            sent += event.bytes
    used = [_cpu_used(of_one, seconds, _first_sample(samples)) for of_one in samples.values()]
    cpu_s = math.fsum(used) if used else None
    held = [max((event.rss for event in of_one if event.rss is not None), default=0) for of_one in samples.values()]
    return Cost(
        cpu_s=cpu_s,
        cpu_ms_per_confirmed=ratio(cpu_s * 1000, counts.confirmed) if cpu_s is not None else None,
        bytes_per_confirmed=ratio(sent, counts.confirmed) if sent else None,
        rss_max=sum(held) or None,
    )


def _first_sample(samples: dict[str, list[Event]]) -> float:
    return min((event.t for of_one in samples.values() for event in of_one), default=0.0)


def _cpu_used(samples: list[Event], seconds: float, first_s: float) -> float:
    """Within the measured time. A counter that falls is that of a new process under the old name, and a process that is
    first seen later than the others began then: what it shows has been used since."""
    used = 0.0
    before: float | None = None
    for event in sorted(samples, key=lambda event: event.t):
        if event.cpu_s is None or event.t > seconds:
            continue
        if before is None:
            before = event.cpu_s if event.t < max(first_s, 0.0) + 1.5 else 0.0
        if event.t >= 0:
            used += event.cpu_s - before if event.cpu_s >= before else event.cpu_s
        before = event.cpu_s
    return used


def interval_of(events: Iterable[Event], before_s: float) -> float | None:
    """Between checkpoints, on average, as they were taken in the measured time before the first fault: what is set is
    the longest, and one is taken early while an answer waits for it."""
    taken = sorted(event.t for event in events if event.kind == "ckpt_commit" and 0 <= event.t < before_s)
    return (taken[-1] - taken[0]) / (len(taken) - 1) if len(taken) > 1 else None


def checkpoint_of(events: Iterable[Event]) -> float | None:
    """Of those whose begin and commit are both told."""
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    for event in events:
        if event.epoch is None:
            continue
        if event.kind == "ckpt_begin":
            begun[event.epoch] = min(event.t, begun.get(event.epoch, math.inf))
        elif event.kind == "ckpt_commit":
            ended[event.epoch] = max(event.t, ended.get(event.epoch, -math.inf))
    took = [ended[epoch] - start for epoch, start in begun.items() if epoch in ended]
    return math.fsum(took) / len(took) if took else None
