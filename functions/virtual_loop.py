"""An event loop whose time is a number: waiting costs nothing, and nothing moves by itself.

What always holds: time advances only by `jump`, or inside `run`; everything that is ready runs before time moves;
timers run in the order of their times. Only waiting for time is virtual: a socket or a thread is something real, which
this loop looks at and never waits for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from math import ceil
from typing import Any, TypeVar

from penstock.errors import FunctionError

T = TypeVar("T")

_ROUNDING_S = 1e-6
"""Sums of fractions miss whole milliseconds by less than this, also after a century."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. It begins at 0 ms. Close it when done, as any loop."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._idle_s: float | None = None
        super().__init__(_Still(self._found_nothing_ready))
        self._clock_resolution = _ROUNDING_S  # That of the real clock is lost in the rounding after a few months.

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now_ms / 1000

    @property
    def next_ms(self) -> int | None:
        """When the next timer is due, at the latest; None when there is none. Up to date after `run_ready`."""
        if self._idle_s is None:
            return None
        return self.now_ms + max(1, ceil((self._idle_s - _ROUNDING_S) * 1000))

    def run_ready(self) -> None:
        """Run everything that can run at the present time, and what follows from it."""
        self.run_forever()

    def jump(self, to_ms: int) -> None:
        """Let it be `to_ms`. What has become due runs with the next `run_ready`."""
        assert to_ms >= self.now_ms, "time never goes back"
        self.now_ms = to_ms

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, letting time pass as it needs.

        Raises FunctionError when it waits for something that never happens here.
        """
        task = self.create_task(work)
        self.run_ready()
        while not task.done():
            if self.next_ms is None:
                task.cancel()
                self.run_ready()
                raise FunctionError(
                    "PEN0230",
                    f"{getattr(work, '__qualname__', work)} waits for something that never happens in virtual time: an "
                    "event nobody sets, a socket or a thread. Give the handler a stand-in for it.",
                )
            self.jump(self.next_ms)
            self.run_ready()
        return task.result()

    def _found_nothing_ready(self, idle_s: float | None) -> None:
        self._idle_s = idle_s
        self.stop()


class _Still(selectors.SelectSelector):
    """A selector that never waits, and says when a real one would have."""

    def __init__(self, nothing_ready: Callable[[float | None], None]) -> None:
        super().__init__()
        self._nothing_ready = nothing_ready

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            self._nothing_ready(timeout)
        return super().select(0)
