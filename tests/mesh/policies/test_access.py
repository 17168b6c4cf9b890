"""Who may ask what."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.access import Peer, is_allowed
from penstock.mesh.policies.settings import AccessRule, Action, TextMatch

PAYMENT = TextMatch(exact="shop/payment")
ORDER = (TextMatch(exact="shop/order"),)
ANYBODY = (TextMatch(),)
CHARGE = (TextMatch(exact="charge"),)

LETS_ORDER_CHARGE = AccessRule(PAYMENT, ORDER, CHARGE)
LETS_ANYBODY_READ = AccessRule(PAYMENT, ANYBODY, (TextMatch(prefix="read"),))
KEEPS_ORDER_OUT = AccessRule(PAYMENT, ORDER, action=Action.DENY)


@pytest.mark.parametrize(
    ("rules", "operation", "caller", "allowed"),
    [
        ([], "charge", "", True),
        ([LETS_ORDER_CHARGE], "charge", "shop/order", True),
        ([LETS_ORDER_CHARGE], "refund", "shop/order", False),
        ([LETS_ORDER_CHARGE], "charge", "shop/cart", False),
        ([LETS_ORDER_CHARGE], "charge", "", False),
        ([LETS_ORDER_CHARGE, LETS_ANYBODY_READ], "read-all", "shop/cart", True),
        ([LETS_ORDER_CHARGE, LETS_ANYBODY_READ], "charge", "shop/cart", False),
        ([LETS_ORDER_CHARGE, KEEPS_ORDER_OUT], "charge", "shop/order", False),
        ([KEEPS_ORDER_OUT], "charge", "shop/cart", True),
        ([KEEPS_ORDER_OUT], "charge", "shop/order", False),
        ([AccessRule(PAYMENT, ())], "charge", "shop/order", False),
    ],
)
def test_a_deny_comes_first_and_an_allow_closes_the_door_to_the_others(
    rules: list[AccessRule], operation: str, caller: str, allowed: bool
) -> None:
    assert is_allowed(rules, operation, Peer(caller)) is allowed


ORDERS_IDENTITY = "spiffe://demo.local/ns/shop/sa/order"
LETS_IDENTITY_CHARGE = AccessRule(PAYMENT, (TextMatch(exact=ORDERS_IDENTITY),))
LETS_ANY_IDENTITY_CHARGE = AccessRule(PAYMENT, (TextMatch(prefix="spiffe://demo.local/"),))


@pytest.mark.parametrize("rule", [LETS_IDENTITY_CHARGE, LETS_ANY_IDENTITY_CHARGE])
def test_an_identity_is_believed_of_a_certificate_and_not_of_what_a_caller_says(rule: AccessRule) -> None:
    assert is_allowed([rule], "charge", Peer("shop/cart", ORDERS_IDENTITY))
    assert not is_allowed([rule], "charge", Peer(ORDERS_IDENTITY))
    assert not is_allowed([rule], "charge", Peer(ORDERS_IDENTITY, "spiffe://other.local/ns/shop/sa/cart"))


def test_a_refused_caller_is_named_by_all_that_is_known_of_it() -> None:
    assert str(Peer("shop/cart", ORDERS_IDENTITY)) == f"shop/cart of {ORDERS_IDENTITY}"
    assert str(Peer()) == "somebody unknown"
