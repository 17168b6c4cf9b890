"""When a schedule is due: cron expressions in a time zone, as moments in milliseconds since 1970.

What always holds: `after` gives a moment later than the one it is given, and never skips one; the moments of an
expression are the same wherever one begins to ask. Where clocks change, it is as in Debian's cron. A time of day that
does not exist is due when the clocks have gone forward, one that exists twice is due the first time; an expression
whose minutes or hours begin with `*`, or that has seconds, goes by the time that passes, so that "every ten minutes"
stays that. Reads no clock. The arithmetic is that of the package `cronsim`, which is used here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from penstock.errors import ConfigurationError, InvalidInput

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_LONG_AGO_MS: Final = 946_684_800_000
"""The year 2000. What is not due within fifty years from any moment is never due."""


class Cron:
    """See the module. Raises ConfigurationError for what is no expression, is never due, or names no time zone."""

    def __init__(self, text: str, tz: str, *, place: str) -> None:
        """`place` is for messages: who wants this."""
        self.text = text
        self.tz = tz
        try:
            self._zone = ZoneInfo(tz)
        except Exception as error:  # Depending on the text: ValueError, OSError, KeyError, TypeError.
            raise ConfigurationError(
                "PEN0126",
                f"{place}: tz = {tz!r} is no time zone that this machine knows. Give a name such as 'Europe/Berlin' or "
                "'UTC'; where the system has none, install the package tzdata.",
            ) from error
        self._expression = ALIASES.get(text, str(text))
        try:
            found = self.after(_LONG_AGO_MS)
        except CronSimError as error:
            raise ConfigurationError(
                "PEN0125",
                f"{place}: {text!r} is no cron expression: {error}. Write minute, hour, day of month, month and day of "
                f"week, such as '0 2 * * *', or one of {', '.join(ALIASES)}; a sixth field in front is for seconds.",
            ) from None
        if found is None:
            raise ConfigurationError(
                "PEN0125", f"{place}: {text!r} is never due: there is no such day. Give days that their months have."
            )

    def after(self, moment_ms: int) -> int | None:
        """The first moment that is due later than this one; None when there is none for fifty years."""
        for due in CronSim(self._expression, self.local(moment_ms)):
            due_ms = int(due.timestamp()) * 1000
            # In an hour that exists twice, the arithmetic begins with the first of them, which may be over.
            if due_ms > moment_ms:
                return due_ms
        return None

    def latest(self, due_ms: int, until_ms: int) -> int:
        """The last moment that is due up to `until_ms`, given one that was. Takes no longer for many than for few."""
        # `after` grows with what it is given, so the last moment from which it stays within the bound can be halved in.
        latest, low, high = due_ms, due_ms, until_ms
        while high - low > 1:
            middle = (low + high) // 2
            found = self.after(middle)
            if found is not None and found <= until_ms:
                latest, low = found, middle
            else:
                high = middle
        return latest

    def between(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """All moments that are due from `start_ms` on and before `end_ms`."""
        due_ms = self.after(start_ms - 1)
        while due_ms is not None and due_ms < end_ms:
            yield due_ms
            due_ms = self.after(due_ms)

    def local(self, moment_ms: int) -> datetime:
        """A moment by the clocks of the time zone."""
        return datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(self._zone)

    def moment(self, text: str) -> int:
        """The moment that a date, or date and time, stands for; by the clocks of the time zone if it names none.

        Raises InvalidInput for other text.
        """
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidInput(
                "PEN0281", f"{text!r} is no date or time. Write 2026-03-01, 2026-03-01T02:00 or 2026-03-01T02:00+01:00."
            ) from None
        return int((found if found.tzinfo is not None else found.replace(tzinfo=self._zone)).timestamp() * 1000)
