"""What a handler awaits and what is journaled: calls, steps, sleeps, promises, deadlines.

A `Durable` is begun when it is made, not when it is awaited, so several can be under way at once; `asyncio.gather`,
`asyncio.wait` and `TaskGroup` take them as they take futures. What always holds: its result is set once, by whoever
keeps the journal (its `Keeper`), and every time the handler is run again it is the same one.

Knows nothing of journals and of how results come about: a wish becomes an output of the context like any other.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from contextvars import Context as Variables
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError

T_co = TypeVar("T_co", covariant=True)

CALL, STEP, SLEEP, PROMISE, DEADLINE = "call", "run", "sleep", "promise", "timeout"
"""The kinds of what is journaled, by the names of the methods that ask for them."""


class Retry(NamedTuple):
    """How often a step of `ctx.run` is tried before its error reaches the handler, and how long it waits between."""

    attempts: int = 3
    backoff: str | float = "100ms"
    """Before the second try; doubled each time."""
    backoff_max: str | float = "10s"

    def wait_ms(self, attempt: int) -> int:
        """The wait after try number `attempt` (the first is 1) failed."""
        return min(parse_duration(self.backoff) << (attempt - 1), parse_duration(self.backoff_max))

    def check(self, name: str) -> None:
        """Raise ConfigurationError for what can't be meant."""
        if self.attempts < 1:
            raise ConfigurationError(
                "PEN0265", f"Step {name!r} has attempts = {self.attempts!r}. It is tried at least once: give 1 or more."
            )
        self.wait_ms(1)


class Wish(NamedTuple):
    """Something that a handler waits for, as it goes into the journal and out to whoever brings it about."""

    kind: str
    name: str
    """Of whom or what: the address called, the step, the promise. For people, and to see that it is the same again."""
    digest: int
    """Of what was given along."""
    wants: Any
    """What it takes to bring it about: a `Called`, `Stepped`, a number of milliseconds, or nothing."""
    read: Callable[[bytes], Any]
    """The value of a result. Raises what is the handler's to see when the bytes are of another type."""


class Called(NamedTuple):
    """A message that wants an answer."""

    target: Any
    id: str
    payload: bytes
    timeout_ms: int | None
    detached: bool = False
    """Whether the deadline of whoever called the caller does not count."""


class Stepped(NamedTuple):
    """A function of the user's with an effect on the outside."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    retry: Retry

    def call(self, key: str) -> Any:
        """Call it, with its idempotency key if it takes one."""
        if takes_key(self.function):
            return self.function(*self.arguments, idempotency_key=key)
        return self.function(*self.arguments)


class Keeper(Protocol):
    """Whoever keeps the journal of an invocation."""

    @property
    def is_journaled(self) -> bool:
        """Whether a handler that is run again gets what it got before. If not, it has to `commit` what it must not
        forget."""
        ...

    @property
    def replaying(self) -> bool:
        """Whether the handler is on its way to where it was, and what it does now it has done."""
        ...

    async def commit(self) -> None:
        """Take over what the handler has done so far, before it goes on. With a journal each await does that."""
        ...

    def wish(self, wish: Wish) -> Durable[Any]:
        """Note what the handler waits for. Raises BaseException when the journal says that it was something else."""
        ...

    def withdraw(self, durable: Durable[Any]) -> None:
        """The handler does not want it any more."""
        ...

    def cancel_call(self, durable: Durable[Any]) -> None:
        """The handler wants what it has called to end."""
        ...

    def cancelled(self, durable: Durable[Any]) -> BaseException | None:
        """Somebody cancels the wait. Returns what is to be raised instead, if that is not how it is done."""
        ...

    def task(self) -> Any:
        """What to cancel when a deadline passes."""
        ...


class Durable(Generic[T_co]):
    """A result that is kept: await it, or give it to `asyncio.gather`, `asyncio.wait` or a task."""

    __slots__ = (
        "_asyncio_future_blocking",
        "_callbacks",
        "_cancelled",
        "_done",
        "_error",
        "_value",
        "index",
        "keeper",
        "on_finish",
    )

    def __init__(self, keeper: Keeper, index: int) -> None:
        self.keeper = keeper
        self.index = index
        self._asyncio_future_blocking = False
        self._callbacks: list[tuple[Callable[[Any], Any], Variables | None, asyncio.AbstractEventLoop]] | None = None
        self._done = self._cancelled = False
        self._error: BaseException | None = None
        self._value: Any = None
        self.on_finish: Callable[[], None] | None = None

    def __await__(self) -> Generator[Any, None, T_co]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    __iter__ = __await__

    def __hash__(self) -> int:  # So that sets of them are gone through in the same order again.
        return self.index

    def __repr__(self) -> str:
        return f"<Durable {self.index} {'done' if self._done else 'pending'}>"

    # As asyncio wants to see it.

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def result(self) -> T_co:
        """Raises what it ended with, asyncio.CancelledError, or asyncio.InvalidStateError while there is none."""
        if (error := self.exception()) is not None:
            raise error
        value: T_co = self._value
        return value

    def exception(self) -> BaseException | None:
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._done:
            raise asyncio.InvalidStateError("its result is not known yet")
        return self._error

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def add_done_callback(self, callback: Callable[[Any], Any], *, context: Variables | None = None) -> None:
        loop = asyncio.get_running_loop()
        if self._done:
            loop.call_soon(callback, self, context=context)
        elif self._callbacks is None:
            self._callbacks = [(callback, context, loop)]
        else:
            self._callbacks.append((callback, context, loop))

    def remove_done_callback(self, callback: Callable[[Any], Any]) -> int:
        before = self._callbacks or []
        self._callbacks = [each for each in before if each[0] != callback]
        return len(before) - len(self._callbacks)

    def cancel(self, msg: object = None) -> bool:
        """Stop waiting for it. What was asked for goes on: see `ctx.cancel_call`."""
        if self._done:
            return False
        error = self.keeper.cancelled(self)
        self._cancelled = error is None
        self.finish(None, error)
        return True

    _cancel_message = None

    def _make_cancelled_error(self) -> asyncio.CancelledError:
        return asyncio.CancelledError()

    # For the keeper.

    @property
    def is_watched(self) -> bool:
        """Whether anything of asyncio waits for it, and not the handler itself."""
        return bool(self._callbacks)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Set the result, and tell who waits."""
        self._done, self._value, self._error = True, value, error
        if self.on_finish is not None:
            self.on_finish()
        callbacks, self._callbacks = self._callbacks, None
        for callback, context, loop in callbacks or ():  # Which need not run: `asyncio.run` cancels what is left.
            loop.call_soon(callback, self, context=context)


class Deadline:
    """What `ctx.timeout` returns: `async with ctx.timeout("30s"): ...` raises TimeoutError when the time is over.

    Its clock is in the journal, so it ends at the same place when the handler is run again.
    """

    def __init__(self, keeper: Keeper, wish: Wish) -> None:
        self._keeper = keeper
        self._wish = wish
        self._durable: Durable[Any] | None = None
        self._task: Any = None
        self._passed = False

    async def __aenter__(self) -> Deadline:
        self._durable = self._keeper.wish(self._wish)
        self._task = self._keeper.task()
        self._durable.on_finish = self._expire
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._durable is not None
        if self._passed:
            if kind is asyncio.CancelledError and self._task.uncancel() <= 0:
                raise TimeoutError(f"not done within {self._wish.name}") from error
            return
        self._durable.on_finish = None
        self._keeper.withdraw(self._durable)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._passed

    def _expire(self) -> None:
        self._passed = True
        self._task.cancel()


def takes_key(function: Callable[..., Any]) -> bool:
    """Whether a step wants the idempotency key of its call."""
    try:
        return "idempotency_key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False  # One written in C.


def is_async(function: Callable[..., Any]) -> bool:
    """Whether what a step returns is to be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
