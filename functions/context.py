"""What a handler sees of the world while it runs: its state, its message, and the ways to reach others.

A context only *records*. Everything a handler sends, emits, schedules or answers is encoded at once (so that a value
that can't be encoded fails in the handler, and later changes to it reach nobody) and kept until the handler returns;
the task core applies the record as a whole, or drops it as a whole when the handler raises. Takes no decision about
delivery and performs no I/O.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast
from uuid import UUID
from zlib import crc32

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.answers import encode_answer, read_answer, read_nothing, result_codec
from penstock.functions.codecs import Codec
from penstock.functions.durable import (
    CALL,
    DEADLINE,
    PROMISE,
    SLEEP,
    STEP,
    Called,
    Deadline,
    Durable,
    Keeper,
    Retry,
    Stepped,
    Wish,
)
from penstock.functions.types import codec_for
from penstock.ids import Address, is_utf8
from penstock.records import EgressRow, Meta, QueuedRow

if TYPE_CHECKING:
    from penstock.functions.function import Function
    from penstock.functions.state import Storage

S = TypeVar("S")
M = TypeVar("M")
R = TypeVar("R")
T = TypeVar("T")

DEFAULT_RETRY = Retry()

_new = tuple.__new__
"""Makes a named tuple of a tuple, in a third of the time that its class takes."""


class Target:
    """A function as something to send to: how its messages are encoded, which types it takes, and its local queue.

    One object per function and task, so that a send costs one dictionary look-up.
    """

    __slots__ = (
        "accepts",
        "bytes_max",
        "encode",
        "name",
        "queue",
        "reads_only",
        "reentrant",
        "reply_codec",
        "route",
        "typename",
    )

    def __init__(
        self,
        typename: str,
        encode: Callable[[Any], bytes],
        *,
        accepts: frozenset[type] | None,
        name: str,
        bytes_max: int,
        reply_codec: Codec[Any] | None = None,
        reads_only: bool = False,
        reentrant: bool = False,
    ) -> None:
        self.typename = typename
        self.encode = encode
        self.accepts = accepts
        """Runtime classes a message may have; None when anything that can be encoded may be sent."""
        self.name = name
        """The accepted type as the user wrote it, for error messages."""
        self.bytes_max = bytes_max
        self.reply_codec = reply_codec
        """Of what a call of it answers; None for anything."""
        self.reads_only = reads_only
        self.reentrant = reentrant
        self.route = (self, dict.fromkeys(accepts or (), encode), bytes_max)
        """What a send needs, in one attribute: finding the encoder by type is also the check of the type."""
        self.queue: deque[QueuedRow] = deque()

    def take(self, count: int) -> Iterable[QueuedRow]:
        """Remove and return the `count` oldest messages of the queue."""
        if count == len(self.queue):
            taken, self.queue = self.queue, deque()
            return taken
        popleft = self.queue.popleft
        return [popleft() for _ in range(count)]


class Emitted(NamedTuple):
    """A row for the egress `name`, which has no cause yet."""

    name: str
    value: bytes
    key: bytes | None
    topic: str | None
    headers: tuple[tuple[str, str], ...]
    partition: int | None
    timestamp_ms: int | None

    def row(self, cause: int) -> EgressRow:
        """The row as it goes out."""
        return EgressRow(self.value, cause, self.key, self.topic, self.headers, self.partition, self.timestamp_ms)


class Replied(NamedTuple):
    """The answer to whoever waits for this message."""

    value: Any


class Outlet(NamedTuple):
    """An egress as something to emit to."""

    name: str
    encode: Callable[[Any], bytes]
    bytes_max: int
    complete: Callable[[Any, EgressRow], EgressRow] | None = None
    """Adds to a row what its egress takes from the value, such as a key."""


class Delayed(NamedTuple):
    """A message to be sent `delay_ms` from now."""

    delay_ms: int
    target: Target
    id: str
    payload: bytes
    token: str


class Cancel(NamedTuple):
    """The wish to call back the delayed message that `token` names."""

    token: str


class Wished(NamedTuple):
    """What a handler waits for, as its wish number `line`."""

    line: int
    wish: Wish


class Withdrawn(NamedTuple):
    """It does not want that any more."""

    line: int


class CancelCall(NamedTuple):
    """The wish to end what was called by the wish with number `line`."""

    line: int


class Resolved(NamedTuple):
    """A promise of another address that is kept; the value is an answer."""

    target: Target
    id: str
    name: str
    value: bytes


Send = tuple[Target, str, bytes]
"""A message sent: to whom, under which id, and its bytes. A bare tuple, because it is by far the most frequent
output."""
Output = Send | Delayed | Cancel | Emitted | Replied | Wished | Withdrawn | CancelCall | Resolved


class MessageInfo(NamedTuple):
    """What is known of the message being processed, besides its value."""

    headers: Mapping[str, str]
    origin: str
    """Where it entered the application, for people; empty when a function sent it."""
    attempt: int
    """1 at the first try; higher when earlier tries of this message failed and were retried."""
    idempotency_key: str


class Egress(Protocol):
    """What `ctx.emit` takes besides a name: the object that `App.egress` returned."""

    @property
    def name(self) -> str: ...


class Context(Generic[S]):
    """The world as one invocation sees it. `S` is the type of its state.

    A context is valid until its handler returns; keep no reference to it.
    """

    __slots__ = (
        "_attempt",
        "_caller",
        "_cause",
        "_clock_ms",
        "_keeper",
        "_meta",
        "_outlets",
        "_random",
        "_targets",
        "_typename",
        "id",
        "outputs",
        "state",
        "storage",
    )

    state: S
    """The state of this address: change it in place. It is stored when the handler returns, and left alone when it
    raises."""

    def __init__(self, typename: str, targets: Mapping[Any, Target], outlets: Mapping[Any, Outlet]) -> None:
        self._typename = typename
        self._targets = targets
        self._outlets = outlets
        self._clock_ms = 0
        self._caller: tuple[str, str] | None = None
        self._meta: Meta | None = None
        self._keeper: Keeper | None = None
        self._cause = 0
        self._random: tuple[int, Random] | None = None
        self._attempt = 1
        self.id = ""
        self.storage: Storage = None  # type: ignore[assignment]  # Bound by the core when the function declares storage.
        self.outputs: list[Output] = []
        """All the handler asked for so far, in order. The index of an output is part of its cause (PROTOCOL 6)."""

    # What is given.

    @property
    def address(self) -> Address:
        """The address this invocation runs at."""
        return Address(self._typename, self.id)

    @property
    def caller(self) -> Address | None:
        """The address that sent this message, or None when it came from outside."""
        return None if self._caller is None else Address(*self._caller)

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC. Never goes back for one address, also not after a restore."""
        return self._clock_ms

    @property
    def now(self) -> datetime:
        """The same moment as a datetime with time zone UTC."""
        return datetime.fromtimestamp(self._clock_ms / 1000, UTC)

    @property
    def message(self) -> MessageInfo:
        """Headers, origin and attempt number of the message being processed."""
        meta = self._meta
        if meta is None:
            return MessageInfo({}, "", self._attempt, "")
        return MessageInfo(meta.headers, meta.origin, self._attempt, meta.idempotency_key)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A standard logger named `penstock.function.NAMESPACE/NAME` whose records carry the address."""
        return _AddressLogger(logging.getLogger(f"penstock.function.{self._typename}"), {"address": str(self.address)})

    # What can be done.

    def send(self, target: Function[M, Any] | str, id: str, message: M) -> None:
        """Send `message` to `target` (a function or its typename) under `id`.

        Raises InvalidInput when the function does not take such a message, when `id` is empty, or when the encoded
        message exceeds the size limit; ConfigurationError when no such function is registered.
        """
        try:
            to, encoders, bytes_max = self._targets[target].route
            payload = encoders[type(message)](message)
        except KeyError:
            to, payload, bytes_max = self._encode_slowly(target, id, message)
        if type(id) is not str or not id or not id.isascii() or len(payload) > bytes_max:
            self._check_sendable(to, id, len(payload))
        self.outputs.append((to, id, payload))

    def _encode_slowly(self, target: Any, id: str, message: Any) -> tuple[Target, bytes, int]:
        """For a function that takes any type, and for what is wrong with a target or a message."""
        to = self._targets.get(target)
        if to is None:
            raise self._unknown_function(target)
        if to.accepts is not None and type(message) not in to.accepts:
            raise self._not_accepted(to, id, message)
        return to, to.encode(message), to.bytes_max

    def _send_of(self, target: Any, id: str, message: Any) -> Send:
        """A message that is sent in another way than by `send`."""
        Context.send(self, target, id, message)
        return cast("Send", self.outputs.pop())

    def send_after(
        self,
        delay: str | float | timedelta,
        target: Function[M, Any] | str,
        id: str,
        message: M,
        *,
        token: str = "",
    ) -> None:
        """Send `message` once `delay` has passed: seconds, a timedelta, or text such as `"1h30m"`.

        With a `token` it can be called back by `cancel`. A token is scoped to the id of the sender, across its function
        types, and names one message: using it again before it fired moves it, the earlier message is cancelled.
        Raises InvalidInput for a negative delay, and as `send` does.
        """
        delay_ms = parse_duration(delay)
        self._check_text("token", token)
        self.outputs.append(Delayed(delay_ms, *self._send_of(target, id, message), token))

    def cancel(self, token: str) -> None:
        """Call back the delayed message that `token` names. Nothing happens if there is none, or it has fired."""
        if not token:
            raise InvalidInput(
                "PEN0111",
                f"{self.address} cancels an empty token. Give send_after(..., token=...) a name, and cancel that.",
            )
        self._check_text("token", token)
        self.outputs.append(Cancel(token))

    def reply(self, value: Any) -> None:
        """Answer the caller who waits for this message (`POST /call/...`, `penstock call`).

        When nobody waits, nothing happens. The caller is told only once the answer can no longer be rolled back.
        Raises InvalidInput when the message was answered before.
        """
        if any(isinstance(output, Replied) for output in self.outputs):
            raise InvalidInput(
                "PEN0113",
                f"{self.address} replied twice to one message, before and behind awaits counted together. A call has "
                "one answer: keep the last ctx.reply.",
            )
        self.outputs.append(Replied(value))

    # What can be awaited, in an `async def`.

    def call(
        self,
        target: Function[M, R] | str,
        id: str,
        message: M,
        *,
        timeout: str | float | timedelta | None = None,
        detached: bool = False,
    ) -> Durable[R]:
        """Send `message` and await the answer: `total = await ctx.call(cart, "alice", GetTotal())`.

        The call is sent at once, whether it is awaited now or later, and once: a handler that is run again gets the
        answer that came. With `timeout` (seconds, a timedelta, or text such as "30s") it raises CallTimeout, a
        TimeoutError, when there is no answer by then; what was called is told the deadline, and may still be done.
        The deadline of whoever called this handler counts as well, unless the call is `detached`: for what has to be
        done whether they wait or not, such as undoing something.

        Awaiting it raises FunctionError with code and text when the message became a dead letter or the call was
        cancelled, InvalidInput when the answer is not of the declared type.

        Raises as `send` does, and FunctionError when the function called waits, directly or through others, for this
        one: the message spells the cycle out.
        """
        keeper = self._keep("call")
        to, _, payload = self._send_of(target, id, message)
        timeout_ms = None if timeout is None else parse_duration(timeout)
        read = partial(read_answer, to.reply_codec, f"{to.typename}/{id}")
        called = Called(to, id, payload, timeout_ms, detached)
        return keeper.wish(Wish(CALL, f"{to.typename}/{id}", crc32(payload), called, read))

    def run(
        self, name: str, step: Callable[..., Any], /, *arguments: Any, retry: Retry = DEFAULT_RETRY
    ) -> Durable[Any]:
        """Do something with an effect on the outside, and keep its result: `await ctx.run("charge", charge, amount)`.

        `step` is an `async def`, or a plain function, which runs in a thread. It is run at least once, and its result
        is taken exactly once: a handler that is run again gets the one that is kept. If it has a parameter
        `idempotency_key`, it is given text that is the same at every try of this step and of no other: hand it on to
        whoever must not do it twice. What it raises is tried again as `retry` says, and then raised here as
        FunctionError. `name` is for the journal.

        Raises InvalidInput, when awaited, for a result that can't be written.
        """
        keeper = self._keep("run")
        self._check_name("step", name)
        retry.check(name)
        if not callable(step):
            if inspect.iscoroutine(step):
                step.close()
            raise ConfigurationError(
                "PEN0265",
                f"Step {name!r} of {self.address} is {step!r}, which can't be called. Give the function, and its "
                f"arguments behind it: ctx.run({name!r}, charge, amount).",
            )
        read = partial(read_answer, result_codec(step), f"step {name}")
        return keeper.wish(Wish(STEP, name, 0, Stepped(step, arguments, retry), read))

    def sleep(self, duration: str | float | timedelta) -> Durable[None]:
        """Wait: seconds, a timedelta, or text such as "1h30m". A process that stops meanwhile does not matter."""
        delay_ms = parse_duration(duration)
        return self._keep("sleep").wish(Wish(SLEEP, f"{delay_ms} ms", 0, delay_ms, read_nothing))

    def promise(self, name: str, type: type[T] | Any = Any) -> Durable[T]:
        """Wait until somebody resolves `name` for this address: `ctx.resolve`, `penstock calls resolve`, or HTTP.

        One that was resolved before is there at once. The value is read as `type`.
        """
        self._check_name("promise", name)
        read = partial(read_answer, codec_for(type), f"promise {name}")
        return self._keep("promise").wish(Wish(PROMISE, name, 0, None, read))

    def timeout(self, duration: str | float | timedelta) -> Deadline:
        """A limit for what is awaited inside: `async with ctx.timeout("30s"): ...` raises TimeoutError behind it."""
        delay_ms = parse_duration(duration)
        return Deadline(self._keep("timeout"), Wish(DEADLINE, f"{delay_ms} ms", 0, delay_ms, read_nothing))

    def cancel_call(self, call: Durable[Any]) -> None:
        """Ask whoever was called to end: asyncio.CancelledError is raised where it waits, so that its `finally` and
        `except` blocks can put things right. `call` then raises FunctionError, unless the answer came before."""
        self._keep("cancel_call").cancel_call(call)

    def resolve(self, target: Function[Any, Any] | str, id: str, name: str, value: Any = None) -> None:
        """Keep the promise `name` that the address waits for, or will wait for.

        Raises InvalidInput for a value that can't be written, ConfigurationError when there is no such function.
        """
        to = self._targets.get(target)
        if to is None:
            raise self._unknown_function(target)
        self._check_name("promise", name)
        payload = encode_answer(self.address, value, what=f"value for promise {name}")
        self._check_sendable(to, id, len(payload))
        self.outputs.append(Resolved(to, id, name, payload))

    @property
    def random(self) -> Random:
        """Random numbers that are the same whenever this message is processed again."""
        if self._random is None or self._random[0] != self._cause:
            self._random = (self._cause, Random(self._cause))
        return self._random[1]

    def uuid(self) -> UUID:
        """A new UUID (version 4), the same whenever this message is processed again."""
        return UUID(int=self.random.getrandbits(128), version=4)

    def _keep(self, method: str) -> Keeper:
        if self._keeper is None:
            raise ConfigurationError(
                "PEN0264",
                f"{self.address} uses ctx.{method}, which is to be awaited and needs a journal. Declare the handler "
                "with async def; in a test, run it in penstock.testing.Harness.",
            )
        return self._keeper

    def emit(
        self,
        egress: Egress | str,
        value: Any,
        *,
        key: str | bytes | None = None,
        topic: str | None = None,
        headers: Mapping[str, str] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Write `value` to `egress` (the object `App.egress` returned, or its typename), exactly once by default.

        `key`, `topic`, `headers`, `partition` and `timestamp_ms` are for egresses that know them, such as Kafka; files
        and PostgreSQL ignore them.
        Raises InvalidInput when the egress can't encode the value or it is too large.
        """
        outlet = self._outlets.get(egress)
        if outlet is None:
            raise self._unknown_egress(egress)
        data = outlet.encode(value)
        if len(data) > outlet.bytes_max:
            raise InvalidInput(
                "PEN0204",
                f"Row of {_size(len(data))} from {self.address} to {outlet.name} exceeds message_bytes_max = "
                f"{_size(outlet.bytes_max)}. Emit a smaller value, or raise message_bytes_max.",
            )
        if topic is not None or headers or partition is not None or timestamp_ms is not None:
            self._check_placing(topic, headers, partition, timestamp_ms)
        try:
            encoded_key = key.encode() if isinstance(key, str) else key
        except UnicodeEncodeError:
            self._check_text("key", key)
            raise
        extra = tuple(headers.items()) if headers else ()
        if outlet.complete is not None:
            row = EgressRow(data, 0, encoded_key, topic, extra, partition, timestamp_ms)
            data, _, encoded_key, topic, extra, partition, timestamp_ms = outlet.complete(value, row)
        emitted = _new(Emitted, (outlet.name, data, encoded_key, topic, extra, partition, timestamp_ms))
        self.outputs.append(emitted)

    def _check_placing(
        self, topic: str | None, headers: Mapping[str, str] | None, partition: int | None, timestamp_ms: int | None
    ) -> None:
        if topic is not None:
            self._check_text("topic", topic)
        for name, text in headers.items() if headers else ():
            self._check_text("name of a header", name)
            self._check_text("header", text)
        for what, number in (("partition", partition), ("timestamp_ms", timestamp_ms)):
            if number is not None and (type(number) is not int or not 0 <= number < 1 << 63):
                raise InvalidInput(
                    "PEN0206", f"{self.address} gives {number!r} as {what}. Give a whole number from 0 on."
                )

    # What went wrong.

    def _unknown_function(self, target: object) -> ConfigurationError:
        name = target if isinstance(target, str) else getattr(target, "typename", repr(target))
        known = ", ".join(sorted(key for key in self._targets if isinstance(key, str)))
        return ConfigurationError(
            "PEN0105", f"{self.address} names {name}, which is no function of this application. Known: {known}."
        )

    def _unknown_egress(self, egress: object) -> ConfigurationError:
        name = egress if isinstance(egress, str) else getattr(egress, "name", repr(egress))
        known = ", ".join(sorted(key for key in self._outlets if isinstance(key, str))) or "none"
        return ConfigurationError(
            "PEN0106",
            f"{self.address} emits to {name}, which is no egress of this application. Known: {known}. "
            f'Declare it: app.egress("{name}", ...).',
        )

    def _not_accepted(self, to: Target, id: str, message: object) -> InvalidInput:
        return InvalidInput(
            "PEN0107",
            f"{to.typename} cannot receive {type(message).__name__}; it takes {to.name}. Sent by {self._typename} "
            f'from id "{self.id}" to id "{id}". Add {type(message).__name__} to its annotation, or send what it takes.',
        )

    def _check_sendable(self, to: Target, id: str, size: int) -> None:
        """The checks of a send one by one. Raises InvalidInput for the first that fails."""
        self._check_text(f"id for {to.typename}", id)
        if not id:
            raise InvalidInput(
                "PEN0203",
                f"{self.address} sends to {to.typename} with an empty id. An id names one instance: give it some text.",
            )
        if size > to.bytes_max:
            raise InvalidInput(
                "PEN0204",
                f'Message of {_size(size)} from {self.address} to {to.typename} "{id}" exceeds message_bytes_max = '
                f"{_size(to.bytes_max)}. Keep large values in state and send their key, or raise message_bytes_max.",
            )

    def _check_name(self, what: str, name: object) -> None:
        self._check_text(f"name of a {what}", name)
        if not name:
            raise unnamed(f"A {what} of {self.address}")

    def _check_text(self, what: str, text: object) -> None:
        """Raise InvalidInput for what no log and no store could hold as text."""
        if not is_utf8(text):
            raise InvalidInput(
                "PEN0209",
                f"{self.address} gives {text!r} as {what}, which is no text that UTF-8 can hold. Give it text without "
                "lone surrogates; numbers are turned into text by str().",
            )


class StatelessContext(Context[Any]):
    """The context of a function whose annotation names no state: what is assigned to `state` would be lost."""

    __slots__ = ()

    @property
    def state(self) -> Any:
        raise self._no_state()

    @state.setter
    def state(self, value: Any) -> None:
        raise self._no_state()

    def _no_state(self) -> InvalidInput:
        return InvalidInput(
            "PEN0307",
            f"{self.address} has no state, because its annotation names none. Write ctx: Context[MyState], with a "
            "class derived from State; nothing was stored.",
        )


class ReadingContext(Context[Any]):
    """The context of a function that only reads: it answers, and awaits time and the answers of others that only
    read."""

    __slots__ = ()

    def send(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.send")

    def send_after(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.send_after")

    def cancel(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.cancel")

    def emit(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.emit")

    def resolve(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.resolve")

    def run(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.run")

    def promise(self, *_: Any, **__: Any) -> NoReturn:
        raise self._only_reads("ctx.promise")

    def call(self, target: Any, id: str, message: Any, **options: Any) -> Any:
        to = self._targets.get(target)
        if to is not None and not to.reads_only:
            raise self._only_reads(f"ctx.call of {to.typename}, which does more than read,")
        return super().call(target, id, message, **options)

    def _only_reads(self, what: str) -> InvalidInput:
        return only_reads(self.address, f"uses {what}")


class StatelessReadingContext(ReadingContext, StatelessContext):
    """The same for a function without state, which asks others."""

    __slots__ = ()


def unnamed(what: str) -> InvalidInput:
    """The error of a step or promise whose name is empty."""
    return InvalidInput(
        "PEN0277",
        f"{what} has an empty name. Journals and people tell them apart by name: give it one that says what it is.",
    )


def only_reads(address: Address, what: str) -> InvalidInput:
    """The error of a function that was declared to read and does more."""
    return InvalidInput(
        "PEN0274",
        f"{address} {what} and is declared with reads_only=True, so that it may run while others hold the state it "
        "reads. Return what it has found, and leave the rest to a function without reads_only.",
    )


def context_for(
    function: Function[Any, Any], targets: Mapping[Any, Target], outlets: Mapping[Any, Outlet]
) -> Context[Any]:
    """A context for invocations of `function`."""
    kind: type[Context[Any]]
    if function.options.reads_only:
        kind = StatelessReadingContext if function.state_codec is None else ReadingContext
    else:
        kind = StatelessContext if function.state_codec is None else Context
    return kind(function.typename, targets, outlets)


class _AddressLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"{msg} [{self.extra['address'] if self.extra else ''}]", kwargs


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count:,} bytes"
