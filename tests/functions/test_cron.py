"""When cron expressions are due: in plain times, where clocks change, and what is refused."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.cron import Cron

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def cron(text: str, tz: str = "Europe/Berlin") -> Cron:
    return Cron(text, tz, place="Schedule s")


def due(text: str, start: str, end: str, tz: str = "Europe/Berlin") -> list[str]:
    of = cron(text, tz)
    return [of.local(each).isoformat(timespec="seconds") for each in of.between(at(start), at(end))]


def test_times_are_those_of_the_time_zone() -> None:
    assert due("0 2 * * *", "2026-01-01T00:00+00:00", "2026-01-03T00:00+00:00") == [
        "2026-01-01T02:00:00+01:00",
        "2026-01-02T02:00:00+01:00",
    ]
    assert due("@daily", "2026-07-01T00:00+00:00", "2026-07-02T00:00+00:00", "America/New_York") == [
        "2026-07-01T00:00:00-04:00"
    ]


def test_a_moment_is_behind_the_one_given_and_between_has_its_start_and_not_its_end() -> None:
    of = cron("* * * * *", "UTC")
    assert of.after(60_000) == 120_000
    assert of.after(59_999) == 60_000
    assert list(of.between(60_000, 180_000)) == [60_000, 120_000]
    assert cron("*/20 * * * * *", "UTC").after(59_999) == 60_000


def test_a_time_that_does_not_exist_is_due_when_the_clocks_have_gone_forward() -> None:
    assert due("30 2 * * *", "2026-03-28T12:00+01:00", "2026-03-31T00:00+02:00") == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_time_that_exists_twice_is_due_the_first_time() -> None:
    times = due("30 2 * * *", "2026-10-24T12:00+02:00", "2026-10-27T00:00+01:00")
    assert times == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    # Also if one begins to ask within the second of the two hours.
    assert cron("30 2 * * *").after(at("2026-10-25T02:10+01:00")) == at("2026-10-26T02:30+01:00")


def test_what_is_due_every_so_often_goes_by_the_time_that_passes() -> None:
    hours = due("0 * * * *", "2026-10-25T00:30+02:00", "2026-10-25T04:30+01:00")
    assert [each[11:] for each in hours] == [
        "01:00:00+02:00",
        "02:00:00+02:00",
        "02:00:00+01:00",
        "03:00:00+01:00",
        "04:00:00+01:00",
    ]
    assert len(due("*/10 * * * *", "2026-03-29T00:00+01:00", "2026-03-29T12:00+02:00")) == 11 * 6


@pytest.mark.parametrize("text", ["30 2 * * *", "0,30 1-3 * * *", "*/7 * * * *", "0 * * * *", "15 3 * * sun"])
@pytest.mark.parametrize(("start", "end"), [("2026-03-28", "2026-03-31"), ("2026-10-24", "2026-10-27")])
def test_moments_are_the_same_wherever_one_begins_to_ask(text: str, start: str, end: str) -> None:
    of = cron(text)
    moments = list(of.between(of.moment(start), of.moment(end)))
    assert moments == sorted(set(moments))
    for begun in range(of.moment(start), moments[-1], 17 * 60_000):
        assert of.after(begun) == next(each for each in moments if each > begun)


def test_the_latest_of_many_is_found() -> None:
    of = cron("*/5 * * * *", "UTC")
    assert of.latest(at("2020-01-01T00:00+00:00"), at("2026-01-01T00:04:59+00:00")) == at("2026-01-01T00:00+00:00")
    assert of.latest(300_000, 300_000) == 300_000
    assert of.latest(300_000, 600_000) == 600_000
    assert of.latest(301_000, 302_000) == 301_000  # It was due by the rules of another time.
    assert cron("0 0 29 2 *", "UTC").latest(at("2020-02-29T00:00+00:00"), at("2027-01-01T00:00+00:00")) == at(
        "2024-02-29T00:00+00:00"
    )


def test_a_moment_is_read_by_the_clocks_of_the_time_zone() -> None:
    of = cron("@daily")
    assert of.moment("2026-07-01") == at("2026-07-01T00:00+02:00")
    assert of.moment("2026-07-01T02:00") == at("2026-07-01T02:00+02:00")
    assert of.moment("2026-07-01T02:00Z") == at("2026-07-01T04:00+02:00")
    with pytest.raises(InvalidInput, match="PEN0281 'yesterday' is no date or time"):
        of.moment("yesterday")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Wrong number of fields"),
        ("0 2 * *", "Wrong number of fields"),
        ("60 2 * * *", "Bad minute"),
        ("0 2 * * xyz", "Bad day-of-week"),
        ("@often", "Wrong number of fields"),
        ("0 0 31 4 *", "Bad day-of-month"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        cron(text)
    assert str(raised.value).startswith(f"PEN0125 Schedule s: {text!r} is no cron expression: {why}. Write minute")


def test_what_is_never_due_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0125 Schedule s: '0 0 LW \* \*/7' is never due"):
        cron("0 0 LW * */7")  # A Sunday that is the last weekday of its month.


@pytest.mark.parametrize("tz", ["Berlin", "", "../etc/passwd", "Europe/Nowhere"])
def test_what_is_no_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0126 Schedule s: tz = '.*' is no time zone"):
        cron("@daily", tz)
