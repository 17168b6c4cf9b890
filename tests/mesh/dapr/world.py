"""Applications in the language of HTTP, each with a sidecar, in one event loop."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from penstock.mesh.dapr.storage import Storage
from penstock.mesh.identity import Identity
from penstock.mesh.policies.live import Policies
from penstock.mesh.registry import Endpoint, Lease, LocalRegistry, Registry, View
from penstock.mesh.sidecar import Sidecar, SidecarOptions, policies_of_a_sidecar

ACCEPTING_TURNS = 5
"""Of the event loop, from a connection that is accepted to one that the server knows: two or three."""
Answering = Callable[["Asked"], web.Response | Awaitable[web.Response]]


class Asked(NamedTuple):
    """What an application was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class FakeApplication:
    """Answers by path, with 404 where nothing is set; remembers what it was asked."""

    def __init__(
        self,
        *,
        actors: Sequence[str] = (),
        subscriptions: Sequence[Mapping[str, Any]] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[str, Answering] = {}
        self.says("/dapr/config", {"entities": list(actors)} | dict(config or {}))
        self.says("/dapr/subscribe", list(subscriptions))
        self.port = 0
        self._news = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

    def says(self, path: str, value: object, *, status: int = 200) -> None:
        self.answers[path] = lambda _: web.json_response(value, status=status)

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer))
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        assert self._site is not None
        await self._site.stop()
        # A connection that was accepted a moment ago, as by a look of the sidecar, is not known to the server yet: it
        # would be left open, and be found by whichever test comes later.
        for _ in range(ACCEPTING_TURNS):
            await asyncio.sleep(0)
        await self._runner.cleanup()

    def asked_for(self, path: str) -> list[Asked]:
        return [each for each in self.asked if each.path.partition("?")[0] == path]

    async def is_asked_for(self, path: str, times: int = 1) -> list[Asked]:
        """As soon as it was asked for `path` so often."""
        async with asyncio.timeout(10):
            while len(found := self.asked_for(path)) < times:
                self._news.clear()
                await self._news.wait()
        return found

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = Asked(request.method, request.rel_url.raw_path_qs, request.headers, await request.read())
        self.asked.append(asked)
        self._news.set()
        answer = self.answers.get(request.path)
        if answer is None:
            return web.Response(status=404)
        said = answer(asked)
        return said if isinstance(said, web.Response) else await said


class _Shared:
    """One registry for several sidecars, which each take for theirs alone."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def open(self) -> None:
        """It is open."""

    async def close(self) -> None:
        """Others use it."""

    async def register(self, endpoint: Endpoint, ttl_s: float) -> Lease:
        return await self._registry.register(endpoint, ttl_s)

    async def forget(self, name: str) -> None:
        await self._registry.forget(name)

    def view(self) -> View:
        return self._registry.view()

    async def changed(self, number: int) -> View:
        return await self._registry.changed(number)


class World:
    """Makes sidecars over one registry and one folder."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.registry = LocalRegistry()
        self._stack = stack
        self._session: aiohttp.ClientSession | None = None

    async def sidecar(
        self,
        application: FakeApplication,
        app: str = "shop",
        *,
        policies: Policies | None = None,
        identity: Identity | None = None,
        **options: Any,
    ) -> Sidecar:
        """One beside `application`, that is ready."""
        await application.start()
        self._stack.push_async_callback(application.stop)
        sidecar = Sidecar(
            SidecarOptions(app=app, app_port=application.port, port=0, **options),
            _Shared(self.registry),
            policies or policies_of_a_sidecar(),
            Storage(self.folder),
            identity,
        )
        await sidecar.start()
        self._stack.push_async_callback(sidecar.close)
        await until(lambda: sidecar.ready)
        return sidecar

    async def ask(self, sidecar: Sidecar, method: str, path: str, body: object = None, **headers: str) -> Told:
        """A request of the application to its sidecar. Bytes are sent as they are, anything else as JSON."""
        if self._session is None:
            self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        data = body if isinstance(body, bytes | io.BytesIO) or body is None else msgspec.json.encode(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{sidecar.port}{path}"
        async with self._session.request(method, URL(url, encoded=True), data=data, headers=sent) as response:
            return Told(response.status, response.headers, await response.read())


class Told(NamedTuple):
    """What a sidecar answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.json["errorCode"]


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.mesh.sidecar.LOOK_S", 0.02)
        patch.setattr("penstock.mesh.sidecar.UNNOTICED_S", 0.0)
        patch.setattr("penstock.mesh.dapr.actors.POLL_S", 0.02)
        patch.setattr("penstock.mesh.dapr.topics.POLL_S", 0.02)
        async with AsyncExitStack() as stack:
            yield World(folder, stack)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - of several loops, none of which has reason to tell.
            await asyncio.sleep(0.005)
