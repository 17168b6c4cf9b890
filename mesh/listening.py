"""Accepts connections under an identity: mutual TLS, and in PERMISSIVE mode plain ones beside it on the same port.

What always holds: the first byte of a connection decides which of the two it is, and it is not taken from it; each
connection begins with the credentials of its moment; one that is refused, slow or malformed disturbs no other, and its
reason is said once in a while rather than for each. Knows nothing of what is spoken: that is the protocol it is given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from penstock.mesh.identity import Identity, reason
from penstock.mesh.policies.settings import TlsMode

log = logging.getLogger("penstock")

FIRST_BYTE_S: Final = 10.0
"""A connection over which nothing comes for so long is closed: nobody opens one without having something to say."""
HANDSHAKE_S: Final = 10.0
ACCEPT_AGAIN_S: Final = 0.5
"""After the system had no descriptor for a connection; meanwhile others may be closed."""
SAY_AGAIN_S: Final = 60.0
_HANDSHAKE: Final = b"\x16"
"""The type of the record that every TLS connection begins with. No method of HTTP does."""

_REFUSAL_BODY: Final = json.dumps(
    {
        "code": "PEN0875",
        "message": "This port takes mutual TLS alone. Connect with a certificate of its trust domain; the TLS mode "
        "PERMISSIVE lets plain connections in.",
        "path": None,
    }
).encode()
_REFUSAL: Final = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
    % (len(_REFUSAL_BODY), _REFUSAL_BODY)
)


class Listening:
    """Hands every connection of `listener` to a protocol from `protocols`, such as the `server` of an aiohttp runner,
    which also closes them."""

    def __init__(
        self,
        listener: socket.socket,
        protocols: Callable[[], asyncio.BaseProtocol],
        identity: Identity,
        mode: TlsMode,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert mode is not TlsMode.DISABLE, "without TLS the server listens by itself"
        self._listener = listener
        self._protocols = protocols
        self._identity = identity
        self._mode = mode
        self._clock = clock
        self._beginning: set[asyncio.Task[None]] = set()
        """Connections that no protocol has yet."""
        self._accepting: asyncio.Task[None] | None = None
        self._said: dict[str, float] = {}

    async def start(self) -> None:
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Accept no more. Connections that a protocol has go on."""
        tasks = [*self._beginning, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, place = await loop.sock_accept(self._listener)
            except OSError as error:
                self._say("accept", f"PEN0874 No connection can be accepted at the moment: {error}.")
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            task = loop.create_task(self._begin(connection, str(place[0])))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket, place: str) -> None:
        connection.setblocking(False)
        handed_over = False
        try:
            async with asyncio.timeout(FIRST_BYTE_S):
                first = await _peeked(connection)
            if first == _HANDSHAKE:
                await self._protected(connection)
                handed_over = True
            elif first and self._mode is TlsMode.PERMISSIVE:
                await asyncio.get_running_loop().connect_accepted_socket(self._protocols, connection)
                handed_over = True
            elif first:
                await _refuse(connection)
        except ssl.SSLError as error:
            self._say(
                place, f"PEN0874 A connection from {place} was refused: {reason(error)}. Compare the certificates."
            )
        except OSError:  # Among them TimeoutError.
            pass  # It ended before it began; whoever it was knows.
        finally:
            if not handed_over:
                connection.close()

    async def _protected(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            self._protocols, connection, ssl=self._identity.server, ssl_handshake_timeout=HANDSHAKE_S
        )

    def _say(self, about: str, line: str) -> None:
        now_s = self._clock()
        if now_s - self._said.get(about, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said = {one: said_s for one, said_s in self._said.items() if now_s - said_s < SAY_AGAIN_S}
            self._said[about] = now_s
            log.warning("%s", line)


async def _peeked(connection: socket.socket) -> bytes:
    """The first byte, which stays where it is; none when the other end has closed."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await readable
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


async def _refuse(connection: socket.socket) -> None:
    """Answer in the clear, since that is how it was asked."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, _REFUSAL)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        # What it sent is read: closed with unread bytes, the connection would be reset before the answer is seen.
        async with asyncio.timeout(1):
            while await loop.sock_recv(connection, 65536):
                pass
