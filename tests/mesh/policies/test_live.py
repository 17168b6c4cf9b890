"""The policies in force: which route is taken, and what survives a change."""

from __future__ import annotations

from random import Random

import pytest

from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.guard import Admission, Refusal
from penstock.mesh.policies.live import TARGETS_MAX, Policies
from penstock.mesh.policies.plan import Request, Try
from penstock.mesh.policies.settings import (
    AccessRule,
    Breaker,
    FunctionPolicy,
    Limits,
    Match,
    OutlierDetection,
    PolicySet,
    RateLimit,
    Route,
    Scope,
    TextMatch,
    TokenBucket,
)
from tests.mesh.policies.script import BROKEN, FUNCTION, OK, Caller, always, endpoints, policies

BETA = {"x-cohort": TextMatch(exact="beta")}
ROUTES = (
    Route((Match(TextMatch(exact="shop/cart")),), timeout_s=1),
    Route((Match(TextMatch(prefix="shop/"), BETA), Match(caller=TextMatch(exact="shop/order"))), timeout_s=2),
    Route((Match(TextMatch(prefix="shop/"), without_headers={"x-bot": TextMatch()}),), timeout_s=3),
)


@pytest.mark.parametrize(
    ("function", "headers", "caller", "timeout_s"),
    [
        ("shop/cart", {"x-cohort": "beta"}, "", 1),
        ("shop/payment", {"x-cohort": "beta"}, "", 2),
        ("shop/payment", {"x-cohort": "gamma"}, "", 3),
        ("shop/payment", {"x-cohort": "gamma", "x-bot": ""}, "", 15),
        ("shop/payment", {"x-bot": ""}, "shop/order", 2),
        ("bank/account", {}, "shop/order", 2),
        ("bank/account", {}, "", 15),
    ],
)
def test_the_first_route_that_matches_is_taken(
    function: str, headers: dict[str, str], caller: str, timeout_s: float
) -> None:
    live = Policies(PolicySet(routes=ROUTES), draw=Random(1).random)

    step = live.plan(Request(function, "1", headers, caller), endpoints(1), 0.0).next(0.0)

    assert isinstance(step, Try)
    assert step.timeout_s == timeout_s


def test_a_route_holds_from_the_next_call_on() -> None:
    live = policies(None, Route(timeout_s=1))
    begun = live.plan(Request(FUNCTION), endpoints(1), 0.0)

    live.apply(PolicySet(routes=(Route(timeout_s=2),)), 0.0)

    timeouts = [plan.next(0.0) for plan in (begun, live.plan(Request(FUNCTION), endpoints(1), 0.0))]
    assert [step.timeout_s for step in timeouts if isinstance(step, Try)] == [1, 2]


def test_what_is_known_of_endpoints_survives_a_change_of_something_else() -> None:
    policy = FunctionPolicy(
        outlier_detection=OutlierDetection(max_ejection_percent=100), breaker=Breaker(scope=Scope.ID), panic_threshold=0
    )
    live = policies(policy)
    caller = Caller(live, endpoints(1))
    for _ in range(5):
        caller.ask(always(BROKEN, seconds=0))
    assert caller.ask(always(OK)).status == 503

    live.apply(PolicySet({FUNCTION: policy}, (Route(timeout_s=1),)), caller.now_s)
    assert caller.ask(always(OK)).status == 503

    live.apply(PolicySet(), caller.now_s)
    assert caller.ask(always(OK)).status == 200


def test_an_open_breaker_is_forgotten_only_with_its_settings() -> None:
    breaker = Breaker(scope=Scope.FUNCTION)
    live = policies(FunctionPolicy(breaker=breaker))
    caller = Caller(live, endpoints(1))
    for _ in range(6):
        caller.ask(always(BROKEN))

    live.apply(PolicySet({FUNCTION: FunctionPolicy(breaker=breaker, limits=Limits(1, 1))}), caller.now_s)
    assert caller.ask(always(OK)).status == 503
    live.apply(PolicySet({FUNCTION: FunctionPolicy(breaker=Breaker(scope=Scope.FUNCTION, timeout_s=1))}), caller.now_s)

    assert caller.ask(always(OK)).status == 200


def test_the_guard_of_a_host_follows_a_change() -> None:
    limited = FunctionPolicy(rate_limit=RateLimit(TokenBucket(1, fill_interval_s=60)))
    rule = AccessRule(TextMatch(exact=FUNCTION), (TextMatch(exact="shop/order"),))
    live = policies(limited)

    def admitted() -> bool:
        found = live.admit(FUNCTION, "charge", Peer("shop/cart"), 0.0)
        assert isinstance(found, Admission | Refusal)
        return isinstance(found, Admission)

    assert [admitted(), admitted()] == [True, False]
    live.apply(PolicySet({FUNCTION: limited}, (Route(),)), 0.0)
    assert not admitted()
    live.apply(PolicySet(), 0.0)
    assert admitted()
    live.apply(PolicySet(access=(rule,)), 0.0)
    assert not admitted()


def test_statistics_tell_what_endpoints_did_from_what_callers_saw() -> None:
    caller = Caller(policies(), endpoints(3))

    caller.ask(always(OK))
    caller.ask(lambda host, attempt: always(OK if attempt == 3 else BROKEN)(host, attempt), keyed=True)

    found = caller.policies.statistics(caller.now_s)[FUNCTION]
    assert (found.calls, found.calls_succeeded) == (2, 2)
    assert (found.attempts, found.attempts_succeeded) == (4, 2)
    assert (found.retry, found.retry_success) == (2, 1)


def test_functions_that_nobody_calls_any_more_are_forgotten_when_there_are_too_many() -> None:
    live = policies()
    under_way = live.plan(Request("shop/slow"), endpoints(1), 0.0)
    under_way.next(0.0)
    for number in range(TARGETS_MAX):
        live.plan(Request(f"app/{number}"), [], 0.0).close(0.0)

    assert set(live.statistics(0.0)) == {"shop/slow", f"app/{TARGETS_MAX - 1}"}
    under_way.result(1.0, OK)
    assert live.statistics(1.0)["shop/slow"].calls_succeeded == 1
