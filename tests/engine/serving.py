"""A worker with its HTTP interface in this process, on a free port, and a client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from penstock import App
from penstock.engine.config import Config
from penstock.engine.http import HttpServer
from penstock.engine.worker import Worker


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Client:
    """Sends requests whose paths are taken as they are written."""

    worker: Worker
    server: HttpServer
    url: str
    session: aiohttp.ClientSession

    async def request(self, method: str, path: str, data: bytes | str | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, URL(f"{self.url}{path}", encoded=True), data=data, headers=named
        ) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, **headers)

    async def post(self, path: str, data: bytes | str | None = None, **headers: str) -> Answer:
        return await self.request("POST", path, data, **headers)


@asynccontextmanager
async def serving(app: App, directory: Path, **settings: Any) -> AsyncIterator[Client]:
    """Run `app` and serve it until the block ends; then stop in an orderly way."""
    worker = Worker(app, Config(directory=directory, port=0, **{"interval_ms": 20, **settings}))
    server = HttpServer(worker)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def started() -> None:
        url.set_result(await server.start())

    running = asyncio.ensure_future(worker.run(started))
    await until(lambda: running.done() or url.done())
    if running.done():
        await running
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(worker, server, await url, session)
    finally:
        worker.stop()
        await running
        await server.close()


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop go on until something holds. The time limit of the test bounds it."""
    while not holds():  # noqa: ASYNC110  # What is waited for announces itself to nobody.
        await asyncio.sleep(0)
