"""What a worker of several does between its turns. How it works with others is simulated elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from penstock import App
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.router.kafka_options import KafkaOptions


def test_what_is_due_in_a_task_that_takes_no_turn_wakes_nobody(tmp_path: Path) -> None:
    """It stays due until the task goes on or away, which may take as long as an outage does."""
    options = ClusterOptions(kafka=KafkaOptions("localhost:9092"), store=str(tmp_path / "store"))
    worker: Any = ClusterWorker(App("shop"), Config(directory=tmp_path), options)
    worker.tasks = SimpleNamespace(halted=False, leaving=set())
    worker.link = SimpleNamespace(member=SimpleNamespace(still=set()))
    worker._upkeep = SimpleNamespace(due_in_ms=lambda: None)
    worker._assembly.units.append(SimpleNamespace(task=3, core=SimpleNamespace(next_due_ms=lambda: 1_000)))
    assert worker._due_in_ms(990) == 10
    assert worker._due_in_ms(2_000) == 0

    worker.link.member.still = {3}
    assert worker._due_in_ms(2_000) is None
    worker.link.member.still = set()
    worker.tasks.leaving = {3}
    assert worker._due_in_ms(2_000) is None
    worker.tasks.leaving = set()
    worker.tasks.halted = True
    assert worker._due_in_ms(2_000) is None
