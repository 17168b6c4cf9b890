"""Orders in the midst of their checkout when workers on Kafka are killed come to one end each.

At every kill orders are under way, and at least one has ended since the kill before. CHECKOUT_KILLS is how often;
`make soak` sets it to 200.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.kafka.until_done import UntilDone
from tests.kill import checkout_checker

KILLS = int(os.environ.get("CHECKOUT_KILLS", "20"))
ORDERS_PER_KILL = 6
ORDERS = ORDERS_PER_KILL * (KILLS + 2)

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(120 + 10 * KILLS)]


def test_every_order_ends_once_although_workers_are_killed(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose, kills, seen = random.Random(1), 0, 0
    environment = {"CHECKOUT_DIRECTORY": str(tmp_path), "CHECKOUT_ORDERS": str(ORDERS)}
    gate = tmp_path / "gate"
    gate.write_bytes(bytes(2 * ORDERS_PER_KILL))
    app = "tests.kafka.gated_checkout:app"
    with UntilDone(app, kafka, kafka_app, tmp_path, environment=environment, within_s=90 + 10 * KILLS) as run:
        while run.goes_on(0.02):
            ended = checkout_checker.ended(tmp_path)
            seen = min(seen, ended)  # What is not committed may be taken back, or be seen twice while it is moved.
            if kills < KILLS and ended > seen:
                run.goes_on(0.3 * choose.random())
                struck = sum(map(run.kill_worker, choose.choice([(0,), (1,), (0, 1), (0, 1)])))
                if not struck:
                    continue
                kills += struck
                seen = ended
                gate.write_bytes(bytes(ORDERS_PER_KILL * (2 + kills) if kills < KILLS else ORDERS))

    assert kills >= KILLS
    assert checkout_checker.judge(tmp_path, ORDERS, kills, capsys) > 0
