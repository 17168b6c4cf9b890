"""Counts visits. Run it with `penstock run`, then in another terminal:

penstock call counter/page home '{"visitor": "ada"}'
penstock state get counter/page home
"""

from penstock import App, Context, Message, State

app = App("counter")


class Visit(Message):
    visitor: str


class Page(State):
    visits: int = 0
    last_visitor: str = ""


@app.function("counter/page")
def page(ctx: Context[Page], visit: Visit) -> int:
    """One page, named by its id: every page has a state of its own."""
    ctx.state.visits += 1
    ctx.state.last_visitor = visit.visitor
    return ctx.state.visits
