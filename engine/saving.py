"""Savepoints that are being taken of a running application, for those who asked and look how far it has come.

What always holds: one is taken at a time; how it ended is kept until the next one begins. A savepoint takes as long as
its bytes do, which is longer than anybody should wait for an answer: so there is one answer when it begins, and
others on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from penstock.checkpoint.savepoint import Savepoint
from penstock.engine.savepoints import default_place, summarize
from penstock.engine.told import told
from penstock.errors import InvalidInput, PenstockError, Refused, Unavailable


class Saving:
    """See the module. `take` copies everything to a place; without a place it goes below `directory`."""

    def __init__(
        self, take: Callable[[str], Coroutine[Any, Any, Savepoint]], application: str, directory: Path
    ) -> None:
        self._take = take
        self._application = application
        self._directory = directory
        self._number = int(time.time() * 1000)
        """Of the newest. It begins with the time: workers behind one address have numbers of their own."""
        self._place = ""
        self._running: asyncio.Task[Savepoint] | None = None

    def begin(self, place: str | None) -> int:
        """Begin to take one, and return its number. Raises Refused while another one is being taken."""
        if self._running is not None and not self._running.done():
            raise Refused(
                "PEN0438",
                f"A savepoint is being taken already, to {self._place}. Wait until it is there, and ask again.",
            )
        place = place or default_place(self._directory, self._application, int(time.time() * 1000))
        self._place = place
        self._number += 1
        self._running = asyncio.get_running_loop().create_task(self._take(place))
        self._running.add_done_callback(_looked_at)
        return self._number

    def state(self, number: int) -> dict[str, Any]:
        """How far it is: `done`, and then the savepoint, or why there is none. Raises InvalidInput."""
        if number != self._number or self._running is None:
            raise InvalidInput(
                "PEN0439",
                f"Nothing is known of savepoint {number}: a later one was taken, or the application was started anew. "
                "Look whether it is there: penstock savepoint list.",
            )
        state: dict[str, Any] = {"done": self._running.done(), "place": self._place, "savepoint": None, "error": None}
        if not self._running.done():
            return state
        error = self._running.exception() if not self._running.cancelled() else asyncio.CancelledError()
        if error is None:
            return state | {"savepoint": summarize(self._place, self._running.result())}
        return state | {"error": _described(error)}


def _looked_at(ended: asyncio.Task[Savepoint]) -> None:
    """Nobody need ask how it ended."""
    if not ended.cancelled():
        ended.exception()


def _described(error: BaseException) -> dict[str, str]:
    if not isinstance(error, PenstockError):
        error = Unavailable("PEN0440", f"No savepoint was taken: {error!r}. Try again.")
    return told(error)
