"""What the values of records look like to other programs, as plain values such as `Json()` or `Avro(registry=...)`.

A format is named on an ingress or egress that exchanges records with others. Like those it is checked when it is made,
never changes and opens nothing. The one thing it *does* is `encode`: inside `ctx.emit` it turns a value into what
travels to the egress, so a value that has no such form fails the handler that emitted it. What needs a schema or the
network (reading, and the bytes that finally leave) is done by `penstock.router.formats`.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.plain import to_json, to_msgpack, to_row

CloudEventsMode = Literal["binary", "structured"]


@dataclass(frozen=True, slots=True)
class SchemaRegistry:
    """A schema registry with the REST interface of Confluent's, which others have as well.

    Texts may name what must not stand in the source: `${NAME}` is a variable of the environment, `file:/path` the
    content of a file. Either `username` and `password` or `token` are presented. Certificates are files in PEM form.
    """

    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    """Presented as `Authorization: Bearer ...`."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    certificate_file: str = ""
    """What this client proves itself with; `key_file` holds its key, unless the certificate's file does."""
    key_file: str = ""
    timeout_s: float = 10.0
    """For one question, from connecting to the end of the answer."""

    def __post_init__(self) -> None:
        owner = f"SchemaRegistry({self.url!r})"
        parts = urlsplit(self.url)
        if not self.url.startswith(("${", "file:")) and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise _wrong(f"{owner} is no address of a server. Write http://host:port or https://host:port.")
        if parts.username or parts.password:
            raise _wrong("SchemaRegistry has a password in its url, which is shown. Give username= and password=.")
        if self.token and (self.username or self.password):
            raise _wrong(f"{owner} has a token besides username or password. Give one of both.")
        if bool(self.username) != bool(self.password):
            raise _wrong(f"{owner} has only one of username and password. Give both.")
        if self.key_file and not self.certificate_file:
            raise _wrong(f"{owner} has key_file without certificate_file. Give both.")
        if not self.timeout_s > 0:
            raise _wrong(f"{owner} has timeout_s={self.timeout_s!r}. Give a number above 0.")


class Format(ABC):
    """How the value of a record is written. Use one of the classes derived from it."""

    __slots__ = ()

    content_type: ClassVar[str]
    """What a CloudEvent with such data says they are."""

    @abstractmethod
    def encode(self, value: Any) -> bytes:
        """What travels to the egress. Raises InvalidInput for a value that has no form in this format."""


@dataclass(frozen=True, slots=True)
class Msgpack(Format):
    """MessagePack, as messages are written inside Penstock: the fastest format."""

    content_type: ClassVar[str] = "application/vnd.msgpack"

    def encode(self, value: Any) -> bytes:
        """The value in msgpack, which keeps bytes and times as they are."""
        return to_msgpack(value, "msgpack")


@dataclass(frozen=True, slots=True)
class Json(Format):
    """A JSON text."""

    content_type: ClassVar[str] = "application/json"

    def encode(self, value: Any) -> bytes:
        """One JSON text. JSON has no NaN or infinity: they are written as null."""
        return to_json(value, "JSON")


@dataclass(frozen=True, slots=True)
class Raw(Format):
    """Bytes as they are, for functions that take `bytes`, and handlers that emit them."""

    content_type: ClassVar[str] = "application/octet-stream"

    def encode(self, value: Any) -> bytes:
        """The bytes themselves."""
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InvalidInput(
                "PEN0206",
                f"Value of type {type(value).__name__} can't be written with Raw(), which takes bytes. Emit bytes, or "
                "give the egress another format, such as Json().",
            )
        return bytes(value)


@dataclass(frozen=True, slots=True)
class Avro(Format):
    """Avro, with a schema registry or with one `schema` known to both sides.

    With a registry each record names the schema it was written with (Confluent's framing: a zero byte, and the id in
    four). It is read with that schema and, if `schema` is given, resolved to it: new fields get their defaults. Without
    a registry a record is nothing but Avro of `schema`.

    An egress writes with `schema`, which must be registered under `subject` unless `auto_register` is set; or without
    one, with the newest of the subject. `subject` is `<topic>-value` if left out. Needs the extra:
    `pip install 'penstock[avro]'`.
    """

    registry: SchemaRegistry | None = None
    subject: str | None = None
    schema: str | Mapping[str, Any] | None = field(default=None, repr=False)
    """A text in JSON, or what it says as a dictionary."""
    auto_register: bool = False
    content_type: ClassVar[str] = "application/avro"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _schema_text(self.schema, "Avro"))
        if self.registry is None and self.schema is None:
            raise _wrong("Avro() has neither a registry nor a schema. Give one of them, or both.")
        _check_subject(self.registry, self.subject, self.auto_register, "Avro")
        if self.auto_register and self.schema is None:
            raise _wrong("Avro(auto_register=True) has no schema to register. Give schema=...")

    def encode(self, value: Any) -> bytes:
        """The value in msgpack, less the tag of a message. The egress makes Avro of it."""
        if isinstance(value, msgspec.Struct) and value.__struct_config__.tag_field is not None:
            value = to_row(value, "Avro", keep=_MSGPACK_KEEPS)
        return to_msgpack(value, "Avro")


@dataclass(frozen=True, slots=True)
class Protobuf(Format):
    """Protobuf messages of one generated class, bare or in the framing of a schema registry.

    With a registry each record names its schema and the message in it (Confluent's framing: a zero byte, the id in
    four, and indexes that lead to the message). A record of another message than `message` is refused. An egress looks
    the message up in the newest schema of `subject`, or registers the file of the class if `auto_register` is set.
    `subject` is `<topic>-value` if left out. Needs the extra: `pip install 'penstock[protobuf]'`.
    """

    message: type[Any]
    registry: SchemaRegistry | None = None
    subject: str | None = None
    auto_register: bool = False
    content_type: ClassVar[str] = "application/x-protobuf"

    def __post_init__(self) -> None:
        message: object = self.message
        if not (isinstance(message, type) and hasattr(message, "SerializeToString")):
            raise _wrong(f"Protobuf({message!r}) names no message. Give a class that protoc has generated.")
        _check_subject(self.registry, self.subject, self.auto_register, "Protobuf")

    def encode(self, value: Any) -> bytes:
        """The message in the bytes of protobuf, without framing."""
        if type(value) is not self.message:
            raise InvalidInput(
                "PEN0206",
                f"Value of type {type(value).__name__} can't be written with Protobuf({self.message.__name__}). Emit a "
                f"{self.message.__name__}.",
            )
        data: bytes = value.SerializeToString(deterministic=True)
        return data


@dataclass(frozen=True, slots=True)
class JsonSchema(Format):
    """JSON in the framing of a schema registry: a zero byte, the id of a JSON schema in four, the text.

    What is read is checked against the type of the message. What is written is checked against `schema`, which must be
    registered under `subject` unless `auto_register` is set; or without one, against the newest of the subject.
    `subject` is `<topic>-value` if left out. Writing needs the extra: `pip install 'penstock[jsonschema]'`.
    """

    registry: SchemaRegistry
    subject: str | None = None
    schema: str | Mapping[str, Any] | None = field(default=None, repr=False)
    """A text in JSON, or what it says as a dictionary."""
    auto_register: bool = False
    content_type: ClassVar[str] = "application/octet-stream"
    """With the framing it is no JSON text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _schema_text(self.schema, "JsonSchema"))
        _check_subject(self.registry, self.subject, self.auto_register, "JsonSchema")
        if self.auto_register and self.schema is None:
            raise _wrong("JsonSchema(auto_register=True) has no schema to register. Give schema=...")

    def encode(self, value: Any) -> bytes:
        """One JSON text. The egress checks and frames it."""
        return to_json(value, "JSON")


@dataclass(frozen=True, slots=True)
class CloudEvents(Format):
    """CloudEvents 1.0 as records of Kafka: the attributes beside the data, or both in one JSON object.

    Read are both modes: a handler finds the attributes in the headers of its message (`ce_id`, `ce_source`, `ce_type`,
    ...) and the data, which are in the format `data`, in the message. Written is `mode`: "binary" puts the attributes
    into headers of the record, "structured" puts all into its value. `source` and `type` are those of every event that
    is written; a header `ce_type` given to `ctx.emit` wins, as do others (`ce_subject`, `ce_time`). The id of an event
    stays the same when it is written again.
    """

    data: Format = Json()
    source: str = ""
    type: str = ""
    mode: CloudEventsMode = "binary"
    content_type: ClassVar[str] = "application/cloudevents+json"

    def __post_init__(self) -> None:
        data: object = self.data
        if not isinstance(data, Format) or isinstance(data, CloudEvents):
            raise _wrong(f"CloudEvents(data={data!r}) has no format for its data. Give one, such as Json().")
        if self.mode not in ("binary", "structured"):
            raise ConfigurationError(
                "PEN0140",
                f"The mode of CloudEvents is {self.mode!r}, not one of binary, structured. Leave it out for binary.",
            )

    def encode(self, value: Any) -> bytes:
        """The data. The egress makes an event of them."""
        return self.data.encode(value)


_MSGPACK_KEEPS = (
    bytes,
    bytearray,
    memoryview,
    datetime.datetime,
    datetime.date,
    datetime.time,
    decimal.Decimal,
    uuid.UUID,
)
"""What must not become text before it is msgpack: bytes would be in base64, times would lose what they are."""

_SUBJECT = re.compile(r"[^\x00-\x1f]+")


def _check_subject(registry: object, subject: str | None, auto_register: bool, owner: str) -> None:
    if registry is not None and not isinstance(registry, SchemaRegistry):
        raise _wrong(f"{owner}(registry={registry!r}) is no registry. Give SchemaRegistry(url).")
    if registry is None and (subject is not None or auto_register):
        raise _wrong(f"{owner} has a subject or auto_register without a registry. Give registry=SchemaRegistry(url).")
    if subject is not None and not _SUBJECT.fullmatch(subject):
        raise _wrong(f"{owner}(subject={subject!r}) has no usable subject. Leave it out for <topic>-value.")


def _schema_text(schema: object, owner: str) -> str | None:
    """The schema as one text, however it was given, so that equal formats are equal."""
    if schema is None:
        return None
    try:
        parsed = msgspec.json.decode(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping | list | str):
            raise TypeError(f"{type(parsed).__name__} is no schema")
        return msgspec.json.encode(parsed).decode()
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise _wrong(
            f"{owner}(schema=...) can't be read as JSON: {error}. Give a JSON text or a dictionary."
        ) from error


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError("PEN0141", message)
