"""Proves awaiting on the real cores: whatever fails and whenever, each segment of a handler is done once, and nothing
that a handler was told is ever another thing; and that worlds which lack a rule of it are noticed.

PENSTOCK_SEEDS sets how many schedules are played, a sixth of them of trees.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulation.mix import Mix
from tests.simulation.mutants import SEEDS_MAX, Mutant
from tests.simulation.tree_mutants import MUTANTS, REGROUPED
from tests.simulation.tree_schedules import TREE_WORLDS
from tests.simulation.tree_world import GROWING, STORMS, TreeWorld

SEEDS = int(os.environ.get("PENSTOCK_SEEDS", "12000")) // 6
BLOCK = 500
"""Schedules of one test, which is to see enough of everything."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "simulation.md"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_invariant_holds_in_every_tree(first: int) -> None:
    count = min(BLOCK, SEEDS - first)
    seen = TREE_WORLDS.simulate(range(first, first + count))
    assert count < BLOCK or TREE_WORLDS.thin(seen, count) == []


@pytest.mark.slow
@pytest.mark.parametrize("mix", [STORMS, REGROUPED], ids=["storms", "regrouped"])
def test_every_invariant_holds_when_one_kind_of_fault_is_frequent(mix: Mix) -> None:
    TREE_WORLDS.simulate(range(1_000_000, 1_000_000 + SEEDS // 20), mix)


def test_some_trees_grow() -> None:
    assert TREE_WORLDS.simulate(range(20)).results > 100


def test_one_seed_is_one_tree() -> None:
    first, second = TreeWorld(17, GROWING), TreeWorld(17, GROWING)
    assert first.run() == second.run()
    assert first.trace == second.trace
    assert first.database.rows == second.database.rows


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_rule_is_noticed(mutant: Mutant) -> None:
    worlds, _ = mutant.caught()
    assert worlds <= SEEDS_MAX, f"nothing notices that this is missing: {mutant.name}"


def test_the_page_tells_what_is_taken_away() -> None:
    told = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [mutant.name for mutant in MUTANTS if mutant.name not in told] == []
