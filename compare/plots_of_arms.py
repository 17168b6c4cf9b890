"""The plots that set arms against one another: how quick, how right and how dear each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock.compare.canvas import (
    LIGHT,
    Figure,
    Omission,
    PathPatch,
    Picture,
    Plot,
    bars,
    boxes_of,
    colours_of,
    dashes_of,
    figure_of,
    plain_logarithm,
)
from penstock.compare.figures import HARMS, RunFigures
from penstock.compare.predictions import capacity_of, predicted_recovery_s
from penstock.compare.records import BASELINE, PlannedArm
from penstock.compare.selection import faults_with, leading, protected
from penstock.compare.series import SHARES
from penstock.compare.statistics import Estimate
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import NOTHING, interval, milliseconds, number, percent, seconds

INTERVALS_APART: Final = 2.0
"""What is less is the same interval, measured twice."""


def p3(summary: Summary) -> Plot | Omission:
    title = "Recovery against the interval of checkpoints"
    points = [
        (run.interval_s, run)
        for arm in protected(summary, "stream")
        for run in _recovered_runs(summary, arm.name)
        if run.interval_s is not None
    ]
    taken = [interval_s for interval_s, _ in points]
    if not taken or max(taken) < INTERVALS_APART * min(taken):
        told = f"; they were {seconds(min(taken))} to {seconds(max(taken))} apart" if taken else ""
        return Omission(
            "P3", title, f"needs a worker killed under streams whose checkpoints are rare and frequent{told}"
        )
    return Plot(
        "P3",
        title,
        "Each point is a run in which a worker was killed. The line is what is predicted from the down time and the "
        "capacity that were measured; for a mesh, which takes no checkpoints, the line is flat.",
        [_intervals(summary, points)],
    )


def _recovered_runs(summary: Summary, arm: str) -> list[RunFigures]:
    """In which a worker was killed."""
    runs = [run for fault in faults_with(summary, "kill", "worker") for run in summary.runs_of(arm, fault)]
    return [run for run in runs if _recovery_s(run) is not None]


def _recovery_s(run: RunFigures) -> float | None:
    return run.recovery.recovery_s if run.recovery else None


def _intervals(summary: Summary, points: Sequence[tuple[float, RunFigures]]) -> Picture:
    recovered = [(at, _recovery_s(run) or 0.0) for at, run in points]
    line = _predicted_line(points)
    mesh = [_recovery_s(run) or 0.0 for run in _recovered_runs(summary, leading(summary, "mesh"))]

    def draw() -> Figure:
        figure, (axes,) = figure_of(7, 3.6)
        axes.plot([x for x, _ in line], [y for _, y in line], color=LIGHT["stream-1"], linewidth=1, label="predicted")
        axes.scatter([x for x, _ in recovered], [y for _, y in recovered], color=LIGHT["stream-1"], label="stream")
        if mesh:
            axes.axhline(sum(mesh) / len(mesh), color=LIGHT["mesh-1"], label=f"{leading(summary, 'mesh')}, mean")
        axes.set_xlabel("seconds between checkpoints")
        axes.set_ylabel("seconds to recover")
        axes.set_ylim(bottom=0)
        axes.legend()
        return figure

    rows = [(run.run, seconds(at), seconds(took)) for (at, run), (_, took) in zip(points, recovered, strict=True)]
    told = f"from {seconds(min(took for _, took in recovered))} to {seconds(max(took for _, took in recovered))}"
    return Picture(
        "P3",
        "A worker is killed",
        f"Recovery of the stream takes {told}.",
        draw,
        ("run", "interval", "recovered after"),
        rows,
    )


def _predicted_line(points: Sequence[tuple[float, RunFigures]]) -> list[tuple[float, float]]:
    """With the means of what was measured in all of the runs."""
    runs = [run for _, run in points]
    downs = [
        (run.recovery.detect_s or 0.0) + run.recovery.repair_s
        for run in runs
        if run.recovery and run.recovery.repair_s is not None
    ]
    if not downs:
        return []
    down_s, capacity = sum(downs) / len(downs), sum(map(capacity_of, runs)) / len(runs)
    rate = sum(run.counts.offered / max(len(run.seconds), 1) for run in runs) / len(runs)
    checkpoint_s = sum(run.checkpoint_s or 0.0 for run in runs) / len(runs)
    line = []
    for interval_s in sorted({at for at, _ in points}):
        value = predicted_recovery_s(
            down_s=down_s, rate=rate, interval_s=interval_s, checkpoint_s=checkpoint_s, capacity=capacity
        )
        if value is not None:
            line.append((interval_s, value))
    return line


def p4(summary: Summary) -> Plot | Omission:
    title = "Latency without a fault"
    arms = [arm for arm in summary.arms() if any(run.quantiles for run in summary.runs_of(arm.name, BASELINE))]
    if not arms:
        return Omission("P4", title, "no arm was measured without a fault")
    return Plot(
        "P4",
        title,
        "How large a share of the orders was answered within a time, counted from when the request was meant to be "
        "sent. Further left is faster. Each line is one seed. Answers of a stream are those that a client sees.",
        [_distribution(summary, arms)],
    )


def _distribution(summary: Summary, arms: Sequence[PlannedArm]) -> Picture:
    colours = colours_of(summary)

    def draw() -> Figure:
        figure, (axes,) = figure_of(8, 3.8)
        for arm in arms:
            for place, run in enumerate(run for run in summary.runs_of(arm.name, BASELINE) if run.quantiles):
                axes.step(
                    run.quantiles,
                    SHARES,
                    where="post",
                    color=colours[arm.name],
                    linestyle=dashes_of(arm),
                    linewidth=1.4,
                    label=arm.name if not place else "_",
                )
        axes.set_xscale("log")
        plain_logarithm(axes.xaxis)
        axes.set_xlabel("milliseconds from the intended time")
        axes.set_ylabel("share of orders")
        axes.set_ylim(0, 1)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return figure

    cells = [(arm.name, summary.cell(arm.name, BASELINE)) for arm in arms]
    rows = [
        (name, interval(cell.p50_ms, milliseconds), interval(cell.p99_ms, milliseconds)) for name, cell in cells if cell
    ]
    told = "; ".join(f"{arm}: half within {p50}, 99 % within {p99}" for arm, p50, p99 in rows)
    return Picture("P4", "Nothing happens", f"Distribution of latencies. {told}.", draw, ("arm", "p50", "p99"), rows)


def p5(summary: Summary) -> Plot | Omission:
    title = "Who waits for a slow participant"
    points = [point for where in ("prepare", "handler") for point in _delays(summary, where)]
    if not points:
        return Omission(
            "P5", title, "needs the bank slowed down, and orders that never come to it (such as refused ones) meanwhile"
        )
    return Plot(
        "P5",
        title,
        "Orders that never come to the bank, while the bank is slow. A slope of 1 means that they wait for it all the "
        "same, as a bucket holds no more than its shortest stave; a slope of 0 that they don't notice.",
        [_bucket(summary, points)],
    )


class _Delay(NamedTuple):
    arm: str
    where: str
    delay_ms: float
    p50_ms: float
    p99_ms: float


def _delays(summary: Summary, where: str) -> list[_Delay]:
    found = []
    slow = {BASELINE: 0.0}
    for fault in summary.plan.faults:
        steps = (step for step in fault.steps if (step.get("what"), step.get("where")) == ("slow", where))
        delays = [float(step.get("delay_s", 0)) for step in steps]
        if delays:
            slow[fault.name] = max(delays) * 1000
    if len(slow) == 1:
        return []
    for arm in summary.arms():
        for fault_name, delay in slow.items():
            found += [
                _Delay(arm.name, where, delay, run.untouched.p50, run.untouched.p99)
                for run in summary.runs_of(arm.name, fault_name)
                if run.untouched
            ]
    return found if any(point.delay_ms for point in found) else []


def _bucket(summary: Summary, points: Sequence[_Delay]) -> Picture:
    colours = colours_of(summary)

    def draw() -> Figure:
        kinds = list(dict.fromkeys(point.where for point in points))
        figure, places = figure_of(4.6 * len(kinds) + 0.8, 3.6, columns=len(kinds), sharey=True)
        for axes, where in zip(places, kinds, strict=True):
            for arm in summary.arms():
                line = sorted((p.delay_ms, p.p99_ms) for p in points if (p.arm, p.where) == (arm.name, where))
                axes.plot(
                    [x for x, _ in line],
                    [y for _, y in line],
                    "o",
                    linestyle=dashes_of(arm),
                    markersize=4,
                    color=colours[arm.name],
                    label=arm.name,
                )
            top = max(point.delay_ms for point in points)
            axes.plot([0, top], [0, top], color=LIGHT["muted"], linewidth=0.8, linestyle=":", label="slope 1")
            axes.set_title("slow to reserve" if where == "prepare" else "slow to answer")
            axes.set_xlabel("milliseconds of delay")
        places[0].set_ylabel("p99 of orders without a payment, ms")
        places[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return figure

    rows = [(p.arm, p.where, milliseconds(p.delay_ms), milliseconds(p.p50_ms), milliseconds(p.p99_ms)) for p in points]
    return Picture(
        "P5",
        "The bank is slow",
        "Latency of orders without a payment against the delay of the bank.",
        draw,
        ("arm", "slow", "delay", "p50", "p99"),
        rows,
    )


def p6(summary: Summary) -> Plot | Omission:
    title = "What was right in the end"
    cells = [cell for cell in summary.cells if cell.state == "measured" and cell.truth]
    if not cells:
        return Omission("P6", title, "needs verdicts of the oracle")
    by_oracle = all(cell.truth.is_whole for cell in cells if cell.truth)
    return Plot(
        "P6",
        title,
        (
            "Counted by the oracle in the bank's ledger and the final states, summed over the seeds: orders lost, "
            "effects doubled, reservations orphaned, clients lied to, outcomes wrong."
            if by_oracle
            else "What the checks of the application found to be wrong, summed over the seeds. They tell no kinds of "
            "harm, so there are none here."
        )
        + " Zeros are printed, because they are the result; an arm that can't express a fault has n/a.",
        [_matrix(summary, list(HARMS) if by_oracle else ["wrong"])],
    )


def _matrix(summary: Summary, harms: Sequence[str]) -> Picture:
    arms, faults = summary.plan.arms, summary.plan.faults
    names = [HARMS[harm] for harm in harms]

    def draw() -> Figure:
        figure, (axes,) = figure_of(1.3 + 1.12 * len(faults), 1.0 + 0.42 * len(arms))
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, arm in enumerate(arms):
            for x, fault in enumerate(faults):
                cell = next(c for c in summary.cells if (c.arm, c.fault) == (arm.name, fault.name))
                colour, box = _matrix_colour(cell), boxes_of([(y, x, x + 1)])
                axes.add_patch(PathPatch(box, facecolor=colour, edgecolor=LIGHT["surface"], linewidth=2))
                axes.text(
                    x + 0.5,
                    y + 0.5,
                    _matrix_text(cell, harms),
                    ha="center",
                    va="center",
                    fontsize=9,
                    fontweight="bold" if colour == LIGHT["slow"] else "normal",
                )
        axes.set_xlim(0, len(faults))
        axes.set_ylim(len(arms), 0)
        axes.set_xticks([x + 0.5 for x in range(len(faults))], [fault.name for fault in faults])
        axes.set_yticks([y + 0.5 for y in range(len(arms))], [arm.name for arm in arms])
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xlabel(" · ".join(names))
        return figure

    rows = []
    for arm in arms:
        texts = [next(c for c in summary.cells if (c.arm, c.fault) == (arm.name, f.name)) for f in faults]
        rows.append((arm.name, *(_matrix_text(cell, harms) for cell in texts)))
    harmed = [f"{c.arm} under {c.fault}" for c in summary.cells if c.truth and c.truth.harm]
    told = f"Harm was found in {', '.join(harmed)}" if harmed else "No harm was found in any cell"
    return Picture(
        "P6",
        ", ".join(names).capitalize(),
        f"Matrix of arms and faults. {told}.",
        draw,
        ("arm", *(fault.name for fault in faults)),
        rows,
    )


def _matrix_text(cell: Cell, harms: Sequence[str]) -> str:
    if cell.state != "measured":
        return {"na": "n/a", "invalid": "invalid", "missing": "not run"}[cell.state]
    if cell.truth is None:
        return "no oracle"
    return " · ".join(str(cell.truth.counted.get(harm, NOTHING)) for harm in harms)


def _matrix_colour(cell: Cell) -> str:
    if cell.truth is None:
        return LIGHT["grid"]
    return LIGHT["slow"] if cell.truth.harm else LIGHT["right"]


def p7(summary: Summary) -> Plot | Omission:
    title = "Anomalies under contention"
    told = [cell for cell in summary.cells if cell.truth]
    cells = {arm.name: [cell for cell in told if cell.arm == arm.name] for arm in summary.arms("mesh")}
    rates = {
        arm: 1000 * sum(sum(cell.truth.violations.values()) for cell in of_arm if cell.truth) / offered
        for arm, of_arm in cells.items()
        if (offered := sum(cell.counts.offered for cell in of_arm))
    }
    if not rates:
        return Omission("P7", title, "needs verdicts of the oracle for arms of the mesh")
    return Plot(
        "P7",
        title,
        f"Violated invariants for each 1,000 orders, over all faults that were measured, at a skew of "
        f"{number(summary.plan.theta)}: the only one of this comparison, so it says nothing of how they grow with it.",
        [_anomalies(summary, rates)],
    )


def _anomalies(summary: Summary, rates: dict[str, float]) -> Picture:
    def draw() -> Figure:
        figure, (axes,) = figure_of(6.4, 0.8 + 0.36 * len(rates))
        bars(axes, summary, rates, number)
        axes.set_xlabel("violations for each 1,000 orders")
        return figure

    rows = [(arm, number(rate)) for arm, rate in rates.items()]
    told = ", ".join(f"{arm} {rate}" for arm, rate in rows)
    return Picture(
        "P7",
        "Invariants that were violated",
        f"Violations for each 1,000 orders: {told}.",
        draw,
        ("arm", "for each 1,000 orders"),
        rows,
    )


class _Retries(NamedTuple):
    arm: str
    fault: str
    errors: float
    attempts: float
    after: float | None


def p8(summary: Summary) -> Plot | Omission:
    title = "How retries multiply"
    points = [point for run in summary.runs if (point := _retries(summary, run))]
    if not any(point.errors for point in points) or not any(run.kinds.get("retry") for run in summary.runs):
        return Omission("P8", title, "needs runs in which requests are retried, and retries that the runtime tells of")
    return Plot(
        "P8",
        title,
        "Left: attempts for each order against the share of attempts that fail; a steep climb is a storm in the "
        "making. Right: what is answered rightly in the last fifth of the run, after the fault has gone; below 100 % "
        "the storm keeps itself alive.",
        [_storm(summary, points)],
    )


def _retries(summary: Summary, run: RunFigures) -> _Retries | None:
    if run.status != "complete" or run.work.amplification is None or run.work.actual_error_rate is None:
        return None
    tail = run.seconds[-max(len(run.seconds) // 5, 1) :] if run.seconds else []
    over = run.windows and tail and max(window.off_s for window in run.windows) <= tail[0].start_s
    offered = sum(second.offered for second in tail)
    after = sum(second.right for second in tail) / offered if over and offered else None
    return _Retries(run.arm, run.fault, run.work.actual_error_rate, run.work.amplification, after)


def _storm(summary: Summary, points: Sequence[_Retries]) -> Picture:
    colours = colours_of(summary)

    def draw() -> Figure:
        figure, (left, right) = figure_of(9.2, 3.6, columns=2)
        after: dict[str, float] = {}
        for arm in summary.arms():
            of_arm = [point for point in points if point.arm == arm.name]
            left.scatter(
                [p.errors * 100 for p in of_arm],
                [p.attempts for p in of_arm],
                s=26,
                color=colours[arm.name],
                label=arm.name,
            )
            tails = [point.after * 100 for point in of_arm if point.after is not None]
            if tails:
                after[arm.name] = sum(tails) / len(tails)
        left.set_xlabel("attempts that fail, %")
        left.set_ylabel("attempts for each order")
        figure.legend(loc="outside upper left", ncols=8)
        bars(right, summary, after, lambda value: percent(value / 100))
        right.set_xlabel("answered rightly after the fault, %")
        return figure

    rows = [
        (p.arm, p.fault, percent(p.errors), number(p.attempts), NOTHING if p.after is None else percent(p.after))
        for p in points
    ]
    worst = max(points, key=lambda point: point.attempts)
    told = f"At most {number(worst.attempts)} attempts for each order, by {worst.arm} under {worst.fault}."
    columns = ("arm", "fault", "attempts that fail", "attempts for each order", "right after the fault")
    return Picture("P8", "Attempts and failures", told, draw, columns, rows)


def p10(summary: Summary) -> Plot | Omission:
    title = "The price of safety"
    cells = [(arm, cell) for arm in summary.arms() if (cell := summary.cell(arm.name, BASELINE))]
    priced = [(arm, cell) for arm, cell in cells if cell.cpu_ms_per_confirmed]
    if not priced:
        return Omission("P10", title, "needs runs without a fault, with the CPU time of the processes")
    return Plot(
        "P10",
        title,
        "What an order costs when nothing goes wrong, from the arms that are careless to those that are careful.",
        [_prices(summary, priced)],
    )


def _prices(summary: Summary, cells: Sequence[tuple[PlannedArm, Cell]]) -> Picture:
    def draw() -> Figure:
        figure, (left, right) = figure_of(9.2, 0.9 + 0.38 * len(cells), columns=2)
        bars(left, summary, {arm.name: _mean(cell.cpu_ms_per_confirmed) for arm, cell in cells}, milliseconds)
        left.set_xlabel("CPU time for each confirmed order, ms")
        bars(right, summary, {arm.name: _mean(cell.p99_ms) for arm, cell in cells}, milliseconds)
        right.set_xlabel("p99, ms")
        return figure

    rows = [
        (
            arm.name,
            arm.title,
            interval(cell.cpu_ms_per_confirmed, milliseconds),
            interval(cell.goodput_per_s, number),
            interval(cell.p50_ms, milliseconds),
            interval(cell.p99_ms, milliseconds),
        )
        for arm, cell in cells
    ]
    told = ", ".join(f"{arm.name} {milliseconds(_mean(cell.cpu_ms_per_confirmed))}" for arm, cell in cells)
    return Picture(
        "P10",
        "Nothing happens",
        f"CPU time for each confirmed order: {told}.",
        draw,
        ("arm", "what it is", "CPU for each order", "right answers/s", "p50", "p99"),
        rows,
    )


def _mean(value: Estimate | None) -> float:
    return value.mean if value else 0.0


def p11(_: Summary) -> Plot | Omission:
    return Omission(
        "P11", "Consistency of a snapshot", "needs state that is read while orders are under way, which no run records"
    )
