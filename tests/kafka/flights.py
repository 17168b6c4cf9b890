"""The flights example as `penstock run` finds it: what to read and where to write is in the environment."""

from __future__ import annotations

import os
from pathlib import Path

from examples.flights.app import connect
from examples.flights.feed import prepare

_directory = Path(os.environ["FLIGHTS_DIRECTORY"])
app = connect(
    prepare(_directory, limit=int(os.environ["FLIGHTS_LIMIT"])),
    _directory / "results",
    rate=float(os.environ["FLIGHTS_RATE"]),
)
