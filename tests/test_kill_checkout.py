"""Orders in the midst of their checkout when the process is killed come to one end each.

They are killed while they wait for a call, a step, a promise or a deadline, and while they undo what they did. That
the bank was asked again for what it had done shows that some were.
CHECKOUT_KILLS is how often; `make soak` sets it to 200.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill import checkout_checker
from tests.kill.killing import kill_again_and_again, run_to_the_end

KILLS = int(os.environ.get("CHECKOUT_KILLS", "20"))
PARALLELISM = 4
ORDERS = 20 * KILLS
ORDERS_PER_S = 80

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 10 * KILLS)]


def test_every_order_ends_once_although_the_shop_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = ("tests.kill.checkout", tmp_path, ORDERS, PARALLELISM)

    kill_again_and_again(*program, ORDERS_PER_S, kills=KILLS, seed=1, records=ORDERS)
    end = run_to_the_end(*program, 0)

    assert end.dead_letters == 0
    assert checkout_checker.judge(tmp_path, ORDERS, KILLS, capsys) > 0
