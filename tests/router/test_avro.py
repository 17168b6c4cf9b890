"""Avro by itself: what fits a schema is written, what does not says where; schemas evolve."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigurationError, DecodeError, InvalidInput
from penstock.router.avro import AvroSchema, parsed_schema


def schema(*fields: dict[str, Any], name: str = "Departure") -> AvroSchema:
    return AvroSchema(msgspec.json.encode({"type": "record", "name": name, "fields": list(fields)}).decode())


AIRPORT = {"name": "airport", "type": "string"}
DELAY = {"name": "delay", "type": ["null", "double"], "default": None}
SEATS = {"name": "seats", "type": "int"}


def of(kind: Any) -> AvroSchema:
    return schema({"name": "x", "type": kind})


def test_bytes_are_those_of_the_specification() -> None:
    # By hand: length 3 (zig-zag 06) and JFK; branch 1 (02) and 2.5 in eight bytes.
    golden = bytes.fromhex("06 4a464b 02 0000000000000440")

    assert schema(AIRPORT, DELAY).writer()({"airport": "JFK", "delay": 2.5}) == golden
    assert schema(AIRPORT, DELAY).reader()(golden) == {"airport": "JFK", "delay": 2.5}


def test_a_field_that_is_missing_gets_its_default() -> None:
    both = schema(AIRPORT, DELAY)

    assert both.reader()(both.writer()({"airport": "JFK"})) == {"airport": "JFK", "delay": None}


UTC = datetime.UTC
KINDS = [
    pytest.param("null", None, None, id="null"),
    pytest.param("boolean", True, True, id="boolean"),
    pytest.param("int", -(2**31), -(2**31), id="int"),
    pytest.param("long", 2**63 - 1, 2**63 - 1, id="long"),
    pytest.param("double", 1, 1.0, id="int as double"),
    pytest.param("bytes", b"\xff", b"\xff", id="bytes"),
    pytest.param({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", "B", id="enum"),
    pytest.param({"type": "fixed", "name": "F", "size": 2}, b"ab", b"ab", id="fixed"),
    pytest.param({"type": "array", "items": "int"}, [1, 2], [1, 2], id="array"),
    pytest.param({"type": "map", "values": "int"}, {"a": 1}, {"a": 1}, id="map"),
    pytest.param(["null", "string", "int"], 3, 3, id="union"),
    pytest.param({"type": "int", "logicalType": "date"}, "2024-02-29", datetime.date(2024, 2, 29), id="date"),
    pytest.param({"type": "int", "logicalType": "time-millis"}, "01:02:03", datetime.time(1, 2, 3), id="time"),
    pytest.param(
        {"type": "long", "logicalType": "timestamp-millis"},
        datetime.datetime(2024, 1, 2, 3, tzinfo=UTC),
        datetime.datetime(2024, 1, 2, 3, tzinfo=UTC),
        id="timestamp",
    ),
    pytest.param(
        {"type": "long", "logicalType": "local-timestamp-micros"},
        "2024-01-02T03:00:00.000001",
        datetime.datetime(2024, 1, 2, 3, 0, 0, 1),  # noqa: DTZ001  # Without a zone on purpose.
        id="local timestamp",
    ),
    pytest.param(
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, "-1.50", decimal.Decimal("-1.50"),
        id="decimal",
    ),
    pytest.param({"type": "string", "logicalType": "uuid"}, str(uuid.UUID(int=5)), uuid.UUID(int=5), id="uuid"),
    pytest.param(["null", {"type": "int", "logicalType": "date"}], "2024-02-29", datetime.date(2024, 2, 29),
        id="date in a union"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "plain", "read"), KINDS)
def test_plain_values_become_what_the_schema_says(kind: Any, plain: Any, read: Any) -> None:
    made = of(kind)
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode({"x": plain}))

    assert made.reader()(made.writer()(travelled)) == {"x": read}


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("int", 1.5, "$.x expected int, got float 1.5"),
        ("int", 2**31, "$.x expected int, got int 2147483648"),
        ("long", True, "$.x expected long, got bool true"),
        ("string", None, "$.x expected string, got None"),
        ("string", b"a", "$.x expected string, got bytes of length 1"),
        ("bytes", "YQ==", '$.x expected bytes, got str "YQ=="'),
        (["null", "double"], "late", '$.x expected null or double, got str "late"'),
        ({"type": "array", "items": "int"}, [1, "b"], '$.x[1] expected int, got str "b"'),
        ({"type": "array", "items": "int"}, {}, "$.x expected array, got object {}"),
        ({"type": "map", "values": "int"}, {"a": "b"}, '$.x.a expected int, got str "b"'),
        ({"type": "map", "values": "int"}, {1: 1}, "$.x expected map with texts as keys, got int 1"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "C", '$.x expected one of A, B, got str "C"'),
        ({"type": "fixed", "name": "F", "size": 2}, b"abc", "$.x expected 2 bytes, got bytes of length 3"),
        ({"type": "int", "logicalType": "date"}, "tomorrow", '$.x expected date, got str "tomorrow"'),
        ({"type": "long", "logicalType": "timestamp-millis"}, "2024-01-02T03:00:00", "$.x expected a time with a zone"),
        (
            {"type": "long", "logicalType": "local-timestamp-millis"},
            "2024-01-02T03:00:00Z",
            "$.x expected a time without a zone",
        ),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
            "1.234",
            "$ expected a value of the schema, got Scale provided in schema does not match the decimal",
        ),
    ],
)
def test_a_value_that_does_not_fit_says_where(kind: Any, value: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        of(kind).writer()({"x": value})

    assert caught.value.code == "PEN0243"
    assert caught.value.message.startswith(says)


def test_fields_must_be_those_of_the_schema() -> None:
    write = schema(AIRPORT, SEATS).writer()

    with pytest.raises(InvalidInput, match=r"\$\.seats expected a value, got nothing"):
        write({"airport": "JFK"})
    with pytest.raises(InvalidInput, match=r"\$\.gate expected no such field of record Departure, got str"):
        write({"airport": "JFK", "seats": 3, "gate": "B12"})
    with pytest.raises(InvalidInput, match=r"\$ expected record Departure, got array"):
        write([])


def test_a_schema_may_contain_itself() -> None:
    tree = AvroSchema(
        '{"type":"record","name":"Tree","fields":[{"name":"label","type":"string"},'
        '{"name":"children","type":{"type":"array","items":"Tree"},"default":[]}]}'
    )
    value = {"label": "a", "children": [{"label": "b", "children": []}]}

    assert tree.reader()(tree.writer()(value)) == value
    with pytest.raises(InvalidInput, match=r"\$\.children\[0\]\.label expected string"):
        tree.writer()({"label": "a", "children": [{"label": 1}]})


def test_of_several_records_the_first_that_fits_is_written() -> None:
    first = {"type": "record", "name": "First", "fields": [{"name": "a", "type": "double"}]}
    second = {"type": "record", "name": "Second", "fields": [{"name": "a", "type": ["int", "string"]}]}
    made = of([first, second])

    assert made.writer()({"x": {"a": 1}})[0] == 0
    assert made.writer()({"x": {"a": "1"}})[0] == 2
    with pytest.raises(InvalidInput, match=r"\$\.x\.a expected int or string, got None|expected double"):
        made.writer()({"x": {"a": None}})


def test_schemas_may_build_on_others() -> None:
    text = '{"type":"record","name":"Flight","fields":[{"name":"from","type":"geo.Airport"}]}'
    airport = '{"type":"record","name":"Airport","namespace":"geo","fields":[{"name":"code","type":"string"}]}'
    made = AvroSchema(text, [airport])

    assert made.reader()(made.writer()({"from": {"code": "JFK"}})) == {"from": {"code": "JFK"}}


def test_old_records_are_read_as_the_newer_schema() -> None:
    old, new = schema(AIRPORT, SEATS), schema(AIRPORT, DELAY, {"name": "gate", "type": "string", "default": "?"})
    body = old.writer()({"airport": "JFK", "seats": 3})

    assert old.reader(new)(body) == {"airport": "JFK", "delay": None, "gate": "?"}


def test_a_schema_that_can_not_be_resolved_refuses_the_record() -> None:
    old, new = schema(AIRPORT), schema(AIRPORT, SEATS)

    with pytest.raises(DecodeError, match=r"\$ can't be read as the schema of the ingress") as caught:
        old.reader(new)(old.writer()({"airport": "JFK"}))

    assert caught.value.code == "PEN0242"


@pytest.mark.parametrize("body", [b"", b"\x06JF", b"\xff" * 12, b"\x06JFK\x00more", b"\x02\xff\x00", b"\x02a\x04"])
def test_damaged_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError, match=r"\$ expected Avro, got") as caught:
        schema(AIRPORT, DELAY).reader()(body)

    assert caught.value.code == "PEN0201"


@pytest.mark.parametrize("text", ["{", '"unheard-of"', '{"type":"record"}', "3"])
def test_a_text_that_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="has a schema that is not Avro") as caught:
        parsed_schema(text, "Avro(schema=...)")

    assert caught.value.code == "PEN0141"
