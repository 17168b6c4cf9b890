"""Mistakes that both type checkers must find: each line with `# expect: ...`, whose text is in both reports.

Read by tests/test_typing.py, never run.
"""

from __future__ import annotations

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.fence import FencedState
from penstock.functions.saga_course import Saga
from penstock.functions.state import Log, Message, State, Table

app = App("flights")


class Departure(Message):
    carrier: str
    minutes: float | None = None


class Delay(Message):
    minutes: float


class Ask(Message):
    pass


class Airport(State):
    departures: int = 0
    counts: Table[str, int] = Table()
    events: Log[Departure] = Log()


@app.function("flights/carrier")
def carrier(ctx: Context[None], message: Delay | Ask) -> float:
    return 0.0


@app.function("flights/slow")
async def slow(ctx: Context[None], message: Ask) -> str:
    return "answer"


@app.function("flights/airport")
def airport(ctx: Context[Airport], message: Departure) -> None:
    ctx.state.departure += 1  # expect: departure
    ctx.state.departures = "many"  # expect: int
    ctx.state.counts[5] = 1  # expect: str
    ctx.state.counts["a"] = "one"  # expect: int
    ctx.state.events.append(Ask())  # expect: Departure
    ctx.send(carrier, "AA", Departure("AA", 1.0))  # expect: send
    ctx.send(carrier, 5, Ask())  # expect: str
    ctx.send(slow, "AA", Delay(1.0))  # expect: send
    ctx.send(carrier, "AA", Delay("late"))  # expect: float
    ctx.send_after("1h", airport, "JFK", Ask())  # expect: send_after
    ctx.send_afer("1h", airport, "JFK", message)  # expect: send_afer
    Departure()  # expect: carrier
    assert message.dep_delay  # expect: dep_delay


@app.function("flights/no_message")  # expect: __call__
def no_message(ctx: Context[None]) -> None:
    pass


@app.function("flights/wrong_option", on_failure="skip")  # expect: on_failure
def wrong_option(ctx: Context[None], message: Ask) -> None:
    pass


app.schedule("@daily", carrier)  # expect: schedule
app.schedule("@daily", carrier, message=5)  # expect: schedule


class Seats(FencedState):
    free: int = 0


app.participant("flights/none", Airport)  # expect: Airport
flight = app.participant("flights/flight", Seats)


@flight.action  # expect: action
def other_state(ctx: Context[Airport], message: Ask) -> int:
    return 1


@flight.action
def hold(ctx: Context[Seats], message: Ask) -> int:
    return ctx.state.free


@app.saga("flights/trip", steps=[hold], recovery="sideways")  # expect: recovery
async def trip(saga: Saga, message: Departure) -> str:
    held: str = await saga.step(hold, "AA 1", Ask())  # expect: int
    await saga.step(hold, "AA 1", Delay(1.0))  # expect: step
    await saga.step(carrier, "AA", Ask())  # expect: Action
    return held


@app.saga("flights/plain", steps=[hold])  # expect: __call__
def plain(saga: Saga, message: Departure) -> str:
    return "plain"
