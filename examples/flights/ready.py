"""The example as `penstock run examples.flights.ready:app` finds it, with any log and any number of workers.

What to read and where to write is in the environment, because every worker of a run has to come to the same:
FLIGHTS_DIRECTORY, and if wanted FLIGHTS_LIMIT (flights in all) and FLIGHTS_RATE (flights to read a second).
"""

from __future__ import annotations

import os
from pathlib import Path

from examples.flights.app import connect
from examples.flights.feed import prepare

_directory = Path(os.environ["FLIGHTS_DIRECTORY"])
_limit, _rate = os.environ.get("FLIGHTS_LIMIT"), os.environ.get("FLIGHTS_RATE")

app = connect(
    prepare(_directory, limit=int(_limit) if _limit else None),
    _directory / "results",
    rate=float(_rate) if _rate else None,
)
