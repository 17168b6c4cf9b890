"""Whose turn it is (engine/rota.py)."""

from __future__ import annotations

from typing import Any

from penstock.engine.rota import PASS_S, Rota


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def passes(took_s: dict[str, float], count: int, *, idle: str = "") -> list[tuple[str, bool]]:
    """Which units were asked in so many passes, where a turn takes so long, and whether each pass had work."""
    clock = Clock()
    rota = Rota(clock)
    units: Any = list(took_s)
    asked: list[tuple[str, bool]] = []
    for _ in range(count):
        order = ""

        def turn(unit: Any) -> bool:
            nonlocal order
            order += unit
            clock.now_s += took_s[unit]
            return unit not in idle

        worked = rota.take_turns(units, turn)
        asked.append((order, worked))
    return asked


def test_short_turns_of_all_units_fit_into_one_pass() -> None:
    assert passes({"a": 0, "b": 0, "c": 0}, 2) == [("bca", True), ("bca", True)]


def test_a_pass_with_a_long_turn_ends_after_it_and_the_next_goes_on_with_the_next_unit() -> None:
    long = 2 * PASS_S
    assert passes({"a": long, "b": long, "c": long}, 4) == [("b", True), ("c", True), ("a", True), ("b", True)]


def test_a_pass_without_work_has_asked_all_however_long_that_took() -> None:
    """Whoever then sleeps relies on it."""
    long = 2 * PASS_S
    assert passes({"a": long, "b": long, "c": 0}, 2, idle="abc") == [("bca", False), ("bca", False)]
    assert passes({"a": 0, "b": long, "c": 0}, 1, idle="b") == [("bc", True)]


def test_no_units_no_work() -> None:
    assert Rota().take_turns([], lambda unit: True) is False
