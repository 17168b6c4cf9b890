"""Delivers what invocations have committed: messages and delayed messages, until somebody has taken them.

    commit --> held here, or read from the store --> delivered --> forgotten
                             ^                          |
                             +---- back-off ------------+-----> dead letter

What always holds: a message is forgotten only when it was taken or has become a dead letter; what one address sends to
another arrives in the order it was committed in, and the next goes out only when the one before it is settled; what a
process does not come to deliver is adopted by another, once its session is fenced. A message may be delivered twice,
under the same key. Where messages go and who answers for them is for `deliver` to know.

More than `HELD_MAX` messages are not held: the others wait in the store, and are read when there is room.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from penstock.errors import Fenced, Unavailable
from penstock.logs import counted, logger
from penstock.mesh.lanes import Lanes
from penstock.mesh.store import Kept, Session, Store, fenced

HELD_MAX: Final = 10_000
"""A few megabytes of small messages, and several seconds of work at full speed: the store is read that often."""
DELIVERIES_MAX: Final = 2_000
"""At once. A delivery lasts as long as the handler that takes it, which may wait for hours: it should be many."""
POLL_S: Final = 0.5
"""Between two looks for what other sessions have left. What is committed here does not wait for it."""
LOOK_S: Final = 5.0
"""Between two looks into the store while messages are held: another session may have put one into a lane of ours, and
nobody tells us. It takes an address that has moved and a lane that is stuck, and the look may read thousands."""
QUIET_S: Final = 0.01
"""Between two looks whether the loop has come to what it has to do."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 30.0
"""Doubled from the first to the longest: an outage of minutes is noticed as over within half a minute."""
WARN_S: Final = 10.0
"""Between two warnings of messages for the same function."""
CLOSE_S: Final = 5.0
"""What is being delivered at the end may take so long; then it is given up, and delivered again by somebody else."""


class Refusal(NamedTuple):
    """Why a message was not taken."""

    reason: str
    """A coded text."""
    final: bool
    """Whether it would be the same every time."""


Deliver = Callable[[Kept], Awaitable[Refusal | None]]
"""Brings a message to its address; None when it was taken."""


class Statistics(NamedTuple):
    """Since the start, but for `held`."""

    delivered: int
    failed: int
    """Deliveries that are tried again."""
    buried: int
    adopted: int
    held: int


class Outbox:
    """The messages of one session. `alive` tells the sessions that are at work, or None when nobody knows."""

    def __init__(
        self,
        store: Store,
        session: int,
        deliver: Deliver,
        *,
        alive: Callable[[], Collection[int] | None] = lambda: None,
        unseen_s: float = 15.0,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """A session that `alive` has never named is fenced when it is `unseen_s` old: a new one is not seen at once."""
        self._store = store
        self._session = session
        self._deliver = deliver
        self._alive = alive
        self._unseen_s = unseen_s
        self._seen: set[int] = set()
        """All that `alive` has named."""
        self._clock = clock
        self._draw = draw
        self._lanes = Lanes()
        self._behind = True
        """Whether there may be messages in the store that are not held."""
        self._due_ms: int | None = None
        """When the next delayed message is due that is not held, as far as is known."""
        self._deliveries: set[asyncio.Task[None]] = set()
        self._settled: set[int] = set()
        """Delivered, and perhaps still in the store."""
        self._settling: asyncio.Task[None] | None = None
        self._event = asyncio.Event()
        self._warned_s: dict[str, float] = {}
        """When it was last warned of messages that a function did not take."""
        self._fenced: Fenced | None = None
        self._closing = False
        self._upkeep_s = self._look_s = 0.0
        self._delivered = self._failed = self._buried = self._adopted = 0

    # From those who commit.

    def add(self, kept: Sequence[Kept]) -> None:
        """Messages that were just committed, and are to be delivered by this session."""
        for each in kept:
            known = not each.previous or each.previous in self._lanes or each.previous in self._settled
            if known and not self._behind and len(self._lanes) < HELD_MAX:
                self._lanes.add(each)
            else:
                self._behind = True  # It comes with those before it, from the store.
        self._event.set()

    def wake(self, due_ms: int) -> None:
        """A delayed message was committed, and is due at that time."""
        if self._due_ms is None or due_ms < self._due_ms:
            self._due_ms = due_ms
            self._event.set()

    @property
    def congested(self) -> bool:
        """Whether more is waiting than can be held: who can wait should."""
        return len(self._lanes) >= HELD_MAX

    @property
    def caught_up(self) -> bool:
        """Whether all that waits in the store is held here, and has been tried or is being tried."""
        return not self._behind and not self._lanes.ready

    @property
    def statistics(self) -> Statistics:
        return Statistics(self._delivered, self._failed, self._buried, self._adopted, len(self._lanes))

    # The loop.

    async def run(self) -> None:
        """Deliver until `close`. Raises Fenced: then this process has to stop."""
        try:
            while not self._closing:
                await self._turn()
                await self._pause()
        finally:
            self._closing = True

    async def _turn(self) -> None:
        try:
            await self._keep_up()
            if self._should_read():
                await self._read()
        except Unavailable as error:
            logger.warning("%s", error)
            await asyncio.sleep(POLL_S)
        if self._fenced is not None:
            raise self._fenced
        self._begin_deliveries()

    async def wait_quiet(self) -> None:
        """Until nothing is being delivered, or could be now: what waits to be tried again may wait for long."""
        while not self._closing and (self._deliveries or self._lanes.ready or self._behind):
            if self._deliveries:
                await asyncio.wait(self._deliveries, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(QUIET_S)

    async def close(self) -> None:
        """Deliver nothing more, and wait for what is being delivered. What is left is for whoever adopts it, once the
        session is fenced."""
        self._closing = True
        self._event.set()
        if self._deliveries:
            _, unfinished = await asyncio.wait(self._deliveries, timeout=CLOSE_S)
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
        if (settling := self._settling) is not None:
            await asyncio.wait([settling], timeout=CLOSE_S)
            settling.cancel()

    async def _pause(self) -> None:
        """Until something happens, or is due."""
        times = [self._upkeep_s]
        if self._lanes.wakes_s is not None:
            times.append(self._lanes.wakes_s)
        if self._due_ms is not None and not self.congested:
            times.append(self._now_s() + (self._due_ms - self._now_ms()) / 1000)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - self._now_s())):
                await self._event.wait()
        self._event.clear()

    # What is to be delivered.

    def _should_read(self) -> bool:
        is_due = self._due_ms is not None and self._due_ms <= self._now_ms()
        return (self._behind and len(self._lanes) <= HELD_MAX // 2) or (is_due and not self.congested)

    async def _read(self) -> None:
        """Hold what waits in the store, the oldest first."""
        self._behind = False
        now_ms, room = self._now_ms(), HELD_MAX // 2
        try:
            waiting = await self._store.due(self._session, now_ms, len(self._lanes) + len(self._settled) + room)
            self._due_ms = await self._store.next_due_ms(self._session, now_ms)
        except Unavailable:
            self._behind = True
            raise
        added = 0
        for kept in waiting:
            if kept.number not in self._lanes and kept.number not in self._settled:
                self._lanes.add(kept)
                added += 1
        self._behind = self._behind or added >= room  # Then there may be more than were asked for.

    async def _keep_up(self) -> None:
        """Do what is due without a reason that is known here."""
        now_s = self._now_s()
        if now_s < self._upkeep_s:
            return
        self._upkeep_s = now_s + POLL_S
        await self._adopt()
        if not self._lanes or now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self._behind = True

    async def _adopt(self) -> None:
        """Take over what others have left. Raises Fenced when others have taken over from us, which nobody would notice
        here who has nothing to write."""
        alive = self._alive()
        self._seen.update(alive or ())
        for session in await self._store.sessions():
            if session.number == self._session:
                if session.fenced:
                    raise fenced(session.number)
            elif not session.fenced and self._is_gone(session, alive):
                logger.warning("Session %d of %s is gone: it is fenced.", session.number, session.holder)
                await self._store.fence(session.number)
        adopted = await self._store.adopt(self._session)
        if adopted:
            what = counted(adopted, "message")
            logger.warning("Session %d delivers %s of sessions that are gone.", self._session, what)
            self._adopted += adopted
            self._behind = True

    def _is_gone(self, session: Session, alive: Collection[int] | None) -> bool:
        """Whether a session was at work, or has had the time to be seen, and is not. Who does not see itself sees
        nobody."""
        if alive is None or self._session not in alive or session.number in alive:
            return False
        return session.number in self._seen or session.begun_ms <= self._now_ms() - int(self._unseen_s * 1000)

    # Deliveries.

    def _begin_deliveries(self) -> None:
        self._lanes.wake(self._now_s())
        while len(self._deliveries) < DELIVERIES_MAX and (kept := self._lanes.take()) is not None:
            task = asyncio.create_task(self._carry_out(kept))
            self._deliveries.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        self._event.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, Fenced), error
            self._fenced = error

    async def _carry_out(self, kept: Kept) -> None:
        try:
            refusal = await self._deliver(kept)
        except Exception as error:  # noqa: BLE001  # A mistake of ours, say. The message must not be lost over it.
            logger.exception("Delivering message %d to %s has failed.", kept.number, _target(kept))
            refusal = Refusal(f"{type(error).__name__}: {error}", final=False)
        if refusal is None:
            self._delivered += 1
            self._forget(kept)
        elif not refusal.final or not await self._bury(kept, refusal.reason):
            await self._try_again(kept, refusal.reason)

    def _forget(self, kept: Kept) -> None:
        self._lanes.finish(kept)
        self._settled.add(kept.number)
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Remove from the store what was delivered: all that came together while the last was removed."""
        try:
            while self._settled:
                numbers = list(self._settled)
                try:
                    await self._store.done(self._session, numbers)
                    self._settled.difference_update(numbers)
                except Unavailable:
                    await asyncio.sleep(BACKOFF_FIRST_S)
        except Fenced as error:
            self._fenced = error
            self._event.set()
        finally:
            self._settling = None

    async def _bury(self, kept: Kept, reason: str) -> bool:
        """Whether it is a dead letter now."""
        try:
            await self._store.bury(self._session, kept.number, reason, self._now_ms())
        except Unavailable:
            return False
        logger.error("Message %d for %s is a dead letter: %s", kept.number, _target(kept), reason)
        self._lanes.finish(kept)
        self._buried += 1
        return True

    async def _try_again(self, kept: Kept, reason: str) -> None:
        self._failed += 1
        kept = kept._replace(attempts=kept.attempts + 1)
        with suppress(Unavailable):  # The count is for people.
            await self._store.failed(self._session, kept.number)
        wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(kept.attempts - 1, 16)) * (0.5 + self._draw() / 2)
        logger.log(
            self._level(kept.outgoing.target),
            "Message %d for %s was not taken at try %d, and is tried again in %.1f s: %s",
            *(kept.number, _target(kept), kept.attempts, wait_s, reason),
        )
        self._lanes.rest(kept, self._now_s() + wait_s)

    def _level(self, typename: str) -> int:
        """Of what is logged of a failure: when a function is not there, thousands of messages say the same."""
        now_s = self._now_s()
        if now_s < self._warned_s.get(typename, 0.0) + WARN_S:
            return logging.DEBUG
        self._warned_s[typename] = now_s
        return logging.WARNING

    # Time.

    def _now_s(self) -> float:
        """Of the event loop, so that a virtual one makes virtual time of it."""
        return asyncio.get_running_loop().time()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _target(kept: Kept) -> str:
    return f"{kept.outgoing.target}/{kept.outgoing.id}"
