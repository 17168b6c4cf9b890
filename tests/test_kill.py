"""Killed with SIGKILL again and again, an application writes what it would have written undisturbed.

Each kill lies after the first checkpoint and before the end of the input. The messages replayed are counted, for a test
in which nothing had to be replayed would prove nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.killing import kill_again_and_again, lines_of, run_to_the_end, told_replayed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KILLS = 20
FLIGHTS = 30_000
FLIGHTS_PER_S = 2_500


@pytest.mark.parametrize("parallelism", [1, 4])
def test_flights_killed_twenty_times_give_the_same_files(
    tmp_path: Path, parallelism: int, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run_to_the_end("tests.kill.flights", undisturbed, FLIGHTS, 1, 0)

    program = ("tests.kill.flights", killed, FLIGHTS, parallelism)
    runs = kill_again_and_again(*program, FLIGHTS_PER_S, kills=KILLS, seed=parallelism, records=FLIGHTS)
    run_to_the_end(*program, 0)

    assert told_replayed(runs, capsys) > 0
    assert lines_of(killed / "results") == lines_of(undisturbed / "results")
