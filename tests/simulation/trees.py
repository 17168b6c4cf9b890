"""The application of the simulated worlds whose handlers await: inputs that grow into trees of calls.

Each input starts an invocation that does a few things one after the other, or begins several and awaits them in any
order: calls of functions further down, steps, sleeps, promises, deadlines, calls that it cancels. After each it notes
what came of it, in its state, as a row and as a message: what of the three survives must be the same. What comes from
outside is decided by chance (results of steps, answers of leaves, who stumbles), so doing it again does something else;
where an invocation goes follows from that, and from nothing that its journal does not hold.

Functions call only further down, so that no two trees wait for one another for ever.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from penstock.errors import CallTimeout, FunctionError
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.durable import Durable, Retry
from penstock.functions.io import MemoryEgress
from penstock.functions.state import Log, State, Table
from penstock.ids import Address
from tests.simulation.walks import EGRESS, IDS, NATURE, Pause, Stumble

LEDGER = "trees/ledger"
LEAF = "trees/leaf"
CLERK = "trees/clerk"
ROOTS = ("trees/root", "trees/root", "trees/asked")
"""Where trees begin: a person may cancel the first."""
BELOW = {
    "trees/root": ("trees/branch", "trees/branch", "trees/twig", LEAF),
    "trees/asked": ("trees/branch", "trees/branch", "trees/twig", LEAF),
    "trees/branch": ("trees/twig", "trees/twig", LEAF),
    "trees/twig": (LEAF,),
}
"""Whom each calls."""
NOTING = tuple(BELOW)
"""The functions that await, and note what came of it."""
REENTRANT = ("trees/root", "trees/branch")
"""Those that let in calls which come back to them."""
SEEN = "-seen"
"""What is behind the name of a function, in that of who only reads what it has noted."""


BACK = "@"
"""At the end of the label of a call that comes back to an address which waits for it."""


class Job(msgspec.Struct, array_like=True):
    """Grow. `label` names the invocation: no other has it."""

    label: str


class Favour(msgspec.Struct, array_like=True):
    """Resolve a promise."""

    typename: str
    id: str
    name: str
    times: int


class Look(msgspec.Struct, array_like=True):
    """Tell what an address has noted, which is not less than `known`."""

    label: str
    known: int


class Note(msgspec.Struct, array_like=True):
    """Invocation `label` has come to its note `n`."""

    label: str
    n: int
    text: str
    now_ms: int


class Mark(msgspec.Struct, array_like=True):
    """The same as a message, from the address `here`, where it is number `index`."""

    here: str
    index: int
    note: Note


class Grown(State):
    """What an address remembers of its invocations: each note, in the order in which they were made, and as rows of
    their own how many there are of each invocation, and which they are."""

    notes: list[Note] = []  # noqa: RUF012  # A field.
    counts: Table[str, int] = Table()
    log: Log[str] = Log()


class Received(State):
    """What a ledger was sent, and what a leaf answered."""

    marks: list[Mark] = []  # noqa: RUF012  # A field.
    answered: list[str] = []  # noqa: RUF012  # A field.


class Grove:
    """What handlers do behind the back of the tasks that run them."""

    def __init__(self) -> None:
        self.open: dict[tuple[object, str], str] = {}
        """Invocations that are in memory, by task and address."""
        self.here: object = None
        """The task that runs a handler at present."""
        self.told: list[tuple[object, str, tuple[str, int], str]] = []
        """What handlers were told: the task, the address, which note, and its text."""
        self.taken: list[tuple[str, int, str]] = []
        """The last note before each step that was taken: label, number and text."""
        self.labels: set[str] = set()
        """Of the invocations that were begun."""
        self.seen = Counter[str]()
        """How often something worth testing happened."""

    def clear(self) -> None:
        """Another world begins."""
        for known in (self.open, self.told, self.taken, self.labels, self.seen):
            known.clear()

    @contextmanager
    def hold(self, address: str, label: str) -> Iterator[None]:
        """An invocation is in memory."""
        self.seen["runs"] += 1
        self.labels.add(label)
        place = self.here, address
        if place in self.open:
            NATURE.broken.append(f"{label} runs at {address} beside {self.open[place]}")
        self.open[place] = label
        try:
            yield
        finally:
            if self.open.get(place) == label:
                del self.open[place]


GROVE = Grove()
"""Of the world that runs at present."""

TREES = App("trees")
OUT = TREES.egress(EGRESS, MemoryEgress())


class Hand:
    """One run of an invocation."""

    def __init__(self, ctx: Context[Grown], job: Job) -> None:
        self.ctx = ctx
        self.label = job.label
        self.notes = 0
        self.asked = 0
        """Names for what it asks for."""

    def note(self, text: str) -> None:
        """Say in every way that there is that the invocation has come so far."""
        ctx, state, here = self.ctx, self.ctx.state, str(self.ctx.address)
        GROVE.told.append((GROVE.here, here, (self.label, self.notes), text))
        note = Note(self.label, self.notes, text, ctx.now_ms)
        index = len(state.notes)
        if (state.counts.get(self.label, 0), len(state.log)) != (self.notes, index):
            NATURE.broken.append(
                f"{here} makes note {self.notes} of {self.label}, its {index}th, and its rows know of "
                f"{state.counts.get(self.label, 0)} and {len(state.log)}"
            )
        if index and state.notes[-1].now_ms > note.now_ms:
            NATURE.broken.append(f"{here} saw {note.now_ms} ms after {state.notes[-1].now_ms} ms")
        state.counts[self.label] = self.notes + 1
        state.log.append(f"{self.label} {self.notes}")
        state.notes.append(note)
        ctx.emit(EGRESS, [here, index, self.label, self.notes])
        ctx.send(LEDGER, ctx.random.choice(IDS), Mark(here, index, note))
        self.notes += 1

    def chance(self, probability: float) -> bool:
        return self.ctx.random.random() < probability

    def duration(self, most_ms: int) -> float:
        """In seconds."""
        return self.ctx.random.randrange(1, most_ms) / 1000

    def name(self) -> str:
        """For something that it asks for."""
        self.asked += 1
        return f"{self.label}.{self.asked}"

    def stumble(self) -> None:
        """Fail, as chance has it, unless somebody outside waits for it."""
        if self.ctx.address.typename != "trees/asked" and NATURE.dice.chance(0.04):
            raise Stumble


async def _grow(ctx: Context[Grown], job: Job) -> list[Any]:
    """What every function that awaits does. Returns what a caller is told: label, how many notes there are, and
    where."""
    hand = Hand(ctx, job)
    if job.label.endswith(BACK):
        hand.note("joined")
        GROVE.seen["joined"] += 1
        hand.stumble()
        return [job.label, len(ctx.state.notes), str(ctx.address)]
    with GROVE.hold(str(ctx.address), job.label):
        hand.note("begun")
        try:
            for _ in range(1 + ctx.random.randrange(3)):
                await _do(hand, depth=0)
                hand.stumble()
        except asyncio.CancelledError:
            GROVE.seen["cancelled"] += 1
            hand.note("cancelled")
            if hand.chance(0.5):
                await _answered(hand, hand.name(), lambda name: ctx.call(LEAF, ctx.random.choice(IDS), Job(name)))
            if hand.chance(0.7):
                raise
        hand.note("ended")
        return [job.label, len(ctx.state.notes), str(ctx.address)]


async def _do(hand: Hand, *, depth: int) -> None:
    """One of the things that can be done."""
    ways: tuple[Callable[[Hand, int], Awaitable[None]], ...] = (
        _ask,
        _ask,
        _several,
        _several,
        _within,
        _rest,
        _call_up,
    )
    await hand.ctx.random.choice(ways if depth < 2 else (_ask, _rest))(hand, depth)


async def _ask(hand: Hand, _: int) -> None:
    """Ask for one thing, and await it."""
    name, durable = _wish(hand)
    await _answered(hand, name, lambda _: durable)


async def _rest(hand: Hand, _: int) -> None:
    """Await something that is not journaled."""
    if hand.chance(0.5):
        await Pause()
    hand.note("rested")


async def _several(hand: Hand, _: int) -> None:
    """Ask for several things, and await most of them in any order."""
    random = hand.ctx.random
    asked = [_wish(hand) for _ in range(2 + random.randrange(2))]
    hand.note("asked")
    random.shuffle(asked)
    if hand.chance(0.3):
        asked.pop()
    if hand.chance(0.4):
        calls = [durable for name, durable in asked if name.endswith("!") and not durable.done()]
        if calls:
            hand.ctx.cancel_call(calls[0])
    for name, durable in asked:
        await _answered(hand, name, lambda _, durable=durable: durable)  # type: ignore[misc]
        hand.note(" ".join(f"{other} {durable.done()}" for other, durable in asked))


async def _within(hand: Hand, depth: int) -> None:
    """Do something for a limited time."""
    before_ms, limit_s = hand.ctx.now_ms, hand.duration(60)
    try:
        async with hand.ctx.timeout(limit_s) as limit:
            await _do(hand, depth=depth + 1)
    except TimeoutError:
        GROVE.seen["timed out"] += 1
        hand.note("timed out")
        if hand.ctx.now_ms < before_ms + limit_s * 1000:
            NATURE.broken.append(f"{hand.label} was out of time after {hand.ctx.now_ms - before_ms} ms of {limit_s} s")
    else:
        hand.note(f"in time {limit.passed}")


async def _call_up(hand: Hand, _: int) -> None:
    """Call whoever waits for this."""
    ctx = hand.ctx
    above = ctx.address if ctx.caller is None else ctx.caller
    if above.typename in REENTRANT:
        await _call_back(hand, above)
    elif above.typename in BELOW:
        await _answered(hand, hand.name(), lambda name: ctx.call(above.typename, above.id, Job(name)))


async def _call_back(hand: Hand, above: Address) -> None:
    """The same where it is let in, sometimes while something else is under way."""
    ctx, name = hand.ctx, hand.name() + BACK
    if hand.chance(0.3):
        other, durable = _wish(hand)
        back: Durable[Any] = ctx.call(above.typename, above.id, Job(name))
        await _answered(hand, other, lambda _: durable)
        await _answered(hand, name, lambda _: back)
    else:
        await _answered(hand, name, lambda name: ctx.call(above.typename, above.id, Job(name)))


def _wish(hand: Hand) -> tuple[str, Durable[Any]]:
    """Ask for something that answers with its name, or with nothing. Calls have a name with a mark."""
    ctx, name = hand.ctx, hand.name()
    match ctx.random.randrange(10):
        case 8:
            return _look(hand, name)
        case 0:
            return f"{name} sleep {ctx.now_ms}", ctx.sleep(hand.duration(40))
        case 1:
            if hand.chance(0.8):
                favour = Favour(*ctx.address, name, 2 if hand.chance(0.1) else 1)
                if hand.chance(0.5):
                    ctx.send(CLERK, ctx.random.choice(IDS), favour)
                else:
                    ctx.send_after(hand.duration(30), CLERK, ctx.random.choice(IDS), favour)
                return name, ctx.promise(name)
            ctx.send(CLERK, ctx.random.choice(IDS), Favour(*ctx.address, name, 1))
            return name, ctx.promise(name, list[Any])
        case 2 | 3:
            last = ctx.state.notes[-1]
            return name, ctx.run("take", _take, name, last.label, last.n, last.text, retry=Retry(attempts=1))
        case _:
            target = ctx.random.choice(BELOW[ctx.address.typename])
            timeout = hand.duration(80) if hand.chance(0.3) else None
            return f"{name}!", ctx.call(target, ctx.random.choice(IDS), Job(f"{name}!"), timeout=timeout)


def _look(hand: Hand, name: str) -> tuple[str, Durable[Any]]:
    """Ask what an address has noted: this one, which waits meanwhile, or another."""
    ctx = hand.ctx
    if hand.chance(0.4):
        reader, id = ctx.random.choice(NOTING) + SEEN, ctx.random.choice(IDS)
        return name, ctx.call(reader, id, Look(name, 0))
    return name, ctx.call(ctx.address.typename + SEEN, ctx.id, Look(name, len(ctx.state.notes)))


async def _answered(hand: Hand, name: str, ask: Callable[[str], Awaitable[Any]]) -> None:
    """Await something, and note what came of it."""
    before_ms = hand.ctx.now_ms
    try:
        value = await ask(name)
    except CallTimeout as error:
        GROVE.seen["timed out"] += 1
        hand.note(f"{name} {error.code}")
    except FunctionError as error:
        hand.note(f"{name} {error.code} {error.message}")
    else:
        if isinstance(value, list) and value[0] != name:
            NATURE.broken.append(f"{hand.label} was told {value} for {name}")
        GROVE.seen["results"] += 1
        hand.note(f"{name} {value}")
    if hand.ctx.now_ms < before_ms:
        NATURE.broken.append(f"{hand.label} saw {hand.ctx.now_ms} ms after {before_ms} ms")


def _take(name: str, label: str, n: int, text: str) -> list[Any]:
    """A step. What it does outside is another thing each time."""
    GROVE.taken.append((label, n, text))
    if NATURE.dice.chance(0.2):
        raise Stumble
    return [name, NATURE.dice.below(1 << 20)]


@TREES.function("trees/root", attempts=3, backoff=0.005, reentrant=True)
async def root(ctx: Context[Grown], job: Job) -> list[Any]:
    return await _grow(ctx, job)


@TREES.function("trees/asked", attempts=3, backoff=0.005)
async def asked(ctx: Context[Grown], job: Job) -> list[Any]:
    return await _grow(ctx, job)


@TREES.function("trees/branch", attempts=3, backoff=0.005, reentrant=True)
async def branch(ctx: Context[Grown], job: Job) -> list[Any]:
    return await _grow(ctx, job)


@TREES.function("trees/twig", attempts=2, backoff=0.005)
async def twig(ctx: Context[Grown], job: Job) -> list[Any]:
    return await _grow(ctx, job)


def _seen(ctx: Context[Grown], look: Look) -> list[Any]:
    """What every function that reads does. Returns whose notes it has seen, how many, and the last of them."""
    state, here = ctx.state, str(ctx.address).replace(SEEN, "")
    if len(state.log) != len(state.notes) or len(state.notes) < look.known:
        NATURE.broken.append(
            f"{look.label} was shown {len(state.notes)} notes of {here}, {len(state.log)} in its log, and knew of "
            f"{look.known}"
        )
    GROVE.seen["looks"] += 1
    last = state.notes[-1] if state.notes else Note("", 0, "", 0)
    return [look.label, here, len(state.notes), last.label, last.n]


for noting in (root, asked, branch, twig):
    TREES.function(noting.typename + SEEN, reads_only=True, state_of=noting)(_seen)


@TREES.function(LEAF, attempts=2, backoff=0.005)
def leaf(ctx: Context[Received], job: Job) -> list[Any]:
    ctx.state.answered.append(job.label)
    if NATURE.dice.chance(0.2):
        raise Stumble
    return [job.label, NATURE.dice.below(1 << 20)]


@TREES.function(LEDGER)
def ledger(ctx: Context[Received], mark: Mark) -> None:
    ctx.state.marks.append(mark)


@TREES.function(CLERK)
def clerk(ctx: Context[None], favour: Favour) -> None:
    for _ in range(favour.times):
        ctx.resolve(favour.typename, favour.id, favour.name, [favour.name, NATURE.dice.below(1 << 20)])


def address_of(text: str) -> Address:
    """What `str` made of an address with one of `IDS`."""
    typename, _, id = text.rpartition("/")
    return Address(typename, id)
