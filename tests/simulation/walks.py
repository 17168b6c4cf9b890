"""The application of the simulated worlds: inputs that walk from address to address, and remember where they were.

Each input is a walk of a few hops. A hop is recorded in the state of the address it reaches, emits a row, and sends the
walk on: now or by a timer, to a function that runs at once, suspends, or fails. Where it goes is decided by chance, so
running a hop again after a rollback does something else: whatever of the first run survives is seen.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.io import MemoryEgress
from tests.simulation.dice import Dice

LAST_HOP = 3
IDS = ("ada", "bob", "cyd", "dan", "eve", "fay")
EGRESS = "walks/rows"


POISON = b"\xc1"
"""No message: whoever gets it can only bury it."""


class Step(msgspec.Struct, array_like=True):
    """A walk arrives at its hop number `hop`."""

    walk: int
    hop: int
    sender: str = ""
    number: int = 0
    """Dense for each pair of addresses; 0 for what a timer sent, which may be overtaken."""
    due_ms: int = 0


class Visits(msgspec.Struct):
    """What an address remembers."""

    seen: list[tuple[int, int]] = []
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    now_ms: int = 0


class Nature:
    """What handlers meet outside their messages: chance, and the time that has really passed."""

    def __init__(self) -> None:
        self.dice = Dice(0)
        self.clock_ms = 0
        self.broken: list[str] = []
        """What a handler saw that it never should."""


NATURE = Nature()
"""Of the world that runs at present. The functions below are made once, because reading annotations is slow."""


class Stumble(Exception):
    """What a failing handler raises."""


class Pause:
    """Awaited by a handler that suspends, once for each time."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def _visit(ctx: Context[Visits], step: Step) -> list[Any]:
    """What every function does. Returns what a caller is told: walk, and how many were here, and where."""
    state, dice, here = ctx.state, NATURE.dice, str(ctx.address)
    _look(ctx, step, here)
    state.now_ms = ctx.now_ms
    if step.number:
        state.received[step.sender] = step.number
    state.seen.append((step.walk, step.hop))
    if dice.chance(0.5):
        state.rows.append((step.walk, step.hop))
        ctx.emit(EGRESS, [here, len(state.rows), step.walk, step.hop])
    if step.hop < LAST_HOP:
        _send_on(ctx, step, here)
    return [step.walk, len(state.seen), here]


def _send_on(ctx: Context[Visits], step: Step, here: str) -> None:
    dice = NATURE.dice
    target, id = dice.choose(FUNCTIONS), dice.choose(IDS)
    if dice.chance(0.25):
        delay_ms = 1 + dice.below(20)
        ctx.send_after(delay_ms / 1000, target, id, Step(step.walk, step.hop + 1, here, 0, ctx.now_ms + delay_ms))
        return
    there = f"{target}/{id}"
    number = ctx.state.sent[there] = ctx.state.sent.get(there, 0) + 1
    ctx.send(target, id, Step(step.walk, step.hop + 1, here, number))


def _look(ctx: Context[Visits], step: Step, here: str) -> None:
    """Notice what must not be."""
    if step.number and step.number <= ctx.state.received.get(step.sender, 0):
        NATURE.broken.append(f"{here} received message {step.number} of {step.sender} after a later one")
    if ctx.now_ms < ctx.state.now_ms:
        NATURE.broken.append(f"{here} saw {ctx.now_ms} ms after {ctx.state.now_ms} ms")
    if step.due_ms > NATURE.clock_ms:
        NATURE.broken.append(f"{here} received at {NATURE.clock_ms} ms a message due at {step.due_ms} ms")


WALKS = App("walks")
OUT = WALKS.egress(EGRESS, MemoryEgress())


@WALKS.function("walks/quick")
def quick(ctx: Context[Visits], step: Step) -> list[Any]:
    return _visit(ctx, step)


@WALKS.function("walks/flaky", attempts=2, backoff=0.005)
def flaky(ctx: Context[Visits], step: Step) -> list[Any]:
    answer = _visit(ctx, step)
    if NATURE.dice.chance(0.4):
        raise Stumble
    return answer


@WALKS.function("walks/slow", attempts=2, backoff=0.005)
async def slow(ctx: Context[Visits], step: Step) -> list[Any]:
    await Pause()
    answer = _visit(ctx, step)
    if NATURE.dice.chance(0.3):
        await Pause()
    if NATURE.dice.chance(0.2):
        raise Stumble
    return answer


FUNCTIONS = ("walks/quick", "walks/quick", "walks/flaky", "walks/slow")
"""The targets of a hop, some more often than others."""

encode_step = msgspec.msgpack.Encoder().encode
