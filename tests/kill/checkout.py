"""The checkout example as a program to be killed: `python -m tests.kill.checkout DIRECTORY ORDERS PARALLELISM RATE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from examples.checkout.app import connect
from examples.checkout.orders import orders_until
from penstock.engine.config import Config
from tests.kill.telling import run_telling

if __name__ == "__main__":
    directory, count, parallelism, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    os.environ["CHECKOUT_DIRECTORY"] = str(directory)
    config = Config(directory=directory / "state", parallelism=parallelism, until_done=True, port=None)
    run_telling(connect(directory / "results", orders_until(count, rate=rate or None)), config)
