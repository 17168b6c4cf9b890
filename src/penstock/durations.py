"""How long: one way to write a span of time, for configuration, expirations and delays.

Text is a sum of numbers with units, largest first, as in `30d`, `1h30m`, `90s`, `250ms`; a plain number is
seconds. Everything inside Penstock counts whole milliseconds, rounded up, so that a wait is never shorter
than was asked for. Never negative: what should have happened before now is a mistake, and is refused. Moments are
written here, too.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Final

from penstock.errors import ConfigurationError, InvalidInput

UNITS_MS: Final = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
"""Largest first: the order in which the parts of a duration are written."""

DURATION_MS_MAX: Final = 36_525 * UNITS_MS["d"]
"""A hundred years. Longer is a wrong unit; and added to the clock it must fit 64 bits, in a timer's key."""

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TEXT: Final = re.compile("".join(rf"(?:({_NUMBER}){unit}(?![a-z]))?" for unit in UNITS_MS))


def parse_duration(
    duration: str | timedelta | float,
    *,
    error: type[ConfigurationError] | type[InvalidInput] = ConfigurationError,
) -> int:
    """`duration` in milliseconds. What is none raises `error`: give InvalidInput where it comes from data."""
    milliseconds = _exact_milliseconds(duration)
    if milliseconds is None:
        raise error(
            "PEN0110",
            f"{duration!r} is not a duration. Write numbers with units from large to small, such as '30d', "
            "'1h30m', '90s' or '250ms', or give seconds as a number.",
        )
    if milliseconds < 0:
        raise error("PEN0110", f"The duration {duration!r} is negative. Give one of zero or more.")
    if milliseconds > DURATION_MS_MAX:
        raise error(
            "PEN0110",
            f"The duration {duration!r} is longer than 100 years. Check its unit: a plain number is seconds.",
        )
    return int(milliseconds.to_integral_value(ROUND_CEILING))


def parse_duration_text(text: str, *, error: type[ConfigurationError] | type[InvalidInput] = ConfigurationError) -> int:
    """The same for what can only be text, as in a URL or the environment: `5` is five seconds there too."""
    return parse_duration(float(text) if re.fullmatch(_NUMBER, text) else text, error=error)


def format_duration(milliseconds: int) -> str:
    """`milliseconds` for people: seconds below a minute, else the two largest units, cut off, not rounded."""
    if milliseconds < UNITS_MS["s"]:
        return f"{milliseconds}ms"
    if milliseconds < UNITS_MS["m"]:
        return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, milliseconds = divmod(milliseconds, UNITS_MS[unit])
        parts.append((count, unit))
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)


def _exact_milliseconds(duration: str | timedelta | float) -> Decimal | None:
    """None if it is not a duration. Decimal, because 0.1 seconds in binary would round up to 101 ms."""
    match duration:
        case bool():
            return None
        case str():
            return _text_milliseconds(duration)
        case timedelta():
            return Decimal(duration // timedelta(microseconds=1)) / 1000
        case int() | float():
            seconds = Decimal(repr(duration))
            return seconds * 1000 if seconds.is_finite() else None
        case _:
            return None


@lru_cache(maxsize=1_000)  # Handlers give the same few texts for each of their messages.
def _text_milliseconds(text: str) -> Decimal | None:
    match = _TEXT.fullmatch(text)
    if not text or match is None:
        return None
    counts = zip(match.groups(), UNITS_MS.values(), strict=True)
    return sum((Decimal(count) * unit for count, unit in counts if count is not None), Decimal(0))


def timestamp(at_ms: float) -> str:
    """A moment in UTC: `2026-01-01T12:00:00.000Z`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
