"""One run of one handler by itself: what `function.test(...)` does, and what it shows.

What always holds: message, state and everything sent go through their codecs, as they would in the engine, so a value
that can't be written fails here as well, and nothing is shared with what the test passed in. Nothing is delivered,
retried or stored; a handler that raises raises in the test. Time is virtual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from penstock.functions.answers import encode_answer, read_answer
from penstock.functions.app import Egress
from penstock.functions.codecs import Codec
from penstock.functions.context import (
    Cancel,
    CancelCall,
    Context,
    Delayed,
    Emitted,
    Outlet,
    Replied,
    Resolved,
    Target,
    Wished,
    Withdrawn,
    context_for,
)
from penstock.functions.function import Function
from penstock.functions.state import bind_collections, flush_collections, new_state, storage_of
from penstock.functions.storage import Storage, Value
from penstock.functions.tables import CollectionStorage, MemoryCollections
from penstock.functions.types import codec_for, encode_checked
from penstock.functions.virtual_loop import VirtualLoop
from penstock.ids import Address
from penstock.records import EgressRow, Meta

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When a test takes place that does not say when: always the same, so that its results are."""

BYTES_MAX = 1 << 20
"""The default of message_bytes_max."""


class DelayedMessage(NamedTuple):
    """What `ctx.send_after` asked for."""

    delay: timedelta
    function: Any
    id: str
    message: Any
    token: str


@dataclass(slots=True)
class Trial:
    """What one run of a handler did. Functions and egresses stand here as the handler named them."""

    state: Any
    """The state as it would be stored; None for a function without."""
    storage: Storage | None
    reply: Any
    """The value of `ctx.reply`, else what the handler returned."""
    sent: list[tuple[Any, str, Any]] = field(default_factory=list)
    """Function, id and message of each `ctx.send`, in order."""
    delayed: list[DelayedMessage] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    """The tokens given to `ctx.cancel`."""
    resolved: list[tuple[str, str, str, Any]] = field(default_factory=list)
    """Typename, id, name and value of each `ctx.resolve`."""
    emitted: list[tuple[Any, Any]] = field(default_factory=list)
    """Egress and value of each `ctx.emit`, in order."""
    rows: list[EgressRow] = field(default_factory=list)
    """The same as rows, with key, topic and headers; the value is in bytes."""


def run_trial(
    function: Function[Any, Any],
    message: Any,
    *,
    id: str,
    state: Any = None,
    storage: Mapping[str, Any] | None = None,
    caller: Address | None = None,
    now: datetime = START,
    headers: Mapping[str, str] | None = None,
    attempt: int = 1,
) -> Trial:
    """Run `function` once. See `Function.test`."""
    context = context_for(function, _Targets(), _Outlets())
    context.id = id
    context._caller, context._attempt = caller, attempt
    context._meta = Meta(headers=dict(headers)) if headers else None
    context._clock_ms = int(now.timestamp() * 1000)
    if function.state_codec is not None:
        given = new_state(function.state) if state is None else state
        context.state = _copied(function.state_codec, given, deepcopy(storage_of(given)))
    if function.storage:
        context.storage = _stored(function.storage, storage or {}, context.now_ms)
    returned = function.handler(context, function.message_codec.decode(function.message_codec.encode(message)))
    if function.is_async:
        returned = _awaited(returned)
    return _collect(function, context, returned)


def _awaited(work: Any) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run(work)
    finally:
        loop.close()


def _copied(codec: Codec[Any], state: Any, rows: CollectionStorage | None) -> Any:
    """The state after being written and read, with tables and logs in `rows`."""
    copy = codec.decode(codec.encode(state))
    bind_collections(copy, rows or MemoryCollections())
    return copy


def _stored(values: Mapping[str, Value[Any]], given: Mapping[str, Any], clock_ms: int) -> Storage:
    storage = Storage(values)
    for name, value in given.items():
        setattr(storage, name, value)
    return Storage.decode(values, storage.encode(clock_ms)[0], clock_ms)


def _collect(function: Function[Any, Any], context: Context[Any], returned: Any) -> Trial:
    state = storage = None
    if function.state_codec is not None:
        flush_collections(context.state)
        encode_checked(function.state_codec, context.state, f"State of {context.address}")
        state = _copied(function.state_codec, context.state, storage_of(context.state))
    if function.storage:
        storage = Storage.decode(function.storage, context.storage.encode(context.now_ms)[0], context.now_ms)
    answer = next((output.value for output in context.outputs if isinstance(output, Replied)), returned)
    encode_answer(context.address, answer)
    trial = Trial(state, storage, answer)
    for output in context.outputs:
        match output:
            case Emitted():
                row = output.row(0)
                trial.emitted.append((_written(row.value).by, _written(row.value).value))
                trial.rows.append(row)
            case Delayed(delay_ms, _, id, payload, token):
                delay, written = timedelta(milliseconds=delay_ms), _written(payload)
                trial.delayed.append(DelayedMessage(delay, written.by, id, written.value, token))
            case Cancel(token):
                trial.cancelled.append(token)
            case Resolved(target, id, name, value):
                trial.resolved.append((target.typename, id, name, read_answer(None, name, value)))
            case Replied() | Wished() | Withdrawn() | CancelCall():
                pass  # The first is found above, and the others need a journal, which is not to be had here.
            case (_, id, payload):
                trial.sent.append((_written(payload).by, id, _written(payload).value))
    return trial


class _Written(bytes):
    """Encoded bytes that remember for whom they are, and the value they are read as."""

    by: Any
    """The function or egress, as the handler named it."""
    value: Any


def _write(named: Any, codec: Codec[Any], value: Any) -> _Written:
    written = _Written(codec.encode(value))
    written.by, written.value = named, codec.decode(written)
    return written


def _written(data: bytes) -> _Written:
    assert isinstance(data, _Written), "all bytes of a trial come from its own targets and outlets"
    return data


class _Targets(Mapping[Any, Target]):
    """Every function there could be: what a handler names is taken at its word."""

    def __getitem__(self, named: Any) -> Target:
        if isinstance(named, Function):
            codec = named.message_codec
            accepts = frozenset(codec.types) or None
            encode = partial(_write, named, codec)
            reads_only = named.options.reads_only
            return Target(
                named.typename, encode, accepts=accepts, name=codec.name, bytes_max=BYTES_MAX, reads_only=reads_only
            )
        if isinstance(named, str):
            return Target(named, partial(_write_any, named), accepts=None, name="Any", bytes_max=BYTES_MAX)
        raise KeyError(named)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Outlets(Mapping[Any, Outlet]):
    """The same for egresses. One that is named by its object also says what it can't write."""

    def __getitem__(self, named: Any) -> Outlet:
        if isinstance(named, Egress):
            return Outlet(named.name, partial(_write_checked, named), BYTES_MAX, getattr(named.spec, "complete", None))
        if isinstance(named, str):
            return Outlet(named, partial(_write_any, named), BYTES_MAX)
        raise KeyError(named)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _write_any(named: str, value: Any) -> bytes:
    return _write(named, codec_for(type(value)), value)


def _write_checked(egress: Egress, value: Any) -> bytes:
    written = _Written(egress.spec.encode(value))
    written.by, written.value = egress, deepcopy(value)
    return written
