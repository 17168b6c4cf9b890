"""Declarations of Kafka egresses: what is refused, and what a row gets from the value that is emitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.context import Context, Emitted, Outlet
from penstock.functions.formats import Msgpack, Raw
from penstock.functions.kafka_egress import KafkaEgress
from penstock.records import EgressRow


@dataclass
class Delay:
    airport: str
    minutes: int
    at: datetime


LATE = Delay("JFK", 7, datetime(2026, 1, 2, tzinfo=UTC))


def emitted(spec: KafkaEgress, value: Any, **arguments: Any) -> EgressRow:
    ctx: Context[Any] = Context("t/f", {}, {"t/out": Outlet("t/out", spec.encode, 1000, spec.complete)})
    ctx.emit("t/out", value, **arguments)
    (output,) = ctx.outputs
    assert isinstance(output, Emitted)
    return output.row(0)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: KafkaEgress(""), "PEN0141"),
        (lambda: KafkaEgress("a b"), "PEN0141"),
        (lambda: KafkaEgress(".."), "PEN0141"),
        (lambda: KafkaEgress("t", format="json"), "PEN0141"),  # type: ignore[arg-type]
        (lambda: KafkaEgress("t", key=7), "PEN0141"),  # type: ignore[arg-type]
        (lambda: KafkaEgress("t", partition=""), "PEN0141"),
        (lambda: KafkaEgress("t", headers={"h": b"1"}), "PEN0141"),  # type: ignore[dict-item]
        (lambda: KafkaEgress("t", delivery="once"), "PEN0140"),  # type: ignore[arg-type]
        (lambda: KafkaEgress("t", properties={"client.id": "x"}), "PEN0141"),
    ],
)
def test_what_can_not_be_meant_is_refused(make: Callable[[], KafkaEgress], code: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()

    assert caught.value.code == code


def test_properties_are_never_shown() -> None:
    assert "s3cret" not in repr(KafkaEgress("t", brokers="b:9092", properties={"sasl.password": "s3cret"}))


def test_a_row_gets_what_the_declaration_takes_from_the_value() -> None:
    spec = KafkaEgress("delays", key="airport", partition=lambda delay: delay.minutes % 4, timestamp="at")

    row = emitted(spec, LATE)

    assert row.value == b'{"airport":"JFK","minutes":7,"at":"2026-01-02T00:00:00Z"}'
    assert (row.key, row.partition, row.timestamp_ms, row.topic) == (b"JFK", 3, 1_767_312_000_000, None)


def test_what_emit_is_given_wins() -> None:
    spec = KafkaEgress("delays", key="airport", partition="minutes", timestamp="at", headers={"a": "1", "b": "2"})

    row = emitted(spec, LATE, key="LGA", partition=0, timestamp_ms=5, headers={"b": "3"}, topic="other")

    assert (row.key, row.partition, row.timestamp_ms, row.topic) == (b"LGA", 0, 5, "other")
    assert row.headers == (("a", "1"), ("b", "3"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("k", {"k": "x"}, b"x"),
        ("k", {"k": 7}, b"7"),
        ("k", {"k": None}, None),
        (lambda value: value["k"], {"k": b"x"}, b"x"),
        (None, {"k": "x"}, None),
    ],
)
def test_keys_are_bytes(key: Any, value: Any, expected: bytes | None) -> None:
    assert emitted(KafkaEgress("t", key=key), value).key == expected


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"key": "airport"}, {}),
        ({"key": "airport"}, 7),
        ({"key": "k"}, {"k": 1.5}),
        ({"key": "k"}, {"k": True}),
        ({"partition": "k"}, {"k": -1}),
        ({"partition": "k"}, {"k": LATE.at}),
        ({"timestamp": "k"}, {"k": datetime(2026, 1, 2)}),  # noqa: DTZ001  # It has no time zone: that is the point.
        ({"timestamp": "k"}, {"k": 1 << 63}),
        ({"format": Raw()}, "text"),
    ],
)
def test_a_value_that_does_not_give_it_fails_the_handler(arguments: dict[str, Any], value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        emitted(KafkaEgress("t", **arguments), value)

    assert caught.value.code == "PEN0206"


@pytest.mark.parametrize("arguments", [{"partition": -1}, {"partition": True}, {"timestamp_ms": 1.5}])
def test_emit_takes_whole_numbers(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        emitted(KafkaEgress("t"), {}, **arguments)

    assert caught.value.code == "PEN0206"


def test_formats_and_tombstones() -> None:
    assert emitted(KafkaEgress("t", format=Msgpack()), {"a": 1}).value == b"\x81\xa1a\x01"
    assert emitted(KafkaEgress("t"), None).value == b"null"
    assert emitted(KafkaEgress("t", tombstones=True), None, key="a").value == b""
