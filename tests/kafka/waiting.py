"""How scenarios with workers in this process wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], *running: asyncio.Future[None]) -> None:
    """Wait for something that announces itself to nobody. What ends one of `running` meanwhile is raised."""
    while not holds():
        for each in running:
            if each.done():
                each.result()
        await asyncio.sleep(0.01)
