"""Counts how often each person was seen: one function, one value of state for each name.

Run it: `python examples/greeter.py`.
"""

from collections.abc import Iterator

from penstock import App, Context, GeneratorIngress, Message, State, StdoutEgress
from penstock.engine.run import run

app = App("greeter")
greetings = app.egress("greeter/greetings", StdoutEgress())


class Visit(Message):
    name: str


class Visits(State):
    count: int = 0


@app.function("greeter/greet")
def greet(ctx: Context[Visits], visit: Visit) -> None:
    ctx.state.count += 1
    ctx.emit(greetings, f"Hello {visit.name}, seen {ctx.state.count} times.")


def visits(start: int) -> Iterator[Visit]:
    yield from [Visit("Ada"), Visit("Grace"), Visit("Ada"), Visit("Ada")][start:]


app.ingress(GeneratorIngress(visits), to=greet, key="name")

if __name__ == "__main__":
    run(app)
