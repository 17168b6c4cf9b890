"""Runs of many simulated clusters, and what they have covered."""

from __future__ import annotations

from collections.abc import Iterable

from tests.simulation.cluster_mix import EVERYTHING, ClusterMix
from tests.simulation.cluster_worker import staged
from tests.simulation.cluster_world import ClusterCoverage, ClusterWorld
from tests.simulation.schedules import collecting_seldom

TAIL = 14
"""Steps shown of a cluster that failed."""


def simulate_clusters(seeds: Iterable[int], mix: ClusterMix = EVERYTHING) -> ClusterCoverage:
    """Play the schedule of each seed. What one raises names the seed, which is all it takes to see it again."""
    coverage = ClusterCoverage()
    with staged(), collecting_seldom():
        for seed in seeds:
            coverage = coverage.plus(play(seed, mix))
    return coverage


def play(seed: int, mix: ClusterMix = EVERYTHING) -> ClusterCoverage:
    """One schedule, on the stage."""
    world = ClusterWorld(seed, mix)
    try:
        coverage = world.run()
    except Exception as error:
        steps = ", ".join(f"{step} {who}" for step, who in world.trace[-TAIL:])
        error.add_note(
            f"Seed {seed}, after {len(world.trace)} steps, the last of them {steps}. "
            f"Again, and made short: python -m tests.simulation --first {seed} --only clusters 1"
        )
        raise
    world.take_apart()
    return coverage


PER_THOUSAND_MIN = ClusterCoverage(
    recoveries=2_000,
    replays=100,
    leaders=1_500,
    adoptions=500,
    handoffs=200,
    returned=5,
    completed=3_000,
    abandoned=25,
    zombie_frames=50,
    zombie_turns=100,
    colour_cuts=15,
    bases=500,
    older=8,
    refusals=500,
    deltas_harmed=5,
    joins=2_500,
    leaves=300,
    forgets=300,
)
"""Below these a run has not seen enough to mean anything. Lineages that get shorter are too rare to count in a short
one."""


def thin_clusters(coverage: ClusterCoverage, schedules: int) -> list[str]:
    """What `schedules` clusters saw too little of."""
    return [
        f"{name}: {seen:,} in {schedules:,} schedules, and {floor:,} in each thousand are wanted"
        for name, seen, floor in zip(ClusterCoverage._fields, coverage, PER_THOUSAND_MIN, strict=True)
        if seen * 1_000 < floor * schedules
    ]
