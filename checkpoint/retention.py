"""Which checkpoints stay restorable, and what they hold on to.

By default all of the last ten minutes, then one a minute for an hour, bounded by 10 GB of deltas (PROTOCOL 19). The
newest checkpoint, and the one the running attempt began from, are never dropped. Pure: the caller deletes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    over: list[Retained] = []
    while kept[:-1] and kept[0].checkpoint not in needed and _pinned_bytes(checkpoints, kept) > policy.bytes_max:
        over.append(kept.pop(0))
    return Verdict(kept, over)


def _pinned_bytes(checkpoints: Sequence[Retained], kept: Sequence[Retained]) -> int:
    """Bytes of the deltas that can't be truncated while `kept` are restorable."""
    point = truncation_point(kept) or 0
    return sum(each.delta_bytes for each in checkpoints if each.offset >= point)


def truncation_point(kept: Sequence[Retained]) -> int | None:
    """Everything in the journal before this offset is needed by no checkpoint; None when nothing can be said."""
    if not kept:
        return None
    return min(min((each.first for each in kept if each.first >= 0), default=kept[0].offset), kept[0].offset)


def oldest_of_attempts(kept: Sequence[Retained]) -> list[Retained]:
    """The first of `kept` that each attempt took. Positions of inputs grow within an attempt, but an attempt that goes
    back by a person's decision begins below those of the attempts it abandons: only together do these say how far back
    an input may still be read."""
    oldest: dict[int, Retained] = {}
    for each in kept:
        oldest.setdefault(each.attempt, each)
    return list(oldest.values())
