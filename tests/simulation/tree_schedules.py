"""Schedules of worlds whose handlers await."""

from __future__ import annotations

from tests.simulation.schedules import Kind, is_faulty_move, told_of_move
from tests.simulation.tree_world import GROWING, TreeSights, TreeWorld


def _run(world: TreeWorld) -> TreeSights:
    world.run()
    return world.sights


TREE_WORLDS = Kind(
    "trees",
    TreeWorld,
    GROWING,
    _run,
    TreeSights,
    TreeSights(
        begun=3_000,
        again=4_000,
        results=8_000,
        steps=2_000,
        cancelled=300,
        timed_out=400,
        late=600,
        joined=150,
        looks=800,
    ),
    told=told_of_move,
    is_fault=is_faulty_move,
    mix_name="GROWING",
)
"""Applications of one process whose handlers call one another, and wait."""
