"""The flights example on Kafka, whose workers are killed meanwhile, writes what it writes on one machine.

The example is unchanged: only where it runs is said on the command line.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.files import read_owner
from tests.kafka.proof.running import ROOT, penstock, python_path
from tests.kill.killing import lines_of, run_to_the_end

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

FLIGHTS = 20_000
FLIGHTS_PER_S = 1_500
WORKERS = 2
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
    directory.mkdir()
    data = directory / "data"
    command = penstock("run", "examples.flights.ready:app", "--kafka", kafka, "--name", name, "--workers", WORKERS)
    command += ["--parallelism", "4", "--dir", str(data), "--port", "none", "--memory", "128MB", "--until-done"]
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "FLIGHTS_DIRECTORY": str(directory),
        "FLIGHTS_LIMIT": str(FLIGHTS),
        "FLIGHTS_RATE": str(FLIGHTS_PER_S),
    }
    with (directory / "log").open("w+b") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + RUN_S
            while process.poll() is None:
                assert time.monotonic() < deadline, (directory / "log").read_text(encoding="utf-8")[-8000:]
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1 + choose.random())
                kills += process.poll() is None and _kill_worker(data / f"worker-{choose.randrange(WORKERS)}")
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, (directory / "log").read_text(encoding="utf-8")[-8000:]
    return kills


def _kill_worker(directory: Path) -> bool:
    """Kill the worker that runs there, if one does and has not read everything."""
    owner = read_owner(directory)
    if owner is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(owner.pid, 9)
        return True
    return False
