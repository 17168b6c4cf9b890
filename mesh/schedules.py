"""Sends what the schedules of an application are due for, by one process for all.

What always holds: a moment is sent under a key of its own and the position goes on behind it afterwards, so each has
its effect once, also when a process was killed in between. A schedule begins when it is first seen; with another
expression it goes on from the present.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from penstock.errors import Unavailable
from penstock.functions.app import App
from penstock.functions.schedule import Schedule, next_due
from penstock.logs import logger
from penstock.mesh.outbox import Outbox
from penstock.mesh.store import Commit, Outgoing, Store

CLAIM_S: Final = 1.0
"""Between two attempts to claim what another has. It adds to the time that a run is late when a process has died."""
SLEEP_MAX_S: Final = 60.0
"""Clocks are set: nobody sleeps for longer without looking at one."""


class _Place(NamedTuple):
    """How far a schedule has come."""

    cron: str
    tz: str
    next_ms: int


class Scheduler:
    """See the module."""

    def __init__(
        self, app: App, store: Store, session: int, outbox: Outbox, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._store = store
        self._session = session
        self._outbox = outbox
        self._clock = clock

    async def run(self) -> None:
        """Send for ever. Raises Fenced when the session was."""
        while True:
            wait_s = CLAIM_S
            try:
                if await self._store.claim(self._session, "schedules"):
                    wait_s = await self._send_due()
            except Unavailable as error:
                logger.warning("%s", error)
            await asyncio.sleep(wait_s)

    async def _send_due(self) -> float:
        """Send all that is due; returns how long nothing will be."""
        clock_ms = int(self._clock() * 1000)
        next_ms = clock_ms + int(SLEEP_MAX_S * 1000)
        for schedule in self._app.schedules.values():
            place = await self._place(schedule, clock_ms)
            while 0 < place.next_ms <= clock_ms:
                place = await self._send_next(schedule, place, clock_ms)
            if place.next_ms:
                next_ms = min(next_ms, place.next_ms)
        return max(0.0, next_ms / 1000 - self._clock())

    async def _place(self, schedule: Schedule, clock_ms: int) -> _Place:
        found: Any = await self._store.position(_name(schedule))
        if found is not None and found[:2] == [schedule.cron.text, schedule.cron.tz]:
            return _Place(*found)
        place = _Place(schedule.cron.text, schedule.cron.tz, schedule.cron.after(clock_ms) or 0)
        await self._keep(schedule, place)
        return place

    async def _send_next(self, schedule: Schedule, place: _Place, clock_ms: int) -> _Place:
        due_ms, next_ms = next_due(schedule.cron, schedule.missed, place.next_ms, clock_ms)
        if due_ms is not None:
            message = Outgoing(
                schedule.typename,
                schedule.id,
                schedule.payload(self._app.functions[schedule.typename], due_ms, "due"),
                f"{_name(schedule)}:{due_ms}",
                headers=schedule.headers(due_ms),
                outside=True,
            )
            commit = Commit(self._session, schedule.typename, _name(schedule), outgoing=[message])
            self._outbox.add((await self._store.commit(commit)).kept)
        place = place._replace(next_ms=next_ms)
        await self._keep(schedule, place)
        return place

    async def _keep(self, schedule: Schedule, place: _Place) -> None:
        await self._store.keep_position(self._session, _name(schedule), list(place))


def _name(schedule: Schedule) -> str:
    return f"schedule {schedule.name}"
