"""The record of an inbox: the frames of one worker for one task, or a fence (PROTOCOL 4).

Format version 1: msgpack, an array of a version and sections. Bytes that no encoder here writes are a ProtocolError:
somebody else writes to this inbox.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.errors import ProtocolError
from penstock.records import EpochFrame

FORMAT = 1
FENCE_SOURCE = -1
"""The source of a frame that holds nothing, and says that an attempt begins: every frame of it comes after."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[EpochFrame]]).decode


def encode_frames(frames: Sequence[EpochFrame]) -> bytes:
    """One record that carries `frames`, in order."""
    return _encode((FORMAT, frames))


def encode_fence(attempt: int) -> bytes:
    """The record that stands in every inbox before the first frame of `attempt`."""
    return encode_frames([EpochFrame(attempt, 0, FENCE_SOURCE, 0, [])])


def decode_frames(record: bytes, *, place: str) -> list[EpochFrame]:
    """The frames of a record. `place` names it in the error."""
    try:
        version, frames = _decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            "PEN0507", f"{place} holds no frames: {error}. Only Penstock may write to an inbox; find out who does."
        ) from error
    if version != FORMAT:
        raise ProtocolError("PEN0508", f"{place} has frame format {version}; this version reads {FORMAT}.")
    return frames
