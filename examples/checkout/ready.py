"""The example as `penstock run examples.checkout.ready:app` finds it, with any log and any number of workers.

Where to write, and what to read, is in the environment, because every worker of a run has to come to the same:
CHECKOUT_DIRECTORY (`checkout`, if left out), CHECKOUT_ORDERS (orders in all), CHECKOUT_RATE (orders a second).
"""

from __future__ import annotations

import os

from examples.checkout.app import connect
from examples.checkout.bank import path
from examples.checkout.orders import orders_until

_orders, _rate = os.environ.get("CHECKOUT_ORDERS", "200"), os.environ.get("CHECKOUT_RATE")

app = connect(path().parent / "results", orders_until(int(_orders), rate=float(_rate) if _rate else None))
