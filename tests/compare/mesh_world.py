"""A mesh in virtual time: the hosts are real, their store is a dictionary, and their network does whatever it likes.

    clients --> network --> hosts --> store
                   ^----------'         '--> messages, in their lanes

Requests are lost, come twice or much too late, and lose their answers; hosts die in the midst of anything, and others
take their place. All of that ends after a while, and then everything has to come to rest by itself. What the network
does to a request, and when hosts die, is drawn from one seed, so that each world can be seen again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from random import Random
from types import ModuleType
from typing import Any, Final, NamedTuple, cast
from unittest.mock import patch

from penstock.compare.checkout import data
from penstock.errors import Fenced, PenstockError
from penstock.functions.answers import decode_answer
from penstock.functions.virtual_loop import VirtualLoop
from penstock.ids import Address
from penstock.mesh import awaits, host, interrupts, invocation
from penstock.mesh.delivery import refusal_of, request_of
from penstock.mesh.host import Host, functions_of
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.store import Answer, Commit, Committed, Kept, Loaded, Store, VersionMismatch, fenced
from penstock.mesh.wire import NO, YES, Kind, Reply, Request, failure, new_key
from penstock.state.showing import decoded_state
from tests.compare.shops import Fate, Till, verdict_on
from tests.mesh.saga_world import Clock

BYTES_MAX: Final = 1 << 20
HOSTS: Final = 2
TROUBLE_S: Final = 20.0
"""So long the network and the bank do what they like, and hosts die."""
STORMS: Final = 2
STORM_S: Final = 12.0
"""At most. Whoever gives up within it undoes things while what is to be undone is still on its way."""
FAIR, STORMY = 0.03, 0.6
"""So many requests fare badly."""
BAD: Final = (Fate.LOST, Fate.REPLY_LOST, Fate.LATE)
REST_S: Final = 900.0
"""Then everything has so long to come to rest: more than what any handler waits for, or is tried again after."""
TRY_S: Final = 3.0
CALL_S: Final = 10.0
LATE_S: Final = 30.0
"""When such a request arrives, nobody waits for it any more."""
ATTEMPTS: Final = 4
REVIVED_S: Final = 2.0
CLIENT_S: Final = 15.0
_GONE: Final = failure(503, "PEN0804", "Nobody answers.")


class Weather:
    """When something happens to requests: seldom, and in storms to most of them. Clear for ever after `TROUBLE_S`."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        begins = [dice.uniform(-STORM_S, TROUBLE_S / 2) for _ in range(STORMS)]
        self._storms = [(begin, begin + dice.uniform(0, STORM_S)) for begin in begins]

    def fate(self) -> Fate:
        now_s = asyncio.get_running_loop().time()
        if now_s >= TROUBLE_S:
            return Fate.DONE
        share = STORMY if any(begin <= now_s < end for begin, end in self._storms) else FAIR
        return self._dice.choice(BAD) if self._dice.random() < share else Fate.DONE


class Manners(NamedTuple):
    """How requests are made in an arm."""

    retries: bool
    client_keys: bool


class Row(NamedTuple):
    value: bytes = b""
    version: int = 0
    rows: Mapping[bytes, bytes] = {}


class MemoryStore:
    """What hosts ask of a store, and nothing else. Every answer takes its time, so that others come in between."""

    def __init__(self, world: World) -> None:
        self.rows: defaultdict[Address, Row] = defaultdict(Row)
        self._world = world
        self._answers: dict[tuple[Address, str], Answer] = {}
        self._promises: dict[tuple[Address, str], bytes] = {}
        self._fenced: set[int] = set()
        self._numbers = 0

    def fence(self, session: int) -> None:
        self._fenced.add(session)

    async def load(self, typename: str, id: str, key: str = "", *, rows: bool = False) -> Loaded:
        await self._world.pause()
        address = Address(typename, id)
        row = self.rows[address]
        return Loaded(row.value, row.version, self._answers.get((address, key)), row.rows if rows else {})

    async def commit(self, commit: Commit) -> Committed:
        await self._world.pause()
        if commit.session in self._fenced:
            raise fenced(commit.session)
        row = self.rows[commit.address]
        if commit.key and (commit.address, commit.key) in self._answers:
            raise VersionMismatch(commit.address, f"key {commit.key!r} is answered already")
        if commit.version is not None and commit.version != row.version:
            raise VersionMismatch(commit.address, f"it has version {row.version}")
        rows = {key: value for key, value in {**row.rows, **commit.rows}.items() if value is not None}
        value = row.value if commit.value is None else commit.value
        version = row.version + (commit.version is not None or commit.changes_state)
        self.rows[commit.address] = Row(value, version, rows)
        if commit.key and commit.answer is not None:
            self._answers[commit.address, commit.key] = commit.answer
        for name in commit.promises:
            self._promises.pop((commit.address, name), None)
        for token in commit.cancelled:
            self._world.call_back(commit.address, token)
        for outgoing in commit.outgoing:
            self._numbers += 1
            self._world.post(Kept(self._numbers, commit.address, outgoing))
        await self._world.pause()
        return Committed(version, ())

    async def resolve(self, session: int, address: Address, name: str, value: bytes) -> bool:
        await self._world.pause()
        if session in self._fenced:
            raise fenced(session)
        return self._promises.setdefault((address, name), value) is value

    async def resolution(self, address: Address, name: str) -> bytes | None:
        return self._promises.get((address, name))


class _Nobody:
    """Messages go on their way with the commit."""

    def add(self, kept: Sequence[Kept]) -> None:
        assert not kept, "the store has posted them"

    def wake(self, due_ms: int) -> None:
        pass


class Machine:
    """One host, and all that it is doing."""

    def __init__(self, world: World, session: int) -> None:
        self.session = session
        self.tasks: dict[asyncio.Task[Reply], None] = {}
        """In the order in which they began, in which they are cancelled."""
        self.host = Host(
            world.shop.app,
            cast(Store, world.store),
            session,
            Policies(PolicySet(), draw=world.dice.random),
            world.call,
            _Nobody(),
            clock=world.loop.time,
        )

    def handle(self, request: Request) -> asyncio.Task[Reply]:
        task = asyncio.create_task(self._answered(request))
        self.tasks[task] = None
        task.add_done_callback(lambda _: self.tasks.pop(task, None))
        return task

    async def _answered(self, request: Request) -> Reply:
        try:
            return await self.host.handle(request)
        except Fenced:
            return _GONE


class World:
    """See the module."""

    def __init__(self, shop: ModuleType, till: Till, manners: Manners, dice: Random) -> None:
        self.shop = shop
        self.dice = dice
        self.loop = VirtualLoop()
        self.store = MemoryStore(self)
        self.crashes = 0
        self._till = till
        self._manners = manners
        self._weather = Weather(dice)
        self._sessions = 0
        self._machines: list[Machine | None] = []
        self._lanes: defaultdict[tuple[Address, str, str], deque[Kept]] = defaultdict(deque)
        self._timers: dict[tuple[Address, str], asyncio.Task[None]] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._told: dict[str, str] = {}

    def play(self, placed: Sequence[data.Placed]) -> dict[str, Any]:
        """Place these orders, and let everything come to rest. What the oracle says then."""
        with ExitStack() as stack:
            stack.callback(self.loop.close)
            for module in (awaits, host, interrupts, invocation):
                stack.enter_context(patch.object(module, "time", Clock()))
            self.loop.run(self._live(placed))
        functions = functions_of(self.shop.app, BYTES_MAX)
        states: dict[str, dict[str, Any]] = defaultdict(dict)
        for address, row in self.store.rows.items():
            if row.value:
                states[address.typename][address.id] = decoded_state(functions[address.typename], row.value, 0)
        return verdict_on(self._till, states, placed, self._told)

    @property
    def is_troubled(self) -> bool:
        return self.loop.time() < TROUBLE_S

    async def _live(self, placed: Sequence[data.Placed]) -> None:
        self._machines = [self._machine() for _ in range(HOSTS)]
        clients = [self._start(self._client(order)) for order in placed]
        self._start(self._kill())
        await asyncio.wait(clients)
        await asyncio.sleep(REST_S)
        for task in [*self._under_way, *(task for machine in self._machines if machine for task in machine.tasks)]:
            task.cancel()
        await asyncio.sleep(1)

    def _machine(self) -> Machine:
        self._sessions += 1
        return Machine(self, self._sessions)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def pause(self) -> None:
        await asyncio.sleep(self.dice.choice((0, 0.001, 0.005)))

    # Those who place orders.

    async def _client(self, order: data.Placed) -> None:
        """Asks until it knows, or has asked often enough."""
        await asyncio.sleep(self.dice.uniform(0, TROUBLE_S / 2))
        function = self.shop.app.functions["shop/order"]
        payload = function.message_codec.encode(function.message_codec.convert(order.body))
        for _ in range(ATTEMPTS if self._manners.retries else 1):
            key = order.id if self._manners.client_keys else new_key()
            deadline_s = self.loop.time() + CLIENT_S
            reply = await self.call(Request(Address("shop/order", order.id), payload, key=key, deadline_s=deadline_s))
            if reply.status == 200:
                answer = function.reply_codec.to_builtins(decode_answer(reply.body, function.reply_codec))
                self._told[order.id] = data.outcome_of(answer)
                return
            await asyncio.sleep(1)

    # The network.

    async def call(self, request: Request) -> Reply:
        """Carry a request to a host, and to another one when that does not answer."""
        if request.kind is Kind.CANCEL:
            replies = [await machine.handle(request) for machine in self._machines if machine is not None]
            return Reply(200, YES if any(reply.body == YES for reply in replies) else NO)
        end_s = min(request.deadline_s or self.loop.time() + CALL_S, self.loop.time() + CALL_S)
        reply = _GONE
        for attempt in range(ATTEMPTS if self._manners.retries else 1):
            left_s = min(TRY_S, end_s - self.loop.time())
            if left_s <= 0:
                return failure(504, "PEN0842", "The time is over.")
            reply = await self._carry(request._replace(deadline_s=end_s), attempt, left_s)
            if reply.status < 500 or reply.status == 504:
                return reply
            await asyncio.sleep(0.05)
        return reply

    async def _carry(self, request: Request, attempt: int, patience_s: float) -> Reply:
        await self.pause()
        match self._weather.fate():
            case Fate.LOST:
                await asyncio.sleep(patience_s)
            case Fate.LATE:
                self._start(self._arrive_late(request, attempt))
                await asyncio.sleep(patience_s)
            case Fate.REPLY_LOST:
                await asyncio.wait([self._arrive(request, attempt)], timeout=patience_s)
            case Fate.DONE:
                if self.is_troubled and self.dice.random() < FAIR:
                    self._start(self._arrive_late(request, attempt))  # And once more.
                task = self._arrive(request, attempt)
                await asyncio.wait([task], timeout=patience_s)
                if task.done() and not task.cancelled():
                    return task.result()
        return _GONE

    def _arrive(self, request: Request, attempt: int) -> asyncio.Task[Reply]:
        """At the owner of its address, or at another host."""
        first = sum(str(request.address).encode()) + attempt
        order = [self._machines[(first + number) % HOSTS] for number in range(HOSTS)]
        machine = next((each for each in order if each is not None), None)
        if machine is None:
            return self._start(self._refuse())
        return machine.handle(request)

    async def _refuse(self) -> Reply:
        return _GONE

    async def _arrive_late(self, request: Request, attempt: int) -> None:
        """Its deadline is told as the time that is left, so it has as much when it arrives."""
        left_s = None if request.deadline_s is None else request.deadline_s - self.loop.time()
        await asyncio.sleep(self.dice.uniform(0.1, LATE_S))
        deadline_s = None if left_s is None else self.loop.time() + left_s
        await asyncio.wait([self._arrive(request._replace(deadline_s=deadline_s), attempt)])

    async def _kill(self) -> None:
        """Hosts die, and others come in their place. What they still ask the store for is refused."""
        while True:
            await asyncio.sleep(self.dice.uniform(1, TROUBLE_S))
            if not self.is_troubled:
                return
            place = self.dice.randrange(HOSTS)
            machine = self._machines[place]
            assert machine is not None, "nobody else kills"
            self._machines[place] = None
            self.crashes += 1
            self.store.fence(machine.session)
            for task in list(machine.tasks):
                task.cancel()
            await asyncio.sleep(REVIVED_S)
            self._machines[place] = self._machine()

    # Messages.

    def post(self, kept: Kept) -> None:
        """It is committed, so it will be delivered: at its time, or behind those before it in its lane."""
        outgoing = kept.outgoing
        if outgoing.due_ms:
            self.call_back(kept.sender, outgoing.token)
            timer = self._start(self._deliver_at(kept))
            if outgoing.token:
                self._timers[kept.sender, outgoing.token] = timer
            return
        lane = self._lanes[kept.sender, outgoing.target, outgoing.id]
        lane.append(kept)
        if len(lane) == 1:
            self._start(self._deliver_all(lane))

    def call_back(self, sender: Address, token: str) -> None:
        timer = self._timers.pop((sender, token), None) if token else None
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()

    async def _deliver_at(self, kept: Kept) -> None:
        await asyncio.sleep(max(0.0, kept.outgoing.due_ms / 1000 - self.loop.time()))
        await self._deliver(kept)

    async def _deliver_all(self, lane: deque[Kept]) -> None:
        while lane:
            await self._deliver(lane[0])
            lane.popleft()

    async def _deliver(self, kept: Kept) -> None:
        """Until it is taken, or never will be."""
        while True:
            request = request_of(kept)
            with suppress(PenstockError):
                refusal = refusal_of(await self._carry(request, kept.attempts, CALL_S), str(request.address))
                if refusal is None or refusal.final:
                    return
            kept = kept._replace(attempts=kept.attempts + 1)
            await asyncio.sleep(min(5.0, 0.1 * 2 ** min(kept.attempts, 10)))
