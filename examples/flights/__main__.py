"""Follows 336,776 flights and the delays their aircraft carry along. See README.md beside this file.

Run it: `python -m examples.flights [--dir D] [--rate R] [--limit N] [--kafka BROKERS [--workers W]]`, or as a mesh of
requests with `--mesh [--replicas N]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
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
    elsewhere = options.add_mutually_exclusive_group()
    elsewhere.add_argument("--kafka", metavar="BROKERS", help="run on Kafka, with addresses such as localhost:9092")
    options.add_argument("--workers", type=int, default=2, help="so many processes there; 2 if left out")
    elsewhere.add_argument("--mesh", action="store_true", help="run as a mesh of requests")
    options.add_argument("--replicas", type=int, default=2, help="so many hosts there; 2 if left out")
    chosen = options.parse_args()
    with nullcontext(chosen.dir) if chosen.dir else TemporaryDirectory(prefix="flights-") as directory:
        name = f"flights-{Path(directory).resolve().name}"
        if chosen.kafka:
            workers = ["--kafka", chosen.kafka, "--workers", str(chosen.workers), "--name", name]
            follow_in_processes(
                Path(directory), ["run", "--port", "none", *workers], rate=chosen.rate, limit=chosen.limit
            )
        elif chosen.mesh:
            hosts = ["mesh", "--port", "0", "--replicas", str(chosen.replicas)]
            follow_in_processes(Path(directory), hosts, rate=chosen.rate, limit=chosen.limit)
        else:
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


def follow_in_processes(directory: Path, how: list[str], *, rate: float | None, limit: int | None) -> None:
    """The same, by `penstock run` or `penstock mesh`: what several processes need to know is in their environment."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {"FLIGHTS_DIRECTORY": str(directory.resolve())}
    environment |= {"FLIGHTS_LIMIT": str(limit)} if limit else {}
    environment |= {"FLIGHTS_RATE": str(rate)} if rate else {}
    penstock = [sys.executable, "-c", "from penstock.engine.cli import main; main()"]
    where = ["--dir", str(directory / "state"), "--until-done"]
    subprocess.run(
        [*penstock, *how, "examples.flights.ready:app", *where], env={**os.environ, **environment}, check=True
    )
    show_results(directory / "results", Console())


if __name__ == "__main__":
    main()
