"""The schedules of one task: what is due is sent, once, and what is due next is known.

    declared and kept compared at restore -> look at a schedule -> send what is due -> look again when the next is

A schedule belongs to the task of its name, as an address belongs to that of its id, and has one row there. What always
holds: a run is sent in the same batch in which its row goes on behind it, so each moment is sent once, also across
crashes and hand-offs; looking when nothing is due changes nothing; a schedule that was declared is looked at when it is
due, unless it is paused. A change of the expression counts from the present, after what the old one was due for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from penstock.engine.delays import Delays
from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.cron import Cron
from penstock.functions.function import Function
from penstock.functions.schedule import Missed, Reason, Schedule, next_due
from penstock.ids import KEY_GROUPS_MAX, cause_of, key_group
from penstock.records import Envelope, Meta
from penstock.state import keys
from penstock.state.overlay import Overlay

CAUGHT_UP_AT_ONCE: Final = 100
"""Missed runs that are sent in one turn."""
BACKFILL_MAX: Final = 1_000
"""Runs that one backfill may ask for: all of them are messages of one turn."""


class ScheduleRow(msgspec.Struct, array_like=True, omit_defaults=True):
    """What is kept of a schedule."""

    cron: str
    tz: str
    missed: Missed
    typename: str
    id: str
    next_ms: int = 0
    """The first moment that is not dealt with; 0 for none."""
    paused: bool = False
    due_ms: int = 0
    """The moment that was sent last, of those that were due; 0 for none."""
    sent_ms: int = 0
    """When a run was last sent, for whatever reason."""
    runs: int = 0

    def fits(self, declared: Schedule) -> bool:
        """Whether it is kept as it is declared."""
        return (self.cron, self.tz, self.missed, self.typename, self.id) == (
            declared.cron.text,
            declared.cron.tz,
            declared.missed,
            declared.typename,
            declared.id,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ScheduleRow).decode


class Schedules:
    """See the module. Owns the rows of kind SCHEDULE of one task. `declared` are all schedules of the application.

    Raises ConfigurationError for one whose message is too large.
    """

    def __init__(
        self,
        declared: Mapping[str, Schedule],
        functions: Mapping[str, Function[Any, Any]],
        overlay: Overlay,
        delays: Delays,
        *,
        task: int,
        tasks: int,
        bytes_max: int,
    ) -> None:
        self._declared = {name: each for name, each in declared.items() if key_group(name) % tasks == task}
        self._functions = functions
        self._overlay = overlay
        self._delays = delays
        self._task = task
        self._tasks = tasks
        for schedule in self._declared.values():
            size = len(schedule.payload(functions[schedule.typename], 0, "due"))
            if size > bytes_max:
                raise ConfigurationError(
                    "PEN0127",
                    f"Schedule {schedule.name} has a message of {size:,} bytes, which exceeds message_bytes_max = "
                    f"{bytes_max:,}. Give it a smaller one, or raise message_bytes_max.",
                )

    def compare(self, clock_ms: int) -> None:
        """Find out what is declared otherwise than it is kept. `clock_ms` may be long ago: what needs the present time
        waits for the first turn."""
        kept = dict(rows_of(self._overlay, range(self._task, KEY_GROUPS_MAX, self._tasks)))
        for name in kept.keys() - self._declared.keys():
            self._overlay.put(_key(name), None)
            self._delays.look_no_more(name)
        for name, declared in self._declared.items():
            if name not in kept or not kept[name].fits(declared):
                self._delays.look_at(name, clock_ms)

    def look(self, name: str, clock_ms: int) -> list[Envelope]:
        """What is due by now. Sees that it is looked at again."""
        declared = self._declared.get(name)
        if declared is None:
            return []
        row = self._get(name)
        if row is None:
            row = self._new_row(declared, clock_ms)
        due = [] if row.paused else list(islice(_take_due(row, declared, clock_ms), CAUGHT_UP_AT_ONCE))
        sent = [self._run(declared, row, due_ms, "due", clock_ms) for due_ms in due]
        if row.paused or not _is_due(row, clock_ms):
            self._adopt(row, declared, clock_ms)
        self._keep(declared, row, clock_ms)
        return sent

    def pause(self, name: str, clock_ms: int, *, paused: bool) -> bool:
        """Let nothing be due any more, or again from now on. Returns whether that was otherwise before.

        Raises InvalidInput when there is no such schedule.
        """
        declared, row = self._known(name, clock_ms)
        was = row.paused
        if was != paused:
            row.paused = paused
            row.next_ms = 0 if paused else declared.cron.after(clock_ms) or 0
            self._keep(declared, row, clock_ms)
        return was != paused

    def run(self, name: str, clock_ms: int) -> Envelope:
        """A run besides those that are due. Raises InvalidInput when there is no such schedule."""
        declared, row = self._known(name, clock_ms)
        sent = self._run(declared, row, clock_ms, "run", clock_ms)
        self._keep(declared, row, clock_ms)
        return sent

    def backfill(
        self, name: str, start_ms: int, end_ms: int | None, clock_ms: int, *, dry: bool
    ) -> tuple[int, list[Envelope]]:
        """How many runs there are for the moments from `start_ms` on and before `end_ms`, or the present; and the runs,
        unless `dry`.

        Raises InvalidInput when there is no such schedule, for moments to come, and for too many.
        """
        declared, row = self._known(name, clock_ms)
        end_ms = clock_ms if end_ms is None else end_ms
        if not start_ms < end_ms <= clock_ms:
            raise InvalidInput(
                "PEN0281",
                f"Schedule {name} can't be run for the time from {declared.cron.local(start_ms)} to "
                f"{declared.cron.local(end_ms)}. Give a start, and an end behind it that is not in the future: what is "
                "to come is run when it is due.",
            )
        due = list(islice(declared.cron.between(start_ms, end_ms), BACKFILL_MAX + 1))
        if len(due) > BACKFILL_MAX:
            raise InvalidInput(
                "PEN0281",
                f"Schedule {name} is due more than {BACKFILL_MAX:,} times in that time, which is the most for one "
                "backfill. Do it in parts.",
            )
        if dry:
            return len(due), []
        sent = [self._run(declared, row, due_ms, "backfill", clock_ms) for due_ms in due]
        self._keep(declared, row, clock_ms)
        return len(due), sent

    # Details.

    def _run(self, declared: Schedule, row: ScheduleRow, due_ms: int, reason: Reason, clock_ms: int) -> Envelope:
        row.sent_ms = clock_ms
        row.runs += 1
        # What is due is the same message whenever it is sent; what is asked for is another one each time.
        which = f"{due_ms}" if reason == "due" else f"{due_ms} {reason} {clock_ms} {row.runs}"
        name, typename = declared.name, declared.typename
        payload = declared.payload(self._functions[typename], due_ms, reason)
        headers = declared.headers(due_ms)
        origin = f"schedule {name}"
        return Envelope(
            typename, declared.id, payload, cause_of(f"{origin} {which}"), None, Meta(headers=headers, origin=origin)
        )

    def _adopt(self, row: ScheduleRow, declared: Schedule, clock_ms: int) -> None:
        """Go on as it is declared now."""
        goes_on = _same_times(row, declared)
        row.cron, row.tz, row.missed = declared.cron.text, declared.cron.tz, declared.missed
        row.typename, row.id = declared.typename, declared.id
        if not goes_on and not row.paused:
            row.next_ms = declared.cron.after(clock_ms) or 0

    def _known(self, name: str, clock_ms: int) -> tuple[Schedule, ScheduleRow]:
        declared = self._declared.get(name)
        if declared is None:
            raise unknown_schedule(name, self._declared)
        return declared, self._get(name) or self._new_row(declared, clock_ms)

    def _new_row(self, declared: Schedule, clock_ms: int) -> ScheduleRow:
        return ScheduleRow(
            declared.cron.text,
            declared.cron.tz,
            declared.missed,
            declared.typename,
            declared.id,
            declared.cron.after(clock_ms) or 0,
        )

    def _get(self, name: str) -> ScheduleRow | None:
        data = self._overlay.get(_key(name))
        return None if data is None else _decode(data)

    def _keep(self, declared: Schedule, row: ScheduleRow, clock_ms: int) -> None:
        """Write the row, and look at the schedule when it says, or soon if it is declared otherwise."""
        name = declared.name
        self._overlay.put(_key(name), _encode(row))
        if not row.fits(declared):
            self._delays.look_at(name, clock_ms)
        elif row.next_ms:
            self._delays.look_at(name, max(row.next_ms, clock_ms))
        else:
            self._delays.look_no_more(name)


def rows_of(overlay: Overlay, groups: Iterable[int]) -> Iterator[tuple[str, ScheduleRow]]:
    """What these key groups keep of schedules, by name within each."""
    for group in groups:
        for key, data in overlay.scan(*keys.group_kind_range(group, keys.SCHEDULE)):
            yield keys.decode_schedule_key(key), _decode(data)


def show_schedule(name: str, row: ScheduleRow) -> dict[str, Any]:
    """A schedule for people, its times by the clocks of its time zone."""
    cron = Cron(row.cron, row.tz, place=f"Schedule {name}")

    def local(moment_ms: int) -> str | None:
        return cron.local(moment_ms).isoformat(timespec="seconds") if moment_ms else None

    return {
        "schedule": name,
        "cron": row.cron,
        "tz": row.tz,
        "function": row.typename,
        "id": row.id,
        "missed": row.missed,
        "paused": row.paused,
        "next_due": local(row.next_ms),
        "last_due": local(row.due_ms),
        "last_sent": local(row.sent_ms),
        "runs": row.runs,
    }


def unknown_schedule(name: str, known: Collection[str]) -> InvalidInput:
    declared = ", ".join(sorted(known)) or "none"
    return InvalidInput("PEN0280", f"{name} is no schedule of this application. Declared: {declared}.")


def _take_due(row: ScheduleRow, declared: Schedule, clock_ms: int) -> Iterator[int]:
    """The moments that are to be sent, each when the row has gone on behind it."""
    cron = _cron_of(row, declared)
    while _is_due(row, clock_ms):
        due_ms, row.next_ms = next_due(cron, declared.missed, row.next_ms, clock_ms)
        if due_ms is not None:
            row.due_ms = due_ms
            yield due_ms


def _cron_of(row: ScheduleRow, declared: Schedule) -> Cron:
    """What the row counts by, which was declared before."""
    if _same_times(row, declared):
        return declared.cron
    try:
        return Cron(row.cron, row.tz, place=f"Schedule {declared.name}")
    except ConfigurationError:
        return declared.cron  # This machine does not know that time zone.


def _same_times(row: ScheduleRow, declared: Schedule) -> bool:
    return (row.cron, row.tz) == (declared.cron.text, declared.cron.tz)


def _is_due(row: ScheduleRow, clock_ms: int) -> bool:
    return 0 < row.next_ms <= clock_ms


def _key(name: str) -> bytes:
    return keys.encode_schedule_key(key_group(name), name)
