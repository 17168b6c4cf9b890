"""Declarations of formats: what is refused when they are made, and that they are plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from penstock.errors import ConfigurationError
from penstock.functions.formats import Avro, CloudEvents, Json, JsonSchema, Msgpack, Protobuf, SchemaRegistry
from penstock.functions.state import Message

REGISTRY = SchemaRegistry("http://registry:8081")


class Departure(Message):
    airport: str
    photo: bytes = b"\xff"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SchemaRegistry(""), "is no address of a server"),
        (lambda: SchemaRegistry("registry:8081"), "is no address of a server"),
        (lambda: SchemaRegistry("http://"), "is no address of a server"),
        (lambda: SchemaRegistry("http://ada:secret@registry"), "has a password in its url"),
        (lambda: SchemaRegistry("http://registry", username="ada"), "only one of username and password"),
        (lambda: SchemaRegistry("http://registry", token="t", username="a", password="b"), "a token besides"),
        (lambda: SchemaRegistry("http://registry", key_file="key.pem"), "key_file without certificate_file"),
        (lambda: SchemaRegistry("http://registry", timeout_s=0), "timeout_s=0"),
        (Avro, "neither a registry nor a schema"),
        (lambda: Avro(schema="{"), "can't be read as JSON"),
        (lambda: Avro(schema="3"), "can't be read as JSON"),
        (lambda: Avro(schema={"type": object()}), "can't be read as JSON"),
        (lambda: Avro(schema='"string"', subject="s"), "without a registry"),
        (lambda: Avro(schema='"string"', auto_register=True), "without a registry"),
        (lambda: Avro(registry=REGISTRY, auto_register=True), "no schema to register"),
        (lambda: Avro(registry=REGISTRY, subject=""), "no usable subject"),
        (lambda: Avro(registry="http://registry"), "is no registry"),  # type: ignore[arg-type]
        (lambda: Protobuf(Departure), "names no message"),
        (lambda: JsonSchema("http://registry"), "is no registry"),  # type: ignore[arg-type]
        (lambda: JsonSchema(REGISTRY, auto_register=True), "no schema to register"),
        (lambda: CloudEvents(data=CloudEvents()), "has no format for its data"),
        (lambda: CloudEvents(data="json"), "has no format for its data"),  # type: ignore[arg-type]
    ],
)
def test_a_declaration_that_can_not_be_meant_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        make()

    assert caught.value.code == "PEN0141"
    assert "secret" not in caught.value.message


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="binary, structured") as caught:
        CloudEvents(mode="batch")  # type: ignore[arg-type]

    assert caught.value.code == "PEN0140"


def test_an_address_may_come_from_the_environment() -> None:
    assert SchemaRegistry("${REGISTRY_URL}").url == "${REGISTRY_URL}"


def test_formats_are_equal_when_they_say_the_same() -> None:
    one = Avro(registry=REGISTRY, schema='{ "type": "string" }')
    other = Avro(registry=SchemaRegistry("http://registry:8081"), schema={"type": "string"})

    assert one == other
    assert hash(one) == hash(other)
    assert {Json(), Json(), Msgpack()} == {Msgpack(), Json()}


def test_secrets_are_not_shown() -> None:
    shown = repr(Avro(registry=SchemaRegistry("http://registry", username="ada", password="hidden")))

    assert "ada" in shown
    assert "hidden" not in shown
    assert "hidden" not in repr(SchemaRegistry("http://registry", token="hidden"))


def test_avro_travels_without_the_tag_of_a_message() -> None:
    travelled = msgspec.msgpack.decode(Avro(schema='"string"').encode(Departure("JFK")))

    assert travelled == {"airport": "JFK", "photo": b"\xff"}
