"""One function inside one task: its queue, its cached values, and its state as the overlay has it.

The plain case (a typed value, no collections, nothing that expires) is marked, because the task core runs it in a loop
of its own. Decides nothing about failures or delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from penstock.engine.pending import Held
from penstock.errors import InvalidInput
from penstock.functions.context import Context, Outlet, Target
from penstock.functions.function import Function
from penstock.functions.storage import Storage
from penstock.state import keys
from penstock.state.overlay import ABSENT, Overlay
from penstock.state.stateful import EMPTY_STATE, Opened, Stateful
from penstock.state.values import encode_expiring

SCANNED_MAX = 1_000
"""Rows of one address read one after the other before the next address is looked for: that costs a look at every row
the store does not have yet."""

SLICES_CHECKED = 16
"""Slices of messages, after a start, whose states are read back before they are stored, although nobody asked for it: a
handler that always leaves a wrong type is found at its first message. Checking all costs 6 % of the throughput."""


class Entry(Stateful):
    """A function of this task. See the module."""

    __slots__ = ("_slices_checked", "cells", "context", "held", "overlay", "queue_head")

    def __init__(
        self, function: Function[Any, Any], overlay: Overlay, *, bytes_max: int, check_state: bool = False
    ) -> None:
        super().__init__(function, bytes_max=bytes_max, check_state=check_state)
        self.overlay = overlay
        self.cells = overlay.cells(function.state_typename)
        self.held: Held = {}
        self.queue_head = 0
        """Number of the oldest message in the queue; the others follow densely."""
        self._slices_checked = 0

    def bind(self, targets: Mapping[Any, Target], outlets: Mapping[Any, Outlet]) -> None:
        super().bind(targets, outlets)
        self.context = self.new_context()

    # What a handler may leave as its state.

    def encoder(self) -> Callable[[Any], bytes]:
        """What encodes the states of the next slice of messages: checking them or not."""
        if self._checks_all or self._slices_checked < SLICES_CHECKED:
            self._slices_checked += 1
            return self._encode_checked
        return self.encode_state

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
        return self.open_state(context, clock_ms, raw, self.overlay, rows_before)

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
        found = self.explain_value(self.raw(id), place=place)
        if found is None:
            return None
        # Something has stored what does not fit. If it was this handler, it shall not do it again.
        self._checks_all = True
        remedy = (
            f"Look at it with penstock state get {self.typename} {id}, and put it right with penstock state set "
            f"{self.function.state_typename} {id} JSON --yes; then redrive (docs/how-to/handle-failures.md)."
        )
        return InvalidInput(found.code, f"{found.message} {remedy}")


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
