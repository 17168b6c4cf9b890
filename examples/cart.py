"""Reminds people of a cart they left, unless they check out: a delayed message, called back by its token.

Run it: `python examples/cart.py`.
"""

from collections.abc import Iterator

from penstock import App, Context, GeneratorIngress, Message, State, StdoutEgress
from penstock.engine.run import run

app = App("cart")
mails = app.egress("cart/mails", StdoutEgress())

PATIENCE = "200ms"  # In earnest, a day or so. The wait is part of the state: it survives a restart.


class Add(Message):
    customer: str
    item: str


class CheckOut(Message):
    customer: str


class Remind(Message):
    pass


class Cart(State):
    items: tuple[str, ...] = ()


@app.function("cart/cart")
def cart(ctx: Context[Cart], message: Add | CheckOut | Remind) -> None:
    items = ctx.state.items
    match message:
        case Add(item=item):
            ctx.state.items = (*items, item)
            ctx.send_after(PATIENCE, cart, ctx.id, Remind(), token="reminder")  # Moves the one that was set before.
        case CheckOut():
            ctx.cancel("reminder")
            ctx.emit(mails, f"Thank you, {ctx.id}, for buying {', '.join(items)}.")
            ctx.state = Cart()
        case Remind():
            ctx.emit(mails, f"{ctx.id}, you left {', '.join(items)} in your cart.")


def clicks(start: int) -> Iterator[Add | CheckOut]:
    clicked: list[Add | CheckOut] = [Add("Ada", "tea"), Add("Grace", "rum"), Add("Ada", "milk"), CheckOut("Ada")]
    yield from clicked[start:]


app.ingress(GeneratorIngress(clicks, type=Add | CheckOut), to=cart, key="customer")

if __name__ == "__main__":
    run(app)
