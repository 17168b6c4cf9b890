"""Takes orders, reserves stock, and writes invoices.

    orders.jsonl --> customer --> stock --> customer --> invoices/
                        ^___________________|

Run it with `penstock run`; stop it with Ctrl-C, or kill it: no invoice is lost, and none is written twice.
"""

from penstock import App, Context, FileEgress, FileIngress, Message, State

app = App("orders")


class Order(Message):
    order: str
    customer: str
    product: str
    count: int


class Reserved(Message):
    order: Order
    ok: bool


class Customer(State):
    orders: int = 0
    refused: int = 0


class Stock(State):
    left: int = 10


invoices = app.egress("orders/invoices", FileEgress("invoices"))


@app.function("orders/stock")
def stock(ctx: Context[Stock], order: Order) -> None:
    """One product. Its messages come one at a time, so nothing can be sold twice."""
    ok = order.count <= ctx.state.left
    if ok:
        ctx.state.left -= order.count
    ctx.send(customer, order.customer, Reserved(order, ok))


@app.function("orders/customer")
def customer(ctx: Context[Customer], message: Order | Reserved) -> None:
    """One customer: passes orders on, and hears what became of them."""
    match message:
        case Order():
            ctx.state.orders += 1
            ctx.send(stock, message.product, message)
        case Reserved(order, True):
            ctx.emit(invoices, {"order": order.order, "customer": ctx.id, "product": order.product})
        case Reserved():
            ctx.state.refused += 1


app.ingress(FileIngress("orders.jsonl", type=Order), to=customer, key="customer", name="orders")
