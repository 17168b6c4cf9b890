"""CloudEvents as records of Kafka: both modes read, both written, and what is none refused."""

from __future__ import annotations

import msgspec
import pytest

from penstock.errors import DecodeError, InvalidInput
from penstock.router.cloudevents import read_event, write_event

BINARY = [
    ("content-type", b"application/json"),
    ("ce_specversion", b"1.0"),
    ("ce_id", b"1"),
    ("ce_source", b"/shop"),
    ("ce_type", b"order.placed"),
    ("trace", b"abc"),
]
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8"), ("trace", b"abc")]


def structured(**members: object) -> bytes:
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed"}
    return msgspec.json.encode({name: value for name, value in (event | members).items() if value is not None})


def test_a_binary_event_has_its_attributes_in_headers() -> None:
    assert read_event(b'{"n":1}', BINARY) == (b'{"n":1}', BINARY)


def test_a_structured_event_becomes_what_a_binary_one_is() -> None:
    data, headers = read_event(structured(datacontenttype="application/json", data={"n": 1}), STRUCTURED)

    assert data == b'{"n":1}'
    assert sorted(headers) == sorted(BINARY)


@pytest.mark.parametrize(
    ("members", "data"),
    [
        ({"data": [1, 2]}, b"[1,2]"),
        ({"data": "text"}, b'"text"'),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text"),
        ({"data": {"n": 1}, "datacontenttype": "application/vnd.order+json; charset=utf-8"}, b'{"n":1}'),
        ({"data_base64": "AP8="}, b"\x00\xff"),
        ({}, b""),
    ],
)
def test_data_of_a_structured_event(members: dict[str, object], data: bytes) -> None:
    assert read_event(structured(**members), STRUCTURED)[0] == data


def test_attributes_that_are_no_texts_are_written_out() -> None:
    _, headers = read_event(structured(sequence=7, sampled=True, absent=None), STRUCTURED)

    assert ("ce_sequence", b"7") in headers
    assert ("ce_sampled", b"true") in headers


@pytest.mark.parametrize(
    ("value", "headers", "got"),
    [
        (b"{}", [], "neither a header ce_specversion nor the content-type application/cloudevents+json"),
        (b"{}", [("ce_specversion", b"0.3")], "specversion 0.3"),
        (b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"1")], "no source and no type"),
        (b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"\xff")], "a header ce_id that is not UTF-8"),
        (b"{}", STRUCTURED, "specversion missing"),
        (structured(id=None), STRUCTURED, "no id"),
        (structured(data_base64="?"), STRUCTURED, "data_base64 that is none"),
        (structured(tags=["a"]), STRUCTURED, "list as its attribute tags"),
        (b'{"specversion"', STRUCTURED, "data that cannot be read"),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")], "application/cloudevents-batch+json"),
    ],
)
def test_what_is_no_event_says_why(value: bytes, headers: list[tuple[str, bytes]], got: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_event(value, headers)

    assert caught.value.code == "PEN0244"
    assert got in caught.value.got


def written(data: bytes, headers: tuple[tuple[str, str], ...] = (), *, structured: bool, content_type: str) -> object:
    value, given = write_event(
        data, headers, id="7f", source="/shop", type="placed", content_type=content_type, structured=structured
    )
    return value, dict(given)


def test_a_binary_event_is_written() -> None:
    assert written(b"{}", (("trace", "abc"),), structured=False, content_type="application/json") == (
        b"{}",
        {
            "trace": "abc",
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_id": "7f",
            "ce_source": "/shop",
            "ce_type": "placed",
        },
    )


def test_a_structured_event_is_written() -> None:
    assert written(b'{"n":1}', (("trace", "abc"),), structured=True, content_type="application/json") == (
        (
            b'{"specversion":"1.0","id":"7f","source":"/shop","type":"placed","datacontenttype":"application/json",'
            b'"data":{"n":1}}'
        ),
        {"trace": "abc", "content-type": "application/cloudevents+json; charset=UTF-8"},
    )


def test_bytes_in_a_structured_event_are_base64() -> None:
    value, _ = write_event(
        b"\x00\xff",
        (("content-type", "application/json"),),  # Whatever the header says, these bytes are no JSON.
        id="7f",
        source="/shop",
        type="placed",
        content_type="application/octet-stream",
        structured=True,
    )

    assert msgspec.json.decode(value)["data_base64"] == "AP8="


@pytest.mark.parametrize("in_one", [True, False])
def test_what_was_written_can_be_read(in_one: bool) -> None:
    value, headers = write_event(
        b'{"n":1}',
        (("ce_subject", "cart/7"), ("ce_type", "moved"), ("trace", "ö")),
        id="7f",
        source="/shop",
        type="placed",
        content_type="application/json",
        structured=in_one,
    )
    data, read = read_event(value, [(name, text.encode()) for name, text in headers])

    assert data == b'{"n":1}'
    assert sorted(read) == [
        ("ce_id", b"7f"),
        ("ce_source", b"/shop"),
        ("ce_specversion", b"1.0"),
        ("ce_subject", b"cart/7"),
        ("ce_type", b"moved"),
        ("content-type", b"application/json"),
        ("trace", "ö".encode()),
    ]


@pytest.mark.parametrize("header", ["ce_", "ce_Subject", "ce_my_key", "ce_specversion", "ce_data"])
def test_a_header_that_is_no_attribute_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput, match="is no attribute of a CloudEvent"):
        written(b"{}", ((header, "x"),), structured=False, content_type="application/json")


def test_an_event_without_a_type_is_refused() -> None:
    with pytest.raises(InvalidInput, match="An event has no type"):
        write_event(b"{}", (), id="1", source="/", type="", content_type="application/json", structured=False)
