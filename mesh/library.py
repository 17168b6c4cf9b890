"""The mesh in the caller's own process: `async with Mesh(app) as mesh: await mesh.call(cart, "alice", Add("tea"))`.

What always holds: the same host, the same policies and the same store as behind HTTP; with a `registry` the functions
run where it says, and this process only calls. A request without a key is given one, so that it is carried out once,
however often it is tried.
"""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.answers import encode_answer, read_answer
from penstock.functions.app import App
from penstock.functions.context import Target
from penstock.functions.function import Function
from penstock.ids import Address, is_utf8
from penstock.mesh.caller import Caller
from penstock.mesh.edges import Edges
from penstock.mesh.host import DEFAULT_OPTIONS, HostOptions, functions_of
from penstock.mesh.node import LEASE_S, Node
from penstock.mesh.options import HOME, REGISTRY
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.registry import Endpoint, LocalRegistry, Registry
from penstock.mesh.sqlite_registry import SqliteRegistry
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Store
from penstock.mesh.transport import HttpTransport
from penstock.mesh.wire import Kind, Reply, Request, error_of, for_handlers, new_key

M = TypeVar("M")
R = TypeVar("R")

DRAIN_S: Final = 30.0
NO_POLICIES: Final = PolicySet()


class Mesh:
    """See the module. State is kept in `directory`, or in `store`."""

    def __init__(
        self,
        app: App,
        *,
        directory: Path | str = HOME,
        store: Store | None = None,
        registry: Registry | None = None,
        policies: PolicySet = NO_POLICIES,
        options: HostOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._functions = functions_of(app, options.message_bytes_max)
        stateful = [name for name, function in self._functions.items() if function.has_state]
        self.policies = Policies(policies, stateful=stateful, draw=random.random)
        self._app = app
        self._store = store
        self._directory = Path(directory)
        self._registry: Registry = registry or LocalRegistry()
        self._transport = HttpTransport()
        self._options = options
        self._calls_others = registry is not None
        self._node: Node | None = None
        self._closing = AsyncExitStack()
        self.edges = Edges()
        self._caller = Caller(self._registry, self.policies, self._transport, self.edges)

    async def __aenter__(self) -> Mesh:
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._registry.close)
            closing.push_async_callback(self._transport.close)
            await self._registry.open()
            if not self._calls_others:
                await self._start_node(closing)
            self._closing = closing.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def wait_done(self) -> None:
        """Until every ingress has ended and all that followed from its records is delivered and written.

        Raises what ended an ingress before its end. With a registry, the functions run elsewhere: nothing to wait for.
        """
        if self._node is not None:
            await self._node.background.wait_done()

    async def _start_node(self, closing: AsyncExitStack) -> None:
        """Run the functions here. Others may do so on the same directory: leases beside the store tell who does. What
        is opened is left to `closing`, however far this comes."""
        store, leases = self._store, None
        if store is None:
            store = SqliteStore(self._directory)
            closing.push_async_callback(store.close)
            await store.open()
            leases = SqliteRegistry(self._directory / REGISTRY)
            closing.push_async_callback(leases.close)
            await leases.open()
        node = self._node = Node(
            self._app,
            store,
            self._registry,
            self.policies,
            transport=self._transport,
            options=self._options,
            alive=partial(_sessions_of, leases),
        )
        await node.start()
        if leases is not None:
            lease = await leases.register(Endpoint(node.name, "", session=node.session), LEASE_S)
            closing.push_async_callback(lease.release)
        closing.push_async_callback(_leave, node)
        await node.announce()
        self._caller, self.edges = node.caller, node.edges

    async def call(
        self,
        target: Function[M, R] | str,
        id: str,
        message: M,
        *,
        timeout: str | float | timedelta | None = None,  # noqa: ASYNC109  # It reads as ctx.call does.
        key: str = "",
        headers: dict[str, str] | None = None,
    ) -> R:
        """Send `message`, and wait for the answer. Ask again under the same `key` to have the same answer.

        Raises InvalidInput for what the function does not take, FunctionError when its handler failed, CallTimeout when
        the time was over, Refused when it may not be asked, Unavailable when nobody could be asked.
        """
        to, request = self._request(target, id, message, Kind.CALL, timeout, key, headers)
        reply = await self._ask(request)
        result: R = read_answer(to.reply_codec, str(request.address), reply.body)
        return result

    async def send(
        self,
        target: Function[M, Any] | str,
        id: str,
        message: M,
        *,
        key: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send `message`. Returns when it can't be lost any more; it is delivered soon. Raises as `call` does."""
        _, request = self._request(target, id, message, Kind.SEND, None, key, headers)
        await self._ask(request)

    async def resolve(self, target: Function[Any, Any] | str, id: str, name: str, value: Any = None) -> None:
        """Keep the promise `name` of an address. Raises as `call` does."""
        to = self._target(target)
        address = Address(to.typename, id)
        payload = encode_answer(address, value)
        await self._ask(Request(address, payload, Kind.RESOLVE, new_key(), promise=name))

    async def _ask(self, request: Request) -> Reply:
        reply = await self._caller.call(request)
        if reply.status != 200:
            raise error_of(reply, str(request.address))
        return reply

    def _request(
        self,
        target: Any,
        id: str,
        message: Any,
        kind: Kind,
        timeout: str | float | timedelta | None,
        key: str,
        headers: dict[str, str] | None,
    ) -> tuple[Target, Request]:
        to = self._target(target)
        if not id or not is_utf8(id):
            raise InvalidInput(
                "PEN0203", f"{id!r} is no id of {to.typename}. An id names one instance: give it some text."
            )
        if to.accepts is not None and type(message) not in to.accepts:
            raise InvalidInput(
                "PEN0107",
                f"{to.typename} cannot receive {type(message).__name__}; it takes {to.name}. Send what it takes.",
            )
        payload = to.encode(message)
        if len(payload) > to.bytes_max:
            raise InvalidInput(
                "PEN0204",
                f"The message for {to.typename}/{id} has {len(payload):,} bytes, more than message_bytes_max = "
                f"{to.bytes_max:,}. Keep large values elsewhere and send their key, or raise message_bytes_max.",
            )
        deadline_s = None if timeout is None else time.monotonic() + parse_duration(timeout) / 1000
        address = Address(to.typename, id)
        return to, Request(address, payload, kind, key or new_key(), deadline_s, headers=for_handlers(headers or {}))

    def _target(self, target: Any) -> Target:
        name = target if isinstance(target, str) else getattr(target, "typename", repr(target))
        function = self._functions.get(name)
        if function is None:
            known = ", ".join(sorted(self._functions)) or "none"
            raise ConfigurationError("PEN0105", f"{name} is no function of this application. Known: {known}.")
        return function


async def _leave(node: Node) -> None:
    await node.drain(DRAIN_S, notice_s=0)
    await node.close()


def _sessions_of(leases: Registry | None) -> frozenset[int] | None:
    """Who is at work on a store. None for one that was given: who else uses it is not known."""
    return None if leases is None else frozenset(endpoint.session for endpoint in leases.view().endpoints)
