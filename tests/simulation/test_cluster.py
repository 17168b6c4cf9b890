"""Proves the protocol of many workers on the real cores: whoever dies, and whatever comes late or twice.

PENSTOCK_SEEDS sets how many schedules are played; `make simulate` plays many, and says what they saw.
"""

from __future__ import annotations

import os
from unittest.mock import patch

import msgspec
import pytest

from penstock.checkpoint.lineage import Lineage
from tests.simulation.cluster_mix import (
    BACKLOG,
    BRIEF,
    DAMAGES,
    DUELS,
    EVERYTHING,
    FAULTS,
    HANDOFFS,
    LEADERS,
    PEOPLE,
    REFUSALS,
    STUCK,
    ZOMBIES,
    ClusterMix,
    Step,
)
from tests.simulation.cluster_schedules import CLUSTERS
from tests.simulation.cluster_worker import staged
from tests.simulation.cluster_world import ClusterWorld

SEEDS = int(os.environ.get("PENSTOCK_SEEDS", "6000"))
BLOCK = 1_000
"""Schedules of one test, which is to see enough of everything."""
CALM = EVERYTHING.more(
    {**dict.fromkeys(FAULTS, 0.0), Step.JOIN: 1.0, Step.BEAT: 30.0, Step.TICK: 4.0}, swarm=False, farewell=0.0
)
MIXES = {
    "handoffs": HANDOFFS,
    "leaders": LEADERS,
    "duels": DUELS,
    "zombies": ZOMBIES,
    "people": PEOPLE,
    "damages": DAMAGES,
    "backlog": BACKLOG,
    "brief": BRIEF,
    "stuck": STUCK,
    "refusals": REFUSALS,
}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_invariant_holds_in_every_schedule(first: int) -> None:
    seeds = range(first, min(first + BLOCK, SEEDS))
    coverage = CLUSTERS.simulate(seeds)
    assert len(seeds) < BLOCK or CLUSTERS.thin(coverage, BLOCK) == []


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_every_invariant_holds_when_one_kind_of_fault_is_frequent(mix: ClusterMix) -> None:
    CLUSTERS.simulate(range(1_000_000, 1_000_000 + SEEDS // 60), mix)


def test_without_faults_one_attempt_does_everything_and_workers_that_come_get_their_share() -> None:
    coverage = CLUSTERS.simulate(range(30), CALM)
    assert coverage.recoveries == 30
    assert coverage.leaders == 30
    assert coverage.handoffs >= 5


def test_bases_and_deltas_that_are_spoilt_are_met_by_restores() -> None:
    coverage = CLUSTERS.simulate(range(100), DAMAGES)
    assert min(coverage.bases_harmed, coverage.deltas_harmed) > 0
    assert coverage.older > 0


def test_an_attempt_does_not_name_ancestors_that_nobody_asks_for() -> None:
    assert CLUSTERS.simulate(range(6), BRIEF).pruned > 0


def test_a_unit_of_an_attempt_that_is_over_takes_no_checkpoint_of_the_next_for_its_own() -> None:
    """Its worker reads the end of the attempt, the next assignment, and a complete checkpoint in one go."""
    with staged():
        world = ClusterWorld(1, CALM)
        world.run()
        worker = next(worker for worker in world.workers if worker.actual_units)
        unit, completed = worker.actual_units[0], list[int]()
        own = world.manifests[max(world.manifests)]
        other = msgspec.structs.replace(own, checkpoint=own.checkpoint + 1, lineage=Lineage(own.lineage.attempt + 1))
        with patch.object(unit, "completed", lambda manifest: completed.append(manifest.checkpoint)):
            worker._settle(other)
            worker._settle(own)
    assert completed == [own.checkpoint]


def test_a_cluster_is_not_done_while_a_task_is_on_its_way_to_its_owner() -> None:
    """As when whoever gets it finds that a delta is damaged: it has told so, and nobody has heard it yet."""
    with staged():
        world = ClusterWorld(3, CALM)
        world.run()
        unit = world.live[0]
        other = next(worker for worker in world.workers if worker is not unit.worker)
        assert world._hanging() == ""
        with patch.object(unit, "worker", other):
            assert world._hanging() == "task 0"


def test_one_seed_is_one_run() -> None:
    with staged():
        first, second = ClusterWorld(17, EVERYTHING), ClusterWorld(17, EVERYTHING)
        assert first.run() == second.run()
    assert first.trace == second.trace
    assert first.database.rows == second.database.rows
