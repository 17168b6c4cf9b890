"""One function inside one task: its queue, its cached values, and how its state is opened and closed.

`Entry` is the `Target` others send to, grown by what it takes to run it. State at rest is bytes; opening decodes it for
one invocation, closing encodes it again. The plain case (a typed value, no collections, nothing that expires) is
marked, because the task core runs it in a loop of its own. Decides nothing about failures or delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from penstock.engine.pending import Held
from penstock.errors import InvalidInput
from penstock.functions.context import Context, Outlet, Target, context_for
from penstock.functions.function import Function
from penstock.functions.state import bind_collections, collections_of, expirations_of, flush_collections, new_state
from penstock.functions.storage import Storage
from penstock.functions.types import codec_for, not_readable
from penstock.ids import key_group
from penstock.state import keys
from penstock.state.overlay import ABSENT, Overlay
from penstock.state.values import decode_expiring, encode_expiring

_encode = msgspec.msgpack.Encoder(order="deterministic").encode

EMPTY_STATE = b"\x80"
"""The encoding of a state whose fields all have their defaults. Such an address has no row."""

SCANNED_MAX = 1_000
"""Rows of one address read one after the other before the next address is looked for: that costs a look at every row
the store does not have yet."""

SLICES_CHECKED = 16
"""Slices of messages, after a start, whose states are read back before they are stored, although nobody asked for it: a
handler that always leaves a wrong type is found at its first message. Checking all costs 6 % of the throughput."""

LOOKED_UP_MAX = 32
"""So many entries of a log are looked up one by one: a scan looks through all rows the store does not have yet."""


class Entry(Target):
    """A function of this task. See the module."""

    __slots__ = (
        "_checks_all",
        "_slices_checked",
        "cells",
        "codec",
        "collections",
        "context",
        "decode",
        "decode_state",
        "encode_state",
        "expirations",
        "function",
        "has_state",
        "held",
        "new_state",
        "outlets",
        "overlay",
        "plain",
        "queue_head",
        "state_codec",
        "storage",
        "targets",
    )

    def __init__(
        self, function: Function[Any, Any], overlay: Overlay, *, bytes_max: int, check_state: bool = False
    ) -> None:
        codec = function.message_codec
        super().__init__(
            function.typename,
            codec.encode,
            accepts=frozenset(codec.types) or None,
            name=codec.name,
            bytes_max=bytes_max,
            reply_codec=function.reply_codec,
        )
        self.function = function
        self.overlay = overlay
        self.codec = codec
        self.decode: Callable[[bytes], Any] = codec.decode
        self.cells = overlay.cells(function.typename)
        self.held: Held = {}
        self.queue_head = 0
        """Number of the oldest message in the queue; the others follow densely."""
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
        self._slices_checked = 0
        self.plain = not (function.is_async or self.storage or self.collections or self.expirations)

    def bind(self, targets: Mapping[Any, Target], outlets: Mapping[Any, Outlet]) -> None:
        """Tell handlers of this function whom they can reach. Called once, when all entries exist."""
        self.targets, self.outlets = targets, outlets
        self.context = self.new_context()

    def new_context(self) -> Context[Any]:
        return context_for(self.function, self.targets, self.outlets)

    # What a handler may leave as its state.

    def encoder(self) -> Callable[[Any], bytes]:
        """What encodes the states of the next slice of messages: checking them or not."""
        if self._checks_all or self._slices_checked < SLICES_CHECKED:
            self._slices_checked += 1
            return self._encode_checked
        return self.encode_state

    def _encode_checked(self, state: Any) -> bytes:
        data = self.encode_state(state)
        try:
            self.decode_state(data)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            assert self.state_codec is not None
            what = f"What the handler of {self.typename} ({self.function.location}) left as its state"
            raise not_readable(self.state_codec, error, data, what) from None
        return data

    # State of one address, the general way.

    def raw(self, id: str) -> bytes:
        """The stored value of an address; `ABSENT` when there is none."""
        value = self.cells.young.get(id)
        return self.overlay.load(self.cells, id) if value is None else value

    def open(
        self,
        context: Context[Any],
        clock_ms: int,
        raw: bytes | None = None,
        rows_before: Mapping[bytes, bytes | None] | None = None,
    ) -> Opened:
        """Decode the state of `context.id` into the context: as it is, or as `raw` and the rows of tables and logs in
        `rows_before` say that it was."""
        raw = self.raw(context.id) if raw is None else raw
        if self.storage:
            context.storage = Storage.decode(self.storage, raw, clock_ms)
        if self.state_codec is None:
            return Opened(raw, {}, None)
        data, deadlines = self._unwrap(raw)
        state = self.state_codec.decode(data) if data else self.new_state()
        self._reset(state, (field for field, due_ms in deadlines.items() if due_ms <= clock_ms))
        before = {field: _encode(getattr(state, field)) for field in self.expirations}
        collections = None
        if self.collections:
            collections = RowCollections(self.overlay, self.typename, context.id, rows_before)
            bind_collections(state, collections)
        context.state = state
        return Opened(raw, before, collections)

    def close(self, context: Context[Any], opened: Opened, clock_ms: int) -> tuple[bytes, int | None]:
        """Encode what the handler left of the state. Returns the bytes to store, and when the first field expires."""
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
        return Opened(raw, before, opened.collections)

    def sweep(self, id: str, clock_ms: int) -> tuple[bytes, int | None]:
        """The value of an address without its expired fields, and when to look again. Counts as no call."""
        raw = self.raw(id)
        if self.storage:
            return Storage.decode(self.storage, raw, clock_ms).encode_unused()
        if self.state_codec is None or not raw:
            return raw, None
        data, deadlines = self._unwrap(raw)
        left = {field: due_ms for field, due_ms in deadlines.items() if due_ms > clock_ms}
        again_ms = min(left.values(), default=None)
        if len(left) == len(deadlines):
            return raw, again_ms
        state = self.state_codec.decode(data)
        self._reset(state, deadlines.keys() - left.keys())
        data = self.state_codec.encode(state)
        return ABSENT if data == EMPTY_STATE else encode_expiring(data, left), again_ms

    def explain_state(self, id: str, *, place: str) -> InvalidInput | None:
        """Why the stored state of an address can't be decoded; None when it can."""
        if self.state_codec is None:
            return None
        data, _ = self._unwrap(self.raw(id))
        try:
            if data:
                self.state_codec.decode(data)
        except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
            # Something has stored what does not fit. If it was this handler, it shall not do it again.
            self._checks_all = True
            found = self.state_codec.explain(error, data, place=place)
            remedy = (
                f"Look at it with penstock state get {self.typename} {id}, and put it right with penstock state set "
                f"{self.typename} {id} JSON --yes; then redrive (docs/how-to/handle-failures.md)."
            )
            return InvalidInput(found.code, f"{found.message} {remedy}")
        return None

    def plain_state(self, raw: bytes) -> bytes:
        """The encoded state inside a stored value, whatever surrounds it."""
        return self._unwrap(raw)[0]

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


def collection_ids(overlay: Overlay, typename: str) -> Iterator[str]:
    """Every id that has rows in a table or a log of the function, in no particular order, some more than once."""
    for start, end in keys.collection_ranges(typename):
        following: bytes | None = start
        while following is not None:
            following = yield from _ids_between(overlay, following, end)


def _ids_between(overlay: Overlay, start: bytes, end: bytes) -> Generator[str, None, bytes | None]:
    """The ids of the first rows. Returns where to go on behind a collection that is too large to read through."""
    last, repeated = "", 0
    for key, _ in overlay.scan(start, end):
        id = keys.id_of_collection(key)
        if id is None:
            continue
        if id != last:
            last, repeated = id, 0
            yield id
        repeated += 1
        if repeated == SCANNED_MAX:
            return keys.behind_id(key)
    return None


class Opened(NamedTuple):
    """What closing a state needs to know of its opening."""

    raw: bytes
    before: Mapping[str, bytes]
    """The encoded values of the fields that can expire, to see which were written."""
    collections: RowCollections | None


class RowCollections:
    """Tables and logs of one address as rows of the overlay. What `bind_collections` wants as storage.

    Writes are kept aside until `flush`, so that a handler that raises leaves no trace.
    """

    def __init__(
        self, overlay: Overlay, typename: str, id: str, before: Mapping[bytes, bytes | None] | None = None
    ) -> None:
        self._overlay = overlay
        self._typename = typename
        self._id = id
        self._group = key_group(id)
        self._before = before or {}
        """What rows were, for a handler that is run again."""
        self._changed: dict[bytes, bytes | None] = {}

    @property
    def changed(self) -> Iterable[bytes]:
        """The keys of what `flush` would write."""
        return self._changed

    def caught_up(self) -> None:
        """The handler has done all again that it did: the rows are as it has left them."""
        self._changed, self._before = {}, {}

    def flush(self) -> None:
        """The handler has returned: make its changes those of the batch."""
        for key, value in self._changed.items():
            self._overlay.put(key, value)
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
        return self._overlay.get(key)

    def _scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = dict(self._overlay.scan(start, end))
        for key, value in (*self._before.items(), *self._changed.items()):
            if start <= key < end:
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
        return iter(sorted(rows.items()))
