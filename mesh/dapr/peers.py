"""Other sidecars, and whatever else is an application of the mesh: how a request gets there, under the policies.

An application is served under `app/ID`, an actor type under `actor/TYPE`: by these names the registry knows who serves
them, and a policy file says how they are called. What always holds: an actor is asked for at its owner, the first of
the ring of those that serve its type; a request goes on as it came, without the headers that are about one connection
and with the name of who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from penstock.mesh.caller import NoAnswer
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import HOP, Answer, HttpClient
from penstock.mesh.edges import EdgeName, Edges
from penstock.mesh.identity import Identity, url_of
from penstock.mesh.performing import perform
from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome, retry_after_s
from penstock.mesh.policies.plan import GiveUp, Plan, Request, Try
from penstock.mesh.policies.ring import Ring
from penstock.mesh.policies.settings import Balance, LoadBalancing
from penstock.mesh.registry import Endpoint, Registry
from penstock.mesh.wire import KEY, REFUSED, RETRY_AFTER, SHADOW

APP_ID: Final = "dapr-app-id"
CALLER: Final = "dapr-caller-app-id"
CALLEE: Final = "dapr-callee-app-id"
MIRROR_S: Final = 15.0
_STAMPED: Final = frozenset({APP_ID, CALLER, CALLEE, "dapr-api-token"})


def app_function(app: str) -> str:
    return f"app/{app}"


def actor_function(type: str) -> str:
    return f"actor/{type}"


def peer_asking(headers: Mapping[str, str], identity: str) -> Peer:
    """Who asks an application: by the name it says, and the identity that it has proven."""
    claimed = headers.get(CALLER, "")
    return Peer(app_function(claimed) if claimed else "", identity)


class ActorTypes:
    """The functions whose ids have an owner."""

    def __contains__(self, function: object) -> bool:
        return isinstance(function, str) and function.startswith("actor/")


class Outgoing(NamedTuple):
    """A request on its way."""

    method: str
    path: str
    """With its query, percent-encoded."""
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


Here = Callable[[Outgoing], Awaitable[Answer]]


class Peers:
    """See the module. `name` is this sidecar's own in the registry, `app` the application beside it."""

    def __init__(
        self,
        name: str,
        app: str,
        registry: Registry,
        policies: Policies,
        identity: Identity | None,
        edges: Edges,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._app = app
        self._registry = registry
        self._policies = policies
        self._identity = identity
        self._clock = clock
        self._rings: dict[tuple[str, ...], Ring] = {}
        self._edges = edges
        self._client = HttpClient()
        self._unwaited: set[asyncio.Task[Any]] = set()
        """Requests that are carried out also when nobody waits for them any more."""

    def serving(self, function: str) -> list[Endpoint]:
        """Those that have said so: a host of functions that names none serves all there are, but no application."""
        return [one for one in self._registry.view().endpoints if one.ready and function in one.functions]

    def owns(self, type: str, id: str) -> bool:
        """Whether this sidecar is the owner of an actor."""
        names = tuple(endpoint.name for endpoint in self.serving(actor_function(type)))
        if not names:
            return False
        ring = self._rings.get(names)
        if ring is None:
            self._rings = {names: Ring(names, LoadBalancing(Balance.RING_HASH).minimum_ring_size)}
            ring = self._rings[names]
        return next(ring.order(id)) == self._name

    async def call_app(self, app: str, outgoing: Outgoing, here: Here) -> Answer:
        """`here` asks the application beside. Raises DaprError when there is no answer."""
        stamped = outgoing._replace(headers=[*self._own(outgoing), (APP_ID, app), (CALLEE, app)])
        return await self._call(app_function(app), "", stamped, here, "ERR_DIRECT_INVOKE")

    async def call_actor(self, type: str, id: str, outgoing: Outgoing, here: Here) -> Answer:
        """`here` takes a turn of an actor of this sidecar. Raises DaprError when there is no answer."""
        stamped = outgoing._replace(headers=self._own(outgoing))
        return await self._call(actor_function(type), id, stamped, here, "ERR_ACTOR_INVOKE_METHOD")

    async def close(self) -> None:
        for task in self._unwaited:
            task.cancel()
        if self._unwaited:
            await asyncio.wait(self._unwaited)
        await self._client.close()

    def _own(self, outgoing: Outgoing) -> list[tuple[str, str]]:
        kept = [(key, value) for key, value in outgoing.headers if key.lower() not in _STAMPED | HOP]
        return [*kept, (CALLER, self._app)]

    async def _call(self, function: str, id: str, outgoing: Outgoing, here: Here, error_name: str) -> Answer:
        began_s = self._clock()
        edge = EdgeName(app_function(self._app), function)
        headers = {key.lower(): value for key, value in outgoing.headers}
        request = Request(function, id, headers, app_function(self._app), keyed=KEY in headers)
        answer = Answer(500)

        def serving() -> list[Endpoint]:
            return self.serving(function)

        def planned(now_s: float, wake: Callable[[], None]) -> Plan:
            return self._policies.plan(request, serving(), now_s, wake)

        async def send(attempt: Try) -> Outcome:
            nonlocal answer
            if attempt.mirror is not None:
                self._copy(attempt.mirror, outgoing, here)
            try:
                answer = await self._send(attempt.endpoint, outgoing, attempt.timeout_s, here)
                refused = Failure.REFUSED if answer.header(REFUSED) else None
                outcome = Outcome(answer.status, refused, retry_after_s(answer.header(RETRY_AFTER)))
            except NoAnswer as error:
                outcome = Outcome(failure=error.why)
            self._edges.tried(edge, outcome)
            return outcome

        end = await perform(planned, send, serving, self._clock)
        status = end.status if isinstance(end, GiveUp) else answer.status
        self._edges.called(edge, status, self._clock() - began_s)
        if isinstance(end, GiveUp):
            # Dapr has one status for all that keeps a request from its target; what is more exact stays.
            status = 500 if status == 503 else status
            raise DaprError(status, error_name, f"failed to invoke {function}: {end.code} {end.message}")
        return answer

    async def _send(self, endpoint: Host, outgoing: Outgoing, timeout_s: float | None, here: Here) -> Answer:
        """Raises NoAnswer."""
        if endpoint.name == self._name:
            return await self._send_here(outgoing, timeout_s, here)
        where = url_of(endpoint, self._identity)
        try:
            return await self._client.ask(
                outgoing.method,
                where + outgoing.path,
                headers=outgoing.headers,
                body=outgoing.body,
                timeout_s=timeout_s,
                tls=self._identity.client if self._identity is not None else None,
            )
        except NoAnswer as error:
            if self._identity is not None and error.__cause__ is not None:
                self._identity.warn(error.__cause__, where)
            raise

    async def _send_here(self, outgoing: Outgoing, timeout_s: float | None, here: Here) -> Answer:
        """As over a connection: an error is an answer, and who stops waiting stops nothing."""

        async def carry_out() -> Answer:
            try:
                return await here(outgoing)
            except DaprError as error:
                return Answer(error.status, [("content-type", "application/json")], error.body)

        task = asyncio.create_task(carry_out())
        self._keep(task)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            raise NoAnswer(Failure.TIMEOUT) from None

    def _copy(self, endpoint: Host, outgoing: Outgoing, here: Here) -> None:
        """Let another one see the request. Nobody waits for what it answers."""

        async def send() -> None:
            with suppress(NoAnswer):
                await self._send(endpoint, shadow, MIRROR_S, here)

        # Without its key: under that the copy could be taken for the request, and the request for the copy.
        kept = [(name, value) for name, value in outgoing.headers if name.lower() != KEY]
        shadow = outgoing._replace(headers=[*kept, (SHADOW, "1")])
        self._keep(asyncio.create_task(send()))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._unwaited.add(task)
        task.add_done_callback(self._unwaited.discard)
