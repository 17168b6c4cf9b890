"""Runs an application from a Python program, in the foreground, until its input ends or the program is told to stop.

What always holds: SIGINT and SIGTERM stop the worker in an orderly way, as `penstock run` does; when `run` returns, all
output is committed. Leaves everything else to the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.engine.config import Config
from penstock.engine.worker import Worker
from penstock.functions.app import App
from penstock.signals import stopped_by_signals

Watch = Callable[[Worker], Coroutine[Any, Any, None]]
"""What is to run beside a worker, for instance a progress bar. It is cancelled when the worker has ended."""


def run(app: App, config: Config | None = None, *, watch: Watch | None = None) -> Worker:
    """Run `app` and return its worker, which tells what it did. Raises what made it fail.

    Without a configuration it runs until every ingress has ended, on a temporary directory: nothing is left behind.
    """
    if config is not None:
        return asyncio.run(_run(Worker(app, config), watch))
    with TemporaryDirectory(prefix=f"{app.name}-") as directory:
        return asyncio.run(_run(Worker(app, Config(directory=Path(directory), until_done=True, port=None)), watch))


@asynccontextmanager
async def watched(worker: Worker, watch: Watch | None) -> AsyncIterator[None]:
    """Run `watch`, if there is one, beside what the block does, and cancel it at the end of the block."""
    if watch is None:
        yield
        return
    watching = asyncio.create_task(watch(worker))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _run(worker: Worker, watch: Watch | None) -> Worker:
    with stopped_by_signals(worker.stop):
        async with watched(worker, watch):
            await worker.run()
    return worker
