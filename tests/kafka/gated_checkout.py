"""The checkout example with as many orders as the file `gate` has bytes: whoever kills it lets them in by and by, so
that some are always under way.

The environment has CHECKOUT_DIRECTORY, and CHECKOUT_ORDERS: so many are let in in the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from examples.checkout.app import connect
from examples.checkout.bank import path
from examples.checkout.orders import Order, order

GATE = "gate"
LOOK_S = 0.02

_directory = path().parent


async def orders_from(start: int) -> AsyncIterator[Order]:
    for number in range(start, int(os.environ["CHECKOUT_ORDERS"])):
        while (_directory / GATE).stat().st_size <= number:  # noqa: ASYNC110  # A file says nothing.
            await asyncio.sleep(LOOK_S)
        yield order(number)


app = connect(_directory / "results", orders_from)
