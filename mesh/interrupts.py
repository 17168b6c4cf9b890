"""Ends a call where its handler waits, when whoever asked for it wants it no more.

What always holds: a handler is interrupted while it runs, never while what it did is committed; one that has not begun
does not begin. The interruption is `asyncio.CancelledError`, which a handler may catch to put things right, and answer
all the same; it is no cancellation of the task that carries the request out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.mesh.wire import Request


class Interrupt:
    """Of one request that is being carried out."""

    def __init__(self) -> None:
        self.requested = False
        self._task: asyncio.Task[object] | None = None

    def request(self) -> None:
        """Raise CancelledError in the handler, now or as soon as it begins."""
        self.requested = True
        if self._task is not None:
            self._task.cancel()
            self._task.uncancel()  # Nobody wants the task to end.

    @contextmanager
    def handler(self) -> Iterator[None]:
        """Around the handler."""
        if self.requested:
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        try:
            yield
        finally:
            self._task = None


class Interrupts:
    """Of all requests of a host that have a key."""

    def __init__(self) -> None:
        self._watched: dict[tuple[object, str], list[Interrupt]] = {}

    @contextmanager
    def watch(self, request: Request) -> Iterator[Interrupt]:
        """Around a request, from before it waits for its turn."""
        interrupt = Interrupt()
        if not request.key:
            yield interrupt
            return
        name = (request.address, request.key)
        self._watched.setdefault(name, []).append(interrupt)
        try:
            yield interrupt
        finally:
            self._watched[name].remove(interrupt)
            if not self._watched[name]:
                del self._watched[name]

    def interrupt(self, request: Request) -> None:
        """Interrupt what was asked under the address and key of `request`, if it is being carried out here."""
        for interrupt in self._watched.get((request.address, request.key), ()):
            interrupt.request()
