"""The conditions under which a breaker opens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.mesh.policies.trip import Counts, parse_trip

COUNTS = Counts(requests=20, total_successes=8, total_failures=12, consecutive_successes=0, consecutive_failures=6)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("consecutiveFailures > 5", True),
        ("consecutiveFailures > 6", False),
        ("requests >= 20 && totalFailures / requests >= 0.6", True),
        ("requests >= 20 && totalFailures / requests > 0.6", False),
        ("requests > 100 || consecutiveFailures == 6", True),
        ("requests > 100 && consecutiveFailures == 6 || totalSuccesses != 8", False),
        ("requests > 100 && (consecutiveFailures == 6 || totalSuccesses == 8)", False),
        ("!(requests > 100)", True),
        ("totalFailures - totalSuccesses * 2 < -3", True),
        ("consecutiveSuccesses / consecutiveSuccesses > 0", False),
    ],
)
def test_a_condition_holds_of_the_counts_it_is_about(text: str, holds: bool) -> None:
    assert parse_trip(text).holds(COUNTS) is holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it ends too early"),
        ("requests", "nothing is compared"),
        ("requests >", "it ends too early"),
        ("requests > 5 5", "'5' is not expected here"),
        ("(requests > 5", "a parenthesis is not closed"),
        ("failures > 5", "'failures' is none of requests"),
        ("requests > $5", "'$5' is not understood"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_trip(text)

    assert told in str(caught.value)


@given(st.text(alphabet="requstoalFi<>=!&|+-*/() 0159.", max_size=30))
def test_no_text_ends_in_anything_but_a_condition_or_a_reason(text: str) -> None:
    try:
        trip = parse_trip(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert trip.holds(COUNTS) in (True, False)
