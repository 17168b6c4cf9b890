"""Reads the ingresses of an application, each by one process at a time, and keeps their records as messages.

    claim -> read a chunk -> keep its messages -> keep the position behind it -> read the next

What always holds: a position is kept when everything before it is; a record that is read again, because a process was
killed in between, makes the same messages under the same keys, so that it has its effect once; messages to one address
are delivered in the order of their records. A record that is no message becomes a dead letter. Reading waits while the
outbox is full.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from penstock.errors import ConfigurationError, Fenced, FunctionError, PenstockError, Unavailable
from penstock.functions.app import App, Ingress
from penstock.functions.io import FileIngress, GeneratorIngress, MemoryIngress
from penstock.logs import logger
from penstock.mesh.outbox import Outbox
from penstock.mesh.store import Commit, Outgoing, RejectedRecord, Store
from penstock.router.ingress import Chunk, Reader, reader_for
from penstock.router.routing import RoutedChunk, compile_router

RECORDS_MAX: Final = 500
"""In one transaction."""
CLAIM_S: Final = 1.0
"""Between two attempts to claim what another has."""
CONGESTED_S: Final = 0.05
BACKOFF_S: Final = 1.0


def check_ingress(ingress: Ingress) -> None:
    """Raise ConfigurationError for one that can't be read here."""
    if not isinstance(ingress.spec, FileIngress | GeneratorIngress | MemoryIngress):
        raise ConfigurationError(
            "PEN0827",
            f"Ingress {ingress.name} is a {type(ingress.spec).__name__}, whose positions belong to checkpoints, and "
            "the mesh has none. Send the records to the gateway, or run the application with penstock run.",
        )


class Feed:
    """One ingress. `done` when its input has ended and everything of it is kept, by this process or another."""

    def __init__(
        self, app: App, ingress: Ingress, store: Store, session: int, outbox: Outbox, *, message_bytes_max: int
    ) -> None:
        self.name = ingress.name
        self.done = False
        self.records = 0
        """Read since the start."""
        self.failed: PenstockError | None = None
        """What ended it."""
        self._spec = ingress.spec
        self._router = compile_router(app, ingress, message_bytes_max)
        self._store = store
        self._session = session
        self._outbox = outbox

    async def run(self) -> None:
        """Read to the end of the input. Raises Fenced when the session was. An input that can't be read ends it."""
        try:
            while not await self._claimed():
                self.done = _is_done(await self._store.position(self.name))
                await asyncio.sleep(CLAIM_S)
            self.done = False
            while not self.done:
                await self._read_on()
        except Fenced:
            raise
        except PenstockError as error:
            self.failed = error
            logger.error("Ingress %s has ended: %s", self.name, error)

    async def _claimed(self) -> bool:
        try:
            return await self._store.claim(self._session, f"ingress {self.name}")
        except Unavailable as error:
            logger.warning("Ingress %s: %s", self.name, error)
            return False

    async def _read_on(self) -> None:
        """Read from the position that is kept, to the end or until the store does not answer."""
        reader = await self._opened()
        try:
            while not self.done:
                await self._step(reader)
        except Unavailable as error:
            logger.warning("Ingress %s: %s", self.name, error)
            await asyncio.sleep(BACKOFF_S)
        finally:
            await reader.close()

    async def _opened(self) -> Reader:
        kept = await self._store.position(self.name)
        reader = reader_for(self._spec)
        try:
            reader.seek(None if kept is None else kept["at"])
        except BaseException:
            await reader.close()
            raise
        return reader

    async def _step(self, reader: Reader) -> None:
        """Keep the next records, or wait until there are some."""
        if self._outbox.congested:
            await asyncio.sleep(CONGESTED_S)
            return
        chunk = _read(self.name, reader)
        if chunk is None:
            await reader.wait_ready()
            return
        routed = self._router.route_chunk(chunk.records, chunk.first, reader.locate)
        for commit in self._commits(routed, chunk.first):
            committed = await self._store.commit(commit)
            self._outbox.add(committed.kept)
        rejected = [self._rejected(chunk, index, error, reader) for index, error in routed.errors]
        kept = {"at": chunk.position, "done": chunk.done}
        await self._store.keep_position(self._session, self.name, kept, rejected, time.time_ns() // 1_000_000)
        self.records += len(chunk.records)
        self.done = chunk.done

    def _commits(self, routed: RoutedChunk, first: int) -> list[Commit]:
        """One for each function type. What is sent to one address is one lane, whatever chunk it comes with."""
        outgoing: dict[str, list[Outgoing]] = {}
        before, index = -1, 0
        for (typename, id, payload, headers), owner in zip(routed.messages, routed.owners, strict=True):
            index = index + 1 if owner == before else 0
            before = owner
            key = f"ingress {self.name}:{first + owner}:{index}"
            message = Outgoing(typename, id, payload, key, headers=dict(headers or {}), outside=True)
            outgoing.setdefault(typename, []).append(message)
        sender = f"ingress {self.name}"
        return [Commit(self._session, typename, sender, outgoing=some) for typename, some in outgoing.items()]

    def _rejected(self, chunk: Chunk, index: int, error: PenstockError, reader: Reader) -> RejectedRecord:
        record = chunk.records[index]
        raw = getattr(record, "raw", record)
        data = raw if isinstance(raw, bytes) else repr(raw).encode()
        return RejectedRecord(self.name, reader.locate(chunk.first + index), data, str(error))


def _read(name: str, reader: Reader) -> Chunk | None:
    try:
        return reader.read(RECORDS_MAX)
    except PenstockError:
        raise
    except Exception as error:
        raise FunctionError(
            "PEN0226",
            f"Ingress {name} failed with {type(error).__name__}: {error}. Correct what it names and start again: it is "
            "read on from the last position.",
        ) from error


def _is_done(position: Any) -> bool:
    return position is not None and bool(position["done"])
