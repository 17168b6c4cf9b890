"""The claims that the comparison can speak to, each with what would refute it, fixed before anything was measured.

What always holds: a verdict follows from figures alone, by the rule that stands beside it. What a single run can show,
such as one order lost, is decided by a single run; what is a matter of degree needs an interval over seeds that lies
wholly on one side, and is undecided otherwise, with the number and where it points. A claim of which the runs contain
nothing is silent and says what is missing: it is neither confirmed nor refuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

import msgspec

from penstock.compare.figures import Truth
from penstock.compare.predictions import prediction_of
from penstock.compare.records import BASELINE
from penstock.compare.selection import cells_with, faults_with, leading, names, protected
from penstock.compare.statistics import Estimate, estimate, upper_bound_of_none
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import interval, milliseconds, number, percent, seconds

Verdict = Literal["confirmed", "refuted", "undecided", "silent"]


class Judgement(NamedTuple):
    verdict: Verdict
    figure: str
    """The number that it rests on; what is missing, if the runs are silent."""


class Claim(NamedTuple):
    name: str
    text: str
    falsifier: str
    judge: Callable[[Summary], Judgement] | None
    """None if no run of this kind can speak to it."""
    needs: str = ""
    """What a comparison that speaks to it would have to measure."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the table of hypotheses."""

    name: str
    claim: str
    falsifier: str
    verdict: Verdict
    figure: str


def findings_of(summary: Summary) -> list[Finding]:
    """Every claim, in their order."""
    return [_finding(claim, summary) for claim in CLAIMS]


def _finding(claim: Claim, summary: Summary) -> Finding:
    judged = claim.judge(summary) if claim.judge else _silent(claim.needs)
    return Finding(claim.name, claim.text, claim.falsifier, judged.verdict, judged.figure)


# ---- what a claim is about


def _truths(cells: Iterable[Cell]) -> list[Truth]:
    return [cell.truth for cell in cells if cell.truth]


def _silent(needs: str) -> Judgement:
    return Judgement("silent", f"Needs {needs}.")


def _offered(cells: Iterable[Cell]) -> int:
    return sum(cell.counts.offered for cell in cells)


# ---- rules that several claims share


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


def _all(judgements: Iterable[Judgement]) -> Judgement:
    """Of a claim with several parts: refuted if one of them is, confirmed if all are."""
    parts = list(judgements)
    figure = "; ".join(part.figure for part in parts)
    for verdict in ("refuted", "undecided", "silent"):
        if any(part.verdict == verdict for part in parts):
            return Judgement("undecided" if verdict == "silent" else verdict, figure)
    return Judgement("confirmed", figure)


# ---- the rules, in the order of the claims


def _a3(summary: Summary) -> Judgement:
    faults = faults_with(summary, "kill", "coordinator")
    stream, mesh = leading(summary, "stream"), leading(summary, "mesh")
    pair = [cells_with(summary, [arm], faults) for arm in (stream, mesh)]
    if not all(pair):
        return _silent("a run in which the coordinator is killed, in both modes")
    s, m = (cells[0].availability for cells in pair)
    assert s
    assert m
    return _all(
        [
            _degree(s, below=0.99, figure=f"{stream} available {interval(s, percent)}"),
            _degree(m, above=0.99, figure=f"{mesh} available {interval(m, percent)}"),
        ]
    )


def _b4(summary: Summary) -> Judgement:
    faults = faults_with(summary, "poison")
    fast, letters = cells_with(summary, ["S1"], faults), cells_with(summary, ["S2"], faults)
    mesh = cells_with(summary, [leading(summary, "mesh")], faults)
    if not (fast and letters and mesh):
        return _silent("a poisoned message under S1, S2 and an arm of the mesh")
    a, b, c = fast[0].availability, letters[0].effective_error_rate, mesh[0].effective_error_rate
    assert a
    assert b
    assert c
    return _all(
        [
            _degree(a, below=0.5 * _baseline(summary, "S1"), figure=f"S1 available {interval(a, percent)}"),
            _degree(b, below=0.01, figure=f"S2 errors {interval(b, percent)}"),
            _degree(c, below=0.01, figure=f"{mesh[0].arm} errors {interval(c, percent)}"),
        ]
    )


def _baseline(summary: Summary, arm: str) -> float:
    cell = summary.cell(arm, BASELINE)
    return cell.availability.mean if cell and cell.availability else 1.0


def _d1(summary: Summary) -> Judgement:
    faults = [*faults_with(summary, "kill", "worker"), *faults_with(summary, "crash", "worker")]
    by_bank = {
        bank: cells_with(summary, [arm.name for arm in summary.arms("stream") if arm.bank == bank], faults)
        for bank in ("plain", "keyed", "transactional")
    }
    safe = by_bank["keyed"] + by_bank["transactional"]
    if not by_bank["plain"] or not _truths(safe):
        return _silent("a worker killed under stream arms with a plain bank, and with a keyed or transactional one")
    doubled = sum(truth.duplicated for truth in _truths(by_bank["plain"]))
    shown = Judgement("confirmed" if doubled else "refuted", f"plain: {doubled} doubled")
    return _all([shown, _none_of(sum(t.duplicated for t in _truths(safe)), "doubled with keys", _offered(safe))])


def _d2(summary: Summary) -> Judgement:
    faults = [*faults_with(summary, "kill", "coordinator"), *faults_with(summary, "crash")]
    cells = cells_with(summary, names(protected(summary, "stream")), faults)
    if not _truths(cells):
        return _silent("a stream arm whose coordinator is killed or which crashes inside a commit")
    harm = sum(truth.lost + truth.duplicated for truth in _truths(cells))
    gaps = [cell.recovery_s.mean for cell in cells if cell.recovery_s]
    gap = f"; back after {seconds(max(gaps))} at worst" if gaps else ""
    judged = _none_of(harm, "lost or doubled", _offered(cells))
    return Judgement(judged.verdict, judged.figure + gap)


def _d3(where: str) -> Callable[[Summary], Judgement]:
    def judge(summary: Summary) -> Judgement:
        arm = leading(summary, "stream")
        points = slopes_of(summary, arm, where)
        if not points:
            return _silent(f"a stream arm under a bank that is slow to {'reserve' if where == 'prepare' else 'answer'}")
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


def _d4(summary: Summary) -> Judgement:
    stream = cells_with(summary, names(protected(summary, "stream")), summary.faults())
    if not _truths(stream):
        return _silent("an oracle's verdict of a stream arm")
    violations = sum(sum(t.violations.get(f"I{n}", 0) for n in range(1, 6)) for t in _truths(stream))
    judged = _none_of(violations, "violations of I1 to I5 in the stream", _offered(stream))
    if judged.verdict == "refuted":
        return judged
    bare = cells_with(summary, [a.name for a in summary.arms("mesh") if a.name.endswith("-nofence")], summary.faults())
    if summary.plan.theta < 1.2 or not _truths(bare):
        return Judgement("undecided", f"{judged.figure}; the mesh without fences was not measured at a skew of 1.2")
    anomalies = sum(sum(t.violations.values()) for t in _truths(bare))
    shown = Judgement("confirmed" if anomalies else "refuted", f"{anomalies} in the mesh without fences")
    return _all([judged, shown])


def _d5(summary: Summary) -> Judgement:
    fenced = cells_with(
        summary, [a.name for a in protected(summary, "mesh") if a.flow in _COMPENSATED], summary.faults()
    )
    if not _truths(fenced):
        return _silent("a mesh arm with compensation")
    judged = _none_of(sum(t.orphaned for t in _truths(fenced)), "orphans with fences", _offered(fenced))
    bare = cells_with(summary, [a.name for a in summary.arms("mesh") if a.name.endswith("-nofence")], summary.faults())
    if not _truths(bare):
        return _all([judged, Judgement("undecided", "the arm without fences was not measured")])
    orphans = sum(truth.orphaned for truth in _truths(bare))
    shown: Verdict = "confirmed" if orphans else "undecided"
    return _all([judged, Judgement(shown, f"{orphans} without fences")])


_COMPENSATED: Final = frozenset({"saga", "choreography", "parallel", "tcc"})


def _d6(summary: Summary) -> Judgement:
    cells = {arm.flow: summary.cell(arm.name, BASELINE) for arm in protected(summary, "mesh")}
    one, many = cells.get("saga"), cells.get("parallel")
    if not (one and many and one.p50_ms and many.p50_ms):
        return _silent("the arms M3 and M5 without a fault")
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


def _d8(summary: Summary) -> Judgement:
    faults = faults_with(summary, "lose-replies")
    bare, keyed = cells_with(summary, ["M1"], faults), cells_with(summary, ["M2"], faults)
    if not _truths(bare) or not _truths(keyed):
        return _silent("M1 and M2 while replies are lost")
    doubled = sum(truth.duplicated for truth in _truths(bare))
    shown = Judgement("confirmed" if doubled else "refuted", f"{doubled} doubled without keys")
    return _all([shown, _none_of(sum(t.duplicated for t in _truths(keyed)), "doubled with keys", _offered(keyed))])


def _e1(summary: Summary) -> Judgement:
    stream, mesh = leading(summary, "stream"), leading(summary, "mesh")
    s, m = summary.cell(stream, BASELINE), summary.cell(mesh, BASELINE)
    if not (s and m and s.p50_ms and m.p50_ms):
        return _silent("a stream arm and a mesh arm without a fault")
    in_stream, in_mesh = interval(s.p50_ms, milliseconds), interval(m.p50_ms, milliseconds)
    figure = f"half of the orders within {in_stream} in {stream}, {in_mesh} in {mesh}"
    return _apart(m.p50_ms, s.p50_ms, figure)


def _e3(summary: Summary) -> Judgement:
    if not (summary.arms("stream") and summary.arms("mesh")):
        return _silent("an arm of each mode")
    return Judgement("confirmed", f"one file in all arms, SHA-256 {summary.plan.app.sha256[:12]}; 0 lines differ")


def _f1(summary: Summary) -> Judgement:
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
        return _silent("a worker killed in both modes, and orders that touch nothing on it")
    return _all(parts)


def _f2(summary: Summary) -> Judgement:
    arm = leading(summary, "stream")
    off = []
    for fault in faults_with(summary, "kill", "worker"):
        for run in summary.runs_of(arm, fault):
            predicted = prediction_of(run)
            if predicted and run.recovery and run.recovery.recovery_s:
                off.append((run.recovery.recovery_s, predicted))
    if not off:
        return _silent("a stream arm that recovers from a kill, and tells of its checkpoints")
    inside = sum(predicted / 2 <= measured <= predicted * 2 for measured, predicted in off)
    figure = f"{inside} of {len(off)} recoveries within a factor of 2 of the prediction"
    if len(off) < 2:
        return Judgement("undecided", f"{figure}: one run is too few")
    return Judgement("confirmed" if inside == len(off) else "refuted", figure)


def _f3(summary: Summary) -> Judgement:
    faults = [fault for what in ("kill", "crash", "stop") for fault in faults_with(summary, what)]
    cells = cells_with(summary, names(protected(summary, "stream")), dict.fromkeys(faults))
    if not _truths(cells):
        return _silent("a stream arm of which a process is killed")
    return _none_of(sum(truth.lost for truth in _truths(cells)), "lost", _offered(cells))


def _f4(summary: Summary) -> Judgement:
    faults = faults_with(summary, "kill")
    bare, retried = cells_with(summary, ["M0"], faults), cells_with(summary, ["M2"], faults)
    if not bare or not retried:
        return _silent("M0 and M2 while a process is killed")
    a, b = bare[0].effective_error_rate, retried[0].effective_error_rate
    assert a
    assert b
    figure = f"errors {interval(a, percent)} without retries, {interval(b, percent)} with"
    return _apart(b, a, figure)


def _f5(summary: Summary) -> Judgement:
    arms = [arm.name for arm in protected(summary, "mesh") if arm.flow == "choreography"]
    cells = cells_with(summary, arms, faults_with(summary, "kill", "worker"))
    if not _truths(cells):
        return _silent("M4 while a worker is killed")
    harm = sum(truth.lost + truth.duplicated for truth in _truths(cells))
    return _none_of(harm, "lost or doubled", _offered(cells))


def _f6(summary: Summary) -> Judgement:
    stream = leading(summary, "stream")
    s, m = summary.cell(stream, BASELINE), summary.cell("M2", BASELINE)
    if not (s and m and s.cpu_ms_per_confirmed and m.cpu_ms_per_confirmed):
        return _silent("a stream arm and M2 without a fault, with their CPU time")
    a, b = s.cpu_ms_per_confirmed, m.cpu_ms_per_confirmed
    return _apart(
        a,
        b,
        f"{interval(a, milliseconds)} of CPU for each confirmed order in {stream}, {interval(b, milliseconds)} in M2",
    )


def _f7(summary: Summary) -> Judgement:
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
        return _silent("a stream arm of which a function's process is killed, and one of which a worker is")
    figure = f"{sum(told['function']):g} roll-backs after a function's process, {sum(told['worker']):g} after a worker"
    return Judgement("confirmed" if not sum(told["function"]) and all(told["worker"]) else "refuted", figure)


def _f8(summary: Summary) -> Judgement:
    stream = cells_with(summary, names(protected(summary, "stream")), summary.faults())
    if not _truths(stream):
        return _silent("an oracle's verdict of a stream arm")
    return _none_of(sum(truth.harm for truth in _truths(stream)), "wrong outcomes in the stream", _offered(stream))


def _g1(summary: Summary) -> Judgement:
    faults = faults_with(summary, "overload")
    stream, mesh = (cells_with(summary, [leading(summary, mode)], faults) for mode in ("stream", "mesh"))
    if not stream or not mesh:
        return _silent("twice the load, in both modes")
    s, m = stream[0].effective_error_rate, mesh[0].effective_error_rate
    assert s
    assert m
    return _all(
        [
            _degree(s, below=0.01, figure=f"stream turns away {interval(s, percent)}"),
            _degree(m, above=0.01, figure=f"mesh {interval(m, percent)}"),
        ]
    )


def _g2(summary: Summary) -> Judgement:
    faults = [*faults_with(summary, "cut"), *faults_with(summary, "lose-replies"), *faults_with(summary, "overload")]
    bare, held = (cells_with(summary, [arm], dict.fromkeys(faults)) for arm in ("M1", "M2"))
    if not bare or not held:
        return _silent("M1 and M2 while the bank is cut off or the load doubled")
    a = max((c.amplification for c in bare if c.amplification), key=lambda e: e.mean)
    b = max((c.amplification for c in held if c.amplification), key=lambda e: e.mean)
    return _degree(
        b,
        below=1.2,
        figure=f"{interval(b, number)} attempts for each order with a budget, {interval(a, number)} without",
    )


def _g4(summary: Summary) -> Judgement:
    faults = faults_with(summary, "stop", "worker")
    arms = [*names(protected(summary, "stream")), *names(protected(summary, "mesh"))]
    cells = cells_with(summary, arms, faults)
    if not _truths(cells):
        return _silent("a worker that stands still and goes on")
    fences = sum(
        run.kinds.get("fence_hit", 0) for arm in arms for fault in faults for run in summary.runs_of(arm, fault)
    )
    judged = _none_of(sum(t.duplicated + t.lost for t in _truths(cells)), "lost or doubled", _offered(cells))
    return Judgement(judged.verdict, f"{judged.figure}; {fences:g} writes refused by a fence are told of")


CLAIMS: Final = (
    Claim(
        "A1",
        "A stream starts slowly for the first time and replaces a function quickly; a mesh the other way round.",
        "Time to the first answer is not longer in the stream.",
        None,
        "starts from cold, which are not part of a run",
    ),
    Claim(
        "A2",
        "A function is light to roll out in a stream, a service heavy in a mesh.",
        "The bytes and seconds of a roll-out do not differ.",
        None,
        "roll-outs of one function; both modes ship one file here",
    ),
    Claim(
        "A3",
        "Without its coordinator a stream stops answering; a mesh goes on.",
        "The stream stays available to 99 %, or the mesh does not.",
        _a3,
    ),
    Claim(
        "A4",
        "A stream is one thing to run, a mesh is several.",
        "Both need the same processes, files and ports.",
        None,
        "a count of what a demonstration needs, which is no measurement of a run",
    ),
    Claim(
        "A5",
        "A noisy function slows its neighbours unless each has a limit of its own.",
        "The p99 of the neighbour stays the same without limits.",
        None,
        "a run in which one function alone is saturated",
    ),
    Claim(
        "B1",
        "A stream has no access control, a mesh has.",
        "A denied message is refused in both.",
        None,
        "a policy that denies a caller",
    ),
    Claim(
        "B2",
        "Skewed keys make one partition of a stream hot; a mesh spreads them.",
        "p99 rises with the skew alike in both.",
        None,
        "runs with several skews",
    ),
    Claim(
        "B3",
        "A mesh can try a new version on a share of the traffic, a stream can't.",
        "Both route by version.",
        None,
        "two versions at once",
    ),
    Claim(
        "B4",
        "An error spoils a stream's whole job, but one request of a mesh; dead letters close the gap.",
        "S1 keeps half of its availability under poison, or S2 or the mesh lose more than 1 %.",
        _b4,
    ),
    Claim(
        "B5",
        "A mesh steers around a slow replica, a stream is stuck with it.",
        "p99 is the same in both.",
        None,
        "one replica that is slowed",
    ),
    Claim(
        "C1",
        "State beside the function is faster than a database per service.",
        "Operations on state take as long.",
        None,
        "the times of single operations on state",
    ),
    Claim(
        "C2",
        "A stream re-partitions state when it is rescaled; a mesh moves owners.",
        "Neither stops answering.",
        None,
        "runs in which processes are added",
    ),
    Claim(
        "C3",
        "A checkpoint of a stream is consistent over all functions; reading a live mesh is not.",
        "A checkpoint violates conservation, or no live read does.",
        None,
        "reads of all state while orders are under way",
    ),
    Claim(
        "D1",
        "A commit in two phases needs a participant that takes part: a plain bank is charged twice.",
        "A plain bank shows no double charge after a kill, or one with keys or transactions does.",
        _d1,
    ),
    Claim(
        "D2",
        "A coordinator that dies stalls the commit; afterwards nothing is lost or doubled.",
        "Any order lost or doubled.",
        _d2,
    ),
    Claim(
        "D3a",
        "The slowest participant of a commit slows everybody: all orders wait for a slow reservation.",
        "The p99 of orders without a payment rises by less than 0.3 ms for each ms of delay.",
        _d3("prepare"),
    ),
    Claim(
        "D3b",
        "The same for a slow call within a handler.",
        "The p99 of orders without a payment rises by less than 0.3 ms for each ms of delay.",
        _d3("handler"),
    ),
    Claim(
        "D4",
        "Sagas give up isolation: without counter-measures they show anomalies, which a stream does not.",
        "The stream violates any of I1 to I5, or the mesh without fences violates none at a skew of 1.2.",
        _d4,
    ),
    Claim(
        "D5",
        "Compensation with fences leaves no orphan; without fences it does.",
        "Any orphaned reservation or authorisation in an arm with fences.",
        _d5,
    ),
    Claim(
        "D6",
        "Steps in parallel take as long as the slowest of them, steps in turn as long as their sum.",
        "Half of the orders of M5 take as long as those of M3, or longer.",
        _d6,
    ),
    Claim(
        "D7",
        "Long transactions are no trouble for a stream, because nobody else writes to its sink.",
        "A second writer causes conflicts in the stream.",
        None,
        "a second writer to the bank",
    ),
    Claim(
        "D8",
        "Retries without the application's help double effects; keys prevent it.",
        "M1 doubles nothing while replies are lost, or M2 does.",
        _d8,
    ),
    Claim(
        "E1",
        "An answer of a stream waits for its epoch, an answer of a mesh does not.",
        "Half of the orders are answered as fast in the stream as in the mesh, or faster.",
        _e1,
    ),
    Claim(
        "E2",
        "Functions find one another at run time, without a new deployment.",
        "An added call needs a new deployment in one mode.",
        None,
        "a call that is added at run time",
    ),
    Claim("E3", "The same code runs in both.", "The source of the functions differs between arms.", _e3),
    Claim(
        "F1",
        "A failure in a stream reaches everything that is connected; in a mesh what lived on the process.",
        "Fewer than half of the orders of other processes are hit in the stream, or more than half in the mesh.",
        _f1,
    ),
    Claim(
        "F2",
        "The time to recover follows from detection, restart and what is to be replayed.",
        "A recovery is off by more than a factor of 2 from the prediction.",
        _f2,
    ),
    Claim("F3", "A stream loses nothing that was in memory: it reads it again.", "Any order lost.", _f3),
    Claim(
        "F4",
        "A mesh hides a dead process by trying elsewhere.",
        "The client sees as many errors with retries as without.",
        _f4,
    ),
    Claim(
        "F5",
        "Services that talk by messages rely on the queue to hand over.",
        "Any order lost or doubled under M4.",
        _f5,
    ),
    Claim(
        "F6",
        "Without faults a stream does more for its CPU time.",
        "An order costs the stream as much CPU time as it costs M2, or more.",
        _f6,
    ),
    Claim(
        "F7",
        "The death of a worker rolls a stream back; that of a function's process does not.",
        "A roll-back after the death of a function's process, or none after that of a worker.",
        _f7,
    ),
    Claim(
        "F8",
        "A stream is right or fails; it is never right for a share of its orders only.",
        "Any wrong outcome in a stream arm.",
        _f8,
    ),
    Claim(
        "G1",
        "Overloaded, a stream answers late, and a mesh turns requests away.",
        "The stream turns away more than 1 %, or the mesh less.",
        _g1,
    ),
    Claim("G2", "A budget holds retry storms down.", "More than 1.2 attempts for each order with a budget.", _g2),
    Claim(
        "G3",
        "A deadline at the edge decides who gets a late answer.",
        "Answers arrive after their deadline.",
        None,
        "requests with a deadline of their own",
    ),
    Claim(
        "G4", "A process that was taken for dead and wakes up does no harm.", "Any order lost or doubled after it.", _g4
    ),
)
