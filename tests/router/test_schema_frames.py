"""The framing of a schema registry, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DecodeError
from penstock.router.schema_frames import encode_indexes, frame, split_frame, split_indexes

# Written by hand from the description of the format: zero, the id in four bytes, the body.
FRAMED = [
    (1, b"", "00 00000001"),
    (42, b"\x02a", "00 0000002a 02 61"),
    (0xFFFFFFFF, b"{}", "00 ffffffff 7b 7d"),
]
# Count and indexes as zig-zag varints: 1 is 02, 2 is 04, 64 is 80 01.
INDEXES = [
    ([0], "00"),
    ([1], "02 02"),
    ([0, 0], "04 00 00"),
    ([1, 0], "04 02 00"),
    ([2, 1, 3], "06 04 02 06"),
    ([64], "02 80 01"),
]


@pytest.mark.parametrize(("schema_id", "body", "golden"), FRAMED)
def test_a_value_begins_with_zero_and_the_id(schema_id: int, body: bytes, golden: str) -> None:
    assert frame(schema_id, body) == bytes.fromhex(golden)
    assert split_frame(bytes.fromhex(golden)) == (schema_id, body)


@pytest.mark.parametrize(("indexes", "golden"), INDEXES)
def test_indexes_are_zig_zag_varints(indexes: list[int], golden: str) -> None:
    assert encode_indexes(indexes) == bytes.fromhex(golden)
    assert split_indexes(bytes.fromhex(golden) + b"rest") == (tuple(indexes), b"rest")


def test_the_first_message_may_be_written_out() -> None:
    assert split_indexes(bytes.fromhex("02 00") + b"rest") == ((0,), b"rest")


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8), st.binary())
def test_indexes_come_back(indexes: list[int], rest: bytes) -> None:
    assert split_indexes(encode_indexes(indexes) + rest) == (tuple(indexes), rest)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("", "0 bytes, too few for the id of a schema"),
        ("00", "1 bytes, too few for the id of a schema"),
        ("00 000001", "4 bytes, too few for the id of a schema"),
        ("01 00000001 02", "first byte 0x01, where 0x00 marks the id of a schema"),
        ("7b 22 61 22 3a 31 7d", "first byte 0x7b, where 0x00 marks the id of a schema"),
    ],
)
def test_what_is_not_framed_says_so(value: str, got: str) -> None:
    with pytest.raises(DecodeError) as caught:
        split_frame(bytes.fromhex(value))

    assert (caught.value.code, caught.value.got) == ("PEN0240", got)


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("", "an end within the message indexes"),
        ("04 02", "an end within the message indexes"),
        ("80", "an end within the message indexes"),
        ("01", "-1 message indexes"),
        ("02 01", "the message index -1"),
        ("82 80 80 80 80 01", "a message index of more than 32 bits"),
        ("fe ff ff ff 0f", "2147483647 message indexes"),
    ],
)
def test_damaged_indexes_are_refused(body: str, got: str) -> None:
    with pytest.raises(DecodeError) as caught:
        split_indexes(bytes.fromhex(body))

    assert (caught.value.code, caught.value.got) == ("PEN0240", got)
