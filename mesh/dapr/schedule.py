"""When timers and reminders of actors fire: the times of Dapr's API, and what comes after each firing.

    dueTime   Go duration (1h30m, 0h0m3s0ms0μs), ISO 8601 duration (PT3S), or a moment (RFC 3339); absent is now
    period    Go duration, or [Rn/]ISO 8601 duration: n times in all; absent is once, without n for ever
    ttl       as dueTime, counted from the first firing

What always holds: the firings lie on the grid that the first one and the period span, however late each is carried out;
what was missed is made up for once, not once for each time; after the last repetition, or beyond the ttl, there is no
next one. Months and years are those of the calendar, in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final, NamedTuple

from penstock.mesh.dapr.errors import DaprError

_UNITS_MS: Final = {
    "h": Fraction(3_600_000),
    "m": Fraction(60_000),
    "s": Fraction(1000),
    "ms": Fraction(1),
    "us": Fraction(1, 1000),
    "µs": Fraction(1, 1000),
    "μs": Fraction(1, 1000),
    "ns": Fraction(1, 1_000_000),
}
"""Of Go. The micro sign is written as U+00B5 or as U+03BC, which the SDK for Python sends."""
_GO_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|h|m|s)")
_ISO: Final = re.compile(
    r"(?:R(?P<times>[0-9]+)?/)?"
    r"(?:P(?=.)(?:(?P<years>[0-9]+)Y)?(?:(?P<months>[0-9]+)M)?(?:(?P<weeks>[0-9]+)W)?(?:(?P<days>[0-9]+)D)?"
    r"(?:T(?=.)(?:(?P<hours>[0-9]+)H)?(?:(?P<minutes>[0-9]+)M)?(?:(?P<seconds>[0-9]+)S)?)?)?"
)


class Span(NamedTuple):
    """A length of time, of which some is counted by the calendar."""

    months: int = 0
    ms: int = 0

    def __bool__(self) -> bool:
        return self.months > 0 or self.ms > 0

    def times(self, number: int) -> Span:
        return Span(self.months * number, self.ms * number)

    def after(self, moment_ms: int) -> int:
        if not self.months:
            return moment_ms + self.ms
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment_ms)
        years, month = divmod(moment.month - 1 + self.months, 12)
        # From the first, so that a month without a 31st ends in the next one, as Go has it.
        first = moment.replace(year=moment.year + years, month=month + 1, day=1)
        later = first + timedelta(days=moment.day - 1)
        return round((later - datetime.fromtimestamp(0, UTC)) / timedelta(milliseconds=1)) + self.ms


class Schedule(NamedTuple):
    """What is left of the firings of a timer or reminder."""

    due_ms: int
    """The next firing, in milliseconds since 1970."""
    first_ms: int
    period: Span = Span()
    fired: int = 0
    """Periods that lie behind, with those that were missed."""
    left: int = 0
    """Firings that are left, with the next one; 0 for ever."""
    ends_ms: int = 0
    """Nothing fires after it; 0 never."""

    def following(self, now_ms: int) -> Schedule | None:
        """After the firing that was due. None when there is no other."""
        if not self.period or self.left == 1:
            return None
        fired = max(self.fired + 1, self._missed(now_ms))
        due_ms = self.period.times(fired).after(self.first_ms)
        if self.ends_ms and due_ms > self.ends_ms:
            return None
        return self._replace(due_ms=due_ms, fired=fired, left=max(0, self.left - 1))

    def _missed(self, now_ms: int) -> int:
        """The last of the periods that are over, but for the one that is due now at the latest."""
        if self.period.months:
            number = self.fired + 1
            while self.period.times(number + 1).after(self.first_ms) <= now_ms:
                number += 1
            return number
        return (now_ms - self.first_ms) // self.period.ms


def schedule_of(due: str | None, period: str | None, ttl: str | None, now_ms: int) -> Schedule:
    """Raises DaprError for what is none."""
    first_ms = moment_of(due, now_ms) if due else now_ms
    span, times = period_of(period) if period else (Span(), 0)
    if times and not span:
        raise _wrong("period", period)
    ends_ms = 0
    if ttl:
        ends_ms = moment_of(ttl, first_ms)
        if ends_ms < now_ms or ends_ms < first_ms:
            raise DaprError(400, "ERR_MALFORMED_REQUEST", f"The ttl {ttl!r} is over before the first firing.")
    return Schedule(first_ms, first_ms, span, left=times if span else 1, ends_ms=ends_ms)


def moment_of(text: str, from_ms: int) -> int:
    """A moment, or one so long after `from_ms`, in milliseconds since 1970. Raises DaprError."""
    go = _go_ms(text)
    if go is not None:
        return from_ms + go
    if (iso := _ISO.fullmatch(text)) and text.startswith("P"):
        return _span(iso).after(from_ms)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong("time", text) from None
    if moment.tzinfo is None:
        raise _wrong("time", text)
    return round(moment.timestamp() * 1000)


def period_of(text: str) -> tuple[Span, int]:
    """The period and how often it comes; 0 for ever. Raises DaprError."""
    go = _go_ms(text)
    if go is not None:
        return Span(ms=go), 0
    if not (iso := _ISO.fullmatch(text)) or iso["times"] == "0":
        raise _wrong("period", text)
    return _span(iso), int(iso["times"] or 0)


def _go_ms(text: str) -> int | None:
    """None for what is no Go duration."""
    if text == "0":
        return 0
    parts = list(_GO_PART.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        return None
    total = sum((Fraction(number.rstrip(".")) * _UNITS_MS[unit] for number, unit in (part.groups() for part in parts)))
    return -(-total.numerator // total.denominator)


def _span(iso: re.Match[str]) -> Span:
    def of(name: str) -> int:
        return int(iso[name] or 0)

    days = of("weeks") * 7 + of("days")
    seconds = (of("hours") * 60 + of("minutes")) * 60 + of("seconds")
    return Span(of("years") * 12 + of("months"), (days * 86_400 + seconds) * 1000)


def _wrong(what: str, text: str | None) -> DaprError:
    return DaprError(
        400,
        "ERR_MALFORMED_REQUEST",
        f"{text!r} is no {what}. Write a Go duration such as 1h30m, an ISO 8601 duration such as PT90M"
        f"{' (with R5/ before it for five times)' if what == 'period' else ', or a moment as in RFC 3339'}.",
    )
