"""What operators are told of the sagas of one function: how far those under way are, and what became of the others.

What always holds: counted is what this process did, once, also when the code of a saga is run again; how far a saga is
stands in its record, which a runtime finds where it has it: here where it keeps sagas in memory, else in its state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from penstock.functions.saga_record import Phase, SagaRecord

if TYPE_CHECKING:
    from penstock.functions.context import Context


class Standing(NamedTuple):
    """Of the sagas that are under way."""

    running: int
    """They can still be undone."""
    finishing: int
    """They are past their pivot."""
    compensating: int
    stuck: int
    """Of all these: something has failed so often that an alert was raised, and has not succeeded since."""
    oldest_s: float
    """How long ago the first of them began; 0 when there is none."""


class Tally:
    """See the module."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        """By outcome."""
        self.retries = 0
        """Commands that are sent again because they have to succeed, and passes through the code behind the pivot."""
        self._contexts: set[Context[SagaRecord]] = set()

    @contextmanager
    def watch(self, context: Context[SagaRecord]) -> Iterator[None]:
        """While the saga of that context is carried out here."""
        self._contexts.add(context)
        try:
            yield
        finally:
            self._contexts.discard(context)

    def records(self) -> list[SagaRecord]:
        """Of the sagas that are carried out here."""
        return [context.state for context in self._contexts]


def standing(records: Iterable[SagaRecord], now_ms: int) -> Standing:
    """Sagas that have ended do not count."""
    phases: Counter[Phase] = Counter()
    stuck, began_ms = 0, now_ms
    for record in records:
        if record.phase is Phase.NEW and record.ended is not None:
            continue
        phases[record.phase] += 1
        stuck += record.trouble is not None
        began_ms = min(began_ms, record.began_ms or now_ms)
    return Standing(
        phases[Phase.NEW] + phases[Phase.RUNNING],
        phases[Phase.FORWARD],
        phases[Phase.BACKWARD],
        stuck,
        (now_ms - began_ms) / 1000,
    )
