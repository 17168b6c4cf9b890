"""The one clock of a worker: wall time that never goes back and never stands still.

When the wall clock is set back, time goes on from where it was at the pace of the monotonic clock, until the wall clock
has caught up: handlers see no moment twice, timers fire after their delay, and checkpoints are due as ever. A clock set
forward is believed. It also never starts before what a restored task has already shown to handlers (PROTOCOL 26).
"""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Call it for seconds since 1970 in UTC."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall()
        self._read_at = monotonic()

    def __call__(self) -> float:
        read_at = self._monotonic()
        self._last = max(self._wall(), self._last + read_at - self._read_at)
        self._read_at = read_at
        return self._last

    def not_before(self, seconds: float) -> None:
        """From now on it is at least `seconds`."""
        self._last = max(self(), seconds)
