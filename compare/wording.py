"""How figures are written for people: few digits, the unit beside the number, an interval where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from penstock.compare.statistics import Estimate

NOTHING: Final = "\N{EN DASH}"
"""Where there is no figure."""


def number(value: float) -> str:
    """Three digits at most, unless it is a large one: 0.034, 1.2, 34.5, 12,345."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    text = f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"
    return text.rstrip("0").rstrip(".") or "0"


def percent(value: float, digits: int = 1) -> str:
    """`98.2 %`. What is not all is never shown as 100 %, nor what is not nothing as 0 %."""
    shown = round(value * 100, digits)
    step = 10**-digits
    if shown >= 100 > value * 100:
        shown = 100 - step
    if shown <= 0 < value * 100:
        return f"< {step:.{digits}f} %"
    return f"{shown:.{digits}f} %"


def seconds(value: float) -> str:
    return f"{number(value)} s"


def milliseconds(value: float) -> str:
    return f"{number(value)} ms"


def interval(value: Estimate | None, show: Callable[[float], str]) -> str:
    """`98.2 % (97.9 to 98.5)`; without an interval the mean alone, without anything a dash."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return show(value.mean)
    return f"{show(value.mean)} ({_bare(show(value.low))} to {_bare(show(value.high))})"


def _bare(text: str) -> str:
    """Without its unit, which stands beside the mean already."""
    return text.rpartition(" ")[0] or text


def listed(names: Sequence[str]) -> str:
    """`S2`, `S2 and M3`, `S2, M2 and M3`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"
