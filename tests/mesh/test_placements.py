"""In the caller's process or beside it: the same policies do the same for the same faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

from aiohttp import web

from penstock.ids import Address
from penstock.mesh.caller import Caller
from penstock.mesh.edges import Edges
from penstock.mesh.policies.live import Policies
from penstock.mesh.policy_file import read_policies
from penstock.mesh.registry import Endpoint, Registry
from penstock.mesh.transport import HttpTransport
from penstock.mesh.wire import Request
from tests.mesh.dapr.world import FakeApplication, World, world

FUNCTION = "app/payment"
POLICIES = """
functions:
  app/payment:
    lb: {policy: ROUND_ROBIN}
    breaker: {trip: "consecutiveFailures > 4", timeout: 60s, scope: function}
    outlier_detection: {consecutive_5xx: 2, max_ejection_percent: 34}
routes:
  - timeout: 5s
    retries: {attempts: 2, per_try_timeout: 300ms, backoff: {base_interval: 1ms}}
"""
CUT = 0
"""The host closes the connection in place of an answer."""
SLOW = 1
"""It takes longer than an attempt may."""
FAULTS = [503, 200, CUT, 500, 200, 500, SLOW, CUT, 200, 200, 503, 503, 500, 500, 500, 500, 500]


class Hosts:
    """Three hosts with one script of faults: whoever is asked next has the next one. Afterwards they answer 200."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._faults: Iterator[int] = iter(FAULTS)
        self._let_go = asyncio.Event()

    def again(self) -> None:
        """From the beginning of the script."""
        self.asked = []
        self._faults = iter(FAULTS)

    def answering(self, name: str) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            self.asked.append(name)
            status = next(self._faults, 200)
            if status == SLOW:
                await self._let_go.wait()
            if status in (CUT, SLOW):
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.Response(status=status)

        return answer

    @asynccontextmanager
    async def serving(self, registry: Registry) -> AsyncIterator[None]:
        runners = []
        for name in ("host-0", "host-1", "host-2"):
            runner = web.ServerRunner(web.Server(self.answering(name)))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            runners.append(runner)
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            await registry.register(Endpoint(name, url, functions=frozenset({FUNCTION}), ready=True), 60)
        try:
            yield
        finally:
            self._let_go.set()
            for runner in runners:
                await runner.cleanup()


class Seen(NamedTuple):
    """What one call has done."""

    asked: list[str]
    succeeded: bool


async def play(hosts: Hosts, call: Callable[[bool], Awaitable[int]]) -> list[Seen]:
    """Twelve calls, every third without a key."""
    hosts.again()
    seen = []
    for number in range(12):
        before = len(hosts.asked)
        status = await call(number % 3 != 2)
        seen.append(Seen(hosts.asked[before:], status == 200))
    return seen


def policies() -> Policies:
    return Policies(read_policies(POLICIES), draw=Random(1).random)


async def from_the_process_itself(hosts: Hosts, world: World) -> list[Seen]:
    transport = HttpTransport()
    caller = Caller(world.registry, policies(), transport, Edges())

    async def call(keyed: bool) -> int:
        return (await caller.call(Request(Address(FUNCTION, "7"), b"", key="key" if keyed else ""))).status

    try:
        return await play(hosts, call)
    finally:
        await transport.close()


async def from_beside_it(hosts: Hosts, world: World) -> list[Seen]:
    sidecar = await world.sidecar(FakeApplication(), "till", policies=policies())

    async def call(keyed: bool) -> int:
        headers = {"idempotency_key": "key"} if keyed else {}
        return (await world.ask(sidecar, "POST", "/v1.0/invoke/payment/method/charge", **headers)).status

    return await play(hosts, call)


def test_a_sidecar_does_what_the_library_does(tmp_path: Path) -> None:
    async def scenario() -> tuple[list[Seen], list[Seen]]:
        hosts = Hosts()
        async with world(tmp_path) as made, hosts.serving(made.registry):
            return await from_the_process_itself(hosts, made), await from_beside_it(hosts, made)

    inside, beside = asyncio.run(scenario())

    assert inside == beside
    assert [] in [each.asked for each in inside], "the breaker has opened"
    assert {len(each.asked) for each in inside} == {0, 1, 2, 3}
