"""The dynamic form of state, for those who come from StateFun: named values declared as `Value(int,
default=0)`.

`ctx.storage.seen` reads, `ctx.storage.seen = 3` writes, `del ctx.storage.seen` removes. What always holds: an
absent value reads as its default (None if it has none), what is stored has the declared type, and only
declared names exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.expire import Expire
from penstock.functions.mismatch import describe
from penstock.functions.shapes import Shape, incompatibilities
from penstock.functions.types import codec_for, encode_checked

T = TypeVar("T")


class Value(Generic[T]):
    """The declaration of one named value: its type, what it is when absent, and how long it is kept."""

    __slots__ = ("codec", "default", "default_data", "expire")

    def __init__(self, type: type[T], default: T | None = None, expire: Expire | None = None) -> None:
        self.codec = codec_for(type)
        self.default = default
        self.expire = expire
        if default is not None and not fits(self, default):
            raise ConfigurationError(
                "PEN0118", f"The default of Value({self.codec.name}) is {describe(default)}. Give it that type."
            )
        self.default_data = None if default is None else self.codec.encode(default)
        """The default as it would be stored. Every reader gets a copy of its own."""

    def __repr__(self) -> str:
        return f"Value({self.codec.name}, default={self.default!r})"


class _Row(msgspec.Struct, array_like=True, omit_defaults=True):
    """One stored value, and when it expires (0: never)."""

    data: bytes
    due_ms: int = 0


_ROWS = msgspec.msgpack.Decoder(dict[str, _Row])
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
"""Equal contents are equal bytes, whatever the order they were set in."""


class Storage:
    """The named values of one address, all of which are stored as one row."""

    __slots__ = ("_live", "_rows", "_values", "_written")

    _values: Mapping[str, Value[Any]]
    _rows: dict[str, _Row]
    _live: dict[str, tuple[Any, bytes]]
    """Values handed out, which can be changed in place, each with the bytes it is stored as."""
    _written: set[str]

    def __init__(self, values: Mapping[str, Value[Any]]) -> None:
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_rows", {})
        object.__setattr__(self, "_live", {})
        object.__setattr__(self, "_written", set())

    @classmethod
    def decode(cls, values: Mapping[str, Value[Any]], raw: bytes, clock_ms: int) -> Storage:
        """The values an address has at `clock_ms`; `raw` is what `encode` made, or empty. For the engine."""
        storage = cls(values)
        if raw:
            rows = _ROWS.decode(raw)
            storage._rows.update((name, row) for name, row in rows.items() if not 0 < row.due_ms <= clock_ms)
        return storage

    def encode(self, clock_ms: int) -> tuple[bytes, int | None]:
        """The bytes to store after a call at `clock_ms`, empty if nothing is left, and when the first value expires."""
        self._keep_changes()
        for name, row in list(self._rows.items()):
            expire = self._values[name].expire if name in self._values else None
            if expire is not None and (expire.after_call or name in self._written or not row.due_ms):
                row.due_ms = clock_ms + expire.ttl_ms
            elif 0 < row.due_ms <= clock_ms:
                del self._rows[name]  # It expired while the handler waited.
        return self.encode_unused()

    def encode_unused(self) -> tuple[bytes, int | None]:
        """The same when there was no call: nothing is kept longer for it."""
        raw = _ENCODER.encode(self._rows) if self._rows else b""
        return raw, min((row.due_ms for row in self._rows.values() if row.due_ms), default=None)

    def contents(self) -> bytes:
        """The values alone, to see whether they have changed."""
        self._keep_changes()
        return _ENCODER.encode({name: row.data for name, row in self._rows.items()})

    def __getattr__(self, name: str) -> Any:
        spec = self._spec(name)
        if name in self._live:
            return self._live[name][0]
        data = self._rows[name].data if name in self._rows else spec.default_data
        if data is None:
            return None
        try:
            value = spec.codec.decode(data)
        except Exception as error:  # noqa: BLE001 - a codec raises what is quickest; explain() says what it means.
            raise spec.codec.explain(error, data, place=f"Stored value {name}") from None
        self._live[name] = (value, data)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        spec = self._spec(name)
        if value is None:
            raise InvalidInput("PEN0205", f"Storage {name} can't be set to None. Remove it: del ctx.storage.{name}.")
        if not fits(spec, value):
            raise InvalidInput(
                "PEN0205", f"Storage {name} is of type {spec.codec.name}, got {describe(value)}. Nothing was stored."
            )
        self._put(name, value, encode_checked(spec.codec, value, f"Storage {name}"))

    def __delattr__(self, name: str) -> None:
        self._spec(name)
        self._rows.pop(name, None)
        self._live.pop(name, None)

    def _keep_changes(self) -> None:
        """Store what was changed in place, as by `ctx.storage.names.append(...)`."""
        for name, (value, stored) in list(self._live.items()):
            codec = self._values[name].codec
            if codec.encode(value) != stored:
                self._put(name, value, encode_checked(codec, value, f"Storage {name}"))

    def _put(self, name: str, value: Any, data: bytes) -> None:
        self._rows[name] = _Row(data, self._rows[name].due_ms if name in self._rows else 0)
        self._live[name] = (value, data)
        self._written.add(name)

    def _spec(self, name: str) -> Value[Any]:
        try:
            spec: Value[Any] = self._values[name]
        except KeyError:
            known = ", ".join(sorted(self._values)) or "none"
            raise AttributeError(f"Storage has no value {name!r}. Declared: {known}.") from None
        return spec


def check_storage(values: Mapping[str, Value[Any]]) -> None:
    """Raise ConfigurationError unless every name can be an attribute of `ctx.storage`."""
    for name, spec in values.items():
        if not name.isidentifier() or name.startswith("_") or hasattr(Storage, name):
            raise ConfigurationError(
                "PEN0118",
                f"{name!r} can't name a stored value: ctx.storage.{name} is no attribute, or it is taken. Rename it.",
            )
        if not isinstance(spec, Value):
            raise ConfigurationError(
                "PEN0118", f"The stored value {name} is declared as {spec!r}. Write {name}=Value(int, default=0)."
            )


def storage_incompatibilities(old: Mapping[str, Shape], values: Mapping[str, Value[Any]]) -> list[str]:
    """Why rows stored under `old`, the shape of each value by name, can't be read as `values`: one sentence
    each.
    """
    found = [f"{name} is gone now" for name in old if name not in values]
    for name in old.keys() & values.keys():
        found.extend(f"{name}: {each}" for each in incompatibilities(old[name], values[name].codec.shape()))
    return found


def fits(spec: Value[Any], value: object) -> bool:
    """Whether `value` has one of the classes of the declared type."""
    return not spec.codec.types or type(value) in spec.codec.types
