"""The actors of an application that are active here: their turns, timers and reminders, and their end.

What always holds: an actor takes one turn at a time, in the order they were asked for; calls, timers and reminders
alike, except that with reentrancy a call that comes from within a turn joins it; an actor's state changes only while
it is active here, and only until it was activated somewhere else; a reminder fires at least once for each time it is
due, a timer only while its actor stays active.

Which sidecar an actor belongs to is for `owns` to say. When that changes, the actor ends here: turns that have begun
may finish for as long as the application says, and what they still write is refused once the actor is active elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import quote

import msgspec

from penstock.mesh.dapr.application import ActorSettings, Application
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer
from penstock.mesh.dapr.schedule import Schedule, moment_of, schedule_of
from penstock.mesh.dapr.storage import Change, Item, Reminder, Storage
from penstock.mesh.dapr.upkeep import again_and_again, said_if_failed

log = logging.getLogger("penstock")

REENTRANCY: Final = "dapr-reentrancy-id"
CANCEL: Final = "x-daprremindercancel"

POLL_S: Final = 0.25
"""Between looks for reminders. One that another sidecar has set is late by so much at most."""
CLAIM_MS: Final = 60_000
"""For so long a reminder that is being fired is with one sidecar. It is fired again if that dies with it."""
AT_ONCE: Final = 64
"""Reminders that are being fired. More wait in the file."""
RETRIES: Final = 3
RETRY_S: Final = 1.0
"""Of a reminder that says nothing about failing."""


class _Actor:
    """One that is active here."""

    def __init__(self, type: str, id: str, settings: ActorSettings, now_s: float) -> None:
        self.type = type
        self.id = id
        self.settings = settings
        self.turn = asyncio.Lock()
        self.activation = 0
        """0 until its first turn begins."""
        self.gone = False
        self.used_s = now_s
        self.holder = ""
        """The reentrancy id of the turn that has begun."""
        self.depth = 0
        self.timers: dict[str, asyncio.Task[None]] = {}
        self.firing = ""
        """The timer whose turn has begun."""

    @property
    def path(self) -> str:
        return f"/actors/{quote(self.type, safe='')}/{quote(self.id, safe='')}"


class Actors:
    """See the module. `owns` says whether an actor belongs to this sidecar."""

    def __init__(
        self,
        application: Application,
        storage: Storage,
        owns: Callable[[str, str], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._storage = storage
        self._owns = owns
        self._clock = clock
        self._settings: Mapping[str, ActorSettings] = {}
        self._active: dict[tuple[str, str], _Actor] = {}
        self._firing: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._due = asyncio.Event()
        self._idle_at_s = 0.0
        """When to look for those that are idle."""
        self._running: asyncio.Task[None] | None = None

    @property
    def types(self) -> frozenset[str]:
        return frozenset(self._settings)

    def counts(self) -> dict[str, int]:
        """How many of each type are active here."""
        counts = dict.fromkeys(sorted(self._settings), 0)
        for type, _ in self._active:
            counts[type] += 1
        return counts

    def configure(self, settings: Mapping[str, ActorSettings]) -> None:
        """The application has said what it has."""
        self._settings = settings

    async def start(self) -> None:
        self._running = asyncio.create_task(again_and_again(self._look))

    async def close(self) -> None:
        """End every actor that is active here."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        for task in self._firing.values():
            task.cancel()
        if self._firing:
            await asyncio.wait(self._firing.values())
        for actor in [*self._active.values()]:
            self._end(actor)
        if self._ending:
            await asyncio.wait(self._ending)

    # Calls.

    async def invoke(self, type: str, id: str, method: str, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """Raises DaprError for whatever is not the answer of the method."""
        said = [(name, value) for name, value in headers if name.lower() != REENTRANCY]
        came_with = next((value for name, value in headers if name.lower() == REENTRANCY), "")
        async with self._turn(type, id, came_with) as actor:
            if actor.settings.reentrancy.enabled:
                said.append((REENTRANCY, actor.holder))
            answer = await self._application.ask(
                "PUT", f"{actor.path}/method/{quote(method, safe='')}", headers=said, body=body
            )
        if answer.status != 200:
            raise DaprError(
                500,
                "ERR_ACTOR_INVOKE_METHOD",
                f"error from actor service: ({answer.status}) {answer.body.decode(errors='replace')}",
            )
        return answer

    # State.

    def get(self, type: str, id: str, key: str) -> Item | None:
        self._needed(type, id)
        return self._storage.actor_get(type, id, key)

    async def change(self, type: str, id: str, changes: Sequence[Change]) -> None:
        actor = self._needed(type, id)
        if not await self._storage.actor_change(type, id, actor.activation, changes):
            self._forget(actor)
            raise DaprError(
                500,
                "ERR_ACTOR_STATE_TRANSACTION_SAVE",
                f"actor {type}/{id} is active on another host by now; nothing was saved",
            )

    # Timers and reminders.

    async def set_timer(self, type: str, id: str, name: str, said: Mapping[str, Any]) -> None:
        actor = self._needed(type, id)
        schedule = _schedule(said, self._storage.now_ms())
        self._cancel_timer(actor, name)
        actor.timers[name] = asyncio.create_task(self._time(actor, name, schedule, said))

    def clear_timer(self, type: str, id: str, name: str) -> None:
        actor = self._active.get((type, id))
        if actor is not None:
            self._cancel_timer(actor, name)

    async def set_reminder(self, type: str, id: str, name: str, said: Mapping[str, Any]) -> None:
        self._hosted(type)
        schedule = _schedule(said, self._storage.now_ms())
        if not await self._storage.remind(type, id, name, schedule, said, overwrite=said.get("overwrite") is not False):
            raise DaprError(409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS", f"reminder {name!r} exists, and is to stay")
        self._due.set()

    def reminder(self, type: str, id: str, name: str) -> Reminder | None:
        self._hosted(type)
        return self._storage.reminder(type, id, name)

    async def clear_reminder(self, type: str, id: str, name: str) -> None:
        self._hosted(type)
        await self._storage.forget_reminder(type, id, name)

    # Ownership.

    def rebalance(self) -> None:
        """End the actors that belong to another sidecar now."""
        for actor in [*self._active.values()]:
            if not self._owns(actor.type, actor.id):
                self._end(actor)

    def abandon(self) -> None:
        """The application has gone, and all its actors with it: there is nobody to tell."""
        for actor in [*self._active.values()]:
            self._forget(actor)

    # Turns.

    @asynccontextmanager
    async def _turn(self, type: str, id: str, reentrancy: str = "") -> AsyncIterator[_Actor]:
        while True:
            actor = self._found(type, id)
            if reentrancy and reentrancy == actor.holder:
                async with _within(actor):
                    yield actor
                return
            async with actor.turn:
                if actor.gone:
                    continue  # It ended while we waited: the next one begins anew.
                if not actor.activation:
                    actor.activation = await self._storage.activate(type, id)
                actor.holder = reentrancy or str(uuid.uuid4())
                actor.depth = 1
                try:
                    yield actor
                finally:
                    actor.holder = ""
                    actor.used_s = self._clock()
            return

    def _found(self, type: str, id: str) -> _Actor:
        self._hosted(type)
        actor = self._active.get((type, id))
        if actor is None:
            actor = self._active[type, id] = _Actor(type, id, self._settings[type], self._clock())
        return actor

    def _hosted(self, type: str) -> None:
        if type not in self._settings:
            raise DaprError(403, "ERR_ACTOR_NOT_HOSTED", f"the application beside has no actors of type {type!r}")

    def _needed(self, type: str, id: str) -> _Actor:
        actor = self._active.get((type, id))
        if actor is None or not actor.activation:
            raise DaprError(400, "ERR_ACTOR_INSTANCE_MISSING", f"actor {type}/{id} is not active on this host")
        return actor

    # The end of an actor.

    def _forget(self, actor: _Actor) -> None:
        self._active.pop((actor.type, actor.id), None)
        actor.gone = True
        for name in [*actor.timers]:
            self._cancel_timer(actor, name)

    def _end(self, actor: _Actor) -> None:
        self._forget(actor)
        task = asyncio.create_task(self._deactivate(actor))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _deactivate(self, actor: _Actor) -> None:
        """Tell the application, after the turn that has begun; or without waiting for it, when it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(actor.settings.drain_s), actor.turn:
                pass
        if actor.activation:
            try:
                await self._application.ask("DELETE", actor.path, timeout_s=actor.settings.drain_s + 1)
            except DaprError as error:
                log.debug("Actor %s/%s has ended here; its application was not told: %s", actor.type, actor.id, error)

    def _cancel_timer(self, actor: _Actor, name: str) -> None:
        timer = actor.timers.pop(name, None)
        # One whose turn has begun is let finish it, and finds then that it was cleared: it may have done that itself.
        if timer is not None and actor.firing != name:
            timer.cancel()

    # Beside the calls.

    async def _look(self) -> None:
        """Once, and wait until there may be something again."""
        for reminder in self._due_here():
            await self._fire_if_ours(reminder)
        if self._clock() >= self._idle_at_s:
            self._idle_at_s = self._clock() + self._end_the_idle()
        self._due.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._until_due_s()):
                await self._due.wait()

    def _end_the_idle(self) -> float:
        """Returns when to look again, in seconds."""
        now_s = self._clock()
        for actor in [*self._active.values()]:
            if not actor.turn.locked() and now_s - actor.used_s >= actor.settings.idle_s:
                self._end(actor)
        return min((settings.idle_s / 10 for settings in self._settings.values()), default=POLL_S)

    def _due_here(self) -> list[Reminder]:
        room = AT_ONCE - len(self._firing)
        if not self._settings or room <= 0:
            return []
        due = self._storage.due_reminders(self.types, AT_ONCE)
        ours = (one for one in due if one[:3] not in self._firing and self._owns(one.type, one.id))
        return [*ours][:room]

    def _until_due_s(self) -> float:
        if not self._settings:
            return POLL_S
        next_ms = self._storage.next_reminder_ms(self.types)
        if next_ms is None:
            return POLL_S
        left_s = (next_ms - self._storage.now_ms()) / 1000
        return left_s if 0.001 <= left_s < POLL_S else POLL_S

    async def _fire_if_ours(self, reminder: Reminder) -> None:
        if await self._storage.claim_reminder(reminder, self._storage.now_ms() + CLAIM_MS):
            self._firing[reminder[:3]] = asyncio.create_task(self._fire(reminder))
            self._firing[reminder[:3]].add_done_callback(said_if_failed)
            self._firing[reminder[:3]].add_done_callback(lambda _: self._fired(reminder))

    async def _fire(self, reminder: Reminder) -> None:
        path = f"method/remind/{quote(reminder.name, safe='')}"
        told = {part: reminder.said.get(part, "") for part in ("data", "dueTime", "period")}
        now_ms = self._storage.now_ms()
        try:
            async with self._turn(reminder.type, reminder.id) as actor:
                answer = await self._tell(actor.path, path, told)
        except DaprError as error:
            again_s = _retry_s(reminder)
            if again_s is not None:
                await self._storage.after_failing(reminder, self._storage.now_ms() + round(again_s * 1000))
                return
            log.warning(
                "PEN0881 Reminder %s of actor %s/%s failed and is passed over: %s",
                *(reminder.name, reminder.type, reminder.id, error),
            )
            following = reminder.schedule.following(now_ms)
        else:
            ended = answer.header(CANCEL).lower() == "true"
            following = None if ended else reminder.schedule.following(now_ms)
        await self._storage.after_firing(reminder, following)

    def _fired(self, reminder: Reminder) -> None:
        del self._firing[reminder[:3]]
        self._due.set()

    async def _time(self, actor: _Actor, name: str, schedule: Schedule, said: Mapping[str, Any]) -> None:
        told = {part: said.get(part, "") for part in ("callback", "data", "dueTime", "period")}
        following: Schedule | None = schedule
        while following is not None and actor.timers.get(name) is asyncio.current_task():
            await asyncio.sleep(max(0, following.due_ms - self._storage.now_ms()) / 1000)
            following = await self._fire_timer(actor, name, following, told)
        if actor.timers.get(name) is asyncio.current_task():
            del actor.timers[name]

    async def _fire_timer(
        self, actor: _Actor, name: str, schedule: Schedule, told: Mapping[str, Any]
    ) -> Schedule | None:
        """What follows. A timer that fails goes on, as in Dapr."""
        try:
            async with self._turn(actor.type, actor.id):
                actor.firing = name
                try:
                    answer = await self._tell(actor.path, f"method/timer/{quote(name, safe='')}", told)
                finally:
                    actor.firing = ""
        except DaprError as error:
            log.warning("PEN0881 Timer %s of actor %s/%s failed: %s", name, actor.type, actor.id, error)
        else:
            if answer.header(CANCEL).lower() == "true":
                return None
        return schedule.following(self._storage.now_ms())

    async def _tell(self, actor_path: str, path: str, told: Mapping[str, Any]) -> Answer:
        """Raises DaprError if the application does not take it."""
        answer = await self._application.ask(
            "PUT",
            f"{actor_path}/{path}",
            headers=[("content-type", "application/json")],
            body=msgspec.json.encode(told),
        )
        if answer.status != 200:
            raise DaprError(
                500, "ERR_ACTOR", f"the application answered {answer.status} {answer.body.decode(errors='replace')}"
            )
        return answer


@asynccontextmanager
async def _within(actor: _Actor) -> AsyncIterator[None]:
    """A call that comes from within the turn."""
    if actor.depth >= actor.settings.reentrancy.max_stack_depth:
        raise DaprError(
            500,
            "ERR_ACTOR_STACK_DEPTH",
            f"calls of actor {actor.type}/{actor.id} are {actor.depth} deep, and no deeper",
        )
    actor.depth += 1
    try:
        yield
    finally:
        actor.depth -= 1


def _schedule(said: Mapping[str, Any], now_ms: int) -> Schedule:
    for part in ("dueTime", "period", "ttl"):
        if not isinstance(said.get(part) or "", str):
            raise DaprError(400, "ERR_MALFORMED_REQUEST", f"{part} is to be a text, and is {said[part]!r}")
    return schedule_of(said.get("dueTime"), said.get("period"), said.get("ttl"), now_ms)


def _retry_s(reminder: Reminder) -> float | None:
    """How long a reminder that failed waits for its next try. None when there is none."""
    policy = reminder.said.get("failurePolicy") or reminder.said.get("failure_policy") or {}
    if "drop" in policy:
        return None
    constant = policy.get("constant")
    if constant is None:
        return RETRY_S if reminder.attempts < RETRIES else None
    retries = constant.get("maxRetries")
    if retries is not None and reminder.attempts >= retries:
        return None
    return moment_of(constant.get("interval") or "1s", 0) / 1000
