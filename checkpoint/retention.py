"""Which checkpoints stay restorable, and what they hold on to.

By default all of the last ten minutes, then one a minute for an hour, bounded by 10 GB of deltas (PROTOCOL 19). The
newest checkpoint, and the one the running attempt began from, are never dropped. Pure: the caller deletes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import msgspec


class Retained(msgspec.Struct, frozen=True, array_like=True):
    """One restorable checkpoint, in brief. The whole manifest stands in the control log at `offset`."""

    checkpoint: int
    offset: int
    created_ms: int
    attempt: int
    first: int
    """Offset of the oldest delta it needs; -1 when its bases are enough."""
    bases: tuple[str, ...]
    delta_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Retention:
    """How long checkpoints are kept. Times in milliseconds."""

    all_ms: int = 600_000
    spacing_ms: int = 60_000
    spaced_ms: int = 3_600_000
    bytes_max: int = 10 << 30


class Verdict(NamedTuple):
    """What to keep, and what was given up only because of the size limit: that is worth telling."""

    kept: list[Retained]
    over_limit: list[Retained]


def decide(checkpoints: Sequence[Retained], policy: Retention, now_ms: int, *, needed: frozenset[int]) -> Verdict:
    """Split `checkpoints`, oldest first, by age and size. Those numbered in `needed` are always kept."""
    kept: list[Retained] = []
    last_spaced_ms: int | None = None
    for index, each in enumerate(checkpoints):
        age_ms = now_ms - each.created_ms
        newest = index == len(checkpoints) - 1
        if newest or each.checkpoint in needed or age_ms <= policy.all_ms:
            kept.append(each)
        elif age_ms <= policy.spaced_ms and (
            last_spaced_ms is None or each.created_ms - last_spaced_ms >= policy.spacing_ms
        ):
            kept.append(each)
            last_spaced_ms = each.created_ms
    return _bound(checkpoints, kept, policy, needed)


def _bound(checkpoints: Sequence[Retained], kept: list[Retained], policy: Retention, needed: frozenset[int]) -> Verdict:
    """Drop the oldest until the deltas that the rest pins fit the limit."""
    offsets = [each.offset for each in checkpoints]
    bytes_before = [0, *accumulate(each.delta_bytes for each in checkpoints)]
    points = list(accumulate((_pins(each) for each in reversed(kept)), min))
    points.reverse()
    dropped = 0
    while (
        dropped < len(kept) - 1
        and kept[dropped].checkpoint not in needed
        and bytes_before[-1] - bytes_before[bisect_left(offsets, points[dropped])] > policy.bytes_max
    ):
        dropped += 1
    return Verdict(kept[dropped:], kept[:dropped])


def _pins(each: Retained) -> int:
    """The oldest offset of the journal that a checkpoint needs."""
    return each.offset if each.first < 0 else min(each.first, each.offset)


def truncation_point(kept: Sequence[Retained]) -> int | None:
    """Everything in the journal before this offset is needed by no checkpoint; None when nothing can be said."""
    return min(map(_pins, kept), default=None)


def tells_what_is_read(kept: Sequence[Retained], *, attempt: int, restored: int) -> bool:
    """Whether checkpoints say how far back the running attempt may still read its inputs. One that began from nothing
    reads them from their start, and does so again after a crash, until it has taken a checkpoint of its own: those of
    the attempts it has abandoned are further on."""
    return bool(restored) or any(each.attempt == attempt for each in kept)


def oldest_of_attempts(kept: Sequence[Retained]) -> list[Retained]:
    """The first of `kept` that each attempt took. Positions of inputs grow within an attempt, but an attempt that goes
    back by a person's decision begins below those of the attempts it abandons: only together do these say how far back
    an input may still be read."""
    oldest: dict[int, Retained] = {}
    for each in kept:
        oldest.setdefault(each.attempt, each)
    return list(oldest.values())
