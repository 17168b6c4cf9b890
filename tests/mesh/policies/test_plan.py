"""One call through the policies: what is tried, what comes next and when it is over."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.plan import Finish, GiveUp, Request, Try, Wait
from penstock.mesh.policies.settings import FunctionPolicy, Limits, Retries, Route
from tests.mesh.policies.script import (
    BROKEN,
    FUNCTION,
    NO_CONNECTION,
    OK,
    Answer,
    Caller,
    always,
    endpoints,
    policies,
)


def test_a_call_that_is_answered_ends_with_the_answer() -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.call(always(OK))

    assert result.end == Finish(OK)
    assert [attempt.timeout_s for attempt in result.attempts] == [15.0]


def test_a_connection_that_fails_is_tried_twice_more_each_time_at_another_host() -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.call(always(NO_CONNECTION))

    assert len({attempt.host for attempt in result.attempts}) == 3
    assert isinstance(result.end, GiveUp)
    assert (result.end.status, result.end.code) == (503, "PEN0849")


@pytest.mark.parametrize(("keyed", "attempts"), [(False, 1), (True, 3)])
def test_what_may_have_been_processed_is_tried_again_only_with_a_key(keyed: bool, attempts: int) -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.call(always(BROKEN), keyed=keyed)

    assert len(result.attempts) == attempts
    assert result.end == Finish(BROKEN)


def test_an_id_with_state_goes_to_its_owner_and_to_the_next_one_when_that_fails() -> None:
    caller = Caller(policies(stateful=True), endpoints(3))
    owner = caller.call(always(OK)).attempts[0].host

    result = caller.call(lambda host, _: Answer(NO_CONNECTION if host == owner else OK))

    hosts = [attempt.host for attempt in result.attempts]
    assert hosts[0] == owner
    assert len(hosts) == 2
    assert caller.call(always(OK)).attempts[0].host == owner


def test_without_a_host_nothing_is_tried() -> None:
    result = Caller(policies(), []).call(always(OK))

    assert result.attempts == []
    assert isinstance(result.end, GiveUp)
    assert (result.end.status, result.end.code) == (503, "PEN0841")


def test_the_deadline_of_the_caller_bounds_the_call_too() -> None:
    result = Caller(policies(), endpoints(1)).call(always(OK, seconds=5), timeout_ms=200)

    assert result.attempts[0].timeout_s == pytest.approx(0.2)
    assert result.status == 504
    assert result.took_s == pytest.approx(0.2)


def test_a_call_whose_time_is_over_is_never_begun() -> None:
    result = Caller(policies(), endpoints(1)).call(always(OK), timeout_ms=0)

    assert result.attempts == []
    assert result.status == 504


def test_what_waits_for_a_slot_is_woken_in_turn_and_what_has_no_place_is_refused() -> None:
    live = policies(FunctionPolicy(limits=Limits(max_requests=1, max_pending_requests=1)))
    woken: list[str] = []
    first = live.plan(Request(FUNCTION), endpoints(1), 0)
    second = live.plan(Request(FUNCTION), endpoints(1), 0, wake=lambda: woken.append("second"))
    third = live.plan(Request(FUNCTION), endpoints(1), 0)

    assert isinstance(first.next(0), Try)
    assert isinstance(second.next(0), Wait)
    overflow = third.next(0)
    assert isinstance(overflow, GiveUp)
    assert (overflow.status, overflow.code) == (503, "PEN0844")
    first.result(1, OK)

    assert woken == ["second"]
    assert isinstance(second.next(1), Try)


def test_a_call_that_is_closed_gives_back_what_it_held() -> None:
    live = policies(FunctionPolicy(limits=Limits(max_requests=1, max_pending_requests=1)))
    trying, waiting = (live.plan(Request(FUNCTION), endpoints(1), 0) for _ in range(2))
    trying.next(0)
    waiting.next(0)

    waiting.close(1)
    trying.close(1)
    trying.close(1)

    statistics = live.statistics(1)[FUNCTION]
    assert (statistics.active, statistics.pending) == (0, 0)
    assert isinstance(live.plan(Request(FUNCTION), endpoints(1), 1).next(1), Try)


def test_an_answer_says_more_than_the_reason_to_stop_trying() -> None:
    """The second attempt finds no time left, and the caller gets what the first one brought."""
    route = Route(timeout_s=0.1, retries=Retries(retry_on=frozenset({"5xx"})))

    result = Caller(policies(None, route), endpoints(2)).call(always(BROKEN, seconds=0.099))

    assert result.end == Finish(BROKEN)
