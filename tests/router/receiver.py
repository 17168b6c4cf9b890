"""A server of HTTP to send rows to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Receiver:
    """A server that keeps what it gets and answers what it is told to, then 200."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes, str]] = []
        self.headers: list[Any] = []
        self.answers: list[web.Response | None] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, await request.read(), request.headers["Idempotency-Key"]))
        self.headers.append(request.headers)
        if not self.answers:
            return web.Response()
        answer = self.answers.pop(0)
        if answer is None:  # No answer at all.
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return answer


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/rows", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/rows"
    try:
        yield receiver
    finally:
        await runner.cleanup()
