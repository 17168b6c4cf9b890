"""CloudEvents 1.0 and their binding to Kafka: from a record to attributes and data, and back.

What always holds: an event that was read has its attributes in headers `ce_*` and the type of its data in
`content-type`, whichever mode it came in; an event without id, source, type or the known version is refused. Looks into
no data: see `penstock.router.formats`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from penstock.errors import DecodeError, InvalidInput

Headers: TypeAlias = Sequence[tuple[str, bytes]]
"""Of a record of Kafka."""

PREFIX = "ce_"
CONTENT_TYPE = "content-type"
_STRUCTURED = "application/cloudevents"
_STRUCTURED_JSON = "application/cloudevents+json"
_VERSION = "1.0"
_REQUIRED = ("id", "source", "type")
_ATTRIBUTE = re.compile(r"[a-z0-9]+")
_NO_ATTRIBUTES = ("data", "data_base64", "datacontenttype", "specversion")

_JSON_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


# Reading.


def read_event(value: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The data of an event, and the headers that tell the rest. Raises DecodeError for a record that is none."""
    content_type = _text_of(headers, CONTENT_TYPE)
    if content_type.lower().startswith(_STRUCTURED):
        return _read_structured(value, headers, content_type)
    version = _text_of(headers, PREFIX + "specversion")
    if not version:
        raise _no_event("neither a header ce_specversion nor the content-type application/cloudevents+json")
    _check(version, {name: _text_of(headers, PREFIX + name) for name in _REQUIRED})
    return value, headers


def _read_structured(value: bytes, headers: Headers, content_type: str) -> tuple[bytes, Headers]:
    if content_type.lower().partition(";")[0].strip() != _STRUCTURED_JSON:
        raise _no_event(f"content-type {content_type}")
    try:
        members = _JSON_MEMBERS.decode(value)
        attributes = {
            name: _attribute_text(name, raw)
            for name, raw in members.items()
            if name not in ("data", "data_base64") and bytes(raw) != b"null"
        }
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _no_event(f"data that cannot be read: {error}") from error
    _check(attributes.get("specversion", ""), attributes)
    data_type = attributes.pop("datacontenttype", "")
    read = [(PREFIX + name, text.encode()) for name, text in attributes.items()]
    if data_type:
        read.append((CONTENT_TYPE, data_type.encode()))
    kept = [header for header in headers if not header[0].lower().startswith((PREFIX, CONTENT_TYPE))]
    return _data_of(members, data_type), [*kept, *read]


def _attribute_text(name: str, raw: msgspec.Raw) -> str:
    value = msgspec.json.decode(raw)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise _no_event(f"{type(value).__name__} as its attribute {name}")


def _data_of(members: dict[str, msgspec.Raw], data_type: str) -> bytes:
    if "data_base64" in members:
        try:
            return b64decode(msgspec.json.decode(members["data_base64"], type=str), validate=True)
        except (binascii.Error, ValueError) as error:  # msgspec's errors are ValueErrors.
            raise _no_event(f"data_base64 that is none ({error})") from error
    if "data" not in members:
        return b""
    raw = bytes(members["data"])
    if raw.startswith(b'"') and not _is_json(data_type):
        return msgspec.json.decode(raw, type=str).encode()
    return raw


def _is_json(data_type: str) -> bool:
    """Whether data of this type stand in an event as they are. Without a type, data are JSON."""
    kind = data_type.partition(";")[0].strip().lower()
    return not kind or kind.endswith(("/json", "+json"))


def _check(version: str, attributes: dict[str, str]) -> None:
    if version != _VERSION:
        raise _no_event(f"specversion {version or 'missing'}")
    if missing := [name for name in _REQUIRED if not attributes.get(name)]:
        raise _no_event(f"no {' and no '.join(missing)}")


def _text_of(headers: Headers, name: str) -> str:
    for header, value in headers:
        if header.lower() == name and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise _no_event(f"a header {name} that is not UTF-8") from error
    return ""


def _no_event(got: str) -> DecodeError:
    expected = "a CloudEvent 1.0"
    return DecodeError(
        "PEN0244",
        f"$ expected {expected}, got a record with {got}. Correct its producer, or give the ingress the format of the "
        "records themselves.",
        expected=expected,
        got=got,
    )


# Writing.

TextHeaders: TypeAlias = tuple[tuple[str, str], ...]


def write_event(
    data: bytes, headers: TextHeaders, *, id: str, source: str, type: str, content_type: str, structured: bool
) -> tuple[bytes, TextHeaders]:
    """The value and headers of the record of an event.

    Headers `ce_*` and `content-type` win over the arguments; others stay beside it. Raises InvalidInput for one that is
    no attribute, and for an event without a type or source.
    """
    attributes = {"id": id, "source": source, "type": type}
    is_json = _is_json(content_type)
    others = []
    for name, text in headers:
        if name == CONTENT_TYPE:
            content_type = text
        elif name.startswith(PREFIX):
            attributes[_attribute_name(name)] = text
        else:
            others.append((name, text))
    if missing := [name for name in _REQUIRED if not attributes[name]]:
        raise InvalidInput(
            "PEN0244",
            f"An event has no {missing[0]}. Give CloudEvents({missing[0]}=...), or the header ce_{missing[0]} to "
            "ctx.emit.",
        )
    if structured:
        others.append((CONTENT_TYPE, f"{_STRUCTURED_JSON}; charset=UTF-8"))
        return _structured(data, attributes, content_type, is_json=is_json), tuple(others)
    others.append((CONTENT_TYPE, content_type))
    others.append((PREFIX + "specversion", _VERSION))
    others += [(PREFIX + name, text) for name, text in attributes.items()]
    return data, tuple(others)


def _attribute_name(header: str) -> str:
    name = header.removeprefix(PREFIX)
    if not _ATTRIBUTE.fullmatch(name) or name in _NO_ATTRIBUTES:
        raise InvalidInput(
            "PEN0244",
            f"Header {header!r} is no attribute of a CloudEvent. Name it ce_ and lower-case letters and digits; "
            "the version is set, and the type of the data is the header content-type.",
        )
    return name


def _structured(data: bytes, attributes: dict[str, str], content_type: str, *, is_json: bool) -> bytes:
    event: dict[str, Any] = {"specversion": _VERSION, **attributes, "datacontenttype": content_type}
    if is_json and _is_json(content_type):  # A header can rename JSON, but makes none of other bytes.
        event["data"] = msgspec.Raw(data)
    else:
        event["data_base64"] = b64encode(data).decode()
    return msgspec.json.encode(event)
