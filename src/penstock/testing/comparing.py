"""What a run of an application has come to, and how two runs of the same inputs differ.

What always holds: only what the application promises is compared. Rows are compared as a set with repetitions, because
the order of rows of different addresses is nobody's promise; of an egress that delivers at least once, only what is
missing counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.engine.effects import DeadLetter


@dataclass(frozen=True)
class Row:
    """A row of an egress: what is compared, and what people are shown."""

    content: Any
    value: Any


@dataclass(frozen=True)
class Outcome:
    """All that can be seen of an application from outside."""

    answers: Sequence[tuple[str, Any]]
    """What each call was about, and what it answered."""
    states: Mapping[str, Mapping[str, Any]]
    egresses: Mapping[str, Sequence[Row]]
    eager: frozenset[str]
    """Egresses that deliver at least once."""
    letters: Sequence[DeadLetter]


def first_difference(outcome: Outcome, expected: Outcome) -> str:
    """The first thing that is other than expected, in a sentence; empty when there is none."""
    return (
        _different_answer(outcome, expected)
        or _different_state(outcome, expected)
        or _different_row(outcome, expected)
        or _different_letter(outcome, expected)
    )


def _different_answer(outcome: Outcome, expected: Outcome) -> str:
    for (call, answer), (_, wanted) in zip(outcome.answers, expected.answers, strict=True):
        if answer != wanted:
            return f"{call} was answered {answer!r}, and without faults {wanted!r}."
    return ""


def _different_state(outcome: Outcome, expected: Outcome) -> str:
    for typename, wanted in expected.states.items():
        found = outcome.states[typename]
        for id in sorted(found.keys() | wanted.keys()):
            if found.get(id) != wanted.get(id):
                return f'The state of {typename} "{id}" is {found.get(id)!r}, and without faults {wanted.get(id)!r}.'
    return ""


def _different_row(outcome: Outcome, expected: Outcome) -> str:
    for egress, wanted in expected.egresses.items():
        found = outcome.egresses[egress]
        times, times_wanted = (Counter(repr(row.content) for row in rows) for rows in (found, wanted))
        for row in [*wanted, *found]:
            content = repr(row.content)
            count, count_wanted = times[content], times_wanted[content]
            if count < count_wanted or (count > count_wanted and egress not in outcome.eager):
                return f"Egress {egress} has {row.value!r} {_times(count)}, and without faults {_times(count_wanted)}."
    return ""


def _different_letter(outcome: Outcome, expected: Outcome) -> str:
    found, wanted = (Counter(map(_about, each.letters)) for each in (outcome, expected))
    for letter in [*wanted, *found]:
        if found[letter] != wanted[letter]:
            typename, id, error = letter
            return (
                f'The dead letters have a message to {typename} "{id}" {_times(found[letter])}, and without faults '
                f"{_times(wanted[letter])}. Its error: {error}"
            )
    return ""


def _about(letter: DeadLetter) -> tuple[str, str, str]:
    return letter.typename, letter.id, f"{letter.code} {letter.reason}"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")
