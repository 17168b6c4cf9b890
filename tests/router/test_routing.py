"""Records become messages, or errors that say where and why; declarations that can't work are found when compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigurationError, DecodeError, InvalidInput
from penstock.functions.io import FileIngress, GeneratorIngress, IngressSpec, MemoryIngress
from penstock.functions.types import Codec, codec_for
from penstock.router.lines import BadRecord
from penstock.router.routing import IngressRouter


class Flight(msgspec.Struct):
    origin: str
    carrier: str
    delay: float | None


class Note(msgspec.Struct):
    text: str


AIRPORT = "flights/airport"
TARGETS: dict[str, Codec[Any]] = {AIRPORT: codec_for(Flight), "flights/note": codec_for(Note), "any": codec_for(Any)}
CSV = FileIngress("departures.csv")
JSON = FileIngress("departures.jsonl")
ROW = {"origin": "JFK", "carrier": "AA", "delay": "12.5"}
JFK = msgspec.msgpack.encode(Flight("JFK", "AA", 12.5))


def resolve(target: Any) -> tuple[str, Codec[Any]]:
    if target not in TARGETS:
        raise ConfigurationError("PEN0105", f"{target} is no function of this application.")
    return target, TARGETS[target]


def compiled(spec: IngressSpec, **options: Any) -> IngressRouter:
    defaults: dict[str, Any] = {"to": AIRPORT, "key": "origin", "resolve": resolve, "message_bytes_max": 1_000_000}
    return IngressRouter.compile("flights/departures", spec, **(defaults | options))


def generated(format_: Any = None) -> GeneratorIngress:
    return GeneratorIngress(lambda start: iter(()), format=format_)


def locate(record: int) -> str:
    return f"departures.csv line {record + 2}"


# Values and ids.


def test_a_row_of_text_becomes_the_message_its_target_takes() -> None:
    assert compiled(CSV).route(ROW, "line 2") == [(AIRPORT, "JFK", JFK, None)]


def test_a_json_line_becomes_the_message_its_target_takes() -> None:
    record = b'{"origin":"JFK","carrier":"AA","delay":12.5}'

    assert compiled(JSON).route(record, "line 2") == [(AIRPORT, "JFK", JFK, None)]
    assert compiled(generated("json")).route(record, "line 2") == [(AIRPORT, "JFK", JFK, None)]


@pytest.mark.parametrize("record", [Flight("JFK", "AA", 12.5), ROW], ids=["value", "loose data"])
@pytest.mark.parametrize("spec", [generated(), MemoryIngress()], ids=["generator", "memory"])
def test_a_record_that_is_a_value_is_taken_as_it_is(spec: IngressSpec, record: object) -> None:
    assert compiled(spec).route(record, "record 1") == [(AIRPORT, "JFK", JFK, None)]


def test_a_pair_of_id_and_message_is_passed_on_untouched() -> None:
    router = compiled(generated("msgpack"), key=None)

    assert router.route(("JFK", b"anything"), "record 1") == [(AIRPORT, "JFK", b"anything", None)]
    chunk = router.route_chunk([("JFK", b"1"), ("EWR", b"2")], 0, locate)
    assert chunk.messages == [(AIRPORT, "JFK", b"1", None), (AIRPORT, "EWR", b"2", None)]
    assert list(chunk.owners) == [0, 1]


def test_a_key_may_be_a_function_of_the_value() -> None:
    router = compiled(CSV, key=lambda flight: f"{flight.carrier}-{flight.origin}")

    assert router.route(ROW, "line 2")[0][1] == "AA-JFK"


def test_a_whole_number_is_an_id_in_digits() -> None:
    assert compiled(CSV, key=lambda flight: 2013).route(ROW, "line 2")[0][1] == "2013"


def test_an_untyped_target_takes_rows_as_they_are() -> None:
    router = compiled(CSV, to="any")

    assert router.route(ROW, "line 2") == [("any", "JFK", msgspec.msgpack.encode(ROW), None)]


# Routers.


def fan_out(flight: Flight) -> Iterator[tuple[Any, ...]]:
    yield AIRPORT, flight.origin, flight
    if flight.delay:
        yield "flights/note", flight.carrier, Note("late"), {"reason": "delay"}


def test_a_router_sends_one_record_to_any_number_of_targets() -> None:
    router = compiled(CSV, to=None, key=None, router=fan_out, value_codec=codec_for(Flight))
    rows = [ROW, ROW | {"delay": "NA"}, ROW]

    chunk = router.route_chunk(rows, 0, locate)

    note = ("flights/note", "AA", msgspec.msgpack.encode(Note("late")), {"reason": "delay"})
    assert [message[:2] for message in chunk.messages] == [
        (AIRPORT, "JFK"),
        ("flights/note", "AA"),
        (AIRPORT, "JFK"),
        (AIRPORT, "JFK"),
        ("flights/note", "AA"),
    ]
    assert chunk.messages[1] == note
    assert list(chunk.owners) == [0, 0, 1, 2, 2]
    assert chunk.errors == []


def test_a_router_may_drop_a_record() -> None:
    router = compiled(CSV, to=None, key=None, router=lambda value: [])

    assert router.route_chunk([ROW], 0, locate) == ([], [], [])


def test_without_a_type_a_router_sees_rows_and_its_targets_convert_them() -> None:
    def by_origin(row: dict[str, str]) -> list[tuple[str, str, object]]:
        return [(AIRPORT, row["origin"], row)]

    router = compiled(CSV, to=None, key=None, router=by_origin)

    assert router.route(ROW, "line 2") == [(AIRPORT, "JFK", JFK, None)]
    untyped = compiled(JSON, to=None, key=None, router=by_origin)
    assert untyped.route(msgspec.json.encode(ROW), "line 2") == [(AIRPORT, "JFK", JFK, None)]


# Bad records.

REST = " Read from departures.csv line 7; nothing else was affected."


def by_field(value: Any) -> list[tuple[Any, ...]]:
    return [(value["to"], value["id"], value["message"])]


def failing(value: Any) -> Any:
    raise KeyError("tailnum")


BY_FIELD: dict[str, Any] = {"to": None, "key": None, "router": by_field}


@pytest.mark.parametrize(
    ("options", "record", "text"),
    [
        (
            {},
            ROW | {"delay": "late"},
            'PEN0201 Record rejected: $.delay expected float | None, got str "late".',
        ),
        (
            {"key": "carrier"},
            BadRecord(b"x", "1 columns where 3 are named"),
            "PEN0202 Record rejected: 1 columns where 3 are named.",
        ),
        (
            {"to": "any", "key": "tailnum"},
            ROW,
            "PEN0203 Record rejected: it has no field 'tailnum', which is the key.",
        ),
        (
            {"to": "any"},
            {"origin": None},
            "PEN0203 Record rejected: its key is None, not a text or a whole number.",
        ),
        ({}, ROW | {"origin": ""}, "PEN0203 Record rejected: its key is an empty text, not a text or a whole number."),
        (
            {"key": "delay"},
            ROW,
            "PEN0203 Record rejected: its key is float 12.5, not a text or a whole number.",
        ),
        (
            {"key": failing},
            ROW,
            "PEN0203 Record rejected: the key function failing raised KeyError: 'tailnum'.",
        ),
        (
            {"message_bytes_max": 10},
            ROW,
            (
                f'PEN0204 Record rejected: message of {len(JFK)} bytes to flights/airport "JFK" exceeds '
                "message_bytes_max = 10."
            ),
        ),
        (
            {"to": None, "key": None, "router": failing},
            ROW,
            "PEN0207 Record rejected: the router failing raised KeyError: 'tailnum'.",
        ),
        (
            BY_FIELD,
            {"to": "x/y", "id": "1", "message": 1},
            "PEN0105 Record rejected: x/y is no function of this application.",
        ),
        (
            BY_FIELD,
            {"to": "any", "id": "", "message": 1},
            "PEN0203 Record rejected: its key is an empty text, not a text or a whole number.",
        ),
        (
            BY_FIELD,
            {"to": AIRPORT, "id": "1", "message": {"origin": "JFK", "carrier": "AA", "delay": "late"}},
            'PEN0201 Record rejected: flights/airport can\'t take it: $.delay expected float | None, got str "late".',
        ),
    ],
)
def test_a_bad_record_is_refused_with_its_place(options: dict[str, Any], record: Any, text: str) -> None:
    router = compiled(CSV, **options)

    chunk = router.route_chunk([record], 5, locate)

    assert [(index, str(error)) for index, error in chunk.errors] == [(0, text + REST)]
    assert chunk.messages == []
    assert list(chunk.owners) == []


def test_a_decode_error_keeps_its_path() -> None:
    with pytest.raises(DecodeError) as caught:
        compiled(CSV).route(ROW | {"delay": "late"}, "line 2")

    assert caught.value.path == "$.delay"


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidInput, match="PEN0201 Record rejected: "):
        compiled(JSON).route(b"{", "departures.jsonl line 1")
    with pytest.raises(InvalidInput) as caught:
        compiled(JSON, to=None, key=None, router=failing).route(b"{", "departures.jsonl line 1")
    assert str(caught.value) == (
        "PEN0201 Record rejected: it is no JSON: Input data was truncated. Read from departures.jsonl line 1; "
        "nothing else was affected."
    )


@pytest.mark.parametrize("bad", [("", b"x"), ("a", "x"), ("a", b"x", 1), None, 7, ("a", b"x" * 11)])
def test_a_bad_pair_is_refused_and_its_neighbours_go_through(bad: Any) -> None:
    router = compiled(generated("msgpack"), key=None, message_bytes_max=10)

    chunk = router.route_chunk([("JFK", b"1"), bad, ("EWR", b"2")], 0, locate)

    assert [message[1] for message in chunk.messages] == ["JFK", "EWR"]
    assert list(chunk.owners) == [0, 2]
    assert [index for index, _ in chunk.errors] == [1]


def test_a_pair_with_a_number_as_id_is_written_out() -> None:
    router = compiled(generated("msgpack"), key=None)

    assert router.route_chunk([(7, b"x")], 0, locate).messages == [(AIRPORT, "7", b"x", None)]
    assert router.route_chunk([], 0, locate).messages == []


def test_bad_records_do_not_shift_the_others() -> None:
    rows = [ROW, ROW | {"origin": ""}, ROW, BadRecord(b"", "short"), ROW]

    chunk = compiled(CSV).route_chunk(rows, 0, locate)

    assert list(chunk.owners) == [0, 2, 4]
    assert [index for index, _ in chunk.errors] == [1, 3]


# Declarations that can't work.


@pytest.mark.parametrize(
    ("spec", "options", "text"),
    [
        (
            CSV,
            {"to": None},
            (
                "PEN0144 Ingress flights/departures has neither of to= and router=. Name the one function, or give a "
                "router."
            ),
        ),
        (
            CSV,
            {"router": fan_out},
            (
                "PEN0144 Ingress flights/departures has both of to= and router=. Name the one function, or give a "
                "router."
            ),
        ),
        (
            CSV,
            {"to": None, "router": fan_out},
            (
                "PEN0144 Ingress flights/departures has a key besides its router. A router gives the ids itself, "
                "from decoded values: remove one of them."
            ),
        ),
        (
            generated("msgpack"),
            {"to": None, "key": None, "router": fan_out},
            (
                "PEN0144 Ingress flights/departures has encoded messages, which a router can't look into. A router "
                "gives the ids itself, from decoded values: remove one of them."
            ),
        ),
        (
            CSV,
            {"key": None},
            'PEN0144 Ingress flights/departures has key=None. Give key="field", or a function of the value.',
        ),
        (
            generated("msgpack"),
            {},
            "PEN0144 Ingress flights/departures has key='origin'. Remove key=: the pairs hold the ids.",
        ),
        (
            CSV,
            {"key": "orgin"},
            (
                "PEN0144 Ingress flights/departures has key='orgin', but Flight has no such field. Name one of its "
                "fields."
            ),
        ),
        (
            CSV,
            {"value_codec": codec_for(Note), "key": "text"},
            (
                "PEN0145 Ingress flights/departures reads Note, but flights/airport takes Flight. Give the ingress "
                "that type, or add Note to the annotation of flights/airport."
            ),
        ),
        (CSV, {"to": "x/y"}, "PEN0105 x/y is no function of this application."),
    ],
)
def test_a_declaration_that_can_not_work_is_refused(spec: IngressSpec, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compiled(spec, **options)

    assert str(caught.value) == text
