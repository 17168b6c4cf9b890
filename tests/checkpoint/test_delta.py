"""Proves the bytes of deltas: every content read back, every damage noticed, and two deltas merged as one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.strategies import DataObject, binary, booleans, builds, data, dictionaries, integers, lists, none, text

from penstock.checkpoint.delta import (
    BODY_BYTES,
    SLICE_BYTES,
    SLICE_ROWS,
    DeltaEncoder,
    DeltaHeader,
    DeltaIdentity,
    decode_delta,
    encode_delta,
    merge_frozen,
    peek_header,
)
from penstock.errors import CorruptSnapshot, Refused
from penstock.ids import Address
from penstock.records import EgressRow, Frozen, Meta, QueueCut, QueuedRow, Reply, TaskMeta, Turn

IDENTITY = DeltaIdentity("shop", 2, 1, 17)
QUEUED: QueuedRow = ("7", b"payload", 5, Address("shop/cart", "1"), Meta(request_id="r"))


def frozen(checkpoint: int = 9, **changes: Any) -> Frozen:
    empty = Frozen(3, checkpoint, TaskMeta(clock_ms=checkpoint), {}, {}, {}, {}, [])
    return empty._replace(**changes)


FULL = frozen(
    meta=TaskMeta(
        clock_ms=1,
        inbox_position=2,
        ingress_positions={"ingress-1": {"file": "a.csv", "line": 3}},
        marks={1: (2, 3)},
        sequences={0: 4},
        queues={"shop/cart": (5, 6)},
        numbers={"timer": 7},
        committed={"shop/out": 8},
        schedule=[Turn(1, 9, 2, [("ingress-1", 3)])],
    ),
    values={"shop/cart": {"1": b"state", "2": b""}},
    rows={b"\x01key": b"row", b"\x02gone": None},
    queues={"shop/cart": QueueCut(5, 6, 5, [QUEUED])},
    egress={"shop/out": [EgressRow(b"value", 1, b"key", "topic", (("header", "x"),))]},
    replies=[Reply("r", b"answer"), Reply("s", b"", "PEN0211 It failed.")],
)


def test_a_delta_is_read_as_it_was_written() -> None:
    header, read = decode_delta(encode_delta(FULL, IDENTITY))

    assert read == FULL
    assert (header.application, header.attempt, header.generation, header.previous) == IDENTITY
    assert (header.checkpoint, header.task) == (9, 3)


def test_an_empty_delta_still_says_where_its_task_was() -> None:
    assert decode_delta(encode_delta(frozen(), IDENTITY))[1].meta.clock_ms == 9


def test_a_large_delta_is_encoded_in_slices_and_spread_over_records() -> None:
    large = frozen(values={"shop/cart": {str(n): bytes(2_000) for n in range(3 * SLICE_ROWS)}})
    encoder = DeltaEncoder(large, IDENTITY)

    steps = 0
    while not encoder.done:
        encoder.step()
        steps += 1

    assert steps >= 3 * SLICE_ROWS * 2_000 // (SLICE_BYTES + 2_000)
    records = encode_delta(large, IDENTITY)
    assert len(records) > 2
    assert [peek_header(record).index for record in records] == list(range(len(records)))
    assert decode_delta(records)[1] == large


def test_a_few_huge_rows_do_not_make_a_huge_record() -> None:
    huge = frozen(rows={bytes([n]): bytes(BODY_BYTES // 2) for n in range(12)})

    assert max(map(len, encode_delta(huge, IDENTITY))) < 3 * BODY_BYTES
    assert decode_delta(encode_delta(huge, IDENTITY))[1] == huge


@pytest.mark.parametrize("size", [10, BODY_BYTES // 2], ids=["many", "huge"])
def test_queues_rows_and_replies_are_sliced_by_number_and_bytes(size: int) -> None:
    count = 3 * SLICE_ROWS if size < 100 else 12
    waiting: list[QueuedRow] = [(str(n), bytes(size), n, None, None) for n in range(count)]
    large = frozen(
        queues={"shop/cart": QueueCut(5, 5 + count, 5, waiting), "shop/empty": QueueCut(7, 7, 7, [])},
        egress={"shop/out": [EgressRow(bytes(size), n) for n in range(count)]},
        replies=[Reply(str(n), bytes(size)) for n in range(count)],
    )
    encoder = DeltaEncoder(large, IDENTITY)

    sizes: list[int] = []
    while not encoder.done:
        sizes.append(len(encoder.step() or b""))

    assert len(sizes) > 9
    assert max(sizes) < 3 * BODY_BYTES
    assert decode_delta(encode_delta(large, IDENTITY))[1] == large


rows = dictionaries(binary(max_size=6), none() | binary(max_size=6), max_size=5)
values = dictionaries(text(max_size=3), dictionaries(text(max_size=3), binary(max_size=6), max_size=4), max_size=3)
times = none() | integers(0, 2**63 - 1)
emitted = builds(EgressRow, binary(max_size=5), integers(0, 2**64 - 1), partition=times, timestamp_ms=times)


@given(values, rows, dictionaries(text(max_size=3), lists(emitted, min_size=1, max_size=3), max_size=2))
def test_any_delta_is_read_as_it_was_written(
    values: dict[str, dict[str, bytes]], rows: dict[bytes, bytes | None], egress: dict[str, list[EgressRow]]
) -> None:
    values = {typename: changed for typename, changed in values.items() if changed}
    written = frozen(values=values, rows=rows, egress=egress)

    assert decode_delta(encode_delta(written, IDENTITY))[1] == written


# Damage.

RECORDS = encode_delta(frozen(values={"f": {str(n): bytes(1_000) for n in range(700)}}), IDENTITY)


@settings(max_examples=300)
@given(data())
def test_a_flipped_bit_is_noticed(data: DataObject) -> None:
    records = encode_delta(FULL, IDENTITY)
    (record,) = records
    at, bit = data.draw(integers(0, len(record) - 1)), data.draw(integers(0, 7))
    flipped = record[:at] + bytes([record[at] ^ 1 << bit]) + record[at + 1 :]
    try:
        header, read = decode_delta([flipped])
    except (CorruptSnapshot, Refused):  # Refused: the bit made it look like a newer format.
        return
    # Only what says whose delta it is stands outside the checksum; it is compared with the manifest.
    assert read._replace(task=FULL.task, checkpoint=FULL.checkpoint) == FULL
    assert header != decode_delta(records)[0]


def test_a_delta_cut_short_is_noticed_at_every_length() -> None:
    (record,) = encode_delta(FULL, IDENTITY)
    for length in range(len(record)):
        with pytest.raises(CorruptSnapshot):
            decode_delta([record[:length]])


@pytest.mark.parametrize(
    "order",
    [[0], [1], [0, 2], [1, 0, 2], [0, 1, 1, 2], [0, 1, 2, 2], [0, 1]],
    ids=lambda order: "".join(map(str, order)),
)
def test_records_that_are_missing_or_out_of_order_are_noticed(order: list[int]) -> None:
    assert len(RECORDS) == 3
    with pytest.raises(CorruptSnapshot) as damaged:
        decode_delta([RECORDS[index] for index in order])
    assert damaged.value.code == "PEN0404"


def test_a_record_of_another_attempt_is_noticed() -> None:
    foreign = encode_delta(
        frozen(values={"f": {str(n): bytes(1_000) for n in range(700)}}), IDENTITY._replace(attempt=3)
    )
    with pytest.raises(CorruptSnapshot):
        decode_delta([RECORDS[0], foreign[1], RECORDS[2]])


def test_a_delta_of_a_newer_format_says_what_to_do() -> None:
    header, body = msgspec.msgpack.decode(encode_delta(frozen(), IDENTITY)[0], type=tuple[DeltaHeader, bytes])
    newer = msgspec.msgpack.encode((msgspec.structs.replace(header, format=2), body))

    with pytest.raises(Refused) as refused:
        decode_delta([newer])

    assert str(refused.value) == (
        "PEN0408 Delta of checkpoint 9 has format 2; this version reads up to 1. It was written by a newer Penstock: "
        "run that one."
    )


def test_a_newer_delta_is_told_from_a_damaged_one_although_it_can_not_be_read() -> None:
    newer = msgspec.msgpack.encode([[2, {"what comes here": "is something else"}], b""])

    with pytest.raises(Refused, match="PEN0408 A record of a delta has format 2"):
        decode_delta([newer])


# Merging.


def test_a_delta_that_is_whole_and_means_nothing_to_this_version_is_refused_with_a_code() -> None:
    other: Any = frozen(egress={"out": [("a row", "of another shape")]})

    with pytest.raises(CorruptSnapshot, match=r"PEN0404 Delta of checkpoint 9, task \d is whole and can't be read"):
        decode_delta(encode_delta(other, IDENTITY))


def test_the_newer_change_of_a_row_wins_and_nothing_of_the_older_is_lost() -> None:
    older = frozen(5, values={"f": {"a": b"1", "b": b"1"}}, rows={b"x": b"1", b"y": b"1"})
    newer = frozen(6, values={"f": {"b": b""}, "g": {"c": b"2"}}, rows={b"y": None})

    merged = merge_frozen(older, newer)

    assert merged.checkpoint == 6
    assert merged.values == {"f": {"a": b"1", "b": b""}, "g": {"c": b"2"}}
    assert merged.rows == {b"x": b"1", b"y": None}
    assert older.values == {"f": {"a": b"1", "b": b"1"}}


def test_rows_replies_and_schedule_follow_one_another() -> None:
    first, second = EgressRow(b"1", 1), EgressRow(b"2", 2)
    older = frozen(
        5, egress={"out": [first]}, replies=[Reply("a", b"")], meta=TaskMeta(clock_ms=5, schedule=[Turn(1, 9, 1, [])])
    )
    newer = frozen(
        6, egress={"out": [second]}, replies=[Reply("b", b"")], meta=TaskMeta(clock_ms=6, schedule=[Turn(2, 9, 2, [])])
    )

    merged = merge_frozen(older, newer)

    assert merged.egress == {"out": [first, second]}
    assert [reply.request_id for reply in merged.replies] == ["a", "b"]
    assert merged.meta == TaskMeta(clock_ms=6, schedule=[Turn(1, 9, 1, []), Turn(2, 9, 2, [])])


@given(lists(booleans(), max_size=30))
def test_a_queue_survives_any_number_of_merges(moves: list[bool]) -> None:
    """Messages arrive (True) or leave (False), with a cut after each; only the last delta is written."""
    waiting: list[int] = []
    arrived = 0
    merged = frozen(1, queues={"f": QueueCut(0, 0, 0, [])})
    for checkpoint, arrives in enumerate(moves, 2):
        known = arrived
        if arrives:
            waiting.append(arrived)
            arrived += 1
        elif waiting:
            waiting.pop(0)
        head = arrived - len(waiting)
        first = max(head, known)
        cut = QueueCut(head, arrived, first, [_queued(number) for number in waiting if number >= first])
        merged = merge_frozen(merged, frozen(checkpoint, queues={"f": cut}))

    cut = merged.queues["f"]
    assert (cut.head, cut.tail) == (arrived - len(waiting), arrived)
    numbered = dict(enumerate(cut.rows, cut.first))
    assert [numbered[number] for number in range(cut.head, cut.tail)] == [_queued(number) for number in waiting]


def _queued(number: int) -> QueuedRow:
    return (str(number), b"", number, None, None)
