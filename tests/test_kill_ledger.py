"""Money that is on its way when the process is killed arrives once.

It is on its way in queues, in frames between tasks, in handlers that suspend, and in timers that are called back.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kill import ledger
from tests.kill.killing import kill_again_and_again, lines_of, run_to_the_end, told_replayed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KILLS = 20
TRANSFERS = 20_000
PAUSE_S = 0.01
"""After every 20 transfers: 2,000 a second."""


@pytest.mark.parametrize("parallelism", [1, 4])
def test_no_booking_of_a_ledger_is_lost_or_doubled(
    tmp_path: Path, parallelism: int, capsys: pytest.CaptureFixture[str]
) -> None:
    program = ("tests.kill.ledger", tmp_path, TRANSFERS, parallelism)

    runs = kill_again_and_again(*program, PAUSE_S, kills=KILLS, seed=parallelism, records=TRANSFERS)
    end = run_to_the_end(*program, 0)

    assert told_replayed(runs, capsys) > 0
    assert end.dead_letters == 0
    ledger.check(map(json.loads, lines_of(tmp_path / "results")), TRANSFERS)
