"""Emitted values as JSON, as msgpack, or as a row of named builtins: what egresses and formats make their bytes of.

What always holds: a value is written whole or refused with InvalidInput, which names its type and where it was to go;
pydantic and protobuf values are recognised without importing either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from penstock.errors import InvalidInput


def to_json(value: Any, destination: str) -> bytes:
    """One JSON text. JSON has no NaN or infinity: they are written as null."""
    try:
        return _TO_JSON.encode(value)
    except _NOT_WRITABLE as error:
        raise _not_writable(value, destination, error) from error


def to_msgpack(value: Any, destination: str) -> bytes:
    """The value in msgpack, which keeps bytes and times as they are."""
    try:
        return _TO_MSGPACK.encode(value)
    except _NOT_WRITABLE as error:
        raise _not_writable(value, destination, error) from error


def to_row(
    value: Any, destination: str, columns: Sequence[str] | None = None, *, keep: Iterable[type] = ()
) -> dict[str, Any]:
    """`value` as a dictionary of its fields, with the types in `keep` left alone.

    The tag of a message, which is no field of it, is left out unless a column asks for it.
    """
    try:
        row = msgspec.to_builtins(value, builtin_types=tuple(keep), enc_hook=_builtin, str_keys=True)
    except _NOT_WRITABLE as error:
        raise _not_writable(value, destination, error) from error
    if not isinstance(row, dict):
        raise InvalidInput(
            "PEN0206",
            f"Value of type {type(value).__name__} can't be written to {destination}: its columns have no "
            "names. Emit a mapping, a struct or a dataclass.",
        )
    if isinstance(value, msgspec.Struct):
        tag_field = value.__struct_config__.tag_field
        if tag_field is not None and tag_field not in (columns or ()):
            del row[tag_field]
    return row


def _builtin(value: Any) -> Any:
    """What msgspec can encode in the place of `value`: its hook for types it doesn't know."""
    if hasattr(value, "model_dump"):
        return value.model_dump()  # pydantic, without importing it
    if hasattr(value, "DESCRIPTOR") and hasattr(value, "SerializeToString"):
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(value, preserving_proto_field_name=True)
    raise TypeError(f"objects of type {type(value).__qualname__} have no JSON form")


_TO_JSON = msgspec.json.Encoder(enc_hook=_builtin)
_TO_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_builtin)
_NOT_WRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What an encoder raises about a value."""


def _not_writable(value: Any, destination: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        "PEN0206",
        f"Value of type {type(value).__name__} can't be written to {destination}: {error}. "
        "Emit builtins, a struct, a dataclass or a pydantic model.",
    )
