"""Forgets what the store of a mesh has kept for long enough, so that nothing in it grows for ever.

    answers     under their keys: a request that comes again within that time is known, and not carried out again
    promises    that were kept, and that nobody has taken
    sessions    of processes that are gone, for people who look

What always holds: it is done beside the requests, a small batch at a time, with a pause behind each; every host does
it, and what one has forgotten the others do not find. After a pause of the whole mesh, what was under way is delivered
again, and its answers may be older than they are kept: they are not forgotten before this host's outbox has caught up.
How far the outboxes of other hosts are it does not know: they have a minute, which is the time before the first round.

What a saga's fence remembers is forgotten by the participant itself, see `penstock.functions.participant`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from penstock.errors import Unavailable
from penstock.logs import logger
from penstock.mesh.outbox import Outbox
from penstock.mesh.store import PURGED_AT_ONCE, Past, Store

ROUND_S: Final = 60.0
"""Between two rounds, and before the first: until then the messages of sessions that are gone have been adopted. What
is kept for hours may be kept for minutes more."""
PAUSE_S: Final = 0.05
"""Between two batches of a round: 20,000 a second at most, which is more than a host can answer."""


KEEP_SESSIONS_MS: Final = 86_400_000
KEEP_PROMISES_MS: Final = 7 * 86_400_000
"""A handler that was begun again may ask for a promise long after it was kept."""


class Forgetting:
    """See the module. Answers say themselves how long they are kept."""

    def __init__(
        self, store: Store, outbox: Outbox, *, keep_promises_ms: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._keep_promises_ms = keep_promises_ms
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(ROUND_S)
            try:
                await self.forget()
            except Unavailable as error:
                logger.warning("What is past is forgotten later: %s", error)

    async def forget(self) -> None:
        """All that is past now."""
        if not self._outbox.caught_up:
            return
        now_ms = int(self._clock() * 1000)
        past = Past(now_ms, now_ms - self._keep_promises_ms, now_ms - KEEP_SESSIONS_MS)
        forgotten = PURGED_AT_ONCE
        while forgotten >= PURGED_AT_ONCE:
            forgotten = await self._store.purge(past)
            await asyncio.sleep(PAUSE_S)
