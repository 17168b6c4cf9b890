"""A reply is lost after the effect: under a key it is done once, and without one it is done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from penstock import App, Context, State
from penstock.ids import Address
from penstock.mesh.caller import NoAnswer, Transport
from penstock.mesh.node import Node
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure
from penstock.mesh.policies.settings import PolicySet, Retries, Route
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.wire import Reply, Request, value_of

app = App("lost")
CHARGE = Address("bank/account", "ada")
ALWAYS_AGAIN = PolicySet(routes=(Route(retries=Retries(retry_on=frozenset({"5xx", "reset"}))),))
"""Tries again whatever may have had its effect, also without a key. Nobody should say so of a function with effects."""


class Account(State):
    charged: int = 0
    reserved: int = 0


@app.function("bank/account")
def account(ctx: Context[Account], amount: int) -> int:
    ctx.state.charged += amount
    return ctx.state.charged


@app.function("bank/order")
async def order(ctx: Context[Account], amount: int) -> int:
    ctx.state.reserved += amount
    return await ctx.call(account, "ada", amount)


class Relay:
    """Cuts the connection before the first replies have come back. What was asked is done."""

    def __init__(self, cut: int) -> None:
        self.cut = cut
        self.hosts: dict[str, Node] = {}

    async def send(self, endpoint: Host, request: Request, timeout_s: float | None) -> Reply:
        reply = await self.hosts[endpoint.url].host.handle(request)
        if self.cut:
            self.cut -= 1
            raise NoAnswer(Failure.RESET)
        return reply


def charged(directory: Path, asked: Address, key: str, *, cut: int) -> tuple[int, int]:
    """The answer to a charge of 10, and what the account says, where `cut` replies are lost on their way."""

    async def run() -> tuple[int, int]:
        registry, store, relay = LocalRegistry(), SqliteStore(directory), Relay(cut)
        await registry.open()
        transport: Transport = relay
        policies = Policies(ALWAYS_AGAIN, stateful=["bank/account", "bank/order"], draw=lambda: 0.0)
        nodes = [Node(app, store, registry, policies, transport=transport) for _ in range(2)]
        for number, node in enumerate(nodes):
            await node.start()
            relay.hosts[f"http://h{number}"] = node
            await registry.register(Endpoint(f"h{number}", f"http://h{number}", ready=True, session=node.session), 1.0)
        caller = nodes[0].caller
        answer = value_of(await caller.call(Request(asked, b"\x0a", key=key)), str(asked))
        balance = value_of(await caller.call(Request(CHARGE, b"\x00")), str(CHARGE))
        for node in nodes:
            await node.close()
        await store.close()
        return answer, balance

    return asyncio.run(run())


def test_under_a_key_it_is_done_once(tmp_path: Path) -> None:
    assert charged(tmp_path, CHARGE, "order-7", cut=2) == (10, 10)


def test_without_a_key_it_is_done_as_often_as_it_is_tried(tmp_path: Path) -> None:
    """The damage that keys are there to prevent."""
    assert charged(tmp_path, CHARGE, "", cut=1) == (20, 20)


def test_what_a_handler_calls_has_a_key_that_follows_from_that_of_its_own_request(tmp_path: Path) -> None:
    assert charged(tmp_path, Address("bank/order", "7"), "order-7", cut=2) == (10, 10)
