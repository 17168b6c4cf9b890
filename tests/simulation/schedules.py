"""Runs of many worlds, and what they have covered."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.simulation.mix import EVERYTHING, Mix
from tests.simulation.world import Coverage, World

TAIL = 12
"""Moves shown of a world that failed."""


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Few objects of a world are left once it was taken apart, and none of what was there before it: look for garbage
    after many worlds, and only among theirs. Doing it as usual takes a quarter of the time."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def simulate(seeds: Iterable[int], mix: Mix = EVERYTHING) -> Coverage:
    """Play the schedule of each seed. What one raises names the seed, which is all it takes to see it again."""
    coverage = Coverage()
    with collecting_seldom():
        for seed in seeds:
            coverage = coverage.plus(play(seed, mix))
    return coverage


def play(seed: int, mix: Mix = EVERYTHING) -> Coverage:
    """One schedule."""
    world = World(seed, mix)
    try:
        coverage = world.run()
    except Exception as error:
        moves = ", ".join(f"{move.name} {attempt}/{task}" for move, attempt, task in world.trace[-TAIL:])
        error.add_note(
            f"Seed {seed}, after {len(world.trace)} moves, the last of them {moves}. "
            f"Again, and made short: python -m tests.simulation --first {seed} --only worlds 1"
        )
        raise
    world.take_apart()
    return coverage


PER_THOUSAND_MIN = Coverage(
    recoveries=2_000,
    replays=100,
    completed=2_000,
    abandoned=200,
    zombie_records=500,
    colour_cuts=50,
    duplicates=20,
    bases=200,
    older=30,
    records_harmed=40,
    indexes_harmed=50,
    brought_back=15,
    rescales=15,
    refusals=1_000,
)
"""Below these a run has not seen enough to mean anything. Damaged bases are too rare to count in a short one."""


def thin(coverage: Coverage, schedules: int) -> list[str]:
    """What `schedules` worlds saw too little of."""
    return [
        f"{name}: {seen:,} in {schedules:,} schedules, and {floor:,} in each thousand are wanted"
        for name, seen, floor in zip(Coverage._fields, coverage, PER_THOUSAND_MIN, strict=True)
        if seen * 1_000 < floor * schedules
    ]
