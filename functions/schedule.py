"""What `app.schedule` declares: a function that is to run when a cron expression is due.

A `Schedule` is a description, checked as far as it can be by itself. The engine keeps what became of it (when it is due
next, whether it is paused) under its name, so the name is what ties a declaration to its past.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args
from zoneinfo import ZoneInfo

from penstock.errors import ConfigurationError
from penstock.functions.cron import Cron
from penstock.functions.function import Function
from penstock.functions.state import Message
from penstock.ids import is_utf8

Missed = Literal["skip", "run-once", "all"]
Reason = Literal["due", "run", "backfill"]

DUE_HEADER: Final = "penstock-due"
SCHEDULE_HEADER: Final = "penstock-schedule"


LATE_MS: Final = 60_000
"""A run that is later was missed. It must be longer than another process takes to go on for one that died."""


class Scheduled(Message):
    """What the function of a schedule is sent, unless the schedule has a `message` of its own."""

    schedule: str
    """The name of the schedule."""
    due_ms: int
    """When it was due, in milliseconds since 1970; for a run that was asked for by hand, when that was."""
    tz: str = "UTC"
    reason: Reason = "due"
    """Why it runs: it was due, or `penstock schedule run` or `backfill` asked for it."""

    @property
    def due(self) -> datetime:
        """When it was due, by the clocks of the schedule's time zone."""
        return datetime.fromtimestamp(self.due_ms / 1000, UTC).astimezone(ZoneInfo(self.tz))


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """A declared schedule: when which address is sent what."""

    name: str
    cron: Cron
    typename: str
    id: str
    message: Any
    """None for a `Scheduled`."""
    missed: Missed

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("id", self.id)):
            if not text or not is_utf8(text):
                raise ConfigurationError(
                    "PEN0127", f"A schedule of {self.typename} has the {what} {text!r}. Give it some text."
                )
        if self.missed not in get_args(Missed):
            known = ", ".join(map(repr, get_args(Missed)))
            raise ConfigurationError(
                "PEN0127", f"Schedule {self.name} has missed = {self.missed!r}, which is not known. Use one of {known}."
            )

    def check(self, function: Function[Any, Any] | None) -> None:
        """Raise ConfigurationError unless `function`, which has its typename, takes what it sends."""
        if function is None:
            raise ConfigurationError(
                "PEN0127",
                f"Schedule {self.name} is for {self.typename}, which is no function of this application. Correct the "
                "name, or remove the schedule.",
            )
        codec = function.message_codec
        kind = Scheduled if self.message is None else type(self.message)
        if codec.types and kind not in codec.types:
            raise ConfigurationError(
                "PEN0127",
                f"Schedule {self.name} sends {kind.__name__} to {self.typename}, which takes {codec.name}. Give the "
                f"schedule a message= of that, or add {kind.__name__} to the annotation of the handler.",
            )
        self.payload(function, 0, "due")

    def payload(self, function: Function[Any, Any], due_ms: int, reason: Reason) -> bytes:
        """The message of one run, as it travels."""
        message = self.message
        if message is None:
            message = Scheduled(self.name, due_ms, self.cron.tz, reason)
        return function.message_codec.encode(message)

    def headers(self, due_ms: int) -> dict[str, str]:
        """What a run is told besides its message."""
        return {SCHEDULE_HEADER: self.name, DUE_HEADER: self.cron.local(due_ms).isoformat(timespec="seconds")}


def next_due(cron: Cron, missed: Missed, next_ms: int, clock_ms: int) -> tuple[int | None, int]:
    """Of what has been due since `next_ms`, which is not after `clock_ms`: the first moment that is to be sent, None
    when it was missed; and the first moment behind it, 0 for none."""
    due_ms = next_ms
    if missed != "all" and clock_ms - due_ms > LATE_MS:
        due_ms = cron.latest(due_ms, clock_ms)
    is_sent = missed != "skip" or clock_ms - due_ms <= LATE_MS
    return due_ms if is_sent else None, cron.after(due_ms) or 0
