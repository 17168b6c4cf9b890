"""VirtualService and DestinationRule, as they are written for Istio."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.policies.settings import (
    Abort,
    Backoff,
    Balance,
    Delay,
    Fault,
    Limits,
    LoadBalancing,
    Match,
    Mirror,
    RetryBudget,
    Side,
    TextMatch,
    Weighted,
)
from penstock.mesh.policy_file import read_policies
from tests.mesh.strangers import STRANGER, told_of, with_a_stranger

VIRTUAL_SERVICE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment, namespace: shop, annotations: {team: till}}
spec:
  hosts: [payment]
  http:
  - name: canary
    match: [{headers: {X-Cohort: {exact: beta}}, withoutHeaders: {x-bot: {}}}]
    route:
    - {destination: {host: payment, subset: v1}, weight: 90}
    - {destination: {host: payment.shop.svc.cluster.local, subset: v2}, weight: 10}
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 400ms, retryOn: "connect-failure,unavailable,503", backoff: 50ms}
    mirror: {host: payment, subset: v2}
    mirrorPercentage: {value: 5.0}
    fault:
      delay: {percentage: {value: 10}, fixedDelay: 200ms}
      abort: {percentage: {value: 1}, httpStatus: 500}
  - route: [{destination: {host: payment}}]
"""

DESTINATION_RULE = """
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: payment, namespace: shop}
spec:
  host: payment
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool:
      tcp: {maxConnections: 100, connectTimeout: 30ms}
      http: {http1MaxPendingRequests: 50, http2MaxRequests: 200, maxRetries: 7}
    outlierDetection: {consecutive5xxErrors: 7, interval: 5m, baseEjectionTime: 15m, maxEjectionPercent: 50,
                       minHealthPercent: 30}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""


def test_a_virtual_service_is_read_as_routes() -> None:
    found = read_policies(VIRTUAL_SERVICE)

    canary, rest = found.routes
    function = TextMatch(exact="shop/payment")
    assert canary.matches == (Match(function, {"x-cohort": TextMatch(exact="beta")}, {"x-bot": TextMatch()}),)
    assert canary.split == (Weighted("v1", 90), Weighted("v2", 10))
    assert canary.timeout_s == 2.0
    assert canary.retries.attempts == 3
    assert canary.retries.per_try_timeout_s == 0.4
    assert canary.retries.retry_on == {"connect-failure", "503"}
    assert canary.retries.retry_on_keyed == frozenset()
    assert canary.retries.backoff == Backoff(0.05, 0.5)
    assert canary.mirror == Mirror("v2", 5.0)
    assert canary.fault == Fault(Delay(10, 0.2), Abort(1, 500), Side.CLIENT)
    assert rest.matches == (Match(function),)
    assert rest.split == (Weighted("", 1),)
    assert rest.timeout_s == 0
    assert rest.retries.attempts == 2
    assert rest.retries.retry_on == {"connect-failure", "refused-stream"}


def test_a_destination_rule_is_read_as_the_policy_of_a_function() -> None:
    policy = read_policies(DESTINATION_RULE).functions["shop/payment"]

    assert policy.lb == LoadBalancing(Balance.ROUND_ROBIN)
    assert policy.limits == Limits(100, 50)
    assert policy.retry_budget == RetryBudget(0, 7)
    assert policy.outlier_detection is not None
    assert policy.outlier_detection.consecutive_5xx == 7
    assert policy.outlier_detection.consecutive_gateway_failure == 0
    assert policy.outlier_detection.interval_s == 300
    assert policy.outlier_detection.max_ejection_percent == 50
    assert policy.outlier_detection.enforcing_success_rate == 0
    assert policy.panic_threshold == 30
    assert policy.subsets == {"v1": {"version": "v1"}, "v2": {"version": "v2"}}


def test_what_is_not_supported_is_named() -> None:
    warnings = read_policies(f"{VIRTUAL_SERVICE}---{DESTINATION_RULE}").warnings

    assert [warning for warning in warnings if "not supported" in warning] == [
        "line 14, spec.http[0].retries.retryOn: 'unavailable' is not supported: no request here is one of gRPC",
        "line 30, spec.trafficPolicy.connectionPool.tcp.connectTimeout: this field is not supported and ignored",
    ]


def test_documents_of_several_kinds_make_one_set_of_policies() -> None:
    own = "functions: {shop/cart: {panic_threshold: 10}}\n"

    found = read_policies(f"{own}---{VIRTUAL_SERVICE}---{DESTINATION_RULE}")

    assert set(found.functions) == {"shop/cart", "shop/payment"}
    assert len(found.routes) == 2


def test_consistent_hashing_is_by_the_id() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
spec:
  host: shop/payment
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 512}}}}
"""
    found = read_policies(text)

    assert found.functions["shop/payment"].lb == LoadBalancing(Balance.RING_HASH, minimum_ring_size=512)
    assert "httpHeaderName: this field is not supported" in found.warnings[0]


@pytest.mark.parametrize(
    ("http", "told"),
    [
        ("{match: [{uri: {prefix: /a}}]}", "match[0].uri: this field is not supported: the route would take other"),
        ("{redirect: {uri: /b}}", "redirect: this field is not supported: the request would go somewhere else"),
        ("{route: [{destination: {host: cart}}]}", "'cart' is another function"),
        ("{route: [{destination: {host: a}}, {destination: {host: a}}]}", "at least one is not 0"),
        ("{route: [{weight: 1}]}", "destination: it is missing"),
        ("{mirror: {host: a}}", "mirror.subset: it is missing"),
    ],
)
def test_what_would_change_the_meaning_is_refused(http: str, told: str) -> None:
    text = f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec: {{hosts: [a], http: [{http}]}}\n"

    with pytest.raises(ConfigurationError) as caught:
        read_policies(text)

    assert f"line 3, spec.http[0].{told}" in caught.value.message or told in caught.value.message


@pytest.mark.parametrize(
    ("kind", "told"), [("VirtualService", "spec.hosts: it is missing"), ("DestinationRule", "spec.host: it is missing")]
)
def test_a_document_for_nothing_is_refused(kind: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_policies(f"apiVersion: networking.istio.io/v1\nkind: {kind}\nspec: {{}}\n")

    assert told in caught.value.message


FREE = ("headers", "withoutHeaders", "labels", "annotations")
"""What is below these has names of the user's own."""


def test_a_field_that_there_is_not_is_named_wherever_it_stands() -> None:
    for path, text in with_a_stranger(f"{VIRTUAL_SERVICE}---{DESTINATION_RULE}", free=FREE):
        assert any(f"{STRANGER}: this field is not supported" in note for note in told_of(text)), path
