"""One process of the mesh that carries out requests: store, host, caller and outbox, put together and taken apart.

    start -> announce -> ... -> drain -> close

What always holds: nobody is told of a host before it can carry out requests; one that drains is left by all before it
refuses anything, and ends only when what it has begun is done.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from os import getpid
from typing import Final

from penstock.functions.app import App
from penstock.logs import logger
from penstock.mesh.actuator import Health, Status
from penstock.mesh.caller import Caller, Transport
from penstock.mesh.edges import Edges
from penstock.mesh.host import DEFAULT_OPTIONS, Host, HostOptions
from penstock.mesh.policies.live import Policies
from penstock.mesh.registry import POLL_S, Endpoint, Lease, Registry
from penstock.mesh.store import Kept, Store
from penstock.mesh.transport import LocalTransport
from penstock.mesh.wire import KIND, PROMISE, Kind, Request

LEASE_S: Final = 5.0
"""How long a host that was killed may stay in views. Callers notice by themselves at once; this bounds how long the
messages it had kept wait for somebody else."""
UNNOTICED_S: Final = 2 * POLL_S
"""So long after a host has said that it wants no more requests, all callers know: one look, and the time it takes."""


class Node:
    """See the module."""

    def __init__(
        self,
        app: App,
        store: Store,
        registry: Registry,
        policies: Policies,
        *,
        transport: Transport | None = None,
        options: HostOptions = DEFAULT_OPTIONS,
        only: frozenset[str] = frozenset(),
        version: str = "",
        labels: Mapping[str, str] | None = None,
        zone: str = "",
    ) -> None:
        self.name = f"{socket.gethostname()}-{getpid()}-{secrets.token_hex(4)}"
        """Of this incarnation."""
        self.app = app
        self.store = store
        self.registry = registry
        self.policies = policies
        self.edges = Edges()
        self._options = options
        self._only = only
        self._version = version
        self._labels = labels or {}
        self._zone = zone
        self._transport = LocalTransport(transport)
        self._lease: Lease | None = None
        self._draining = False
        self.caller = Caller(registry, policies, self._transport, self.edges)
        self.session: int
        self.host: Host
        self._outbox: _Outbox

    async def start(self) -> None:
        """Be able to carry out requests. Raises ConfigurationError, and Unavailable when the store is not there."""
        self.session = await self.store.begin_session(self.name)
        self._outbox = _Outbox(self)
        self.host = Host(
            self.app,
            self.store,
            self.session,
            self.policies,
            self.caller.call,
            self._outbox,
            options=self._options,
            only=self._only,
        )
        self._transport.hosts[self.name] = self.host

    async def announce(self, url: str = "") -> None:
        """Let requests come. Without a URL from this process alone."""
        endpoint = Endpoint(
            self.name,
            url,
            self._version,
            self._labels,
            self._only,
            ready=True,
            session=self.session,
            zone=self._zone,
        )
        self._lease = await self.registry.register(endpoint, LEASE_S)

    async def drain(self, timeout_s: float, *, notice_s: float = UNNOTICED_S) -> None:
        """Let no more requests come, and finish those that have begun, for `timeout_s` at most."""
        self._draining = True
        if self._lease is not None:
            await self._lease.set_ready(False)
            await asyncio.sleep(notice_s)
        self.host.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.host.wait_quiet()
        except TimeoutError:
            logger.warning("%d requests were not done within %g s and are cut off.", self.host.active, timeout_s)

    async def close(self) -> None:
        """Leave. The store is closed by whoever opened it."""
        await self._outbox.close()
        if self._lease is not None:
            await self._lease.release()

    def health(self) -> Health:
        """Whether it carries out requests."""
        if self._lease is None:
            return Health(Status.INIT)
        details = {"active": self.host.active, "waiting": self.host.waiting}
        return Health(Status.DOWN if self._draining else Status.UP, details)

    def registry_health(self) -> Health:
        """What is seen of the others. A registry that is gone takes nobody out of the view, and no request down."""
        view = self.registry.view()
        return Health(Status.UP, {"endpoints": len(view.endpoints), "view": view.number})


class _Outbox:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, kept: Sequence[Kept]) -> None:
        task = asyncio.create_task(self._deliver(kept))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self, due_ms: int) -> None:
        pass

    async def _deliver(self, kept: Sequence[Kept]) -> None:
        for each in kept:
            out = each.outgoing
            from penstock.ids import Address

            await self._node.caller.call(
                Request(
                    Address(out.target, out.id),
                    out.payload,
                    Kind(out.headers.get(KIND, Kind.DELIVER.value)),
                    out.key,
                    caller=each.sender,
                    promise=out.headers.get(PROMISE, ""),
                )
            )
            await self._node.store.done(self._node.session, [each.number])

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
