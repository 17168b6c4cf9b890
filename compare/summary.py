"""The figures of a whole comparison: of every run, and of every arm under every fault over its seeds.

What always holds: a cell of arm and fault is made of complete runs only; of those that are missing, invalid or can't be
expressed the reason is kept, so that an empty cell never looks like a zero. Damage is summed over seeds and never
averaged: one order lost in one seed of ten is one order lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from penstock.compare.figures import RunFigures, Truth, figures_of, sum_of_truths
from penstock.compare.impact import Baseline, baseline_of
from penstock.compare.records import BASELINE, Comparison, Plan, PlannedArm, Run, RunDirectory, run_name
from penstock.compare.series import Counts
from penstock.compare.statistics import Estimate, estimate
from penstock.errors import InvalidInput


class Cell(msgspec.Struct, frozen=True):
    """One arm under one fault, over its seeds."""

    arm: str
    fault: str
    state: Literal["measured", "na", "invalid", "missing"]
    reason: str
    """Why it is not measured."""
    seeds: int
    counts: Counts
    truth: Truth | None
    """Summed over the seeds. None without an oracle."""
    availability: Estimate | None
    goodput_per_s: Estimate | None
    p50_ms: Estimate | None
    p99_ms: Estimate | None
    detect_s: Estimate | None
    repair_s: Estimate | None
    catch_up_s: Estimate | None
    recovery_s: Estimate | None
    """Of the seeds that recovered; see `unrecovered`."""
    unrecovered: int
    """Seeds in which no recovery was seen until the end of the run."""
    blast: Estimate | None
    blast_own: Estimate | None
    blast_collateral: Estimate | None
    amplification: Estimate | None
    bank_requests: Estimate | None
    wasted: Estimate | None
    actual_error_rate: Estimate | None
    effective_error_rate: Estimate | None
    cpu_ms_per_confirmed: Estimate | None
    bytes_per_confirmed: Estimate | None


class Summary(msgspec.Struct, frozen=True):
    """All that the report is made of."""

    plan: Plan
    plan_sha256: str
    records_sha256: str
    runs: list[RunFigures]
    cells: list[Cell]
    missing: list[str]

    def cell(self, arm: str, fault: str) -> Cell | None:
        """None if it was not measured."""
        found = (cell for cell in self.cells if (cell.arm, cell.fault) == (arm, fault) and cell.state == "measured")
        return next(found, None)

    def runs_of(self, arm: str, fault: str) -> list[RunFigures]:
        """The complete ones, by seed."""
        return [run for run in self.runs if (run.arm, run.fault, run.status) == (arm, fault, "complete")]

    def arms(self, mode: str = "") -> list[PlannedArm]:
        """Those of which anything was measured."""
        measured = {cell.arm for cell in self.cells if cell.state == "measured"}
        return [arm for arm in self.plan.arms if arm.name in measured and mode in ("", arm.mode)]

    def faults(self) -> list[str]:
        """Those under which anything was measured, the absence of a fault included."""
        measured = {cell.fault for cell in self.cells if cell.state == "measured"}
        return [fault.name for fault in self.plan.faults if fault.name in measured]


def summarise(directory: Path) -> Summary:
    """Of everything in the directory that is done. Raises InvalidInput if that is nothing, or damaged, or mixed."""
    comparison = Comparison(directory)
    done = list(comparison.done())
    if not any(run.status == "complete" for run, _ in done):
        raise InvalidInput(
            "PEN0980",
            f"{directory} has no complete run among the {len(comparison.planned())} that are planned, so there is "
            f"nothing to report{_reasons(run for run, _ in done)}. Repeat the command that measures: it goes on.",
        )
    runs = _all_figures(done)
    return Summary(
        plan=comparison.plan,
        plan_sha256=comparison.plan_sha256,
        records_sha256=comparison.records_sha256(),
        runs=runs,
        cells=cells_of(comparison.plan, runs),
        missing=comparison.missing(),
    )


def _reasons(runs: Iterable[Run]) -> str:
    reasons = sorted({f"{run.status}: {run.reason}" for run in runs if run.reason})
    return f" ({'; '.join(reasons[:3])})" if reasons else ""


def _all_figures(done: Sequence[tuple[Run, RunDirectory]]) -> list[RunFigures]:
    """In the order of the plan."""
    by_arm: dict[str, list[tuple[Run, RunDirectory]]] = defaultdict(list)
    for run, directory in done:
        by_arm[run.arm].append((run, directory))
    figures = {found.run: found for of_arm in by_arm.values() for found in _figures_of_arm(of_arm)}
    return [figures[run.run] for run, _ in done]


def _figures_of_arm(done: Sequence[tuple[Run, RunDirectory]]) -> Iterator[RunFigures]:
    """What happens without a fault comes first, because the others are compared with it."""
    by_seed: dict[int, Baseline] = {}
    for run, directory in done:
        if (run.fault, run.status) == (BASELINE, "complete") and (found := baseline_of(directory.events())):
            by_seed[run.seed] = found
    # Another seed differs in which orders come, and not in the arm.
    other = by_seed[min(by_seed)].of_another_seed() if by_seed else None
    for run, directory in done:
        yield _figures(run, directory, by_seed.get(run.seed, other))


def _figures(run: Run, directory: RunDirectory, baseline: Baseline | None) -> RunFigures:
    if run.status != "complete":
        # Of a run that proves nothing no figure is made, only the reason is told.
        return figures_of(run, [], [], None, None)
    return figures_of(run, list(directory.events()), directory.ledger(), directory.verdict(), baseline)


def cells_of(plan: Plan, runs: Sequence[RunFigures]) -> list[Cell]:
    by_name = {run.run: run for run in runs}
    cells = []
    for arm in plan.arms:
        for fault in plan.faults:
            names = [run_name(arm.name, fault.name, seed) for seed in plan.seeds]
            of_cell = [by_name[name] for name in names if name in by_name]
            cells.append(_cell(arm.name, fault.name, of_cell, plan.na.get(f"{arm.name}-{fault.name}", "")))
    return cells


def _cell(arm: str, fault: str, runs: Sequence[RunFigures], na: str) -> Cell:
    complete = [run for run in runs if run.status == "complete"]

    def over(figure: Callable[[RunFigures], float | None], *, share: bool = False) -> Estimate | None:
        values = (figure(run) for run in complete)
        return estimate([value for value in values if value is not None], share=share)

    state, reason = _state(runs, complete, na)
    return Cell(
        arm=arm,
        fault=fault,
        state=state,
        reason=reason,
        seeds=len(complete),
        counts=sum((run.counts for run in complete), Counts()),
        truth=sum_of_truths([run.truth for run in complete if run.truth]),
        availability=over(lambda run: run.availability, share=True),
        goodput_per_s=over(lambda run: run.goodput_per_s),
        p50_ms=over(lambda run: run.latency.p50 if run.latency else None),
        p99_ms=over(lambda run: run.latency.p99 if run.latency else None),
        detect_s=over(lambda run: run.recovery.detect_s if run.recovery else None),
        repair_s=over(lambda run: run.recovery.repair_s if run.recovery else None),
        catch_up_s=over(lambda run: run.recovery.catch_up_s if run.recovery else None),
        recovery_s=over(lambda run: run.recovery.recovery_s if run.recovery else None),
        unrecovered=sum(run.recovery is not None and run.recovery.recovery_s is None for run in complete),
        blast=over(lambda run: run.blast.share if run.blast else None, share=True),
        blast_own=over(lambda run: run.blast.own if run.blast else None, share=True),
        blast_collateral=over(lambda run: run.blast.collateral if run.blast else None, share=True),
        amplification=over(lambda run: run.work.amplification),
        bank_requests=over(lambda run: run.work.bank_requests),
        wasted=over(lambda run: run.work.wasted),
        actual_error_rate=over(lambda run: run.work.actual_error_rate, share=True),
        effective_error_rate=over(lambda run: run.work.effective_error_rate, share=True),
        cpu_ms_per_confirmed=over(lambda run: run.cost.cpu_ms_per_confirmed),
        bytes_per_confirmed=over(lambda run: run.cost.bytes_per_confirmed),
    )


def _state(
    runs: Sequence[RunFigures], complete: Sequence[RunFigures], na: str
) -> tuple[Literal["measured", "na", "invalid", "missing"], str]:
    if complete:
        return "measured", ""
    if na:
        return "na", na
    if not runs:
        return "missing", "not measured yet"
    return ("na" if all(run.status == "na" for run in runs) else "invalid"), runs[0].reason
