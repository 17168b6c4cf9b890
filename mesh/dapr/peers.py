"""Other sidecars, and whatever else is an application of the mesh: how a request gets there, under the policies.

An application is served under `app/ID`, an actor type under `actor/TYPE`: by these names the registry knows who serves
them, and a policy file says how they are called. What always holds: an actor is asked for at its owner, the first of
the ring of those that serve its type; a request goes on as it came, without the headers that are about one connection
and with the name of who asks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import HOP, Answer, HttpClient, NoAnswer
from penstock.mesh.identity import Identity
from penstock.mesh.performing import perform
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome, retry_after_s
from penstock.mesh.policies.plan import GiveUp, Plan, Request, Try
from penstock.mesh.policies.ring import Ring
from penstock.mesh.policies.settings import Balance, LoadBalancing
from penstock.mesh.registry import Endpoint, Registry

log = logging.getLogger("penstock")

APP_ID: Final = "dapr-app-id"
CALLER: Final = "dapr-caller-app-id"
CALLEE: Final = "dapr-callee-app-id"
REFUSED: Final = "penstock-refused"
"""Of an answer that nothing was begun, so that any request may be tried elsewhere."""
_STAMPED: Final = frozenset({APP_ID, CALLER, CALLEE, "dapr-api-token"})


def app_function(app: str) -> str:
    return f"app/{app}"


def actor_function(type: str) -> str:
    return f"actor/{type}"


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
        self._client = HttpClient()

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
        await self._client.close()

    def _own(self, outgoing: Outgoing) -> list[tuple[str, str]]:
        kept = [(key, value) for key, value in outgoing.headers if key.lower() not in _STAMPED | HOP]
        return [*kept, (CALLER, self._app)]

    def _explain(self, error: NoAnswer, url: str) -> None:
        """Certificates that keep two apart are for people to mend."""
        cause = error.__cause__
        if self._identity is not None and cause is not None:
            explained = self._identity.explain(cause, url)
            if explained is not None:
                log.warning("%s", explained)

    async def _call(self, function: str, id: str, outgoing: Outgoing, here: Here, error_name: str) -> Answer:
        answer = Answer(500)

        def serving() -> list[Endpoint]:
            return self.serving(function)

        def planned(now_s: float, wake: Callable[[], None]) -> Plan:
            headers = {key.lower(): value for key, value in outgoing.headers}
            request = Request(function, id, headers, app_function(self._app), keyed="idempotency-key" in headers)
            return self._policies.plan(request, serving(), now_s, wake)

        async def send(attempt: Try) -> Outcome:
            nonlocal answer
            if attempt.endpoint.name == self._name:
                answer = await here(outgoing)
                return Outcome(answer.status)
            url = attempt.endpoint.url + outgoing.path
            try:
                answer = await self._client.ask(
                    outgoing.method,
                    url,
                    headers=outgoing.headers,
                    body=outgoing.body,
                    timeout_s=attempt.timeout_s,
                    tls=self._identity.client if self._identity is not None else None,
                )
            except NoAnswer as error:
                self._explain(error, attempt.endpoint.url)
                return Outcome(failure=error.why)
            refused = Failure.REFUSED if answer.header(REFUSED) else None
            return Outcome(answer.status, refused, retry_after_s(answer.header("retry-after")))

        end = await perform(planned, send, serving, self._clock)
        if isinstance(end, GiveUp):
            # Dapr has one status for all that keeps a request from its target; what is more exact stays.
            status = 500 if end.status == 503 else end.status
            raise DaprError(status, error_name, f"failed to invoke {function}: {end.code} {end.message}")
        return answer
