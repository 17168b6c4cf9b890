"""What customers order, from a seed; and how an order ends, in one word for every way of going about it.

Plain data: whoever offers load, keeps the books or judges can import it, and meets nothing of the runtimes by that.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Any, Final, NamedTuple

FUNCTIONS: Final = ("shop/order", "shop/inventory", "shop/payment", "shop/shipment")
"""Those whose states the oracle reads. Ids: the order, the sku, the user, the order."""
CUSTOMERS: Final = 500
SKUS: Final = 100
LINES_MAX: Final = 5
QUANTITY_MAX: Final = 3
STOCK: Final = 1_000
"""Of each sku, if nobody says otherwise."""
BALANCE: Final = 2_000
"""Of each user, if nobody says otherwise. An order costs 60 on average: the most frequent customers run out of it."""
NO_STOCK: Final = "no stock"
NO_FUNDS: Final = "no funds"
FAILED: Final = "failed"
"""Why an order is rejected that nothing was wrong with: something did not answer, and what was done is undone."""


class Placed(NamedTuple):
    """One order, as it is placed."""

    id: str
    user: str
    lines: list[tuple[str, int]]
    """What, and how many of it. No sku is there twice."""
    amount: int

    @property
    def body(self) -> dict[str, Any]:
        """The message to `shop/order`."""
        return {"type": "Order", "user": self.user, "lines": self.lines, "amount": self.amount}


def order(seed: int, number: int, theta: float) -> Placed:
    """Order `number` of a run. The more `theta`, the more the orders crowd at a few skus and users: the k-th is chosen
    1/k^theta times as often as the first."""
    dice = Random(f"{seed}/{number}")
    wanted: dict[int, int] = {}
    for _ in range(dice.randint(1, LINES_MAX)):
        wanted[_one_of(dice, SKUS, theta)] = dice.randint(1, QUANTITY_MAX)
    return Placed(
        id=f"o-{seed}-{number}",
        user=f"user-{_one_of(dice, CUSTOMERS, theta)}",
        lines=[(f"sku-{sku}", quantity) for sku, quantity in wanted.items()],
        amount=sum(_price(sku) * quantity for sku, quantity in wanted.items()),
    )


def initial(stock: int = STOCK, balance: int = BALANCE) -> dict[str, dict[str, int]]:
    """What there is before the first order: `stock` by sku, `balances` by user."""
    return {
        "stock": {f"sku-{sku}": stock for sku in range(SKUS)},
        "balances": {f"user-{user}": balance for user in range(CUSTOMERS)},
    }


def outcome_of(answer: Any) -> str:
    """How an order has ended, by what `shop/order` answers: `CONFIRMED`, `REJECTED:why`, or nothing when it has not.

    An order that is a saga answers as sagas do: completed with a value, or compensated for a reason.
    """
    match answer:
        case {"outcome": "CONFIRMED"} | {"type": "Completed"}:
            return "CONFIRMED"
        case {"outcome": "REJECTED", "reason": str(reason)} | {"type": "Compensated", "reason": str(reason)}:
            return f"REJECTED:{reason if reason in (NO_STOCK, NO_FUNDS) else FAILED}"
        case _:
            return ""


def answer_in(state: Mapping[str, Any]) -> Any:
    """What an order has been answered, or would be, by its state. The record of a saga has it under `ended`."""
    return (state.get("ended") or {}).get("outcome") if "ended" in state or "phase" in state else state


def _price(sku: int) -> int:
    return 1 + sku * 7 % 19


def _one_of(dice: Random, count: int, theta: float) -> int:
    weights = _weights(count, theta)
    return bisect(weights, dice.random() * weights[-1])


@lru_cache
def _weights(count: int, theta: float) -> list[float]:
    return list(accumulate(1 / rank**theta for rank in range(1, count + 1)))
