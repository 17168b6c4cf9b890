"""What customers order: an endless sequence, the same whenever it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random

from penstock import Message

CUSTOMERS = 150
ITEMS = ("tea", "milk", "rum", "salt", "soap", "wool")
PRICES = dict(zip(ITEMS, (4, 1, 15, 2, 3, 40), strict=True))
CITIES = ("Ulm", "Bonn", "Kiel", "Jena", "Gera", "stormy Sylt")
IMPATIENT_MS = 600
"""Within this, impatient customers cancel: before, in the midst of, or after anything an order does."""


class Order(Message):
    """One order, and what fate holds for it."""

    number: str
    customer: str
    item: str
    quantity: int
    price: int
    city: str
    patience_ms: int
    travels_ms: int
    gets_lost: bool


def order(number: int) -> Order:
    """Order number `number` of the sequence."""
    choose = Random(number)
    item, quantity = choose.choice(ITEMS), choose.randint(1, 5)
    return Order(
        number=f"order-{number}",
        customer=f"customer-{choose.randrange(CUSTOMERS)}",
        item=item,
        quantity=quantity,
        price=quantity * PRICES[item],
        city=choose.choices(CITIES, weights=(8, 8, 8, 8, 8, 1))[0],
        patience_ms=choose.randint(0, IMPATIENT_MS) if choose.random() < 0.2 else 60_000,
        travels_ms=choose.randint(50, 500),
        gets_lost=choose.random() < 0.05,
    )


def orders_until(end: int, *, rate: float | None = None) -> Callable[[int], AsyncIterator[Order]]:
    """The first `end` orders, `rate` of them a second, from any number on."""

    async def orders_from(start: int) -> AsyncIterator[Order]:
        for number in range(start, end):
            if rate:
                await asyncio.sleep(1 / rate)
            yield order(number)

    return orders_from
