"""Follows 336,776 flights and the delays their aircraft carry along. See README.md beside this file.

Run it: `python -m examples.flights [--dir D] [--rate R] [--limit N]`.
"""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.flights.app import connect
from examples.flights.feed import prepare
from examples.flights.report import show_figures, show_results
from penstock.engine.config import Config
from penstock.engine.run import run
from penstock.engine.worker import Worker


def main() -> None:
    options = ArgumentParser(prog="python -m examples.flights", description="Follow 336,776 flights and their delays.")
    options.add_argument("--dir", type=Path, help="keep state and results here, and continue from them after a kill")
    options.add_argument("--rate", type=float, help="flights to read a second; as many as it takes, if left out")
    options.add_argument("--limit", type=int, help="read only so many flights")
    chosen = options.parse_args()
    with nullcontext(chosen.dir) if chosen.dir else TemporaryDirectory(prefix="flights-") as directory:
        follow(Path(directory), rate=chosen.rate, limit=chosen.limit)


def follow(directory: Path, *, rate: float | None, limit: int | None) -> None:
    console = Console()
    with console.status("Sorting the flights by their scheduled departure"):
        departures = prepare(directory, limit=limit)
    results = directory / "results"
    app = connect(departures, results, rate=rate)
    config = Config(directory=directory / "state", until_done=True, port=None)
    began = time.monotonic()
    worker = run(app, config, watch=lambda worker: show_progress(worker, departures, console))
    took_s = time.monotonic() - began
    if not sum(feed.records for feed in worker.ingresses):
        console.print(
            f"All flights were read before: remove {directory} to begin anew.\n", soft_wrap=True, highlight=False
        )
    show_results(results, console)
    show_figures(worker, took_s, console)


async def show_progress(worker: Worker, departures: Path, console: Console) -> None:
    """A bar of the records read, if anybody looks."""
    with departures.open("rb") as lines:
        records = sum(1 for _ in lines)
    columns = (TextColumn("Flights"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("flights", total=records)
        while True:
            progress.update(bar, completed=sum(feed.records_total for feed in worker.ingresses))
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    main()
