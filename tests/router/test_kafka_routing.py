"""Records of Kafka as messages, without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.formats import Avro, CloudEvents, Format, Json, Msgpack, Raw, SchemaRegistry
from penstock.functions.kafka import KafkaIngress
from penstock.functions.types import codec_for
from penstock.router.formats import MissingSchema
from penstock.router.kafka_records import Columns
from penstock.router.kafka_routing import KafkaRouter, Keyed, ids_of
from penstock.router.schema_registry import Registries


class Order(msgspec.Struct):
    total: int


CODECS = {"shop/order": codec_for(Order), "shop/raw": codec_for(bytes), "shop/maybe": codec_for(Order | None)}
PLACE = "topic orders partition 3 offset 17"


def router_for(to: str | None = "shop/order", format: Format | None = None, **arguments: Any) -> KafkaRouter:
    declared = {name: arguments.pop(name) for name in ("tombstones",) if name in arguments}
    return KafkaRouter.compile(
        "orders",
        KafkaIngress("orders", format=format or Json(), **declared),
        to=to,
        resolve=lambda target: (target, CODECS[target]),
        registries=Registries({}),
        message_bytes_max=100,
        **arguments,
    )


def columns(keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> Columns:
    return Columns(range(len(keys)), list(keys), list(values), None, len(keys), None)


ORDER = msgspec.msgpack.encode({"total": 5})


def test_the_key_is_the_id_and_json_becomes_what_the_function_takes() -> None:
    router = router_for()

    assert router.route(b"a/1", b'{"total": 5}', (), PLACE) == [("shop/order", "a/1", ORDER, None)]
    taken = columns([b"a", "ü".encode()], [b'{"total": 5}', b'{"total":5}'])
    assert router.keyed(taken) == Keyed("shop/order", ["a", "ü"], [ORDER, ORDER])


@pytest.mark.parametrize(("to", "format"), [("shop/order", Msgpack()), ("shop/raw", Raw())])
def test_what_the_function_reads_itself_is_passed_on_untouched(to: str, format: Format) -> None:
    router = router_for(to, format)

    assert router.keyed(columns([b"a"], [ORDER])) == Keyed(to, ["a"], [ORDER])
    assert router.route(b"a", ORDER, [("h", b"x")], PLACE) == [(to, "a", ORDER, {"h": "x"})]


@pytest.mark.parametrize(
    ("key", "value", "code", "told"),
    [
        (None, b"{}", "PEN0730", "no key"),
        (b"", b"{}", "PEN0730", "an empty key"),
        (b"\xff1", b"{}", "PEN0730", "no text in UTF-8"),
        (b"a", None, "PEN0731", "tombstone"),
        (b"a", b"{", "PEN0201", "truncated"),
        (b"a", b'{"total": "x"}', "PEN0201", "$.total"),
    ],
)
def test_records_that_can_not_be_are_refused_with_their_place(
    key: bytes | None, value: bytes | None, code: str, told: str
) -> None:
    router = router_for()

    assert router.keyed(columns([b"good", key], [b'{"total": 1}', value])) is None
    with pytest.raises(InvalidInput) as caught:
        router.route(key, value, (), PLACE)
    assert caught.value.code == code
    assert told in caught.value.message
    assert PLACE in caught.value.message


def test_a_message_that_is_too_large_is_refused() -> None:
    router = router_for("shop/raw", Raw())

    assert router.keyed(columns([b"a"], [b"x" * 101])) is None
    with pytest.raises(InvalidInput) as caught:
        router.route(b"a", b"x" * 101, (), PLACE)
    assert caught.value.code == "PEN0204"


def test_a_key_of_the_value_or_a_router_needs_none_of_the_record() -> None:
    by_field = router_for(key="total")
    routed = router_for(None, router=lambda value: [("shop/order", "x", value, {"own": "1"})])

    assert by_field.route(None, b'{"total": 5}', (), PLACE) == [("shop/order", "5", ORDER, None)]
    assert by_field.keyed(columns([b"a"], [b'{"total": 5}'])) is None
    headers = [("own", b"0"), ("h", b"\xff")]
    assert routed.route(b"\xff", b'{"total": 5}', headers, PLACE) == [
        ("shop/order", "x", ORDER, {"own": "1", "h": "base64:/w=="})
    ]


def test_tombstones_are_delivered_where_the_function_takes_none() -> None:
    router = router_for("shop/maybe", Msgpack(), tombstones="deliver")

    assert router.route(b"a", None, (), PLACE) == [("shop/maybe", "a", b"\xc0", None)]
    assert router.keyed(columns([b"a"], [None])) is None
    with pytest.raises(ConfigurationError) as caught:
        router_for("shop/order", tombstones="deliver")
    assert caught.value.code == "PEN0145"


def test_headers_that_come_again_and_those_that_are_no_text_are_kept() -> None:
    headers = [("a", b"1"), ("a", b"2"), ("a", b""), ("b", b"\x80")]

    ((_, _, _, texts),) = router_for("shop/raw", Raw()).route(b"k", b"", headers, PLACE)
    assert texts == {"a": "1", "a#2": "2", "a#3": "", "b": "base64:gA=="}


def test_attributes_of_cloud_events_become_headers() -> None:
    event = b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data":{"total":5}}'
    headers = [("content-type", b"application/cloudevents+json")]

    ((_, _, payload, texts),) = router_for(format=CloudEvents()).route(b"k", event, headers, PLACE)
    assert payload == ORDER
    assert texts is not None
    assert texts["ce_id"] == "7"


def test_a_record_whose_schema_is_not_known_is_to_be_tried_again() -> None:
    router = router_for(format=Avro(SchemaRegistry("http://127.0.0.1:1")))

    assert router.keyed(columns([b"a"], [b"\0\0\0\0\7abc"])) is None
    with pytest.raises(MissingSchema):
        router.route(b"a", b"\0\0\0\0\7abc", (), PLACE)


def test_ids_are_decoded_together_also_where_keys_hold_line_ends() -> None:
    assert ids_of([b"a", b"b\nc", b"d"]) == ["a", "b\nc", "d"]
    assert ids_of([b"a", b""]) is None
    assert ids_of([]) is None
    assert ids_of([b"\xc3", b"\xa9"]) is None


@pytest.mark.parametrize("arguments", [{"to": None}, {"router": list}, {"to": None, "router": list, "key": "total"}])
def test_contradictions_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        router_for(**arguments)
    assert caught.value.code == "PEN0144"
