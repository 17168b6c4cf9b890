"""Whose turn it is: the tasks of a worker, one after the other, with the event loop in between.

What always holds: every task has its turn before another has a second one; no pass over them keeps the event loop much
longer than one long turn does. A checkpoint, the commit of its rows and an answer take dozens of passes of the loop
each, and all of them wait for every pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from penstock.engine.unit import TaskUnit

PASS_S = 0.003


class Rota:
    """See the module. One per worker."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._next = 0

    def take_turns(self, units: Sequence[TaskUnit], turn: Callable[[TaskUnit], bool]) -> bool:
        """One pass: `turn` says whether a unit had something to do. Returns whether any had; when none had, all were
        asked."""
        until = self._clock() + PASS_S
        worked = False
        for _ in units:
            self._next = (self._next + 1) % len(units)
            worked |= turn(units[self._next])
            if worked and self._clock() > until:
                break
        return worked
