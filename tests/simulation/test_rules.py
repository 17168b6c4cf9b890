"""Every rule of the protocol has a mutant, or an argument; every mutant a rule; and the page says so."""

from __future__ import annotations

from pathlib import Path

from tests.simulation import cluster_mutants, mutants
from tests.simulation.rules import RULES, table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "simulation.md"
NAMES = {mutant.name for mutant in mutants.MUTANTS} | {mutant.name for mutant in cluster_mutants.MUTANTS}


def test_every_rule_is_there_once() -> None:
    assert [rule.number for rule in RULES] == list(range(1, 28))


def test_a_rule_has_mutants_or_an_argument() -> None:
    for rule in RULES:
        assert bool(rule.mutants) != bool(rule.exempt), rule
        assert rule.exempt.endswith(".") or rule.mutants


def test_every_mutant_takes_away_a_rule() -> None:
    assert {name for rule in RULES for name in rule.mutants} == NAMES


def test_an_argument_names_tests_that_are_there() -> None:
    for rule in RULES:
        for word in rule.exempt.replace(";", " ").split():
            if word.startswith("tests/"):
                assert (ROOT / word.rstrip(".,")).exists(), word


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "put there what `python -m tests.simulation.rules` prints"
