"""Who may ask what."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.access import is_allowed
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
    assert is_allowed(rules, operation, caller) is allowed
