"""A function whose state can be opened for one invocation and closed again: what is done with the bytes at rest.

State at rest is bytes, one value an address and one row for each entry of a table or a log; opening decodes the value
for a handler, closing encodes what it has left. What always holds: a handler that raises leaves no trace in either,
since rows are written only by `flush`. Knows neither where the rows are kept nor what becomes of a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from penstock.errors import InvalidInput
from penstock.functions.context import Context, Outlet, Target, context_for, only_reads
from penstock.functions.function import Function
from penstock.functions.state import bind_collections, collections_of, expirations_of, flush_collections, new_state
from penstock.functions.storage import Storage
from penstock.functions.types import codec_for, not_readable
from penstock.ids import key_group
from penstock.state import keys
from penstock.state.overlay import ABSENT
from penstock.state.values import decode_expiring, encode_expiring

_encode = msgspec.msgpack.Encoder(order="deterministic").encode

EMPTY_STATE = b"\x80"
"""The encoding of a state whose fields all have their defaults. Such an address has no row."""

LOOKED_UP_MAX = 32
"""So many entries of a log are looked up one by one: a scan looks through all rows the store does not have yet."""


class Rows(Protocol):
    """Where the rows of tables and logs are."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def put(self, key: bytes, value: bytes | None, /) -> None:
        """Write a row; None removes it."""
        ...

    def scan(self, start: bytes, end: bytes, /) -> Iterator[tuple[bytes, bytes]]:
        """All rows from `start` on and below `end`, in the order of their keys."""
        ...


class Stateful(Target):
    """See the module. It is also the `Target` that others send to."""

    __slots__ = (
        "_checks_all",
        "codec",
        "collections",
        "decode",
        "decode_state",
        "encode_state",
        "expirations",
        "function",
        "has_state",
        "new_state",
        "outlets",
        "plain",
        "state_codec",
        "storage",
        "targets",
    )

    def __init__(self, function: Function[Any, Any], *, bytes_max: int, check_state: bool = False) -> None:
        codec = function.message_codec
        super().__init__(
            function.typename,
            codec.encode,
            accepts=frozenset(codec.types) or None,
            name=codec.name,
            bytes_max=bytes_max,
            reply_codec=function.reply_codec,
            reads_only=function.options.reads_only,
            reentrant=function.options.reentrant,
        )
        self.function = function
        self.codec = codec
        self.decode: Callable[[bytes], Any] = codec.decode
        self.storage = function.storage
        self.state_codec = function.state_codec
        no_codec = codec_for(Any)
        self.decode_state: Callable[[bytes], Any] = (self.state_codec or no_codec).decode
        self.encode_state: Callable[[Any], bytes] = (self.state_codec or no_codec).encode
        self.new_state: Callable[[], Any] = partial(new_state, function.state)
        self.has_state = self.state_codec is not None or bool(self.storage)
        self.collections = collections_of(function.state)
        self.expirations = expirations_of(function.state)
        self._checks_all = check_state
        self.plain = not (function.is_async or self.reads_only or self.storage or self.collections or self.expirations)

    def bind(self, targets: Mapping[Any, Target], outlets: Mapping[Any, Outlet]) -> None:
        """Tell handlers of this function whom they can reach. Called once, when all functions exist."""
        self.targets, self.outlets = targets, outlets

    def new_context(self) -> Context[Any]:
        return context_for(self.function, self.targets, self.outlets)

    def open_state(
        self,
        context: Context[Any],
        clock_ms: int,
        raw: bytes,
        rows: Rows,
        rows_before: Mapping[bytes, bytes | None] | None = None,
    ) -> Opened:
        """Decode `raw`, the state of `context.id`, into the context. Its tables and logs are in `rows`, except for what
        `rows_before` says that they were."""
        collections = None
        if self.collections:
            collections = RowCollections(rows, self.function.state_typename, context.id, rows_before)
        return self.decode_into(context, clock_ms, raw, collections)

    def decode_into(
        self, context: Context[Any], clock_ms: int, raw: bytes, collections: RowCollections | None
    ) -> Opened:
        """The same for tables and logs that are at hand."""
        if self.storage:
            context.storage = Storage.decode(self.storage, raw, clock_ms)
        if self.state_codec is None:
            return Opened(raw, {}, None, self._seen(context))
        data, deadlines = self._unwrap(raw)
        state = self.state_codec.decode(data) if data else self.new_state()
        self._reset(state, (field for field, due_ms in deadlines.items() if due_ms <= clock_ms))
        before = {field: _encode(getattr(state, field)) for field in self.expirations}
        if collections is not None:
            bind_collections(state, collections)
        context.state = state
        return Opened(raw, before, collections, self._seen(context))

    def close(self, context: Context[Any], opened: Opened, clock_ms: int) -> tuple[bytes, int | None]:
        """Encode what the handler left of the state. Returns the bytes to store, and when the first field expires."""
        if self.reads_only:
            self._check_unchanged(context, opened)
            return opened.raw, None
        if self.storage:
            return context.storage.encode(clock_ms)
        if self.state_codec is None:
            return opened.raw, None
        if self.collections:
            flush_collections(context.state)
        deadlines = self._deadlines(context.state, opened, clock_ms) if self.expirations else {}
        data = self._encode_checked(context.state)
        if data == EMPTY_STATE:
            return ABSENT, None
        if not self.expirations:
            return data, None
        return encode_expiring(data, deadlines), min(deadlines.values(), default=None)

    def reopen(self, context: Context[Any], opened: Opened, raw: bytes) -> Opened:
        """The state was stored as `raw`, and the handler goes on with it."""
        before = {field: _encode(getattr(context.state, field)) for field in self.expirations}
        return opened._replace(raw=raw, before=before)

    def _seen(self, context: Context[Any]) -> bytes:
        """What the handler has in its hands, for one that must leave it as it is."""
        if not self.reads_only:
            return b""
        if self.storage:
            return context.storage.contents()
        return b"" if self.state_codec is None else self.encode_state(context.state)

    def _check_unchanged(self, context: Context[Any], opened: Opened) -> None:
        if self.collections:
            flush_collections(context.state)
        written = opened.collections is not None and any(opened.collections.changed)
        if written or self._seen(context) != opened.seen:
            raise only_reads(context.address, "changes its state")

    def explain_value(self, raw: bytes, *, place: str) -> InvalidInput | None:
        """Why a stored value can't be decoded; None when it can."""
        if self.state_codec is None:
            return None
        data, _ = self._unwrap(raw)
        try:
            if data:
                self.state_codec.decode(data)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            return self.state_codec.explain(error, data, place=place)
        return None

    def plain_state(self, raw: bytes) -> bytes:
        """The encoded state inside a stored value, whatever surrounds it."""
        return self._unwrap(raw)[0]

    def _encode_checked(self, state: Any) -> bytes:
        data = self.encode_state(state)
        try:
            self.decode_state(data)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            assert self.state_codec is not None
            what = f"What the handler of {self.typename} ({self.function.location}) left as its state"
            raise not_readable(self.state_codec, error, data, what) from None
        return data

    def _unwrap(self, raw: bytes) -> tuple[bytes, dict[str, int]]:
        return decode_expiring(raw) if self.expirations and raw else (raw, {})

    def _deadlines(self, state: Any, opened: Opened, clock_ms: int) -> dict[str, int]:
        """When each field that is set expires. A field that was not written keeps its time, and is reset when that
        has come while the handler waited."""
        known = self._unwrap(opened.raw)[1]
        fresh = self.new_state()
        deadlines: dict[str, int] = {}
        for field, expire in self.expirations.items():
            value = getattr(state, field)
            if value == getattr(fresh, field):
                continue
            due_ms = known.get(field)
            if expire.after_call or due_ms is None or _encode(value) != opened.before[field]:
                deadlines[field] = clock_ms + expire.ttl_ms
            elif due_ms > clock_ms:
                deadlines[field] = due_ms
            else:
                setattr(state, field, getattr(fresh, field))
        return deadlines

    def _reset(self, state: Any, fields: Iterable[str]) -> None:
        """Give fields their defaults again."""
        for field in fields:
            if hasattr(state, field):
                setattr(state, field, getattr(self.new_state(), field))


class Opened(NamedTuple):
    """What closing a state needs to know of its opening."""

    raw: bytes
    before: Mapping[str, bytes]
    """The encoded values of the fields that can expire, to see which were written."""
    collections: RowCollections | None
    seen: bytes = b""
    """What a handler was given that must leave it as it is."""


class RowCollections:
    """Tables and logs of one address as rows. What `bind_collections` wants as storage.

    Writes are kept aside until `flush`, so that a handler that raises leaves no trace.
    """

    def __init__(self, rows: Rows, typename: str, id: str, before: Mapping[bytes, bytes | None] | None = None) -> None:
        self._rows = rows
        self._typename = typename
        self._id = id
        self._group = key_group(id)
        self._before = before or {}
        """What rows were, for a handler that is run again."""
        self._changed: dict[bytes, bytes | None] = {}

    @property
    def changed(self) -> Mapping[bytes, bytes | None]:
        """What `flush` would write."""
        return self._changed

    def take(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Another run has written these, and the handler that is run again is where it was then."""
        self._changed.update(rows)

    def caught_up(self) -> None:
        """The handler has done all again that it did: the rows are as it has left them."""
        self._changed, self._before = {}, {}

    def flush(self) -> None:
        """The handler has returned: write its changes."""
        for key, value in self._changed.items():
            self._rows.put(key, value)
        self._changed = {}

    def get(self, field: str, key: bytes) -> bytes | None:
        return self._row(keys.encode_table_key(self._group, self._typename, self._id, field, key))

    def put(self, field: str, key: bytes, value: bytes | None) -> None:
        self._changed[keys.encode_table_key(self._group, self._typename, self._id, field, key)] = value

    def scan(self, field: str) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._scan(*keys.table_range(self._group, self._typename, self._id, field)):
            yield keys.decode_table_key(key).table_key, value

    def log_bounds(self, field: str) -> tuple[int, int]:
        data = self._row(keys.encode_log_bounds_key(self._group, self._typename, self._id, field))
        return (int.from_bytes(data[:8]), int.from_bytes(data[8:])) if data else (0, 0)

    def log_append(self, field: str, value: bytes) -> None:
        first, end = self.log_bounds(field)
        self._changed[keys.encode_log_key(self._group, self._typename, self._id, field, end)] = value
        self._set_bounds(field, first, end + 1)

    def log_read(self, field: str, start: int, stop: int) -> Iterator[bytes]:
        if stop - start <= LOOKED_UP_MAX:
            return iter(self._log_entries(field, start, stop))
        range_ = keys.log_entries_range(self._group, self._typename, self._id, field, start, stop)
        return (value for _, value in self._scan(*range_))

    def log_truncate(self, field: str, before: int) -> None:
        first, end = self.log_bounds(field)
        before = min(before, end)
        for index in range(first, before):
            self._changed[keys.encode_log_key(self._group, self._typename, self._id, field, index)] = None
        self._set_bounds(field, max(first, before), end)

    def _log_entries(self, field: str, start: int, stop: int) -> list[bytes]:
        rows = (
            self._row(keys.encode_log_key(self._group, self._typename, self._id, field, index))
            for index in range(start, stop)
        )
        return [row for row in rows if row is not None]

    def _set_bounds(self, field: str, first: int, end: int) -> None:
        key = keys.encode_log_bounds_key(self._group, self._typename, self._id, field)
        self._changed[key] = first.to_bytes(8) + end.to_bytes(8)

    def _row(self, key: bytes) -> bytes | None:
        for known in (self._changed, self._before):
            if key in known:
                return known[key]
        return self._rows.get(key)

    def _scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = dict(self._rows.scan(start, end))
        for key, value in (*self._before.items(), *self._changed.items()):
            if start <= key < end:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
        return iter(sorted(rows.items()))
