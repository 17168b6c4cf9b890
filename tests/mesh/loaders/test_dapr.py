"""Resiliency, as it is written for Dapr."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.policies.outcomes import Failure, Outcome, is_retriable
from penstock.mesh.policies.settings import Backoff, Match, Scope, TextMatch
from penstock.mesh.policy_file import read_policies
from tests.mesh.strangers import STRANGER, told_of, with_a_stranger

RESILIENCY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
scopes: [till]
spec:
  policies:
    timeouts: {general: 5s}
    retries:
      slowly: {policy: constant, duration: 2s, maxRetries: 4}
      some: {policy: exponential, maxInterval: 15s, maxRetries: 10, matching: {httpStatusCodes: "429,502-504"}}
      ever: {}
    circuitBreakers:
      cb1: {maxRequests: 1, interval: 8s, timeout: 45s, trip: "consecutiveFailures > 8"}
  targets:
    apps:
      orders: {timeout: general, retry: some, circuitBreaker: cb1, circuitBreakerCacheSize: 100}
    actors:
      Cart: {retry: slowly, circuitBreaker: cb1, circuitBreakerScope: id, circuitBreakerCacheSize: 50}
      Any: {retry: ever}
"""


def test_an_app_is_a_function_with_a_route_and_a_breaker() -> None:
    found = read_policies(RESILIENCY)

    route, policy = found.routes[0], found.functions["app/orders"]
    assert route.matches == (Match(TextMatch(exact="app/orders"), caller=TextMatch(exact="app/till")),)
    assert route.timeout_s == 0
    assert route.retries.per_try_timeout_s == 5.0
    assert route.retries.attempts == 10
    assert route.retries.backoff == Backoff(0.5, 15.0, multiplier=1.5)
    assert policy.breaker is not None
    assert policy.breaker.trip.text == "consecutiveFailures > 8"
    assert (policy.breaker.timeout_s, policy.breaker.interval_s) == (45, 8)
    assert (policy.breaker.scope, policy.breaker.cache_size) == (Scope.FUNCTION, 100)


def test_a_name_with_a_slash_is_a_function_itself() -> None:
    found = read_policies(RESILIENCY.replace("Cart:", "shop/cart:"))

    assert set(found.functions) == {"app/orders", "shop/cart"}


def test_an_actor_type_is_a_function_whose_breaker_may_be_for_each_id() -> None:
    found = read_policies(RESILIENCY)

    breaker = found.functions["actor/Cart"].breaker
    assert breaker is not None
    assert (breaker.scope, breaker.cache_size) == (Scope.ID, 50)
    assert found.routes[1].retries.backoff == Backoff(2.0, constant=True)


@pytest.mark.parametrize(
    ("retry", "outcome", "retriable"),
    [
        ("some", Outcome(429), True),
        ("some", Outcome(503), True),
        ("some", Outcome(500), False),
        ("some", Outcome(failure=Failure.RESET), True),
        ("ever", Outcome(404), True),
        ("ever", Outcome(500), True),
        ("ever", Outcome(200), False),
    ],
)
def test_every_failure_is_tried_again_unless_statuses_are_named(retry: str, outcome: Outcome, retriable: bool) -> None:
    found = read_policies(RESILIENCY.replace("retry: ever", f"retry: {retry}"))

    assert is_retriable(outcome, found.routes[2].retries.retry_on) is retriable


def test_a_retry_without_a_number_goes_on_for_ever() -> None:
    assert read_policies(RESILIENCY).routes[2].retries.attempts == -1


def test_what_is_not_supported_is_named() -> None:
    text = RESILIENCY.replace('"429,502-504"', '"429", gRPCStatusCodes: "14"').replace(
        "    actors:", "    components: {statestore: {}}\n    actors:"
    )
    text = text.replace("{general: 5s}", "{general: 5s, DefaultAppTimeoutPolicy: 1s}")

    warnings = [warning for warning in read_policies(text).warnings if "not supported" in warning]

    assert [warning.split(": ")[0] for warning in warnings] == [
        "line 8, spec.policies.timeouts.DefaultAppTimeoutPolicy",
        "line 11, spec.policies.retries.some.matching.gRPCStatusCodes",
        "line 18, spec.targets.components",
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("retry: ever", "retry: often", "retry: there is no policy 'often' among ever, slowly, some"),
        ("Scope: id", "Scope: app", "expected one of type, id, both, got 'app'"),
        ("502-504", "504-502", "'504-502' is no range of statuses"),
        ("policy: constant", "policy: random", "expected constant or exponential, got 'random'"),
        ("consecutiveFailures > 8", "failures", "'failures' is none of requests"),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_policies(RESILIENCY.replace(old, new))

    assert told in caught.value.message


FREE = ("timeouts", "retries", "circuitBreakers", "apps", "actors")
"""What is below these has names of the user's own."""


def test_a_field_that_there_is_not_is_named_wherever_it_stands() -> None:
    for path, text in with_a_stranger(RESILIENCY, free=FREE):
        assert any(f"{STRANGER}: this field is not supported" in note for note in told_of(text)), path
