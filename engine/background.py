"""What runs beside the turns of a worker: checkpoints being written, folds, ticks of the sinks.

What always holds: whatever such work raises reaches `failed` at once, and not whoever happens to look at the task; when
`cancel_all` returns, nothing runs any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

CANCEL_S = 5.0
"""What work that was cancelled needs to put things in order."""


class Background:
    """See the module."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` while the event loop has time for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_all(self) -> None:
        """Again and again: libraries that close something may take a cancellation for that of their own tasks."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run blocking work in a thread. A cancelled caller waits until it has ended: what it uses may be closed next."""
    running = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(Exception):
            await running
        raise
