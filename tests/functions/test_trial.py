"""One run of one handler: what it did is shown, and everything passes through the codecs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.io import FileEgress, MemoryEgress
from penstock.functions.state import Log, Message, State, Table, Value
from penstock.functions.trial import DelayedMessage
from penstock.ids import Address

app = App("flights")
alerts = app.egress("flights/alerts", FileEgress("out"))


class Departure(Message):
    carrier: str
    minutes: float = 0.0


class Alert(Message):
    carrier: str


class Airport(State):
    departures: int = 0
    minutes: list[float] = []  # noqa: RUF012  # msgspec gives every state a list of its own.
    by: Table[str, int] = Table()
    events: Log[str] = Log()


@app.function("flights/carrier")
def carrier(ctx: Context[None], message: Departure) -> None: ...


@app.function("flights/airport")
def airport(ctx: Context[Airport], message: Departure) -> int:
    ctx.state.departures += 1
    ctx.state.minutes.append(message.minutes)
    ctx.state.by[message.carrier] = ctx.state.by.get(message.carrier, 0) + 1
    ctx.state.events.append(message.carrier)
    return ctx.state.departures


@app.function("flights/busy")
def busy(ctx: Context[None], message: Departure) -> None:
    ctx.send(carrier, "AA", message)
    ctx.send("other/function", "b", {"untyped": [1]})
    ctx.send_after("1h", carrier, "AA", message, token="later")
    ctx.cancel("earlier")
    ctx.emit(alerts, Alert("AA"), key="AA", headers={"h": "1"})
    ctx.emit("flights/elsewhere", Alert("BB"))
    ctx.reply(message)


def test_the_state_is_what_would_be_stored() -> None:
    out = airport.test(Departure("AA", 2.5), id="JFK", state=Airport(departures=1))

    assert out.state == Airport(departures=2, minutes=[2.5])
    assert (dict(out.state.by), list(out.state.events)) == ({"AA": 1}, ["AA"])
    assert out.reply == 2


def test_a_state_of_a_wrong_type_is_refused() -> None:
    @App("loose").function("loose/airport")
    def loose(ctx: Context[Airport], message: str) -> None:
        ctx.state.departures = message  # type: ignore[assignment]

    with pytest.raises(InvalidInput, match="PEN0205 State of loose/airport/JFK is of type Airport: "):
        loose.test("many", id="JFK")


def test_without_a_state_the_address_is_fresh() -> None:
    assert airport.test(Departure("AA"), id="JFK").state.departures == 1


def test_one_run_continues_with_the_state_of_another_and_leaves_it_alone() -> None:
    first = airport.test(Departure("AA", 1), id="JFK").state
    second = airport.test(Departure("AA", 2), id="JFK", state=first).state

    assert (first.minutes, dict(first.by), list(first.events)) == ([1], {"AA": 1}, ["AA"])
    assert (second.minutes, dict(second.by), list(second.events)) == ([1, 2], {"AA": 2}, ["AA", "AA"])


def test_everything_the_handler_asked_for_is_shown_in_order() -> None:
    departure = Departure("AA", 12.5)

    out = busy.test(departure, id="JFK")

    assert out.sent == [(carrier, "AA", departure), ("other/function", "b", {"untyped": [1]})]
    assert out.delayed == [DelayedMessage(timedelta(hours=1), carrier, "AA", departure, "later")]
    assert out.cancelled == ["earlier"]
    assert out.emitted == [(alerts, Alert("AA")), ("flights/elsewhere", Alert("BB"))]
    assert (out.rows[0].value, out.rows[0].key) == (b'{"type":"Alert","carrier":"AA"}\n', b"AA")
    assert out.rows[0].headers == (("h", "1"),)
    assert (out.reply, out.state, out.storage) == (departure, None, None)


def test_what_is_given_is_seen_by_the_handler() -> None:
    seen: list[Any] = []

    def look(ctx: Context[None], message: Departure) -> None:
        seen.append((ctx.address, ctx.caller, ctx.now, dict(ctx.message.headers), ctx.message.attempt))

    function = App("other").function("t/look")(look)
    moment = datetime(2027, 5, 1, 12, tzinfo=UTC)
    caller = Address("t/x", "y")
    function.test(Departure("AA"), id="a", caller=caller, now=moment, headers={"h": "1"}, attempt=2)
    function.test(Departure("AA"), id="a")

    assert seen == [
        (Address("t/look", "a"), caller, moment, {"h": "1"}, 2),
        (Address("t/look", "a"), None, datetime(2026, 1, 1, tzinfo=UTC), {}, 1),
    ]


def test_what_the_handler_raises_is_raised() -> None:
    @App("other").function("t/fails")
    def fails(ctx: Context[None], message: int) -> None:
        raise ValueError("as told")

    with pytest.raises(ValueError, match="as told"):
        fails.test(1, id="a")


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda ctx: ctx.send(carrier, "", Departure("AA")), "PEN0203"),
        (lambda ctx: ctx.send(carrier, "AA", 5), "PEN0107"),
        (lambda ctx: ctx.send("t/big", "AA", "x" * 2_000_000), "PEN0204"),
        (lambda ctx: ctx.emit(alerts, object()), "PEN0206"),
        (lambda ctx: ctx.reply(object()), "PEN0208"),
    ],
)
def test_what_the_engine_would_refuse_is_refused(act: Any, code: str) -> None:
    @App("other").function("t/act")
    def handler(ctx: Context[None], message: int) -> None:
        act(ctx)

    with pytest.raises(InvalidInput) as caught:
        handler.test(1, id="a")
    assert caught.value.code == code


def test_an_async_handler_waits_without_taking_time() -> None:
    @App("other").function("t/slow")
    async def slow(ctx: Context[None], message: int) -> int:
        await asyncio.sleep(3_600)
        return message + 1

    assert slow.test(1, id="a").reply == 2


def test_the_dynamic_form_of_state_is_shown() -> None:
    @App("other").function("t/stored", storage={"count": Value(int, default=0), "name": Value(str)})
    def stored(ctx: Context[None], message: str) -> None:
        ctx.storage.count += 1
        ctx.storage.name = message

    out = stored.test("ann", id="a", storage={"count": 4})

    assert out.storage is not None
    assert (out.storage.count, out.storage.name) == (5, "ann")


def test_rows_of_every_kind_of_egress_are_shown() -> None:
    other = App("other")
    memory = other.egress("t/memory", MemoryEgress())

    @other.function("t/emits")
    def emits(ctx: Context[None], message: bytes) -> None:
        ctx.emit(memory, message)

    assert emits.test(b"\x80", id="a").emitted == [(memory, b"\x80")]
