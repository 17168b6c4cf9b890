"""What a worker of several does between its turns. How it works with others is simulated elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock import App, Context, State
from penstock.checkpoint.control import AttemptBegun, Manifest, Part
from penstock.checkpoint.lineage import Lineage
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.errors import Refused
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


def shop(field: type) -> App:
    """An application whose only function keeps a value of this type."""
    app = App("shop")

    class Cart(State):
        __annotations__ = {"total": field}
        total = field()

    @app.function("shop/cart")
    def cart(ctx: Context[Cart], message: int) -> None:
        pass

    return app


def worker_of(app: App, directory: Path) -> Any:
    options = ClusterOptions(kafka=KafkaOptions("localhost:9092"), store=str(directory / "store"))
    return ClusterWorker(app, Config(directory=directory), options)


def test_what_counts_at_a_restore_is_the_code_that_ran_the_task_whatever_the_leader_has(tmp_path: Path) -> None:
    older, newer = shop(int), shop(str)
    parts = (Part(0, "", 0, -1, 0, -1, 0, 0), Part(1, "", 0, -1, 0, -1, 0, 0, {}, (), older.fingerprints()))
    manifest = Manifest(1, "shop", 7, Lineage(1), 0, 128, 2, 1, newer.fingerprints(), parts)
    worker = worker_of(newer, tmp_path)

    worker._check(None, manifest, (0,))
    with pytest.raises(Refused, match="PEN0302"):
        worker._check(None, manifest, (0, 1))
    assert manifest.of(1).fingerprints == older.fingerprints()
    assert manifest.of(0) == manifest


def test_a_worker_of_another_application_is_refused_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    begun = AttemptBegun(Lineage(1), 0, 1_000, 0, "start", (1,), {"bank/account": {}})
    with pytest.raises(Refused, match="PEN0780"):
        worker_of(shop(int), tmp_path)._check(begun, None, ())


def test_parts_name_the_code_of_their_worker_only_where_the_leader_has_another(tmp_path: Path) -> None:
    older, newer = shop(int), shop(str)
    worker = worker_of(newer, tmp_path)
    for begun_with, named in (({}, None), (newer.fingerprints(), None), (older.fingerprints(), newer.fingerprints())):
        begun = AttemptBegun(Lineage(1), 0, 1_000, 0, "start", (1,), begun_with)
        worker.link = SimpleNamespace(member=SimpleNamespace(attempt=begun))
        assert worker._other_fingerprints() == named
