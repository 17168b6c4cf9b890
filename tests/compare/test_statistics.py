from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compare.statistics import estimate, percentile, ratio, slope, student_t, upper_bound_of_none


def test_a_percentile_is_the_value_of_its_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 0.995, 1.0)] == [1, 50, 99, 100, 100]


def test_the_percentile_of_few_values_is_one_of_them() -> None:
    assert percentile([3.0, 9.0], 0.5) == 3.0
    assert percentile([3.0, 9.0], 0.51) == 9.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_a_percentile_has_its_share_of_the_values_below_or_at_it(values: list[float], share: float) -> None:
    value = percentile(sorted(values), share)
    assert value in values
    assert sum(each <= value for each in values) >= share * len(values) - 1e-6


def test_the_interval_is_that_of_students_t() -> None:
    # By hand: the mean is 3, the deviation the root of 2.5, and 2.776 * 1.5811 / root of 5 is 1.963.
    found = estimate([1, 2, 3, 4, 5])
    assert found is not None
    assert found.mean == 3
    assert found.low == pytest.approx(1.037, abs=0.001)
    assert found.high == pytest.approx(4.963, abs=0.001)


def test_one_seed_gives_no_interval_and_none_gives_nothing() -> None:
    assert estimate([]) is None
    found = estimate([0.7])
    assert found is not None
    assert (found.mean, found.low, found.high, found.seeds) == (0.7, None, None, 1)
    assert not found.surely_above(0.1)
    assert not found.surely_below(0.9)


def test_the_interval_of_a_share_stays_where_shares_are() -> None:
    found = estimate([0.9, 1.0], share=True)
    assert found is not None
    assert found.low == pytest.approx(0.3147, abs=0.001)
    assert found.high == 1.0


def test_an_interval_that_reaches_across_a_bound_is_on_neither_side() -> None:
    found = estimate([1, 2, 3])
    assert found is not None
    assert not found.surely_above(1.0)
    assert not found.surely_below(3.0)
    assert found.surely_below(4.5)


def test_student_t_goes_on_smoothly_beyond_its_table() -> None:
    assert student_t(1) == 12.706
    assert student_t(30) == 2.042
    assert student_t(31) == pytest.approx(2.0395, abs=0.0005)
    assert student_t(100_000) == pytest.approx(1.96, abs=0.001)


def test_what_was_never_seen_may_still_happen() -> None:
    # The rule of three: about 3 divided by the number of trials.
    assert upper_bound_of_none(3000) == pytest.approx(0.001, abs=0.00001)
    assert upper_bound_of_none(0) == 1.0


def test_a_slope_is_that_of_the_line_of_least_squares() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2.0)
    assert slope([(1, 1), (1, 3)]) is None


def test_the_ratio_of_nothing_is_none() -> None:
    assert ratio(0, 0) is None
    assert ratio(1, 4) == 0.25
