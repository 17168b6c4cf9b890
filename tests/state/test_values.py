"""The envelope of values with expiring fields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ProtocolError
from penstock.state.values import decode_expiring, encode_expiring

deadlines = st.dictionaries(st.text(), st.integers(0, (1 << 63) - 1))


@given(st.binary(), deadlines)
def test_what_was_encoded_is_decoded(state: bytes, deadlines: dict[str, int]) -> None:
    assert decode_expiring(encode_expiring(state, deadlines)) == (state, deadlines)


@given(deadlines)
def test_equal_deadlines_have_equal_bytes_in_whatever_order_they_were_set(deadlines: dict[str, int]) -> None:
    turned = dict(reversed(deadlines.items()))

    assert encode_expiring(b"state", turned) == encode_expiring(b"state", deadlines)


def test_the_layout_is_what_stored_data_has() -> None:
    assert encode_expiring(b"s", {"b": 2, "a": 1}).hex() == "92c4017382a16101a16202"


def test_a_plain_value_where_an_envelope_was_expected_is_refused() -> None:
    with pytest.raises(ProtocolError) as raised:
        decode_expiring(b"\x81\xa1a\x01")

    assert str(raised.value) == (
        "PEN0421 A stored value is not the envelope of a state with expiring fields (Expected `array`, got `object`)."
        " If the state class has just gained its first `Expire`, register a migration for it."
    )
