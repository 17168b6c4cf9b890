"""SIGTERM and SIGINT ask for an orderly end.

What always holds: the first of them has `stop` called by the event loop; handlers are those of the process, not of the
event loop, so that they answer also while a restore keeps the loop busy; afterwards the former ones are back. Outside
the main thread, where a program gets no signals, nothing is installed.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _nothing() -> None:
    pass


@contextmanager
def stopped_by_signals(
    stop: Callable[[], None], *, noticed: Callable[[], None] = _nothing, again: Callable[[], None] = _nothing
) -> Iterator[None]:
    """Let the first signal during the block call `noticed` at once and `stop` in the event loop, any other `again`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            again()
            return
        stopping = True
        loop.call_soon_threadsafe(stop)
        noticed()

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
