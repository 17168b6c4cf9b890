"""The plots that have time from left to right: what became of requests, second by second, in both modes at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from penstock.compare.canvas import (
    LIGHT,
    Axes,
    Figure,
    Omission,
    Outline,
    PathPatch,
    Picture,
    Plot,
    Row,
    boxes_of,
    figure_of,
    plain_logarithm,
)
from penstock.compare.figures import RunFigures
from penstock.compare.records import BASELINE, PlannedArm
from penstock.compare.selection import faults_with, leading
from penstock.compare.series import TENTHS
from penstock.compare.summary import Summary
from penstock.compare.wording import NOTHING, milliseconds, number, percent, seconds

TIMELINES_MAX: Final = 4
"""Faults for which the timeline and the map are drawn: more make the page long, and none clearer."""


def _pair(summary: Summary, fault: str) -> list[RunFigures]:
    """A run of the leading arm of each mode under the fault, of the same seed if there is one."""
    runs = [summary.runs_of(leading(summary, mode), fault) for mode in ("stream", "mesh")]
    if not all(runs):
        return [of_one[0] for of_one in runs if of_one]
    common = sorted({run.seed for run in runs[0]} & {run.seed for run in runs[1]})
    return [next((run for run in of_one if common and run.seed == common[0]), of_one[0]) for of_one in runs]


def _told_faults(summary: Summary) -> list[str]:
    """Those that are drawn second by second: the three that the comparison is about first."""
    wanted = [*faults_with(summary, "kill", "worker"), *faults_with(summary, "stop", "worker")]
    wanted += faults_with(summary, "lose-replies")
    others = [fault for fault in summary.faults() if fault != BASELINE]
    return [fault for fault in dict.fromkeys(wanted + others) if _pair(summary, fault)][:TIMELINES_MAX]


def _title(summary: Summary, fault: str) -> str:
    return next((f"{planned.name}: {planned.title}" for planned in summary.plan.faults if planned.name == fault), fault)


def _arm(summary: Summary, name: str) -> PlannedArm:
    return next(arm for arm in summary.plan.arms if arm.name == name)


def p1(summary: Summary) -> Plot | Omission:
    title = "Two runs on one clock"
    faults = _told_faults(summary)
    if not faults:
        return Omission("P1", title, "no arm was measured under a fault")
    return Plot(
        "P1",
        title,
        "Above the stream, below the mesh, under the same fault at the same second. Green is what was answered "
        "rightly, per tenth of a second (pale, and cut off above) and over a second (line); red is what failed; the "
        "thin grey line is what was asked. The tinted span is the fault; the marks say when it was detected, when the "
        "first order that had suffered was answered rightly, and when all was as before.",
        [_timeline(summary, fault) for fault in faults],
    )


def _timeline(summary: Summary, fault: str) -> Picture:
    runs = _pair(summary, fault)

    def draw() -> Figure:
        figure, places = figure_of(9.2, 2.3 * len(runs) + 0.5, rows=len(runs), sharex=True, sharey=True)
        # By the lines: what comes all at once in a tenth of a second would flatten everything else.
        top = 1.15 * max(max(_smooth(line)) for run in runs for line in (run.timeline.good, run.timeline.offered))
        places[0].set_ylim(0, max(top, 1.0))
        for axes, run in zip(places, runs, strict=True):
            _draw_timeline(axes, run)
            axes.set_title(f"{run.arm}, {_arm(summary, run.arm).title}")
            axes.set_ylabel("requests/s")
        places[-1].set_xlabel("seconds since the load began")
        places[0].legend(loc="upper left", ncols=4, bbox_to_anchor=(0, 1.32), borderaxespad=0)
        return figure

    rows = [(run.arm, *_timeline_row(run)) for run in runs]
    told = "; ".join(f"{run.arm}: {percent(run.availability or 0)} answered rightly, {_recovered(run)}" for run in runs)
    columns = (
        "arm",
        "offered",
        "right",
        "failed",
        "no answer",
        "detected after",
        "repaired after",
        "caught up after",
        "recovered after",
    )
    return Picture(
        f"P1-{fault}",
        _title(summary, fault),
        f"Requests and right answers over time under {fault}. {told}.",
        draw,
        columns,
        rows,
    )


def _draw_timeline(axes: Axes, run: RunFigures) -> None:
    line = run.timeline
    times = [slot / TENTHS for slot in range(len(line.offered))]
    _shade(axes, run)
    axes.fill_between(times, _per_second(line.good), step="post", color=LIGHT["right"], linewidth=0, label="right")
    axes.fill_between(times, _per_second(line.errors), step="post", color=LIGHT["failed"], linewidth=0, label="failed")
    axes.plot(times, _smooth(line.offered), color=LIGHT["muted"], linewidth=0.9, label="offered, over 1 s")
    axes.plot(times, _smooth(line.good), color=LIGHT["mesh-3"], label="right, over 1 s")
    axes.set_xlim(0, len(times) / TENTHS)
    recovery = run.recovery
    if recovery and run.windows:
        at = run.windows[0].on_s
        for label, after in (
            ("detected", recovery.detect_s),
            ("repaired", _sum(recovery.detect_s, recovery.repair_s)),
            ("recovered", recovery.recovery_s if recovery.hit else None),
        ):
            if after is not None:
                axes.axvline(at + after, color=LIGHT["ink"], linewidth=0.9, linestyle=":")
                height = {"detected": 0.95, "repaired": 0.8, "recovered": 0.65}[label]
                axes.text(
                    at + after,
                    height,
                    f" {label} {seconds(after)}",
                    transform=axes.get_xaxis_transform(),
                    fontsize=8,
                    verticalalignment="top",
                )


def _sum(a: float | None, b: float | None) -> float | None:
    return None if b is None else (a or 0.0) + b


def _shade(axes: Axes, run: RunFigures) -> None:
    for window in run.windows:
        if window.off_s > window.on_s:
            axes.axvspan(window.on_s, window.off_s, color=LIGHT["window"], linewidth=0, zorder=0)
        axes.axvline(window.on_s, color=LIGHT["failed"], linewidth=1)


def _per_second(slots: Sequence[int]) -> list[float]:
    return [float(count * TENTHS) for count in slots]


def _smooth(slots: Sequence[int]) -> list[float]:
    """Over the second around each slot; over what there is of it at the ends."""
    half = TENTHS // 2
    spans = [slots[max(at - half, 0) : at + half] for at in range(len(slots))]
    return [sum(span) * TENTHS / len(span) for span in spans]


def _timeline_row(run: RunFigures) -> Row:
    recovery = run.recovery
    after: Sequence[float | None] = (None,) * 4
    if recovery:
        after = (recovery.detect_s, recovery.repair_s, recovery.catch_up_s, recovery.recovery_s)
    counts = (run.counts.offered, run.counts.right, run.counts.failed, run.counts.silent)
    return (*map(str, counts), *("not seen" if value is None else seconds(value) for value in after))


def _recovered(run: RunFigures) -> str:
    if run.recovery is None:
        return "recovery unknown"
    if run.recovery.recovery_s is None:
        return "not recovered by the end"
    return f"recovered after {seconds(run.recovery.recovery_s)}"


_HEAT_NAMES: Final = {"o": "right", "r": "right, work repeated", "s": "slow", "x": "failed or wrong"}

_HEAT_COLOURS: Final = {"o": "right", "r": "replayed", "s": "slow", "x": "failed"}


def p2(summary: Summary) -> Plot | Omission:
    title = "Keys and time"
    faults = [fault for fault in _told_faults(summary) if any(run.heat.rows for run in _pair(summary, fault))]
    if not faults:
        return Omission("P2", title, "no arm was measured under a fault")
    return Plot(
        "P2",
        title,
        "Each row is a group of keys, each column a second of intended times, each cell the worst that became of an "
        "order. Rows of one process stand together where it is known. A failure of everything at once is a vertical "
        "band; a failure of some keys a horizontal one.",
        [_heat_map(summary, fault) for fault in faults],
    )


def _heat_map(summary: Summary, fault: str) -> Picture:
    runs = _pair(summary, fault)

    def draw() -> Figure:
        figure, places = figure_of(9.2, 4.0, columns=len(runs), sharex=True)
        for axes, run in zip(places, runs, strict=True):
            _draw_heat(axes, run)
            axes.set_title(f"{run.arm}, {_arm(summary, run.arm).mode}")
            axes.set_xlabel("seconds since the load began")
        places[0].set_ylabel("groups of keys")
        empty = Outline([(0, 0)])
        marks = [PathPatch(empty, facecolor=LIGHT[colour], linewidth=0) for colour in _HEAT_COLOURS.values()]
        figure.legend(marks, list(_HEAT_NAMES.values()), loc="outside upper left", ncols=4)
        return figure

    rows = []
    for run in runs:
        cells = "".join(run.heat.rows)
        rows.append((run.arm, *(str(cells.count(code)) for code in _HEAT_NAMES)))
    told = "; ".join(
        f"{arm}: of {sum(map(int, counts))} cells {counts[2]} slow and {counts[3]} failed or wrong"
        for arm, *counts in rows
    )
    return Picture(
        f"P2-{fault}",
        _title(summary, fault),
        f"Map of keys and time under {fault}. {told}.",
        draw,
        ("arm", *(f"cells {name}" for name in _HEAT_NAMES.values())),
        rows,
    )


def _draw_heat(axes: Axes, run: RunFigures) -> None:
    axes.grid(visible=False)
    for code, colour in _HEAT_COLOURS.items():
        spans = [(row, *span) for row, cells in enumerate(run.heat.rows) for span in _spans(cells, code)]
        if spans:
            axes.add_patch(PathPatch(boxes_of(spans), facecolor=LIGHT[colour], linewidth=0))
    axes.set_xlim(0, max((len(row) for row in run.heat.rows), default=1))
    axes.set_ylim(len(run.heat.rows), 0)
    axes.set_yticks([])
    _label_owners(axes, run)
    for window in run.windows:
        for at in dict.fromkeys((window.on_s, window.off_s)):
            axes.axvline(at, color=LIGHT["ink"], linewidth=1, linestyle=":")


def _label_owners(axes: Axes, run: RunFigures) -> None:
    owners = run.heat.owners
    known = [owner for owner in dict.fromkeys(owners) if owner]
    if len(known) < 2:
        return
    victims = {window.node for window in run.windows if window.node}
    places = []
    for owner in dict.fromkeys(owners):
        first, many = owners.index(owner), owners.count(owner)
        places.append((first + many / 2, f"{owner or 'not known'}{' (hit)' if owner in victims else ''}"))
        axes.axhline(first, color=LIGHT["muted"], linewidth=0.6)
    axes.set_yticks([at for at, _ in places], [label for _, label in places], fontsize=8, rotation=90, va="center")


def _spans(cells: str, code: str) -> Iterable[tuple[int, int]]:
    """Begin and end of each stretch of the code."""
    return ((match.start(), match.end()) for match in re.finditer(f"{re.escape(code)}+", cells))


def p9(summary: Summary) -> Plot | Omission:
    title = "Overload"
    faults = [fault for fault in faults_with(summary, "overload") if _pair(summary, fault)]
    if not faults:
        return Omission("P9", title, "needs more requests than the arms can carry")
    return Plot(
        "P9",
        title,
        "Under the same excess of requests: what is answered late (the 99th percentile, left scale) and what is not "
        "answered (red, right scale), second by second.",
        [_overload(summary, fault) for fault in faults],
    )


def _overload(summary: Summary, fault: str) -> Picture:
    runs = _pair(summary, fault)

    def draw() -> Figure:
        figure, places = figure_of(9.2, 2.3 * len(runs), rows=len(runs), sharex=True)
        for axes, run in zip(places, runs, strict=True):
            _shade(axes, run)
            known = [(second.start_s + 0.5, second.p99_ms) for second in run.seconds if second.p99_ms is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], color=LIGHT["stream-1"])
            axes.set_ylabel("p99, ms")
            axes.set_yscale("log")
            plain_logarithm(axes.yaxis)
            axes.set_title(f"{run.arm}, {_arm(summary, run.arm).title}")
            other = axes.twinx()
            other.bar(
                [s.start_s + 0.5 for s in run.seconds],
                [s.offered - s.right for s in run.seconds],
                color=LIGHT["failed"],
                width=0.9,
            )
            other.set_ylabel("not answered/s")
            other.grid(visible=False)
        places[-1].set_xlabel("seconds since the load began")
        return figure

    rows = [
        (
            run.arm,
            str(run.counts.offered),
            str(run.counts.offered - run.counts.right),
            milliseconds(run.latency.p99) if run.latency else NOTHING,
            NOTHING if run.lag_max is None else number(run.lag_max),
        )
        for run in runs
    ]
    told = "; ".join(f"{row[0]}: {row[2]} of {row[1]} not answered, p99 {row[3]}" for row in rows)
    return Picture(
        f"P9-{fault}",
        _title(summary, fault),
        f"Overload second by second. {told}.",
        draw,
        ("arm", "offered", "not answered", "p99", "largest lag"),
        rows,
    )
