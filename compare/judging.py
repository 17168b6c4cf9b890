"""The rules by which claims about the two philosophies are judged, one for each claim and named after it.

What always holds: a verdict follows from figures alone. What a single run can show, such as one order lost, is decided
by a single run; what is a matter of degree needs an interval over seeds that lies wholly on one side, and is undecided
otherwise, with the number and where it points. Where the runs contain nothing of it, the rule is silent and says what
is missing: that neither confirms nor refutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from penstock.compare.figures import Truth
from penstock.compare.predictions import prediction_of
from penstock.compare.records import BASELINE
from penstock.compare.selection import cells_with, faults_with, harmless, leading, names, protected
from penstock.compare.statistics import Estimate, estimate, upper_bound_of_none
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import interval, listed, milliseconds, number, percent, seconds
from penstock.logs import counted

Verdict = Literal["confirmed", "refuted", "undecided", "silent"]


class Judgement(NamedTuple):
    verdict: Verdict
    figure: str
    """The number that it rests on; what is missing, if the runs are silent."""


def _truths(cells: Iterable[Cell]) -> list[Truth]:
    """Those of the oracle. The checks of an application of one's own don't look for each kind of harm, so of most
    claims their silence says nothing."""
    return [cell.truth for cell in cells if cell.truth and cell.truth.is_whole]


def _found(truths: Iterable[Truth], *harms: str) -> int:
    return sum(truth.counted[harm] for truth in truths for harm in harms)


def silent(needs: str) -> Judgement:
    return Judgement("silent", f"Needs {needs}.")


def _offered(cells: Iterable[Cell]) -> int:
    return sum(cell.counts.offered for cell in cells)


def _degree(value: Estimate, *, above: float | None = None, below: float | None = None, figure: str) -> Judgement:
    """Confirmed beyond the bound, refuted on its other side; undecided while the interval reaches across, or is
    missing."""
    assert (above is None) != (below is None)
    bound = above if above is not None else below
    assert bound is not None
    right, wrong = value.surely_above(bound), value.surely_below(bound)
    if below is not None:
        right, wrong = wrong, right
    if right or wrong:
        return Judgement("confirmed" if right else "refuted", figure)
    holds = value.mean > bound if above is not None else value.mean < bound
    why = "one seed gives no interval" if value.low is None else "the interval reaches across the bound"
    return Judgement("undecided", f"{figure}: points to {'confirmed' if holds else 'refuted'}, but {why}")


def _none_of(count: int, what: str, trials: int) -> Judgement:
    """Of a claim that something never happens."""
    if count:
        return Judgement("refuted", f"{count} {what} in {trials} orders")
    bound = percent(upper_bound_of_none(trials), digits=3)
    return Judgement("confirmed", f"0 {what} in {trials} orders (95 %: below {bound} of them)")


def _shown(count: int, what: str, without: int) -> Judgement:
    """Of a claim that something happens. `without`: so many more runs showed nothing, and are invalid as controls."""
    more = f", and none in {counted(without, 'run')} more" if without else ""
    return Judgement("confirmed" if count else "refuted", f"{count} {what}{more}")


def _all(judgements: Iterable[Judgement]) -> Judgement:
    """Of a claim with several parts: refuted if one of them is, confirmed if all are."""
    parts = list(judgements)
    figure = "; ".join(part.figure for part in parts)
    for verdict in ("refuted", "undecided", "silent"):
        if any(part.verdict == verdict for part in parts):
            return Judgement("undecided" if verdict == "silent" else verdict, figure)
    return Judgement("confirmed", figure)


def a3(summary: Summary) -> Judgement:
    faults = faults_with(summary, "kill", "coordinator")
    stream, mesh = leading(summary, "stream"), leading(summary, "mesh")
    s, m = (_first(cells_with(summary, [arm], faults), "availability") for arm in (stream, mesh))
    if not s or not m:
        return silent("a run in which the coordinator is killed, in both modes")
    return _all(
        [
            _degree(s, below=0.99, figure=f"{stream} available {interval(s, percent)}"),
            _degree(m, above=0.99, figure=f"{mesh} available {interval(m, percent)}"),
        ]
    )


def _first(cells: Iterable[Cell], field: str) -> Estimate | None:
    """Of the first cell that has the figure."""
    found: Iterable[Estimate | None] = (getattr(cell, field) for cell in cells)
    return next((value for value in found if value), None)


def b4(summary: Summary) -> Judgement:
    faults, mesh = faults_with(summary, "poison"), leading(summary, "mesh")
    fast = _first(cells_with(summary, ["S1"], faults), "availability")
    letters, errors = (_first(cells_with(summary, [arm], faults), "effective_error_rate") for arm in ("S2", mesh))
    if not (fast and letters and errors):
        return silent("a poisoned message under S1, S2 and an arm of the mesh")
    return _all(
        [
            _degree(fast, below=0.5 * _baseline(summary, "S1"), figure=f"S1 available {interval(fast, percent)}"),
            _degree(letters, below=0.01, figure=f"S2 errors {interval(letters, percent)}"),
            _degree(errors, below=0.01, figure=f"{mesh} errors {interval(errors, percent)}"),
        ]
    )


def _baseline(summary: Summary, arm: str) -> float:
    cell = summary.cell(arm, BASELINE)
    return cell.availability.mean if cell and cell.availability else 1.0


def d1(summary: Summary) -> Judgement:
    faults = [fault for what in ("kill", "crash", "lose-replies") for fault in faults_with(summary, what)]
    by_bank = {
        bank: cells_with(summary, [arm.name for arm in summary.arms("stream") if arm.bank == bank], faults)
        for bank in ("plain", "keyed", "transactional")
    }
    safe = by_bank["keyed"] + by_bank["transactional"]
    plain = [arm.name for arm in summary.plan.arms if (arm.mode, arm.bank) == ("stream", "plain")]
    without = harmless(summary, plain, faults)
    if not (by_bank["plain"] or without) or not _truths(safe):
        return silent("a worker killed, or answers lost, under a plain bank and under a keyed or transactional one")
    shown = _shown(_found(_truths(by_bank["plain"]), "duplicated"), "doubled by a plain bank", without)
    return _all([shown, _none_of(_found(_truths(safe), "duplicated"), "doubled with keys", _offered(safe))])


def d2(summary: Summary) -> Judgement:
    faults = [*faults_with(summary, "kill", "coordinator"), *faults_with(summary, "crash")]
    cells = cells_with(summary, names(protected(summary, "stream")), faults)
    if not _truths(cells):
        return silent("a stream arm whose coordinator is killed or which crashes inside a commit")
    harm = _found(_truths(cells), "lost", "duplicated")
    gaps = [cell.recovery_s.mean for cell in cells if cell.recovery_s]
    gap = f"; back after {seconds(max(gaps))} at worst" if gaps else ""
    judged = _none_of(harm, "lost or doubled", _offered(cells))
    return Judgement(judged.verdict, judged.figure + gap)


def d3(where: str) -> Callable[[Summary], Judgement]:
    def judge(summary: Summary) -> Judgement:
        arm = leading(summary, "stream")
        points = slopes_of(summary, arm, where)
        if not points:
            return silent(f"a stream arm under a bank that is slow to {'reserve' if where == 'prepare' else 'answer'}")
        worst = max(points, key=lambda each: each.mean)
        figure = f"{arm}: {interval(worst, number)} ms of p99 of orders without a payment, for each ms of delay"
        return _degree(worst, above=0.3, figure=figure)

    return judge


def slopes_of(summary: Summary, arm: str, where: str) -> list[Estimate]:
    """How much the 99th percentile of untouched orders rises with the delay of the bank, for each such fault."""
    found = []
    before = {run.seed: run.untouched.p99 for run in summary.runs_of(arm, BASELINE) if run.untouched}
    for fault in summary.plan.faults:
        delays = [
            float(step["delay_s"]) * 1000
            for step in fault.steps
            if step.get("what") == "slow" and step.get("where") == where and "delay_s" in step
        ]
        if not delays:
            continue
        rises = [
            (run.untouched.p99 - before[run.seed]) / max(delays)
            for run in summary.runs_of(arm, fault.name)
            if run.untouched and run.seed in before and run.untouched.count >= UNTOUCHED_MIN
        ]
        value = estimate(rises)
        if value:
            found.append(value)
    return found


UNTOUCHED_MIN: Final = 20
"""Fewer orders without a payment say nothing about a percentile of theirs."""


def d4(summary: Summary) -> Judgement:
    stream = cells_with(summary, names(protected(summary, "stream")), summary.faults())
    if not _truths(stream):
        return silent("an oracle's verdict of a stream arm")
    violations = sum(sum(t.violations.get(f"I{n}", 0) for n in range(1, 6)) for t in _truths(stream))
    judged = _none_of(violations, "violations of I1 to I5 in the stream", _offered(stream))
    if judged.verdict == "refuted":
        return judged
    bare, without = _without_fences(summary)
    if summary.plan.theta < 1.2 or not (bare or without):
        return Judgement("undecided", f"{judged.figure}; the mesh without fences was not measured at a skew of 1.2")
    return _all([judged, _shown(sum(sum(t.violations.values()) for t in bare), "in the mesh without fences", without)])


def _without_fences(summary: Summary) -> tuple[list[Truth], int]:
    """What the oracle found in the arm without fences, and in how many runs more it found nothing."""
    arms = [arm.name for arm in summary.plan.arms if arm.name.endswith("-nofence")]
    faults = [fault.name for fault in summary.plan.faults]
    return _truths(cells_with(summary, arms, faults)), harmless(summary, arms, faults)


def d5(summary: Summary) -> Judgement:
    fenced = cells_with(
        summary, [a.name for a in protected(summary, "mesh") if a.flow in _COMPENSATED], summary.faults()
    )
    if not _truths(fenced):
        return silent("a mesh arm with compensation")
    judged = _none_of(_found(_truths(fenced), "orphaned"), "orphans with fences", _offered(fenced))
    bare, without = _without_fences(summary)
    if not (bare or without):
        return _all([judged, Judgement("undecided", "the arm without fences was not measured")])
    shown = _shown(_found(bare, "orphaned"), "without fences", without)
    return _all([judged, shown if shown.verdict == "confirmed" else shown._replace(verdict="undecided")])


_COMPENSATED: Final = frozenset({"saga", "choreography", "parallel", "tcc"})


def d6(summary: Summary) -> Judgement:
    cells = {arm.flow: summary.cell(arm.name, BASELINE) for arm in protected(summary, "mesh")}
    one, many = cells.get("saga"), cells.get("parallel")
    if not (one and many and one.p50_ms and many.p50_ms):
        return silent("the arms M3 and M5 without a fault")
    in_turn, parallel = interval(one.p50_ms, milliseconds), interval(many.p50_ms, milliseconds)
    figure = f"half of the orders within {in_turn} in turn, {parallel} in parallel"
    return _apart(many.p50_ms, one.p50_ms, figure)


def _apart(low: Estimate, high: Estimate, figure: str) -> Judgement:
    """Of the claim that one is less than the other: their intervals must not touch."""
    if low.high is not None and high.low is not None:
        if low.high < high.low:
            return Judgement("confirmed", figure)
        if low.low is not None and high.high is not None and low.low > high.high:
            return Judgement("refuted", figure)
        return Judgement("undecided", f"{figure}: the intervals overlap")
    points = "confirmed" if low.mean < high.mean else "refuted"
    return Judgement("undecided", f"{figure}: points to {points}, but one seed gives no interval")


def d8(summary: Summary) -> Judgement:
    faults = faults_with(summary, "lose-replies")
    bare, keyed = cells_with(summary, ["M1"], faults), cells_with(summary, ["M2"], faults)
    without = harmless(summary, ["M1"], faults)
    if not (_truths(bare) or without) or not _truths(keyed):
        return silent("M1 and M2 while replies are lost")
    shown = _shown(_found(_truths(bare), "duplicated"), "doubled without keys", without)
    return _all([shown, _none_of(_found(_truths(keyed), "duplicated"), "doubled with keys", _offered(keyed))])


def e1(summary: Summary) -> Judgement:
    stream, mesh = leading(summary, "stream"), leading(summary, "mesh")
    s, m = summary.cell(stream, BASELINE), summary.cell(mesh, BASELINE)
    if not (s and m and s.p50_ms and m.p50_ms):
        return silent("a stream arm and a mesh arm without a fault")
    in_stream, in_mesh = interval(s.p50_ms, milliseconds), interval(m.p50_ms, milliseconds)
    figure = f"half of the orders within {in_stream} in {stream}, {in_mesh} in {mesh}"
    return _apart(m.p50_ms, s.p50_ms, figure)


def e3(summary: Summary) -> Judgement:
    flows = {mode: {arm.flow for arm in summary.arms(mode)} for mode in ("stream", "mesh")}
    if not (flows["stream"] and flows["mesh"]):
        return silent("an arm of each mode")
    file = f"one file in all arms, SHA-256 {summary.plan.app.sha256[:12]}"
    shared = sorted(flows["stream"] & flows["mesh"])
    if shared:
        return Judgement("confirmed", f"{file}; both modes run its flow {listed(shared)}")
    told = ", ".join(f"{listed(sorted(flows[mode]))} in the {mode}" for mode in flows)
    return Judgement("undecided", f"{file}; but which of its flows runs differs: {told}")


def f1(summary: Summary) -> Judgement:
    faults = faults_with(summary, "kill", "worker")
    stream, mesh = (cells_with(summary, [leading(summary, mode)], faults) for mode in ("stream", "mesh"))
    s = next((cell.blast_collateral for cell in stream if cell.blast_collateral), None)
    m = next((cell.blast_collateral for cell in mesh if cell.blast_collateral), None)
    parts = []
    if s:
        parts.append(_degree(s, above=0.5, figure=f"stream hits {interval(s, percent)} of what lived elsewhere"))
    if m:
        parts.append(_degree(m, below=0.5, figure=f"mesh {interval(m, percent)}"))
    if len(parts) < 2:
        return silent("a worker killed in both modes, and orders that touch nothing on it")
    return _all(parts)


def f2(summary: Summary) -> Judgement:
    arm = leading(summary, "stream")
    off = []
    for fault in faults_with(summary, "kill", "worker"):
        for run in summary.runs_of(arm, fault):
            predicted = prediction_of(run)
            if predicted and run.recovery and run.recovery.recovery_s:
                off.append((run.recovery.recovery_s, predicted))
    if not off:
        return silent("a stream arm that recovers from a kill, and tells of its checkpoints")
    inside = sum(predicted / 2 <= measured <= predicted * 2 for measured, predicted in off)
    figure = f"{inside} of {len(off)} recoveries within a factor of 2 of the prediction"
    if len(off) < 2:
        return Judgement("undecided", f"{figure}: one run is too few")
    return Judgement("confirmed" if inside == len(off) else "refuted", figure)


def f3(summary: Summary) -> Judgement:
    faults = [fault for what in ("kill", "crash", "stop") for fault in faults_with(summary, what)]
    cells = cells_with(summary, names(protected(summary, "stream")), faults)
    if not _truths(cells):
        return silent("a stream arm of which a process is killed")
    return _none_of(_found(_truths(cells), "lost"), "lost", _offered(cells))


def f4(summary: Summary) -> Judgement:
    faults = faults_with(summary, "kill")
    bare, retried = (_first(cells_with(summary, [arm], faults), "effective_error_rate") for arm in ("M0", "M2"))
    if not bare or not retried:
        return silent("M0 and M2 while a process is killed")
    figure = f"errors {interval(bare, percent)} without retries, {interval(retried, percent)} with"
    return _apart(retried, bare, figure)


def f5(summary: Summary) -> Judgement:
    arms = [arm.name for arm in protected(summary, "mesh") if arm.flow == "choreography"]
    cells = cells_with(summary, arms, faults_with(summary, "kill", "worker"))
    if not _truths(cells):
        return silent("M4 while a worker is killed")
    harm = _found(_truths(cells), "lost", "duplicated")
    return _none_of(harm, "lost or doubled", _offered(cells))


def f6(summary: Summary) -> Judgement:
    stream = leading(summary, "stream")
    s, m = summary.cell(stream, BASELINE), summary.cell("M2", BASELINE)
    if not (s and m and s.cpu_ms_per_confirmed and m.cpu_ms_per_confirmed):
        return silent("a stream arm and M2 without a fault, with their CPU time")
    a, b = s.cpu_ms_per_confirmed, m.cpu_ms_per_confirmed
    return _apart(
        a,
        b,
        f"{interval(a, milliseconds)} of CPU for each confirmed order in {stream}, {interval(b, milliseconds)} in M2",
    )


def f7(summary: Summary) -> Judgement:
    arms = names(summary.arms("stream"))
    told = {
        where: [
            run.kinds.get("rollback", 0)
            for arm in arms
            for fault in faults_with(summary, "kill", where)
            for run in summary.runs_of(arm, fault)
        ]
        for where in ("function", "worker")
    }
    if not told["function"] or not told["worker"]:
        return silent("a stream arm of which a function's process is killed, and one of which a worker is")
    figure = f"{sum(told['function']):g} roll-backs after a function's process, {sum(told['worker']):g} after a worker"
    return Judgement("confirmed" if not sum(told["function"]) and all(told["worker"]) else "refuted", figure)


def f8(summary: Summary) -> Judgement:
    stream = cells_with(summary, names(protected(summary, "stream")), summary.faults())
    if not _truths(stream):
        return silent("an oracle's verdict of a stream arm")
    return _none_of(sum(truth.harm for truth in _truths(stream)), "wrong outcomes in the stream", _offered(stream))


def g1(summary: Summary) -> Judgement:
    faults = faults_with(summary, "overload")
    arms = (leading(summary, mode) for mode in ("stream", "mesh"))
    s, m = (_first(cells_with(summary, [arm], faults), "effective_error_rate") for arm in arms)
    if not s or not m:
        return silent("twice the load, in both modes")
    return _all(
        [
            _degree(s, below=0.01, figure=f"stream turns away {interval(s, percent)}"),
            _degree(m, above=0.01, figure=f"mesh {interval(m, percent)}"),
        ]
    )


def g2(summary: Summary) -> Judgement:
    faults = [fault for what in ("cut", "lose-replies", "overload") for fault in faults_with(summary, what)]
    bare, held = (_most_attempts(summary, arm, faults) for arm in ("M1", "M2"))
    if not bare or not held:
        return silent("M1 and M2 while the bank is cut off or the load doubled")
    with_budget, without = interval(held, number), interval(bare, number)
    return _degree(held, below=1.2, figure=f"{with_budget} attempts for each order with a budget, {without} without")


def _most_attempts(summary: Summary, arm: str, faults: Iterable[str]) -> Estimate | None:
    found = (cell.amplification for cell in cells_with(summary, [arm], faults))
    return max((value for value in found if value), key=lambda value: value.mean, default=None)


def g4(summary: Summary) -> Judgement:
    faults = faults_with(summary, "stop", "worker")
    arms = [*names(protected(summary, "stream")), *names(protected(summary, "mesh"))]
    cells = cells_with(summary, arms, faults)
    if not _truths(cells):
        return silent("a worker that stands still and goes on")
    fences = sum(
        run.kinds.get("fence_hit", 0) for arm in arms for fault in faults for run in summary.runs_of(arm, fault)
    )
    judged = _none_of(_found(_truths(cells), "duplicated", "lost"), "lost or doubled", _offered(cells))
    return Judgement(judged.verdict, f"{judged.figure}; {fences:g} writes refused by a fence are told of")
