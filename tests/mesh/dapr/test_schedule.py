"""The times of Dapr's API, and what follows each firing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.schedule import Schedule, Span, moment_of, period_of, schedule_of


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = at("2030-01-31T12:00:00")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0h0m3s0ms0μs", 3_000),
        ("0h0m3s0ms0µs", 3_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("250ms", 250),
        ("1us", 1),
        ("0", 0),
        ("PT90M", 5_400_000),
        ("P1W1DT1S", 8 * 86_400_000 + 1_000),
    ],
)
def test_a_length_of_time_may_be_written_as_go_or_iso_have_it(text: str, ms: int) -> None:
    assert moment_of(text, NOW) == NOW + ms


def test_a_moment_is_itself() -> None:
    assert moment_of("2030-02-01T00:00:00Z", 0) == at("2030-02-01T00:00:00")
    assert moment_of("2030-02-01T01:00:00+01:00", 0) == at("2030-02-01T00:00:00")


def test_months_are_those_of_the_calendar() -> None:
    assert moment_of("P1M", at("2030-01-15T12:00:00")) == at("2030-02-15T12:00:00")
    assert moment_of("P1M", NOW) == at("2030-03-03T12:00:00")
    assert moment_of("P1Y", at("2030-12-01T00:00:00")) == at("2031-12-01T00:00:00")


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("10s", (Span(ms=10_000), 0)),
        ("PT10S", (Span(ms=10_000), 0)),
        ("R5/PT10S", (Span(ms=10_000), 5)),
        ("R/PT10S", (Span(ms=10_000), 0)),
        ("R2/P1Y2M", (Span(months=14), 2)),
    ],
)
def test_a_period_may_say_how_often(text: str, period: tuple[Span, int]) -> None:
    assert period_of(text) == period


@pytest.mark.parametrize("text", ["", "P", "PT", "5", "10 s", "s", "R0/PT1S", "R5", "tomorrow", "-5s", "1h-5m", "2030"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(DaprError, match="is no"):
        schedule_of("0s", text or "x", None, NOW)
    with pytest.raises(DaprError, match="is no"):
        schedule_of(text or "x", None, None, NOW)


def test_without_a_period_it_fires_once() -> None:
    schedule = schedule_of("3s", None, None, NOW)

    assert schedule.due_ms == NOW + 3_000
    assert schedule.following(NOW + 3_000) is None


def test_a_period_of_nothing_is_none() -> None:
    """What the SDK sends for a timer that fires once."""
    assert schedule_of("0h0m1s0ms0μs", "0h0m0s0ms0μs", None, NOW).following(NOW + 1_000) is None


def test_without_a_due_time_it_fires_at_once() -> None:
    assert schedule_of(None, "10s", None, NOW).due_ms == NOW


def firings(due: str, period: str, ttl: str | None = None, late_ms: int = 0, most: int = 6) -> list[int]:
    """In seconds after now."""
    schedule: Schedule | None = schedule_of(due, period, ttl, NOW)
    found: list[int] = []
    while schedule is not None and len(found) < most:
        found.append((schedule.due_ms - NOW) // 1000)
        schedule = schedule.following(schedule.due_ms + late_ms)
    return found


def test_it_fires_by_its_period_for_ever() -> None:
    assert firings("3s", "7s") == [3, 10, 17, 24, 31, 38]


def test_it_fires_as_often_as_it_says() -> None:
    assert firings("3s", "R3/PT7S") == [3, 10, 17]
    assert firings("3s", "R1/PT7S") == [3]


def test_the_ttl_counts_from_the_first_firing() -> None:
    assert firings("3s", "7s", "20s") == [3, 10, 17]
    assert firings("3s", "7s", "21s") == [3, 10, 17, 24]


def test_what_is_over_before_it_begins_is_refused() -> None:
    with pytest.raises(DaprError, match="over before"):
        schedule_of("2030-03-01T00:00:00Z", "1s", "2030-02-01T00:00:00Z", NOW)


def test_what_is_carried_out_late_stays_on_its_grid() -> None:
    assert firings("3s", "7s", late_ms=6_000) == [3, 10, 17, 24, 31, 38]


def test_what_was_missed_is_made_up_for_once() -> None:
    schedule = schedule_of("0s", "10s", None, NOW)

    due = schedule.following(NOW + 95_000)

    assert due is not None
    assert due.due_ms == NOW + 90_000
    following = due.following(NOW + 95_000)
    assert following is not None
    assert following.due_ms == NOW + 100_000


def test_months_that_were_missed_are_made_up_for_once() -> None:
    schedule = schedule_of("2030-01-01T00:00:00Z", "P1M", None, at("2030-01-01T00:00:00"))

    due = schedule.following(at("2030-06-15T00:00:00"))

    assert due is not None
    assert due.due_ms == at("2030-06-01T00:00:00")
