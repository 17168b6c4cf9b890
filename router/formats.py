"""From a declared format to what reads and writes its records: `decoder_for` and `encoder_for`.

What always holds: decoding and encoding a record never wait. A record whose schema is not known yet is not decoded:
`MissingSchema` says which schema to `learn`, and then the same record is tried again, so that order is kept. A registry
that does not answer is `Unavailable`, and never a fault of the record; only a registry that says it has no such schema
makes it one. Every refusal of a record is a DecodeError, of a row an InvalidInput, with a code and the path in the
value.

    ingress                                              egress
    decoder.decode(value, headers)                       await encoder.prepare()        once, at the start
      -> MissingSchema: await learn_patiently(...)       encoder.encode(row)            in the sink
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import msgspec

from penstock.errors import ConfigurationError, DecodeError, Unavailable
from penstock.functions.codecs import Codec, MsgspecCodec
from penstock.functions.formats import (
    Avro,
    CloudEvents,
    Format,
    Json,
    JsonSchema,
    Msgpack,
    Protobuf,
    Raw,
    SchemaRegistry,
)
from penstock.functions.mismatch import explain_mismatch
from penstock.records import EgressRow
from penstock.router.cloudevents import Headers, read_event, write_event
from penstock.router.schema_frames import encode_indexes, frame, split_frame, split_indexes

if TYPE_CHECKING:
    from penstock.router.schema_registry import Registered, Registries, RegistryClient, Schema

Read: TypeAlias = Callable[[bytes], Any]
"""From the bytes of a value to the value. Raises DecodeError."""

_SCHEMAS_MAX = 1_000
"""Prepared readers of one decoder. A topic has a handful of schemas."""
_UNKNOWN_S = 30.0
"""How long an id that the registry does not know is not asked for again: many bad records shall not mean as many
questions, and a schema that is registered late shall be found."""
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 10.0


class MissingSchema(Exception):
    """A record can't be decoded before its schema was learnt. Nothing is wrong with it."""

    def __init__(self, schema_id: int) -> None:
        super().__init__(schema_id)
        self.schema_id = schema_id


# Reading.


class Decoder(ABC):
    """Reads the values of one ingress."""

    passthrough = False
    """Whether the bytes of a value are what the function's codec reads, so that a driver that needs no field of it can
    hand them on; the function then checks them."""

    @abstractmethod
    def decode(self, value: bytes, headers: Headers) -> tuple[Any, Headers]:
        """The value of the declared type (of builtins if there is none), and the headers of its message.

        Raises DecodeError for a record to refuse, and MissingSchema for one to try again after `learn`.
        """

    async def learn(self, schema_id: int) -> None:
        """Get ready for records with this schema. Raises Unavailable while the registry does not answer."""
        raise AssertionError("a format without a registry misses no schema")


def decoder_for(
    format: Format,
    codec: Codec[Any] | None,
    registries: Registries,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Decoder:
    """What reads values in `format` as those of `codec`; None gives builtins (or protobuf messages), for a router.

    Raises ConfigurationError if the two don't go together, or if the format needs a package that is not installed.
    """
    match format:
        case Msgpack():
            return _PlainDecoder(_msgpack_reader(codec), passthrough=isinstance(codec, MsgspecCodec))
        case Json():
            return _PlainDecoder(_json_reader(codec))
        case Raw():
            if codec is not None and codec.types != (bytes,):
                raise _other_type("Raw()", "bytes", codec)
            return _PlainDecoder(bytes, passthrough=True)
        case Avro():
            return _avro_decoder(format, codec, registries, clock)
        case Protobuf():
            return _protobuf_decoder(format, codec, registries, clock)
        case JsonSchema():
            read = _json_reader(codec)
            return _FramedDecoder("JSON", lambda _: read, registries.client(format.registry), clock)
        case CloudEvents():
            return _CloudEventsDecoder(decoder_for(format.data, codec, registries, clock=clock))
        case _:
            raise _no_format(format)


async def learn_patiently(
    decoder: Decoder,
    schema_id: int,
    *,
    warn: Callable[[Unavailable], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """`decoder.learn`, repeated for as long as the registry does not answer; `warn` gets each reason."""
    backoff_s = _BACKOFF_FIRST_S
    while True:
        try:
            return await decoder.learn(schema_id)
        except Unavailable as error:
            warn(error)
        await sleep(backoff_s)
        backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


class _PlainDecoder(Decoder):
    """Of values that say nothing about their schema."""

    def __init__(self, read: Read, *, passthrough: bool = False) -> None:
        self._read = read
        self.passthrough = passthrough

    def decode(self, value: bytes, headers: Headers) -> tuple[Any, Headers]:
        return self._read(value), headers


class _FramedDecoder(Decoder):
    """Of values that name their schema in a registry. `prepare` makes a reader for each, or raises DecodeError."""

    def __init__(
        self,
        kind: str,
        prepare: Callable[[Registered], Read],
        client: RegistryClient,
        clock: Callable[[], float],
    ) -> None:
        self._kind = kind
        self._prepare = prepare
        self._client = client
        self._clock = clock
        self._readers: dict[int, Read] = {}
        self._unknown: dict[int, float] = {}
        """Ids that the registry did not know, and when they may be asked for again."""

    def decode(self, value: bytes, headers: Headers) -> tuple[Any, Headers]:
        schema_id, body = split_frame(value)
        read = self._readers.get(schema_id)
        if read is None or (self._unknown and self._is_due(schema_id)):
            raise MissingSchema(schema_id)
        return read(body), headers

    async def learn(self, schema_id: int) -> None:
        self._unknown.pop(schema_id, None)
        try:
            registered = await self._client.fetch(schema_id)
        except DecodeError as error:
            self._keep(schema_id, _refusing(error))
            self._unknown[schema_id] = self._clock() + _UNKNOWN_S
            return
        try:
            self._keep(schema_id, self._reader_of(registered))
        except DecodeError as error:
            self._keep(schema_id, _refusing(error))

    def _reader_of(self, registered: Registered) -> Read:
        if registered.schema.kind != self._kind:
            raise _unusable(registered.id, f"it is of type {registered.schema.kind}, not {self._kind}")
        return self._prepare(registered)

    def _keep(self, schema_id: int, read: Read) -> None:
        if len(self._readers) >= _SCHEMAS_MAX:
            oldest = next(iter(self._readers))
            del self._readers[oldest]
            self._unknown.pop(oldest, None)
        self._readers[schema_id] = read

    def _is_due(self, schema_id: int) -> bool:
        return schema_id in self._unknown and self._clock() >= self._unknown[schema_id]


class _CloudEventsDecoder(Decoder):
    """Of events whose data another decoder reads."""

    def __init__(self, data: Decoder) -> None:
        self._data = data

    def decode(self, value: bytes, headers: Headers) -> tuple[Any, Headers]:
        return self._data.decode(*read_event(value, headers))

    async def learn(self, schema_id: int) -> None:
        await self._data.learn(schema_id)


def _refusing(error: DecodeError) -> Read:
    def read(body: bytes) -> NoReturn:
        # A new one each time: an exception that is raised twice carries the traces of both.
        raise DecodeError(error.code, error.message, path=error.path, expected=error.expected, got=error.got)

    return read


# From bytes to values.


def _json_reader(codec: Codec[Any] | None) -> Read:
    decode = msgspec.json.decode if codec is None else codec.decode_json
    return _explained(decode, codec, "JSON")


def _msgpack_reader(codec: Codec[Any] | None) -> Read:
    if codec is None:
        return _explained(msgspec.msgpack.decode, None, "msgpack")
    if isinstance(codec, MsgspecCodec):
        return _explained(codec.decode, codec, "msgpack")
    unpack, convert = _explained(msgspec.msgpack.decode, None, "msgpack"), _explained_builtins(codec)
    return lambda body: convert(unpack(body))


def _explained(decode: Callable[[bytes], Any], codec: Codec[Any] | None, what: str) -> Read:
    """`decode`, whose failures say where in the value they are."""

    def read(body: bytes) -> Any:
        try:
            return decode(body)
        except Exception as error:  # Codecs raise what is quickest; a type may run user code.
            raise _explanation(error, body, codec, what) from error

    return read


def _explained_builtins(codec: Codec[Any] | None) -> Callable[[Any], Any]:
    """What makes values of `codec` of an Avro record, or of another value without a type."""
    if codec is None:
        return lambda value: value
    convert = codec.from_builtins

    def checked(value: Any) -> Any:
        try:
            return convert(value)
        except Exception as error:
            raise _explanation(error, value, codec, codec.name) from error

    return checked


def _explanation(error: Exception, data: Any, codec: Codec[Any] | None, what: str) -> DecodeError:
    if codec is not None:
        return codec.explain(error, data)
    return explain_mismatch(error, data, type_name=what)


def _avro_decoder(
    format: Avro, codec: Codec[Any] | None, registries: Registries, clock: Callable[[], float]
) -> Decoder:
    avro = _avro()
    own = None if format.schema is None else avro.parsed_schema(_text(format.schema), "Avro(schema=...)")
    convert = _explained_builtins(codec)

    def reader_of(schema: Any, wanted: Any = None) -> Read:
        parse = schema.reader(wanted)
        return lambda body: convert(parse(body))

    if format.registry is None:
        assert own is not None, "Avro without a registry has a schema"
        return _PlainDecoder(reader_of(own))

    def prepare(registered: Registered) -> Read:
        try:
            schema = avro.AvroSchema(registered.schema.text, [other.text for _, other in registered.referred])
        except ValueError as error:
            raise _unusable(registered.id, str(error)) from error
        return reader_of(schema, own)

    return _FramedDecoder("AVRO", prepare, registries.client(format.registry), clock)


def _protobuf_decoder(
    format: Protobuf, codec: Codec[Any] | None, registries: Registries, clock: Callable[[], float]
) -> Decoder:
    if codec is not None and format.message not in codec.types:
        raise _other_type(f"Protobuf({format.message.__name__})", format.message.__name__, codec)
    parse = _explained(format.message.FromString, codec, format.message.__name__)
    if format.registry is None:
        return _PlainDecoder(parse, passthrough=codec is not None)
    proto_schema = _proto_schema()
    name = str(format.message.DESCRIPTOR.full_name)

    def prepare(registered: Registered) -> Read:
        messages = proto_schema.message_places(registered.schema.text)
        if name not in messages:
            raise _unusable(registered.id, f"it has no message {name}, only {', '.join(messages) or 'none'}")
        ours = frozenset(messages[name])

        def read(body: bytes) -> Any:
            place, message = split_indexes(body)
            if place not in ours:
                other = next((other for other, places in messages.items() if place in places), f"number {place}")
                raise _unusable(registered.id, f"the record holds message {other}, not {name}")
            return parse(message)

        return read

    return _FramedDecoder("PROTOBUF", prepare, registries.client(format.registry), clock)


# Writing.


class Encoder(ABC):
    """Writes the rows of one egress: `prepare` first, which may be repeated until it succeeds."""

    as_is = False
    """Whether rows leave as they are, so that `encode` need not be called."""

    async def prepare(self) -> None:  # noqa: B027  # Most formats have nothing to prepare.
        """Find the schema to write with.

        Raises Unavailable while the registry does not answer, and ConfigurationError if there is no such schema.
        """

    @abstractmethod
    def encode(self, row: EgressRow) -> EgressRow:
        """The row as it leaves, of one whose value the format's own `encode` made. Its cause is final.

        Raises InvalidInput for a value that does not fit the schema.
        """


def encoder_for(format: Format, registries: Registries, *, topic: str | None = None) -> Encoder:
    """What writes rows in `format`. `topic` names the subject of a schema unless the format does.

    Raises ConfigurationError if the declaration lacks something, or needs a package that is not installed.
    """
    match format:
        case Msgpack() | Json() | Raw():
            return _PlainEncoder()
        case Avro(registry=None):
            assert format.schema is not None, "Avro without a registry has a schema"
            return _BareAvroEncoder(_avro().parsed_schema(_text(format.schema), "Avro(schema=...)").writer())
        case Protobuf(registry=None):
            return _PlainEncoder()
        case Avro(registry=SchemaRegistry() as registry):
            _avro()
            return _AvroEncoder(format, registries.client(registry), _subject(format, topic))
        case Protobuf(registry=SchemaRegistry() as registry):
            _proto_schema()
            return _ProtobufEncoder(format, registries.client(registry), _subject(format, topic))
        case JsonSchema():
            _json_schema()
            return _JsonSchemaEncoder(format, registries.client(format.registry), _subject(format, topic))
        case CloudEvents():
            return _CloudEventsEncoder(format, encoder_for(format.data, registries, topic=topic))
        case _:
            raise _no_format(format)


class _PlainEncoder(Encoder):
    """Of formats whose `encode` made the final bytes."""

    as_is = True

    def encode(self, row: EgressRow) -> EgressRow:
        return row


class _BareAvroEncoder(Encoder):
    """Of Avro without a registry."""

    def __init__(self, write: Callable[[Any], bytes]) -> None:
        self._write = write

    def encode(self, row: EgressRow) -> EgressRow:
        return row._replace(value=self._write(msgspec.msgpack.decode(row.value)))


class _AvroEncoder(Encoder):
    def __init__(self, format: Avro, client: RegistryClient, subject: str) -> None:
        self._format = format
        self._client = client
        self._subject = subject
        self._id = 0
        self._write: Callable[[Any], bytes] | None = None

    async def prepare(self) -> None:
        registered = await _schema_to_write(
            self._client, self._subject, "AVRO", self._format.schema, register=self._format.auto_register
        )
        try:
            referred = [other.text for _, other in registered.referred]
            schema = _avro().AvroSchema(registered.schema.text, referred)
        except ValueError as error:
            raise _cannot_write(self._subject, str(error)) from error
        self._id, self._write = registered.id, schema.writer()

    def encode(self, row: EgressRow) -> EgressRow:
        assert self._write is not None, "prepare() comes first"
        return row._replace(value=frame(self._id, self._write(msgspec.msgpack.decode(row.value))))


class _JsonSchemaEncoder(Encoder):
    def __init__(self, format: JsonSchema, client: RegistryClient, subject: str) -> None:
        self._format = format
        self._client = client
        self._subject = subject
        self._id = 0
        self._check: Callable[[bytes], None] | None = None

    async def prepare(self) -> None:
        registered = await _schema_to_write(
            self._client, self._subject, "JSON", self._format.schema, register=self._format.auto_register
        )
        referred = [(uri, other.text) for uri, other in registered.referred]
        check = _json_schema().validator(registered.schema.text, referred, f"Subject {self._subject}")
        self._id, self._check = registered.id, check

    def encode(self, row: EgressRow) -> EgressRow:
        assert self._check is not None, "prepare() comes first"
        self._check(row.value)
        return row._replace(value=frame(self._id, row.value))


class _ProtobufEncoder(Encoder):
    def __init__(self, format: Protobuf, client: RegistryClient, subject: str) -> None:
        self._format = format
        self._client = client
        self._subject = subject
        self._head = b""

    async def prepare(self) -> None:
        descriptor = self._format.message.DESCRIPTOR
        if self._format.auto_register:
            registered = await self._client.register(self._subject, await self._registered_file(descriptor.file))
        else:
            registered = await self._client.latest(self._subject)
        if registered.schema.kind != "PROTOBUF":
            raise _cannot_write(self._subject, f"its schema is of type {registered.schema.kind}, not PROTOBUF")
        messages = _proto_schema().message_places(registered.schema.text)
        if descriptor.full_name not in messages:
            listed = ", ".join(messages) or "none"
            raise _cannot_write(self._subject, f"its schema has no message {descriptor.full_name}, only {listed}")
        self._head = frame(registered.id, b"", encode_indexes(messages[descriptor.full_name].declared))

    def encode(self, row: EgressRow) -> EgressRow:
        assert self._head, "prepare() comes first"
        return row._replace(value=self._head + row.value)

    async def _registered_file(self, file: Any) -> Schema:
        """The schema of `file`, after those it imports were registered, each under the name of its file."""
        from penstock.router.schema_registry import Reference, Schema

        references = []
        for other in _proto_schema().imported_files(file):
            imported = await self._registered_file(other)
            await self._client.register(other.name, imported)
            version = await self._client.version_of(other.name, imported)
            references.append(Reference(other.name, other.name, version))
        return Schema("PROTOBUF", _proto_schema().schema_text(file), tuple(references))


class _CloudEventsEncoder(Encoder):
    def __init__(self, format: CloudEvents, data: Encoder) -> None:
        self._format = format
        self._data = data

    async def prepare(self) -> None:
        await self._data.prepare()

    def encode(self, row: EgressRow) -> EgressRow:
        format = self._format
        value, headers = write_event(
            self._data.encode(row).value,
            row.headers,
            id=f"{row.cause:016x}",  # As the Idempotency-Key of HTTP: the same when the row is written again.
            source=format.source,
            type=format.type,
            content_type=format.data.content_type,
            structured=format.mode == "structured",
        )
        return row._replace(value=value, headers=headers)


async def _schema_to_write(
    client: RegistryClient, subject: str, kind: str, text: object, *, register: bool
) -> Registered:
    from penstock.router.schema_registry import Schema

    if text is None:
        registered = await client.latest(subject)
        if registered.schema.kind != kind:
            raise _cannot_write(subject, f"its schema is of type {registered.schema.kind}, not {kind}")
        return registered
    schema = Schema(kind, _text(text))
    return await client.register(subject, schema) if register else await client.look_up(subject, schema)


def _subject(format: Avro | Protobuf | JsonSchema, topic: str | None) -> str:
    if format.subject is not None:
        return format.subject
    if topic is None:
        raise ConfigurationError(
            "PEN0141",
            f"{type(format).__name__}() has no subject, and its egress no topic to name one after. Give subject=...",
        )
    return f"{topic}-value"


def _text(schema: object) -> str:
    assert isinstance(schema, str), "formats keep schemas as text"
    return schema


# Modules for what may not be installed.


def _avro() -> Any:
    try:
        from penstock.router import avro
    except ImportError as error:
        raise _not_installed("Avro", "fastavro", "avro") from error
    return avro


def _proto_schema() -> Any:
    try:
        from penstock.router import proto_schema
    except ImportError as error:
        raise _not_installed("Protobuf", "protobuf", "protobuf") from error
    return proto_schema


def _json_schema() -> Any:
    try:
        from penstock.router import json_schema
    except ImportError as error:
        raise _not_installed("JsonSchema", "jsonschema-rs", "jsonschema") from error
    return json_schema


# What is wrong.


def _not_installed(format: str, package: str, extra: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0146",
        f"The format {format} needs {package}, which is missing. Install it: pip install 'penstock[{extra}]'.",
    )


def _other_type(format: str, given: str, codec: Codec[Any]) -> ConfigurationError:
    return ConfigurationError(
        "PEN0145",
        f"The format {format} reads {given}, but the function takes {codec.name}. Annotate its message so, or give the "
        "ingress another format.",
    )


def _no_format(format: object) -> ConfigurationError:
    return ConfigurationError(
        "PEN0141",
        f"{format!r} is no format. Use Msgpack, Json, Raw, Avro, Protobuf, JsonSchema or CloudEvents.",
    )


def _unusable(schema_id: int, reason: str) -> DecodeError:
    return DecodeError(
        "PEN0242",
        f"$ can't be read by schema id {schema_id}: {reason.rstrip('.')}. Correct the producer, or give the ingress "
        "the format of its records.",
    )


def _cannot_write(subject: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        "PEN0161",
        f"The subject {subject} can't be written with: {reason.rstrip('.')}. Register the right schema, or name "
        "another subject.",
    )
