"""How values of one declared type become bytes and come back: the interface, and the codecs that need only
msgspec.

What always holds: `decode(encode(value)) == value`; `decode` refuses what does not fit the type, and raises
whatever is quickest to raise (`explain` turns that into words, off the fast path); a codec has no state, so
one is shared by all who use the type. Which codec serves which annotation is decided in
`penstock.functions.types`.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import types
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Generic, TypeVar, get_origin

import msgspec
from msgspec import inspect as mi

from penstock.errors import DecodeError
from penstock.functions.mismatch import at_place, explain_mismatch
from penstock.functions.shapes import Shape, child_types, incompatibilities, shape_of

T = TypeVar("T")

ABSENT_TEXTS = frozenset({"", "NA"})
"""What a table in text writes for "no value": an empty cell, or the NA of R and of many public data sets."""

_ENCODER = msgspec.msgpack.Encoder()
_JSON_ENCODER = msgspec.json.Encoder()
_BYTES = (bytes, bytearray, memoryview)
"""Said to be builtins, a text is not taken for bytes in base64."""


class Codec(ABC, Generic[T]):
    """Everything that can be done with values of one type. Get one from `codec_for`."""

    name: str
    """The type as its user writes it: `Delay | Ask`."""
    types: tuple[type, ...]
    """The runtime classes of acceptable values, for a quick look before `encode`; empty when any class will
    do.
    """
    encode: Callable[[T], bytes]
    """The bytes of a value. An instance attribute, so that it can be the C method itself."""
    decode: Callable[[bytes], T]
    """The value of bytes that `encode` made. Anything it raises is for `explain`."""

    @abstractmethod
    def decode_json(self, data: bytes) -> T:
        """The value of a JSON text. Types are strict: `"12"` is no int. What it raises is for `explain`."""

    @abstractmethod
    def convert(self, value: object) -> T:
        """The value that loose data stand for: a row of texts, or Python builtins.

        Texts become numbers, booleans and times. In a field (or type) that may be None, an empty text, `NA`
        or nothing at all is None. Anything it raises is for `explain`.
        """

    @abstractmethod
    def from_builtins(self, value: object) -> T:
        """The value that typed data stand for, such as an Avro record: dicts, lists, texts, numbers, bytes, times.

        Unlike `convert` it takes nothing for anything else: an empty text is a text. What it raises is for `explain`.
        """

    @abstractmethod
    def to_builtins(self, value: T) -> Any:
        """The value in dicts, lists, texts and numbers only, as JSON has them."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """A JSON schema of what `decode_json` takes."""

    @abstractmethod
    def shape(self) -> Shape:
        """The names, types and defaults that decide whether old bytes can be read, as plain data to be
        stored.
        """

    def encode_json(self, value: T) -> bytes:
        """The value as a JSON text, which `decode_json` reads."""
        return _JSON_ENCODER.encode(self.to_builtins(value))

    def explain(self, error: Exception, data: object, *, place: str = "") -> DecodeError:
        """Say where in `data` (bytes, or what was given to `convert`) the type was not met, and by which value.

        `place` says what the data are, as the beginning of the message: `Message for shop/cart '7'`.
        """
        return at_place(place, self._mismatch(error, data))

    def _mismatch(self, error: Exception, data: object) -> DecodeError:
        return explain_mismatch(error, data, type_name=self.name)

    def fingerprint(self) -> str:
        """A short text that changes whenever the shape does."""
        return sha256(msgspec.json.encode(self.shape(), order="deterministic")).hexdigest()[:16]

    def compatible(self, old: Shape) -> list[str]:
        """Why bytes written under the shape `old` can't be read now: one sentence each; nothing when they
        can.
        """
        return incompatibilities(old, self.shape())


class MsgspecCodec(Codec[T]):
    """Structs, dataclasses, TypedDicts, NamedTuples, builtins, containers, times, unions: as msgpack, checked
    on arrival.
    """

    def __init__(self, annotation: Any, name: str) -> None:
        node = mi.type_info(annotation)
        self.name = name
        self.types = tuple(dict.fromkeys(runtime_types(node)))
        self.encode = _ENCODER.encode
        self.decode = msgspec.msgpack.Decoder(annotation).decode
        self._decode_json: Callable[[bytes], T] = msgspec.json.Decoder(annotation).decode
        self._annotation = annotation
        self._none_allowed = _allows_none(node)
        self._nullable = {_tag_of(record): _nullable_fields(record) for record in _records(node)}
        self._tag_field = next(
            (n.tag_field for n in _records(node) if isinstance(n, mi.StructType) and n.tag_field), None
        )

    def decode_json(self, data: bytes) -> T:
        return self._decode_json(data)

    def convert(self, value: object) -> T:
        if isinstance(value, Mapping):
            value = without_absent_texts(value, self._nullable_in(value))
        elif self._none_allowed and _is_absent_text(value):
            value = None
        converted: T = msgspec.convert(value, self._annotation, strict=False)
        return converted

    def from_builtins(self, value: object) -> T:
        converted: T = msgspec.convert(value, self._annotation, builtin_types=_BYTES)
        return converted

    def _nullable_in(self, row: Mapping[Any, Any]) -> tuple[tuple[str, bool], ...]:
        if len(self._nullable) == 1:
            return next(iter(self._nullable.values()))
        return self._nullable.get(row.get(self._tag_field), ())

    def to_builtins(self, value: T) -> Any:
        return msgspec.to_builtins(value, str_keys=True)

    def encode_json(self, value: T) -> bytes:
        return _JSON_ENCODER.encode(value)

    def schema(self) -> dict[str, Any]:
        return msgspec.json.schema(self._annotation)

    def shape(self) -> Shape:
        return shape_of(self._annotation)


class BytesCodec(Codec[bytes]):
    """The payload is the value itself. In JSON it is base64 text, as bytes are everywhere in msgspec."""

    name = "bytes"
    types = (bytes,)

    def __init__(self) -> None:
        self.encode = bytes
        self.decode = bytes

    def decode_json(self, data: bytes) -> bytes:
        return msgspec.json.decode(data, type=bytes)

    def convert(self, value: object) -> bytes:
        """Bytes as they are; a text (a cell, a command-line argument) as UTF-8."""
        return value.encode() if isinstance(value, str) else msgspec.convert(value, bytes)

    def from_builtins(self, value: object) -> bytes:
        return msgspec.convert(value, bytes, builtin_types=_BYTES)

    def to_builtins(self, value: bytes) -> str:
        return base64.b64encode(value).decode()

    def schema(self) -> dict[str, Any]:
        return msgspec.json.schema(bytes)

    def shape(self) -> Shape:
        # Not the shape of `bytes` inside other types: those lie in a msgpack value, these are all there is.
        return {"type": "raw bytes", "definitions": {}}


def without_absent_texts(row: Mapping[Any, Any], nullable: tuple[tuple[str, bool], ...]) -> Mapping[Any, Any]:
    """`row` with None for absent values of fields that may be None; `nullable` has these, and whether each is
    required.
    """
    absent = {name: None for name, required in nullable if (_is_absent_text(row[name]) if name in row else required)}
    return {**row, **absent} if absent else row


_LEAF_TYPES: dict[type[mi.Type], tuple[type, ...]] = {
    mi.NoneType: (types.NoneType,),
    mi.BoolType: (bool,),
    mi.IntType: (int,),
    mi.FloatType: (float, int),  # An int arrives as the float it equals.
    mi.StrType: (str,),
    mi.BytesType: (bytes,),
    mi.ByteArrayType: (bytearray,),
    mi.MemoryViewType: (memoryview,),
    mi.DateTimeType: (datetime.datetime,),
    mi.DateType: (datetime.date,),
    mi.TimeType: (datetime.time,),
    mi.TimeDeltaType: (datetime.timedelta,),
    mi.UUIDType: (uuid.UUID,),
    mi.DecimalType: (decimal.Decimal,),
    mi.ListType: (list,),
    mi.SetType: (set,),
    mi.FrozenSetType: (frozenset,),
    mi.TupleType: (tuple,),
    mi.VarTupleType: (tuple,),
    mi.DictType: (dict,),
    mi.TypedDictType: (dict,),
}


def runtime_types(node: mi.Type) -> tuple[type, ...]:
    """The classes a value of this type can have; empty when they can't be listed."""
    match node:
        case mi.UnionType(types=alternatives):
            classes = [runtime_types(alternative) for alternative in alternatives]
            return sum(classes, ()) if all(classes) else ()
        case mi.Metadata(type=inner):
            return runtime_types(inner)
        case mi.StructType() | mi.DataclassType() | mi.NamedTupleType() | mi.EnumType():
            return (get_origin(node.cls) or node.cls,)
        case mi.LiteralType(values=values):
            return tuple(type(value) for value in values)
        case _:
            return _LEAF_TYPES.get(type(node), ())


def unsupported_class(node: mi.Type) -> type | None:
    """The first class below `node` that msgspec does not know how to write, or None."""
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, mi.CustomType):
            return node.cls
        record = getattr(node, "cls", None)
        if record is not None:
            if record in seen:
                continue
            seen.add(record)
        waiting.extend(child_types(node))
    return None


_Record = mi.StructType | mi.DataclassType | mi.TypedDictType


def _records(node: mi.Type) -> Iterator[_Record]:
    """The types below `node` that a row of named cells can become."""
    match node:
        case mi.UnionType(types=alternatives):
            for alternative in alternatives:
                yield from _records(alternative)
        case mi.Metadata(type=inner):
            yield from _records(inner)
        case mi.StructType() | mi.DataclassType() | mi.TypedDictType():
            yield node
        case _:
            return


def _tag_of(record: _Record) -> str | int | None:
    return record.tag if isinstance(record, mi.StructType) else None


def _nullable_fields(record: _Record) -> tuple[tuple[str, bool], ...]:
    """The fields that may be None, each with whether it must be there."""
    return tuple((field.encode_name, field.required) for field in record.fields if _allows_none(field.type))


def _allows_none(node: mi.Type) -> bool:
    match node:
        case mi.UnionType(types=alternatives):
            return any(_allows_none(alternative) for alternative in alternatives)
        case mi.Metadata(type=inner):
            return _allows_none(inner)
        case _:
            return isinstance(node, mi.NoneType)


def _is_absent_text(value: object) -> bool:
    return isinstance(value, str) and value in ABSENT_TEXTS
