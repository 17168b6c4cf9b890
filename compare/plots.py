"""All plots of a comparison.

What always holds: a plot is drawn from figures that the runs contain; one whose figures are missing is an `Omission`
with its reason, and never an empty picture. Beside every picture stand its description in words and the table of the
numbers behind it.
"""

from __future__ import annotations

from penstock.compare.canvas import Omission, Plot
from penstock.compare.plots_in_time import p1, p2, p9
from penstock.compare.plots_of_arms import p3, p4, p5, p6, p7, p8, p10, p11
from penstock.compare.summary import Summary


def plots_of(summary: Summary) -> list[Plot | Omission]:
    """P1 to P11, in their order."""
    return [plot(summary) for plot in (p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11)]
