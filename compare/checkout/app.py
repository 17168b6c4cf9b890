"""The shop that is compared: the same functions in both runtimes, and under every way of going about an order.

    shop/order --> shop/inventory   one address per sku: what is there, reserved and sold
             |---> shop/payment     one address per user: what is left, and .....> the bank, outside
             '---> shop/shipment    one address per order: its parcel

Only `shop/order` is another one for each way of going about it (COMPARE_FLOW): the others know all of them.

| flow         | an order                                                                                      |
| plain        | asks for one thing after the other, and undoes them when goods or money are short             |
| saga         | is a saga: each step takes effect at once, and is compensated when a later one fails          |
| parallel     | is a saga that asks for goods and money at the same time                                      |
| tcc          | is a saga whose steps reserve, and are confirmed or cancelled together                        |
| choreography | is handed on, by messages, from one participant to the next                                   |

`saga` without fences (COMPARE_FENCE=off) is the one that is written by hand: it undoes whatever it began, and those it
asks remember nothing of what they were asked. It is there to go wrong. What else the environment says: `settings`.

That goods or money are short is an answer. Whatever else keeps an order from its end is a fault.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, assert_never

from penstock import App, Branch, Context, Declined, FencedState, FunctionError, Message, Saga, State
from penstock.compare.checkout.bank import Asked, What
from penstock.compare.checkout.data import FAILED, NO_FUNDS, NO_STOCK
from penstock.compare.checkout.settings import Flow, read
from penstock.compare.checkout.teller import Teller
from penstock.compare.checkout.witness import Witness

SETTINGS = read(os.environ)
TELLER = Teller(SETTINGS.bank, SETTINGS.bank_timeout_s)
WITNESS = Witness(SETTINGS.witness)

app = App("shop")
participant = partial(app.participant, attempts=SETTINGS.attempts, on_failure=SETTINGS.on_failure)


# Inventory: the goods of one kind.


class Shelf(FencedState):
    on_hand: int = SETTINGS.stock
    reserved: dict[str, int] = {}  # noqa: RUF012  # A field, not a shared dictionary. By order, as the next one.
    sold: dict[str, int] = {}  # noqa: RUF012


class Reserve(Message):
    """Keep so many for this order. Answered by whether they are there."""

    order: str
    quantity: int


class Settle(Message):
    """The order has ended: what is reserved for it is sold, or free again."""

    order: str
    is_sold: bool


class Order(Message):
    """To `shop/order`, whose id is that of the order."""

    user: str
    lines: list[tuple[str, int]]
    """Each sku once, and how many of it."""
    amount: int


class Leg(Message):
    """To the steps of a saga that is handed on: the whole order, and how many of its lines are reserved."""

    id: str
    order: Order
    reserved: int = 0


inventory = participant("shop/inventory", Shelf)


def keep(goods: Shelf, order: str, quantity: int) -> bool:
    """Reserve, if there is enough. Asked twice, it reserves twice: whoever asks has to see to that."""
    if quantity > goods.on_hand:
        return False
    goods.on_hand -= quantity
    goods.reserved[order] = goods.reserved.get(order, 0) + quantity
    return True


def sell(goods: Shelf, order: str) -> None:
    if order in goods.reserved:
        goods.sold[order] = goods.sold.get(order, 0) + goods.reserved.pop(order)


def release(goods: Shelf, order: str) -> None:
    goods.on_hand += goods.reserved.pop(order, 0)


@inventory.message
def reserve(ctx: Context[Shelf], wanted: Reserve) -> bool:
    with WITNESS.sees(ctx, wanted.order):
        return keep(ctx.state, wanted.order, wanted.quantity)


@inventory.message
def settle(ctx: Context[Shelf], settled: Settle) -> None:
    with WITNESS.sees(ctx, settled.order):
        (sell if settled.is_sold else release)(ctx.state, settled.order)


@inventory.action
def take(ctx: Context[Shelf], wanted: Reserve) -> Declined | None:
    """Of a saga: sold at once, for all to see."""
    with WITNESS.sees(ctx, wanted.order):
        if not keep(ctx.state, wanted.order, wanted.quantity):
            return Declined(NO_STOCK)
        sell(ctx.state, wanted.order)
        return None


@take.compensation
def put_back(ctx: Context[Shelf], wanted: Reserve) -> None:
    with WITNESS.sees(ctx, wanted.order):
        ctx.state.on_hand += ctx.state.sold.pop(wanted.order, 0)


@inventory.action
def hold(ctx: Context[Shelf], wanted: Reserve) -> Declined | None:
    """Try: nobody takes it for sold yet."""
    with WITNESS.sees(ctx, wanted.order):
        return None if keep(ctx.state, wanted.order, wanted.quantity) else Declined(NO_STOCK)


@hold.confirmation
def sell_held(ctx: Context[Shelf], wanted: Reserve) -> None:
    with WITNESS.sees(ctx, wanted.order):
        sell(ctx.state, wanted.order)


@hold.compensation
def release_held(ctx: Context[Shelf], wanted: Reserve) -> None:
    with WITNESS.sees(ctx, wanted.order):
        release(ctx.state, wanted.order)


@inventory.action
def hold_next(ctx: Context[Shelf], leg: Leg, branch: Branch) -> Declined | None:
    """The first steps of a saga that is handed on, one for each line."""
    with WITNESS.sees(ctx, leg.id):
        lines, following = leg.order.lines, Leg(leg.id, leg.order, leg.reserved + 1)
        _, quantity = lines[leg.reserved]
        if not keep(ctx.state, leg.id, quantity):
            tell(ctx, leg, NO_STOCK)
            return Declined(NO_STOCK)
        if following.reserved < len(lines):
            sku, _ = lines[following.reserved]
            branch.hand_on(ctx, hold_next, sku, following, name=f"hold-{sku}")
        else:
            branch.hand_on(ctx, pay_next, leg.order.user, following)
        return None


@hold_next.confirmation
def sell_next(ctx: Context[Shelf], leg: Leg) -> None:
    with WITNESS.sees(ctx, leg.id):
        sell(ctx.state, leg.id)


@hold_next.compensation
def release_next(ctx: Context[Shelf], leg: Leg) -> None:
    with WITNESS.sees(ctx, leg.id):
        release(ctx.state, leg.id)


# Payment: the money of one user, whose other half is in the bank.


class Purse(FencedState):
    balance: int = SETTINGS.balance
    held: dict[str, int] = {}  # noqa: RUF012  # By order: authorised, and not captured.
    paid: dict[str, int] = {}  # noqa: RUF012


class Charge(Message):
    """Take the price of this order. Answered by why that can't be; by nothing when it is done."""

    order: str
    amount: int


class Refund(Message):
    """Give back whatever was taken for this order."""

    order: str
    amount: int


payment = participant("shop/payment", Purse)


async def ask(ctx: Context[Any], what: What, order: str, amount: int, key: str = "") -> bool:
    """Ask the bank. It has `key` for what is the same request in every run of a step of a saga; else the key of this
    request alone."""
    asked = Asked(what, order, ctx.id, amount, f"{key}/{what}" if key else "")
    done: bool = await ctx.run(what, TELLER.ask, asked, retry=SETTINGS.bank_retry)
    return done


async def collect(ctx: Context[Purse], order: str, amount: int, key: str = "") -> str:
    """Take the money, first there and then here. Why it can't be; empty when it is taken."""
    if amount > ctx.state.balance:
        return NO_FUNDS
    for what in (What.AUTHORISE, What.CAPTURE) if SETTINGS.is_two_phase else (What.CAPTURE,):
        if not await ask(ctx, what, order, amount, key):
            return FAILED  # It was undone before.
    ctx.state.balance -= amount
    ctx.state.paid[order] = ctx.state.paid.get(order, 0) + amount
    return ""


async def give_back(ctx: Context[Purse], order: str, amount: int, key: str = "") -> None:
    """However far it had come."""
    await ask(ctx, What.REFUND, order, amount, key)
    ctx.state.balance += ctx.state.paid.pop(order, 0)


@payment.message
async def charge(ctx: Context[Purse], price: Charge) -> str:
    with WITNESS.sees(ctx, price.order):
        return await collect(ctx, price.order, price.amount)


@payment.message
async def refund(ctx: Context[Purse], price: Refund) -> None:
    with WITNESS.sees(ctx, price.order):
        await give_back(ctx, price.order, price.amount)


@payment.action
async def pay(ctx: Context[Purse], price: Charge, branch: Branch) -> Declined | None:
    """Of a saga: captured at once."""
    with WITNESS.sees(ctx, price.order):
        refused = await collect(ctx, price.order, price.amount, branch.key)
        return Declined(refused) if refused else None


@pay.compensation
async def pay_back(ctx: Context[Purse], price: Charge, branch: Branch) -> None:
    with WITNESS.sees(ctx, price.order):
        await give_back(ctx, price.order, price.amount, branch.key)


@payment.action
async def authorise(ctx: Context[Purse], price: Charge, branch: Branch) -> Declined | None:
    """Try: the money is put aside, here and there."""
    with WITNESS.sees(ctx, price.order):
        if price.amount > ctx.state.balance:
            return Declined(NO_FUNDS)
        if not await ask(ctx, What.AUTHORISE, price.order, price.amount, branch.key):
            return Declined(FAILED)
        ctx.state.balance -= price.amount
        ctx.state.held[price.order] = price.amount
        return None


@authorise.confirmation
async def capture(ctx: Context[Purse], price: Charge, branch: Branch) -> None:
    with WITNESS.sees(ctx, price.order):
        await ask(ctx, What.CAPTURE, price.order, price.amount, branch.key)
        ctx.state.paid[price.order] = ctx.state.held.pop(price.order)


@authorise.compensation
async def void(ctx: Context[Purse], price: Charge, branch: Branch) -> None:
    with WITNESS.sees(ctx, price.order):
        await ask(ctx, What.VOID, price.order, price.amount, branch.key)
        ctx.state.balance += ctx.state.held.pop(price.order, 0)


@payment.action
async def pay_next(ctx: Context[Purse], leg: Leg, branch: Branch) -> Declined | None:
    """The last but one step of a saga that is handed on."""
    with WITNESS.sees(ctx, leg.id):
        if refused := await collect(ctx, leg.id, leg.order.amount, branch.key):
            tell(ctx, leg, refused)
            return Declined(refused)
        branch.hand_on(ctx, ship_last, leg.id, leg)
        return None


@pay_next.compensation
async def pay_back_next(ctx: Context[Purse], leg: Leg, branch: Branch) -> None:
    with WITNESS.sees(ctx, leg.id):
        await give_back(ctx, leg.id, leg.order.amount, branch.key)


# Shipment: the parcel of one order.


class Parcel(FencedState):
    packed: int = 0
    """Before it is known whether it is sent."""
    sent: int = 0


class Ship(Message):
    """Send the parcel of this order."""

    user: str


class CallBack(Message):
    """Send it no more."""

    user: str


shipment = participant("shop/shipment", Parcel)


@shipment.message
def send(ctx: Context[Parcel], _: Ship) -> None:
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.sent += 1


@shipment.message
def call_back(ctx: Context[Parcel], _: CallBack) -> None:
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.sent = 0


@shipment.action
def ship(ctx: Context[Parcel], _: Ship) -> None:
    """Of a saga: what decides it. Nobody calls a parcel back."""
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.sent += 1


@shipment.action
def pack(ctx: Context[Parcel], _: Ship) -> None:
    """Try."""
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.packed += 1


@pack.confirmation
def send_packed(ctx: Context[Parcel], _: Ship) -> None:
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.packed -= 1
        ctx.state.sent += 1


@pack.compensation
def unpack(ctx: Context[Parcel], _: Ship) -> None:
    with WITNESS.sees(ctx, ctx.id):
        ctx.state.packed -= 1


@shipment.action
def ship_last(ctx: Context[Parcel], leg: Leg) -> None:
    """The last step of a saga that is handed on."""
    with WITNESS.sees(ctx, leg.id):
        ctx.state.sent += 1
        tell(ctx, leg, "")


# The order.


class Outcome(State):
    """How an order has ended, for whoever looks; and the answer to who placed it."""

    outcome: str = ""
    """`CONFIRMED` or `REJECTED`; empty while it has not."""
    reason: str = ""
    user: str = ""
    lines: list[tuple[str, int]] = []  # noqa: RUF012  # A field, not a shared list.
    amount: int = 0


def end(ctx: Context[Outcome], order: Order, reason: str) -> Outcome:
    """The order has ended: with a reason, it was rejected."""
    state = ctx.state
    state.outcome, state.reason = "REJECTED" if reason else "CONFIRMED", reason
    state.user, state.lines, state.amount = order.user, order.lines, order.amount
    return state


def taste(id: str) -> None:
    """Poison is what always fails. It is found before anything is done."""
    if SETTINGS.poison and fnmatchcase(id, SETTINGS.poison):
        raise ValueError(f"{id} is poison")


Undo = Callable[[], Awaitable[Any]]


async def one_after_the_other(ctx: Context[Outcome], order: Order) -> Outcome:
    """What anybody would write first."""
    with WITNESS.sees(ctx, ctx.id):
        taste(ctx.id)
        undo: list[Undo] = []
        reason = await check_out(ctx, order, undo)
        if reason:
            for each in reversed(undo):
                await each()
        return end(ctx, order, reason)


async def by_hand(ctx: Context[Outcome], order: Order) -> Outcome:
    """A saga as it is written without a fence: also what did not answer is undone, and whoever is asked forgets it."""
    with WITNESS.sees(ctx, ctx.id):
        taste(ctx.id)
        undo: list[Undo] = []
        try:
            async with ctx.timeout(SETTINGS.patience_s):
                reason = await check_out(ctx, order, undo)
        except (FunctionError, TimeoutError):
            reason = FAILED
        if reason:
            for each in reversed(undo):
                await insist(ctx, each)
        return end(ctx, order, reason)


async def insist(ctx: Context[Outcome], undo: Undo) -> None:
    while True:
        try:
            await undo()
        except (FunctionError, TimeoutError):
            await ctx.sleep("200ms")
        else:
            return


async def check_out(ctx: Context[Outcome], order: Order, undo: list[Undo]) -> str:
    """Why it is rejected; empty if it is not. What undoes a thing is noted before that is asked for, as it may be done
    without an answer; and what is refused need not be undone."""
    for sku, quantity in order.lines:
        undo.append(partial(ctx.call, inventory, sku, Settle(ctx.id, is_sold=False), detached=True))
        if not await ctx.call(inventory, sku, Reserve(ctx.id, quantity)):
            undo.pop()
            return NO_STOCK
    undo.append(partial(ctx.call, payment, order.user, Refund(ctx.id, order.amount), detached=True))
    if refused := await ctx.call(payment, order.user, Charge(ctx.id, order.amount)):
        undo.pop()
        return str(refused)
    undo.append(partial(ctx.call, shipment, ctx.id, CallBack(order.user), detached=True))
    await ctx.call(shipment, ctx.id, Ship(order.user))
    for sku, _ in order.lines:
        await ctx.call(inventory, sku, Settle(ctx.id, is_sold=True))
    return ""


async def in_a_saga(saga: Saga, order: Order) -> Outcome:
    """One step after the other, each with its effect at once."""
    with WITNESS.sees(saga.ctx, saga.id):
        taste(saga.id)
        for sku, quantity in order.lines:
            await saga.step(take, sku, Reserve(saga.id, quantity), name=f"take-{sku}")
        await saga.step(pay, order.user, Charge(saga.id, order.amount))
        await saga.step(ship, saga.id, Ship(order.user))
        return receipt(order)


async def side_by_side(saga: Saga, order: Order) -> Outcome:
    """Goods and money at the same time, and then the parcel."""
    with WITNESS.sees(saga.ctx, saga.id):
        taste(saga.id)
        goods = [saga.step(take, sku, Reserve(saga.id, quantity), name=f"take-{sku}") for sku, quantity in order.lines]
        await saga.all(*goods, saga.step(pay, order.user, Charge(saga.id, order.amount)))
        await saga.step(ship, saga.id, Ship(order.user))
        return receipt(order)


async def tried_and_confirmed(saga: Saga, order: Order) -> Outcome:
    """Everything is reserved before anything is final."""
    with WITNESS.sees(saga.ctx, saga.id):
        taste(saga.id)
        for sku, quantity in order.lines:
            await saga.step(hold, sku, Reserve(saga.id, quantity), name=f"hold-{sku}")
        await saga.step(authorise, order.user, Charge(saga.id, order.amount))
        await saga.step(pack, saga.id, Ship(order.user))
        return receipt(order)


def receipt(order: Order) -> Outcome:
    return Outcome(outcome="CONFIRMED", user=order.user, lines=order.lines, amount=order.amount)


# The order that is handed on. Nobody owns it, so whoever ends it tells.

ENDED = "ended"


class Ended(Message):
    """To `shop/order`: it has, for this reason if it was rejected."""

    order: Order
    reason: str


def tell(ctx: Context[Any], leg: Leg, reason: str) -> None:
    """The order, and whoever waits for it."""
    ctx.resolve("shop/order", leg.id, ENDED, reason)
    ctx.send("shop/order", leg.id, Ended(leg.order, reason))


def hand_in(ctx: Context[None], order: Order) -> None:
    """Begins it. What `shop/order` sends by itself would leave when that has ended, which it does not before this."""
    with WITNESS.sees(ctx, ctx.id):
        sku, _ = order.lines[0]
        hold_next.begin(ctx, sku, Leg(ctx.id, order), saga=ctx.id, watch="1h")


async def handed_on(ctx: Context[Outcome], message: Order | Ended) -> Outcome:
    """Waits for the end, and writes it down also when nobody waits any more."""
    with WITNESS.sees(ctx, ctx.id):
        if isinstance(message, Ended):
            return end(ctx, message.order, message.reason)
        taste(ctx.id)
        await ctx.call("shop/desk", ctx.id, message)
        return end(ctx, message, await ctx.promise(ENDED, str))


# Which of them it is.

BACKOFF: Final = "200ms"
BACKOFF_MAX: Final = "2s"


def declare(flow: Flow, *, is_fenced: bool) -> None:
    """`shop/order`, as the environment says."""
    name = "shop/order"
    function = partial(app.function, name, attempts=SETTINGS.attempts, on_failure=SETTINGS.on_failure)
    saga = partial(app.saga, name, deadline=SETTINGS.patience_s, backoff=BACKOFF, backoff_max=BACKOFF_MAX)
    match flow:
        case "plain":
            function()(one_after_the_other)
        case "saga":
            saga(steps=[take, pay], pivot=ship)(in_a_saga) if is_fenced else function()(by_hand)
        case "parallel":
            saga(steps=[take, pay], pivot=ship)(side_by_side)
        case "tcc":
            saga(steps=[hold, authorise, pack])(tried_and_confirmed)
        case "choreography":
            app.function("shop/desk")(hand_in)
            function()(handed_on)
        case _:
            assert_never(flow)


declare(SETTINGS.flow, is_fenced=SETTINGS.is_fenced)
