"""Schedules of simulated clusters."""

from __future__ import annotations

from tests.simulation.cluster_mix import EVERYTHING, Step
from tests.simulation.cluster_worker import staged
from tests.simulation.cluster_world import ClusterCoverage, ClusterWorld
from tests.simulation.schedules import Kind


def _is_fault(entry: tuple[str, str]) -> bool | None:
    """A trace also names what is no step: a leader that begins, and the end."""
    step = Step.__members__.get(entry[0])
    return None if step is None else step >= Step.CRASH


CLUSTERS = Kind(
    "clusters",
    ClusterWorld,
    EVERYTHING,
    ClusterWorld.run,
    ClusterCoverage,
    ClusterCoverage(
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
    ),
    told=" ".join,
    is_fault=_is_fault,
    staged=staged,
)
"""Applications of many processes. Lineages that get shorter are too rare to count on."""
