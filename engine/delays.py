"""What a task shall do later: deliver a delayed message, look at an expiring state or a schedule, forget a kept result.

Each is a timer row of the task that asked for it (PROTOCOL 24), ordered by due time. A token is one more row that
points at the timer it names. Invariants: a timer's row, its token's row and its effect change in the same batch; a
token names at most one live timer. Delivers nothing itself: the task core does what `pop_due` returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from penstock.functions.context import Delayed
from penstock.ids import Address, key_group
from penstock.records import Envelope
from penstock.state import keys
from penstock.state.overlay import Overlay
from penstock.state.timers import TimerIndex


class DueMessage(NamedTuple):
    """A delayed message whose time has come."""

    envelope: Envelope


class DueExpiration(NamedTuple):
    """Some field of this address has expired, or its expiration has moved since."""

    address: Address


class DueSchedule(NamedTuple):
    """Something may be due by the schedule of this name."""

    name: str


class _Row(msgspec.Struct, array_like=True, omit_defaults=True):
    """A timer at rest. Exactly one of the four groups of fields is in use."""

    envelope: Envelope | None = None
    owner: str = ""
    token: str = ""
    expires: Address | None = None
    forget: bytes = b""
    schedule: str = ""


SCHEDULE_TOKEN: Final = "\0schedule"
"""Names the timer of a schedule, as no user names one of theirs."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Row).decode


class Delays:
    """See the module. Owns the rows of kinds TIMER, TOKEN and EXPIRATION of one task."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._index = TimerIndex(overlay.scan)
        self.next_number = 0
        self.fired = 0

    def schedule(self, sender: Address, delayed: Delayed, cause: int, clock_ms: int) -> None:
        """Keep a message until its delay has passed. A live timer of the same token is called back."""
        envelope = Envelope(delayed.target.typename, delayed.id, delayed.payload, cause, sender, None)
        if delayed.token:
            self.cancel(sender.id, delayed.token)
        key = self._add(clock_ms + delayed.delay_ms, _Row(envelope, sender.id, delayed.token))
        if delayed.token:
            self._overlay.put(_token_key(sender.id, delayed.token), key)

    def schedule_own(self, envelope: Envelope, token: str, due_ms: int) -> None:
        """Keep what the task itself is to do for the address of `envelope` until `due_ms`."""
        key = self._add(due_ms, _Row(envelope, envelope.id, token))
        self._overlay.put(_token_key(envelope.id, token), key)

    def cancel(self, owner: str, token: str) -> None:
        """Call back the message `token` names. Nothing happens when there is none."""
        token_key = _token_key(owner, token)
        key = self._overlay.get(token_key)
        if key is not None:
            self._remove(key)
            self._overlay.put(token_key, None)

    def expire_at(self, address: Address, due_ms: int) -> None:
        """Look at `address` at `due_ms`. Of several wishes the earliest stands; the others follow from looking."""
        armed_key = keys.encode_expiration_key(key_group(address.id), *address)
        armed = self._overlay.get(armed_key)
        if armed is not None:
            if keys.decode_timer_key(armed).due_ms <= due_ms:
                return
            self._remove(armed)
        self._overlay.put(armed_key, self._add(due_ms, _Row(expires=address)))

    def forget_at(self, key: bytes, due_ms: int) -> None:
        """Delete the row `key` at `due_ms`."""
        self._add(due_ms, _Row(forget=key))

    def look_at(self, schedule: str, due_ms: int) -> None:
        """Look at a schedule at `due_ms`, and not before: of several wishes the last stands."""
        self.cancel(schedule, SCHEDULE_TOKEN)
        key = self._add(due_ms, _Row(schedule=schedule))
        self._overlay.put(_token_key(schedule, SCHEDULE_TOKEN), key)

    def look_no_more(self, schedule: str) -> None:
        self.cancel(schedule, SCHEDULE_TOKEN)

    def next_due_ms(self) -> int | None:
        return self._index.next_due_ms()

    @property
    def holds_messages(self) -> bool:
        """Whether a delayed message waits for its time. Reads rows until it finds one: not for every turn."""
        rows = self._overlay.scan(*keys.task_kind_range(keys.TIMER))
        return any(_decode(data).envelope is not None for _, data in rows)

    def next_own_ms(self) -> int | None:
        """When the first of what the task itself is to do is due. Reads rows until it finds one: not for every turn."""
        for key, data in self._overlay.scan(*keys.task_kind_range(keys.TIMER)):
            row = _decode(data)
            if row.envelope is not None and row.envelope.meta is not None:
                return keys.decode_timer_key(key).due_ms
        return None

    def pop_due(self, clock_ms: int, count_max: int) -> Iterator[DueMessage | DueExpiration | DueSchedule]:
        """Take out what is due, earliest first. The rows are gone when the iterator moves on. What was armed meanwhile
        waits for the next time, even if it is due."""
        first_new = self.next_number
        for _ in range(count_max):
            due = self._index.pop_due(clock_ms, 1)  # One at a time: what fires may call the next one back.
            if not due:
                return
            key = due[0]
            if keys.decode_timer_key(key).number >= first_new:
                self._index.add(key)
                return
            data = self._overlay.get(key)
            assert data is not None, "a timer that was called back or moved is not due"
            self._overlay.put(key, None)
            row = _decode(data)
            if row.envelope is not None:
                self.fired += 1
                if row.token:
                    self._overlay.put(_token_key(row.owner, row.token), None)
                yield DueMessage(row.envelope)
            elif row.expires is not None:
                self._overlay.put(keys.encode_expiration_key(key_group(row.expires.id), *row.expires), None)
                yield DueExpiration(row.expires)
            elif row.schedule:
                self._overlay.put(_token_key(row.schedule, SCHEDULE_TOKEN), None)
                yield DueSchedule(row.schedule)
            else:
                self._overlay.put(row.forget, None)

    def _add(self, due_ms: int, row: _Row) -> bytes:
        key = keys.encode_timer_key(due_ms, self.next_number)
        self.next_number += 1
        self._overlay.put(key, _encode(row))
        self._index.add(key)
        return key

    def _remove(self, key: bytes) -> None:
        self._overlay.put(key, None)
        self._index.remove(key)

    def written(self, rows: dict[bytes, bytes | None]) -> None:
        """Rows were changed by redoing effects: learn of the timers among them."""
        for key, value in rows.items():
            if key[0] == keys.TIMER:
                self._index.add(key) if value is not None else self._index.remove(key)


def key_group_of_timer(data: bytes) -> int:
    """The key group whose task has the timer with this row."""
    row = _decode(data)
    if row.envelope is not None:
        return key_group(row.owner)
    if row.schedule:
        return key_group(row.schedule)
    return key_group(row.expires.id) if row.expires is not None else row.forget[0]


def _token_key(owner: str, token: str) -> bytes:
    return keys.encode_token_key(key_group(owner), owner, token)
