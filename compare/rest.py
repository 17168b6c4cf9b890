"""Finds out when a run has come to rest, which is when its states tell how it has ended.

    moves       something is queued, carried out or waited for, or something was done outside since the last look
    will move   nothing of that, but an order has not ended, and a message with a delay is to take it up again: a saga
                that lost its process, or was given up with its request, is gone on with a minute after it was begun
    rests       nothing moves, and every order that was begun has ended; or nothing is there that would go on with it

What always holds: what will move is never taken for what rests; what has not come to rest in REST_MAX_S is told, with
what it is about, since a judgement of half-done work would be about the moment it was read at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

QUIET_S: Final = 2.5
"""Nothing has moved for so long: it is still. Longer than the shop waits before it tries something again."""
GIVEN_UP_S: Final = 25.0
"""So long nothing has moved, and nothing is held back for later: what has not ended never will. Longer than the lease
of a host that is gone and the patience of a saga together."""
REST_MAX_S: Final = 180.0
"""Three times as long as a saga waits before it is gone on with."""
LOOK_S: Final = 0.25
NAMED_MAX: Final = 5


class Look(NamedTuple):
    """What can be seen of a run from outside. At rest, one equals the next."""

    busy: int
    """How much is under way: 0 at rest."""
    held: int
    """Messages with a delay, any of which may go on with something. Some are never sent."""
    done: tuple[int, ...]
    """Whatever grows with what is done."""


class Rest(NamedTuple):
    since_s: float | None
    """By the event loop, whose clock is the one that never jumps; None if it has not come."""
    reason: str = ""
    """Why it has not."""


async def come_to_rest(
    look: Callable[[], Awaitable[Look]], unended: Callable[[], Awaitable[Sequence[str] | None]]
) -> Rest:
    """Wait for it. `unended` tells of each order that was begun and has not ended; None when that can't be told."""
    now_s = asyncio.get_running_loop().time
    seen = await look()
    began_s = still_since_s = now_s()
    ask_s = began_s + QUIET_S
    while now_s() < began_s + REST_MAX_S:
        before, seen = seen, await look()
        if seen.busy or seen != before:
            still_since_s = now_s()
            ask_s = still_since_s + QUIET_S
        elif now_s() >= ask_s:
            has_stood_s = now_s() - still_since_s
            # It may have moved while the orders were read.
            if _is_over(seen, has_stood_s, await unended()) and await look() == seen:
                return Rest(still_since_s)
            ask_s = now_s() + QUIET_S
        await asyncio.sleep(LOOK_S)
    return Rest(None, f"it has not come to rest {REST_MAX_S:g} s after the load: {_unrest(seen, await unended())}")


def _is_over(seen: Look, has_stood_s: float, orders: Sequence[str] | None) -> bool:
    """Of what stands still."""
    if orders is None:
        return False
    return not orders or (not seen.held and has_stood_s >= GIVEN_UP_S)


def _unrest(seen: Look, orders: Sequence[str] | None) -> str:
    parts = [f"{seen.busy} requests and messages are under way"] if seen.busy else []
    if orders is None:
        parts.append("the states of its orders can't be read")
    elif orders:
        more = f" and {len(orders) - NAMED_MAX} more" if len(orders) > NAMED_MAX else ""
        parts.append(f"these orders have not ended: {', '.join(orders[:NAMED_MAX])}{more}")
    return "; ".join(parts) or "something goes on being done"
