"""A shop with orders that are cancelled, declined and lost. See README.md beside this file.

Run it: `python -m examples.checkout [--dir D] [--orders N] [--rate R] [--kafka BROKERS [--workers W]]`, or as a mesh of
requests with `--mesh [--replicas N]`.
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
    elsewhere = options.add_mutually_exclusive_group()
    elsewhere.add_argument("--kafka", metavar="BROKERS", help="run on Kafka, with addresses such as localhost:9092")
    options.add_argument("--workers", type=int, default=2, help="so many processes there; 2 if left out")
    elsewhere.add_argument("--mesh", action="store_true", help="run as a mesh of requests")
    options.add_argument("--replicas", type=int, default=2, help="so many hosts there; 2 if left out")
    chosen = options.parse_args()
    with nullcontext(chosen.dir) if chosen.dir else TemporaryDirectory(prefix="checkout-") as directory:
        sell(Path(directory).resolve(), chosen)


def sell(directory: Path, chosen: Namespace) -> None:
    """By `penstock run` or `penstock mesh`. What all its processes need to know is in their environment."""
    os.environ |= {"CHECKOUT_DIRECTORY": str(directory), "CHECKOUT_ORDERS": str(chosen.orders)}
    os.environ |= {"CHECKOUT_RATE": str(chosen.rate)} if chosen.rate else {}
    penstock = [sys.executable, "-c", "from penstock.engine.cli import main; main()"]
    if chosen.mesh:
        how = ["mesh", "--replicas", str(chosen.replicas), "--port", "0"]
    else:
        how = ["run", "--port", "none"]
    if chosen.kafka:
        how += ["--kafka", chosen.kafka, "--workers", str(chosen.workers), "--name", f"checkout-{directory.name}"]
    where = ["--dir", str(directory / "state"), "--until-done"]
    subprocess.run([*penstock, *how, "examples.checkout.ready:app", *where], check=True)
    show_results(directory / "results", Console())


if __name__ == "__main__":
    main()
