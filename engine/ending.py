"""How a process ends that runs an application in the foreground.

What always holds: once the application has ended, the process does, whatever a handler leaves behind in the event loop;
it may always end at once, since the next start restores.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any

from penstock.errors import PenstockError
from penstock.loops import loop_factory
from penstock.output import note

EXIT_AT_ONCE = 1


def run_bounded(serving: Coroutine[Any, Any, None], timeout_s: float) -> None:
    """Run an event loop for this, and let nothing that is left in it keep the process from ending."""
    end = _End(timeout_s)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            try:
                runner.run(serving)
            except BaseException as error:
                end.failed = error
                raise
            finally:
                end.expect()
    finally:
        end.came()


class _End:
    """Ends the process when the worker has ended and a handler keeps the event loop, or one of its threads, from it.

    Leaving the event loop waits for every task and thread without a bound, and nothing in Python ends either of them.
    """

    def __init__(self, timeout_s: float) -> None:
        self.failed: BaseException | None = None
        """What the worker ended with."""
        self._timeout_s = timeout_s
        self._timer = threading.Timer(timeout_s, self._force)
        self._timer.daemon = True

    def expect(self) -> None:
        self._timer.start()

    def came(self) -> None:
        self._timer.cancel()

    def _force(self) -> None:
        if isinstance(self.failed, PenstockError):
            note(str(self.failed))
        note(
            f"PEN0628 A handler did not end within stop_timeout = {self._timeout_s:g} s of being cancelled, so the "
            "process ends without it. Nothing is lost: its message is processed again at the next start. Let handlers "
            "pass asyncio.CancelledError on, and give blocking calls a timeout."
        )
        os._exit(EXIT_AT_ONCE)


def say_stopping() -> None:
    note("Stopping after a last checkpoint; once more ends at once.")


def end_at_once() -> None:
    note("Ended at once. Nothing is lost: the next start restores the last checkpoint.")
    os._exit(EXIT_AT_ONCE)
