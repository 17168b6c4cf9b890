"""Proves the protocol on the real cores: whatever fails and whenever, nothing is lost, doubled or out of order.

PENSTOCK_SEEDS sets how many schedules are played; `make simulate` plays many, and says what they
saw.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.invariants import Violation
from tests.simulation.mix import EVERYTHING, Mix, Move
from tests.simulation.mutants import BACKLOG, DAMAGES, DISKS, PEOPLE, REFUSALS, RESCALES, UPKEEP, ZOMBIES
from tests.simulation.schedules import WORLDS
from tests.simulation.world import World

SEEDS = int(os.environ.get("PENSTOCK_SEEDS", "12000"))
BLOCK = 1_000
"""Schedules of one test, which is to see enough of everything."""
CALM = Mix(weights={move: weight for move, weight in EVERYTHING.weights.items() if move.value < Move.CRASH.value})


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_invariant_holds_in_every_schedule(first: int) -> None:
    seeds = range(first, min(first + BLOCK, SEEDS))
    coverage = WORLDS.simulate(seeds)
    assert len(seeds) < BLOCK or WORLDS.thin(coverage, BLOCK) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "mix",
    [ZOMBIES, UPKEEP, PEOPLE, DISKS, BACKLOG, DAMAGES, RESCALES, REFUSALS],
    ids=["zombies", "upkeep", "people", "disks", "backlog", "damages", "rescales", "refusals"],
)
def test_every_invariant_holds_when_one_kind_of_fault_is_frequent(mix: Mix) -> None:
    WORLDS.simulate(range(1_000_000, 1_000_000 + SEEDS // 40), mix)


@pytest.mark.xfail(strict=True, raises=Violation, reason="a walk is lost where files are damaged as often as here")
def test_a_schedule_with_many_damaged_files_that_loses_a_walk() -> None:
    """Not understood yet. Found by a seed of the mix above; the schedules of everything, in which files are damaged
    seldom, have not shown it."""
    WORLDS.simulate(range(1_000_312, 1_000_313), DAMAGES)


def test_without_faults_one_attempt_does_everything() -> None:
    coverage = WORLDS.simulate(range(50), CALM)
    assert coverage.recoveries == 50
    assert coverage.replays == coverage.older == 0


def test_everything_that_a_restore_reads_is_spoilt() -> None:
    coverage = WORLDS.simulate(range(60), DAMAGES)
    assert min(coverage.records_harmed, coverage.bases_harmed, coverage.indexes_harmed, coverage.brought_back) > 0
    assert coverage.older > 0


def test_one_seed_is_one_run() -> None:
    first, second = World(17, EVERYTHING), World(17, EVERYTHING)
    assert first.run() == second.run()
    assert first.trace == second.trace
    assert first.database.rows == second.database.rows
