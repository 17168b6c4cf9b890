"""Says in words what a comparison has shown: which arm lost what, and when to choose which.

What always holds: every sentence is made of figures that stand elsewhere in the report; a difference is called one only
where the intervals of both sides don't touch, or, of one seed, with the remark that it has no interval; if the runs
don't tell the two apart, that is what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from penstock.compare.figures import HARMS, Truth
from penstock.compare.records import BASELINE, PlannedArm
from penstock.compare.selection import is_control, leading, protected
from penstock.compare.series import Counts
from penstock.compare.statistics import Estimate, estimate, upper_bound_of_none
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import NOTHING, interval, listed, milliseconds, percent, seconds
from penstock.logs import counted

Show = Callable[[float], str]


class Line(msgspec.Struct, frozen=True):
    """What happened, and what both sides made of it."""

    what: str
    figures: list[str]
    """One for each side."""


class Conclusion(msgspec.Struct, frozen=True):
    """The top of the report."""

    headline: str
    sentences: list[str]
    sides: list[str]
    """The arm that stands for the stream, and the one that stands for the mesh."""
    board: list[Line]
    choose_stream: list[str]
    """Reasons that these runs give; empty if they give none."""
    choose_mesh: list[str]
    caveats: list[str]


def conclusion_of(summary: Summary) -> Conclusion:
    stream, mesh = leading(summary, "stream"), leading(summary, "mesh")
    reasons = _reasons(summary, stream, mesh)
    return Conclusion(
        headline=_headline(summary),
        sentences=[
            *_answered(summary, [name for name in (stream, mesh) if name]),
            *_damage(summary),
            *_controls(summary),
        ],
        sides=[name for name in (stream, mesh) if name],
        board=_board(summary, [name for name in (stream, mesh) if name]),
        choose_stream=[reason.text for reason in reasons if reason.mode == "stream"],
        choose_mesh=[reason.text for reason in reasons if reason.mode == "mesh"],
        caveats=_caveats(summary),
    )


# ---- what was damaged


def _headline(summary: Summary) -> str:
    careful = [*protected(summary, "stream"), *protected(summary, "mesh")]
    harmed = [arm.name for arm in careful if _harm(_cells(summary, arm))]
    if not any(cell.truth for cell in summary.cells):
        return "No oracle judged these runs, so they tell of times and errors only"
    spared = [arm.name for arm in careful if arm.name not in harmed]
    parts = [f"{listed(harmed)} did harm"] if harmed else []
    parts += [f"{listed(spared)} did no harm"] if spared else []
    return "; ".join(parts) or "Only controls were measured"


def _answered(summary: Summary, arms: Sequence[str]) -> Iterable[str]:
    """How much came through the faults. An arm that turns everything away does no harm, and is no better for it."""
    told = []
    for arm in arms:
        cells = [cell for cell in summary.cells if (cell.arm, cell.state) == (arm, "measured")]
        counts = sum((cell.counts for cell in cells if cell.fault != BASELINE), Counts())
        if counts.offered:
            told.append(f"{arm} answered {percent(counts.right / counts.offered)}")
    if told:
        yield f"Of the orders in all runs with a fault, {listed(told)} rightly."


def _damage(summary: Summary) -> Iterable[str]:
    spared: list[PlannedArm] = []
    for arm in [*protected(summary, "stream"), *protected(summary, "mesh")]:
        cells = _cells(summary, arm)
        if not any(cell.truth for cell in cells):
            continue
        if _harm(cells):
            yield f"{arm.name} ({arm.title}): {_told(cells)}."
        elif all(cell.truth.is_whole for cell in cells if cell.truth):
            spared.append(arm)
        else:
            runs = counted(sum(cell.seeds for cell in cells), "run")
            yield f"The checks found nothing wrong with {arm.name} in {runs}."
    if spared:
        offered = sum(cell.counts.offered for arm in spared for cell in _cells(summary, arm))
        bound = percent(upper_bound_of_none(offered), digits=3)
        yield (
            f"{listed([arm.name for arm in spared])} lost, doubled and orphaned nothing and lied to nobody in "
            f"{offered:,} orders: with 95 % certainty harm comes to fewer than {bound} of them."
        )


def _controls(summary: Summary) -> Iterable[str]:
    controls = [arm for arm in summary.arms() if is_control(arm)]
    shown = [arm for arm in controls if _harm(_cells(summary, arm))]
    for arm in shown:
        yield f"{arm.name} ({arm.title}): {_told(_cells(summary, arm))}. So harm would have been seen elsewhere, too."
    blank = [arm.name for arm in controls if arm not in shown]
    if blank:
        yield f"{listed(blank)}, meant to show harm, show{'s' if len(blank) == 1 else ''} none in what was measured."
    if not controls:
        yield "No control was measured, so nothing proves that harm would have been seen."


def _told(cells: Iterable[Cell]) -> str:
    """`12 doubled under X9; 3 orphaned under X2`."""
    return "; ".join(f"{_counted(cell.truth)} under {cell.fault}" for cell in cells if cell.truth and cell.truth.harm)


def _counted(truth: Truth) -> str:
    return listed([f"{count} {HARMS[harm]}" for harm, count in truth.counted.items() if count])


def _cells(summary: Summary, arm: PlannedArm) -> list[Cell]:
    return [cell for cell in summary.cells if cell.arm == arm.name and cell.state == "measured"]


def _harm(cells: Iterable[Cell]) -> int:
    return sum(cell.truth.harm for cell in cells if cell.truth)


# ---- how it went


def _board(summary: Summary, arms: Sequence[str]) -> list[Line]:
    lines = [
        Line(title, [_shown(summary.cell(arm, BASELINE), field, show) for arm in arms])
        for title, field, show in (
            ("Nothing happens: half of the orders are answered within", "p50_ms", milliseconds),
            ("Nothing happens: 99 % of the orders are answered within", "p99_ms", milliseconds),
            ("Nothing happens: CPU time for a confirmed order", "cpu_ms_per_confirmed", milliseconds),
        )
    ]
    faults = [fault for fault in summary.plan.faults if fault.name in summary.faults() and fault.name != BASELINE]
    lines += [
        Line(f"{fault.name}, {fault.title}", [_of_fault(summary, arm, fault.name) for arm in arms]) for fault in faults
    ]
    return [line for line in lines if any(figure != NOTHING for figure in line.figures)]


def _shown(cell: Cell | None, field: str, show: Show) -> str:
    return interval(getattr(cell, field), show) if cell else NOTHING


def _of_fault(summary: Summary, arm: str, fault: str) -> str:
    cell = next(cell for cell in summary.cells if (cell.arm, cell.fault) == (arm, fault))
    if cell.state != "measured":
        return {"na": f"n/a: {cell.reason}", "invalid": f"invalid: {cell.reason}", "missing": NOTHING}[cell.state]
    return f"{interval(cell.availability, percent)} answered rightly, {_back(cell)}"


def _back(cell: Cell) -> str:
    if cell.unrecovered:
        return f"not back to normal by the end in {cell.unrecovered} of {cell.seeds} runs"
    if cell.recovery_s is None:
        return "with nothing to compare with"
    return f"back to normal after {interval(cell.recovery_s, seconds)}" if cell.recovery_s.mean else "normal throughout"


# ---- when to choose which


class _Reason(NamedTuple):
    mode: str
    text: str


LATENCY_RATIO: Final = 1.5
COST_RATIO: Final = 1.2
AVAILABILITY_STEP: Final = 0.01
RECOVERY_STEP_S: Final = 1.0
"""What is less is no reason to choose, however sure it is."""


def _reasons(summary: Summary, stream: str, mesh: str) -> list[_Reason]:
    s, m = summary.cell(stream, BASELINE), summary.cell(mesh, BASELINE)
    found: list[_Reason | None] = []
    if s and m:
        found.append(
            _smaller(
                s.p50_ms, m.p50_ms, LATENCY_RATIO, milliseconds, "somebody waits for the answer: half are there in"
            )
        )
        found.append(
            _smaller(
                s.cpu_ms_per_confirmed,
                m.cpu_ms_per_confirmed,
                COST_RATIO,
                milliseconds,
                "CPU is what it costs: a confirmed order takes",
            )
        )
    for fault in summary.faults():
        if fault != BASELINE:
            found += [_through_a_fault(summary, fault, stream, mesh), _sooner(summary, fault, stream, mesh)]
    found.append(_right(summary, stream, mesh))
    return [reason for reason in found if reason]


def _smaller(s: Estimate | None, m: Estimate | None, ratio: float, show: Show, text: str) -> _Reason | None:
    if not s or not m or not _apart(s, m):
        return None
    winner, other, mode = (s, m, "stream") if s.mean < m.mean else (m, s, "mesh")
    if other.mean < ratio * winner.mean:
        return None
    return _Reason(mode, f"{text} {show(winner.mean)}, against {show(other.mean)}{_remark(s, m)}")


def _through_a_fault(summary: Summary, fault: str, stream: str, mesh: str) -> _Reason | None:
    s, m = summary.cell(stream, fault), summary.cell(mesh, fault)
    if not (s and m and s.availability and m.availability) or not _apart(s.availability, m.availability):
        return None
    if abs(s.availability.mean - m.availability.mean) < AVAILABILITY_STEP:
        return None
    better, worse, mode = (s, m, "stream") if s.availability.mean > m.availability.mean else (m, s, "mesh")
    assert better.availability
    assert worse.availability
    return _Reason(
        mode,
        f"it must go on while {_title(summary, fault)} ({fault}): {percent(better.availability.mean)} are answered "
        f"rightly, against {percent(worse.availability.mean)}{_remark(s.availability, m.availability)}",
    )


def _sooner(summary: Summary, fault: str, stream: str, mesh: str) -> _Reason | None:
    """Also where every order is answered rightly in the end, some may be kept waiting."""
    cells = [summary.cell(arm, fault) for arm in (stream, mesh)]
    s, m = (cell.recovery_s if cell and not cell.unrecovered else None for cell in cells)
    if not s or not m or not _apart(s, m) or abs(s.mean - m.mean) < RECOVERY_STEP_S:
        return None
    quick, late, mode = (s, m, "stream") if s.mean < m.mean else (m, s, "mesh")
    back = f"back to normal after {seconds(quick.mean)}" if quick.mean else "normal throughout"
    return _Reason(
        mode,
        f"nobody may be kept waiting while {_title(summary, fault)} ({fault}): it is {back}, and the other after "
        f"{seconds(late.mean)}{_remark(s, m)}",
    )


def _title(summary: Summary, fault: str) -> str:
    return next(planned.title for planned in summary.plan.faults if planned.name == fault)


def _right(summary: Summary, stream: str, mesh: str) -> _Reason | None:
    arms = {arm.name: arm for arm in summary.arms()}
    if stream not in arms or mesh not in arms:
        return None
    s, m = _harm(_cells(summary, arms[stream])), _harm(_cells(summary, arms[mesh]))
    if bool(s) == bool(m):
        return None
    mode, worse, harm = ("mesh", stream, s) if s else ("stream", mesh, m)
    return _Reason(mode, f"every outcome must be right: {worse} had {harm} that were not")


def _apart(a: Estimate, b: Estimate) -> bool:
    """One seed on either side has no interval: then the means decide, and the text says so."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.high < b.low or b.high < a.low


def _remark(*values: Estimate) -> str:
    return " (one seed, so without an interval)" if any(value.low is None for value in values) else ""


# ---- what to keep in mind


def _caveats(summary: Summary) -> list[str]:
    invalid = [run for run in summary.runs if run.status in ("invalid", "failed")]
    found = [f"{run.run} is {run.status}: {run.reason}." for run in invalid]
    if summary.missing:
        found.append(f"{len(summary.missing)} of the planned runs are not measured yet.")
    if len(summary.plan.seeds) == 1:
        found.append(
            "Everything was measured with one seed: nothing here has an interval, and chance is not ruled out."
        )
    late = estimate([run.late_p99_ms for run in summary.runs if run.late_p99_ms is not None])
    if late:
        found.append(f"The load generator was late by {milliseconds(late.mean)} (p99, mean of the runs).")
    return found
