"""Values of pydantic models. Imported only when a function uses one.

They travel as msgpack of `model_dump()`, not as pydantic's JSON, which writes NaN as null and can't hold
every bytes value. Fields go by their names, whatever their aliases are, and secrets in clear: what is stored
must come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeVar, get_args

import msgspec
import pydantic
from pydantic_core import to_jsonable_python

from penstock.errors import DecodeError
from penstock.functions.codecs import Codec, without_absent_texts
from penstock.functions.mismatch import describe, mismatch
from penstock.functions.shapes import Shape

P = TypeVar("P", bound=pydantic.BaseModel)


class PydanticCodec(Codec[P]):
    """Validated by pydantic on every arrival: safe, and several times slower than a Struct."""

    def __init__(self, model: type[P]) -> None:
        self.name = model.__name__
        self.types = (model,)
        self.encode = self._encode
        self.decode = self._decode
        self._model = model
        self._nullable = tuple(
            (field.alias or name, field.is_required())
            for name, field in model.model_fields.items()
            if field.annotation is None or NoneType in get_args(field.annotation)
        )

    def _encode(self, value: P) -> bytes:
        return _ENCODER.encode(value.model_dump(by_alias=False, round_trip=True))

    def _decode(self, data: bytes) -> P:
        # Not strict: msgpack has no sets, enums or times, and their stand-ins must be accepted also by strict
        # models.
        return self._model.model_validate(_DECODER.decode(data), strict=False, by_alias=False, by_name=True)

    def decode_json(self, data: bytes) -> P:
        return self._model.model_validate_json(data, strict=True)

    def convert(self, value: object) -> P:
        if isinstance(value, Mapping):
            value = without_absent_texts(value, self._nullable)
        return self._model.model_validate(value, strict=False)

    def from_builtins(self, value: object) -> P:
        # Not strict: a list stands for a set, and a text for a member of an enum.
        return self._model.model_validate(value, strict=False)

    def to_builtins(self, value: P) -> Any:
        return value.model_dump(mode="json", by_alias=True)

    def schema(self) -> dict[str, Any]:
        return self._model.model_json_schema()

    def shape(self) -> Shape:
        schema = self._model.model_json_schema(by_alias=False)
        parts = dict(schema.get("$defs", {}))
        if "$ref" not in schema:  # A recursive model is among its own parts.
            parts[self.name] = schema
        top = schema.get("$ref", self.name).rpartition("/")[2]
        return {
            "type": {"ref": top},
            "definitions": {name: _record(part, parts) for name, part in parts.items() if not _is_choice(part)},
        }

    def _mismatch(self, error: Exception, data: object) -> DecodeError:
        if not isinstance(error, pydantic.ValidationError):
            return super()._mismatch(error, data)
        first = error.errors(include_url=False)[0]
        path = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        got = "nothing" if first["type"] == "missing" else describe(first["input"])
        expected = "a value" if first["type"] == "missing" else f"a valid value ({first['msg']})"
        return mismatch(path, expected, got)


def _is_choice(schema: Mapping[str, Any]) -> bool:
    return "enum" in schema or "const" in schema


def _record(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Shape:
    """A model as a record of a Shape."""
    required = schema.get("required", ())
    return {
        "fields": {
            name: {
                "type": _type(field, parts),
                **(
                    {}
                    if name in required
                    else {"default": field["default"]}
                    if "default" in field
                    else {"absent": True}
                ),
            }
            for name, field in schema.get("properties", {}).items()
        }
    }


def _type(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """The type of a Shape that a JSON schema describes; its own text where it is none of the usual ones."""
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            return _type(parts[name], parts) if _is_choice(parts[name]) else {"ref": name}
        case {"enum": [*values]}:
            return ["choice", schema.get("title", "Literal"), *values]
        case {"const": value}:
            return ["choice", "Literal", value]
        case {"anyOf": [*alternatives]}:
            return ["union", *(_type(alternative, parts) for alternative in alternatives)]
        case {"type": "array", "items": dict(items)}:
            return ["list", _type(items, parts)]
        case {"type": "object", "additionalProperties": dict(of_values)}:
            return ["dict", "string", _type(of_values, parts)]
        case {"type": "null"}:
            return "none"
        case {"type": str(kind), **rest}:
            limits = {name: rest[name] for name in sorted(rest) if name not in _WORDING}
            return f"{kind}({', '.join(f'{name}={value}' for name, value in limits.items())})" if limits else kind
        case _:
            text = msgspec.json.encode({name: schema[name] for name in schema if name not in _WORDING}, order="sorted")
            return "any" if text == b"{}" else text.decode()


_WORDING = frozenset({"default", "description", "examples", "title"})
"""What a JSON schema says beside the type."""


def _leaf(value: Any) -> Any:
    """What stands for a value that msgpack lacks."""
    if isinstance(value, pydantic.SecretStr | pydantic.SecretBytes):
        return value.get_secret_value()
    return to_jsonable_python(value)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_leaf)
_DECODER = msgspec.msgpack.Decoder()
