"""A run is told to prove nothing when its load or faults were not as they were meant, or a control shows no harm."""

from __future__ import annotations

from penstock.compare.load import LoadResult
from penstock.compare.records import Verdict
from penstock.compare.runner import doubt

ON_TIME = LoadResult(offered=100, late_p99_ms=1.0, late_max_ms=2.0)
HARMLESS = Verdict({}, {"duplicated": 0, "orphaned": 0}, {})


def test_one_that_went_as_it_was_meant_is_not_in_doubt() -> None:
    assert doubt(ON_TIME, 0.01, [], HARMLESS, "") == ""


def test_a_load_that_fell_behind_proves_nothing() -> None:
    late = LoadResult(offered=100, late_p99_ms=5.1, late_max_ms=9.0)

    assert doubt(late, 0.0, [], HARMLESS, "") == "the load generator was late by 5.1 ms (p99), and 5 ms are allowed"


def test_a_fault_that_was_late_proves_nothing() -> None:
    assert "late by 80 ms" in doubt(ON_TIME, 0.08, [], HARMLESS, "")


def test_a_fault_that_struck_nobody_proves_nothing() -> None:
    assert "kill found no worker" in doubt(ON_TIME, 0.0, ["kill found no worker"], HARMLESS, "")


def test_a_control_without_harm_proves_nothing() -> None:
    assert "(duplicated) shows none" in doubt(ON_TIME, 0.0, [], HARMLESS, "duplicated")


def test_a_control_with_harm_is_what_was_meant() -> None:
    harmful = Verdict({}, {"duplicated": 2}, {})

    assert doubt(ON_TIME, 0.0, [], harmful, "duplicated") == ""
