"""Durations: what is understood, what is refused and in which words, and how they are shown."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.durations import DURATION_MS_MAX, format_duration, parse_duration, parse_duration_text
from penstock.errors import ConfigurationError, InvalidInput


@pytest.mark.parametrize(
    ("duration", "milliseconds"),
    [
        ("250ms", 250),
        ("90s", 90_000),
        ("1h30m", 5_400_000),
        ("1m250ms", 60_250),
        ("1w2d3h4m5s6ms", 788_645_006),
        ("30d", 2_592_000_000),
        ("1.5h", 5_400_000),
        ("0s", 0),
        (2, 2_000),
        (0, 0),
        (0.25, 250),
        (1e-05, 1),
        (timedelta(days=30), 2_592_000_000),
        (timedelta(), 0),
        ("36525d", DURATION_MS_MAX),
    ],
)
def test_understood(duration: str | float | timedelta, milliseconds: int) -> None:
    assert parse_duration(duration) == milliseconds


@pytest.mark.parametrize(("text", "milliseconds"), [("5", 5_000), ("0.5", 500), ("5s", 5_000), ("1h30m", 5_400_000)])
def test_a_text_from_outside_may_be_a_number_of_seconds(text: str, milliseconds: int) -> None:
    assert parse_duration_text(text) == milliseconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e3", "nan", "5 s", "1.2.3"])
def test_a_text_from_outside_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="PEN0110"):
        parse_duration_text(text, error=InvalidInput)


@pytest.mark.parametrize("duration", [0.1, "0.1s", timedelta(seconds=0.1)])
def test_a_tenth_of_a_second_is_exactly_a_hundred_milliseconds(duration: str | float | timedelta) -> None:
    assert parse_duration(duration) == 100


@pytest.mark.parametrize("duration", [0.0001, "0.1ms", timedelta(microseconds=1)])
def test_a_wait_is_never_shorter_than_asked_for(duration: str | float | timedelta) -> None:
    assert parse_duration(duration) == 1


@pytest.mark.parametrize(
    "duration",
    [
        *("", "30", "d", "30 d", "30D", "1m1h", "1h1h", "-5s", "1e3s", "1.s", ".5s", "1msms", "forever"),
        *(float("nan"), float("inf"), True),
    ],
)
def test_nonsense_is_refused(duration: str | float) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_duration(duration)

    assert str(raised.value) == (
        f"PEN0110 {duration!r} is not a duration. Write numbers with units from large to small, such as '30d', "
        "'1h30m', '90s' or '250ms', or give seconds as a number."
    )


@pytest.mark.parametrize("duration", [-1, -0.001, timedelta(seconds=-1)])
def test_a_negative_one_is_refused(duration: float | timedelta) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_duration(duration)

    assert str(raised.value) == f"PEN0110 The duration {duration!r} is negative. Give one of zero or more."


@pytest.mark.parametrize("duration", ["36526d", 1e300, timedelta.max])
def test_one_that_must_have_the_wrong_unit_is_refused(duration: str | float | timedelta) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_duration(duration)

    assert str(raised.value) == (
        f"PEN0110 The duration {duration!r} is longer than 100 years. Check its unit: a plain number is seconds."
    )


def test_where_it_comes_from_data_the_caller_chooses_the_error() -> None:
    with pytest.raises(InvalidInput):
        parse_duration(-1, error=InvalidInput)


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (1_250, "1.25s"),
        (59_999, "59.999s"),
        (60_000, "1m"),
        (90_000, "1m30s"),
        (5_400_000, "1h30m"),
        (3_605_000, "1h"),
        (788_645_006, "9d3h"),
        (2_592_000_000, "30d"),
    ],
)
def test_shown_to_people(milliseconds: int, shown: str) -> None:
    assert format_duration(milliseconds) == shown


@given(st.integers(0, DURATION_MS_MAX))
def test_what_is_shown_is_understood_and_hardly_less(milliseconds: int) -> None:
    understood = parse_duration(format_duration(milliseconds))

    assert understood <= milliseconds
    assert milliseconds - understood <= milliseconds / 24
