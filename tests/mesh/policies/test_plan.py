"""One call through the policies: what is tried, what comes next and when it is over."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import Finish, GiveUp, Request, Try, Wait
from penstock.mesh.policies.settings import (
    Abort,
    Backoff,
    Delay,
    Fault,
    FunctionPolicy,
    Limits,
    Mirror,
    Retries,
    Route,
    Side,
    Weighted,
)
from penstock.mesh.rehearsal import Answer
from tests.mesh.policies.script import (
    BROKEN,
    FUNCTION,
    NO_CONNECTION,
    OK,
    Caller,
    Endpoint,
    always,
    endpoints,
    policies,
)


def test_a_call_that_is_answered_ends_with_the_answer() -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.ask(always(OK))

    assert result.end == Finish(OK)
    assert [attempt.timeout_s for attempt in result.attempts] == [15.0]


def test_a_connection_that_fails_is_tried_twice_more_each_time_at_another_host() -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.ask(always(NO_CONNECTION))

    assert len({attempt.host for attempt in result.attempts}) == 3
    assert isinstance(result.end, GiveUp)
    assert (result.end.status, result.end.code) == (503, "PEN0849")


@pytest.mark.parametrize(("keyed", "attempts"), [(False, 1), (True, 3)])
def test_what_may_have_been_processed_is_tried_again_only_with_a_key(keyed: bool, attempts: int) -> None:
    caller = Caller(policies(), endpoints(3))

    result = caller.ask(always(BROKEN), keyed=keyed)

    assert len(result.attempts) == attempts
    assert result.end == Finish(BROKEN)


def test_a_delivery_takes_no_slot_from_those_who_wait_for_an_answer() -> None:
    live = policies(FunctionPolicy(limits=Limits(max_requests=1, max_pending_requests=0)))
    delivery = live.plan(Request(FUNCTION, "1", patient=True), endpoints(1), 0.0)
    assert isinstance(delivery.next(0.0), Try)

    call = live.plan(Request(FUNCTION, "2"), endpoints(1), 0.0)

    assert isinstance(call.next(0.0), Try)
    another = live.plan(Request(FUNCTION, "3", patient=True), endpoints(1), 0.0)
    assert isinstance(another.next(0.0), Try)


def test_an_id_with_state_goes_to_its_owner_and_to_the_next_one_when_that_fails() -> None:
    caller = Caller(policies(stateful=True), endpoints(3))
    owner = caller.ask(always(OK)).attempts[0].host

    result = caller.ask(lambda host, _: Answer(NO_CONNECTION if host == owner else OK))

    hosts = [attempt.host for attempt in result.attempts]
    assert hosts[0] == owner
    assert len(hosts) == 2
    assert caller.ask(always(OK)).attempts[0].host == owner


def test_without_a_host_nothing_is_tried() -> None:
    result = Caller(policies(), []).ask(always(OK))

    assert result.attempts == ()
    assert isinstance(result.end, GiveUp)
    assert (result.end.status, result.end.code) == (503, "PEN0841")


def test_the_deadline_of_the_caller_bounds_the_call_too() -> None:
    result = Caller(policies(), endpoints(1)).ask(always(OK, seconds=5), timeout_ms=200)

    assert result.attempts[0].timeout_s == pytest.approx(0.2)
    assert result.status == 504
    assert result.took_s == pytest.approx(0.2)


def test_a_call_whose_time_is_over_is_never_begun() -> None:
    result = Caller(policies(), endpoints(1)).ask(always(OK), timeout_ms=0)

    assert result.attempts == ()
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

    result = Caller(policies(None, route), endpoints(2)).ask(always(BROKEN, seconds=0.099))

    assert result.end == Finish(BROKEN)


def test_a_fault_of_the_side_of_the_client_stands_for_the_whole_call() -> None:
    """As in Istio, nothing of its route is tried again or timed."""
    fault = Fault(Delay(100, 0.5), Abort(100, 503), Side.CLIENT)
    caller = Caller(policies(None, Route(timeout_s=0.2, fault=fault)), endpoints(3))

    result = caller.ask(always(OK), keyed=True)

    assert result.attempts == ()
    assert isinstance(result.end, GiveUp)
    assert (result.end.status, result.end.code) == (503, "PEN0845")
    assert result.took_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("outcome", "least_s", "most_s"),
    [
        (Outcome(503, retry_after_s=2), 2, 3),
        (Outcome(503, retry_after_s=301), 0, 0.025),
        (Outcome(503, Failure.REFUSED, retry_after_s=2), 0, 0.025),
    ],
    ids=["heeded", "too long", "of a host that refused before it began"],
)
def test_the_wait_a_server_asks_for_takes_the_place_of_the_back_off(
    outcome: Outcome, least_s: float, most_s: float
) -> None:
    route = Route(retries=Retries(attempts=1, retry_on=frozenset({"5xx"})))

    result = Caller(policies(None, route), endpoints(2)).ask(always(outcome, seconds=0))

    first, second = result.attempts
    assert least_s <= second.at_s - first.at_s <= most_s


def test_a_wait_that_does_not_fit_into_the_time_left_is_not_begun() -> None:
    route = Route(timeout_s=1, retries=Retries(attempts=1, retry_on=frozenset({"5xx"})))

    result = Caller(policies(None, route), endpoints(2)).ask(always(Outcome(503, retry_after_s=2)))

    assert (len(result.attempts), result.status) == (1, 503)
    assert result.took_s < 0.1


def test_a_retry_goes_to_the_same_host_when_there_is_no_other() -> None:
    result = Caller(policies(), endpoints(1)).ask(always(NO_CONNECTION))

    assert len(result.attempts) == 3


def test_a_retry_may_go_to_the_same_host_when_the_route_says_so() -> None:
    route = Route(retries=Retries(previous_hosts=False))

    result = Caller(policies(None, route, stateful=True), endpoints(3)).ask(always(NO_CONNECTION))

    assert len({attempt.host for attempt in result.attempts}) == 1


def test_retries_without_end_end_with_the_deadline() -> None:
    route = Route(timeout_s=1, retries=Retries(attempts=-1, backoff=Backoff(0.1, constant=True)))

    result = Caller(policies(None, route), endpoints(1)).ask(always(NO_CONNECTION, seconds=0))

    assert len(result.attempts) == 10
    assert result.status == 503


def test_a_host_that_refused_before_it_began_is_what_the_caller_sees_in_the_end() -> None:
    refused = Outcome(503, Failure.REFUSED)

    result = Caller(policies(), endpoints(3)).ask(always(refused))

    assert result.end == Finish(refused)
    assert len(result.attempts) == 3


def test_a_route_to_a_subset_without_a_host_says_which_one() -> None:
    route = Route(split=(Weighted("v3", 1),))

    result = Caller(policies(None, route), endpoints(3)).ask(always(OK))

    assert isinstance(result.end, GiveUp)
    assert result.end.message.startswith("No endpoint of subset 'v3' serves shop/payment")


def test_without_any_timeout_an_attempt_has_all_the_time_there_is() -> None:
    result = Caller(policies(None, Route(timeout_s=0)), endpoints(1)).ask(always(OK))

    assert result.attempts[0].timeout_s is None


def test_a_caller_that_can_not_be_woken_looks_again_soon() -> None:
    live = policies(FunctionPolicy(limits=Limits(max_requests=1)))
    first, second = (live.plan(Request(FUNCTION), endpoints(1), 0.0) for _ in range(2))
    first.next(0.0)

    waiting = second.next(0.0)
    assert isinstance(waiting, Wait)
    assert waiting.seconds < 0.1
    first.result(0.01, OK)

    assert isinstance(second.next(0.02), Try)


def test_a_call_that_waits_in_the_queue_until_its_deadline_is_over() -> None:
    live = policies(FunctionPolicy(limits=Limits(max_requests=1)), Route(timeout_s=1))
    first, second = (live.plan(Request(FUNCTION), endpoints(1), 0.0) for _ in range(2))
    first.next(0.0)
    second.next(0.0)

    end = second.next(1.0)

    assert isinstance(end, GiveUp)
    assert end.status == 504
    assert live.statistics(1.0)[FUNCTION].pending == 0


@pytest.mark.parametrize(("percentage", "drawn", "mirrored"), [(0, 0.0, ""), (5, 0.049, "v2host-0"), (5, 0.05, "")])
def test_a_share_of_the_requests_is_mirrored(percentage: float, drawn: float, mirrored: str) -> None:
    route = Route(split=(Weighted("v1", 1),), mirror=Mirror("v2", percentage))
    hosts = [*endpoints(1, "v1"), *endpoints(1, "v2")]

    result = Caller(policies(None, route, draw=lambda: drawn), hosts).ask(always(OK))

    assert result.attempts[0].mirror == mirrored


def test_what_is_tried_after_a_wait_is_one_of_those_that_serve_the_function_then() -> None:
    live = policies(None, Route(split=(Weighted("v1", 1),)))
    plan = live.plan(Request(FUNCTION), endpoints(1, "v1"), 0.0)
    plan.next(0.0)
    plan.result(0.0, NO_CONNECTION)
    waiting = plan.next(0.0)
    assert isinstance(waiting, Wait)

    plan.see([Endpoint("new", "v1"), Endpoint("other", "v2")])

    step = plan.next(waiting.seconds)
    assert isinstance(step, Try)
    assert step.endpoint.name == "new"
