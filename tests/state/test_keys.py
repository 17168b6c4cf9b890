"""The keys of rows: what they look like for ever, that they decode, and that they sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ProtocolError
from penstock.ids import KEY_GROUPS_MAX
from penstock.state import keys

groups = st.integers(0, KEY_GROUPS_MAX - 1)
u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
# Few characters, so that one text is often the beginning of another; the rest of Unicode now and then.
text = st.text(st.sampled_from("\0\x01a\x7fé\uffff\U0010ffff"), max_size=4) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
raw = st.binary(max_size=4) | st.lists(st.sampled_from([0, 1, 254, 255]), max_size=4).map(bytes)

GOLDEN = [
    (keys.encode_value_key(5, "shop/cart", "alice"), "05 01 73686f702f63617274 0001 616c696365 0001"),
    (keys.encode_value_key(127, "a/b", "é\0"), "7f 01 612f62 0001 c3a9 00ff 0001"),
    (keys.encode_value_key(0, "a/b", ""), "00 01 612f62 0001 0001"),
    (keys.encode_table_key(1, "a/b", "i", "f", b"\0\1"), "01 02 612f62 0001 69 0001 66 0001 00ff01 0001"),
    (keys.encode_log_bounds_key(1, "a/b", "i", "f"), "01 03 612f62 0001 69 0001 66 0001 00"),
    (keys.encode_log_key(1, "a/b", "i", "f", 258), "01 03 612f62 0001 69 0001 66 0001 01 0000000000000102"),
    (keys.encode_expiration_key(9, "a/b", "i"), "09 04 612f62 0001 69 0001"),
    (keys.encode_idempotency_key(2, "a/b", "i", "k"), "02 05 612f62 0001 69 0001 6b 0001"),
    (keys.encode_token_key(3, "i", "t"), "03 06 69 0001 74 0001"),
    (keys.encode_meta_key("settled"), "f0 736574746c6564 0001"),
    (keys.encode_timer_key(1_000, 2), "f1 00000000000003e8 0000000000000002"),
    (keys.encode_queue_key("a/b", 7), "f2 612f62 0001 0000000000000007"),
    (keys.encode_pending_key(7), "f3 0000000000000007"),
    (keys.encode_egress_key("a/out", 4, 3), "f4 612f6f7574 0001 0000000000000004 00000003"),
    (keys.encode_reply_key("r1"), "f5 7231 0001"),
    (keys.encode_dead_key(14), "f6 000000000000000e"),
]


@pytest.mark.parametrize(("key", "golden"), GOLDEN)
def test_the_layout_is_what_stored_data_has(key: bytes, golden: str) -> None:
    assert key.hex() == golden.replace(" ", "")


Codec = tuple[Callable[..., bytes], Callable[[bytes], Any], st.SearchStrategy[tuple[Any, ...]]]

value_keys = st.builds(keys.encode_value_key, groups, text, text)
CODECS: dict[str, Codec] = {
    "value": (keys.encode_value_key, keys.decode_value_key, st.tuples(groups, text, text)),
    "table": (keys.encode_table_key, keys.decode_table_key, st.tuples(groups, text, text, text, raw)),
    "log": (keys.encode_log_key, keys.decode_log_key, st.tuples(groups, text, text, text, u64)),
    "expiration": (keys.encode_expiration_key, keys.decode_expiration_key, st.tuples(groups, text, text)),
    "idempotency": (
        keys.encode_idempotency_key,
        keys.decode_idempotency_key,
        st.tuples(groups, text, text, text),
    ),
    "token": (keys.encode_token_key, keys.decode_token_key, st.tuples(groups, text, text)),
    "timer": (keys.encode_timer_key, keys.decode_timer_key, st.tuples(u64, u64)),
    "queue": (keys.encode_queue_key, keys.decode_queue_key, st.tuples(text, u64)),
    "egress": (keys.encode_egress_key, keys.decode_egress_key, st.tuples(text, u64, u32)),
    "meta": (keys.encode_meta_key, lambda key: (keys.decode_meta_key(key),), st.tuples(text)),
    "reply": (keys.encode_reply_key, lambda key: (keys.decode_reply_key(key),), st.tuples(text)),
    "pending": (keys.encode_pending_key, lambda key: (keys.decode_pending_key(key),), st.tuples(u64)),
    "dead": (keys.encode_dead_key, lambda key: (keys.decode_dead_key(key),), st.tuples(u64)),
}
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
any_key = st.sampled_from(list(CODECS.values())).flatmap(lambda codec: codec[2].map(lambda parts: codec[0](*parts)))


@codecs
@given(data=st.data())
def test_a_key_decodes_to_what_it_was_encoded_from(codec: Codec, data: st.DataObject) -> None:
    encode, decode, strategy = codec
    parts = data.draw(strategy)

    assert tuple(decode(encode(*parts))) == parts


@codecs
@given(data=st.data())
def test_keys_sort_as_their_components_do(codec: Codec, data: st.DataObject) -> None:
    encode, _, strategy = codec
    one, other = data.draw(strategy), data.draw(strategy)

    assert (encode(*one) < encode(*other)) == (one < other)
    assert (encode(*one) == encode(*other)) == (one == other)


@given(any_key, any_key)
def test_no_key_is_the_beginning_of_another(one: bytes, other: bytes) -> None:
    assert one == other or not other.startswith(one)


@given(groups, text, text, text, u64, u64)
def test_the_bounds_of_a_log_stand_before_its_entries(
    group: int, typename: str, id: str, field: str, first: int, second: int
) -> None:
    bounds = keys.encode_log_bounds_key(group, typename, id, field)
    low, high = sorted((first, second))
    start, end = keys.log_entries_range(group, typename, id, field, low, high)

    assert bounds < start <= end
    assert keys.decode_log_key(bounds) == (group, typename, id, field, None)
    assert in_range(bounds, keys.log_range(group, typename, id, field))
    assert in_range(end, keys.log_range(group, typename, id, field))
    assert not in_range(bounds, keys.KeyRange(start, end))


# ---- ranges


def in_range(key: bytes, key_range: keys.KeyRange) -> bool:
    return key_range.start <= key < key_range.end


@given(any_key, groups)
def test_a_key_group_owns_the_rows_that_begin_with_it_and_no_row_of_the_task(key: bytes, group: int) -> None:
    assert in_range(key, keys.group_range(group)) == (key[0] == group)


@given(st.tuples(groups, text, text), groups, text)
def test_a_value_is_in_the_range_of_its_function_and_group_only(
    address: tuple[int, str, str], group: int, typename: str
) -> None:
    key = keys.encode_value_key(*address)

    assert in_range(key, keys.value_range(address[0], address[1]))
    assert in_range(key, keys.value_range(group, typename)) == (address[:2] == (group, typename))
    assert sum(in_range(key, each) for each in keys.value_ranges(address[1])) == 1


@given(st.tuples(groups, text, text, text, raw), text, text)
def test_a_table_row_is_in_the_range_of_its_table_only(
    row: tuple[int, str, str, str, bytes], id: str, field: str
) -> None:
    group, typename, own_id, own_field, _ = row
    key = keys.encode_table_key(*row)

    assert in_range(key, keys.table_range(group, typename, own_id, own_field))
    assert in_range(key, keys.table_range(group, typename, id, field)) == ((id, field) == (own_id, own_field))


@given(st.tuples(groups, text, text, text), text)
def test_a_kept_result_is_in_the_range_of_its_address_only(row: tuple[int, str, str, str], other_id: str) -> None:
    group, typename, id, _ = row
    key = keys.encode_idempotency_key(*row)

    assert in_range(key, keys.idempotency_range(group, typename, id))
    assert in_range(key, keys.idempotency_range(group, typename, other_id)) == (id == other_id)


def test_ranges_by_time_and_checkpoint_include_what_is_due() -> None:
    assert in_range(keys.encode_timer_key(1_000, (1 << 64) - 1), keys.timer_range(1_000))
    assert not in_range(keys.encode_timer_key(1_001, 0), keys.timer_range(1_000))
    assert in_range(keys.encode_egress_key("a/out", 7, (1 << 32) - 1), keys.egress_range("a/out", 7))
    assert not in_range(keys.encode_egress_key("a/out", 8, 0), keys.egress_range("a/out", 7))
    assert not in_range(keys.encode_egress_key("a/outer", 7, 0), keys.egress_range("a/out", 7))
    assert in_range(keys.encode_queue_key("a/b", 3), keys.queue_range("a/b"))
    assert not in_range(keys.encode_queue_key("a/bc", 3), keys.queue_range("a/b"))
    assert in_range(keys.encode_dead_key(3), keys.task_kind_range(keys.DEAD))
    assert not in_range(keys.encode_reply_key("r"), keys.task_kind_range(keys.DEAD))


@given(raw.filter(lambda prefix: bool(prefix.rstrip(b"\xff"))), raw)
def test_prefix_end_is_the_first_key_behind_the_prefix(prefix: bytes, other: bytes) -> None:
    end = keys.prefix_end(prefix)

    assert prefix + b"\xff" * 9 < end
    assert not prefix < other < end or other.startswith(prefix), "nothing else is below the end"


# ---- what no encoder wrote


@pytest.mark.parametrize(
    ("decode", "key", "why"),
    [
        (keys.decode_value_key, b"", "it ends too early"),
        (keys.decode_value_key, b"\x80\x01", "its first byte is not a key group below 128"),
        (keys.decode_value_key, b"\x05\x02a\x00\x01", "it is of kind 0x02 where 0x01 was expected"),
        (keys.decode_value_key, b"\x05\x01a/b", "the component at byte 2 has no end"),
        (keys.decode_value_key, b"\x05\x01a/b\x00", "the component at byte 2 has no end"),
        (keys.decode_value_key, b"\x05\x01a\x00\xffb", "the component at byte 2 has no end"),
        (keys.decode_value_key, b"\x05\x01a\x00\x02b\x00\x01", "the component at byte 2 has no end"),
        (keys.decode_value_key, b"\x05\x01\xc3\x00\x01i\x00\x01", "it holds text that is not UTF-8"),
        (keys.decode_value_key, b"\x05\x01a\x00\x01i\x00\x01more", "it goes on after its last component"),
        (keys.decode_log_key, b"\x05\x03a\x00\x01i\x00\x01f\x00\x01\x02", "byte 11 is neither 0 nor 1"),
        (keys.decode_timer_key, b"\xf1\x00", "it ends too early"),
        (keys.decode_pending_key, b"\xf1" + bytes(8), "it is of kind 0xf1 where 0xf3 was expected"),
    ],
)
def test_a_key_that_no_encoder_writes_is_refused(decode: Callable[[bytes], object], key: bytes, why: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode(key)

    message = str(raised.value)
    assert message.startswith(f"PEN0420 Stored key {key.hex(' ')} cannot be read: {why}")
    assert message.endswith("run that version, or restore a checkpoint of this one.")


@given(st.binary(max_size=24), st.sampled_from(list(CODECS.values())))
def test_no_bytes_at_all_make_a_decoder_fail_in_another_way(key: bytes, codec: Codec) -> None:
    encode, decode, _ = codec
    try:
        parts = decode(key)
    except ProtocolError:
        return
    if parts[-1] is not None:  # A row of log bounds has an encoder of its own.
        assert encode(*parts) == key


def test_rows_of_collections_tell_whose_they_are_and_what_stands_behind() -> None:
    ids = ["a", "a\0", "ab", "b"]
    rows = sorted(keys.encode_table_key(7, "t/f", id, field, b"k") for id in ids for field in ("x", "y"))
    log = [keys.encode_log_bounds_key(7, "t/f", "a", "x"), keys.encode_log_key(7, "t/f", "a", "x", 3)]

    assert [keys.id_of_collection(row) for row in rows] == [id for id in ids for _ in range(2)]
    assert [keys.id_of_collection(row) for row in log] == [None, "a"]
    behind = [next((row for row in rows if row >= keys.behind_id(row_)), None) for row_ in rows[::2]]
    assert behind == [rows[2], rows[4], rows[6], None]
    ranges = list(keys.collection_ranges("t/f"))
    assert all(sum(start <= row < end for start, end in ranges) == 1 for row in rows + log)
