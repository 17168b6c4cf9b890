"""A shop whose orders are written from top to bottom, and come to one end each, whatever dies meanwhile.

    orders --> customer --> order --> shelf        one address per item: what is there, reserved, sold and lost
                              |-----> courier      one address per city: where its parcels are
                              '.....> bank.py      outside: knows nothing of Penstock, but keys of requests

Whatever `order` awaits is kept in a journal: it is run again after a crash, and gets what it got before. When an order
fails or is cancelled, what it did is undone by steps that are right however far it had come, so `order` need not
remember how far that was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

from examples.checkout.bank import charge, refund
from examples.checkout.orders import Order
from penstock import App, Context, FileEgress, GeneratorIngress, Message, State

app = App("checkout")

STOCK = 150
"""Of every item, when the shop opens."""
STORM = "1500ms"
"""How long the courier of a stormy city waits before it goes out."""
TAKEN_WITHIN = "1s"
"""A courier that has not taken a parcel by then is given up."""
DELIVERED_WITHIN = "2s"
"""A parcel that has not arrived by then is called back."""

Fate = Literal["not sent", "on its way", "delivered", "lost", "called back"]
"""What became of a parcel."""
Outcome = Literal["delivered", "sold out", "declined", "undeliverable", "cancelled"]
"""How an order ends: in exactly one of these."""


class Reserve(Message):
    """To a shelf: keep so many for this order. Answered by whether they are there."""

    order: str
    quantity: int


class Settle(Message):
    """To a shelf: the order has ended, and this is what became of its goods."""

    order: str
    fate: Fate


class Parcel(Message):
    """To a courier: bring this. Answered once it is taken."""

    order: str
    travels_ms: int
    gets_lost: bool


class Arrive(Message):
    """A courier to itself: this parcel is there."""

    order: str


class CallBack(Message):
    """To a courier: bring it back, if it is not delivered. Answered by what became of it."""

    order: str


# The order.


class Sale(State):
    """For people who look. What `order` needs to go on is in its journal and its own variables."""

    outcome: Outcome | Literal["open"] = "open"


@app.function("checkout/order")
async def order(ctx: Context[Sale], wanted: Order) -> Outcome:
    """One order: to its end, or back to where it began."""
    try:
        outcome = await check_out(ctx, wanted)
        fate: Fate = "delivered" if outcome == "delivered" else await undo(ctx, wanted)
    except asyncio.CancelledError:  # Wherever it waited: also in the middle of `undo`, which is then done again.
        outcome, fate = "cancelled", await undo(ctx, wanted)
    if fate == "delivered":
        outcome = "delivered"  # Given up, or cancelled, a moment too late.
    ctx.send(shelf, wanted.item, Settle(ctx.id, fate))
    ctx.state.outcome = outcome
    ctx.emit("checkout/orders", {"order": ctx.id, "customer": wanted.customer, "outcome": outcome, "fate": fate})
    return outcome


async def check_out(ctx: Context[Sale], wanted: Order) -> Outcome:
    """What happens when all goes well, and the first thing that does not."""
    if not await ctx.call(shelf, wanted.item, Reserve(ctx.id, wanted.quantity)):
        return "sold out"
    if not await ctx.run("charge", charge, ctx.id, wanted.customer, wanted.price):
        return "declined"
    parcel = Parcel(ctx.id, wanted.travels_ms, wanted.gets_lost)
    try:
        await ctx.call(courier, wanted.city, parcel, timeout=TAKEN_WITHIN)
        async with ctx.timeout(DELIVERED_WITHIN):
            await ctx.promise("delivered")
    except TimeoutError:
        return "undeliverable"
    return "delivered"


async def undo(ctx: Context[Sale], wanted: Order) -> Fate:
    """Take back what was done, or was about to be. Where nothing was done, this does nothing, and doing it twice is
    doing it once."""
    fate = await ctx.call(courier, wanted.city, CallBack(ctx.id))
    if fate != "delivered":
        await ctx.run("refund", refund, ctx.id, wanted.customer)
    return fate


# Those it calls.


class Shelf(State):
    available: int = STOCK
    reserved: dict[str, int] = {}  # noqa: RUF012  # A field, not a shared dictionary.
    """By order."""
    sold: int = 0
    lost: int = 0
    changes: int = 0


@app.function("checkout/shelf")
def shelf(ctx: Context[Shelf], message: Reserve | Settle) -> bool:
    """The goods of one kind. Each change is a row."""
    goods = ctx.state
    match message:
        case Reserve(id, quantity) if quantity <= goods.available:
            goods.available -= quantity
            goods.reserved[id] = quantity
        case Settle(id, fate) if id in goods.reserved:
            quantity = goods.reserved.pop(id)
            goods.sold += quantity if fate == "delivered" else 0
            goods.lost += quantity if fate == "lost" else 0
            goods.available += quantity if fate in ("not sent", "called back") else 0
        case _:
            return False
    goods.changes += 1
    reserved = sum(goods.reserved.values())
    row = {"item": ctx.id, "change": goods.changes, "available": goods.available, "reserved": reserved}
    ctx.emit("checkout/stock", row | {"sold": goods.sold, "lost": goods.lost})
    return True


class Round(State):
    parcels: dict[str, Fate] = {}  # noqa: RUF012  # A field, not a shared dictionary.


@app.function("checkout/courier")
async def courier(ctx: Context[Round], message: Parcel | Arrive | CallBack) -> Fate:
    """The parcels of one city, one after the other. In a storm they wait, and so does whoever calls."""
    parcels = ctx.state.parcels
    match message:
        case Parcel(id, travels_ms, gets_lost) if id not in parcels:
            if ctx.id.startswith("stormy"):
                await ctx.sleep(STORM)
            ctx.state.parcels[id] = "lost" if gets_lost else "on its way"
            ctx.send_after(travels_ms / 1000, courier, ctx.id, Arrive(id))
        case Arrive(id) if parcels[id] == "on its way":
            parcels[id] = "delivered"
            ctx.resolve(order, id, "delivered")
        case CallBack(id) if parcels.setdefault(id, "not sent") == "on its way":  # If not sent, then not later either.
            parcels[id] = "called back"
    return ctx.state.parcels.get(message.order, "not sent")


class Purse(State):
    orders: dict[Outcome, int] = {}  # noqa: RUF012  # A field, not a shared dictionary.


@app.function("checkout/customer")
async def customer(ctx: Context[Purse], wanted: Order) -> None:
    """Places its orders one after the other, and cancels one that takes longer than its patience."""
    placed = ctx.call(order, wanted.number, wanted)
    try:
        async with ctx.timeout(wanted.patience_ms / 1000):
            outcome = await placed
    except TimeoutError:
        ctx.cancel_call(placed)
        outcome = await placed  # It says itself how it ended: perhaps it was delivered at that moment.
    ctx.state.orders[outcome] = ctx.state.orders.get(outcome, 0) + 1


def connect(results: Path, orders: Callable[[int], AsyncIterator[Order]]) -> App:
    """The application with the orders that `orders` yields from any number on, writing files into the directory
    `results`."""
    app.ingress(GeneratorIngress(orders, type=Order), to=customer, key="customer", name="orders")
    for name in ("orders", "stock"):
        app.egress(f"checkout/{name}", FileEgress(str(results), prefix=name))
    return app
