"""What a process of the mesh does beside carrying out requests: messages, rows, ingresses and schedules.

What always holds: whatever ends this work is told by `failed`, and ends the process that it belongs to; what is not
done when it closes is for whoever adopts it, and nothing of it is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from penstock.errors import PenstockError, Refused
from penstock.functions.app import App
from penstock.mesh.delivery import delivering
from penstock.mesh.egresses import EgressWriter, check_egress
from penstock.mesh.feeds import Feed, check_ingress
from penstock.mesh.forgetting import KEEP_PROMISES_MS, Forgetting
from penstock.mesh.outbox import Outbox
from penstock.mesh.schedules import Scheduler
from penstock.mesh.store import Kept, Store
from penstock.mesh.wire import Reply, Request

DONE_POLL_S: Final = 0.2


class IngressEnded(Refused):
    """An ingress can't be read to its end, for the reason that the message tells."""


def check_edges(app: App) -> None:
    """Raise ConfigurationError for ingresses and egresses that can't be served here."""
    for ingress in app.ingresses.values():
        check_ingress(ingress)
    for egress in app.egresses.values():
        check_egress(egress)


class Background:
    """The work of one session. `call` carries a request to its address; `alive` tells the sessions at work."""

    def __init__(
        self,
        app: App,
        store: Store,
        session: int,
        call: Callable[[Request], Awaitable[Reply]],
        *,
        alive: Callable[[], Collection[int] | None],
        message_bytes_max: int,
        unseen_s: float = 15.0,
        keep_promises_ms: int = KEEP_PROMISES_MS,
    ) -> None:
        self._store = store
        self.outbox = Outbox(store, session, delivering(call), alive=alive, unseen_s=unseen_s)
        self.writers = [EgressWriter(egress, store, session, application=app.name) for egress in app.egresses.values()]
        self.feeds = [
            Feed(app, ingress, store, session, self.outbox, message_bytes_max=message_bytes_max)
            for ingress in app.ingresses.values()
        ]
        self._scheduler = Scheduler(app, store, session, self.outbox) if app.schedules else None
        self._forgetting = Forgetting(store, self.outbox, keep_promises_ms=keep_promises_ms)
        self._reading: list[asyncio.Task[None]] = []
        self._writing: list[asyncio.Task[None]] = []
        self._delivering: list[asyncio.Task[None]] = []
        self._upkeep: list[asyncio.Task[None]] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception that ended the work: await it, or look at it."""
        self.failed.add_done_callback(lambda failed: failed.cancelled() or failed.exception())

    def start(self) -> None:
        """Begin. Requests can be carried out before that, and what they ask for waits."""
        self._delivering = [self._begin(self.outbox.run())]
        self._upkeep = [self._begin(self._forgetting.run())]
        self._writing = [self._begin(writer.run()) for writer in self.writers]
        self._reading = [self._begin(feed.run()) for feed in self.feeds]
        if self._scheduler is not None:
            self._reading.append(self._begin(self._scheduler.run()))

    # As the host tells it: an `Outbox`.

    def add(self, kept: Sequence[Kept]) -> None:
        self.outbox.add(kept)

    def wake(self, due_ms: int) -> None:
        if due_ms:
            self.outbox.wake(due_ms)
        else:
            for writer in self.writers:
                writer.wake()

    # The end.

    async def wait_done(self) -> None:
        """Until every ingress has ended and all that followed from it is delivered and written.

        Raises IngressEnded for one that did not come to its end.
        """
        while not all(feed.done for feed in self.feeds) or any(await self._store.pending()):
            for feed in self.feeds:
                if feed.failed is not None:
                    raise IngressEnded(feed.failed.code, feed.failed.message) from feed.failed
            await asyncio.sleep(DONE_POLL_S)

    async def stop_reading(self) -> None:
        """Take no more records in."""
        reading, self._reading = self._reading, []
        await _end(reading)

    async def close(self) -> None:
        """End all of it: first what brings work, then what carries it on."""
        await self.stop_reading()
        await _end(self._upkeep)
        await self.outbox.close()
        await asyncio.gather(*self._delivering, return_exceptions=True)
        for writer, task in zip(self.writers, self._writing, strict=False):
            with suppress(PenstockError):
                await writer.close(task)
        self.failed.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel them and wait. However they end is told by `failed`."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
