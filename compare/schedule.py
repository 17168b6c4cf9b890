"""What load is offered, and when: a list that follows from a seed, a rate and a fault script, and from nothing else.

What always holds: the same arguments give the same list, in every arm, on every machine; requests are numbered in the
order in which they are intended; none waits for the answer to another one, as the customers of a shop don't.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from penstock.compare.script import OF_THE_LOAD

AGAIN_S = 0.05
"""A duplicate comes so long behind the first one: where a request takes longer, while it is under way."""


class Offer(NamedTuple):
    """One request."""

    number: int
    at_s: float
    """When it is intended: from then on its answer is waited for."""
    held_s: float = 0.0
    """So long it is held back on its way."""
    twice: bool = False


class Window(NamedTuple):
    """A step of the script that concerns the load, while it lasts."""

    what: str
    begin_s: float
    end_s: float
    share: float
    factor: float
    delay_s: float

    def has(self, at_s: float) -> bool:
        return self.begin_s <= at_s < self.end_s


def windows_of(steps: Sequence[Mapping[str, Any]]) -> list[Window]:
    """Those of the steps, as a plan has them, that the load generator carries out."""
    return [
        Window(
            step["what"],
            step["at_s"],
            step["at_s"] + step.get("for_s", 0.0),
            step.get("share", 1.0),
            step.get("factor", 1.0),
            step.get("delay_s", 0.0),
        )
        for step in steps
        if step["what"] in OF_THE_LOAD
    ]


def offers(
    seed: int, *, rate: float, warmup_s: float, seconds: float, steps: Sequence[Mapping[str, Any]]
) -> list[Offer]:
    """Poisson arrivals of `rate` per second, and what the steps do to them."""
    windows = windows_of(steps)
    chance = random.Random(f"{seed}/script")
    return [
        _with_windows(Offer(number, at_s), windows, chance)
        for number, at_s in enumerate(_arrivals(seed, rate, -warmup_s, seconds, windows))
    ]


def poisoned(offered: Sequence[Offer], steps: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of the request that raises at every try: the first one from the step on."""
    begins_s = [step["at_s"] for step in steps if step["what"] == "poison"]
    return next((offer.number for offer in offered if begins_s and offer.at_s >= begins_s[0]), None)


def _arrivals(seed: int, rate: float, begin_s: float, end_s: float, windows: Sequence[Window]) -> Iterator[float]:
    """Overload takes nothing away: outside of its window the distances between arrivals are what they are without."""
    chance = random.Random(f"{seed}/arrivals")
    at_s = begin_s
    while True:
        # The distance is an amount of load, which passes the faster, the more there is at the moment.
        distance = chance.expovariate(rate)
        for until_s, factor in _stretches(at_s, windows):
            if (until_s - at_s) * factor >= distance:
                at_s += distance / factor
                break
            distance -= (until_s - at_s) * factor
            at_s = until_s
        if at_s >= end_s:
            return
        yield at_s


def _stretches(at_s: float, windows: Sequence[Window]) -> Iterator[tuple[float, float]]:
    """From `at_s` on: until when it is how many times the load."""
    edges = sorted({edge for window in windows for edge in (window.begin_s, window.end_s) if edge > at_s})
    for until_s in (*edges, float("inf")):
        factor = 1.0
        for window in windows:
            if window.what == "overload" and window.has(at_s):
                factor *= window.factor
        yield until_s, factor
        at_s = until_s


def _with_windows(offer: Offer, windows: Sequence[Window], chance: random.Random) -> Offer:
    for window in windows:
        # Drawn for every request, so that one window shifts the chances of no other.
        drawn = chance.random() < window.share
        if not drawn or not window.has(offer.at_s):
            continue
        if window.what == "duplicate":
            offer = offer._replace(twice=True)
        elif window.what == "reorder":
            offer = offer._replace(held_s=window.delay_s)
    return offer
