"""Sagas to be killed in their midst, in either runtime: goods, a seat and a car, money, and what is sent at the end.

Who asks for a saga with a number knows by it who declines: see `declines`. What participants have done lies in their
state, with the time at which they did it; the bank keeps books outside, which no crash takes back. `TOLD` names a file
that is told which process has begun what, so that it can be killed just then.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from penstock import App, Branch, Context, Declined, FencedState, Saga

app: Final = App("kills")
PLACES: Final = 5
"""Addresses of each participant: sagas share them."""
STEPS: Final = ("reserve", "hold", "rent", "charge", "ship")
"""In the order in which they are started."""
DECLINING: Final = ("", "reserve", "hold", "rent", "charge", "")


class Entry(msgspec.Struct):
    """Something that a participant has done."""

    saga: str
    step: str
    what: str
    at_ns: int


class Books(FencedState):
    entries: list[Entry] = []  # noqa: RUF012  # A field.


def declines(number: int) -> str:
    """The step that saga `number` can't have; empty when it can have all."""
    return DECLINING[number % len(DECLINING)]


def tell(what: str) -> None:
    """One line, which is whole also when the process is killed right after it."""
    line = f"{os.getpid()} {what}\n".encode()
    told = os.open(os.environ["TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(told, line)
    os.close(told)


def book(key: str) -> None:
    """As a bank does that knows keys: the same key is one booking."""
    with Path(os.environ["TOLD"]).with_name("bank").open("a") as books:
        books.write(f"{key}\n")


def note(ctx: Context[Books], branch: Branch, what: str) -> None:
    ctx.state.entries.append(Entry(branch.saga, branch.step, what, time.time_ns()))


stock = app.participant("kills/stock", Books)
seat = app.participant("kills/seat", Books)
car = app.participant("kills/car", Books)
bank = app.participant("kills/bank", Books)
post = app.participant("kills/post", Books)


@stock.action
def reserve(ctx: Context[Books], number: int, branch: Branch) -> Declined | None:
    if declines(number) == "reserve":
        return Declined("sold out")
    note(ctx, branch, "do")
    return None


@reserve.compensation
def release(ctx: Context[Books], number: int, branch: Branch) -> None:
    note(ctx, branch, "undo")


@seat.action
async def hold(ctx: Context[Books], number: int, branch: Branch) -> Declined | None:
    tell("participates")
    await ctx.sleep(0.02)
    if declines(number) == "hold":
        return Declined("full")
    note(ctx, branch, "do")
    return None


@hold.compensation
async def let_go(ctx: Context[Books], number: int, branch: Branch) -> None:
    """It may not have come to the end of holding it."""
    tell("compensates")
    await ctx.sleep(0.02)
    if any((entry.saga, entry.step) == branch[:2] for entry in ctx.state.entries):
        note(ctx, branch, "undo")


@car.action
def rent(ctx: Context[Books], number: int, branch: Branch) -> Declined | None:
    if declines(number) == "rent":
        return Declined("none left")
    note(ctx, branch, "do")
    return None


@rent.confirmation
def hand_over(ctx: Context[Books], number: int, branch: Branch) -> None:
    note(ctx, branch, "confirm")


@rent.compensation
def take_back(ctx: Context[Books], number: int, branch: Branch) -> None:
    note(ctx, branch, "undo")


@bank.action
async def charge(ctx: Context[Books], number: int, branch: Branch) -> Declined | None:
    tell("participates")
    if declines(number) == "charge":
        return Declined("not enough money")
    await ctx.run("book", book, branch.key)
    note(ctx, branch, "do")
    return None


@post.action
def ship(ctx: Context[Books], number: int, branch: Branch) -> None:
    note(ctx, branch, "do")


@app.saga("kills/trip", steps=[reserve, hold, rent], pivot=charge, then=[ship])
async def trip(saga: Saga, number: int) -> int:
    tell(f"orchestrates {number}")
    place = str(number % PLACES)
    await saga.step(reserve, place, number)
    await saga.all(saga.step(hold, place, number), saga.step(rent, place, number))
    tell("decides")
    await saga.step(charge, place, number)
    await saga.step(ship, place, number)
    return number
