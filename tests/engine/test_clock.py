"""Proves that time goes on at its own pace whatever is done to the wall clock."""

from __future__ import annotations

import pytest

from penstock.engine.clock import SteadyClock, WorkClock, waited_s


class Hands:
    """The two clocks of a machine, set by hand."""

    def __init__(self) -> None:
        self.wall = 1_000.0
        self.monotonic = 5.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.monotonic)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_it_follows_the_wall_clock(hands: Hands) -> None:
    hands.pass_(3)
    assert hands.clock() == 1_003.0


def test_a_clock_set_forward_is_believed(hands: Hands) -> None:
    hands.wall += 3_600
    assert hands.clock() == 4_600.0


def test_a_clock_set_back_is_overtaken_by_what_has_passed(hands: Hands) -> None:
    hands.clock()
    hands.wall -= 3_600
    assert hands.clock() == 1_000.0
    hands.pass_(2)
    assert hands.clock() == 1_002.0


def test_it_joins_the_wall_clock_again_when_that_has_caught_up(hands: Hands) -> None:
    hands.wall -= 10
    hands.pass_(4)
    assert hands.clock() == 1_004.0
    hands.wall += 20
    assert hands.clock() == 1_014.0


def test_it_does_not_start_before_what_was_shown_already(hands: Hands) -> None:
    hands.clock.not_before(2_000)
    hands.pass_(1)
    assert hands.clock() == 2_001.0
    hands.clock.not_before(500)
    assert hands.clock() == 2_001.0


def test_time_in_which_others_had_the_processor_does_not_count_as_work() -> None:
    now_s, waited = 5.0, 1.0
    clock = WorkClock(lambda: now_s, lambda: waited)
    began = clock()
    now_s, waited = now_s + 0.010, waited + 0.008
    assert clock() - began == pytest.approx(0.002)


def test_short_work_is_measured_without_a_look_at_the_scheduler() -> None:
    now_s, looks = 5.0, 0

    def waited() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    clock = WorkClock(lambda: now_s, waited)
    began, before = clock(), looks
    now_s += 0.0005
    assert clock() - began == pytest.approx(0.0005)
    assert looks == before


def test_what_the_scheduler_says_never_goes_back() -> None:
    assert 0.0 <= waited_s() <= waited_s()
