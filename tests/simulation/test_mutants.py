"""Proves that the simulator sees: with any rule of the protocol taken away, it reports a violation."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import EXEMPT, MUTANTS, SEEDS_MAX, Mutant
from tests.simulation.world import World


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_rule_is_noticed(mutant: Mutant) -> None:
    worlds, _ = mutant.caught()
    assert worlds <= SEEDS_MAX, f"nothing notices that this is missing: {mutant.name}"


def test_a_mutant_leaves_nothing_behind() -> None:
    mutant = MUTANTS[0]
    before = getattr(mutant.owner, mutant.attribute)
    World(0, mutant.mix).run()
    assert getattr(mutant.owner, mutant.attribute) is before


def test_what_is_exempt_says_why() -> None:
    assert not set(EXEMPT) & {mutant.name for mutant in MUTANTS}
    assert all(reason.endswith(".") for reason in EXEMPT.values())
