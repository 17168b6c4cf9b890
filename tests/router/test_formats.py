"""Formats from end to end: what an egress writes an ingress reads, and what can't be read or written says why."""

from __future__ import annotations

import datetime
import decimal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pydantic
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from penstock.errors import ConfigurationError, DecodeError, InvalidInput, Unavailable
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
from penstock.functions.state import Message
from penstock.functions.types import codec_for
from penstock.records import EgressRow
from penstock.router.formats import Decoder, Encoder, MissingSchema, decoder_for, encoder_for, learn_patiently
from penstock.router.schema_registry import Registries
from tests.router.registry_stub import RegistryStub, serving
from tests.router.sink_contract import synchronous


class Departure(Message):
    airport: str
    delay: float | None = None


class Gated(Message):
    airport: str
    gate: str
    delay: float | None = None


class Model(pydantic.BaseModel):
    airport: str
    delay: float | None = None


class Payment(Message):
    amount: decimal.Decimal
    due: datetime.date
    at: datetime.datetime
    receipt: bytes


AVRO = {
    "type": "record",
    "name": "Departure",
    "fields": [
        {"name": "airport", "type": "string"},
        {"name": "delay", "type": ["null", "double"], "default": None},
    ],
}
AVRO_TEXT = msgspec.json.encode(AVRO).decode()
PAYMENT = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "due", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "receipt", "type": "bytes"},
    ],
}
JSON_SCHEMA = {
    "type": "object",
    "properties": {"airport": {"type": "string"}, "delay": {"type": ["number", "null"]}},
    "required": ["airport"],
}
PROTO = """
syntax = "proto3";
package shop;
message Refund { string id = 1; }
message Order { string id = 1; int64 total = 2; }
"""


def _shop() -> tuple[Any, Any]:
    """The classes protoc would generate of PROTO, with an import."""
    pool = descriptor_pool.DescriptorPool()
    money = descriptor_pb2.FileDescriptorProto(name="money.proto", package="shop", syntax="proto3")
    money.message_type.add(name="Money")
    file = descriptor_pb2.FileDescriptorProto(
        name="shop.proto", package="shop", syntax="proto3", dependency=["money.proto"]
    )
    field = descriptor_pb2.FieldDescriptorProto
    refund, order = file.message_type.add(name="Refund"), file.message_type.add(name="Order")
    for message in (refund, order):
        message.field.add(name="id", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    order.field.add(name="total", number=2, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL)
    pool.Add(money)  # type: ignore[no-untyped-call, unused-ignore]
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    refund_class, order_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in ("Refund", "Order")
    )
    return refund_class, order_class


Refund, Order = _shop()
JFK = Departure("JFK", 2.5)


@asynccontextmanager
async def registry() -> AsyncIterator[tuple[RegistryStub, Registries]]:
    async with serving(RegistryStub()) as stub:
        registries = Registries({})
        try:
            yield stub, registries
        finally:
            await registries.close()


async def read(decoder: Decoder, value: bytes, headers: Any = ()) -> Any:
    """What a driver does with one record."""
    while True:
        try:
            return decoder.decode(value, headers)[0]
        except MissingSchema as missing:
            await decoder.learn(missing.schema_id)


def decoder_of(format: Format, type_: Any = Departure, registries: Registries | None = None) -> Decoder:
    return decoder_for(format, None if type_ is None else codec_for(type_), registries or Registries({}))


def row_of(format: Format, value: Any) -> EgressRow:
    """What `ctx.emit` makes, with the cause the engine gives it."""
    return EgressRow(format.encode(value), cause=0x7F)


def written(encoder: Encoder, format: Format, value: Any) -> bytes:
    return encoder.encode(row_of(format, value)).value


# Formats without a registry.

PLAIN = [
    pytest.param(Msgpack(), Departure, JFK, id="msgpack"),
    pytest.param(Msgpack(), Model, Model(airport="JFK"), id="msgpack of a model"),
    pytest.param(Msgpack(), bytes, b"\x00\xff", id="msgpack of bytes"),
    pytest.param(Msgpack(), Order, Order(id="7", total=3), id="msgpack of protobuf"),
    pytest.param(Json(), Departure, JFK, id="json"),
    pytest.param(Json(), Model, Model(airport="JFK", delay=1.0), id="json of a model"),
    pytest.param(Raw(), bytes, b"\x00\xff", id="raw"),
    pytest.param(Avro(schema=AVRO), Departure, JFK, id="avro"),
    pytest.param(Avro(schema=AVRO_TEXT), Model, Model(airport="", delay=None), id="avro of a model"),
    pytest.param(
        Avro(schema=PAYMENT),
        Payment,
        Payment(
            decimal.Decimal("1.50"),
            datetime.date(2024, 2, 29),
            datetime.datetime(2024, 1, 2, microsecond=1, tzinfo=datetime.UTC),
            b"\xff",
        ),
        id="avro of times and decimals",
    ),
    pytest.param(Avro(schema='"bytes"'), bytes, b"\xff", id="avro of bytes"),
    pytest.param(Protobuf(Order), Order, Order(id="7", total=3), id="protobuf"),
]


@pytest.mark.parametrize(("format", "type_", "value"), PLAIN)
@synchronous
async def test_what_is_written_is_read(format: Format, type_: Any, value: Any) -> None:
    registries = Registries({})
    encoder = encoder_for(format, registries)
    await encoder.prepare()

    data = written(encoder, format, value)

    assert await read(decoder_of(format, type_, registries), data) == value


@pytest.mark.parametrize(
    ("format", "value", "builtins"),
    [
        (Msgpack(), msgspec.msgpack.encode({"a": 1}), {"a": 1}),
        (Json(), b'{"a": 1}', {"a": 1}),
        (Raw(), b"\xff", b"\xff"),
        (Avro(schema=AVRO), b"\x06JFK\x00", {"airport": "JFK", "delay": None}),
        (Protobuf(Order), b"\x0a\x017", Order(id="7")),
    ],
)
def test_without_a_type_values_are_builtins(format: Format, value: bytes, builtins: Any) -> None:
    assert decoder_of(format, None).decode(value, [("trace", b"x")]) == (builtins, [("trace", b"x")])


@pytest.mark.parametrize(
    ("format", "type_", "value", "message"),
    [
        (Json(), Departure, b'{"airport":"JFK","delay":"late"}', '$.delay expected float | None, got str "late".'),
        (Json(), Departure, b"{", "$ expected Departure, got data that cannot be read: Input data was truncated."),
        (Json(), None, b"\xff", "$ expected JSON, got data that cannot be read: "),
        (Json(), Model, b'{"airport":1}', "$.airport expected a valid value"),
        (Msgpack(), Departure, b"\x80", "$.airport expected a value, got nothing."),
        (Msgpack(), Model, b"\x81\xa7airport\x01", "$.airport expected a valid value"),
        (Msgpack(), Departure, b"\xc1", "$ expected Departure, got data that cannot be read: "),
        (Avro(schema=AVRO), Departure, b"\x06JF", "$ expected Avro, got data that cannot be read: "),
        (Avro(schema='"string"'), Departure, b"\x06JFK", '$ expected object, got str "JFK".'),
        (Protobuf(Order), Order, b"\xff", "$ expected Order, got data that cannot be read: "),
    ],
)
def test_a_value_that_does_not_fit_its_type_says_where(format: Format, type_: Any, value: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decoder_of(format, type_).decode(value, ())

    assert caught.value.code == "PEN0201"
    assert caught.value.message.startswith(message)


def test_a_text_in_avro_is_no_number() -> None:
    class Seats(msgspec.Struct):
        seats: int | None

    format = Avro(schema={"type": "record", "name": "S", "fields": [{"name": "seats", "type": "string"}]})
    for text in ("12", ""):
        with pytest.raises(DecodeError, match=rf'\$\.seats expected int \| None, got str "{text}"'):
            decoder_of(format, Seats).decode(bytes([2 * len(text)]) + text.encode(), ())


@pytest.mark.parametrize(
    ("format", "type_", "passes"),
    [
        (Msgpack(), Departure, True),
        (Msgpack(), bytes, False),
        (Msgpack(), Model, False),
        (Json(), Departure, False),
        (Raw(), bytes, True),
        (Protobuf(Order), Order, True),
        (CloudEvents(data=Raw()), bytes, False),
    ],
)
def test_bytes_that_the_function_reads_itself_may_pass(format: Format, type_: Any, passes: bool) -> None:
    assert decoder_of(format, type_).passthrough is passes


# With a registry.


@pytest.mark.parametrize("auto_register", [True, False])
@synchronous
async def test_avro_with_a_registry_comes_back(auto_register: bool) -> None:
    async with registry() as (stub, registries):
        if not auto_register:
            stub.add("other-value", '"string"')
            stub.add("departures-value", AVRO_TEXT)
        format = Avro(registry=stub.spec, schema=AVRO, auto_register=auto_register)
        encoder = encoder_for(format, registries, topic="departures")
        await encoder.prepare()

        data = written(encoder, format, JFK)

        assert data.hex(" ") == f"00 00 00 00 0{1 if auto_register else 2} 06 4a 46 4b 02 00 00 00 00 00 00 04 40"
        assert await read(decoder_of(format, Departure, registries), data) == JFK


@synchronous
async def test_avro_is_written_with_the_newest_schema_of_its_subject() -> None:
    async with registry() as (stub, registries):
        stub.add("flights", '"string"')
        newest = stub.add("flights", AVRO_TEXT)
        format = Avro(registry=stub.spec, subject="flights")
        encoder = encoder_for(format, registries)
        await encoder.prepare()

        assert written(encoder, format, JFK)[:5] == b"\0" + newest.to_bytes(4, "big")


@synchronous
async def test_avro_schemas_evolve() -> None:
    newer = {**AVRO, "fields": [*AVRO["fields"], {"name": "gate", "type": "string", "default": "?"}]}
    async with registry() as (stub, registries):
        old = stub.add("departures-value", AVRO_TEXT)
        decoder = decoder_of(Avro(registry=stub.spec, schema=newer), Gated, registries)
        value = b"\0" + old.to_bytes(4, "big") + b"\x06JFK\x00"

        assert await read(decoder, value) == Gated("JFK", "?", None)

        strict = {**AVRO, "fields": [*AVRO["fields"], {"name": "gate", "type": "string"}]}
        decoder = decoder_of(Avro(registry=stub.spec, schema=strict), Gated, registries)
        with pytest.raises(DecodeError) as caught:
            await read(decoder, value)

    assert caught.value.code == "PEN0242"


@synchronous
async def test_avro_schemas_may_refer_to_others() -> None:
    flight = '{"type":"record","name":"Flight","fields":[{"name":"to","type":"Departure"}]}'
    async with registry() as (stub, registries):
        stub.add("departure", AVRO_TEXT)
        references = [{"name": "Departure", "subject": "departure", "version": 1}]
        stub.add("flights-value", flight, references=references)
        format = Avro(registry=stub.spec)
        encoder = encoder_for(format, registries, topic="flights")
        await encoder.prepare()
        value = {"to": {"airport": "JFK", "delay": None}}

        assert await read(decoder_of(format, None, registries), written(encoder, format, value)) == value


@synchronous
async def test_protobuf_names_its_message() -> None:
    async with registry() as (stub, registries):
        schema_id = stub.add("orders-value", PROTO, "PROTOBUF")
        format = Protobuf(Order, registry=stub.spec)
        encoder = encoder_for(format, registries, topic="orders")
        await encoder.prepare()

        data = written(encoder, format, Order(id="7", total=3))
        # Zero, the id, one index (02) which is 1 (02): the second message of the file.
        assert data.hex(" ") == f"00 00 00 00 0{schema_id} 02 02 0a 01 37 10 03"

        decoder = decoder_of(format, Order, registries)
        assert await read(decoder, data) == Order(id="7", total=3)
        with pytest.raises(DecodeError, match=r"the record holds message shop\.Refund, not shop\.Order") as caught:
            await read(decoder, data.replace(b"\x02\x02", b"\x00", 1))

    assert caught.value.code == "PEN0242"


@synchronous
async def test_protobuf_registers_what_it_imports() -> None:
    async with registry() as (stub, registries):
        format = Protobuf(Refund, registry=stub.spec, auto_register=True)
        encoder = encoder_for(format, registries, topic="refunds")
        await encoder.prepare()

        data = written(encoder, format, Refund(id="7"))

        assert stub.subjects() == {"money.proto": [1], "refunds-value": [2]}
        assert stub.text_of(2) == b64encode(Refund.DESCRIPTOR.file.serialized_pb).decode()
        assert data.hex(" ") == "00 00 00 00 02 00 0a 01 37"
        assert await read(decoder_of(format, Refund, registries), data) == Refund(id="7")


@synchronous
async def test_a_protobuf_schema_without_the_message_is_refused() -> None:
    async with registry() as (stub, registries):
        schema_id = stub.add("orders-value", 'syntax = "proto3"; message Other {}', "PROTOBUF")
        format = Protobuf(Order, registry=stub.spec)

        with pytest.raises(ConfigurationError, match=r"its schema has no message shop\.Order, only Other"):
            await encoder_for(format, registries, topic="orders").prepare()
        with pytest.raises(DecodeError, match=r"it has no message shop\.Order, only Other"):
            await read(decoder_of(format, Order, registries), bytes([0, 0, 0, 0, schema_id, 0]))


@synchronous
async def test_json_schema_comes_back() -> None:
    async with registry() as (stub, registries):
        format = JsonSchema(stub.spec, schema=JSON_SCHEMA, auto_register=True)
        encoder = encoder_for(format, registries, topic="departures")
        await encoder.prepare()

        data = written(encoder, format, {"airport": "JFK", "delay": 2.5})

        assert data == b'\0\0\0\0\x01{"airport":"JFK","delay":2.5}'
        assert await read(decoder_of(format, Departure, registries), data) == JFK


@synchronous
async def test_json_schemas_may_refer_to_others() -> None:
    async with registry() as (stub, registries):
        stub.add("airport", '{"type":"string","minLength":3}', "JSON")
        stub.add(
            "departures-value",
            '{"properties":{"airport":{"$ref":"https://example.com/airport.json"}}}',
            "JSON",
            [{"name": "https://example.com/airport.json", "subject": "airport", "version": 1}],
        )
        format = JsonSchema(stub.spec)
        encoder = encoder_for(format, registries, topic="departures")
        await encoder.prepare()

        with pytest.raises(InvalidInput, match=r"\$\.airport does not fit the schema of the egress"):
            written(encoder, format, {"airport": "J"})


FRAMED = [
    pytest.param(lambda spec: Avro(registry=spec), Departure, "AVRO", id="avro"),
    pytest.param(lambda spec: Protobuf(Order, registry=spec), Order, "PROTOBUF", id="protobuf"),
    pytest.param(JsonSchema, Departure, "JSON", id="json schema"),
    pytest.param(lambda spec: CloudEvents(data=JsonSchema(spec)), Departure, "JSON", id="cloud events"),
]
EVENT = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/"), ("ce_type", b"t")]


@pytest.mark.parametrize(("make", "type_", "kind"), FRAMED)
@synchronous
async def test_an_unknown_schema_id_is_a_fault_of_the_record(make: Any, type_: Any, kind: str) -> None:
    async with registry() as (stub, registries):
        decoder = decoder_of(make(stub.spec), type_, registries)

        codes = []
        for _ in range(3):
            with pytest.raises(DecodeError, match="got schema id 7") as caught:
                await read(decoder, b"\0\0\0\0\x07body", EVENT)
            codes.append(caught.value.code)

    assert codes == ["PEN0241"] * 3
    assert stub.asked == ["GET /schemas/ids/7"]


@pytest.mark.parametrize(("make", "type_", "kind"), FRAMED)
@synchronous
async def test_a_schema_of_another_type_refuses_the_record(make: Any, type_: Any, kind: str) -> None:
    other = "JSON" if kind == "AVRO" else "AVRO"
    async with registry() as (stub, registries):
        schema_id = stub.add("x", "{}", other)
        with pytest.raises(DecodeError, match=f"it is of type {other}, not {kind}") as caught:
            await read(decoder_of(make(stub.spec), type_, registries), bytes([0, 0, 0, 0, schema_id, 0]), EVENT)

    assert caught.value.code == "PEN0242"


@pytest.mark.parametrize(("make", "type_", "kind"), FRAMED)
@pytest.mark.parametrize("value", [b"", b"\0\0\0", b'{"airport":"JFK"}', b"\x01\0\0\0\x01{}"])
@synchronous
async def test_a_value_that_names_no_schema_is_refused(make: Any, type_: Any, kind: str, value: bytes) -> None:
    async with registry() as (stub, registries):
        with pytest.raises(DecodeError) as caught:
            await read(decoder_of(make(stub.spec), type_, registries), value, EVENT)

    assert caught.value.code == "PEN0240"
    assert stub.asked == []


@synchronous
async def test_a_registry_that_is_down_holds_the_record_up() -> None:
    """The record is neither refused nor skipped: it is decoded when the registry is back."""
    async with registry() as (stub, registries):
        schema_id = stub.add("departures-value", AVRO_TEXT)
        decoder = decoder_of(Avro(registry=stub.spec), Departure, registries)
        value = bytes([0, 0, 0, 0, schema_id]) + b"\x06JFK\x00"
        waits: list[float] = []
        warnings: list[Unavailable] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            stub.down = len(waits) < 8

        stub.down = True
        with pytest.raises(MissingSchema) as missing:
            decoder.decode(value, ())
        await learn_patiently(decoder, missing.value.schema_id, warn=warnings.append, sleep=sleep)

        assert decoder.decode(value, ()) == (Departure("JFK"), ())

    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert {warning.code for warning in warnings} == {"PEN0560"}
    assert len(warnings) == 8


@synchronous
async def test_an_unknown_id_is_asked_for_again_later() -> None:
    now = 0.0
    async with registry() as (stub, registries):
        decoder = decoder_for(Avro(registry=stub.spec), codec_for(Departure), registries, clock=lambda: now)
        value = b"\0\0\0\0\x01\x06JFK\x00"
        with pytest.raises(DecodeError):
            await read(decoder, value)
        stub.add("departures-value", AVRO_TEXT)
        now = 29.0
        with pytest.raises(DecodeError):
            await read(decoder, value)
        now = 31.0

        assert await read(decoder, value) == Departure("JFK")


@synchronous
async def test_a_schema_that_can_not_be_parsed_refuses_the_record() -> None:
    async with registry() as (stub, registries):
        schema_id = stub.add("x", '{"type":"record"}')
        with pytest.raises(DecodeError, match='"name" is a required field') as caught:
            await read(decoder_of(Avro(registry=stub.spec), Departure, registries), bytes([0, 0, 0, 0, schema_id]))

    assert caught.value.code == "PEN0242"


@synchronous
async def test_a_decoder_keeps_a_bounded_number_of_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.router.formats._SCHEMAS_MAX", 1)
    async with registry() as (stub, registries):
        stub.add("x", '"string"')
        stub.add("x", '"bytes"')
        decoder = decoder_of(Avro(registry=stub.spec), None, registries)

        assert [await read(decoder, bytes([0, 0, 0, 0, n, 2, 97])) for n in (1, 2, 1)] == ["a", b"a", "a"]


# Writing what does not fit.


@synchronous
async def test_a_value_that_does_not_fit_the_schema_is_refused() -> None:
    async with registry() as (stub, registries):
        stub.add("a-value", AVRO_TEXT)
        stub.add("j-value", msgspec.json.encode(JSON_SCHEMA).decode(), "JSON")
        avro, json = Avro(registry=stub.spec), JsonSchema(stub.spec)
        to_avro, to_json = (
            encoder_for(avro, registries, topic="a"),
            encoder_for(json, registries, topic="j"),
        )
        await to_avro.prepare()
        await to_json.prepare()
        bad = {"airport": "JFK", "delay": "late"}

        with pytest.raises(InvalidInput) as in_avro:
            written(to_avro, avro, bad)
        with pytest.raises(InvalidInput) as in_json:
            written(to_json, json, bad)

    assert in_avro.value.code == in_json.value.code == "PEN0243"
    assert in_avro.value.message.startswith('$.delay expected null or double, got str "late".')
    assert in_json.value.message.startswith("$.delay does not fit the schema of the egress: ")


def test_a_value_of_another_kind_fails_the_handler() -> None:
    for format, value in ((Raw(), "text"), (Protobuf(Order), Refund()), (Json(), object()), (Avro(schema=AVRO), {1j})):
        with pytest.raises(InvalidInput) as caught:
            format.encode(value)
        assert caught.value.code == "PEN0206"


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda spec: Avro(registry=spec), "AVRO", '{"type":"record"}'),
        (lambda spec: Avro(registry=spec), "JSON", "{}"),
        (JsonSchema, "JSON", '{"type":"nonsense"}'),
        (JsonSchema, "JSON", '{"$ref":"http://127.0.0.1:9/never-loaded.json"}'),
        (JsonSchema, "AVRO", '"string"'),
        (lambda spec: Protobuf(Order, registry=spec), "AVRO", '"string"'),
    ],
)
@synchronous
async def test_a_schema_that_can_not_be_written_with_is_a_matter_of_configuration(
    make: Any, kind: str, text: str
) -> None:
    async with registry() as (stub, registries):
        stub.add("t-value", text, kind)
        with pytest.raises(ConfigurationError) as caught:
            await encoder_for(make(stub.spec), registries, topic="t").prepare()

    assert caught.value.code == "PEN0161"


@synchronous
async def test_an_egress_waits_for_its_registry() -> None:
    async with registry() as (stub, registries):
        stub.add("t-value", AVRO_TEXT)
        format = Avro(registry=stub.spec)
        encoder = encoder_for(format, registries, topic="t")
        stub.down = True
        with pytest.raises(Unavailable):
            await encoder.prepare()
        stub.down = False
        await encoder.prepare()

        assert written(encoder, format, JFK).startswith(b"\0\0\0\0\x01")


# CloudEvents.


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    ("data", "type_", "value"),
    [
        (Json(), Departure, JFK),
        (Msgpack(), Departure, JFK),
        (Raw(), bytes, b"\xff"),
        (Avro(schema=AVRO), Departure, JFK),
        (Protobuf(Order), Order, Order(id="7")),
    ],
)
def test_events_come_back(mode: Any, data: Format, type_: Any, value: Any) -> None:
    format = CloudEvents(data=data, source="/flights", type="departed", mode=mode)
    row = row_of(format, value)._replace(headers=(("ce_subject", "JFK"), ("trace", "abc")), key=b"k")

    out = encoder_for(format, Registries({})).encode(row)
    read_back, headers = decoder_of(format, type_).decode(out.value, [(n, t.encode()) for n, t in out.headers])

    assert read_back == value
    assert out.key == b"k"
    assert dict(headers) == {
        "trace": b"abc",
        "content-type": data.content_type.encode(),
        "ce_specversion": b"1.0",
        "ce_id": b"000000000000007f",
        "ce_source": b"/flights",
        "ce_type": b"departed",
        "ce_subject": b"JFK",
    }


@synchronous
async def test_events_may_hold_what_a_registry_describes() -> None:
    async with registry() as (stub, registries):
        stub.add("t-value", msgspec.json.encode(JSON_SCHEMA).decode(), "JSON")
        format = CloudEvents(data=JsonSchema(stub.spec), source="/", type="t", mode="structured")
        encoder = encoder_for(format, registries, topic="t")
        await encoder.prepare()
        row = encoder.encode(row_of(format, {"airport": "JFK", "delay": 2.5}))
        headers = [(name, text.encode()) for name, text in row.headers]

        assert await read(decoder_of(format, Departure, registries), row.value, headers) == JFK


# Declarations.


@pytest.mark.parametrize(
    ("format", "type_"), [(Raw(), Departure), (Protobuf(Order), Departure), (Protobuf(Order), Refund)]
)
def test_a_format_that_reads_another_type_is_refused(format: Format, type_: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        decoder_of(format, type_)

    assert caught.value.code == "PEN0145"


REGISTRY = SchemaRegistry("http://registry.invalid:8081")


def test_a_subject_or_a_topic_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="has no subject, and its egress no topic"):
        encoder_for(Avro(registry=REGISTRY), Registries({}))


@pytest.mark.parametrize(
    ("package", "format", "extra"),
    [
        ("fastavro", Avro(registry=REGISTRY), "avro"),
        ("jsonschema_rs", JsonSchema(REGISTRY), "jsonschema"),
        ("google.protobuf.descriptor_pb2", Protobuf(Order, registry=REGISTRY), "protobuf"),
    ],
)
def test_a_missing_package_names_the_extra(
    package: str, format: Format, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("avro", "json_schema", "proto_schema"):
        monkeypatch.delitem(sys.modules, f"penstock.router.{module}", raising=False)
        monkeypatch.delattr(f"penstock.router.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ConfigurationError, match=rf"pip install 'penstock\[{extra}\]'") as caught:
        encoder_for(format, Registries({}), topic="t")

    assert caught.value.code == "PEN0146"


def test_what_is_no_format_is_refused() -> None:
    for use in (lambda: decoder_of("json"), lambda: encoder_for("json", Registries({}))):  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="'json' is no format"):
            use()
