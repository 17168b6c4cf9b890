"""A schedule that fails becomes a short test that fails in the same way."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from penstock.checkpoint.sinks import TwoPhaseSink
from tests.simulation import cluster_mix
from tests.simulation.cluster_mutants import MUTANTS as CLUSTER_MUTANTS
from tests.simulation.cluster_schedules import CLUSTERS
from tests.simulation.cluster_worker import staged
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.invariants import Violation
from tests.simulation.minimise import as_test, minimise
from tests.simulation.mix import EVERYTHING
from tests.simulation.schedules import WORLDS
from tests.simulation.tree_mutants import MUTANTS as TREE_MUTANTS
from tests.simulation.tree_schedules import TREE_WORLDS
from tests.simulation.tree_world import TreeWorld
from tests.simulation.world import World


def test_what_is_left_of_a_schedule_fails_in_the_same_way() -> None:
    with patch.object(TwoPhaseSink, "_drop_visible", lambda self: []):
        seed = next(seed for seed in range(50) if _fails(seed))
        steps, said = minimise(seed, WORLDS)
        text = as_test(seed, WORLDS, steps, said)
        names = {"World": World, "EVERYTHING": EVERYTHING}
        exec(text, names)
        with pytest.raises(Violation) as caught:
            names[f"test_seed_{seed}_of_worlds"]()  # type: ignore[operator]

    assert len(steps) < 60
    assert str(caught.value) in said


def test_so_does_that_of_a_cluster() -> None:
    mutant = next(mutant for mutant in CLUSTER_MUTANTS if mutant.name == "duplicate frames")
    clusters, _ = mutant.caught()
    with patch.object(mutant.owner, mutant.attribute, mutant.replacement):
        steps, said = minimise(clusters - 1, CLUSTERS, mutant.mix)
        text = as_test(clusters - 1, CLUSTERS, steps, said)
        names = {"ClusterWorld": ClusterWorld, "EVERYTHING": mutant.mix, "staged": staged}
        exec(text, names)
        with pytest.raises(Violation):
            names[f"test_seed_{clusters - 1}_of_clusters"]()  # type: ignore[operator]

    assert len(steps) < cluster_mix.EVERYTHING.steps // 4


def test_so_does_that_of_a_tree() -> None:
    mutant = TREE_MUTANTS[0]
    worlds, _ = mutant.caught()
    with patch.object(mutant.owner, mutant.attribute, mutant.replacement):
        steps, said = minimise(worlds - 1, TREE_WORLDS, mutant.mix)
        names = {"TreeWorld": TreeWorld, "GROWING": mutant.mix}
        exec(as_test(worlds - 1, TREE_WORLDS, steps, said), names)
        with pytest.raises(Violation):
            names[f"test_seed_{worlds - 1}_of_trees"]()  # type: ignore[operator]

    assert len(steps) < mutant.mix.steps // 2


def test_a_schedule_that_does_not_fail_is_not_made_short() -> None:
    with pytest.raises(AssertionError, match="seed 0 fails no more"):
        minimise(0, WORLDS)


def _fails(seed: int) -> bool:
    try:
        World(seed, EVERYTHING).run()
    except Violation:
        return True
    return False
