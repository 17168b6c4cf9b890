"""A bank: two hosts of one identity over one store, and a gateway before them, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import State
from penstock.ids import Address
from penstock.mesh.caller import Caller
from penstock.mesh.doing import Looks
from penstock.mesh.edges import Edges
from penstock.mesh.gateway import Gateway
from penstock.mesh.gateway_door import Door
from penstock.mesh.host import functions_of
from penstock.mesh.identity import Identity
from penstock.mesh.node import Node
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import TlsMode
from penstock.mesh.policy_file import read_policies
from penstock.mesh.registry import Endpoint, LocalRegistry, Registry
from penstock.mesh.server import HostServer
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.transport import HttpTransport
from penstock.mesh.wire import Reply, Request
from tests.mesh.authorities import authority, identity

app = App("bank")
HOSTS, CLERK, THIEF = (f"spiffe://demo.local/ns/default/sa/{name}" for name in ("hosts", "clerk", "thief"))
ADA = Address("bank/account", "ada")


class Account(State):
    paid: int = 0
    told_by: str = ""


@app.function("bank/account")
def account(ctx: Context[Account], amount: int) -> int:
    ctx.state.paid += amount
    ctx.state.told_by = "" if ctx.caller is None else str(ctx.caller)
    return ctx.state.paid


@app.function("bank/teller")
def teller(ctx: Context[None], id: str) -> None:
    ctx.send(account, id, 5)


class Bank:
    """Two hosts of one identity over one store, which reach one another over mutual TLS, or in the clear."""

    def __init__(self, folder: Path, rules: str, *, protected: bool, registry: Registry | None = None) -> None:
        self._folder = folder
        self._protected = protected
        self._authority = authority(folder / "ca") if protected else None
        self._policies = Policies(read_policies(rules), draw=lambda: 0.5)
        self.store = SqliteStore(folder / "store")
        self.registry: Registry = registry or LocalRegistry()
        self.endpoints: list[Endpoint] = []
        self.nodes: list[Node] = []
        self.url = ""
        """Of the gateway, for programs."""

    @property
    def _mode(self) -> TlsMode:
        return TlsMode.STRICT if self._protected else TlsMode.DISABLE

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr("penstock.mesh.gateway_door.UNNOTICED_S", 0.0)
            stack.push_async_callback(self.store.close)
            await self.registry.open()
            for _ in range(2):
                await self._start(stack)
            await self._start_gateway(stack)
            yield

    async def _start(self, stack: AsyncExitStack) -> None:
        own = self.identity("hosts")
        transport = HttpTransport(own)
        stack.push_async_callback(transport.close)
        node = Node(app, self.store, self.registry, self._policies, transport=transport, identity=own)
        await node.start()
        server = HostServer(node.host, body_bytes_max=1_000, identity=own, tls=self._mode)
        port = await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.close)
        url = f"http{'s' if self._protected else ''}://127.0.0.1:{port}"
        await node.announce(url)
        stack.push_async_callback(node.close)
        self.endpoints.append(Endpoint(node.name, url))
        self.nodes.append(node)

    async def _start_gateway(self, stack: AsyncExitStack) -> None:
        own, functions = self.identity("hosts"), functions_of(app, 1_000)
        transport = HttpTransport(own)
        stack.push_async_callback(transport.close)
        gateway = Gateway(
            app,
            functions,
            Caller(self.registry, self._policies, transport, Edges()),
            self.store,
            Looks(self.registry, functions, transport),
            host="127.0.0.1",
            token="secret",  # Who comes by the door needs none.
            message_bytes_max=1_000,
            ready=lambda: "",
            pages={},
            speaks_for_others=True,
        )
        self.url = await gateway.start(0)
        stack.push_async_callback(gateway.close)
        door = Door(
            app,
            gateway.messages,
            self.registry,
            self._policies,
            host="127.0.0.1",
            body_bytes_max=1_000,
            identity=own,
            tls=self._mode,
        )
        await door.start("127.0.0.1")
        stack.push_async_callback(door.close)
        stack.push_async_callback(door.leave)

    def identity(self, name: str) -> Identity | None:
        return None if self._authority is None else Identity(identity(self._authority, self._folder / name, name))

    async def ask(self, request: Request, *, by: str = "") -> Reply:
        """At the first host, whoever owns the address."""
        transport = HttpTransport(self.identity(by) if by else None)
        try:
            return await transport.send(self.endpoints[0], request, 10.0)
        finally:
            await transport.close()

    async def balance(self, id: str) -> Account:
        return msgspec.msgpack.decode((await self.store.load("bank/account", id)).value or b"\x80", type=Account)

    async def wait_paid(self, *ids: str) -> None:
        """Until all of them have something, or a message is a dead letter."""
        async with asyncio.timeout(30):
            while not all([(await self.balance(id)).paid for id in ids]):
                letters = await self.store.dead_letters()
                assert not letters, letters[0].reason
                await asyncio.sleep(0.01)
