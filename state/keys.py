"""The keys of the rows a task stores: what they look like, and which ranges of them belong together.

A task keeps everything in one ordered store. Rows of an address begin with its key group, so a split or a
merge of tasks moves whole ranges; rows of the task itself begin with a byte no key group has, so they sort
behind.

    group rows   group 0..127 | kind | components        task rows   kind >= 0xF0 | components
    -----------------------------------------------      -----------------------------------------------
    0x01 VALUE        typename, id                       0xF0 META     name
    0x02 TABLE        typename, id, field, table key     0xF1 TIMER    due_ms (8), number (8)
    0x03 LOG          typename, id, field, 0             0xF2 QUEUE    typename, number (8)
                      ... or 1, number (8)               0xF3 PENDING  number (8)
    0x04 EXPIRATION   typename, id                       0xF4 EGRESS   egress, checkpoint (8), number (4)
    0x05 IDEMPOTENCY  typename, id, key                  0xF5 REPLY    request id
    0x06 TOKEN        id, token                          0xF6 DEAD     number (8)
    0x07 JOURNAL      typename, id, part (1), number (4)
    0x08 PROMISE      typename, id, name
    0x09 SCHEDULE     name

Invariants: no key is the beginning of another; keys sort as their components do, text by code point and
numbers by size; every key decodes to exactly what it was encoded from. Numbers are big-endian and of fixed
width. Text and bytes end with 00 01, and a NUL inside them is written 00 FF: the end of a component sorts
before anything that could follow in a longer one, so `a` stands before `a\\0` before `ab`. The layout is
part of what is stored: a change of it needs a new format version, and the golden keys of the tests are
there to notice one.

Pure. Text is any that encodes as UTF-8: lone surrogates are refused where ids enter, not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct, error
from typing import Final, NamedTuple, TypeVar

from penstock.errors import ProtocolError
from penstock.ids import KEY_GROUPS_MAX, KeyGroup

VALUE: Final = 0x01
TABLE: Final = 0x02
LOG: Final = 0x03
EXPIRATION: Final = 0x04
IDEMPOTENCY: Final = 0x05
TOKEN: Final = 0x06
JOURNAL: Final = 0x07
PROMISE: Final = 0x08
SCHEDULE: Final = 0x09

META: Final = 0xF0
TIMER: Final = 0xF1
QUEUE: Final = 0xF2
PENDING: Final = 0xF3
EGRESS: Final = 0xF4
REPLY: Final = 0xF5
DEAD: Final = 0xF6

assert KEY_GROUPS_MAX <= META, "a key group and the kind of a task row must differ in the first byte"

_Decoded = TypeVar("_Decoded")

_END: Final = b"\x00\x01"
_ESCAPED_NUL: Final = b"\x00\xff"
_LOG_BOUNDS: Final = b"\x00"
_LOG_ENTRY: Final = b"\x01"
_U32: Final = Struct(">I")
_U64: Final = Struct(">Q")
_U64_PAIR: Final = Struct(">QQ")
_U64_U32: Final = Struct(">QI")


class KeyRange(NamedTuple):
    """All keys from `start` on and below `end`."""

    start: bytes
    end: bytes


class ValueKey(NamedTuple):
    group: KeyGroup
    typename: str
    id: str


class TableKey(NamedTuple):
    group: KeyGroup
    typename: str
    id: str
    field: str
    table_key: bytes


class LogKey(NamedTuple):
    """One entry of a log, or, with `entry` None, the row of its bounds."""

    group: KeyGroup
    typename: str
    id: str
    field: str
    entry: int | None


class ExpirationKey(NamedTuple):
    """The row that names the timer which will look at the expiring state of an address."""

    group: KeyGroup
    typename: str
    id: str


class IdempotencyKey(NamedTuple):
    group: KeyGroup
    typename: str
    id: str
    key: str


class TokenKey(NamedTuple):
    group: KeyGroup
    id: str
    token: str


class TimerKey(NamedTuple):
    due_ms: int
    number: int


class QueueKey(NamedTuple):
    typename: str
    number: int


class EgressKey(NamedTuple):
    egress: str
    checkpoint: int
    number: int


# ---- rows of a key group


def encode_value_key(group: int, typename: str, id: str) -> bytes:
    """The key of the value of one address. On the path of every message, so it does no more than it must."""
    raw = id.encode()
    if b"\x00" in raw:
        raw = raw.replace(b"\x00", _ESCAPED_NUL)
    return _head(group, VALUE, typename) + raw + _END


def decode_value_key(key: bytes) -> ValueKey:
    reader = _Reader(key)
    return reader.finish(ValueKey(reader.group(VALUE), reader.text(), reader.text()))


def value_range(group: int, typename: str) -> KeyRange:
    """The values of all ids of one function within one key group, in the order of the ids."""
    return _below(_head(group, VALUE, typename))


def value_ranges(typename: str) -> Iterator[KeyRange]:
    """The values of all ids of one function, group after group; a task has rows of its own groups only."""
    return (value_range(group, typename) for group in range(KEY_GROUPS_MAX))


def collection_ranges(typename: str) -> Iterator[KeyRange]:
    """The rows of the tables, and those of the logs, of all ids of one function, group after group."""
    return (_below(_head(group, kind, typename)) for kind in (TABLE, LOG) for group in range(KEY_GROUPS_MAX))


def id_of_collection(key: bytes) -> str | None:
    """Whose row this is: that of a table or an entry of a log. None for the bounds of a log, which may be empty."""
    if key[1] == TABLE:
        return decode_table_key(key).id
    found = decode_log_key(key)
    return None if found.entry is None else found.id


def behind_id(key: bytes) -> bytes:
    """The smallest key behind all rows that have the kind, the function and the id of `key`."""
    kind = key[1]
    reader = _Reader(key)
    group, typename, id = reader.group(kind), reader.text(), reader.text()
    return prefix_end(_head(group, kind, typename) + _text(id))


def encode_table_key(group: int, typename: str, id: str, field: str, table_key: bytes) -> bytes:
    """The key of one row of a table. `table_key` is the user's own key, encoded so that it sorts."""
    return _table_head(group, typename, id, field) + _component(table_key)


def decode_table_key(key: bytes) -> TableKey:
    reader = _Reader(key)
    return reader.finish(TableKey(reader.group(TABLE), reader.text(), reader.text(), reader.text(), reader.component()))


def table_range(group: int, typename: str, id: str, field: str) -> KeyRange:
    """One whole table of one address."""
    return _below(_table_head(group, typename, id, field))


def encode_log_key(group: int, typename: str, id: str, field: str, entry: int) -> bytes:
    return _log_head(group, typename, id, field) + _LOG_ENTRY + _U64.pack(entry)


def encode_log_bounds_key(group: int, typename: str, id: str, field: str) -> bytes:
    """The key of the row that says where a log begins and ends: it stands before the entries."""
    return _log_head(group, typename, id, field) + _LOG_BOUNDS


def decode_log_key(key: bytes) -> LogKey:
    reader = _Reader(key)
    group, typename, id, field = reader.group(LOG), reader.text(), reader.text(), reader.text()
    entry = reader.number() if reader.flag() else None
    return reader.finish(LogKey(group, typename, id, field, entry))


def log_range(group: int, typename: str, id: str, field: str) -> KeyRange:
    """One whole log of one address, its bounds row included."""
    return _below(_log_head(group, typename, id, field))


def log_entries_range(group: int, typename: str, id: str, field: str, first: int, end: int) -> KeyRange:
    """The entries of a log from number `first` on and below `end`."""
    head = _log_head(group, typename, id, field) + _LOG_ENTRY
    return KeyRange(head + _U64.pack(first), head + _U64.pack(end))


def encode_expiration_key(group: int, typename: str, id: str) -> bytes:
    """The key under which an address names the timer that looks at its expiring state."""
    return _head(group, EXPIRATION, typename) + _text(id)


def decode_expiration_key(key: bytes) -> ExpirationKey:
    reader = _Reader(key)
    return reader.finish(ExpirationKey(reader.group(EXPIRATION), reader.text(), reader.text()))


def encode_idempotency_key(group: int, typename: str, id: str, key: str) -> bytes:
    return _head(group, IDEMPOTENCY, typename) + _text(id) + _text(key)


def decode_idempotency_key(key: bytes) -> IdempotencyKey:
    reader = _Reader(key)
    return reader.finish(IdempotencyKey(reader.group(IDEMPOTENCY), reader.text(), reader.text(), reader.text()))


def idempotency_range(group: int, typename: str, id: str) -> KeyRange:
    """All results one address keeps for repeated requests."""
    return _below(_head(group, IDEMPOTENCY, typename) + _text(id))


def encode_token_key(group: int, id: str, token: str) -> bytes:
    """The key by which a delayed message is cancelled: scoped to the sender's id, across its functions."""
    return _head(group, TOKEN, id) + _text(token)


def decode_token_key(key: bytes) -> TokenKey:
    reader = _Reader(key)
    return reader.finish(TokenKey(reader.group(TOKEN), reader.text(), reader.text()))


def encode_journal_key(group: int, typename: str, id: str, part: int, number: int = 0) -> bytes:
    """The key of a row of the journal of the invocation that holds an address: of a kind, `part`, by number."""
    return _head(group, JOURNAL, typename) + _text(id) + bytes((part,)) + _U32.pack(number)


def encode_promise_key(group: int, typename: str, id: str, name: str) -> bytes:
    """The key of a promise that was resolved before somebody asked for it."""
    return _head(group, PROMISE, typename) + _text(id) + _text(name)


def encode_schedule_key(group: int, name: str) -> bytes:
    """The key of what is known of a schedule. Its name decides the group, as an id does."""
    return _head(group, SCHEDULE, name)


def decode_schedule_key(key: bytes) -> str:
    """The name of the schedule."""
    reader = _Reader(key)
    reader.group(SCHEDULE)
    name = reader.text()
    reader.finish(())
    return name


def group_range(group: int) -> KeyRange:
    """Everything a key group owns: what moves when tasks are split or merged."""
    return _below(_GROUP_BYTE[group])


def address_of(key: bytes) -> tuple[str, str]:
    """Function and id of a row that belongs to one address, of any kind but those of tokens and schedules."""
    reader = _Reader(key)
    reader.group(key[1])
    return reader.text(), reader.text()


def function_range(group: int, kind: int, typename: str) -> KeyRange:
    """The rows of one kind of all ids of one function within one key group."""
    return _below(_head(group, kind, typename))


def address_range(group: int, kind: int, typename: str, id: str) -> KeyRange:
    """The rows of one kind of one address."""
    return _below(_head(group, kind, typename) + _text(id))


def group_kind_range(group: int, kind: int) -> KeyRange:
    """All rows of one kind within one key group."""
    return _below(_GROUP_BYTE[group] + _KIND_BYTE[kind])


# ---- rows of the task


def encode_meta_key(name: str) -> bytes:
    return _KIND_BYTE[META] + _text(name)


def decode_meta_key(key: bytes) -> str:
    reader = _Reader(key, META)
    return reader.finish(reader.text())


def encode_timer_key(due_ms: int, number: int) -> bytes:
    """The key of a delayed message. `number` tells apart, and orders, those due in the same millisecond."""
    return _KIND_BYTE[TIMER] + _U64_PAIR.pack(due_ms, number)


def decode_timer_key(key: bytes) -> TimerKey:
    reader = _Reader(key, TIMER)
    return reader.finish(TimerKey(reader.number(), reader.number()))


def timer_range(until_ms: int) -> KeyRange:
    """The delayed messages due at `until_ms` or before, in the order they fire."""
    return KeyRange(_KIND_BYTE[TIMER], _KIND_BYTE[TIMER] + _U64.pack(until_ms + 1))


def encode_queue_key(typename: str, number: int) -> bytes:
    return _KIND_BYTE[QUEUE] + _text(typename) + _U64.pack(number)


def decode_queue_key(key: bytes) -> QueueKey:
    reader = _Reader(key, QUEUE)
    return reader.finish(QueueKey(reader.text(), reader.number()))


def queue_range(typename: str) -> KeyRange:
    return _below(_KIND_BYTE[QUEUE] + _text(typename))


def encode_pending_key(number: int) -> bytes:
    return _KIND_BYTE[PENDING] + _U64.pack(number)


def decode_pending_key(key: bytes) -> int:
    reader = _Reader(key, PENDING)
    return reader.finish(reader.number())


def encode_egress_key(egress: str, checkpoint: int, number: int) -> bytes:
    return _KIND_BYTE[EGRESS] + _text(egress) + _U64_U32.pack(checkpoint, number)


def decode_egress_key(key: bytes) -> EgressKey:
    reader = _Reader(key, EGRESS)
    return reader.finish(EgressKey(reader.text(), reader.number(), reader.number_32()))


def egress_range(egress: str, until_checkpoint: int) -> KeyRange:
    """The rows of one egress that `until_checkpoint` or an earlier one decides, in the order emitted."""
    head = _KIND_BYTE[EGRESS] + _text(egress)
    return KeyRange(head, head + _U64.pack(until_checkpoint + 1))


def encode_reply_key(request_id: str) -> bytes:
    return _KIND_BYTE[REPLY] + _text(request_id)


def decode_reply_key(key: bytes) -> str:
    reader = _Reader(key, REPLY)
    return reader.finish(reader.text())


def encode_dead_key(number: int) -> bytes:
    return _KIND_BYTE[DEAD] + _U64.pack(number)


def decode_dead_key(key: bytes) -> int:
    reader = _Reader(key, DEAD)
    return reader.finish(reader.number())


def task_kind_range(kind: int) -> KeyRange:
    """All rows of one kind of the task itself."""
    assert kind >= META, f"{kind:#x} is a kind of group rows"
    return _below(_KIND_BYTE[kind])


# ---- bytes


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key greater than every key that begins with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    assert stem, "nothing sorts behind a prefix of 0xFF alone, and no kind of row has that byte"
    return stem[:-1] + bytes((stem[-1] + 1,))


_GROUP_BYTE: Final = tuple(bytes((group,)) for group in range(KEY_GROUPS_MAX))
_KIND_BYTE: Final = tuple(bytes((kind,)) for kind in range(256))


# Sized for 128 groups of some hundred functions; a token's head holds an id and passes through.
@lru_cache(maxsize=32_768)
def _head(group: int, kind: int, first: str) -> bytes:
    return _GROUP_BYTE[group] + _KIND_BYTE[kind] + _text(first)


def _table_head(group: int, typename: str, id: str, field: str) -> bytes:
    return _head(group, TABLE, typename) + _text(id) + _text(field)


def _log_head(group: int, typename: str, id: str, field: str) -> bytes:
    return _head(group, LOG, typename) + _text(id) + _text(field)


def _text(text: str) -> bytes:
    return _component(text.encode())


def _component(raw: bytes) -> bytes:
    return raw.replace(b"\x00", _ESCAPED_NUL) + _END


def _below(prefix: bytes) -> KeyRange:
    return KeyRange(prefix, prefix_end(prefix))


class _Reader:
    """Takes a key apart from left to right. Anything that no encoder writes is a ProtocolError."""

    def __init__(self, key: bytes, task_kind: int | None = None) -> None:
        self._key = key
        self._at = 0
        if task_kind is not None:
            self._expect_kind(task_kind)

    def group(self, kind: int) -> KeyGroup:
        group = self._byte()
        if group >= KEY_GROUPS_MAX:
            raise self._malformed(f"its first byte is not a key group below {KEY_GROUPS_MAX}")
        self._expect_kind(kind)
        return KeyGroup(group)

    def flag(self) -> bool:
        byte = self._byte()
        if byte > 1:
            raise self._malformed(f"byte {self._at - 1} is neither 0 nor 1")
        return byte == 1

    def text(self) -> str:
        try:
            return self.component().decode()
        except UnicodeDecodeError:
            raise self._malformed("it holds text that is not UTF-8") from None

    def component(self) -> bytes:
        key, start = self._key, self._at
        end = key.find(b"\x00", start)
        while key[end : end + 2] == _ESCAPED_NUL:
            end = key.find(b"\x00", end + 2)
        if key[end : end + 2] != _END:
            raise self._malformed(f"the component at byte {start} has no end")
        self._at = end + 2
        return key[start:end].replace(_ESCAPED_NUL, b"\x00")

    def number(self) -> int:
        return self._unpack(_U64)

    def number_32(self) -> int:
        return self._unpack(_U32)

    def finish(self, decoded: _Decoded) -> _Decoded:
        if self._at != len(self._key):
            raise self._malformed(f"it goes on after its last component, at byte {self._at}")
        return decoded

    def _expect_kind(self, kind: int) -> None:
        found = self._byte()
        if found != kind:
            raise self._malformed(f"it is of kind {found:#04x} where {kind:#04x} was expected")

    def _byte(self) -> int:
        try:
            byte = self._key[self._at]
        except IndexError:
            raise self._malformed("it ends too early") from None
        self._at += 1
        return byte

    def _unpack(self, layout: Struct) -> int:
        try:
            (number,) = layout.unpack_from(self._key, self._at)
        except error:
            raise self._malformed("it ends too early") from None
        self._at += layout.size
        assert isinstance(number, int)
        return number

    def _malformed(self, why: str) -> ProtocolError:
        return ProtocolError(
            "PEN0420",
            f"Stored key {self._key.hex(' ')} cannot be read: {why}. Another version of Penstock wrote it: "
            "run that version, or restore a checkpoint of this one.",
        )
