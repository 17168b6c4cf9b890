"""A world of sagas in virtual time: hosts that crash, and a network that loses, repeats and delays whatever it likes.

Everything that a saga sends or commits is one operation; faults are data, by the number of the operation they strike.
Handlers, fence, record and keys are those of the mesh; store, network and hosts are dictionaries and tasks. A host that
crashed is followed by another one a minute later, which has what was committed and nothing else.

What may never happen is in `check`: it knows what participants did, and how the saga says that it ended.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from penstock import App, Branch, Context, Declined, FencedState, Saga, StepFailed
from penstock.functions.answers import decode_answer
from penstock.functions.participant import Action
from penstock.functions.virtual_loop import VirtualLoop
from penstock.ids import Address
from penstock.mesh.host import functions_of
from penstock.mesh.invocation import Run
from penstock.mesh.store import Answer, Commit, Committed, Loaded
from penstock.mesh.wire import Kind, Reply, Request, failure

ID: Final = "1"
BYTES_MAX: Final = 1 << 20
PATIENCE_S: Final = 15.0
"""How long a call waits for its answer."""
LATE_S: Final = 40.0
"""Long after that: the saga has turned back, and perhaps ended, when such a message arrives."""
DELIVERED_S: Final = 1.0
"""What is sent arrives so long after the commit."""
REVIVED_S: Final = 60.0
"""After a crash. In some worlds it takes until the deadline has passed."""
DEADLINE_S: Final = 600.0
REVIVALS: Final = (REVIVED_S, DEADLINE_S + 1)
ENDED_S: Final = 86_400.0
"""A saga that has not ended by then never will: no fault strikes twice."""


class Fault(Enum):
    """What becomes of one operation."""

    LOST = "lost"
    """The command does not arrive."""
    REPLY_LOST = "reply lost"
    LATE = "late"
    """It arrives when nobody waits for it any more."""
    TWICE = "twice"
    """It arrives, and again much later."""
    FAILS = "fails"
    """The participant raises."""
    CRASH = "crash"
    """The host of the saga dies before."""
    CRASH_AFTER = "crash after"
    """It dies when the command is on its way, or the commit is done."""


CRASHES: Final = frozenset({Fault.CRASH, Fault.CRASH_AFTER})
OPERATIONS_MAX: Final = 18
"""Those of an undisturbed saga, and some more."""


class Did(NamedTuple):
    """Something that a participant did."""

    what: str
    step: str


class Violation(AssertionError):
    """Something happened that never may."""


class Clock:
    """Stands in for the module `time` where handlers of the mesh look at it."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time_ns(self) -> int:
        return int(self.monotonic() * 1e9)


# The application.

DID: list[Did] = []
"""Of the world that runs at present."""

SAGAS: Final = App("sagas")


class Books(FencedState):
    declines: bool = False


def _participant(name: str, *, undoes: bool = True, confirms: bool = False) -> Action[str, str]:
    participant = SAGAS.participant(f"sagas/{name}", Books)

    @participant.message
    def decline(ctx: Context[Books], declines: bool) -> None:
        ctx.state.declines = declines

    @participant.action
    def do(ctx: Context[Books], what: str, branch: Branch) -> str | Declined:
        if ctx.state.declines:
            return Declined("no")
        DID.append(Did("try", branch.step))
        return f"{name} {what}"

    if undoes:

        @do.compensation
        def undo(ctx: Context[Books], _: str, branch: Branch) -> None:
            DID.append(Did("cancel", branch.step))

    if confirms:

        @do.confirmation
        def confirm(ctx: Context[Books], _: str, branch: Branch) -> None:
            DID.append(Did("confirm", branch.step))

    return do


STOCK, SEAT = _participant("stock"), _participant("seat")
BANK, POST = _participant("bank", undoes=False), _participant("post", undoes=False)
ROOM, CAR = _participant("room", confirms=True), _participant("car", confirms=True)


@SAGAS.saga("sagas/line", steps=[STOCK, SEAT], pivot=BANK, then=[POST], deadline=DEADLINE_S)
async def line(saga: Saga, what: str) -> list[str]:
    """One step after the other."""
    stock = await saga.step(STOCK, ID, what, name="stock", timeout=PATIENCE_S)
    seat = await saga.step(SEAT, ID, what, name="seat", timeout=PATIENCE_S)
    bank = await saga.step(BANK, ID, what, name="bank", timeout=PATIENCE_S)
    return [stock, seat, bank, await saga.step(POST, ID, what, name="post")]


@SAGAS.saga("sagas/beside", steps=[ROOM, STOCK, SEAT], pivot=BANK, then=[POST, CAR], deadline=DEADLINE_S)
async def beside(saga: Saga, what: str) -> list[str]:
    """Several at once, before the pivot and behind it."""
    room = await saga.step(ROOM, ID, what, name="room", timeout=PATIENCE_S)
    first = await saga.all(
        saga.step(STOCK, ID, what, name="stock", timeout=PATIENCE_S),
        saga.step(SEAT, ID, what, name="seat", timeout=PATIENCE_S),
    )
    bank = await saga.step(BANK, ID, what, name="bank", timeout=PATIENCE_S)
    last = await saga.all(saga.step(POST, ID, what, name="post"), saga.step(CAR, ID, what, name="car"))
    return [room, *first, bank, *last]


@SAGAS.saga("sagas/trip", steps=[ROOM, CAR])
async def trip(saga: Saga, what: str) -> list[str]:
    """Try, and then confirm or cancel."""
    room = await saga.step(ROOM, ID, what, name="room", timeout=PATIENCE_S)
    return [room, await saga.step(CAR, ID, what, name="car", timeout=PATIENCE_S)]


@SAGAS.saga("sagas/either", steps=[STOCK, SEAT], pivot=BANK)
async def either(saga: Saga, what: str) -> list[str]:
    """What fails is replaced by something else."""
    try:
        first = await saga.step(STOCK, ID, what, name="stock", timeout=PATIENCE_S)
    except StepFailed:
        first = await saga.step(SEAT, ID, what, name="seat", timeout=PATIENCE_S)
    return [first, await saga.step(BANK, ID, what, name="bank", timeout=PATIENCE_S)]


SCENARIOS: Final = {
    "sagas/line": ("stock", "seat", "bank"),
    "sagas/beside": ("stock", "seat", "bank"),
    "sagas/trip": ("room", "car"),
    "sagas/either": ("stock", "seat", "bank"),
}
"""Each saga, and who may decline in it."""

CONFIRMED: Final = ("room", "car")
"""Steps that are confirmed."""

_FUNCTIONS: Final = functions_of(SAGAS, BYTES_MAX)


# The world.


class Row(NamedTuple):
    value: bytes = b""
    version: int = 0
    rows: Mapping[bytes, bytes] = {}


class World:
    """One saga, begun once. `keyed`: whether hosts remember what they answered under a key. Needs a `Clock`."""

    def __init__(
        self,
        saga: str,
        faults: Mapping[int, Fault],
        *,
        declines: str = "",
        keyed: bool = True,
        revived_s: float = REVIVED_S,
    ) -> None:
        DID.clear()
        self.saga = Address(saga, ID)
        self.operations: list[str] = []
        """What each was: `commit`, or whom it asked."""
        self.done_when_answered: Counter[Did] = Counter()
        """What participants had done when the saga said how it ended."""
        self._faults = faults
        self._keyed = keyed
        self._revived_s = revived_s
        self._rows: dict[Address, Row] = defaultdict(Row)
        self._answers: dict[tuple[Address, str], Answer] = {}
        self._turns: dict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._crashed = False
        self._host: asyncio.Task[Reply] | None = None
        self._loop = VirtualLoop()
        if declines:
            address = Address(f"sagas/{declines}", ID)
            self._loop.run(self.execute(Request(address, msgspec.msgpack.encode(True))))

    def __str__(self) -> str:
        faults = ", ".join(f"{fault.value} at {number}" for number, fault in sorted(self._faults.items()))
        return f"{self.saga}: {faults}; keyed: {self._keyed}, revived after {self._revived_s} s, {self.operations}"

    def run(self) -> Any:
        """Play it to the end, until nothing is under way. Returns what the saga answered."""
        try:
            return self._loop.run(asyncio.wait_for(self._play(), ENDED_S))
        except TimeoutError:
            raise Violation(f"The saga does not end: {DID}") from None
        finally:
            self._loop.close()

    async def _play(self) -> Any:
        reply = await self._live()
        while reply is None:
            await asyncio.sleep(self._revived_s)
            reply = await self._live()
        self.done_when_answered = Counter(DID)
        while self._under_way:
            await asyncio.wait(self._under_way)
        assert reply.status == 200, reply
        return decode_answer(reply.body, _FUNCTIONS[self.saga.typename].function.reply_codec)

    async def _live(self) -> Reply | None:
        """A host carries out the saga, from wherever it is. None when it has crashed."""
        request = Request(self.saga, msgspec.msgpack.encode("tea"), Kind.CALL, key="begun")
        self._crashed = False
        self._host = asyncio.create_task(self.execute(request))
        try:
            return await self._host
        except asyncio.CancelledError:
            if not self._crashed:
                raise
            return None

    def steps(self) -> dict[str, str]:
        """How the saga says that its steps have ended, in the order in which they were started."""
        function = _FUNCTIONS[self.saga.typename]
        context = function.new_context()
        context.id = ID
        function.open_state(context, 0, self._rows[self.saga].value, None)  # type: ignore[arg-type]  # It has none.
        return {name: str(phase) for name, phase in context.state.ended.steps.items()}

    async def execute(self, request: Request) -> Reply:
        """What a host does with a request."""
        async with self._turns[request.address]:
            row = self._rows[request.address]
            known = self._answers.get((request.address, request.key)) if self._keyed else None
            if known is not None:
                return Reply(*known)
            function = _FUNCTIONS[request.address.typename]
            run = Run(function, request, Loaded(*row[:2], None, row.rows), self, session=1, root=request.key, attempt=1)
            run.open()
            await run.run()
            commit = run.commit(1)
            if commit is not None:
                self._apply(commit)
            return run.reply()

    def _apply(self, commit: Commit) -> Committed:
        row = self._rows[commit.address]
        assert commit.version == row.version, "turns are taken"
        rows = {key: value for key, value in {**row.rows, **commit.rows}.items() if value is not None}
        value = row.value if commit.value is None else commit.value
        self._rows[commit.address] = Row(value, row.version + 1, rows)
        if commit.answer is not None:
            self._answers[commit.address, commit.key] = commit.answer
        for each in commit.outgoing:
            if not each.due_ms:
                to = Address(each.target, each.id)
                self._start(self._later(Request(to, each.payload, Kind.DELIVER, each.key), DELIVERED_S))
        return Committed(row.version + 1, ())

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    # As runs see it: `Neighbours`. Only the saga calls, and commits before it has ended.

    async def commit(self, commit: Commit) -> Committed:
        fault = self._strikes("commit")
        if fault is Fault.CRASH:
            self._crash()
        committed = self._apply(commit)
        if fault is Fault.CRASH_AFTER:
            self._crash()
        return committed

    async def call(self, request: Request) -> Reply:
        match self._strikes(request.address.typename):
            case Fault.CRASH:
                self._crash()
            case Fault.CRASH_AFTER:
                self._start(self.execute(request))
                self._crash()
            case Fault.REPLY_LOST:
                await self.execute(request)
                await asyncio.sleep(PATIENCE_S)
            case Fault.LATE:
                self._start(self._later(request))
                await asyncio.sleep(PATIENCE_S)
            case Fault.LOST:
                await asyncio.sleep(PATIENCE_S)
            case Fault.FAILS:
                return failure(422, "PEN0210", "Handler raised ValueError: broken.")
            case Fault.TWICE:
                self._start(self._later(request))
                return await self.execute(request)
            case _:
                return await self.execute(request)
        return failure(504, "PEN0260", "It did not answer in time.")

    async def promised(self, address: Address, name: str, key: str) -> bytes:
        raise NotImplementedError("these sagas wait for nobody")

    def outlive(self, task: asyncio.Task[None]) -> None:
        self._start(asyncio.wait([task]))

    async def _later(self, request: Request, delay_s: float = LATE_S) -> None:
        await asyncio.sleep(delay_s)
        await self.execute(request)

    def _strikes(self, operation: str) -> Fault | None:
        self.operations.append(operation)
        return self._faults.get(len(self.operations))

    def _crash(self) -> NoReturn:
        """The host is gone: nothing of it goes on from here."""
        assert self._host is not None
        self._crashed = True
        self._host.cancel()
        raise asyncio.CancelledError


def worlds_of_one_fault(saga: str, *, keyed: bool) -> Iterator[World]:
    """No fault, and each fault at each operation, whoever declines. Each is to be played before the next is asked."""
    for declines in ("", *SCENARIOS[saga]):
        undisturbed = World(saga, {}, declines=declines, keyed=keyed)
        yield undisturbed
        for number, operation in enumerate(undisturbed.operations, start=1):
            for fault in (each for each in Fault if operation != "commit" or each in CRASHES):
                for revived_s in REVIVALS if fault in CRASHES else REVIVALS[:1]:
                    yield World(saga, {number: fault}, declines=declines, keyed=keyed, revived_s=revived_s)


def world_of_two_faults(saga: str, seed: int) -> World:
    """Any two faults, anywhere."""
    dice = random.Random(f"{saga} {seed}")
    declines = dice.choice(("", "", *SCENARIOS[saga]))
    faults = {number: dice.choice(list(Fault)) for number in dice.sample(range(1, OPERATIONS_MAX), 2)}
    return World(saga, faults, declines=declines, keyed=dice.random() < 0.5, revived_s=dice.choice(REVIVALS))


def check(world: World, outcome: Any) -> None:
    """Raise Violation unless all was done, or nothing."""
    steps = world.steps()
    counts = Counter(DID)
    completed = type(outcome).__name__ == "Completed"
    for step in {each.step for each in DID} - steps.keys():
        raise Violation(f"{step} did something, and the saga does not know of it: {DID}")
    for step, phase in steps.items():
        tried, cancelled = counts[Did("try", step)], counts[Did("cancel", step)]
        if tried > 1 or cancelled > tried:
            raise Violation(f"{step} was tried {tried} times and cancelled {cancelled} times: {DID}")
        is_done = phase == "confirmed"
        if tried - cancelled != is_done:
            raise Violation(f"{step} is {phase}, and was tried {tried} times and cancelled {cancelled} times: {DID}")
        if not completed and is_done:
            raise Violation(f"{step} is {phase}, and the saga was compensated: {DID}")
        for confirmed in (world.done_when_answered, counts) if step in CONFIRMED else ():
            if confirmed[Did("confirm", step)] != is_done:
                raise Violation(f"{step} is {phase}, and was confirmed {confirmed[Did('confirm', step)]} times: {DID}")
    if completed and len(outcome.value) != sum(phase == "confirmed" for phase in steps.values()):
        raise Violation(f"The saga is completed with {outcome.value}, and of its steps {steps}.")
    if not completed:
        _check_order(list(steps))


def _check_order(started: Sequence[str]) -> None:
    undone = [started.index(step) for what, step in DID if what == "cancel"]
    if undone != sorted(undone, reverse=True):
        raise Violation(f"Steps were started in the order {started}, and undone in the order {DID}.")
