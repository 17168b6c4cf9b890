"""Which failures each condition of `retry_on` covers."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.outcomes import CONDITIONS, Failure, Outcome, is_condition, is_retriable, retry_after_s

OUTCOMES = {
    "200": Outcome(200),
    "404": Outcome(404),
    "409": Outcome(409),
    "429": Outcome(429),
    "500": Outcome(500),
    "503": Outcome(503),
    **{failure.value: Outcome(failure=failure) for failure in Failure},
    "503 before it began": Outcome(503, Failure.REFUSED),
}
NO_ANSWER = {failure.value for failure in Failure} | {"503 before it began"}


@pytest.mark.parametrize(
    ("condition", "covered"),
    [
        ("5xx", {"500", "503"} | NO_ANSWER),
        ("gateway-error", {"503"} | NO_ANSWER),
        ("connect-failure", {"connect-failure"}),
        ("refused-stream", {"refused-stream", "503 before it began"}),
        ("reset-before-request", {"reset-before-request"}),
        ("reset", NO_ANSWER),
        ("timeout", {"timeout"}),
        ("retriable-4xx", {"409"}),
        ("envoy-ratelimited", {"429"}),
        ("404", {"404"}),
    ],
)
def test_a_condition_covers_what_envoy_says_it_does(condition: str, covered: set[str]) -> None:
    assert is_condition(condition)
    assert {name for name, outcome in OUTCOMES.items() if is_retriable(outcome, frozenset({condition}))} == covered


def test_a_success_is_never_tried_again() -> None:
    assert not is_retriable(OUTCOMES["200"], frozenset(CONDITIONS))


@pytest.mark.parametrize("name", ["", "5XX", "399", "600", "unavailable"])
def test_what_is_no_condition(name: str) -> None:
    assert not is_condition(name)


@pytest.mark.parametrize(
    ("told", "seconds"), [("", None), ("0", 0.0), ("120", 120.0), ("-1", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)]
)
def test_a_wait_that_is_told_is_a_number_of_seconds(told: str, seconds: float | None) -> None:
    assert retry_after_s(told) == seconds
