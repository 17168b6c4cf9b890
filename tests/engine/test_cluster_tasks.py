"""How tasks come to a worker when something is in the way. What many of them make of it is simulated elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.checkpoint.control import Manifest
from penstock.checkpoint.member import Restore
from penstock.engine.cluster import tasks as tasks_module
from penstock.errors import Unavailable
from penstock.router.kafka_reader import read_range
from tests.simulation import cluster_kafka
from tests.simulation.cluster_mix import EVERYTHING
from tests.simulation.cluster_stage import STAGE
from tests.simulation.cluster_worker import SimulatedWorker, staged
from tests.simulation.cluster_world import ClusterWorld

TASKS = 4


class Restoring:
    """A worker that is to restore the tasks of an application that has run for a while."""

    def __init__(self, world: ClusterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.manifest: Manifest = world.manifests[max(world.manifests)]
        self.worker = SimulatedWorker(world, "new", "new#1")
        self.removed: list[Path] = []
        self.reads = 0
        self.reading: Callable[[], None] = lambda: None
        rmtree = SimpleNamespace(rmtree=lambda path, *_: self.removed.append(path))
        monkeypatch.setattr(tasks_module, "shutil", rmtree)
        monkeypatch.setattr(tasks_module, "read_range", self._read)
        monkeypatch.setattr(world, "placed", lambda *_: None)
        assert world.assigned is not None
        self.restore = Restore(world.assigned.attempt, tuple(range(TASKS)), self.manifest)

    async def _read(self, *arguments: Any, **options: Any) -> Any:
        self.reads += 1
        self.reading()
        return await cluster_kafka.read_range(*arguments, **options)

    def run(self) -> None:
        self.worker.loop()
        self.worker.tasks.change(self.restore)
        while self.worker.works:
            self.worker.step_work(1)


@pytest.fixture
def restoring() -> Iterator[Restoring]:
    mix = EVERYTHING.more({}, tasks=(TASKS,), workers=(1,), steps=0, walks=12, farewell=0.0)
    # What is replaced on the stage is put back before the stage is left: the other way round, its parts would stay.
    with staged(), pytest.MonkeyPatch.context() as monkeypatch:
        world = ClusterWorld(1, mix)
        world.run()
        STAGE.patient = lambda: True
        yield Restoring(world, monkeypatch)


def test_all_tasks_of_an_attempt_come(restoring: Restoring) -> None:
    restoring.run()

    assert [unit.task for unit in restoring.worker.units] == list(range(TASKS))
    assert restoring.removed == []


def test_what_a_newer_attempt_makes_void_goes_no_further_and_leaves_nothing(restoring: Restoring) -> None:
    restoring.reading = restoring.worker.tasks.halt

    restoring.run()

    assert restoring.worker.units == []
    assert restoring.reads <= tasks_module.RESTORES_MAX
    assert {path.name.partition(".")[0] for path in restoring.removed} == {"0-1"}


def test_what_is_tried_again_leaves_nothing_of_the_time_before(restoring: Restoring) -> None:
    def fail_once() -> None:
        if restoring.reads == 2:
            raise Unavailable("PEN0720", "Nobody answers.")

    restoring.reading = fail_once

    restoring.run()

    assert [unit.task for unit in restoring.worker.units] == list(range(TASKS))
    left = {restoring.worker.tasks.path_of(task).name for task in range(TASKS)}
    assert {path.name for path in restoring.removed} == {"0-1", "0-1.base", "1-2", "1-2.base"}
    assert not left & {path.name for path in restoring.removed}


def test_nothing_of_the_stage_is_left() -> None:
    found = vars(tasks_module)

    assert (found["read_range"], found["shutil"]) == (read_range, shutil)
