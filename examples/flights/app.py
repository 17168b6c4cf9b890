"""Where the delays of 336,776 flights come from: late aircraft carry them from leg to leg.

    departures --> plane --+--> airport-day     one address per airport and day
         |                 +--> carrier
         |                 +--> route
         +---> airport ---------^               says when a day of its airport is over, and how many flights it had

Only the order between two addresses is certain, so no result may depend on any other. The departures of an aircraft
come in order from one ingress: `plane` relies on that. The reports of many aircraft reach a day in any order: its
totals are sums, and it closes when it has as many as the airport counted, however long that takes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from penstock import App, Context, FileEgress, FileIngress, Function, Message, State

app = App("flights")

GRACE = "100ms"
"""How long a day waits for reports that are still on their way before it looks whether it has them all."""


# What comes in.


class Departure(Message):
    """A scheduled flight, and what became of it. Delays in minutes; negative ones are early."""

    date: dt.date
    carrier: str
    flight: int
    tailnum: str | None
    """The aircraft. Of some cancelled flights it is not known."""
    origin: str
    dest: str
    dep_delay: int | None
    """None: it never departed."""
    arr_delay: int | None
    """None although it departed: it was diverted."""


class EndOfInput(Message):
    """The last record. As in many feeds, it says how many records there should have been."""

    airports: list[str]
    carriers: dict[str, int]
    routes: dict[str, int]


# What functions tell each other.


class Scheduled(Message):
    """To an airport: one more departure on this date."""

    date: dt.date


class NoMoreFlights(Message):
    """To an airport: the day it is at was the last."""


class Leg(Message):
    """A flight together with the minutes of its delay that its aircraft brought along."""

    flight: Departure
    knock_on: int = 0


class Close(Message):
    """To whoever adds up flights: there are this many. Emit the totals when all are in."""

    flights: int


# The functions.


class Plane(State):
    """An aircraft: how late its last leg of the day arrived, and the chain of delays it is in."""

    date: dt.date | None = None
    late: int = 0
    chain: tuple[str, ...] = ()
    knock_on: int = 0
    """Minutes handed on along the chain."""


@app.function("flights/plane")
def plane(ctx: Context[Plane], flight: Departure) -> None:
    """Finds how much of a departure's delay the aircraft brought along.

    That is the lateness of its previous arrival on the same day, but no more than the delay itself. A leg that brings
    along nothing begins a new chain; so does one after a night, a cancellation or a diversion.
    """
    before = ctx.state if ctx.state.date == flight.date else Plane()
    inherited = max(0, min(flight.dep_delay or 0, before.late))
    chain = before.chain if inherited else ()
    ctx.state = Plane(
        date=flight.date,
        late=flight.arr_delay or 0,
        chain=(*chain, f"{flight.carrier}{flight.flight} {flight.origin}-{flight.dest}"),
        knock_on=before.knock_on + inherited if inherited else 0,
    )
    if inherited:
        ctx.emit("flights/knock-on", knock_on_row(ctx.id, flight, inherited, ctx.state))
    for function, id, leg in reports(Leg(flight, inherited)):
        ctx.send(function, id, leg)


class Airport(State):
    """The day an airport is at, and its departures so far."""

    date: dt.date | None = None
    flights: int = 0


@app.function("flights/airport")
def airport(ctx: Context[Airport], message: Scheduled | NoMoreFlights) -> None:
    """Counts the departures of a day, and closes it when the next day's first one, or nothing more, comes."""
    today = ctx.state
    following = message.date if isinstance(message, Scheduled) else None
    if following != today.date:
        if today.date is not None:
            close = Close(today.flights)
            ctx.send_after(GRACE, airport_day, f"{ctx.id} {today.date}", close, token=f"close {today.date}")
        ctx.state = today = Airport(date=following)
    if following is not None:
        today.flights += 1


class Totals(State):
    """What happened to some flights: those of a day, a carrier or a route."""

    flights: int = 0
    cancelled: int = 0
    diverted: int = 0
    aircraft_unknown: int = 0
    delayed: int = 0
    delay_minutes: int = 0
    knock_on_minutes: int = 0
    worst_delay: int = 0

    def add(self, leg: Leg) -> None:
        flight = leg.flight
        delay = max(0, flight.dep_delay or 0)
        self.flights += 1
        self.cancelled += flight.dep_delay is None
        self.diverted += flight.dep_delay is not None and flight.arr_delay is None
        self.aircraft_unknown += flight.tailnum is None
        self.delayed += delay > 0
        self.delay_minutes += delay
        self.knock_on_minutes += leg.knock_on
        self.worst_delay = max(self.worst_delay, delay)


@app.function("flights/airport-day")
def airport_day(ctx: Context[Totals], message: Leg | Close) -> None:
    """Adds up one day of one airport."""
    add_or_close(ctx, message, "flights/days")


@app.function("flights/carrier")
def carrier(ctx: Context[Totals], message: Leg | Close) -> None:
    """Adds up the flights of one airline."""
    add_or_close(ctx, message, "flights/carriers")


@app.function("flights/route")
def route(ctx: Context[Totals], message: Leg | Close) -> None:
    """Adds up the flights from one airport to another."""
    add_or_close(ctx, message, "flights/routes")


def add_or_close(ctx: Context[Totals], message: Leg | Close, egress: str) -> None:
    match message:
        case Leg():
            ctx.state.add(message)
        case Close(flights) if ctx.state.flights < flights:
            ctx.send_after(GRACE, ctx.address.typename, ctx.id, message, token="close")
        case Close():
            ctx.emit(egress, {"id": ctx.id, **msgspec.structs.asdict(ctx.state)})
            ctx.state = Totals()


# Who is told what.

Delivery = tuple[Function[Any, Any], str, Message]


def deliveries(record: Departure | EndOfInput) -> Iterator[Delivery]:
    """The messages that one record of the input becomes."""
    match record:
        case Departure():
            yield airport, record.origin, Scheduled(record.date)
            if record.tailnum is not None:
                yield plane, record.tailnum, record
            else:
                yield from reports(Leg(record))
        case EndOfInput(airports, carriers, routes):
            yield from ((airport, id, NoMoreFlights()) for id in airports)
            yield from ((carrier, id, Close(flights)) for id, flights in carriers.items())
            yield from ((route, id, Close(flights)) for id, flights in routes.items())


def reports(leg: Leg) -> Iterator[tuple[Function[Leg | Close, None], str, Leg]]:
    """Who adds up a leg."""
    flight = leg.flight
    yield airport_day, f"{flight.origin} {flight.date}", leg
    yield carrier, flight.carrier, leg
    yield route, f"{flight.origin}-{flight.dest}", leg


def knock_on_row(tailnum: str, flight: Departure, minutes: int, now: Plane) -> dict[str, object]:
    return {
        "tailnum": tailnum,
        "date": flight.date,
        "dep_delay": flight.dep_delay,
        "knock_on": minutes,
        "chain": now.chain,
        "chain_knock_on": now.knock_on,
    }


def connect(departures: Path, results: Path, *, rate: float | None = None) -> App:
    """The application, reading the file `departures` and writing files into the directory `results`."""
    records = FileIngress(str(departures), type=Departure | EndOfInput, rate=rate)
    app.ingress(records, router=deliveries, name="departures")
    for name in ("knock-on", "days", "carriers", "routes"):
        app.egress(f"flights/{name}", FileEgress(str(results), prefix=name))
    return app
