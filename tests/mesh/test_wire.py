"""Requests and answers survive the way through HTTP, whatever is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import (
    CallTimeout,
    CallUnavailable,
    ConfigurationError,
    DecodeError,
    Fenced,
    FunctionError,
    InvalidInput,
    PenstockError,
    Refused,
    Unavailable,
)
from penstock.ids import Address
from penstock.mesh.wire import (
    Kind,
    Reply,
    Request,
    error_in_handler,
    error_of,
    failure,
    read,
    reply_of,
    value_of,
    write,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
addresses = st.builds(Address, st.just("shop/cart") | st.just("a/b/c"), texts)
requests = st.builds(
    Request,
    addresses,
    st.binary(max_size=5),
    st.sampled_from(Kind),
    key=st.just("") | texts,
    deadline_s=st.none() | st.integers(0, 100).map(float),
    attempt=st.integers(1, 9),
    caller=st.none() | addresses,
    chain=st.lists(addresses, max_size=3).map(tuple),
    headers=st.just({"traceparent": "00-1-2-01", "x-cohort": "beta"}),
    promise=st.just("") | texts,
    shadow=st.booleans(),
    identity=st.just(""),
    behalf=st.just("") | texts,
)


@given(requests)
def test_what_is_written_is_read_as_the_same(request: Request) -> None:
    path, headers = write(request, 0.0)

    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert read(path, headers, request.payload, 0.0) == request


def test_what_hosts_say_to_one_another_is_not_taken_from_a_client() -> None:
    claimed = {
        "penstock-caller": "shop/order/1",
        "penstock-chain": "shop/order/1",
        "penstock-kind": "resolve",
        "penstock-promise": "paid",
        "penstock-shadow": "1",
        "penstock-behalf": "spiffe://demo.local/ns/default/sa/shop",
        "penstock-timeout-ms": "soon",
    }
    asked = Request(Address("shop/cart", "ada"), b"", headers=claimed | {"penstock-tenant": "a"})

    assert read(*write(asked, 0.0), b"", 0.0) == Request(asked.address, b"", headers={"penstock-tenant": "a"})


def test_a_deadline_travels_as_what_is_left_of_it() -> None:
    request = Request(Address("t/a", "1"), b"", deadline_s=1_005.5)

    path, headers = write(request, 1_000.0)

    assert headers["penstock-timeout-ms"] == "5500"
    assert read(path, headers, b"", 50.0).deadline_s == 55.5


def test_headers_of_others_stay_behind_and_ours_are_not_shown_to_handlers() -> None:
    headers = {"Accept": "*/*", "X-Cohort": "beta", "Penstock-Due": "1", "penstock-kind": "call", "traceparent": "00"}

    assert read("/invoke/t/a/1", headers, b"", 0.0).headers == {
        "x-cohort": "beta",
        "penstock-due": "1",
        "traceparent": "00",
    }


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/invoke/t", {}),
        ("/invoke/t/a/", {}),
        ("/invoke/t/a/%ff", {}),
        ("/invoke/t/a/1", {"penstock-kind": "ask"}),
        ("/invoke/t/a/1", {"penstock-timeout-ms": "soon"}),
        ("/invoke/t/a/1", {"penstock-chain": "nobody"}),
        ("/invoke/t/a/\udcff", {}),
        ("/invoke/t/a/1", {"idempotency-key": "\udcff"}),
        ("/invoke/t/a/1", {"tracestate": "\udcff"}),
    ],
)
def test_what_is_no_request_of_the_mesh_is_refused(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as error:
        read(path, headers, b"", 0.0)

    assert error.value.code == "PEN0800"


@pytest.mark.parametrize(
    ("error", "status", "heard"),
    [
        (InvalidInput("PEN0105", "a"), 404, InvalidInput),
        (DecodeError("PEN0201", "a", path="$.x"), 400, InvalidInput),
        (InvalidInput("PEN0605", "a"), 413, InvalidInput),
        (FunctionError("PEN0210", "a"), 422, FunctionError),
        (CallUnavailable("PEN0841", "a"), 503, Unavailable),
        (Unavailable("PEN0820", "a"), 503, Unavailable),
        (Fenced("PEN0821", "a"), 503, Unavailable),
        (CallTimeout("PEN0802", "a"), 504, CallTimeout),
        (Refused("PEN0822", "a"), 409, Refused),
        (ConfigurationError("PEN0100", "a"), 500, FunctionError),
    ],
)
def test_errors_come_back_as_what_says_what_to_do(
    error: PenstockError, status: int, heard: type[PenstockError]
) -> None:
    reply = reply_of(error)
    told = error_of(reply, "t/a/1")

    assert reply.status == status
    assert type(told) is heard
    assert (told.code, told.message) == (error.code, error.message)


def test_a_handler_may_catch_every_failed_call_as_one() -> None:
    for status in (400, 403, 404, 409, 413, 422, 429, 500, 503, 504):
        assert isinstance(error_in_handler(failure(status, "PEN0000", "text"), "t/a/1"), FunctionError)


def test_an_answer_of_somebody_else_is_no_error_of_the_function() -> None:
    assert error_of(Reply(502, b"<html>"), "t/a/1").code == "PEN0806"


def test_a_value_is_read_or_its_error_raised() -> None:
    assert value_of(Reply(200, b"\x07"), "t/a/1") == 7
    with pytest.raises(FunctionError):
        value_of(failure(422, "PEN0210", "text"), "t/a/1")
