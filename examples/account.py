"""Keeps the balances of an account by currency and all its movements: collections too large to load at once.

Run it: `python examples/account.py`.
"""

from collections.abc import Iterator

from penstock import App, Context, GeneratorIngress, Log, Message, State, StdoutEgress, Table
from penstock.engine.run import run

app = App("account")
statements = app.egress("account/statements", StdoutEgress())


class Movement(Message):
    account: str
    currency: str
    amount: int


class Account(State):
    balances: Table[str, int] = Table()
    movements: Log[Movement] = Log()


@app.function("account/account")
def account(ctx: Context[Account], movement: Movement) -> None:
    """Reads and writes one balance and one entry, however many there are."""
    balances, movements = ctx.state.balances, ctx.state.movements
    balances[movement.currency] = balances.get(movement.currency, 0) + movement.amount
    movements.append(movement)
    if len(movements) % 3 == 0:
        latest = [entry.amount for entry in movements.last(3)]
        ctx.emit(statements, {"account": ctx.id, "balances": dict(balances.items()), "latest": latest})


def history(start: int) -> Iterator[Movement]:
    amounts = [("EUR", 50), ("USD", 20), ("EUR", -10), ("GBP", 5), ("USD", -20), ("EUR", 7)]
    yield from [Movement("ada", *each) for each in amounts][start:]


app.ingress(GeneratorIngress(history), to=account, key="account")

if __name__ == "__main__":
    run(app)
