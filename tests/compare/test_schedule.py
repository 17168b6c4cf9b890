"""The same seed offers the same load, in every arm; a script changes what it says and nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from penstock.compare.schedule import Offer, offers, poisoned

OVERLOAD = {"what": "overload", "where": "client", "at_s": 20.0, "for_s": 20.0, "factor": 3.0}


def offered(seed: int = 1, *steps: dict[str, Any]) -> list[Offer]:
    return offers(seed, rate=50, warmup_s=5, seconds=60, steps=steps)


def test_the_same_seed_offers_the_same() -> None:
    assert offered(3) == offered(3)
    assert offered(3) != offered(4)


def test_requests_come_at_the_rate_and_from_the_warm_up_to_the_end() -> None:
    times = [offer.at_s for offer in offered()]

    assert times == sorted(times)
    assert -5 <= times[0] < -4.5
    assert 59.5 < times[-1] < 60
    assert abs(len(times) / 65 - 50) < 3


def test_distances_are_those_of_chance() -> None:
    """Of exponential ones the deviation is the mean."""
    times = [offer.at_s for offer in offered()]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5

    assert 0.9 < deviation / mean < 1.1


def test_overload_multiplies_what_comes_while_it_lasts() -> None:
    def per_second(found: list[Offer], begin_s: float, end_s: float) -> float:
        return sum(begin_s <= offer.at_s < end_s for offer in found) / (end_s - begin_s)

    usual, more = offered(), offered(1, OVERLOAD)

    assert 2.7 < per_second(more, 20, 40) / per_second(usual, 20, 40) < 3.3
    assert [offer for offer in usual if offer.at_s < 20] == [offer for offer in more if offer.at_s < 20]
    assert 0.85 < per_second(more, 40, 60) / per_second(usual, 40, 60) < 1.15


def test_a_share_comes_twice_while_it_lasts() -> None:
    step = {"what": "duplicate", "where": "client", "at_s": 20.0, "for_s": 20.0, "share": 0.5}

    twice = [offer.at_s for offer in offered(1, step) if offer.twice]

    assert all(20 <= at_s < 40 for at_s in twice)
    assert 400 < len(twice) < 600


def test_what_is_held_back_is_still_intended_when_it_was() -> None:
    step = {"what": "reorder", "where": "client", "at_s": 20.0, "for_s": 20.0, "share": 0.5, "delay_s": 2.0}

    found = offered(1, step)

    assert [offer.at_s for offer in found] == [offer.at_s for offer in offered()]
    assert {offer.held_s for offer in found} == {0.0, 2.0}


def test_poison_is_the_first_request_from_then_on() -> None:
    step = {"what": "poison", "where": "client", "at_s": 30.0}
    found = offered(1, step)

    number = poisoned(found, [step])

    assert number is not None
    assert found[number].at_s >= 30
    assert found[number - 1].at_s < 30
    assert poisoned(found, []) is None
