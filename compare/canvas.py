"""What every plot of a comparison is drawn with. The only module that knows matplotlib.

What always holds: the same picture gives the same bytes. In an SVG colours are names that the page gives a meaning, so
that it follows light and dark; in a PNG they are those of the light page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator, NullLocator

from penstock.compare.records import PlannedArm
from penstock.compare.selection import is_control
from penstock.compare.summary import Summary

__all__ = [
    "DARK",
    "FONTS",
    "LIGHT",
    "Axes",
    "Figure",
    "Omission",
    "Outline",
    "PathPatch",
    "Picture",
    "Plot",
    "Rendered",
    "Row",
    "bars",
    "boxes_of",
    "colours_of",
    "dashes_of",
    "figure_of",
    "plain_logarithm",
    "render",
]

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


def figure_of(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [axes for row in grid for axes in row]


def plain_logarithm(axis: XAxis | YAxis) -> None:
    """1, 2, 5, 10, 20, ... as numbers, and not as powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(NullLocator())


def boxes_of(spans: Sequence[tuple[int, int, int]]) -> Outline:
    """One outline for all of a colour: a map has thousands of cells, and a page should stay small."""
    points = [
        point
        for row, start, end in spans
        for point in ((start, row), (end, row), (end, row + 1), (start, row + 1), (start, row))
    ]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(spans)
    return Outline(points, codes)


def colours_of(summary: Summary) -> dict[str, str]:
    """One for each arm: cold ones for the stream, warm ones for the mesh."""
    colours: dict[str, str] = {}
    for mode, many in (("stream", 4), ("mesh", 8)):
        for place, arm in enumerate(arm for arm in summary.plan.arms if arm.mode == mode):
            colours[arm.name] = LIGHT[f"{mode}-{place % many + 1}"]
    return colours


def dashes_of(arm: PlannedArm) -> str:
    """Controls are dashed everywhere."""
    return "--" if is_control(arm) else "-"


def bars(axes: Axes, summary: Summary, values: dict[str, float], show: Callable[[float], str]) -> None:
    """One for each arm, with its number at the end."""
    colours = colours_of(summary)
    names = list(values)
    axes.grid(visible=False, axis="y")
    axes.barh(range(len(names)), list(values.values()), color=[colours[name] for name in names], height=0.62)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    # Room for the number behind the longest bar; where all are zero, any scale will do.
    axes.set_xlim(0, max(values.values(), default=0.0) * 1.18 or 1.0)
    for place, value in enumerate(values.values()):
        axes.annotate(show(value), (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
