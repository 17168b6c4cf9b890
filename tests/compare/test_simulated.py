"""The arms on simulated worlds: a few schedules of what `make compare-simulated` plays by the thousand."""

from __future__ import annotations

import pytest

from penstock.compare.arms import ARMS
from penstock.compare.checkout.oracle import HARMS
from tests.compare.simulated import CONTROLS, ORDERS, UNHARMED, verdict

SEEDS = range(2)


@pytest.mark.parametrize("name", UNHARMED)
def test_an_arm_that_takes_care_does_no_harm(name: str) -> None:
    for seed in SEEDS:
        found = verdict(ARMS[name], seed)

        assert found["counts"] == dict.fromkeys(HARMS, 0), (seed, found["invariants"])
        assert sum(found["terminal"].values()) == ORDERS


def test_a_step_that_is_declined_after_it_died_half_way_is_undone() -> None:
    """The money is taken, the host dies, another order takes what is left, and the step is run again elsewhere."""
    assert verdict(ARMS["M5"], 55)["counts"] == dict.fromkeys(HARMS, 0)


@pytest.mark.parametrize(("name", "seed"), [("S2-plain", 0), ("M1", 0), ("M3-nofence", 13)])
def test_a_control_does_its_harm(name: str, seed: int) -> None:
    assert verdict(ARMS[name], seed)["counts"][CONTROLS[name]] > 0


@pytest.mark.parametrize("name", ["S2", "M1", "M3"])
def test_a_schedule_is_the_same_again(name: str) -> None:
    assert verdict(ARMS[name], 1) == verdict(ARMS[name], 1)
