"""TrafficSplit, HTTPRouteGroup and TrafficTarget, as they are written for SMI."""

from __future__ import annotations

import re

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.policies.access import SPIFFE, Peer, is_allowed
from penstock.mesh.policies.settings import Match, TextMatch, Weighted
from penstock.mesh.policy_file import read_policies
from tests.mesh.strangers import STRANGER, told_of, with_a_stranger

GROUPS = """
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: money, namespace: shop}
spec:
  matches:
  - {name: charge, pathRegex: /charge, methods: [POST]}
  - {name: reads, pathRegex: /.*, methods: [GET]}
  - {name: any, pathRegex: "/.*", methods: ["*"]}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: beta, namespace: shop}
spec:
  matches:
  - {name: beta, headers: [{X-Cohort: "b.*"}]}
---
"""

SPLIT = """
apiVersion: split.smi-spec.io/v1alpha4
kind: TrafficSplit
metadata: {name: payment, namespace: shop}
spec:
  service: payment
  matches: [{kind: HTTPRouteGroup, name: beta}]
  backends:
  - {service: payment, weight: 90}
  - {service: payment-v2, weight: 10}
"""

TARGET = """
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: charge, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: payment, namespace: shop}
  rules: [{kind: HTTPRouteGroup, name: money, matches: [MATCH]}]
  sources: [{kind: ServiceAccount, name: order, namespace: shop}]
"""


def test_a_traffic_split_is_read_as_a_route() -> None:
    (route,) = read_policies(GROUPS + SPLIT).routes

    header = TextMatch(regex=re.compile("b.*"))
    assert route.matches == (Match(TextMatch(exact="shop/payment"), {"x-cohort": header}),)
    assert route.split == (Weighted("", 90), Weighted("v2", 10))


@pytest.mark.parametrize(
    ("match", "operation", "caller", "allowed"),
    [
        ("charge", "charge", "shop/order", True),
        ("charge", "charge", "spiffe://demo.local/ns/shop/sa/order", True),
        ("charge", "charge", "spiffe://demo.local/ns/shop/sa/cart", False),
        ("charge", "refund", "shop/order", False),
        ("charge", "charge", "shop/orders", False),
        ("charge", "charge", "", False),
        ("any", "refund", "shop/order", True),
    ],
)
def test_a_traffic_target_lets_in_those_it_names(match: str, operation: str, caller: str, allowed: bool) -> None:
    rules = read_policies(GROUPS + TARGET.replace("MATCH", match)).access

    assert rules[0].destination == TextMatch(exact="shop/payment")
    peer = Peer(identity=caller) if caller.startswith(SPIFFE) else Peer(caller)
    assert is_allowed(rules, operation, peer) is allowed


def test_rules_of_which_none_can_hold_let_nobody_in() -> None:
    """Only requests with the method GET, of which there are none: the function is not open to all for that."""
    groups = GROUPS.replace('  - {name: any, pathRegex: "/.*", methods: ["*"]}\n', "")
    groups = groups.replace("  - {name: charge, pathRegex: /charge, methods: [POST]}\n", "")
    target = TARGET.replace(", matches: [MATCH]", "")

    found = read_policies(groups + target)

    assert not is_allowed(found.access, "charge", Peer("shop/order"))
    assert "every request here is a POST" in found.warnings[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SPLIT, "no HTTPRouteGroup 'beta' stands before this document"),
        (GROUPS + SPLIT.replace("name: beta", "name: money"), "has a pathRegex, by which nothing can be split here"),
        (GROUPS + SPLIT.replace("90", "0").replace("10", "0"), "at least one is not 0"),
        (GROUPS + TARGET.replace("MATCH", "pay"), "the group has no match 'pay'"),
        (GROUPS + TARGET.replace("MATCH", "any").replace("kind: ServiceAccount", "kind: User"), "'User' is not supp"),
        (GROUPS + TARGET.replace("money", "beta").replace("MATCH", "beta"), "about headers, which any caller can wr"),
        (TARGET.replace("HTTPRouteGroup", "TCPRoute").replace("MATCH", "any"), "'TCPRoute' is not supported"),
        (GROUPS.replace("/charge", "/("), "expected a regular expression, got '/('"),
    ],
)
def test_what_would_change_the_meaning_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_policies(text)

    assert told in caught.value.message


def test_a_field_that_there_is_not_is_named_wherever_it_stands() -> None:
    for path, text in with_a_stranger(f"{GROUPS}{SPLIT}---{TARGET.replace('MATCH', 'charge')}", free=["headers"]):
        assert any(f"{STRANGER}: this field is not supported" in note for note in told_of(text)), path
