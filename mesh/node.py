"""One process of the mesh that carries out requests: store, host, caller and outbox, put together and taken apart.

    start -> announce -> ... -> drain -> close

What always holds: nobody is told of a host before it can carry out requests; one that drains is left by all before it
refuses anything, and ends only when what it has begun is done.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from os import getpid
from typing import Final

from penstock.errors import Unavailable
from penstock.functions.app import App
from penstock.logs import logger
from penstock.mesh.actuator import Health, Status
from penstock.mesh.background import Background, check_edges
from penstock.mesh.caller import Caller, Transport
from penstock.mesh.edges import Edges
from penstock.mesh.host import DEFAULT_OPTIONS, Host, HostOptions
from penstock.mesh.identity import Identity
from penstock.mesh.policies.live import Policies
from penstock.mesh.registry import POLL_S, Endpoint, Lease, Registry
from penstock.mesh.store import Store
from penstock.mesh.transport import LocalTransport

LEASE_S: Final = 5.0
"""How long a host that was killed may stay in views. Callers notice by themselves at once; this bounds how long the
messages it had kept wait for somebody else."""
UNSEEN_S: Final = 3 * LEASE_S
"""A session this old that no endpoint was ever seen with belongs to nobody: its host had the time to register, and to
be seen."""
QUIET_S: Final = 5.0
"""A host that is about to stop delivers its messages for so long."""
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
        identity: Identity | None = None,
        options: HostOptions = DEFAULT_OPTIONS,
        only: frozenset[str] = frozenset(),
        version: str = "",
        labels: Mapping[str, str] | None = None,
        zone: str = "",
        alive: Callable[[], Collection[int] | None] | None = None,
    ) -> None:
        """`alive` tells the sessions of the store that are at work, where the registry does not."""
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
        self._alive = alive
        self._identity = identity
        self._transport = LocalTransport(transport, identity)
        self._lease: Lease | None = None
        self._draining = False
        self.caller = Caller(registry, policies, self._transport, self.edges)
        self.session: int
        self.host: Host
        self.background: Background

    async def start(self) -> None:
        """Be able to carry out requests. Raises ConfigurationError, and Unavailable when the store is not there."""
        check_edges(self.app)
        self._say_migrations()
        self.session = await self.store.begin_session(self.name)
        self.background = Background(
            self.app,
            self.store,
            self.session,
            self.caller.call,
            alive=self._alive or self._sessions_in_view,
            message_bytes_max=self._options.message_bytes_max,
            unseen_s=UNSEEN_S,
            keep_promises_ms=self._options.keep_promises_ms,
        )
        self.host = Host(
            self.app,
            self.store,
            self.session,
            self.policies,
            self.caller.call,
            self.background,
            options=self._options,
            only=self._only,
            identity=lambda: "" if self._identity is None else self._identity.id,
        )
        self._transport.hosts[self.name] = self.host

    def _say_migrations(self) -> None:
        for typename in self.app.migrations:
            logger.warning(
                "PEN0810 The migration for %s is not carried out in the mesh, whose hosts are replaced one after the "
                "other while states are read. Let the state class take what is stored as well as what is new.",
                typename,
            )

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
        self.background.start()

    async def drain(self, timeout_s: float, *, notice_s: float = UNNOTICED_S) -> None:
        """Let no more requests come, and finish those that have begun, for `timeout_s` at most."""
        self._draining = True
        await self.background.stop_reading()
        if self._lease is not None:
            await self._lease.set_ready(False)
            await asyncio.sleep(notice_s)
        try:
            async with asyncio.timeout(timeout_s):
                # What is not delivered is adopted by others; where there are none, it waits for the next start.
                with suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_S):
                        await self.background.outbox.wait_quiet()
                self.host.draining = True
                await self.host.wait_quiet()
        except TimeoutError:
            self.host.draining = True
            logger.warning("%d requests were not done within %g s and are cut off.", self.host.active, timeout_s)

    async def close(self) -> None:
        """Leave. The store is closed by whoever opened it."""
        await self.background.close()
        with suppress(Unavailable):  # Then the others will find out that it is gone.
            await self.store.fence(self.session)
        if self._lease is not None:
            await self._lease.release()

    @property
    def failed(self) -> asyncio.Future[None]:
        """Gets the error after which this process must end: it was taken for dead, and others do its work."""
        return self.background.failed

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

    def _sessions_in_view(self) -> frozenset[int] | None:
        """Who is at work, by the registry. None when that says nothing of sessions: then nobody is taken for dead."""
        sessions = frozenset(endpoint.session for endpoint in self.registry.view().hosts(self.app.functions))
        return None if 0 in sessions or self.session not in sessions else sessions
