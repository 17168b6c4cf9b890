"""The framing by which a record names its schema in a registry, as Confluent's clients write it.

    0                       one byte, the magic
    id of the schema        four bytes, big-endian
    indexes                 protobuf only: their count and themselves as zig-zag varints; [0] as a single 0
    body

Pure: knows neither schemas nor registries.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from penstock.errors import DecodeError

_HEAD = struct.Struct(">bI")
_INDEXES_MAX = 64
"""Deeper than anybody nests messages; it keeps a damaged count from being believed."""


def frame(schema_id: int, body: bytes, indexes: bytes = b"") -> bytes:
    """The record of `body`. `indexes` are those of `encode_indexes`."""
    return _HEAD.pack(0, schema_id) + indexes + body


def split_frame(value: bytes) -> tuple[int, bytes]:
    """The id of the schema, and what follows it. Raises DecodeError for a value that is not framed."""
    if len(value) >= _HEAD.size and value[0] == 0:
        return int.from_bytes(value[1:5], "big"), value[5:]
    if not value or value[0] == 0:
        raise _unframed(f"{len(value)} bytes, too few for the id of a schema")
    raise _unframed(f"first byte 0x{value[0]:02x}, where 0x00 marks the id of a schema")


def encode_indexes(indexes: Sequence[int]) -> bytes:
    """The way to a message in its schema: its number among the messages of the file, then among those nested in it."""
    if list(indexes) == [0]:
        return b"\0"
    return b"".join(map(_varint, (len(indexes), *indexes)))


def split_indexes(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """The indexes, and the message behind them. Raises DecodeError for what are none."""
    count, at = _read_varint(body, 0)
    if count == 0:
        return (0,), body[at:]
    if not 0 < count <= _INDEXES_MAX:
        raise _unframed(f"{count} message indexes")
    indexes = []
    for _ in range(count):
        index, at = _read_varint(body, at)
        if index < 0:
            raise _unframed(f"the message index {index}")
        indexes.append(index)
    return tuple(indexes), body[at:]


def _varint(number: int) -> bytes:
    """A number that is not negative: its zig-zag form is its double."""
    rest = number << 1
    groups = bytearray()
    while rest > 0x7F:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 35, 7):
        if at == len(data):
            raise _unframed("an end within the message indexes")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise _unframed("a message index of more than 32 bits")


def _unframed(got: str) -> DecodeError:
    expected = "the framing of a schema registry"
    return DecodeError(
        "PEN0240",
        f"$ expected {expected}, got {got}. Its producer uses no registry: give the ingress a format without one.",
        expected=expected,
        got=got,
    )
