"""The caller performs what its plan decides, tells it what came of it, and always has a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from penstock.ids import Address
from penstock.mesh import caller
from penstock.mesh.caller import Caller, NoAnswer
from penstock.mesh.edges import OUTSIDE, EdgeName, Edges
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.outcomes import Failure
from penstock.mesh.policies.settings import Backoff, Mirror, PolicySet, Retries, Route
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.wire import NO, YES, Kind, Reply, Request, error_of, failure

OK = Reply(200, b"\x01")
DOWN = failure(503, "PEN0820", "The store does not take part.")
DRAINING = failure(503, "PEN0804", "This host is about to stop.", refused=True)
AT_ONCE = replace(Retries(), backoff=Backoff(base_interval_s=0.0001, max_interval_s=0.0002))
Answer = Reply | Failure


class Script:
    """Hosts whose answers are written down."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, Request]] = []

    async def send(self, endpoint: Host, request: Request, timeout_s: float | None) -> Reply:
        self.asked.append((endpoint.name, request))
        answer = self._answers.pop(0) if self._answers else OK
        if isinstance(answer, Failure):
            raise NoAnswer(answer)
        return answer


def called(
    *answers: Answer, policies: PolicySet | None = None, hosts: int = 3, **fields: Any
) -> tuple[Reply, Script, Edges]:
    """One call of hosts that answer like that."""
    script, edges = Script(answers), Edges()

    async def run() -> Reply:
        endpoints = [Endpoint(f"h{number}", f"http://h{number}", f"v{number}", ready=True) for number in range(hosts)]
        registry = LocalRegistry(endpoints)
        await registry.open()
        rules = policies or PolicySet(routes=(Route(retries=AT_ONCE),))
        caller = Caller(registry, Policies(rules, stateful=["t/a"], draw=lambda: 0.5), script, edges)
        reply = await caller.call(Request(Address("t/a", "1"), b"", **fields))
        await asyncio.sleep(0)
        return reply

    return asyncio.run(run()), script, edges


def hosts_of(script: Script) -> list[str]:
    return [name for name, _ in script.asked]


def test_an_answer_ends_the_call() -> None:
    reply, script, _ = called(OK)

    assert reply == OK
    assert len(script.asked) == 1


def test_a_host_that_was_not_reached_is_not_asked_again_while_there_are_others() -> None:
    reply, script, _ = called(Failure.CONNECT, Failure.CONNECT)

    assert reply == OK
    assert len(set(hosts_of(script))) == 3
    assert [request.attempt for _, request in script.asked] == [1, 2, 3]


def test_one_that_drains_sends_even_a_request_without_a_key_to_another() -> None:
    reply, script, _ = called(DRAINING)

    assert reply == OK
    assert len(set(hosts_of(script))) == 2


def test_a_lost_reply_is_asked_for_again_only_under_a_key() -> None:
    keyed, script, _ = called(Failure.RESET, key="k")
    assert (keyed, len(script.asked)) == (OK, 2)
    assert {request.key for _, request in script.asked} == {"k"}

    bare, script, _ = called(Failure.RESET)
    assert (bare.status, len(script.asked)) == (503, 1)


def test_the_last_answer_is_what_the_caller_gets() -> None:
    reply, script, _ = called(DOWN, DOWN, DOWN, key="k")

    assert reply == DOWN
    assert len(script.asked) == 3


def test_a_failed_handler_is_not_tried_again() -> None:
    failed = failure(422, "PEN0210", "Handler raised.")
    reply, script, _ = called(failed, key="k")

    assert (reply, len(script.asked)) == (failed, 1)


def test_nobody_to_ask_is_a_coded_error() -> None:
    reply, script, _ = called(hosts=0)

    assert (reply.status, error_of(reply, "t/a/1").code, script.asked) == (503, "PEN0841", [])


def test_what_is_called_has_the_deadline_of_its_route_and_what_is_delivered_none() -> None:
    _, script, _ = called(policies=PolicySet(routes=(Route(timeout_s=3.0),)))
    assert script.asked[0][1].deadline_s is not None

    _, script, _ = called(kind=Kind.DELIVER)
    assert script.asked[0][1].deadline_s is None


@pytest.mark.parametrize("kind", [Kind.DELIVER, Kind.CALL, Kind.SEND])
def test_nobody_waits_longer_than_the_host_is_there(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever delivers waits for as long; a call has its timeouts besides, which are long here."""
    monkeypatch.setattr(caller, "GONE_S", 0.02)
    timeout_s = 0.05 if kind is Kind.DELIVER else 60.0

    class Frozen(Script):
        async def send(self, endpoint: Host, request: Request, timeout_s: float | None) -> Reply:
            reply = await super().send(endpoint, request, timeout_s)
            if len(self.asked) == 1:
                await asyncio.sleep(timeout_s or 60)
                raise NoAnswer(Failure.TIMEOUT)
            return reply

    async def run() -> None:
        registry, script = LocalRegistry([Endpoint(f"h{n}", f"http://h{n}", ready=True) for n in range(2)]), Frozen([])
        await registry.open()
        rules = PolicySet(routes=(Route(timeout_s=timeout_s, retries=replace(AT_ONCE, per_try_timeout_s=timeout_s)),))
        patient = Caller(registry, Policies(rules, draw=lambda: 0.5), script, Edges())
        delivering = asyncio.create_task(patient.call(Request(Address("t/a", "1"), b"", kind, "k")))
        await asyncio.sleep(0.2)
        assert not delivering.done()

        await registry.forget(script.asked[0][0])
        assert await delivering == OK

    asyncio.run(run())


def test_an_expired_request_is_not_sent() -> None:
    reply, script, _ = called(deadline_s=0.0)

    assert (reply.status, script.asked) == (504, [])


def test_a_mirrored_request_is_a_shadow_without_a_key() -> None:
    route = Route(mirror=Mirror("v2", 100.0))
    reply, script, _ = called(policies=PolicySet(routes=(route,)), key="k")

    assert reply == OK
    copies = [request for name, request in script.asked if request.shadow]
    assert [(request.key, request.shadow) for request in copies] == [("", True)]


def test_both_success_rates_are_counted_by_edge() -> None:
    caller = Address("t/b", "2")
    _, _, edges = called(Failure.CONNECT, DRAINING, caller=caller)

    edge = edges.known[EdgeName("t/b", "t/a")]
    assert edge.calls == {200: 1}
    assert edge.attempts == {"connect-failure": 1, "refused-stream": 1, "200": 1}
    assert edge.effective_success_rate == 1.0
    assert round(edge.actual_success_rate, 2) == 0.33


def test_who_is_no_function_counts_as_outside() -> None:
    _, _, edges = called()

    assert list(edges.known) == [EdgeName(OUTSIDE, "t/a")]


def test_a_cancellation_is_told_to_every_host_that_may_have_the_call() -> None:
    reply, script, _ = called(Reply(200, NO), Failure.RESET, Reply(200, YES), kind=Kind.CANCEL, key="k")

    assert reply == Reply(200, YES)
    assert sorted(hosts_of(script)) == ["h0", "h1", "h2"]
    assert {request.key for _, request in script.asked} == {"k"}


def test_a_cancellation_of_what_nobody_has_says_so_or_why_it_was_refused() -> None:
    denied = failure(403, "PEN0840", "Denied.")

    assert called(Reply(200, NO), Failure.CONNECT, Reply(200, NO), kind=Kind.CANCEL)[0] == Reply(200, NO)
    assert called(Reply(200, NO), denied, Reply(200, NO), kind=Kind.CANCEL)[0] == denied
