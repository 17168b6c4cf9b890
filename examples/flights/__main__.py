"""Follows 336,776 flights and the delays their aircraft carry along. See README.md beside this file.

Run it: `python -m examples.flights [--dir D] [--rate R] [--limit N]`.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from examples.flights.app import connect
from examples.flights.feed import prepare
from examples.flights.report import show_figures, show_results
from penstock.engine.config import Config
from penstock.engine.progress import show_progress
from penstock.engine.run import run


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
    worker = run(app, config, watch=show_progress)
    took_s = time.monotonic() - began
    if not sum(feed.records for feed in worker.ingresses):
        console.print(
            f"All flights were read before: remove {directory} to begin anew.\n", soft_wrap=True, highlight=False
        )
    show_results(results, console)
    show_figures(worker, took_s, console)


if __name__ == "__main__":
    main()
