"""One run of an `async def` handler: stepped by hand where it awaits what is journaled, else by the event loop.

    begin -> [ a segment runs -> at rest -> commit -> deliver the next result ] -> outcome
                    |                                        ^
                    +-- awaits something of the event loop --+   (`Excursion`, until it is back)

What always holds: results are delivered one at a time, in the order of the journal, each when the handler is at rest:
nothing of it can go on by itself. So a handler that is run again with the same journal asks for the same things in the
same order, or `mismatch` says where it did not. The time it sees is that of the result it got last.

Commits nothing and writes no rows: the task core does, with the outputs in the context and the wishes in `fresh`.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, events, tasks
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context as Variables
from contextvars import ContextVar, copy_context
from typing import Any, Final, NamedTuple, Protocol

from penstock.engine.entry import Entry
from penstock.engine.invocation_journal import CANCELLATION, JOINED, InvocationJournal, Line
from penstock.errors import CallTimeout, FunctionError, InvalidInput, PenstockError
from penstock.functions.context import CancelCall, Context, Wished, Withdrawn
from penstock.functions.durable import DEADLINE, SLEEP, STEP, Durable, Wish
from penstock.functions.state import flush_collections
from penstock.ids import output_cause
from penstock.records import QueuedRow
from penstock.state.stateful import Opened

SEGMENTS: Final = 1 << 32
"""Numbers for the segments of an invocation, apart from those of its outputs."""
REFUSED_MAX: Final = 10
"""How often a handler that is dropped is told so. One that catches that too, in a loop, is left where it waits."""
QUIET_ROUNDS: Final = 8
"""Rounds of the event loop in which nothing of the handler is heard before it counts as at rest: what asyncio puts
between a result and whoever awaits it, through gatherings of tasks of gatherings."""


class Outcome(NamedTuple):
    """How a handler ended: with a value, or with an error."""

    value: Any
    error: BaseException | None


class Signal:
    """What an excursion ends with, or says, instead of an outcome."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


BACK: Final = Signal("back")
"""The handler awaits something that is journaled again, and nothing of the event loop."""
TIMED_OUT: Final = "PEN0260"
RESTED: Final = Signal("rested")
"""Nothing of the handler goes on before a result is delivered."""


class Watcher(Protocol):
    """Whoever is told, between turns, what becomes of handlers."""

    def rested(self, number: int, signal: Signal) -> None:
        """A handler has come to rest: tell its core by `Completed(number, signal, None)`."""
        ...

    def began(self, task: asyncio.Task[Any]) -> None:
        """A handler has started a task, which is to be cancelled when the process stops."""
        ...


class _Unequal(BaseException):
    """Ends a handler that asks for something else than before. No `except Exception` of the user's catches it."""


_running: ContextVar[Invocation | None] = ContextVar("penstock_invocation", default=None)


class Invocation:
    """See the module. `number` is that of its pending message."""

    def __init__(
        self,
        entry: Entry,
        message: QueuedRow,
        context: Context[Any],
        opened: Opened,
        journal: InvocationJournal,
        *,
        attempt: int,
        watcher: Watcher | None,
    ) -> None:
        self.entry = entry
        self.message = message
        self.context = context
        self.opened = opened
        self.journal = journal
        self.attempt = attempt
        self.address = context.address
        self.number = -1
        self.joins = False
        """Whether it is a call that came back, which runs between two segments of the handler it came back to."""
        self.moved = True
        """Whether it has run since it was last seen at rest."""
        self.outcome: Outcome | None = None
        self.mismatch: PenstockError | None = None
        self.fresh: list[Wish] = []
        """What was asked for since the last commit."""
        self.wishes: dict[int, Wish] = {}
        """What was asked for and has not been delivered."""
        self.changes = 0
        """Of anything, to see that nothing has happened."""
        self.excursion: Excursion | None = None
        self.is_delivering = False
        self._watcher = watcher
        self._issued = 0
        self._delivered = 0
        """Results so far in this run, which is also the number of the segment that they ended."""
        self._caught_up = journal.segments == 0
        self._open: dict[int, Durable[Any]] = {}
        self._blocked: Durable[Any] | None = None
        self._to_raise: BaseException | None = None
        self._rested = False
        self._listening = False
        self._closed = False
        self._dropping = False
        self._refused = 0
        self._children = 0
        self._child_number = 0
        """Of the task that it started last."""
        self._as_task: HandlerTask | None = None
        self._variables: Variables | None = None
        self._handler: Coroutine[Any, Any, Any]
        context._keeper = self

    # As the core drives it.

    def begin(self, handler: Coroutine[Any, Any, Any]) -> None:
        """Run to where it is at rest, or on its way into the event loop, or at its end."""
        self._handler = handler
        self._step()

    @property
    def replaying(self) -> bool:
        """Whether it has not come yet to where it was when it was put aside."""
        return not self._caught_up

    @property
    def at_rest(self) -> bool:
        """Whether nothing of it can go on before a result is delivered."""
        if self._rested:
            return True
        return self.excursion is None and not (self._children or self._listening or self._to_raise is not None)

    @property
    def waits_for_step(self) -> bool:
        """Whether a step is under way, which only this process knows."""
        return any(wish.kind == STEP for wish in self.wishes.values())

    @property
    def has_news(self) -> bool:
        """Whether something has arrived that the handler has not been given."""
        return self._delivered < len(self.journal.arrivals)

    @property
    def waits_for_messages(self) -> bool:
        """Whether a process that goes on with its journal need not run it before something arrives."""
        return self.at_rest and self.excursion is None and not self.has_news and not self.waits_for_step

    @property
    def can_be_put_aside(self) -> bool:
        """Whether nothing but its journal is needed to go on."""
        return self.waits_for_messages and not self._is_composing

    def passed(self) -> bool:
        """It is at rest where it was before, at a segment that is committed. Returns whether it has caught up."""
        self.moved = False
        self._caught_up = self._delivered + 1 >= self.journal.segments
        return self._caught_up

    def committed(self) -> None:
        """The segment that it has just ended is committed."""
        self.moved = False
        self.journal.segments = self._delivered + 1
        self.fresh = []

    def deliver(self) -> bool:
        """Give the handler the next result there is, and run it on. False when there is none."""
        if self._to_raise is not None:
            self._step()
            return True
        arrivals = self.journal.arrivals
        if self._delivered == len(arrivals):
            if self.replaying:
                self._differ("it waits", "it went on")
            return self.replaying
        index = arrivals[self._delivered]
        self._delivered += 1
        self.changes += 1
        self.moved = True  # Also by what nobody waits for any more: each result ends a segment, in every run.
        self._rested = False
        self.context._clock_ms = max(self.context._clock_ms, self.journal.arrived_ms(index))
        composing = self._is_busy or self.excursion is not None
        self.is_delivering = True
        if index == CANCELLATION:
            self._task.cancel()
        elif index <= JOINED:
            self._take_joined(index)
        elif index >= self._issued:
            self._differ("it waits", _text(self.journal.lines[index]))
        else:
            self._finish(index, self.journal.lines[index])
        self.is_delivering = False
        if self._goes_on:
            self._step()
        elif composing:
            self.watch()
        return True

    def joined(self) -> None:
        """A call that came back has run while the handler was at rest, and its journal knows: nothing of it moves."""
        index = self.journal.arrivals[self._delivered]
        assert index <= JOINED, "nothing has arrived that the handler has not been given"
        self._delivered += 1
        self.context._clock_ms = max(self.context._clock_ms, self.journal.arrived_ms(index))
        self._take_joined(index)

    def _take_joined(self, index: int) -> None:
        """Go on with the state that a call which came back has left."""
        joined = self.journal.joined(index)
        collections = self.opened.collections
        if self.replaying and collections is not None:
            flush_collections(self.context.state)
            collections.take(joined.rows)
        self.opened = self.entry.decode_into(self.context, self.context._clock_ms, joined.state, collections)

    @property
    def is_to_end(self) -> bool:
        """Whether it was cancelled, and has not come to where it would see that."""
        return CANCELLATION in self.journal.arrivals[self._delivered :]

    @property
    def waits_outside(self) -> bool:
        """Whether it awaits something of the event loop that is not journaled, and has done so for a while."""
        return self.excursion is not None and not (self._rested or self._listening)

    def watch(self) -> None:
        """Have the watcher told once nothing of the handler goes on by itself."""
        self.changes += 1
        loop = events._get_running_loop()
        if loop is not None and self._watcher is not None and not self._listening:
            self._listening = True
            loop.call_soon(self._listen, loop, self.changes, QUIET_ROUNDS)

    def back(self, signal: Signal) -> None:
        """The excursion is over, or nothing of the handler goes on by itself."""
        self.moved = True
        if signal is BACK:
            self.excursion = None
        elif not self._listening and not self._is_coming_back:
            # Otherwise a result was delivered since this was told, and it is told again.
            self._rested = self._is_composing or self._blocked is not None

    @property
    def _is_coming_back(self) -> bool:
        """Whether its excursion is over, and that has not been told: it is behind what is told now."""
        return self.excursion is not None and self.excursion.ended

    def close(self) -> None:
        """Drop the handler, whatever it is doing; what is journaled stays. Its `finally` blocks run, and can do nothing
        here: the context is closed, so that whatever they await ends them."""
        self._closed = True
        if self.excursion is None:  # Otherwise whoever runs that ends it.
            self.drop_handler()
            self.let_go()
        self.context.outputs.clear()

    def let_go(self) -> None:
        """It is over: nothing it holds leads back to it any more. Left to the collector, which comes seldom, a handler
        that was put aside would stay in memory for as long as 200,000 others."""
        self._closed = True
        if self._refused > REFUSED_MAX:
            return  # It did not want to end, and is told once more when Python drops it.
        self.context._keeper = None
        self._open.clear()
        self._blocked = self._variables = self._as_task = self.excursion = None

    def drop_handler(self) -> None:
        """End it where it waits. What its `finally` blocks raise, or that it goes on although it is to end, concerns
        nobody any more."""
        self._dropping = True
        with suppress(Exception, asyncio.CancelledError, GeneratorExit, _Unequal):
            self._handler.close()
        self._dropping = False

    # As the context asks it: a `Keeper`.

    is_journaled = True

    async def commit(self) -> None:
        """Nothing: the segment that is under way is committed when the handler waits next."""

    def wish(self, wish: Wish) -> Durable[Any]:
        if self._closed:
            self._refused += self._dropping
            if self._refused > REFUSED_MAX:
                return Durable(self, -1)
            raise GeneratorExit
        index = self._issued
        lines = self.journal.lines
        if index < len(lines):
            line = lines[index]
            if (line.kind, line.name, line.digest) != (wish.kind, wish.name, wish.digest):
                self._differ(_described(wish), _text(line))
                raise _Unequal
        elif self.replaying:
            self._differ(_described(wish), "it waited")
            raise _Unequal
        else:
            self.fresh.append(wish)
        if self._rested and self.excursion is not None:
            raise self._mixed()
        self._issued += 1
        self.context.outputs.append(Wished(index, wish))
        durable: Durable[Any] = Durable(self, index)
        self._open[index] = durable
        self.wishes[index] = wish
        if self.excursion is not None or self._children:
            self.watch()
        return durable

    def withdraw(self, durable: Durable[Any]) -> None:
        if self._open.pop(durable.index, None) is not None:
            self.wishes.pop(durable.index, None)
            self.context.outputs.append(Withdrawn(durable.index))

    def cancel_call(self, durable: Durable[Any]) -> None:
        self.context.outputs.append(CancelCall(durable.index))

    def cancelled(self, durable: Durable[Any]) -> BaseException | None:
        self._open.pop(durable.index, None)
        self.wishes.pop(durable.index, None)
        return self._by_raw_clock() if self._rested and not self._closed else None

    def task(self) -> Any:
        loop = events._get_running_loop()
        current = tasks.current_task(loop) if loop is not None else None
        return self._task if current is None else current

    # As excursions and tasks use it.

    def block(self, durable: Durable[Any]) -> None:
        self._blocked = durable

    def raise_next(self, error: BaseException) -> None:
        self._to_raise = error

    def watch_if_composing(self) -> None:
        """Listen for rest, if results are awaited through what the handler waits for."""
        if self._is_composing:
            self.watch()

    def wake_from_outside(self) -> BaseException | None:
        """Something of the event loop has happened. Returns what to raise when that is not how it must go on."""
        self.changes += 1
        if self._rested and not self._closed:
            self._rested = False
            return self._mixed()
        return None

    # Inside.

    @property
    def _task(self) -> HandlerTask:
        if self._as_task is None:
            self._as_task = HandlerTask(self)
        return self._as_task

    @property
    def _is_composing(self) -> bool:
        """Whether it waits for results through something of asyncio."""
        return any(durable.is_watched for durable in self._open.values())

    def _finish(self, index: int, line: Line) -> None:
        durable = self._open.pop(index, None)
        wish = self.wishes.pop(index, None)
        if durable is None or wish is None:
            return  # Withdrawn, or its wait was cancelled.
        value: Any = None
        error: BaseException | None = None
        if line.error is not None:
            error = _error_of(line, str(self.address))
        elif wish.kind not in (SLEEP, DEADLINE):
            try:
                value = wish.read(line.value)
            except InvalidInput as refused:
                error = refused
        durable.finish(value, error)

    def _step(self) -> None:
        """Run the handler to where it waits next."""
        thrown, self._to_raise = self._to_raise, None
        self._blocked = None
        self.moved = True
        try:
            step = self._handler.send if thrown is None else self._handler.throw
            yielded = self.run_in_it(step, thrown)
        except StopIteration as ended:
            self.outcome = Outcome(ended.value, None)
        except _Unequal:
            pass  # `mismatch` says what.
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # Whatever a handler raises is how it ended.
            self.outcome = Outcome(None, error)
        else:
            if type(yielded) is Durable:
                yielded._asyncio_future_blocking = False
                self._blocked = yielded
            else:
                self.excursion = Excursion(self, self._handler, yielded)

    def run_in_it(self, step: Callable[[Any], Any], argument: Any) -> Any:
        """Run some of the handler as what it takes for its task."""
        variables = self._variables
        if variables is None:
            variables = self._variables = copy_context()
            variables.run(_running.set, self)
        loop = events._get_running_loop()
        if loop is None:
            return variables.run(step, argument)
        if loop.get_task_factory() is None:
            loop.set_task_factory(_counted_task)
        outer = tasks.current_task(loop)
        if outer is not None:
            tasks._leave_task(loop, outer)
        tasks._enter_task(loop, self._task)  # type: ignore[arg-type]
        try:
            return variables.run(step, argument)
        finally:
            tasks._leave_task(loop, self._task)  # type: ignore[arg-type]
            if outer is not None:
                tasks._enter_task(loop, outer)

    def cancel_by_loop(self) -> None:
        """Something of asyncio cancels the handler where it waits for a result: a group of tasks one of which failed,
        or a clock that no journal knows."""
        self._to_raise = self._by_raw_clock() if self._rested or not self._is_busy else asyncio.CancelledError()
        self._tell(RESTED)

    @property
    def _goes_on(self) -> bool:
        """Whether what the handler itself waits for has come."""
        if self.excursion is not None:
            return False
        return self._to_raise is not None or (self._blocked is not None and self._blocked.done())

    @property
    def _is_busy(self) -> bool:
        return bool(self._children) or self._listening or self._is_composing

    def child_began(self, task: _ChildTask) -> None:
        self._children += 1
        self._child_number += 1
        task.order = hash((self.journal.cause, self._child_number))
        task.add_done_callback(self.child_ended)
        if self._watcher is not None:
            self._watcher.began(task)

    def child_ended(self, _: asyncio.Task[Any]) -> None:
        self._children -= 1
        self.watch()

    def _listen(self, loop: AbstractEventLoop, changes: int, rounds: int) -> None:
        if self._closed or self.outcome is not None:
            self._listening = False
        elif self.changes != changes:
            loop.call_soon(self._listen, loop, self.changes, QUIET_ROUNDS)
        elif rounds:
            loop.call_soon(self._listen, loop, changes, rounds - 1)
        else:
            self._listening = False
            self._tell(RESTED)

    def _tell(self, signal: Signal) -> None:
        assert self._watcher is not None
        self._watcher.rested(self.number, signal)

    @property
    def segment_cause(self) -> int:
        """What the causes of the outputs of the present segment follow from (PROTOCOL 6): for the first one that of the
        message, so that awaiting changes nothing for who does not."""
        cause = self.journal.cause
        return output_cause(cause, SEGMENTS + self._delivered) if self._delivered else cause

    # What goes wrong.

    def differ_in_state(self) -> None:
        """The state after what was done again is not what is stored."""
        self._differ("its state is another one", "it is as it was stored")

    def differ_at_end(self) -> None:
        """It has ended before it was where it had waited."""
        self._differ("it ended", "it went on")

    def _differ(self, found: str, expected: str) -> None:
        self.mismatch = FunctionError(
            "PEN0261",
            f"{self.address} was run again, and did not do what it did before: at wish {self._issued + 1} "
            f"{found}, and in its journal {expected}. Its code has changed, or depends on a clock, a random number or "
            "something else that is not the same again. It waits: correct the code (ctx.now, ctx.random, ctx.uuid and "
            "ctx.run are safe) and start again, or end it with penstock calls cancel.",
            address=str(self.address),
        )

    def _mixed(self) -> InvalidInput:
        return InvalidInput(
            "PEN0262",
            f"{self.address} went on by something that is not in its journal while it awaited what is: a raw "
            "await beside a durable one, in one gather or one task each. Use ctx.sleep and ctx.run there, so that it "
            "goes the same way when it is run again.",
        )

    def _by_raw_clock(self) -> InvalidInput:
        return InvalidInput(
            "PEN0263",
            f"{self.address} was cancelled by asyncio while it awaited what is journaled; asyncio.timeout and "
            "asyncio.wait_for go by a clock that is not in the journal. Use async with ctx.timeout(...), or "
            "ctx.call(..., timeout=...).",
        )


class Excursion(Coroutine[Any, Any, Any]):
    """The handler while it awaits something of the event loop: a coroutine for a task of it. Returns what the handler
    returned, or `BACK`."""

    def __init__(self, invocation: Invocation, handler: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._invocation = invocation
        self._handler = handler
        self._awaited = awaited
        self.ended = False
        self._began = False
        self.started = False
        """Whether somebody runs it, or is about to."""
        self.task: asyncio.Task[Any] | None = None

    def send(self, value: Any) -> Any:
        if not self._began:
            self._began = True
            loop = events._get_running_loop()
            self.task = tasks.current_task(loop) if loop is not None else None
            self._invocation.watch_if_composing()
            return self._awaited
        return self._go(self._handler.send, value)

    def throw(self, *error: Any) -> Any:
        thrown = error[1] if len(error) > 1 and error[1] is not None else error[0]
        if not self._began:
            self._began = True
        return self._go(self._handler.throw, thrown)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self._invocation.drop_handler()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Excursion:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _go(self, step: Callable[[Any], Any], argument: Any) -> Any:
        invocation = self._invocation
        if (mixed := invocation.wake_from_outside()) is not None:
            step, argument = self._handler.throw, mixed
        try:
            yielded = invocation.run_in_it(step, argument)
        except _Unequal:
            self.ended = True
            raise StopIteration(BACK) from None
        except BaseException:
            self.ended = True
            raise
        if type(yielded) is Durable:
            yielded._asyncio_future_blocking = False
            invocation.block(yielded)
            self.ended = True
            raise StopIteration(BACK)
        invocation.watch_if_composing()
        return yielded


class HandlerTask:
    """What `asyncio.current_task()` is in a handler: enough of a task for `asyncio.timeout` and `TaskGroup`."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._requests = 0

    def cancel(self, msg: object = None) -> bool:
        if self.done():
            return False
        self._requests += 1
        invocation = self._invocation
        excursion = invocation.excursion
        if excursion is not None and excursion.task is not None:
            return excursion.task.cancel()
        if invocation.is_delivering:
            invocation.raise_next(asyncio.CancelledError())
        else:
            invocation.cancel_by_loop()
        return True

    def cancelling(self) -> int:
        return self._requests

    def uncancel(self) -> int:
        self._requests = max(0, self._requests - 1)
        excursion = self._invocation.excursion
        if excursion is not None and excursion.task is not None and excursion.task.cancelling():
            excursion.task.uncancel()
        return self._requests

    def done(self) -> bool:
        return self._invocation.outcome is not None

    def cancelled(self) -> bool:
        return False

    def get_loop(self) -> AbstractEventLoop:
        return asyncio.get_running_loop()

    def get_name(self) -> str:
        return str(self._invocation.address)


def outside_of_handlers() -> Variables:
    """The variables of here, for work that is no part of the handler that may run at the moment."""
    variables = copy_context()
    variables.run(_running.set, None)
    return variables


def _counted_task(loop: AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """The tasks of a loop in which handlers run: those that a handler starts are counted, as it isn't at rest before
    they are."""
    invocation = _running.get()
    if invocation is None:
        return asyncio.Task(work, loop=loop, **options)
    task: _ChildTask = _ChildTask(work, loop=loop, **options)
    invocation.child_began(task)
    return task


class _ChildTask(asyncio.Task[Any]):
    """A task that a handler starts. Sets of them, in which `TaskGroup` and `asyncio.wait` keep theirs, are gone through
    in the same order whenever the handler is run again."""

    order = 0

    def __hash__(self) -> int:
        return self.order


def _described(wish: Wish) -> str:
    return f"it asks for {wish.kind} {wish.name}".rstrip() + _numbered(wish.digest)


def _text(line: Line) -> str:
    return f"stands {line.kind} {line.name}".rstrip() + _numbered(line.digest)


def _numbered(digest: int) -> str:
    return f" ({digest:08x})" if digest else ""


def _error_of(line: Line, address: str) -> BaseException:
    assert line.error is not None
    code, text = line.error
    kind = CallTimeout if code == TIMED_OUT else FunctionError
    return kind(code, text, address=address)
