"""Proves that the simulated clusters see: with any rule of the protocol taken away, they report a violation."""

from __future__ import annotations

import pytest

from tests.simulation.cluster_mutants import EXEMPT, MUTANTS, SEEDS_MAX, ClusterMutant


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_rule_is_noticed(mutant: ClusterMutant) -> None:
    clusters, _ = mutant.caught()
    assert clusters <= SEEDS_MAX, f"nothing notices that this is missing: {mutant.name}"


def test_what_is_exempt_says_why() -> None:
    assert not set(EXEMPT) & {mutant.name for mutant in MUTANTS}
    assert all(reason.endswith(".") for reason in EXEMPT.values())
