"""Tables and logs: the parts of a state that are too large to be loaded with it.

A `Table` is a dictionary and a `Log` a sequence, stored row by row beside the encoded state of the same
address. What always holds: only the rows that are asked for are read; rows are bytes, so nothing is shared
between invocations; what a handler changed is dropped with everything else when it raises. Where rows lie is
up to the `CollectionStorage` the engine binds; without one they lie in memory, so that a state made by hand
in a test works.
"""

from __future__ import annotations

import datetime
import decimal
import types
import uuid
from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping, Sequence, ValuesView
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import msgspec

from penstock.errors import InvalidInput
from penstock.functions.codecs import Codec
from penstock.functions.mismatch import describe
from penstock.functions.shapes import Shape
from penstock.functions.types import codec_for, encode_checked, type_text

K = TypeVar("K")
V = TypeVar("V")


class CollectionStorage(Protocol):
    """The rows of all collections of one address. `field` is the name of the collection in its State."""

    def get(self, field: str, key: bytes) -> bytes | None:
        """The value of one row of a table."""
        ...

    def put(self, field: str, key: bytes, value: bytes | None) -> None:
        """Write one row of a table; None removes it."""
        ...

    def scan(self, field: str) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table in the order of their keys. Rows written meanwhile may be met or not."""
        ...

    def log_append(self, field: str, value: bytes) -> None:
        """Add one entry at the end of a log."""
        ...

    def log_read(self, field: str, start: int, stop: int) -> Iterator[bytes]:
        """The entries from position `start` to before `stop`, both within the bounds."""
        ...

    def log_bounds(self, field: str) -> tuple[int, int]:
        """The position of the first entry kept, and the position the next entry will have."""
        ...

    def log_truncate(self, field: str, before: int) -> None:
        """Drop all entries before position `before`. Positions of the others stay."""
        ...


class MemoryCollections:
    """A `CollectionStorage` in dictionaries."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {}
        self._logs: dict[str, list[bytes]] = {}
        self._first: dict[str, int] = {}

    def get(self, field: str, key: bytes) -> bytes | None:
        return self._tables.get(field, {}).get(key)

    def put(self, field: str, key: bytes, value: bytes | None) -> None:
        rows = self._tables.setdefault(field, {})
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value

    def scan(self, field: str) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(self._tables.get(field, {}).items())

    def log_append(self, field: str, value: bytes) -> None:
        self._logs.setdefault(field, []).append(value)

    def log_read(self, field: str, start: int, stop: int) -> Iterator[bytes]:
        first = self._first.get(field, 0)
        yield from self._logs.get(field, [])[start - first : stop - first]

    def log_bounds(self, field: str) -> tuple[int, int]:
        first = self._first.get(field, 0)
        return first, first + len(self._logs.get(field, []))

    def log_truncate(self, field: str, before: int) -> None:
        first, end = self.log_bounds(field)
        if before > first:
            before = min(before, end)
            del self._logs.setdefault(field, [])[: before - first]
            self._first[field] = before


class Keys(NamedTuple):
    """How the keys of a table become the bytes its rows are ordered by."""

    name: str
    types: tuple[type, ...]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    shape: Shape


def keys_for(annotation: Any) -> Keys:
    """Texts and bytes as they are, so that they sort as such; everything else as msgpack."""
    codec = codec_for(annotation)
    if annotation is str:
        return Keys("str", (str,), str.encode, bytes.decode, codec.shape())
    if annotation is bytes:
        return Keys("bytes", (bytes,), codec.encode, codec.decode, codec.shape())
    # An int would be accepted as the float it equals, but it is written differently: another row.
    classes = (float,) if annotation is float else codec.types
    return Keys(type_text(annotation), classes, _KEY_ENCODER.encode, codec.decode, codec.shape())


_KEY_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
"""Equal keys must be equal bytes, also when they are sets."""


class Table(MutableMapping[K, V]):
    """A dictionary of any size, declared in a State as `items: Table[str, Item] = Table()`.

    A value that was looked up may be changed in place (`state.items["a"].count += 1`); the change is stored
    with the invocation. Values met while iterating are copies: look one up by its key to change it. Iteration
    is in the order of the encoded keys (texts by code point, numbers from 0 up), and counting reads every
    row.
    """

    __slots__ = ("_field", "_keys", "_live", "_storage", "_values")

    _storage: CollectionStorage
    _field: str
    _keys: Keys
    _values: Codec[V]
    _live: dict[bytes, tuple[V, bytes]]
    """Values handed out that can be changed in place, each with the bytes it is stored as."""

    @classmethod
    def bound(cls, storage: CollectionStorage, field: str, keys: Keys, values: Codec[V]) -> Table[K, V]:
        """The table `field` of the address whose rows `storage` has. For the engine; users declare `Table()`."""
        table = cls()
        table._storage = storage
        table._field = field
        table._keys = keys
        table._values = values
        table._live = {}
        return table

    def __getitem__(self, key: K) -> V:
        row = self._row(key)
        if row in self._live:
            return self._live[row][0]
        data = self._storage.get(self._field, row)
        if data is None:
            raise KeyError(key)
        value = self._values.decode(data)
        self._keep_live(row, value, data)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        row = self._row(key)
        _check_type(value, self._values.types, self._values.name, f"A value of {self._field}")
        data = encode_checked(self._values, value, f"A value of {self._field}")
        self._storage.put(self._field, row, data)
        self._keep_live(row, value, data)

    def __delitem__(self, key: K) -> None:
        row = self._row(key)
        if self._storage.get(self._field, row) is None:
            raise KeyError(key)
        self._live.pop(row, None)
        self._storage.put(self._field, row, None)

    def __contains__(self, key: object) -> bool:
        fits = not self._keys.types or type(key) in self._keys.types
        return fits and self._storage.get(self._field, self._keys.encode(key)) is not None

    def __iter__(self) -> Iterator[K]:
        for row, _ in self._storage.scan(self._field):
            yield self._keys.decode(row)

    def __len__(self) -> int:
        """How many rows there are. Reads them all."""
        return sum(1 for _ in self._storage.scan(self._field))

    def __bool__(self) -> bool:
        return next(iter(self._storage.scan(self._field)), None) is not None

    def items(self) -> ItemsView[K, V]:
        """Every key with its value, in one pass over the rows."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Every value, in one pass over the rows."""
        return _Values(self)

    def clear(self) -> None:
        """Remove every row."""
        self._live.clear()
        for row, _ in list(self._storage.scan(self._field)):
            self._storage.put(self._field, row, None)

    def __repr__(self) -> str:
        return f"<Table {self._field}>" if hasattr(self, "_field") else "Table()"

    def flush(self) -> None:
        """Store what was changed in place. The engine does so when the handler has returned."""
        for row, (value, stored) in self._live.items():
            if self._values.encode(value) != stored:
                data = encode_checked(self._values, value, f"A value of {self._field}")
                self._storage.put(self._field, row, data)
                self._live[row] = (value, data)

    def scan(self) -> Iterator[tuple[K, V]]:
        """What `items()` goes through."""
        for row, data in self._storage.scan(self._field):
            value = self._live[row][0] if row in self._live else self._values.decode(data)
            yield self._keys.decode(row), value

    def _row(self, key: K) -> bytes:
        _check_type(key, self._keys.types, self._keys.name, f"A key of {self._field}")
        return self._keys.encode(key)

    def _keep_live(self, row: bytes, value: V, data: bytes) -> None:
        if type(value) not in _IMMUTABLE:
            self._live[row] = (value, data)


class _Items(ItemsView[K, V]):
    _mapping: Table[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.scan()


class _Values(ValuesView[V]):
    _mapping: Table[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.scan())

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)


class Log(Sequence[V]):
    """A sequence of any size that grows at its end, declared in a State as `events: Log[Event] = Log()`.

    Entries never change: what is read is a copy. Index 0 is the oldest entry kept; `truncate` forgets the
    oldest.
    """

    __slots__ = ("_field", "_storage", "_values")

    _storage: CollectionStorage
    _field: str
    _values: Codec[V]

    @classmethod
    def bound(cls, storage: CollectionStorage, field: str, values: Codec[V]) -> Log[V]:
        """The log `field` of the address whose rows `storage` has. For the engine; users declare `Log()`."""
        log = cls()
        log._storage = storage
        log._field = field
        log._values = values
        return log

    def append(self, entry: V) -> None:
        """Add `entry` at the end."""
        _check_type(entry, self._values.types, self._values.name, f"An entry of {self._field}")
        self._storage.log_append(self._field, encode_checked(self._values, entry, f"An entry of {self._field}"))

    def extend(self, entries: Iterable[V]) -> None:
        """Add all of `entries` at the end."""
        for entry in entries:
            self.append(entry)

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: int | slice) -> V | list[V]:
        if isinstance(index, slice):
            positions = range(len(self))[index]
            if not positions:
                return []
            low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1])
            read = list(self._read(low, high + 1))
            return [read[position - low] for position in positions]
        position = range(len(self))[index]  # Raises the IndexError of a sequence of this length.
        return next(self._read(position, position + 1))

    def __len__(self) -> int:
        first, end = self._storage.log_bounds(self._field)
        return end - first

    def __iter__(self) -> Iterator[V]:
        return self._read(0, len(self))

    def last(self, count: int) -> list[V]:
        """The newest `count` entries, oldest first; all there are if they are fewer."""
        return self[max(0, len(self) - count) :]

    def truncate(self, before: int) -> None:
        """Forget the entries before index `before`. Counted from the end if negative: `truncate(-100)` keeps
        100.
        """
        first, end = self._storage.log_bounds(self._field)
        position = first + before if before >= 0 else end + before
        if position > first:
            self._storage.log_truncate(self._field, min(position, end))

    def __repr__(self) -> str:
        return f"<Log {self._field}>" if hasattr(self, "_field") else "Log()"

    def _read(self, start: int, stop: int) -> Iterator[V]:
        first, _ = self._storage.log_bounds(self._field)
        for data in self._storage.log_read(self._field, first + start, first + stop):
            yield self._values.decode(data)


_IMMUTABLE = frozenset(
    {
        bool,
        bytes,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        float,
        int,
        str,
        types.NoneType,
        uuid.UUID,
    }
)


def _check_type(value: object, allowed: tuple[type, ...], name: str, what: str) -> None:
    if allowed and type(value) not in allowed:
        raise InvalidInput("PEN0205", f"{what} is of type {name}, got {describe(value)}. Nothing was stored.")
