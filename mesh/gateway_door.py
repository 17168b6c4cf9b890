"""The gateway as one application among those of a mesh: where sidecars find the functions behind it.

    application -> its sidecar -> (app/NAME in the registry) -> door -> gateway -> hosts

What always holds: the door is in the registry under the name of the application, and ready while a host is; what passes
it has passed the access rules for `app/NAME`, and goes on as that of who asked; connections are protected as those to
hosts are. What is asked, and of whom, is for the gateway to read.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from os import getpid
from typing import Final

from aiohttp import web

from penstock.errors import ConfigurationError
from penstock.functions.app import App
from penstock.logs import logger
from penstock.mesh.dapr.admitting import Denied, admitted
from penstock.mesh.dapr.peers import app_function, peer_asking
from penstock.mesh.identity import Identity, peer_of
from penstock.mesh.node import LEASE_S, UNNOTICED_S
from penstock.mesh.policies.guard import Refusal
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import TlsMode
from penstock.mesh.protection import scheme, tls_labels
from penstock.mesh.registry import Endpoint, Lease, Registry
from penstock.mesh.serving import Port
from penstock.mesh.wire import RETRY_AFTER, SHADOW
from penstock.web import Guard, Handler, json_response, runner_of

_IS_DOOR: Final = web.AppKey("is_door", bool)
_SERVED: Final = "POST /send, POST /call, POST /promise"


def behalf_of(request: web.Request) -> str:
    """Who was proven to ask; empty for a request that came in otherwise."""
    return peer_of(request.transport) if _IS_DOOR in request.app else ""


def is_shadow(request: web.Request) -> bool:
    """Whether a sidecar has sent it as a copy."""
    return _IS_DOOR in request.app and SHADOW in request.headers


class Door:
    """See the module. `routes` are what the gateway serves through it."""

    def __init__(
        self,
        app: App,
        routes: Sequence[web.RouteDef],
        registry: Registry,
        policies: Policies,
        *,
        host: str,
        body_bytes_max: int,
        identity: Identity | None,
        tls: TlsMode,
    ) -> None:
        self.function = app_function(app.name)
        self._functions: Mapping[str, object] = app.functions
        self._registry = registry
        self._policies = policies
        self._host = host
        self._identity = identity
        self._tls = tls
        guard = Guard(host=host, token=None, body_bytes_max=body_bytes_max, open_paths=(), served=_SERVED)
        application = web.Application(client_max_size=body_bytes_max, middlewares=[self._admit, guard.middleware])
        application[_IS_DOOR] = True
        application.add_routes(routes)
        self._runner = runner_of(application)
        self._port = Port(self._runner, identity, tls)
        self._lease: Lease | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, reachable: str) -> None:
        """Listen, and be found at the name `reachable`. Raises ConfigurationError."""
        await self._runner.setup()
        try:
            port = await self._port.open(self._host, 0)
        except OSError as error:
            raise ConfigurationError(
                "PEN0612", f"Can't listen on {self._host}: {error.strerror or error}. Choose another --host."
            ) from error
        if self.function in self._functions:
            logger.warning(
                "PEN0812 %s is a function of this application, so sidecars can't have the application under that name. "
                "Name one of the two otherwise.",
                self.function,
            )
            return
        endpoint = Endpoint(
            f"gateway-{socket.gethostname()}-{getpid()}-{secrets.token_hex(4)}",
            f"{scheme(self._identity, self._tls)}://{reachable}:{port}",
            labels=tls_labels(self._identity, self._tls),
            functions=frozenset({self.function}),
            ready=self._has_hosts(),
        )
        self._lease = await self._registry.register(endpoint, LEASE_S)
        self._following = asyncio.create_task(self._follow(self._lease, ready=endpoint.ready))

    async def leave(self) -> None:
        """Let no more requests come, and return when all others know."""
        await self._stop_following()
        if self._lease is not None:
            await self._lease.set_ready(False)
            await asyncio.sleep(UNNOTICED_S)

    async def close(self) -> None:
        """Finish what has begun, and end."""
        await self._stop_following()
        if self._lease is not None:
            await self._lease.release()
        await self._port.close()
        await self._runner.cleanup()

    async def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    async def _follow(self, lease: Lease, *, ready: bool) -> None:
        number = -1
        while True:
            number = (await self._registry.changed(number)).number
            if ready != self._has_hosts():
                ready = not ready
                await lease.set_ready(ready)

    def _has_hosts(self) -> bool:
        return any(each.ready for each in self._registry.view().hosts(self._functions))

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = peer_asking(request.headers, peer_of(request.transport))

        async def carry_out() -> web.StreamResponse:
            return await handler(request)

        try:
            return await admitted(
                self._policies, self.function, request.path.lstrip("/"), peer, request.headers, carry_out
            )
        except Denied as denied:
            return _refused(denied.refusal)


def _refused(refusal: Refusal) -> web.Response:
    body = {"code": refusal.code, "message": refusal.message, "path": None}
    response = json_response(body, status=refusal.status)
    if refusal.retry_after_s:
        response.headers[RETRY_AFTER] = str(max(1, round(refusal.retry_after_s)))
    return response
