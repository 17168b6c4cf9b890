"""Answers to whoever waits for a message: a value in msgpack, whatever its type, so that every client can read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_type_hints

import msgspec

from penstock.errors import InvalidInput
from penstock.functions.codecs import Codec, MsgspecCodec
from penstock.functions.types import codec_for
from penstock.ids import Address

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def encode_answer(address: Address, value: Any, *, what: str = "answer") -> bytes:
    """The answer that `address` gives, or `what` else it tells. Raises InvalidInput for a value that can't be
    written."""
    try:
        return _encode(value)
    except Exception:  # noqa: BLE001  # Not a type msgspec knows; perhaps one of those with a codec of their own.
        pass
    try:
        return _encode(codec_for(type(value)).to_builtins(value))
    except Exception as error:
        raise InvalidInput(
            "PEN0208",
            f"The {what} of {address} is of type {type(value).__name__}, which can't be encoded: "
            f"{str(error).rstrip('.')}. Make it a Struct, a dataclass, or builtin types.",
        ) from error


def decode_answer(data: bytes, codec: Codec[Any]) -> Any:
    """The value of an answer, as `codec` has it; in builtin types where the answer is of another type."""
    try:
        return _convert(data, codec)
    except Exception:  # noqa: BLE001  # `ctx.reply` may answer with anything, whatever the handler returns.
        return _decode(data)


def read_answer(codec: Codec[Any] | None, whose: str, data: bytes) -> Any:
    """The value of an answer, for who awaits it. Raises InvalidInput when it is of another type than was declared."""
    if codec is None:
        return _decode(data)
    try:
        return _convert(data, codec)
    except Exception as error:
        raise InvalidInput(
            "PEN0267",
            f"The answer of {whose} is not of the type that is declared, {codec.name}: {str(error).rstrip('.')}. "
            "Correct the annotation, or what it answers.",
        ) from error


def _convert(data: bytes, codec: Codec[Any]) -> Any:
    return codec.decode(data) if isinstance(codec, MsgspecCodec) else codec.convert(_decode(data))


def read_nothing(data: bytes) -> None:
    """What has no value but that it has come."""


def result_codec(step: Callable[..., Any]) -> Codec[Any] | None:
    """How to read what a step returns: as its annotation says, or as whatever it is."""
    return _codec_of_result(step) if type(step).__hash__ is None else _known_codec(step)


def _codec_of_result(step: Callable[..., Any]) -> Codec[Any] | None:
    try:
        returned = get_type_hints(step).get("return", Any)
        return None if returned is Any else codec_for(type(None) if returned is None else returned)
    except Exception:  # noqa: BLE001  # No annotation that says anything: a callable of another library, say.
        return None


_known_codec = lru_cache(maxsize=1_000)(_codec_of_result)
"""Each run of a handler asks for those of its few steps."""
