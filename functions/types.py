"""Chooses the codec of an annotation: the one place that knows which kinds of types messages and state can
have.

A type that cannot be written is refused when the function is declared, never when its first message arrives.
pydantic and protobuf are imported only for a class that is theirs, which its module has then imported
already.
"""

from __future__ import annotations

import sys
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.codecs import BytesCodec, Codec, MsgspecCodec, unsupported_class

__all__ = ["Codec", "codec_for", "derives_from", "encode_checked", "not_readable", "type_text"]


def codec_for(annotation: Any) -> Codec[Any]:
    """The codec of `annotation`, one for all who ask.

    Raises ConfigurationError for a type that can't be written, and NameError while it refers to a class that
    is not defined yet.
    """
    try:
        return _cached(annotation)
    except TypeError as error:
        if "unhashable" in str(error):
            return _choose(annotation)  # Annotated[...] with, say, a list in it.
        raise


@cache
def _cached(annotation: Any) -> Codec[Any]:
    return _choose(annotation)


def _choose(annotation: Any) -> Codec[Any]:
    plain = _plain(annotation)
    if plain is bytes:
        return BytesCodec()
    if derives_from(plain, "pydantic.main", "BaseModel"):
        from penstock.functions.pydantic_codec import PydanticCodec

        return PydanticCodec(plain)
    if derives_from(plain, "google.protobuf.message", "Message"):
        from penstock.functions.protobuf_codec import ProtobufCodec

        return ProtobufCodec(plain)
    name = type_text(annotation)
    try:
        misfit = unsupported_class(msgspec.inspect.type_info(annotation))
        if misfit is None:
            return MsgspecCodec(annotation, name)
    except (TypeError, ValueError) as error:
        raise _unsupported(name, str(error).partition(" - type ")[0]) from None
    raise _unsupported(name, _reason(misfit, alone=plain is misfit))


def encode_checked(codec: Codec[Any], value: Any, what: str) -> bytes:
    """The bytes of `value`, which can be read again: encoding alone takes whatever can be written, of any type.

    Raises InvalidInput, which begins with `what`, for a value that is not of the codec's type.
    """
    data = codec.encode(value)
    try:
        codec.decode(data)
    except Exception as error:  # noqa: BLE001  # Codecs raise what is quickest.
        raise not_readable(codec, error, data, what) from None
    return data


def not_readable(codec: Codec[Any], error: Exception, data: bytes, what: str) -> InvalidInput:
    """The error for `data` that was encoded and, as `error` says, can't be decoded."""
    return InvalidInput(
        "PEN0205", f"{what} is of type {codec.name}: {codec.explain(error, data).message} Nothing was stored."
    )


def type_text(annotation: Any) -> str:
    """A type as its user writes it: `Delay | Ask`, `dict[str, int]`."""
    plain = _plain(annotation)
    origin = get_origin(plain)
    if plain is None or plain is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(alternative) for alternative in get_args(plain))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, get_args(plain)))}]"
    if origin is not None:
        arguments = ", ".join("..." if item is ... else type_text(item) for item in get_args(plain))
        return f"{type_text(origin)}[{arguments}]"
    return str(getattr(plain, "__name__", plain))


def _plain(annotation: Any) -> Any:
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def derives_from(annotation: Any, module: str, base: str) -> bool:
    """Whether it is a class below `module.base`. Nothing is imported: if it is one, the module is there."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(annotation, type) and issubclass(annotation, getattr(loaded, base))


def _reason(misfit: Any, *, alone: bool) -> str:
    if derives_from(misfit, "pydantic.main", "BaseModel") or derives_from(misfit, "google.protobuf.message", "Message"):
        return f"{misfit.__name__} can only be a type by itself, not part of another"
    return "There is no way to write it" if alone else f"It contains {type_text(misfit)}"


def _unsupported(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0102",
        f"{name} can't be the type of a message or of state: {reason}. Use a class derived from Message or State, "
        f"a dataclass, TypedDict, NamedTuple, pydantic model, protobuf message, bytes or built-in types; the "
        f"alternatives of a union derive from Message.",
    )
