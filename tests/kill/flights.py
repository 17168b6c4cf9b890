"""The flights example as a program to be killed: `python -m tests.kill.flights DIRECTORY LIMIT PARALLELISM RATE`."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.flights.app import connect
from examples.flights.feed import prepare
from penstock.engine.config import Config
from tests.kill.telling import run_telling

if __name__ == "__main__":
    directory, limit, parallelism, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    app = connect(prepare(directory, limit=limit), directory / "results", rate=rate or None)
    run_telling(app, Config(directory=directory / "state", parallelism=parallelism, until_done=True, port=None))
