"""A TCP relay that can be slow, cut off, and lose answers: what stands between a client and whoever serves it.

What always holds: bytes keep their order and none is invented; a cut holds them back, as a network that comes back
delivers what was sent again meanwhile; a lost answer is one that the server has given: its connection ends instead of
bringing it. Nothing here knows the time of a fault: others switch it on and off.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from enum import Enum
from typing import Final

BYTES_MAX: Final = 1 << 16
"""Read at once."""


class Way(Enum):
    THERE = "there"
    BACK = "back"


class Relay:
    """From a port of its own to `target`, a host and a port."""

    def __init__(self, target: tuple[str, int], *, seed: int = 0) -> None:
        self.target = target
        self.delay_s = 0.0
        """Of every piece, each way."""
        self.lost_share = 0.0
        """So many answers of a whole are lost."""
        self.lost = 0
        self.bytes = {Way.THERE: 0, Way.BACK: 0}
        self._chance = random.Random(seed)
        self._open = {way: asyncio.Event() for way in Way}
        for gate in self._open.values():
            gate.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None, "the relay is not open"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def cut(self, *ways: Way) -> None:
        """Let nothing through these ways until they are mended. So do new connections, if it is the way there."""
        for way in ways:
            self._open[way].clear()

    def is_open(self, way: Way) -> bool:
        return self._open[way].is_set()

    def mend(self, *ways: Way) -> None:
        """Let through what was held back, and all that comes."""
        for way in ways:
            self._open[way].set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # Either side may go at any time, and this is how a connection that is closed with the relay ends.
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open[Way.THERE].wait()
        other_reader, other_writer = await asyncio.open_connection(*self.target)
        pumps = [
            asyncio.create_task(self._pump(reader, other_writer, Way.THERE)),
            asyncio.create_task(self._pump(other_reader, writer, Way.BACK)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            other_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """Returns at the end of the connection, whichever side has ended it."""
        with suppress(OSError):
            while data := await reader.read(BYTES_MAX):
                if way is Way.BACK and self._chance.random() < self.lost_share:
                    self.lost += 1
                    return
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._open[way].wait()
                self.bytes[way] += len(data)
                writer.write(data)
                await writer.drain()
