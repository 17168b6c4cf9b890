"""What people see of a state: its fields with their defaults, its tables and logs, as JSON can hold them.

What always holds: what can't be decoded is shown as it lies, with the problem beside it; what is long is cut off.
"""

from __future__ import annotations

import base64
from itertools import islice
from typing import Any, Final

import msgspec

from penstock.functions.codecs import Codec
from penstock.functions.storage import Storage
from penstock.ids import Address
from penstock.state.overlay import ABSENT
from penstock.state.stateful import RowCollections, Rows, Stateful

ENTRIES_MAX: Final = 1_000
"""Rows of one table, or newest entries of one log, shown of an address."""


def show_state(function: Stateful, address: Address, raw: bytes, stored: Rows, clock_ms: int) -> dict[str, Any]:
    """The state of an address, its tables and logs. `exists` is false when it has only defaults."""
    shown: dict[str, Any] = {"function": address.typename, "id": address.id, "exists": raw != ABSENT}
    try:
        shown["state"] = decoded_state(function, raw, clock_ms)
    except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest; what can't be decoded is still shown.
        shown["state"] = builtins_of(raw)
        shown["problem"] = f"It does not fit the type now declared: {error}"
    collections = _collections(function, address, stored)
    rows = (rows for kind in collections.values() for rows in kind.values())
    shown["exists"] = shown["exists"] or any(rows)
    return shown | collections


def decoded_state(function: Stateful, raw: bytes, clock_ms: int) -> Any:
    """The value of a stored state in builtin types. Raises whatever its codec raises when it can't be read."""
    if function.storage:
        storage = Storage.decode(function.storage, raw, clock_ms)
        values = ((name, spec.codec, getattr(storage, name)) for name, spec in function.storage.items())
        return {name: codec.to_builtins(value) for name, codec, value in values if value is not None}
    if function.state_codec is None:
        return None
    data = function.plain_state(raw)
    value = function.state_codec.decode(data) if data else function.new_state()
    if not isinstance(value, msgspec.Struct):
        return function.state_codec.to_builtins(value)
    # Field by field: what is stored leaves out the defaults, and people want to see them.
    names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    return {shown: plain(getattr(value, field)) for field, shown in names}


def _collections(function: Stateful, address: Address, stored: Rows) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    rows = RowCollections(stored, function.function.state_typename, address.id)
    for name, spec in function.collections.items():
        if spec.kind == "table":
            found = [
                {"key": plain(spec.keys.decode(key)), "value": builtins_of(value, spec.values)}
                for key, value in islice(rows.scan(name), ENTRIES_MAX)
            ]
            shown.setdefault("tables", {})[name] = found
        else:
            first, end = rows.log_bounds(name)
            read = rows.log_read(name, max(first, end - ENTRIES_MAX), end)
            shown.setdefault("logs", {})[name] = [builtins_of(value, spec.values) for value in read]
    return shown


def builtins_of(data: bytes, codec: Codec[Any] | None = None) -> Any:
    """Stored bytes for people: by their codec, else as msgpack, else as base64 text."""
    if not data:
        return None
    if codec is not None:
        try:
            return codec.to_builtins(codec.decode(data))
        except Exception:  # noqa: BLE001  # As above: then without the type.
            return builtins_of(data)
    try:
        return plain(msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, ValueError):
        return {"base64": base64.b64encode(data).decode()}


def plain(value: Any) -> Any:
    """A value in what JSON has."""
    return msgspec.to_builtins(value, str_keys=True)
