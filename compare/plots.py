"""Draws the figures of a comparison. The only module that knows matplotlib.

What always holds: a plot is drawn from figures that the runs contain; one whose figures are missing is an `Omission`
with its reason, and never an empty picture. Beside every picture stand its description in words and the table of the
numbers behind it. The same figures give the same bytes. In an SVG colours are names that the page gives a meaning, so
that it follows light and dark; in a PNG they are those of the light page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator, NullLocator

from penstock.compare.figures import HARMS, RunFigures
from penstock.compare.predictions import capacity_of, checkpoint_interval_s, predicted_recovery_s
from penstock.compare.records import BASELINE, PlannedArm
from penstock.compare.selection import faults_with, is_control, leading, protected
from penstock.compare.series import SHARES, TENTHS
from penstock.compare.statistics import Estimate
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import NOTHING, interval, milliseconds, number, percent, seconds

LIGHT: Final = {
    "ink": "#1d2733",
    "muted": "#5f6b7a",
    "grid": "#dfe4ea",
    "surface": "#fdfdfc",
    "window": "#f3e3e1",
    "right": "#b9dfc6",
    "replayed": "#4a7be0",
    "slow": "#eda81f",
    "failed": "#c8142f",
    "stream-1": "#1b5fc1",
    "stream-2": "#0d8296",
    "stream-3": "#5a4bc6",
    "stream-4": "#39617f",
    "mesh-1": "#c4570b",
    "mesh-2": "#a5236c",
    "mesh-3": "#4c7a0e",
    "mesh-4": "#8f6300",
    "mesh-5": "#b32517",
    "mesh-6": "#7b3f9e",
    "mesh-7": "#6c5c4c",
    "mesh-8": "#2f6f57",
}
"""Colours of the light page. No two are the same, because an SVG is recoloured by them."""
DARK: Final = {
    "ink": "#e8ecf1",
    "muted": "#a3aebb",
    "grid": "#343d48",
    "surface": "#171c22",
    "window": "#3b2a2c",
    "right": "#23523a",
    "replayed": "#7ea4ff",
    "slow": "#e0a022",
    "failed": "#ff5c70",
    "stream-1": "#7db0ff",
    "stream-2": "#4ecfe0",
    "stream-3": "#aa9dff",
    "stream-4": "#9cc0dc",
    "mesh-1": "#ff9f5b",
    "mesh-2": "#ff8bc5",
    "mesh-3": "#a5d757",
    "mesh-4": "#e5b749",
    "mesh-5": "#ff9081",
    "mesh-6": "#d69aff",
    "mesh-7": "#c9b9a7",
    "mesh-8": "#7fd1b3",
}
FONTS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
TIMELINES_MAX: Final = 4
"""Faults for which the timeline and the map are drawn: more make the page long, and none clearer."""

Row = tuple[str, ...]


class Picture(NamedTuple):
    """One drawing of a plot: `P1-X2`."""

    name: str
    caption: str
    description: str
    """For those who don't see it: what is drawn, and what stands out."""
    draw: Callable[[], Figure]
    columns: Row
    rows: Sequence[Row]


class Plot(NamedTuple):
    name: str
    title: str
    reading: str
    """How to read it."""
    pictures: list[Picture]


class Omission(NamedTuple):
    name: str
    title: str
    reason: str


def plots_of(summary: Summary) -> list[Plot | Omission]:
    """P1 to P11, in their order."""
    return [plot(summary) for plot in (_p1, _p2, _p3, _p4, _p5, _p6, _p7, _p8, _p9, _p10, _p11)]


class Rendered(NamedTuple):
    svg: str
    """To stand within a page: without a prologue, with names of its own, and with colours that the page defines."""
    png: bytes


def render(picture: Picture) -> Rendered:
    vector, pixels = io.StringIO(), io.BytesIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": picture.name}):
        figure = picture.draw()
        figure.savefig(pixels, format="png", dpi=150, metadata={"Software": None})
        # What was laid out once stays where it is: to lay it out takes longer than to draw it.
        figure.set_layout_engine("none")
        figure.savefig(vector, format="svg", metadata={"Date": None})
    return Rendered(_inline(vector.getvalue(), picture, figure.get_figwidth()), pixels.getvalue())


def _inline(text: str, picture: Picture, width_inches: float) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{picture.name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{picture.name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"\n\s*", "\n", text)
    title, label = f"{picture.name}-title", _escaped(picture.description)
    # Narrow ones would be blown up to the width of the page, letters and all.
    style = f"max-width: {width_inches * 7.2:.1f}rem"
    text = text.replace("<svg", f'<svg role="img" aria-labelledby="{title}" style="{style}"', 1)
    return text.replace(">", f'><title id="{title}">{label}</title>', 1)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": LIGHT["surface"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "figure.facecolor": LIGHT["surface"],
    "savefig.facecolor": LIGHT["surface"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.6,
}


def _figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [axes for row in grid for axes in row]


def _plain_logarithm(axis: XAxis | YAxis) -> None:
    """1, 2, 5, 10, 20, ... as numbers, and not as powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(NullLocator())


def colours_of(summary: Summary) -> dict[str, str]:
    """One for each arm: cold ones for the stream, warm ones for the mesh."""
    colours: dict[str, str] = {}
    for mode, many in (("stream", 4), ("mesh", 8)):
        for place, arm in enumerate(arm for arm in summary.plan.arms if arm.mode == mode):
            colours[arm.name] = LIGHT[f"{mode}-{place % many + 1}"]
    return colours


def _dashes(arm: PlannedArm) -> str:
    """Controls are dashed everywhere."""
    return "--" if is_control(arm) else "-"


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


# ---- P1, the twin timeline


def _p1(summary: Summary) -> Plot | Omission:
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
        figure, places = _figure(9.2, 2.3 * len(runs) + 0.5, rows=len(runs), sharex=True, sharey=True)
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


def _arm(summary: Summary, name: str) -> PlannedArm:
    return next(arm for arm in summary.plan.arms if arm.name == name)


# ---- P2, the map of keys and time

_HEAT_NAMES: Final = {"o": "right", "r": "right, work repeated", "s": "slow", "x": "failed or wrong"}
_HEAT_COLOURS: Final = {"o": "right", "r": "replayed", "s": "slow", "x": "failed"}


def _p2(summary: Summary) -> Plot | Omission:
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
        figure, places = _figure(9.2, 4.0, columns=len(runs), sharex=True)
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
            axes.add_patch(PathPatch(_boxes(spans), facecolor=LIGHT[colour], linewidth=0))
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


def _boxes(spans: Sequence[tuple[int, int, int]]) -> Outline:
    """One outline for all of a colour: a map has thousands of cells, and a page should stay small."""
    points = [
        point
        for row, start, end in spans
        for point in ((start, row), (end, row), (end, row + 1), (start, row + 1), (start, row))
    ]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(spans)
    return Outline(points, codes)


# ---- P3, recovery and the interval of checkpoints


def _p3(summary: Summary) -> Plot | Omission:
    title = "Recovery against the interval of checkpoints"
    points = [
        (interval_s, run)
        for arm in protected(summary, "stream")
        for run in _recovered_runs(summary, arm.name)
        if (interval_s := checkpoint_interval_s(run)) is not None
    ]
    if len({interval_s for interval_s, _ in points}) < 2:
        return Omission("P3", title, "needs a worker killed under two intervals of checkpoints or more")
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
        figure, (axes,) = _figure(7, 3.6)
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


# ---- P4, latency without faults


def _p4(summary: Summary) -> Plot | Omission:
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
        figure, (axes,) = _figure(8, 3.8)
        for arm in arms:
            for place, run in enumerate(run for run in summary.runs_of(arm.name, BASELINE) if run.quantiles):
                axes.step(
                    run.quantiles,
                    SHARES,
                    where="post",
                    color=colours[arm.name],
                    linestyle=_dashes(arm),
                    linewidth=1.4,
                    label=arm.name if not place else "_",
                )
        axes.set_xscale("log")
        _plain_logarithm(axes.xaxis)
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


# ---- P5, the wooden bucket


def _p5(summary: Summary) -> Plot | Omission:
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
        figure, places = _figure(4.6 * len(kinds) + 0.8, 3.6, columns=len(kinds), sharey=True)
        for axes, where in zip(places, kinds, strict=True):
            for arm in summary.arms():
                line = sorted((p.delay_ms, p.p99_ms) for p in points if (p.arm, p.where) == (arm.name, where))
                axes.plot(
                    [x for x, _ in line],
                    [y for _, y in line],
                    "o",
                    linestyle=_dashes(arm),
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


# ---- P6, what was right


def _p6(summary: Summary) -> Plot | Omission:
    title = "What was right in the end"
    cells = [cell for cell in summary.cells if cell.state == "measured" and cell.truth]
    if not cells:
        return Omission("P6", title, "needs verdicts of the oracle")
    return Plot(
        "P6",
        title,
        "Counted by the oracle in the bank's ledger and the final states, summed over the seeds: orders lost, effects "
        "doubled, reservations orphaned, clients lied to, outcomes wrong. Zeros are printed, because they are the "
        "result; an arm that can't express a fault has n/a.",
        [_matrix(summary)],
    )


def _matrix(summary: Summary) -> Picture:
    arms, faults = summary.plan.arms, summary.plan.faults

    def draw() -> Figure:
        figure, (axes,) = _figure(1.3 + 1.12 * len(faults), 1.0 + 0.42 * len(arms))
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, arm in enumerate(arms):
            for x, fault in enumerate(faults):
                cell = next(c for c in summary.cells if (c.arm, c.fault) == (arm.name, fault.name))
                colour, box = _matrix_colour(cell), _boxes([(y, x, x + 1)])
                axes.add_patch(PathPatch(box, facecolor=colour, edgecolor=LIGHT["surface"], linewidth=2))
                axes.text(
                    x + 0.5,
                    y + 0.5,
                    _matrix_text(cell),
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
        axes.set_xlabel(" · ".join(HARMS.values()))
        return figure

    rows = []
    for arm in arms:
        texts = [next(c for c in summary.cells if (c.arm, c.fault) == (arm.name, f.name)) for f in faults]
        rows.append((arm.name, *map(_matrix_text, texts)))
    harmed = [f"{c.arm} under {c.fault}" for c in summary.cells if c.truth and c.truth.harm]
    told = f"Harm was found in {', '.join(harmed)}" if harmed else "No harm was found in any cell"
    return Picture(
        "P6",
        "Lost, doubled, orphaned, lied about, wrong",
        f"Matrix of arms and faults. {told}.",
        draw,
        ("arm", *(fault.name for fault in faults)),
        rows,
    )


def _matrix_text(cell: Cell) -> str:
    if cell.state != "measured":
        return {"na": "n/a", "invalid": "invalid", "missing": "not run"}[cell.state]
    if cell.truth is None:
        return "no oracle"
    return " · ".join(str(getattr(cell.truth, harm)) for harm in HARMS)


def _matrix_colour(cell: Cell) -> str:
    if cell.truth is None:
        return LIGHT["grid"]
    return LIGHT["slow"] if cell.truth.harm else LIGHT["right"]


# ---- P7, contention


def _p7(summary: Summary) -> Plot | Omission:
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
        figure, (axes,) = _figure(6.4, 0.8 + 0.36 * len(rates))
        _bars(axes, summary, rates, number)
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


def _bars(axes: Axes, summary: Summary, values: dict[str, float], show: Callable[[float], str]) -> None:
    """One for each arm, with its number at the end."""
    colours = colours_of(summary)
    names = list(values)
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(names)), list(values.values()), color=[colours[name] for name in names], height=0.62)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(values.values(), default=0.0) * 1.18, 1e-9))
    for place, value in enumerate(values.values()):
        axes.annotate(show(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)


# ---- P8, how retries multiply


class _Retries(NamedTuple):
    arm: str
    fault: str
    errors: float
    attempts: float
    after: float | None


def _p8(summary: Summary) -> Plot | Omission:
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
        figure, (left, right) = _figure(9.2, 3.6, columns=2)
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
        _bars(right, summary, after, lambda value: percent(value / 100))
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


# ---- P9, overload


def _p9(summary: Summary) -> Plot | Omission:
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
        figure, places = _figure(9.2, 2.3 * len(runs), rows=len(runs), sharex=True)
        for axes, run in zip(places, runs, strict=True):
            _shade(axes, run)
            known = [(second.start_s + 0.5, second.p99_ms) for second in run.seconds if second.p99_ms is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], color=LIGHT["stream-1"])
            axes.set_ylabel("p99, ms")
            axes.set_yscale("log")
            _plain_logarithm(axes.yaxis)
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


# ---- P10, the price of safety


def _p10(summary: Summary) -> Plot | Omission:
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
        figure, (left, right) = _figure(9.2, 0.9 + 0.38 * len(cells), columns=2)
        _bars(left, summary, {arm.name: _mean(cell.cpu_ms_per_confirmed) for arm, cell in cells}, milliseconds)
        left.set_xlabel("CPU time for each confirmed order, ms")
        _bars(right, summary, {arm.name: _mean(cell.p99_ms) for arm, cell in cells}, milliseconds)
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


# ---- P11, consistency of a snapshot


def _p11(_: Summary) -> Plot | Omission:
    return Omission(
        "P11", "Consistency of a snapshot", "needs state that is read while orders are under way, which no run records"
    )
