"""The record of the requests log: one message, or operation, from outside the application (PROTOCOL 3)."""

from __future__ import annotations

import msgspec

from penstock.errors import ProtocolError
from penstock.records import Envelope

FORMAT = 1

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, Envelope]).decode


def encode_request(envelope: Envelope) -> bytes:
    return _encode((FORMAT, envelope))


def decode_request(record: bytes, *, place: str) -> Envelope:
    """The message of a record. `place` names it in the error."""
    try:
        version, envelope = _decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("PEN0509", f"{place} holds no request: {error}. Find out who writes there.") from error
    if version != FORMAT:
        raise ProtocolError("PEN0510", f"{place} has request format {version}; this version reads {FORMAT}.")
    return envelope
