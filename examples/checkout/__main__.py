"""A shop with orders that are cancelled, declined and lost. See README.md beside this file.

Run it: `python -m examples.checkout [--dir D] [--orders N] [--rate R] [--kafka BROKERS [--workers W]]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from examples.checkout.report import show_results


def main() -> None:
    options = ArgumentParser(prog="python -m examples.checkout", description="Sell things, one order after the other.")
    options.add_argument("--dir", type=Path, help="keep state, bank and results here, and go on after a kill")
    options.add_argument("--orders", type=int, default=200, help="so many; 200 if left out")
    options.add_argument("--rate", type=float, help="orders to place a second; as many as it takes, if left out")
    options.add_argument("--kafka", metavar="BROKERS", help="run on Kafka, with addresses such as localhost:9092")
    options.add_argument("--workers", type=int, default=2, help="so many processes there; 2 if left out")
    chosen = options.parse_args()
    with nullcontext(chosen.dir) if chosen.dir else TemporaryDirectory(prefix="checkout-") as directory:
        sell(Path(directory).resolve(), chosen)


def sell(directory: Path, chosen: Namespace) -> None:
    """By `penstock run`. What all its processes need to know is in their environment."""
    os.environ |= {"CHECKOUT_DIRECTORY": str(directory), "CHECKOUT_ORDERS": str(chosen.orders)}
    os.environ |= {"CHECKOUT_RATE": str(chosen.rate)} if chosen.rate else {}
    command = [
        sys.executable,
        "-c",
        "from penstock.engine.cli import main; main()",
        "run",
        "examples.checkout.ready:app",
    ]
    command += ["--dir", str(directory / "state"), "--until-done", "--port", "none"]
    if chosen.kafka:
        command += ["--kafka", chosen.kafka, "--workers", str(chosen.workers), "--name", f"checkout-{directory.name}"]
    subprocess.run(command, check=True)
    show_results(directory / "results", Console())


if __name__ == "__main__":
    main()
