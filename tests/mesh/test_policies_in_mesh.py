"""The policies around real hosts: what is retried, copied, held up and refused, and what that leaves in the store."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import State
from penstock.ids import Address
from penstock.mesh.caller import Caller, NoAnswer
from penstock.mesh.edges import OUTSIDE, EdgeName, Edges
from penstock.mesh.policies.host import Host as Somewhere
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.policy_file import read_policies
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.wire import Reply, Request
from tests.mesh.hosting import Bench, bench_of

app = App("shop")


class Account(State):
    charged: int = 0


@app.function("shop/payment")
def payment(ctx: Context[Account], amount: int) -> int:
    ctx.state.charged += amount
    return ctx.state.charged


class Relay:
    """The way to the hosts, on which replies may be lost after the host has done its work."""

    def __init__(self) -> None:
        self.benches: dict[str, Bench] = {}
        self.lost = 0
        self.seen: list[str] = []
        self.has_copied = asyncio.Event()

    async def send(self, endpoint: Somewhere, request: Request, timeout_s: float | None) -> Reply:
        reply = await self.benches[endpoint.name].host.handle(request)
        self.seen.append(f"{endpoint.name}{' shadow' if request.shadow else ''}")
        if request.shadow:
            self.has_copied.set()
        if self.lost:
            self.lost -= 1
            raise NoAnswer(Failure.RESET)
        return reply


class Shop:
    """Two hosts of different versions over one store, and somebody who calls them."""

    def __init__(self, relay: Relay, caller: Caller, edges: Edges) -> None:
        self.relay = relay
        self.edges = edges
        self._caller = caller

    async def charge(self, amount: int, *, key: str = "") -> Reply:
        return await self._caller.call(Request(Address("shop/payment", "ada"), msgspec.msgpack.encode(amount), key=key))

    async def charged(self) -> int:
        """What is in the store."""
        bench = self.relay.benches["old"]
        return int(await bench.value("shop/payment", "ada", 0))


async def _with_shop(directory: Path, policies: PolicySet, test: Callable[[Shop], Awaitable[None]]) -> None:
    relay, registry, edges = Relay(), LocalRegistry(), Edges()
    await registry.open()
    for name, version in (("old", "v1"), ("new", "v2")):
        relay.benches[name] = await bench_of(app, directory, policies=policies)
        await registry.register(Endpoint(name, "", version, ready=True), 60)
    live = Policies(policies, stateful=["shop/payment"], draw=random.Random(1).random)
    try:
        await test(Shop(relay, Caller(registry, live, relay, edges), edges))
    finally:
        for bench in relay.benches.values():
            await bench.store.close()
        await registry.close()


def under(text: str) -> Callable[[Callable[[Shop], Awaitable[None]]], Callable[[Path], None]]:
    """Run a test with hosts under these policies."""

    def decorate(test: Callable[[Shop], Awaitable[None]]) -> Callable[[Path], None]:
        @functools.wraps(test)
        def run(tmp_path: Path) -> None:
            asyncio.run(_with_shop(tmp_path, read_policies(text), test))

        del run.__wrapped__  # pytest would look for a fixture `shop`.
        return run

    return decorate


@under("")
async def test_a_reply_that_is_lost_after_the_effect_is_asked_for_again_and_the_effect_is_there_once(
    shop: Shop,
) -> None:
    shop.relay.lost = 1

    reply = await shop.charge(30, key="order-7")

    assert reply.status == 200
    assert len(shop.relay.seen) == 2
    assert await shop.charged() == 30


@under("routes: [{retries: {retry_on: reset}}]")
async def test_without_a_key_the_same_charges_twice(shop: Shop) -> None:
    """The damage the key is for: it appears as soon as the protection is off."""
    shop.relay.lost = 1

    assert (await shop.charge(30)).status == 200

    assert await shop.charged() == 60


@under("")
async def test_without_a_key_it_is_not_tried_again_unless_somebody_asks_for_that(shop: Shop) -> None:
    shop.relay.lost = 1

    reply = await shop.charge(30)

    assert reply.status == 503
    assert b"PEN0849" in reply.body
    assert await shop.charged() == 30


@under("routes: [{split: [{subset: v1}], mirror: {subset: v2}}]")
async def test_a_copy_runs_on_the_other_version_and_leaves_nothing_behind(shop: Shop) -> None:
    reply = await shop.charge(30)
    await shop.relay.has_copied.wait()

    assert reply.status == 200
    assert sorted(shop.relay.seen) == ["new shadow", "old"]
    assert await shop.charged() == 30


@under("routes: [{fault: {delay: {percentage: 100, fixed_delay: 50ms}}}]")
async def test_a_request_that_is_held_up_is_done_after_that(shop: Shop) -> None:
    began_s = time.monotonic()

    assert (await shop.charge(30)).status == 200

    assert time.monotonic() - began_s >= 0.05


@under("routes: [{timeout: 10ms, fault: {delay: {percentage: 100, fixed_delay: 50ms}}}]")
async def test_a_request_whose_time_is_over_while_it_is_held_up_is_never_done(shop: Shop) -> None:
    reply = await shop.charge(30)

    assert reply.status == 504
    assert await shop.charged() == 0


@under("routes: [{fault: {abort: {percentage: 100, http_status: 503}}}]")
async def test_a_fault_is_tried_again_like_a_failure_of_a_host(shop: Shop) -> None:
    assert (await shop.charge(30)).status == 503
    assert len(shop.relay.seen) == 1

    assert (await shop.charge(30, key="order-7")).status == 503
    assert len(shop.relay.seen) == 4


@under(
    "functions: {shop/payment: {rate_limit: {token_bucket: {max_tokens: 1, fill_interval: 60s}}}}\n"
    "routes: [{retries: {attempts: 0}}]"
)
async def test_what_is_beyond_the_rate_is_refused_with_the_time_to_come_back(shop: Shop) -> None:
    assert (await shop.charge(30)).status == 200

    reply = await shop.charge(30)

    assert (reply.status, reply.refused) == (429, True)
    assert reply.retry_after_s is not None
    assert 0 < reply.retry_after_s <= 60


@under("")
async def test_the_actual_and_the_effective_success_are_told_apart(shop: Shop) -> None:
    shop.relay.lost = 1
    await shop.charge(30, key="order-7")

    edge = shop.edges.known[EdgeName(OUTSIDE, "shop/payment")]
    assert (edge.effective_success_rate, edge.actual_success_rate) == (1.0, 0.5)
