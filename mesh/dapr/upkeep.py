"""Work beside the requests that must not end: of a storage that can't be written to at the moment least of all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from penstock.errors import Unavailable
from penstock.mesh.dapr.errors import DaprError

log = logging.getLogger("penstock")

AGAIN_S: Final = 1.0
"""After a step that has failed: so often an outage is said, and so late its end is noticed."""


async def again_and_again(step: Callable[[], Awaitable[None]]) -> None:
    """Do `step`, which waits by itself, until cancelled."""
    while True:
        try:
            await step()
        except (Unavailable, DaprError) as error:
            log.warning("%s", error)
            await asyncio.sleep(AGAIN_S)


def said_if_failed(task: asyncio.Task[None]) -> None:
    """For tasks that nobody waits for. What they were to do is claimed for a time, and done by somebody after that."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("%s", error)
