"""Ends a call where its handler waits, when whoever asked for it wants it no more.

What always holds: a request is interrupted once, however often that is asked for, while it waits or its handler runs,
never while what it did is committed; one that was never begun does not begin, and one that was is run again up to where
it waits first, because what it did on the outside before is to be put right. The interruption is CancelledError of
asyncio, which a handler may catch, and answer all the same; it is no cancellation of the task that carries the request
out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from penstock.functions.durable import Wish
from penstock.ids import Address
from penstock.mesh.wire import Request

Waits: TypeAlias = Callable[[], Sequence[tuple[Wish, int]]]


class Interrupt:
    """Of one request that is being carried out."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.since_ms = time.time_ns() // 1_000_000
        self.waits: Waits = list
        """Asked for what its handler waits for, and since when."""
        self.requested = False
        self.begun = request.attempt > 1
        """Whether the handler has run, or may have on another host."""
        self.is_running = False
        self._task: asyncio.Task[object] | None = None
        """The one to be interrupted, where it can be."""
        self._cancelled: asyncio.Task[object] | None = None
        """The one that has been, as long as it may not have heard of it."""

    def interrupt(self) -> None:
        """Raise CancelledError in the handler, now or as soon as it waits; end any other wait."""
        if not self.requested:
            self.requested = True
            self._raise()

    @contextmanager
    def handler(self) -> Iterator[None]:
        """Around the handler."""
        if self.requested and not self.begun:
            raise asyncio.CancelledError
        self.begun = self.is_running = True
        self._task = asyncio.current_task()
        again = asyncio.get_running_loop().call_soon(self._raise) if self.requested else None
        try:
            yield
        finally:
            self.is_running, self._task = False, None
            self._take_back()
            if again is not None:
                again.cancel()

    async def wait(self, work: Awaitable[None]) -> bool:
        """Wait for something before the handler. False when the request was cancelled meanwhile."""
        task = self._task = asyncio.current_task()
        try:
            await work
        except asyncio.CancelledError:
            self._take_back()
            if not self.requested or (task is not None and task.cancelling()):
                raise
            return False
        finally:
            self._task = None
        return True

    def _raise(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._cancelled = self._task
            asyncio.get_running_loop().call_soon(self._take_back)

    def _take_back(self) -> None:
        """Nobody wants the task to end. From Python 3.13 on, what is taken back before the task has heard of it does
        not reach it."""
        if self._cancelled is not None:
            self._cancelled.uncancel()
            self._cancelled = None


class Interrupts:
    """Of all requests of a host."""

    def __init__(self) -> None:
        self._watched: dict[Address, list[Interrupt]] = {}

    @property
    def watched(self) -> Mapping[Address, Sequence[Interrupt]]:
        """What is carried out, or waits for that, at each address that is busy."""
        return self._watched

    @contextmanager
    def watch(self, request: Request) -> Iterator[Interrupt]:
        """Around a request, from before it waits for its turn."""
        interrupt = Interrupt(request)
        self._watched.setdefault(request.address, []).append(interrupt)
        try:
            yield interrupt
        finally:
            self._watched[request.address].remove(interrupt)
            if not self._watched[request.address]:
                del self._watched[request.address]

    def interrupt(self, request: Request) -> bool:
        """Interrupt what was asked of the address under the key of `request`, by the same identity; without a key,
        whatever runs there. Whether there is such a thing here."""
        found = [
            each
            for each in self._watched.get(request.address, ())
            if (each.is_running if not request.key else _is_of(each.request, request))
        ]
        for each in found:
            each.interrupt()
        return bool(found)


def _is_of(request: Request, cancellation: Request) -> bool:
    return (request.key, request.identity) == (cancellation.key, cancellation.identity)
