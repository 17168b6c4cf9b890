"""Percentiles within a run, and 95 % intervals over runs that differ in their seed alone.

The interval is that of Student's t for the mean: each seed gives one figure, and the figures of seeds are independent
by construction. A percentile of latencies enters as one figure per run, too; latencies of different runs are never
thrown together. One seed has no spread, so it has no interval, and whoever prints the estimate says so. For events of
which none was seen there is an upper bound instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

METHOD: Final = (
    "mean over the seeds, one figure per run, with the 95 % interval of Student's t; one seed gives no interval"
)


class Estimate(msgspec.Struct, frozen=True):
    """A figure over seeds. `low` and `high` are None if there is one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def surely_above(self, bound: float) -> bool:
        """Whether the whole interval is above it; False without an interval."""
        return self.low is not None and self.low > bound

    def surely_below(self, bound: float) -> bool:
        return self.high is not None and self.high < bound


def estimate(values: Sequence[float], *, share: bool = False) -> Estimate | None:
    """None of no values. The interval of a `share` stays between 0 and 1, where all shares are."""
    if not values:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_t(count - 1) * deviation / math.sqrt(count)
    low, high = mean - half, mean + half
    return Estimate(mean, max(low, 0.0), min(high, 1.0), count) if share else Estimate(mean, low, high, count)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in ascending order, by nearest rank: the smallest that at least this share of them do not exceed."""
    assert ordered, "a percentile of nothing"
    assert 0 < share <= 1, share
    # A product such as 0.07 * 100 is a little above 7, and would be the next rank.
    return ordered[max(math.ceil(share * len(ordered) - 1e-9), 1) - 1]


def upper_bound_of_none(trials: int) -> float:
    """The largest rate of an event that is still likely (95 %) to show none in so many independent trials."""
    return 1 - 0.05 ** (1 / trials) if trials else 1.0


def student_t(freedom: int) -> float:
    """The 97.5 % point of Student's t: exact to three places."""
    assert freedom >= 1, freedom
    if freedom <= len(_STUDENT_T):
        return _STUDENT_T[freedom - 1]
    # The Cornish-Fisher expansion about the normal point; beyond the table its error is below 0.0001.
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


_STUDENT_T: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""For 1 to 30 degrees of freedom."""


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Of the line of least squares; None if all x are equal."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = math.fsum(x for x, _ in points) / len(points)
    mean_y = math.fsum(y for _, y in points) / len(points)
    return math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / math.fsum((x - mean_x) ** 2 for x, _ in points)


def ratio(part: float, whole: float) -> float | None:
    """None of nothing: an arm to which nothing was offered is not available at 0 %."""
    return part / whole if whole else None
