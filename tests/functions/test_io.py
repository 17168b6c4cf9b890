"""Declarations are complete and consistent when they exist, and their rows are the bytes that will be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.io import (
    FileEgress,
    FileIngress,
    GeneratorIngress,
    HttpEgress,
    MemoryEgress,
    MemoryIngress,
    PostgresEgress,
    StdoutEgress,
)
from penstock.records import EgressRow


class Delay(msgspec.Struct):
    airport: str
    minutes: float | None = None


class Tagged(msgspec.Struct, tag=True):
    airport: str


@dataclass
class Flight:
    origin: str
    number: int


class Carrier(BaseModel):
    code: str


@pytest.mark.parametrize(
    ("path", "format_"),
    [
        ("flights.csv", "csv"),
        ("data/*.jsonl", "jsonl"),
        ("events.ndjson.gz", "jsonl"),
        ("flights.CSV.ZIP", "csv"),
        ("flights.zip::flights.csv", "csv"),
        ("flights.csv.zip::other.jsonl", "jsonl"),
    ],
)
def test_the_format_of_a_file_follows_from_its_suffix(path: str, format_: str) -> None:
    assert FileIngress(path).format == format_


def test_a_given_format_wins_over_the_suffix() -> None:
    assert FileIngress("flights.csv", format="jsonl").format == "jsonl"


DSN = "postgresql://localhost/test"


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (
            lambda: FileIngress("flights.txt"),
            (
                "PEN0140 The format of FileIngress('flights.txt') is None, not one of csv, jsonl. Give "
                'format="csv" or '
                'format="jsonl".'
            ),
        ),
        (lambda: FileIngress(""), "PEN0141 FileIngress(path='') needs the name of a file. Give it as text."),
        (
            lambda: FileIngress("a.csv", rate=0),
            "PEN0141 FileIngress('a.csv') has rate=0. Give a number above 0.",
        ),
        (
            lambda: FileIngress("a.csv", record_bytes_max=-1),
            "PEN0141 FileIngress('a.csv') has record_bytes_max=-1. Give a number above 0.",
        ),
        (
            lambda: FileIngress("a.csv", columns=("x", "x")),
            "PEN0143 FileIngress('a.csv') has columns=('x', 'x'). Give a tuple of names, none empty and none twice.",
        ),
        (
            lambda: FileIngress("a.jsonl", columns=("x",)),
            "PEN0143 FileIngress('a.jsonl') has columns, but JSON lines name their own fields. Remove columns.",
        ),
        (
            lambda: FileIngress("a.csv", delimiter='"'),
            (
                "PEN0143 FileIngress('a.csv') has delimiter='\"'. Give one character that is neither a quote nor a "
                "line end, "
                'such as ";".'
            ),
        ),
        (
            lambda: GeneratorIngress(iter([])),  # type: ignore[arg-type]
            (
                "PEN0141 GeneratorIngress(factory=<list_iterator>) can't be called. Give a function of one argument, "
                "the number of the record to start at."
            ),
        ),
        (
            lambda: GeneratorIngress(iter, format="xml"),  # type: ignore[arg-type]
            (
                'PEN0140 The format of GeneratorIngress is \'xml\', not one of msgpack, json. Give "msgpack", "json" '
                "or "
                "leave it out."
            ),
        ),
        (
            lambda: FileEgress("out", format="csv"),
            (
                "PEN0143 FileEgress('out') writes csv with columns=None: CSV needs them, JSON has none. Name them: "
                "columns=(...)."
            ),
        ),
        (
            lambda: FileEgress("out", columns=("a",)),
            (
                "PEN0143 FileEgress('out') writes jsonl with columns=('a',): CSV needs them, JSON has none. Remove "
                "columns, or write CSV."
            ),
        ),
        (
            lambda: FileEgress("out", prefix="../x"),
            (
                "PEN0141 FileEgress('out') has prefix='../x', which begins the name of each part. Use letters, "
                "digits, '_', '.', '-'."
            ),
        ),
        (
            lambda: FileEgress("out", part_seconds_max=0),
            "PEN0141 FileEgress('out') has part_seconds_max=0. Give a number above 0.",
        ),
        (
            lambda: FileEgress("out", delivery="maybe"),  # type: ignore[arg-type]
            (
                "PEN0140 The delivery of FileEgress('out') is 'maybe', not one of exactly-once, eager, "
                "at-least-once. Leave it "
                'out, or use "at-least-once".'
            ),
        ),
        (
            lambda: PostgresEgress(DSN, ""),
            "PEN0141 PostgresEgress(table='') needs the name of a table. Give it as text.",
        ),
        (
            lambda: HttpEgress("ftp://host/x"),
            (
                "PEN0141 HttpEgress('ftp://host/x') is no address of a server. Write http://host/path or "
                "https://host/path."
            ),
        ),
        (
            lambda: HttpEgress("http://host/x", method="GET"),
            (
                "PEN0140 The method of HttpEgress('http://host/x') is 'GET', not one of POST, PUT, PATCH. Use one "
                "that carries a body."
            ),
        ),
        (
            lambda: HttpEgress("http://host/x", delivery="exactly-once"),
            (
                "PEN0142 HttpEgress('http://host/x') can't deliver exactly once: its rows and the marker that "
                "prevents repeats "
                'can\'t become visible in one step. Use delivery="at-least-once"; or write to files or PostgreSQL, '
                "which "
                "can."
            ),
        ),
        (
            lambda: StdoutEgress(delivery="exactly-once"),
            (
                "PEN0142 StdoutEgress can't deliver exactly once: its rows and the marker that prevents repeats "
                "can't become "
                'visible in one step. Use delivery="at-least-once"; or write to files or PostgreSQL, which can.'
            ),
        ),
    ],
)
def test_a_declaration_that_can_not_work_says_so_at_once(declare: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare()

    said = str(caught.value)
    if "factory=<" in said:  # The representation of the iterator holds its address.
        said = (
            said[: said.index("factory=<")]
            + "factory=<list_iterator>"
            + said[said.index(")", said.index("factory=<")) :]
        )
    assert said == text


@pytest.mark.parametrize("delivery", ["exactly-once", "eager", "at-least-once"])
def test_files_and_databases_offer_every_delivery(delivery: Any) -> None:
    assert FileEgress("out", delivery=delivery).delivery == delivery
    assert PostgresEgress(DSN, "t", delivery=delivery).delivery == delivery


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(PostgresEgress("postgresql://me:secret@host/db", "t"))
    assert "secret" not in repr(HttpEgress("http://host/x", headers={"Authorization": "secret"}))


# Rows.

ENCODINGS = [
    ({"a": [1, None]}, b'{"a":[1,null]}\n'),
    (Delay("JFK", 12.5), b'{"airport":"JFK","minutes":12.5}\n'),
    (Flight("JFK", 7), b'{"origin":"JFK","number":7}\n'),
    (Carrier(code="AA"), b'{"code":"AA"}\n'),
    ("two\nlines", b'"two\\nlines"\n'),
    (datetime(2013, 1, 1, 5, tzinfo=UTC), b'"2013-01-01T05:00:00Z"\n'),
]


@pytest.mark.parametrize(("value", "row"), ENCODINGS)
def test_a_row_of_json_is_one_line(value: object, row: bytes) -> None:
    assert FileEgress("out").encode(value) == row
    assert StdoutEgress().encode(value) == row


def test_a_protobuf_message_is_written_as_its_json() -> None:
    message = Struct()
    message.update({"airport": "JFK"})

    assert FileEgress("out").encode(message) == b'{"airport":"JFK"}\n'


def test_a_row_of_csv_has_the_columns_in_their_order() -> None:
    egress = FileEgress("out", format="csv", columns=("airport", "minutes", "note"))

    assert egress.part_header == b"airport,minutes,note\n"
    assert egress.encode(Delay("JFK", 12.5)) == b"JFK,12.5,\n"
    assert egress.encode({"note": 'a "quote", and more', "minutes": None}) == b',,"a ""quote"", and more"\n'
    assert egress.encode({"note": [1, 2], "minutes": True}) == b',true,"[1,2]"\n'


def test_the_tag_of_a_message_is_no_column_unless_one_asks_for_it() -> None:
    message = Tagged("JFK")

    assert FileEgress("out", format="csv", columns=("airport",)).encode(message) == b"JFK\n"
    assert FileEgress("out", format="csv", columns=("type", "airport")).encode(message) == b"Tagged,JFK\n"
    assert PostgresEgress(DSN, "t").encode(message) == b'{"airport":"JFK"}'
    assert PostgresEgress(DSN, "t", columns=("type", "airport")).encode(message) == b'{"type":"Tagged","airport":"JFK"}'


def test_a_row_for_a_table_is_an_object_whose_members_are_the_columns() -> None:
    egress = PostgresEgress(DSN, "delays", columns=("airport", "minutes"))

    assert egress.encode(Delay("JFK")) == b'{"airport":"JFK","minutes":null}'
    assert egress.encode({"minutes": 3}) == b'{"airport":null,"minutes":3}'
    assert PostgresEgress(DSN, "delays").encode({"minutes": 3}) == b'{"minutes":3}'


def test_bytes_for_a_table_are_written_as_postgresql_reads_bytea() -> None:
    assert PostgresEgress(DSN, "blobs").encode({"data": b"\x00\xff"}) == b'{"data":"\\\\x00ff"}'


def test_a_backslash_before_u0000_is_not_taken_for_a_nul() -> None:
    assert PostgresEgress(DSN, "t").encode({"path": "\\u0000"}) == b'{"path":"\\\\u0000"}'


def test_a_body_for_http_is_json_or_bytes_as_they_are() -> None:
    egress = HttpEgress("http://host/x")

    assert egress.encode(Delay("JFK")) == b'{"airport":"JFK","minutes":null}'
    assert egress.encode(b"<xml/>") == b"<xml/>"


CSV = FileEgress("out", format="csv", columns=("a",))
TABLE = PostgresEgress(DSN, "delays")


@pytest.mark.parametrize(
    ("egress", "value", "text"),
    [
        (
            FileEgress("out"),
            object(),
            (
                "PEN0206 Value of type object can't be written to a file of JSON lines: objects of type object have "
                "no JSON form. Emit builtins, a struct, a dataclass or a pydantic model."
            ),
        ),
        (
            MemoryEgress(),
            object(),
            (
                "PEN0206 Value of type object can't be written to memory: objects of type object have no JSON form. "
                "Emit builtins, a struct, a dataclass or a pydantic model."
            ),
        ),
        (
            CSV,
            {"a": 1, "b": 2},
            (
                "PEN0206 Row for a CSV file has fields that are no columns of it: b. Columns: a. Add them to "
                "columns, or leave them out of the row."
            ),
        ),
        (
            CSV,
            [1],
            (
                "PEN0206 Value of type list can't be written to a CSV file: its columns have no names. Emit a "
                "mapping, a struct or a dataclass."
            ),
        ),
        (
            TABLE,
            {},
            "PEN0206 A row without columns can't be written to table delays. Give it fields.",
        ),
        (
            TABLE,
            {"note": "a\0b"},
            "PEN0206 Text with a NUL character can't be stored in table delays: PostgreSQL has none. Remove it.",
        ),
    ],
)
def test_a_value_that_can_not_be_written_is_refused_where_it_is_emitted(
    egress: FileEgress | PostgresEgress | MemoryEgress, value: object, text: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        egress.encode(value)

    assert str(caught.value) == text


def test_a_value_that_contains_itself_is_refused_too() -> None:
    loop: list[object] = []
    loop.append(loop)

    with pytest.raises(InvalidInput, match="PEN0206 Value of type list"):
        FileEgress("out").encode(loop)


# Memory.


def test_memory_shows_values_as_their_type() -> None:
    egress = MemoryEgress(type=Delay)
    egress.rows.append(EgressRow(egress.encode(Delay("JFK", 1.0)), 1))

    assert egress.values() == [Delay("JFK", 1.0)]


def test_memory_ingress_tells_its_listeners_and_ends_once() -> None:
    ingress = MemoryIngress()
    heard: list[int] = []
    ingress.listeners.append(lambda: heard.append(len(ingress.records)))

    ingress.feed(1, 2)
    ingress.finish()

    assert heard == [2, 2]
    assert ingress.finished
    with pytest.raises(ConfigurationError) as caught:
        ingress.feed(3)
    assert str(caught.value) == (
        "PEN0141 MemoryIngress.feed() after finish(): its end was announced. Feed first, then finish."
    )
