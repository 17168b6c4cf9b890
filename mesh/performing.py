"""Carries out the plan of one call: sends when it says so, waits as long as it says.

What always holds: every attempt that was begun is reported to the plan, which is closed however the call ends; after a
wait the plan sees who serves the function then. What an attempt is, and what comes back, is for the one who sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from penstock.mesh.policies.host import Host
from penstock.mesh.policies.outcomes import Outcome
from penstock.mesh.policies.plan import Finish, GiveUp, Plan, Try, Wait


class Planner(Protocol):
    """Makes the plan of a call. `wake` is for the plan, to end a wait early."""

    def __call__(self, now_s: float, wake: Callable[[], None]) -> Plan: ...


async def perform(
    planned: Planner,
    send: Callable[[Try], Awaitable[Outcome]],
    serving: Callable[[], Sequence[Host]],
    clock: Callable[[], float],
) -> Finish | GiveUp:
    """How the call ends. `serving` says which endpoints serve the function now."""
    woken = asyncio.Event()
    plan = planned(clock(), woken.set)
    try:
        while True:
            match plan.next(clock()):
                case Try() as attempt:
                    plan.result(clock(), await send(attempt))
                case Wait(seconds):
                    woken.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await woken.wait()
                    plan.see(serving())
                case end:
                    return end
    finally:
        plan.close(clock())
