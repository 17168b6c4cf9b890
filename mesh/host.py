"""Carries out requests: one turn of an address, one run of its handler, one commit, one answer.

    admit -> [ turn -> load -> run -> commit ] -> answer
                       ^                |
                       +----------------+  another host has changed the address, or the handler is tried again

What always holds: an answer is given only when everything it rests on is durable; a request whose deadline has passed
is not begun, and what passes it while it runs changes nothing, unless its commit is on the way; one that is refused has
changed nothing; a request under a key that was answered gets that answer. How requests come here, and where messages go
from here, is for others to know (`server`, `caller`, `outbox`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from penstock.errors import CallTimeout, ConfigurationError, FunctionError, InvalidInput, PenstockError, Unavailable
from penstock.functions.app import App
from penstock.functions.failures import describe, user_traceback
from penstock.functions.outlets import outlets_of
from penstock.ids import Address
from penstock.logs import logger
from penstock.mesh.awaits import Neighbours
from penstock.mesh.forgetting import KEEP_PROMISES_MS
from penstock.mesh.interrupts import Interrupt, Interrupts
from penstock.mesh.invocation import Run
from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.guard import Admission, Refusal
from penstock.mesh.policies.live import Policies
from penstock.mesh.store import Answer, Commit, Committed, Kept, Loaded, Outgoing, Store, VersionMismatch
from penstock.mesh.turn import Turns
from penstock.mesh.wire import FOR_OTHERS, NO, NOTHING, YES, Kind, Reply, Request, failure, new_key, reply_of
from penstock.state.stateful import Stateful

CONFLICTS_MAX: Final = 20
"""So often another host may change an address between our load and our commit. It takes two hosts that both believe to
be its owner, which lasts as long as their views differ; each conflict is somebody's progress."""
PROMISE_POLL_S: Final = 0.2
"""A promise that is kept through another host is seen so late at most."""

_NEW: Final = Loaded(b"", 0, None, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """Times in milliseconds, sizes in bytes."""

    message_bytes_max: int = 1 << 20
    keep_answers_ms: int = 24 * 3_600_000
    """How long an answer is known under its key."""
    keep_promises_ms: int = KEEP_PROMISES_MS
    """How long a promise that was kept waits for somebody who asks for it."""


DEFAULT_OPTIONS: Final = HostOptions()


class Outbox(Protocol):
    """Whoever delivers what was committed."""

    def add(self, kept: Sequence[Kept]) -> None:
        """Messages that can be delivered at once."""
        ...

    def wake(self, due_ms: int) -> None:
        """There is something to be delivered at that time; 0 for now."""
        ...


class Host:
    """See the module. `functions` are those it serves, all of the application when there are none."""

    def __init__(
        self,
        app: App,
        store: Store,
        session: int,
        policies: Policies,
        call: Callable[[Request], Any],
        outbox: Outbox,
        *,
        options: HostOptions = DEFAULT_OPTIONS,
        only: frozenset[str] = frozenset(),
        identity: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`identity` tells the one that this process proves to others; empty when it proves none."""
        self._store = store
        self._session = session
        self._policies = policies
        self._outbox = outbox
        self._options = options
        self._identity = identity
        self._clock = clock
        self._turns = Turns()
        self._interrupts = Interrupts()
        self._promises: dict[tuple[Address, str], asyncio.Event] = {}
        self._neighbours: Neighbours = _Neighbours(self, call)
        self._functions = functions_of(app, options.message_bytes_max)
        self._served = served_of(self._functions, only)
        self.messages: Counter[str] = Counter()
        """Requests whose handlers were to run, by function, since the start; a message is one."""
        self.failures: Counter[str] = Counter()
        """How often handlers have raised."""
        self.draining = False
        """No request is begun any more."""
        self.active = 0
        """Requests that were begun and have no answer yet."""
        self._quiet = asyncio.Event()

    async def handle(self, request: Request) -> Reply:
        """Carry out one request. What becomes of it is the reply, whatever it is."""
        function = self._served.get(request.address.typename)
        if function is None:
            return self._unknown(request.address.typename)
        if request.behalf:
            if not request.identity or request.identity != self._identity():
                return _speaks_for_others(request)
            request = request._replace(identity=request.behalf, behalf="")
        if request.kind is Kind.CANCEL and request.key:
            return self._interrupt(request)  # Whoever knows the key has asked, and was admitted then.
        if self.draining:
            return failure(503, "PEN0804", "This host is about to stop. Ask another one.", refused=True)
        admission = self._admit(function, request)
        if isinstance(admission, Refusal):
            return _refusal(admission)
        self.active += 1
        self._quiet.clear()
        reply = failure(500, "PEN0801", f"The host has failed at a request for {request.address}. Its log says how.")
        try:
            reply = await self._admitted(function, request, admission)
        except TimeoutError:
            reply = reply_of(_too_late(request))
        except PenstockError as error:
            reply = reply_of(error)
        finally:
            self.active -= 1
            if not self.active:
                self._quiet.set()
            admission.finish(self._clock(), succeeded=reply.status < 500)
        return reply

    async def wait_quiet(self) -> None:
        """Until every request that was begun has its answer."""
        while self.active:
            await self._quiet.wait()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._turns.waiting

    @property
    def under_way(self) -> Mapping[Address, Sequence[Interrupt]]:
        """Requests that are carried out, or wait for their turn, at each address that is busy."""
        return self._interrupts.watched

    # One request.

    async def _admitted(self, function: Stateful, request: Request, admission: Admission) -> Reply:
        if admission.delay_s:
            await asyncio.sleep(admission.delay_s)
        if admission.abort is not None:
            # It stands for a host that fails, so it does not say that nothing was begun.
            abort = admission.abort
            return failure(abort.status, abort.code, abort.message)
        match request.kind:
            case Kind.SEND | Kind.RESOLVE | Kind.CANCEL if request.shadow:
                return Reply(200, NOTHING)  # There is nothing to run.
            case Kind.SEND:
                return await self._keep(function, request)
            case Kind.RESOLVE:
                return await self._resolve(request)
            case Kind.CANCEL:
                return self._interrupt(request)
            case Kind.CALL | Kind.DELIVER:
                return await self._invoke(function, request)

    def _interrupt(self, request: Request) -> Reply:
        return Reply(200, YES if self._interrupts.interrupt(request) else NO)

    async def _invoke(self, function: Stateful, request: Request) -> Reply:
        """Run the handler in its turn, as often as its options say and as others are in between."""
        self.messages[function.typename] += 1
        with self._interrupts.watch(request) as interrupt:
            async with asyncio.timeout_at(request.deadline_s) as limit:
                turn = self._turns.begin(request.address)
                if interrupt.begun:
                    await turn
                elif not await interrupt.wait(turn):
                    return await self._end_cancelled(function, request, limit)
                try:
                    return await self._try(function, request, interrupt, limit)
                finally:
                    self._turns.end(request.address)

    async def _try(self, function: Stateful, request: Request, interrupt: Interrupt, limit: asyncio.Timeout) -> Reply:
        root = request.key or new_key()
        options = function.function.options
        attempt, conflicts = 1, 0
        while True:
            try:
                return await self._attempt(function, request, interrupt, limit, root=root, attempt=attempt)
            except VersionMismatch:
                conflicts += 1
                if conflicts > CONFLICTS_MAX:
                    raise
                limit.reschedule(request.deadline_s)
            except _HandlerFailed as failed:
                if interrupt.requested:
                    if not isinstance(failed.error, asyncio.CancelledError):
                        logger.warning("%s was cancelled, and could not put things right: %s", request.address, failed)
                    return await self._end_cancelled(function, request, limit)
                self.failures[function.typename] += 1
                logger.warning("%s, try %d of %d: %s", request.address, attempt, options.attempts, failed)
                if attempt >= options.attempts or isinstance(failed.error, InvalidInput):
                    raise failed.told(request.address) from None
                await interrupt.wait(asyncio.sleep(options.backoff_ms(attempt) / 1000))
                attempt += 1

    async def _end_cancelled(self, function: Stateful, request: Request, limit: asyncio.Timeout) -> Reply:
        """It is over, also for those who ask again under its key: nothing it did is kept, and nobody tries it again."""
        reply = Reply(200, NOTHING)
        if request.kind is Kind.CALL:
            reply = reply_of(_cancelled(request))
        if request.key and not request.shadow and function.function.state_typename == function.typename:
            limit.reschedule(None)
            answer_until_ms = time.time_ns() // 1_000_000 + self._options.keep_answers_ms
            answer = Answer(reply.status, reply.body)
            commit = Commit(
                self._session, *request.address, key=request.key, answer=answer, answer_until_ms=answer_until_ms
            )
            with suppress(VersionMismatch):  # It was answered before, on another host.
                await self.commit(commit)
        return reply

    async def _attempt(
        self,
        function: Stateful,
        request: Request,
        interrupt: Interrupt,
        limit: asyncio.Timeout,
        *,
        root: str,
        attempt: int,
    ) -> Reply:
        """Once from load to commit."""
        loaded = await self._load(function, request)
        if loaded.answer is not None:
            return Reply(*loaded.answer)
        run = Run(function, request, loaded, self._neighbours, session=self._session, root=root, attempt=attempt)
        interrupt.waits = run.waits
        run.open()
        self._check_time(request)
        try:
            with interrupt.handler():
                await run.run()
            commit = run.commit(self._options.keep_answers_ms)
        except VersionMismatch:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # Whatever a handler raises is how it failed.
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            if run.outrun is not None:
                raise run.outrun from None
            raise _HandlerFailed(error) from error
        if commit is not None:
            await run.settle(commit)
        self._check_time(request)
        if commit is None or request.shadow:
            return run.reply()
        limit.reschedule(None)  # A commit is waited for, so that nobody hears of a failure of what was done.
        await self.commit(commit)
        return run.reply()

    async def _load(self, function: Stateful, request: Request) -> Loaded:
        owner = function.function.state_typename
        if owner != function.typename:  # It only reads, so that there is no answer that could have had an effect.
            return await self._store.load(owner, request.address.id, rows=bool(function.collections))
        if not function.has_state and not request.key:
            return _NEW
        return await self._store.load(*request.address, request.key, rows=bool(function.collections))

    async def commit(self, commit: Commit) -> Committed:
        """Make it durable, and see that what it asks for is brought about."""
        committed = await self._store.commit(commit)
        if committed.kept:
            self._outbox.add(committed.kept)
        if commit.emitted:
            self._outbox.wake(0)
        due_ms = min((each.due_ms for each in commit.outgoing if each.due_ms), default=0)
        if due_ms:
            self._outbox.wake(due_ms)
        return committed

    async def _keep(self, function: Stateful, request: Request) -> Reply:
        """Take a message that is delivered later."""
        self._check_time(request)
        try:
            function.decode(request.payload)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            place = f"Message for {request.address}"
            raise function.codec.explain(error, request.payload, place=place) from None
        key = request.key or new_key()
        now_ms = time.time_ns() // 1_000_000
        commit = Commit(
            self._session,
            *request.address,
            key=f"sent {key}",
            answer=Answer(200, NOTHING),
            answer_until_ms=now_ms + self._options.keep_answers_ms,
            outgoing=[
                Outgoing(
                    *request.address,
                    request.payload,
                    key,
                    headers=dict(request.headers),
                    outside=True,
                    caller=request.caller,
                    identity=request.identity,
                )
            ],
        )
        with suppress(VersionMismatch):  # It was taken before, under this key.
            await self.commit(commit)
        return Reply(200, NOTHING)

    async def _resolve(self, request: Request) -> Reply:
        """Keep a promise. Takes no turn: the handler that waits for it has that."""
        self._check_time(request)
        await self._store.resolve(self._session, request.address, request.promise, request.payload)
        waiter = self._promises.get((request.address, request.promise))
        if waiter is not None:
            waiter.set()
        return Reply(200, NOTHING)

    async def promised(self, address: Address, name: str, key: str) -> bytes:
        """The value of a promise, once it is kept, through whichever host.

        Raises VersionMismatch when `key` is answered meanwhile: another host that carries out the same request has
        taken the value, and there will be none.
        """
        place = (address, name)
        waiter = self._promises.setdefault(place, asyncio.Event())
        try:
            while (value := await self._store.resolution(address, name)) is None:
                if key and (await self._store.load(*address, key)).answer is not None:
                    raise VersionMismatch(address, f"key {key!r} is answered already")
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROMISE_POLL_S):
                        await waiter.wait()
        finally:
            self._promises.pop(place, None)
        return value

    # What is not begun.

    def _unknown(self, typename: str) -> Reply:
        known = ", ".join(sorted(self._served)) or "none"
        if typename in self._functions:
            return failure(503, "PEN0805", f"This host does not serve {typename}, but {known}.", refused=True)
        text = f"{typename} is no function of this application. Known: {known}."
        return failure(404, "PEN0105", text, refused=True)

    def _admit(self, function: Stateful, request: Request) -> Admission | Refusal:
        peer = Peer(request.caller.typename if request.caller is not None else "", request.identity)
        operation = _operation(function, request) if self._policies.policy_set.access else ""
        return self._policies.admit(function.typename, operation, peer, self._clock(), request.headers)

    def _check_time(self, request: Request) -> None:
        if request.deadline_s is not None and self._clock() >= request.deadline_s:
            raise _too_late(request)


class _Neighbours:
    """What handlers await, brought about by this host and those it calls."""

    def __init__(self, host: Host, call: Callable[[Request], Any]) -> None:
        self._host = host
        self._call = call
        self._outliving: set[asyncio.Task[None]] = set()

    async def commit(self, commit: Commit) -> Committed:
        return await self._host.commit(commit)

    async def call(self, request: Request) -> Reply:
        reply: Reply = await self._call(request)
        return reply

    async def promised(self, address: Address, name: str, key: str) -> bytes:
        return await self._host.promised(address, name, key)

    def outlive(self, task: asyncio.Task[None]) -> None:
        self._outliving.add(task)
        task.add_done_callback(self._outliving.discard)


class _HandlerFailed(Exception):
    """A handler has raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error) if isinstance(error, PenstockError) else user_traceback(error).rstrip())
        self.error = error

    def told(self, address: Address) -> PenstockError:
        """What whoever asked is told. What a handler could not reach may be tried again; all else is its failure."""
        code, text = describe(self.error)
        if isinstance(self.error, Unavailable):
            return Unavailable(code, text)
        return FunctionError(code, text, address=str(address))


def _cancelled(request: Request) -> FunctionError:
    address = str(request.address)
    return FunctionError("PEN0272", f"{address} was cancelled before it answered.", address=address)


def functions_of(app: App, bytes_max: int) -> Mapping[str, Stateful]:
    """The functions of an application, ready to be run and to be sent to. Raises ConfigurationError."""
    app.check()
    functions = {name: Stateful(function, bytes_max=bytes_max) for name, function in app.functions.items()}
    targets: dict[Any, Stateful] = dict(functions)
    targets.update((app.functions[name], function) for name, function in functions.items())
    outlets = outlets_of(app, bytes_max)
    for function in functions.values():
        function.bind(targets, outlets)
    return functions


def served_of(functions: Mapping[str, Stateful], only: frozenset[str]) -> Mapping[str, Stateful]:
    """Those that a host serves. Raises ConfigurationError for a name that is none."""
    for name in only:
        if name not in functions:
            known = ", ".join(sorted(functions)) or "none"
            raise ConfigurationError(
                "PEN0809", f"--only {name} names no function of this application. Known: {known}. Correct the name."
            )
    return {name: function for name, function in functions.items() if not only or name in only}


def _operation(function: Stateful, request: Request) -> str:
    """What access rules call a request: the class of its message."""
    try:
        return type(function.decode(request.payload)).__name__
    except Exception:  # noqa: BLE001  # It is refused for that later, if not for who sends it.
        return ""


def _refusal(refusal: Refusal) -> Reply:
    refused = refusal.status in (403, 429, 503)
    return failure(
        refusal.status,
        refusal.code,
        refusal.message,
        refused=refused,
        retry_after_s=refusal.retry_after_s or None,
    )


def _speaks_for_others(request: Request) -> Reply:
    who = request.identity or "Somebody without a certificate"
    return failure(
        403,
        FOR_OTHERS,
        f"{who} asks something of {request.address} on behalf of {request.behalf}. Only processes with the identity of "
        "this host may do so: give all hosts of one store the same --identity.",
        refused=True,
    )


def _too_late(request: Request) -> CallTimeout:
    return CallTimeout(
        "PEN0802",
        f"The deadline of a request for {request.address} has passed. It is not done later, and has changed nothing; "
        "only a saga goes on from what it has recorded. Ask again, and allow more time.",
        address=str(request.address),
    )


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the request, and it is not the handler that raises by itself."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())
