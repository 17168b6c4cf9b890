"""Shows people how far a worker has read its inputs: as bars on a terminal, elsewhere as lines of the log.

What always holds: an input that has no end is not shown; a run that continues is shown from where it continues; on a
terminal the bars go away as soon as nothing more is read, and what is printed meanwhile stays above them. How far an
input has come its reader knows: see `penstock.router.ingress`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from penstock.engine.feeds import InputFeed
from penstock.engine.serving import Served
from penstock.logs import logger
from penstock.router.ingress import Progress

REFRESH_S = 0.2
"""Often enough to look alive. Drawing takes the event loop about a millisecond."""
LINE_S = 30.0
"""Seldom enough for a log that is kept. What takes less time is told by the lines of its start and its end."""

Sleep = Callable[[float], Awaitable[None]]


async def show_progress(worker: Served, *, sleep: Sleep = asyncio.sleep) -> None:
    """Show it until all is read or the worker stops. To be run beside the worker: `run(app, watch=show_progress)`."""
    while not worker.ready:
        await sleep(REFRESH_S)
    if not _measured(worker):
        return
    if sys.stderr.isatty():
        await _show_bars(worker, sleep)
    else:
        await _log_lines(worker, sleep)


def _measured(worker: Served) -> list[tuple[InputFeed, Progress]]:
    return [(feed, progress) for feed in worker.ingresses if (progress := feed.progress()) is not None]


def _reading(worker: Served) -> bool:
    return not worker.stopping and any(not feed.done for feed, _ in _measured(worker))


async def _show_bars(worker: Served, sleep: Sleep) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TimeRemainingColumn(),
    )
    bars = Bars(
        *columns,
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # A thread that draws would take the interpreter from the turns when it likes.
        redirect_stdout=sys.stdout.isatty(),  # Else it is for a file or another program, and must get there.
    )
    shown: dict[str, TaskID] = {}
    with bars:
        while _reading(worker):
            for feed, (done, total) in _measured(worker):
                records = feed.records_total
                if feed.name not in shown:  # What is behind already doesn't count for the speed.
                    shown[feed.name] = bars.add_task(feed.name, total=total, completed=done, records=records)
                bars.update(shown[feed.name], completed=done, records=records)
            bars.refresh()
            await sleep(REFRESH_S)


async def _log_lines(worker: Served, sleep: Sleep) -> None:
    while _reading(worker):
        await sleep(LINE_S)
        for feed, progress in _measured(worker):
            if not feed.done:
                logger.info("%s: %s%% read, %s records", feed.name, progress.percent, f"{feed.records_total:,}")
