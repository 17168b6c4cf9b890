"""A host without HTTP, over a store of files, whose messages are kept for the test to look at."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import PenstockError
from penstock.functions.app import App
from penstock.ids import Address
from penstock.mesh.host import Host, HostOptions
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Kept, Store
from penstock.mesh.wire import Kind, Reply, Request, error_of, value_of


class Bench:
    """The host, and what a test does with it. What handlers call is carried out by the same host."""

    def __init__(self, host: Host, store: Store, session: int) -> None:
        self.host = host
        self.store = store
        self.session = session
        self.kept: list[Kept] = []
        self.called: list[Request] = []

    def request(self, typename: str, id: str, message: Any = None, **fields: Any) -> Request:
        return Request(Address(typename, id), msgspec.msgpack.encode(message), **fields)

    async def ask(self, typename: str, id: str, message: Any = None, **fields: Any) -> Reply:
        return await self.host.handle(self.request(typename, id, message, **fields))

    async def value(self, typename: str, id: str, message: Any = None, **fields: Any) -> Any:
        return value_of(await self.ask(typename, id, message, **fields), f"{typename}/{id}")

    async def error(self, typename: str, id: str, message: Any = None, **fields: Any) -> tuple[int, PenstockError]:
        reply = await self.ask(typename, id, message, **fields)
        assert reply.status != 200
        return reply.status, error_of(reply, f"{typename}/{id}")

    async def version(self, typename: str, id: str) -> int:
        return (await self.store.load(typename, id)).version

    async def call(self, request: Request) -> Reply:
        self.called.append(request)
        return await self.host.handle(request)


class _Kept:
    def __init__(self, bench: Callable[[], Bench]) -> None:
        self._bench = bench

    def add(self, kept: Sequence[Kept]) -> None:
        self._bench().kept.extend(kept)

    def wake(self, due_ms: int) -> None:
        pass


def _calling(made: list[Bench]) -> Callable[[Request], Awaitable[Reply]]:
    async def call(request: Request) -> Reply:
        return await made[0].call(request)

    return call


def draw_half() -> float:
    return 0.5


async def bench_of(
    app: App,
    directory: Path,
    *,
    policies: PolicySet | None = None,
    options: HostOptions | None = None,
    only: frozenset[str] = frozenset(),
) -> Bench:
    store = SqliteStore(directory)
    session = await store.begin_session("test")
    made: list[Bench] = []
    host = Host(
        app,
        store,
        session,
        Policies(policies or PolicySet(), draw=draw_half),
        _calling(made),
        _Kept(lambda: made[0]),
        options=options or HostOptions(),
        only=only,
    )
    made.append(Bench(host, store, session))
    return made[0]


def hosted(app: App, **options: Any) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Path], None]]:
    """Run a test in an event loop of its own, with a host of `app`."""

    def decorate(test: Callable[[Bench], Awaitable[None]]) -> Callable[[Path], None]:
        @functools.wraps(test)
        def run(tmp_path: Path) -> None:
            async def call() -> None:
                bench = await bench_of(app, tmp_path, **options)
                try:
                    await test(bench)
                finally:
                    await bench.store.close()

            asyncio.run(call())

        del run.__wrapped__  # pytest would look for a fixture `bench`.
        return run

    return decorate


def in_ms(milliseconds: float) -> float:
    """A deadline."""
    return time.monotonic() + milliseconds / 1000


__all__ = ["Bench", "Kind", "bench_of", "hosted", "in_ms"]
