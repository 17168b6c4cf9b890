"""What users write, and both type checkers must accept as it is. Read by tests/test_typing.py; also run by it."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.fence import FencedState
from penstock.functions.function import Function
from penstock.functions.participant import Action, Declined, Participant
from penstock.functions.relay import Branch
from penstock.functions.saga_course import Saga
from penstock.functions.saga_record import Compensated, Completed
from penstock.functions.schedule import Schedule, Scheduled
from penstock.functions.state import Expire, Log, Message, State, Table, Value
from penstock.testing import Harness, Trial

app = App("flights")


class Departure(Message):
    carrier: str
    minutes: float | None = None


class Delay(Message):
    minutes: float


class Ask(Message):
    pass


class Item(State):
    count: int = 0


class Airport(State):
    departures: int = 0
    last: Annotated[float | None, Expire(after_write="30d")] = None
    counts: Table[str, int] = Table()
    items: Table[tuple[str, int], Item] = Table()
    events: Log[Departure] = Log()


class Carrier(State):
    total: float = 0.0


@app.function("flights/carrier")
def carrier(ctx: Context[Carrier], message: Delay | Ask) -> float:
    match message:
        case Delay(minutes=minutes):
            ctx.state.total += minutes
        case Ask():
            ctx.reply(ctx.state.total)
    return ctx.state.total


@app.schedule("0 2 * * *", tz="Europe/Berlin", missed="all")
@app.function("flights/report")
def report(ctx: Context[None], message: Scheduled | Ask) -> str:
    return str(message)


assert_type(report, Function[Scheduled | Ask, str])
assert_type(app.schedule("@daily", carrier, id="AA", message=Ask()), Schedule)
assert_type(app.schedule("@hourly", report, name="hourly"), Schedule)


@app.function("flights/airport", attempts=5, backoff="1s", on_failure="halt")
def airport(ctx: Context[Airport], message: Departure) -> None:
    ctx.state.departures += 1
    ctx.state.last = message.minutes
    ctx.state.counts["all"] = ctx.state.counts.get("all", 0) + 1
    ctx.state.counts["all"] += 1
    ctx.state.items["a", 1].count += 1
    ctx.state.events.append(message)
    assert_type(ctx.state.events[-1], Departure)
    assert_type(ctx.state.events.last(3), list[Departure])
    assert_type(list(ctx.state.counts.items()), list[tuple[str, int]])
    ctx.send(carrier, message.carrier, Delay(message.minutes or 0.0))
    ctx.send(carrier, message.carrier, Ask())
    ctx.send_after("1h", airport, ctx.id, message, token="day")
    ctx.send("flights/anything", "AA", {"untyped": True})


@app.function("flights/slow")
async def slow(ctx: Context[None], message: Ask) -> str:
    return "answer"


@app.function("flights/dynamic", storage={"seen": Value(int, default=0)})
def dynamic(ctx: Context[None], message: dict[str, Any]) -> None:
    ctx.storage.seen += 1


class Seats(FencedState):
    free: int = 0


flight = app.participant("flights/flight", Seats)
assert_type(flight, Participant[Seats])


@flight.message
def open_seats(ctx: Context[Seats], message: Delay) -> None:
    ctx.state.free += 1


@flight.action
def hold(ctx: Context[Seats], message: Ask, branch: Branch) -> int | Declined:
    return Declined("full") if branch.step == "x" else ctx.state.free


@hold.compensation
def release(ctx: Context[Seats], message: Ask) -> None:
    ctx.state.free += 1


@flight.action
async def board(ctx: Context[Seats], message: Delay) -> str | Declined:
    return await ctx.call(slow, "x", Ask())


@app.saga("flights/trip", steps=[hold], pivot=board, deadline="1h")
async def trip(saga: Saga, message: Departure) -> str:
    assert_type(await saga.step(hold, "AA 1", Ask()), int)
    out, back = await saga.all(saga.step(hold, "AA 1", Ask(), name="out"), saga.step(hold, "AA 2", Ask(), name="back"))
    assert_type(out, int)
    seat = await saga.step(board, "AA 1", Delay(float(back)), timeout="1m")
    assert_type(seat, str)
    return f"{seat} {await saga.ctx.call(slow, 'x', Ask())}"


assert_type(hold, Action[Ask, int])
assert_type(board, Action[Delay, str])
assert_type(trip, Function[Departure, Completed[str] | Compensated])
assert_type(carrier, Function[Delay | Ask, float])
assert_type(airport, Function[Departure, None])
assert_type(slow, Function[Ask, str])


def notify(targets: list[Function[Ask, Any]], ctx: Context[None]) -> None:
    """A function that takes more than `Ask` is one that takes `Ask`."""
    for target in targets:
        ctx.send(target, "AA", Ask())


def notify_all(ctx: Context[None]) -> None:
    notify([carrier, slow], ctx)


def test_kit(h: Harness) -> None:
    h.send(airport, "JFK", Departure("AA"))
    assert_type(h.call(carrier, "AA", Ask()), float)
    assert_type(carrier.test(Delay(1.5), id="AA"), Trial)
