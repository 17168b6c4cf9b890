"""The clocks of a worker: wall time that never goes back and never stands still, and what its turns are measured by.

When the wall clock is set back, time goes on from where it was at the pace of the monotonic clock, until the wall clock
has caught up: handlers see no moment twice, timers fire after their delay, and checkpoints are due as ever. A clock set
forward is believed. It also never starts before what a restored task has already shown to handlers (PROTOCOL 26).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

WAITED_MIN_S = 0.001
"""A thread that was held up was so for longer: the scheduler gives others a slice of some milliseconds."""
_SCHEDULED = Path("/proc/thread-self/schedstat")


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


def waited_s() -> float:
    """How long the scheduler has let this thread wait for a processor, since it began; 0 where nobody knows."""
    with suppress(OSError, IndexError, ValueError):
        return int(_SCHEDULED.read_bytes().split()[1]) / 1e9
    return 0.0


class WorkClock:
    """Seconds for one thread, without those in which others had the processor: a turn that they held up says nothing of
    how long its handlers take, and turns made shorter for it would cost more of what is scarce then."""

    def __init__(
        self, monotonic: Callable[[], float] = time.perf_counter, waited: Callable[[], float] = waited_s
    ) -> None:
        self._monotonic = monotonic
        self._waited = waited
        self._read_at = monotonic()
        self._waited_s = waited()

    def __call__(self) -> float:
        read_at = self._monotonic()
        if read_at - self._read_at > WAITED_MIN_S:  # Looking takes 10 us.
            self._waited_s = self._waited()
        self._read_at = read_at
        return read_at - self._waited_s
