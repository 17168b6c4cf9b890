"""The flights example on Kafka, whose workers are killed meanwhile, writes what it writes on one machine.

The example is unchanged: only where it runs is said on the command line.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.kafka.until_done import WORKERS, UntilDone
from tests.kill.killing import lines_of, run_to_the_end

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

FLIGHTS = 20_000
FLIGHTS_PER_S = 1_500
KILLS_MIN = 3
RUN_S = 180


def test_flights_give_the_same_files_on_kafka_although_workers_are_killed(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    run_to_the_end("tests.kill.flights", alone, FLIGHTS, 1, 0)

    kills = _run_and_kill_workers(kafka, kafka_app, together)

    with capsys.disabled():
        print(f"\nkilled {kills} workers of the flights")  # noqa: T201  # For whoever runs the test.
    assert kills >= KILLS_MIN
    assert lines_of(together / "results") == lines_of(alone / "results")


def _run_and_kill_workers(kafka: str, name: str, directory: Path) -> int:
    """Run to the end. Returns how many workers were killed while there was input to be read."""
    choose, kills = random.Random(1), 0
    environment = {
        "FLIGHTS_DIRECTORY": str(directory),
        "FLIGHTS_LIMIT": str(FLIGHTS),
        "FLIGHTS_RATE": str(FLIGHTS_PER_S),
    }
    app = "examples.flights.ready:app"
    with UntilDone(app, kafka, name, directory, environment=environment, within_s=RUN_S) as run:
        while run.goes_on(1 + choose.random()):
            kills += run.kill_worker(choose.randrange(WORKERS))
    return kills
