"""Proves awaiting on the real cores: whatever fails and whenever, each segment of a handler is done once, and nothing
that a handler was told is ever another thing.

PENSTOCK_SEEDS sets how many schedules are played, a fourth of them of trees.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.mix import Mix
from tests.simulation.schedules import collecting_seldom
from tests.simulation.tree_world import GROWING, STORMS, TreeWorld

SEEDS = int(os.environ.get("PENSTOCK_SEEDS", "12000")) // 4
BLOCK = 500


def play(first: int, count: int, mix: Mix) -> None:
    with collecting_seldom():
        for seed in range(first, first + count):
            world = TreeWorld(seed, mix)
            try:
                world.run()
            except Exception as error:
                error.add_note(f"Tree {seed}, after {len(world.trace)} moves")
                raise
            world.take_apart()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_invariant_holds_in_every_tree(first: int) -> None:
    play(first, min(BLOCK, SEEDS - first), GROWING)


@pytest.mark.slow
def test_every_invariant_holds_where_crashes_are_frequent() -> None:
    play(1_000_000, SEEDS // 10, STORMS)
