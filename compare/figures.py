"""The figures of one run, recomputed from its raw records and the verdict of the oracle, and from nothing else.

Every function is pure. What always holds: shuffling the records changes no figure; what a run does not contain is None,
and never 0. Only orders that were meant to be sent at or after second 0 count: before that the load warms up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from penstock.compare.costs import Cost, Work, checkpoint_of, cost_of, interval_of, times_of, work_of
from penstock.compare.impact import (
    Baseline,
    Blast,
    Heat,
    Recovery,
    Window,
    blast_of,
    heat_of,
    is_during,
    recovery_of,
    windows_of,
)
from penstock.compare.orders import orders_of
from penstock.compare.records import Event, LedgerEntry, Run, Verdict
from penstock.compare.series import (
    Counts,
    Latency,
    Second,
    Timeline,
    counts_of,
    latency_of,
    quantiles_of,
    seconds_of,
    timeline_of,
)
from penstock.compare.statistics import ratio

COUNTED: Final = frozenset({"retry", "dlq", "rollback", "eject", "shed"})
"""Kinds that a runtime counts, so that one record may tell of several."""


HARMS: Final = {
    "lost": "lost",
    "duplicated": "doubled",
    "orphaned": "orphaned",
    "lied": "lied about",
    "wrong": "wrong",
}
"""How each field of `Truth` is called in a sentence."""


class Truth(msgspec.Struct, frozen=True):
    """What the oracle found in the ledger and the final states. Of an application of one's own, what its checks did:
    they say that something is wrong, and None is what they don't count."""

    lost: int | None
    duplicated: int | None
    orphaned: int | None
    lied: int | None
    wrong: int | None
    violations: dict[str, int]
    """By invariant."""

    @property
    def counted(self) -> dict[str, int]:
        """Each kind of harm that was looked for, and how often it was found."""
        return {harm: count for harm in HARMS if (count := getattr(self, harm)) is not None}

    @property
    def is_whole(self) -> bool:
        """Whether every kind of harm was looked for."""
        return len(self.counted) == len(HARMS)

    @property
    def harm(self) -> int:
        return sum(self.counted.values())


class RunFigures(msgspec.Struct, frozen=True):
    """Everything that is computed of one run."""

    run: str
    arm: str
    fault: str
    seed: int
    status: str
    reason: str
    counts: Counts
    goodput_per_s: float
    """Right answers to orders of the measured time, for each second of it."""
    availability: float | None
    latency: Latency | None
    quantiles: list[float]
    """Of the latencies, in milliseconds, at `SHARES`; empty if no order got a result."""
    untouched: Latency | None
    """Of the orders that never came to the bank, and were offered while a fault lasted; without a fault at any time."""
    touched: Latency | None
    """Of those that did."""
    seconds: list[Second]
    timeline: Timeline
    windows: list[Window]
    recovery: Recovery | None
    """None without a fault, or without a run of the same arm to compare with."""
    blast: Blast | None
    work: Work
    cost: Cost
    truth: Truth | None
    heat: Heat
    reasons: dict[str, int]
    """Why orders were refused or failed."""
    kinds: dict[str, float]
    """How often each kind of thing happened."""
    interval_s: float | None
    """Between checkpoints, as they were taken before the fault; None for an arm that takes none, or does not tell."""
    checkpoint_s: float | None
    """How long a checkpoint took on average, from its begin to its commit."""
    lag_max: float | None
    late_p99_ms: float | None
    protection: dict[str, Any]
    """The settings that were in force."""


def figures_of(
    run: Run,
    events: Sequence[Event],
    ledger: Sequence[LedgerEntry],
    verdict: Verdict | None,
    baseline: Baseline | None,
) -> RunFigures:
    """`baseline` is of the same arm without a fault; without one, what is compared with it is None."""
    at_bank = {entry.order for entry in ledger}
    every_order = orders_of(events, verdict)
    orders = [order for order in every_order if order.offered_s >= 0]
    counts = counts_of(orders)
    latency = latency_of(orders)
    seconds = seconds_of(orders, run.seconds)
    windows = windows_of(events, run.seconds)
    during = [order for order in orders if is_during(order.offered_s, windows)]
    recovery = recovery_of(every_order, seconds, windows, events, baseline)
    return RunFigures(
        run=run.run,
        arm=run.arm,
        fault=run.fault,
        seed=run.seed,
        status=run.status,
        reason=run.reason,
        counts=counts,
        goodput_per_s=counts.right / run.seconds if run.seconds else 0.0,
        availability=ratio(counts.right, counts.offered),
        latency=latency,
        quantiles=quantiles_of(orders),
        untouched=latency_of(order for order in during if order.name not in at_bank) if at_bank else None,
        touched=latency_of(order for order in during if order.name in at_bank),
        seconds=seconds,
        timeline=timeline_of(orders, run.seconds),
        windows=windows,
        recovery=recovery,
        blast=blast_of(every_order, events, windows, recovery, baseline, run.seconds),
        work=work_of(orders, events, ledger, counts, baseline),
        cost=cost_of(events, run.seconds, counts),
        truth=truth_of(verdict),
        heat=heat_of(orders, events, windows, baseline, run.seconds),
        reasons=dict(sorted(Counter(order.reason for order in orders if order.reason).items())),
        kinds=_kinds(events),
        interval_s=interval_of(events, windows[0].on_s if windows else run.seconds),
        checkpoint_s=checkpoint_of(events),
        lag_max=max((event.value for event in events if event.kind == "lag" and event.value is not None), default=None),
        late_p99_ms=run.late_p99_ms,
        protection=run.protection,
    )


def _kinds(events: Sequence[Event]) -> dict[str, float]:
    kinds: dict[str, float] = defaultdict(float)
    for event in events:
        kinds[event.kind] += times_of(event) if event.kind in COUNTED else 1
    return dict(sorted(kinds.items()))


def truth_of(verdict: Verdict | None) -> Truth | None:
    if verdict is None:
        return None
    return Truth(
        **{harm: verdict.counts.get(harm) for harm in HARMS},
        violations={name: len(found.violations) for name, found in sorted(verdict.invariants.items())},
    )


def sum_of_truths(truths: Sequence[Truth]) -> Truth | None:
    """Of several runs. None of none; a kind of harm that no run looked for stays None."""
    if not truths:
        return None
    found: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    for truth in truths:
        found.update(truth.counted)
        violations.update(truth.violations)
    return Truth(**{harm: found.get(harm) for harm in HARMS}, violations=dict(sorted(violations.items())))
