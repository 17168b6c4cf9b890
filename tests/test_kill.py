"""Killed with SIGKILL again and again, an application writes what it would have written undisturbed.

Each kill lies after the first checkpoint and before the end of the input. The messages replayed are counted, for a test
in which nothing had to be replayed would prove nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kill import ledger
from tests.kill.killing import Killed, kill_again_and_again, lines_of, run_to_the_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KILLS = 20
FLIGHTS = 30_000
FLIGHTS_PER_S = 2_500
TRANSFERS = 20_000
PAUSE_S = 0.01
"""After every 20 transfers: 2,000 a second."""


def told_replayed(runs: list[Killed], capsys: pytest.CaptureFixture[str]) -> int:
    """How many messages were read again after the kills. Also said to the person who watches."""
    replayed = sum(run.replayed for run in runs)
    with capsys.disabled():
        print(f"\nkilled {len(runs)} times, {replayed:,} messages replayed")  # noqa: T201  # For whoever runs the test.
    return replayed


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


@pytest.mark.parametrize("parallelism", [1, 4])
def test_no_booking_of_a_ledger_is_lost_or_doubled(
    tmp_path: Path, parallelism: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Money is on its way in queues, in frames, in handlers that suspend and in timers when the process is killed."""
    program = ("tests.kill.ledger", tmp_path, TRANSFERS, parallelism)

    runs = kill_again_and_again(*program, PAUSE_S, kills=KILLS, seed=parallelism, records=TRANSFERS)
    end = run_to_the_end(*program, 0)

    assert told_replayed(runs, capsys) > 0
    assert end.dead_letters == 0
    ledger.check(map(json.loads, lines_of(tmp_path / "results")), TRANSFERS)
