"""The three back-offs, and the one that the server asks for."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.backoff import backoff_s, told_s
from penstock.mesh.policies.settings import Backoff

EXPONENTIAL = Backoff(0.5, 4.0, multiplier=2.0)


def test_a_constant_back_off_is_the_same_each_time() -> None:
    assert [backoff_s(Backoff(5.0, constant=True), retry, lambda: 0.9) for retry in (1, 2, 50)] == [5.0] * 3


def test_an_exponential_back_off_grows_up_to_its_cap_plus_or_minus_half() -> None:
    assert [backoff_s(EXPONENTIAL, retry, lambda: 0.5) for retry in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert backoff_s(EXPONENTIAL, 1, lambda: 0.0) == 0.25
    assert backoff_s(EXPONENTIAL, 1, lambda: 1.0) == 0.75


@pytest.mark.parametrize("settings", [Backoff(), EXPONENTIAL])
def test_a_retry_without_end_waits_no_longer_for_it(settings: Backoff) -> None:
    assert backoff_s(settings, 10_000, lambda: 0.5) <= 4.0


def test_those_who_were_told_the_same_moment_come_back_at_different_ones() -> None:
    assert [told_s(2.0, lambda drawn=drawn: drawn) for drawn in (0.0, 0.5, 1.0)] == [2.0, 2.5, 3.0]  # type: ignore[misc]
