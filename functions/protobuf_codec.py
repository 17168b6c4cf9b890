"""Values of protobuf messages. Imported only when a function uses one.

Their bytes are protobuf's own, so other languages read them; they are written deterministically, so that
equal values have equal bytes within one build of the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock.functions.codecs import Codec, without_absent_texts
from penstock.functions.mismatch import describe, mismatch
from penstock.functions.shapes import Shape

P = TypeVar("P", bound=Message)


class ProtobufCodec(Codec[P]):
    """One generated message class."""

    def __init__(self, message: type[P]) -> None:
        self.name = message.__name__
        self.types = (message,)
        self.encode = _encode
        self.decode = message.FromString
        self._message = message
        self._nullable = tuple(
            (field.name, False) for field in message.DESCRIPTOR.fields if field.has_presence and not field.is_required
        )

    def decode_json(self, data: bytes) -> P:
        return json_format.Parse(data, self._message())

    def convert(self, value: object) -> P:
        if not isinstance(value, Mapping):
            raise mismatch("$", self.name, describe(value))
        return json_format.ParseDict(dict(without_absent_texts(value, self._nullable)), self._message())

    def from_builtins(self, value: object) -> P:
        if not isinstance(value, Mapping):
            raise mismatch("$", self.name, describe(value))
        return json_format.ParseDict(dict(value), self._message())

    def to_builtins(self, value: P) -> Any:
        return json_format.MessageToDict(value, preserving_proto_field_name=True)

    def schema(self) -> dict[str, Any]:
        descriptor = self._message.DESCRIPTOR
        return {
            "type": "object",
            "title": descriptor.full_name,
            "properties": {field.json_name: _field_schema(field) for field in descriptor.fields},
        }

    def shape(self) -> Shape:
        definitions: dict[str, Any] = {}
        _define(self._message.DESCRIPTOR, definitions)
        return {"type": {"ref": self._message.DESCRIPTOR.full_name}, "definitions": definitions}


def _encode(value: Message) -> bytes:
    return value.SerializeToString(deterministic=True)


def _define(descriptor: Any, definitions: dict[str, Any]) -> None:
    if descriptor.full_name in definitions:
        return
    fields: dict[str, Any] = {}
    definitions[descriptor.full_name] = {"fields": fields}
    for field in descriptor.fields:
        # By number, which is what the bytes carry: protobuf lets names change.
        fields[str(field.number)] = {"type": _type(field), **({} if field.is_required else {"absent": True})}
        if field.message_type is not None:
            _define(field.message_type, definitions)


def _type(field: Any) -> Any:
    single = {"ref": field.message_type.full_name} if field.message_type is not None else _KINDS[field.type]
    return ["list", single] if field.is_repeated else single


_KINDS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}

_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_UINT32: "integer",
}
"""64-bit numbers, enums and bytes are strings in protobuf's JSON, as strings are."""


def _field_schema(field: Any) -> dict[str, Any]:
    if field.message_type is not None:
        # A map is an object, but what a message is differs: a Timestamp is a text, a ListValue an array.
        is_map = field.message_type.GetOptions().map_entry
        return {"type": "object"} if is_map else {"type": "array"} if field.is_repeated else {}
    single = {"type": _JSON_TYPES.get(field.cpp_type, "string")}
    return {"type": "array", "items": single} if field.is_repeated else single
