"""A sidecar: beside an application of any language, its way to all others and theirs to it.

    application  ->  127.0.0.1:PORT     the API of the sidecar      (`penstock.mesh.dapr.api`)
    sidecars     ->  ADDRESS:MESH_PORT  requests for the application, mutual TLS if there is an identity
    sidecar      ->  127.0.0.1:APP_PORT the application

What always holds: the sidecar is in the registry while its application takes connections, with what that has said it
has; requests of others pass the access rules before the application sees them; when it is to end, others are told
first, and what has begun is finished.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from os import getpid
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from penstock.errors import ConfigurationError
from penstock.mesh.actuator import Actuator, Health, Status
from penstock.mesh.dapr.actors import Actors
from penstock.mesh.dapr.admitting import Denied, admitted
from penstock.mesh.dapr.api import BODY_BYTES_MAX, Api, error_response, response_of
from penstock.mesh.dapr.application import Application, Wants
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer
from penstock.mesh.dapr.peers import (
    APP_ID,
    ActorTypes,
    Outgoing,
    Peers,
    actor_function,
    app_function,
    peer_asking,
)
from penstock.mesh.dapr.storage import Storage
from penstock.mesh.dapr.topics import Topics
from penstock.mesh.dapr.upkeep import again_and_again
from penstock.mesh.edges import Edges
from penstock.mesh.identity import Identity, peer_of
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.pages import actuator_pages, info_of, metrics_page
from penstock.mesh.policies.guard import Refusal
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet, TlsMode
from penstock.mesh.protection import scheme, tls_labels
from penstock.mesh.registry import POLL_S, Endpoint, Lease, Registry
from penstock.mesh.server import Page
from penstock.mesh.serving import Port
from penstock.mesh.wire import REFUSED

log = logging.getLogger("penstock")

LEASE_S: Final = 5.0
LOOK_S: Final = 0.5
"""Between two looks whether the application takes connections."""
LOOKS_MISSED: Final = 2
"""In a row, before it counts as gone."""
UNNOTICED_S: Final = 2 * POLL_S
"""So long after it has said that it wants no more requests, all others know."""
PURGE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """Of one sidecar."""

    app: str
    app_port: int
    port: int = 3500
    mesh_address: str = "127.0.0.1"
    mesh_port: int = 0
    state_stores: frozenset[str] = frozenset({"statestore"})
    pubsubs: frozenset[str] = frozenset({"pubsub"})
    lock_stores: frozenset[str] = frozenset({"lockstore"})
    api_token: str = ""
    app_token: str = ""
    tls_mode: TlsMode = TlsMode.STRICT
    """Of requests from others, when there is an identity."""
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    drain_s: float = 10.0


def policies_of_a_sidecar(policy_set: PolicySet | None = None) -> Policies:
    return Policies(policy_set or PolicySet(), stateful=ActorTypes(), draw=random.random)


class Sidecar:
    """See the module."""

    def __init__(
        self,
        options: SidecarOptions,
        registry: Registry,
        policies: Policies,
        storage: Storage,
        identity: Identity | None = None,
    ) -> None:
        self.name = f"{options.app}-{socket.gethostname()}-{getpid()}-{secrets.token_hex(4)}"
        self.app = options.app
        self.storage = storage
        self.state_stores, self.lock_stores = options.state_stores, options.lock_stores
        self.ready = False
        """Whether the application takes requests."""
        self.port = 0
        self.mesh_port = 0
        self._options = options
        self._registry = registry
        self._policies = policies
        self._identity = identity
        self._application = Application(options.app_port, token=options.app_token)
        self._edges = Edges()
        self._peers = Peers(self.name, options.app, registry, policies, identity, self._edges)
        self.actors = Actors(self._application, storage, self._peers.owns)
        self.topics = Topics(options.app, self._application, storage, options.pubsubs, lambda: self.ready)
        self._extended: dict[str, str] = {}
        self._lease: Lease | None = None
        self._missed = 0
        """Looks in a row at which the application did not take connections."""
        self._view_number = 0
        self._draining = False
        """Whether requests of others are refused, because of the end that is near."""
        self._closed = False
        self._under_way = 0
        """Requests of others that have begun."""
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopped = asyncio.Event()
        self._runners: list[web.AppRunner | web.ServerRunner] = []
        self._mesh: Port | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Raises ConfigurationError for ports that are taken."""
        await self._registry.open()
        await self.storage.open()
        self.port = await self._serve_application()
        self.mesh_port = await self._serve_others()
        await self.actors.start()
        await self.topics.start()
        self._tasks = [
            asyncio.create_task(again_and_again(step))
            for step in (self._follow_application, self._follow_registry, self._purge)
        ]
        log.info("The sidecar of %s listens at 127.0.0.1:%d.", self.app, self.port)

    async def wait(self) -> None:
        """Until it is told to stop."""
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    async def close(self) -> None:
        """Let no more requests come, finish those that have begun, and end. Once more does nothing."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._lease is not None:
            await self._lease.set_ready(False)
            await asyncio.sleep(UNNOTICED_S)
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.drain_s):
                await self._quiet.wait()
        await self.topics.close()
        await self.actors.close()
        if self._lease is not None:
            await self._lease.release()
        if self._mesh is not None:
            await self._mesh.close()
        for runner in self._runners:
            await runner.cleanup()
        await self._peers.close()
        await self._application.close()
        await self._registry.close()
        await self.storage.close()

    # What the application asks.

    async def invoke(self, app: str, outgoing: Outgoing) -> Answer:
        """A request for another application, or for this one. Raises DaprError."""
        return await self._peers.call_app(self._known(app), outgoing, self._ask_application)

    async def invoke_actor(self, type: str, id: str, method: str, outgoing: Outgoing) -> Answer:
        """A call of an actor, wherever it is. Raises DaprError."""
        if not self._peers.serving(actor_function(type)):
            raise DaprError(404, "ERR_ACTOR_NO_ADDRESS", f"nobody has actors of type {type!r} at the moment")

        async def here(outgoing: Outgoing) -> Answer:
            return await self._take_turn(type, id, method, outgoing)

        return await self._peers.call_actor(type, id, outgoing, here)

    def metadata(self) -> Mapping[str, Any]:
        counts = [{"type": type, "count": count} for type, count in self.actors.counts().items()]
        return {
            "id": self.app,
            "runtimeVersion": "1.17.0-penstock",
            "enabledFeatures": [],
            "actors": counts,
            "components": [
                *(_component(name, "state.penstock", _STATE) for name in sorted(self.state_stores)),
                *(_component(name, "pubsub.penstock", ()) for name in sorted(self._options.pubsubs)),
                *(_component(name, "lock.penstock", ()) for name in sorted(self.lock_stores)),
            ],
            "subscriptions": [
                {"pubsubname": one.pubsub, "topic": one.topic, "deadLetterTopic": one.dead_letter_topic}
                for one in self.topics.subscriptions
            ],
            "appConnectionProperties": {"port": self._options.app_port, "protocol": "http"},
            "actorRuntime": {
                "runtimeStatus": "RUNNING" if counts else "DISABLED",
                "hostReady": self.ready and bool(counts),
                "activeActors": counts,
            },
            "extended": dict(self._extended),
        }

    def note(self, key: str, value: str) -> None:
        self._extended[key] = value

    def _known(self, app: str) -> str:
        """The id, without a namespace behind it if only that is known."""
        bare = app.partition(".")[0]
        known = self._peers.serving(app_function(app)) or not self._peers.serving(app_function(bare))
        return app if known else bare

    # What others ask.

    async def _from_others(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._draining or not self.ready:
            refusal = error_response(DaprError(503, "ERR_NOT_READY", f"{self.app} takes no requests at the moment"))
            refusal.headers[REFUSED] = "1"
            return refusal
        self._under_way += 1
        self._quiet.clear()
        try:
            return response_of(await self._admitted(request))
        except DaprError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(DaprError(413, "ERR_BODY_TOO_LARGE", "the body is too large"))
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    async def _admitted(self, request: web.BaseRequest) -> Answer:
        actor = None if APP_ID in request.headers else _actor_of(request)
        function = actor_function(actor[0]) if actor is not None else app_function(self.app)
        operation = actor[2] if actor is not None else request.path.lstrip("/")

        async def carry_out() -> Answer:
            outgoing = Outgoing(
                request.method, request.rel_url.raw_path_qs, [*request.headers.items()], await request.read()
            )
            return await (self._ask_application(outgoing) if actor is None else self._take_turn(*actor, outgoing))

        peer = peer_asking(request.headers, peer_of(request.transport))
        try:
            return await admitted(self._policies, function, operation, peer, request.headers, carry_out)
        except Denied as denied:
            raise _denied(denied.refusal) from None

    async def _ask_application(self, outgoing: Outgoing) -> Answer:
        headers = [(name, value) for name, value in outgoing.headers if name.lower() != APP_ID]
        return await self._application.ask(outgoing.method, outgoing.path, headers=headers, body=outgoing.body)

    async def _take_turn(self, type: str, id: str, method: str, outgoing: Outgoing) -> Answer:
        return await self.actors.invoke(type, id, method, outgoing.headers, outgoing.body)

    # Listening.

    async def _serve_application(self) -> int:
        api = Api(self, self._pages(), token=self._options.api_token)
        runner = web.AppRunner(api.application(), access_log=None)
        await runner.setup()
        self._runners.append(runner)
        return await _open(Port(runner, None, TlsMode.DISABLE), "127.0.0.1", self._options.port)

    async def _serve_others(self) -> int:
        server = web.Server(self._from_others, request_factory=_request_factory(), access_log=None)
        runner = web.ServerRunner(server)
        await runner.setup()
        self._runners.append(runner)
        self._mesh = Port(runner, self._identity, self._options.tls_mode)
        return await _open(self._mesh, self._options.mesh_address, self._options.mesh_port)

    def _pages(self) -> dict[str, Page]:
        """How it is, and its figures."""
        actuator = Actuator(
            liveness={"sidecar": lambda: Health(Status.UP)},
            readiness={"application": lambda: Health(Status.UP if self.ready else Status.DOWN)},
            info=lambda: info_of(self.app) | {"sidecar": {"name": self.name}},
        )
        return actuator_pages(actuator) | metrics_page(MeshMetrics(self.app, self._edges, self._policies))

    # Beside the requests.

    async def _follow_application(self) -> None:
        """Be in the registry while the application takes connections."""
        if await self._application.listens():
            self._missed = 0
            if not self.ready:
                await self._welcome()
        else:
            self._missed += 1
            if self.ready and self._missed >= LOOKS_MISSED:
                await self._part()
        await asyncio.sleep(LOOK_S)

    async def _welcome(self) -> None:
        try:
            wants = await self._application.wants()
        except DaprError as error:
            log.warning("PEN0880 %s. The sidecar asks again.", error)
            return
        self.actors.configure(wants.actors)
        await self.topics.configure(wants.subscriptions)
        await self._announce(wants)
        self.ready = True
        log.info("%s is ready: %d actor types, %d topics.", self.app, len(wants.actors), len(wants.subscriptions))

    async def _part(self) -> None:
        self.ready = False
        log.warning("PEN0880 %s takes no connections at port %d any more.", self.app, self._options.app_port)
        self.actors.abandon()
        if self._lease is not None:
            await self._lease.set_ready(False)

    async def _announce(self, wants: Wants) -> None:
        if self._lease is not None:
            await self._lease.release()
        functions = {app_function(self.app), *map(actor_function, wants.actors)}
        mode = self._options.tls_mode
        url = f"{scheme(self._identity, mode)}://{self._options.mesh_address}:{self.mesh_port}"
        endpoint = Endpoint(
            self.name,
            url,
            self._options.version,
            {**self._options.labels, **tls_labels(self._identity, mode)},
            frozenset(functions),
            ready=True,
        )
        self._lease = await self._registry.register(endpoint, LEASE_S)

    async def _follow_registry(self) -> None:
        self._view_number = (await self._registry.changed(self._view_number)).number
        if self.ready:
            self.actors.rebalance()

    async def _purge(self) -> None:
        await asyncio.sleep(PURGE_S)
        await self.storage.purge()


def _denied(refusal: Refusal) -> DaprError:
    return DaprError(
        refusal.status, "ERR_DENIED", f"{refusal.code} {refusal.message}", retry_after_s=refusal.retry_after_s
    )


_STATE: Final = ("ETAG", "TRANSACTIONAL", "TTL", "ACTOR")


def _component(name: str, type: str, capabilities: tuple[str, ...]) -> dict[str, Any]:
    return {"name": name, "type": type, "version": "v1", "capabilities": capabilities}


def _actor_of(request: web.BaseRequest) -> tuple[str, str, str]:
    """Type, id and method of the actor that a path names. Raises DaprError."""
    match request.rel_url.raw_path.split("/"):
        case ["", "v1.0", "actors", type, id, "method", method]:
            return unquote(type), unquote(id), unquote(method)
        case _:
            raise DaprError(404, "ERR_NOT_FOUND", f"{request.path} is not asked of a sidecar by another")


def _request_factory() -> Callable[..., web.BaseRequest]:
    """As the one that aiohttp has, with a bound for bodies."""
    return partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=BODY_BYTES_MAX)


async def _open(listening: Port, address: str, port: int) -> int:
    try:
        return await listening.open(address, port)
    except OSError as error:
        raise ConfigurationError(
            "PEN0884", f"The sidecar can't listen at {address}:{port}: {error.strerror}. Name another port."
        ) from error
