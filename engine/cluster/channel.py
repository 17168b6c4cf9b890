"""What a supervisor and the processes it watches say to one another, over a socket of their own.

    supervisor: Order, then Stop, Gone      process: Serving, Working, Failed

What always holds: a message is a line of JSON; the end of the stream is the end of whoever was at the other side, in
whatever way, so nothing need be said about that; a process is never left without a supervisor: it ends at once, even
while its event loop is busy, and what it had not finished is done again by the next.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

LINE_BYTES_MAX: Final = 1 << 20
EXIT_ORPHANED: Final = 1


class Order(msgspec.Struct, frozen=True, tag="order"):
    """The first message: what the process is to do. Settings are read as the supervisor has read them, from `flags`."""

    role: str
    """`leader` or `worker`."""
    label: str
    """For people: `worker-0`."""
    name: str
    """Of a worker, or a leader, unique for ever."""
    flags: dict[str, Any]
    directory: str
    """Of all processes; a worker has one below it, which is called like its label."""
    port: int | None = None
    until_done: bool = False
    from_checkpoint: int | None = None
    fresh: bool = False


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End in an orderly way."""


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """To the leader: the process of this worker has ended."""

    worker: str
    reason: str


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """From a worker: its HTTP interface is at `url`."""

    url: str


class Working(msgspec.Struct, frozen=True, tag="working"):
    """It has begun to do what it is there for: a worker has its tasks."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """It ends in an orderly way; `done` when that is because all work is done, which no supervisor need tell it."""

    done: bool


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It ends because of this error."""

    kind: str
    """The class of the error."""
    code: str
    message: str


Down = Order | Stop | Gone
Up = Serving | Working | Finished | Failed

_encode = msgspec.json.Encoder().encode
_decode_down = msgspec.json.Decoder(Down).decode
_decode_up = msgspec.json.Decoder(Up).decode


class Watched:
    """The end of the process that is watched. It reads in a thread, which goes on while a handler keeps the loop."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._lines = self._socket.makefile("rb")

    def order(self) -> Order:
        """The first message."""
        message = _decode_down(self._read())
        assert isinstance(message, Order)
        return message

    def listen(self, told: Callable[[Down], None]) -> None:
        """Have the running event loop call `told` with each message from now on."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            while True:
                message = _decode_down(self._read())
                try:
                    loop.call_soon_threadsafe(told, message)
                except RuntimeError:
                    return  # The loop is closed: the process is about to end.

        threading.Thread(target=read, name="supervisor", daemon=True).start()

    def say(self, message: Up) -> None:
        with suppress(OSError):  # The other thread finds the supervisor gone, and ends this process.
            self._socket.sendall(_encode(message) + b"\n")

    def _read(self) -> bytes:
        try:
            line = self._lines.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            os._exit(EXIT_ORPHANED)
        return line


class Watching:
    """The supervisor's end. `descriptor` is for the process, and to be closed here once that is started."""

    def __init__(self) -> None:
        self._mine, theirs = socket.socketpair()
        self.theirs = theirs
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> asyncio.StreamReader:
        self.theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=self._mine, limit=LINE_BYTES_MAX)
        return reader

    def say(self, message: Down) -> None:
        """Tell the process, if it is still there."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_encode(message) + b"\n")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        else:
            self._mine.close()
            self.theirs.close()


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Up]:
    """What the process says, until it has ended."""
    while True:
        try:
            line = await reader.readline()
        except ConnectionError:
            return
        if not line.endswith(b"\n"):
            return
        yield _decode_up(line)
