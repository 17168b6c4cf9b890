"""How long a stream should take to come back from a failure, by what it tells of its checkpoints.

    recovery = down + rate * (interval / 2 + checkpoint + down) / (capacity - rate)

While it is down, requests arrive; what came since the last complete checkpoint, half an interval and one checkpoint ago
on average, is done again; and all of it is worked off with what capacity is left beside the requests that go on coming.
"""

from __future__ import annotations

from penstock.compare.figures import RunFigures
from penstock.compare.series import TENTHS


def predicted_recovery_s(
    *, down_s: float, rate: float, interval_s: float, checkpoint_s: float, capacity: float
) -> float | None:
    """None if there is no capacity left: then it never comes back."""
    if capacity <= rate:
        return None
    return down_s + rate * (interval_s / 2 + checkpoint_s + down_s) / (capacity - rate)


def prediction_of(run: RunFigures) -> float | None:
    """Of the first fault of a run, with the down time and the capacity that were measured in it. None where something
    of it is not told."""
    recovery = run.recovery
    if run.interval_s is None or recovery is None or recovery.repair_s is None:
        return None
    down_s = (recovery.detect_s or 0.0) + recovery.repair_s
    return predicted_recovery_s(
        down_s=down_s,
        rate=run.counts.offered / max(len(run.seconds), 1),
        interval_s=run.interval_s,
        checkpoint_s=run.checkpoint_s or 0.0,
        capacity=capacity_of(run),
    )


def capacity_of(run: RunFigures) -> float:
    """The most right answers that came within one second: as fast as it was seen to work."""
    good = run.timeline.good
    return float(max((sum(good[at : at + TENTHS]) for at in range(len(good))), default=0))
