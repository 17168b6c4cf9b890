"""The bytes of a value row whose fields expire.

A value without expiring fields is stored as its encoded state and nothing else. A state class with expiring
fields is stored in an envelope: the encoded state and, per field that is set, the time in milliseconds at
which it expires. Which of the two a row is follows from the state class and never from looking at the
bytes. Equal contents have equal bytes, since a change is noticed by comparing them. What expiry means is
decided elsewhere.
"""

from __future__ import annotations

from typing import Final

import msgspec

from penstock.errors import ProtocolError

_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final = msgspec.msgpack.Decoder(tuple[bytes, dict[str, int]])


def encode_expiring(state: bytes, deadlines: dict[str, int]) -> bytes:
    """The row of `state`, with the time of the task's clock, in milliseconds, at which each field expires."""
    return _ENCODER.encode((state, deadlines))


def decode_expiring(raw: bytes) -> tuple[bytes, dict[str, int]]:
    """The encoded state and the deadlines that `encode_expiring` was given."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            "PEN0421",
            f"A stored value is not the envelope of a state with expiring fields ({error}). If the state "
            "class has just gained its first `Expire`, register a migration for it.",
        ) from error
