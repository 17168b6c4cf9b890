"""Asks one HTTP server many things at once, over connections that are kept, with as little work as possible.

The load generator has to be on time at thousands of requests a second beside what it measures, on the same machine; a
general client takes five times the CPU. What always holds: a connection carries one request at a time; one that broke,
or whose answer was not waited for, is not used again. Speaks HTTP/1.1 as Penstock answers it: with a length.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple, cast

HEAD_END: Final = b"\r\n\r\n"


class Answer(NamedTuple):
    status: int
    body: bytes


class NoAnswer(Exception):
    """There is none. The text says why, in a word: `connect`, `reset` or `timeout`."""


class Connections:
    """To the server at `host` and `port`."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, headers: dict[str, str], timeout_s: float) -> Answer:
        """Raises NoAnswer."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join(lines).encode() + HEAD_END + body
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connection()
                try:
                    answer = await connection.ask(request)
                except BaseException:
                    connection.abort()
                    raise
        except TimeoutError:
            raise NoAnswer("timeout") from None
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        except OSError:
            raise NoAnswer("connect") from None
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.usable = True
        self._transport: asyncio.WriteTransport
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._received = b""
        self._transport.write(request)
        if not self.usable:
            raise NoAnswer("reset")
        return await answer

    def abort(self) -> None:
        self.usable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # Those of uvloop have no such base class.

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer("reset"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is None or self._answer.done():
            return self.abort()  # Nobody has asked for anything.
        head, end, body = self._received.partition(HEAD_END)
        if not end:
            return None
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = headers.get("content-length", "")
        if not length.isdecimal() or not lines[0].startswith("HTTP/1.1 "):
            self._answer.set_exception(NoAnswer("no-http"))
            return self.abort()
        if len(body) < int(length):
            return None
        if headers.get("connection", "").lower() == "close":
            self.usable = False
        self._answer.set_result(Answer(int(lines[0].split(" ")[1]), body))
        return None
