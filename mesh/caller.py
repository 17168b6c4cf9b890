"""Brings a request to a host that carries it out: the policies decide, this performs.

What always holds: a request is sent only where and when its `Plan` says; every attempt is reported to the plan, which
is closed however the call ends; whoever asks gets a reply, never an exception; what is called directly waits for as
long as its caller does, and no longer; no attempt waits for a host that is known to be gone. A cancellation is told to
all who may be carrying out what it ends. Which hosts there are is for the registry to know, how they are reached for
the transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from penstock.mesh.edges import OUTSIDE, EdgeName, Edges
from penstock.mesh.performing import perform
from penstock.mesh.policies.host import Host as Somewhere
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import GiveUp, Plan, Try
from penstock.mesh.policies.plan import Request as Asked
from penstock.mesh.registry import Endpoint, Registry
from penstock.mesh.wire import NO, YES, Kind, Reply, Request, failure

GONE_S: Final = 1.0
"""Between two looks whether the host that has a request is still there. Its lease takes longer to run out."""
TELL_S: Final = 2.0
"""A host that takes longer to hear of a cancellation is told again, if whoever cancels still waits."""


class NoAnswer(Exception):
    """A request had no answer."""

    def __init__(self, why: Failure) -> None:
        super().__init__(why.value)
        self.why = why


class Transport(Protocol):
    """The way to hosts."""

    async def send(self, endpoint: Somewhere, request: Request, timeout_s: float | None) -> Reply:
        """Raises NoAnswer."""
        ...


class Caller:
    """See the module."""

    def __init__(
        self,
        registry: Registry,
        policies: Policies,
        transport: Transport,
        edges: Edges,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._policies = policies
        self._transport = transport
        self._edges = edges
        self._clock = clock
        self._mirrored: set[asyncio.Task[None]] = set()

    async def call(self, request: Request) -> Reply:
        """What becomes of `request`, tried as often as its policies say."""
        if request.kind is Kind.CANCEL:
            return await self._cancel(request)
        reply: Reply | None = None
        began_s = self._clock()

        def serving() -> Sequence[Endpoint]:
            return self._registry.view().serving(request.address.typename)

        def planned(now_s: float, wake: Callable[[], None]) -> Plan:
            nonlocal request
            plan = self._policies.plan(_asked(request, now_s), serving(), now_s, wake)
            if request.kind is Kind.CALL and request.deadline_s is None:
                request = request._replace(deadline_s=plan.deadline_s)
            return plan

        async def send(attempt: Try) -> Outcome:
            nonlocal reply
            reply, outcome = await self._try(attempt, request)
            return outcome

        end = await perform(planned, send, serving, self._clock)
        if isinstance(end, GiveUp):
            reply = failure(end.status, end.code, end.message)
        assert reply is not None, "a plan that ends with an answer has had one"
        self._edges.called(_edge_of(request), reply.status, self._clock() - began_s)
        return reply

    async def _try(self, attempt: Try, request: Request) -> tuple[Reply | None, Outcome]:
        """One attempt."""
        request = request._replace(attempt=request.attempt + attempt.attempt - 1)
        if attempt.mirror is not None:
            self._copy(attempt.mirror, request, attempt.timeout_s)
        reply: Reply | None = None
        try:
            reply = await self._sent(attempt, request)
            refused = Failure.REFUSED if reply.refused and reply.status == 503 else None
            outcome = Outcome(reply.status, refused, reply.retry_after_s)
        except NoAnswer as error:
            outcome = Outcome(failure=error.why)
        self._edges.tried(_edge_of(request), outcome)
        return reply, outcome

    async def _sent(self, attempt: Try, request: Request) -> Reply:
        """The reply of a host, waited for no longer than the host is there: one that stands still answers nothing and
        closes no connection, but its lease runs out."""
        there = _WhileThere(self._registry, attempt.endpoint.name)
        try:
            async with there.limit:
                return await self._transport.send(attempt.endpoint, request, attempt.timeout_s)
        except TimeoutError:
            raise NoAnswer(Failure.RESET) from None
        finally:
            there.close()

    async def _cancel(self, request: Request) -> Reply:
        """Only the hosts know which of them carries it out: also one that takes nothing new any more."""
        typename = request.address.typename
        hosts = [endpoint for endpoint in self._registry.view().endpoints if endpoint.serves(typename)]
        replies = await asyncio.gather(*(self._tell(endpoint, request) for endpoint in hosts))
        refusals = [reply for reply in replies if reply is not None and reply.status != 200]
        if any(reply is not None and reply.body == YES for reply in replies):
            return Reply(200, YES)
        return refusals[0] if refusals else Reply(200, NO)

    async def _tell(self, endpoint: Endpoint, request: Request) -> Reply | None:
        try:
            return await self._transport.send(endpoint, request, TELL_S)
        except NoAnswer:
            return None

    def _copy(self, endpoint: Somewhere, request: Request, timeout_s: float | None) -> None:
        """Let another host see the request. Nobody waits for what it answers."""

        async def send() -> None:
            with suppress(NoAnswer):
                await self._transport.send(endpoint, request._replace(shadow=True, key=""), timeout_s)

        task = asyncio.create_task(send())
        self._mirrored.add(task)
        task.add_done_callback(self._mirrored.discard)


class _WhileThere:
    """Its `limit` ends what is done under it when a host is gone. `close` it."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.limit = asyncio.timeout(None)
        self._registry = registry
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._looking = self._loop.call_later(GONE_S, self._look)

    def close(self) -> None:
        self._looking.cancel()

    def _look(self) -> None:
        if any(each.name == self._name for each in self._registry.view().endpoints):
            self._looking = self._loop.call_later(GONE_S, self._look)
        else:
            self.limit.reschedule(self._loop.time())


def _edge_of(request: Request) -> EdgeName:
    return EdgeName(request.caller.typename if request.caller is not None else OUTSIDE, request.address.typename)


def _asked(request: Request, now_s: float) -> Asked:
    deadline_s = request.deadline_s
    return Asked(
        request.address.typename,
        request.address.id,
        request.headers,
        request.caller.typename if request.caller is not None else request.behalf or request.identity,
        bool(request.key),
        None if deadline_s is None else max(0, int((deadline_s - now_s) * 1000)),
        request.kind is Kind.DELIVER,
    )
