"""Answers are msgpack for every type, and come back as the type the caller expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
import pytest

from penstock.errors import InvalidInput
from penstock.functions.answers import decode_answer, encode_answer
from penstock.functions.state import Message
from penstock.functions.types import codec_for
from penstock.ids import Address

ADDRESS = Address("t/f", "a")


class Balance(Message):
    amount: float


class Model(pydantic.BaseModel):
    amount: int


@dataclass
class Plain:
    amount: int


@pytest.mark.parametrize(
    "value", [None, 5, "x", b"\x80", [1, "a"], {"a": 1}, Balance(1.5), Model(amount=3), Plain(4)], ids=repr
)
def test_an_answer_comes_back_as_it_was(value: Any) -> None:
    data = encode_answer(ADDRESS, value)

    msgspec.msgpack.decode(data)  # For clients that know no types.
    assert decode_answer(data, codec_for(type(value))) == value


def test_an_answer_of_another_type_comes_in_builtin_types() -> None:
    assert decode_answer(encode_answer(ADDRESS, "closed"), codec_for(float)) == "closed"
    assert decode_answer(encode_answer(ADDRESS, Balance(1.5)), codec_for(Any)) == {"type": "Balance", "amount": 1.5}


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_answer(ADDRESS, object())

    assert str(caught.value).startswith("PEN0208 The answer of t/f/a is of type object, which can't be encoded: ")
    assert ".." not in str(caught.value)
    assert str(caught.value).endswith("Make it a Struct, a dataclass, or builtin types.")
