"""Puts aside what a handler can't process, tells why, and goes on with the rest.

    python examples/dead_letter.py

On a directory that is kept, they can be looked at, and sent again after a correction:

    penstock run examples/dead_letter.py --dir orders --until-done
    penstock dead list --dir orders
"""

from collections.abc import Iterator

from penstock import App, Context, GeneratorIngress, Message, State, StdoutEgress
from penstock.engine.run import run

app = App("orders")
invoices = app.egress("orders/invoices", StdoutEgress())

PRICES = {"tea": 3, "rum": 12}


class Order(Message):
    customer: str
    item: str


class Customer(State):
    owes: int = 0


@app.function("orders/customer", attempts=2, backoff="10ms")
def customer(ctx: Context[Customer], order: Order) -> None:
    """Fails for what has no price. Nothing of a failed attempt is kept; after the second the order is put aside."""
    ctx.state.owes += PRICES[order.item]
    ctx.emit(invoices, f"{ctx.id} owes {ctx.state.owes}.")


def orders(start: int) -> Iterator[dict[str, object]]:
    yield {"customer": "Ada", "item": "tea"}
    yield {"customer": "Ada", "item": "gin"}  # Has no price: the handler fails.
    yield {"customer": "Grace", "item": 12}  # Is no order: it never reaches the handler.
    yield {"customer": "Ada", "item": "rum"}


app.ingress(GeneratorIngress(orders), to=customer, key="customer")

if __name__ == "__main__":
    worker = run(app)
    put_aside = sum(unit.core.statistics().dead_letters for unit in worker.units)
    print(f"{put_aside} orders were put aside.")
