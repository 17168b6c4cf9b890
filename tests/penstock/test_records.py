"""What travels comes back from bytes as it was, and two cuts of a queue become one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ids import Address
from penstock.records import (
    EgressRow,
    Envelope,
    EpochFrame,
    Meta,
    QueueCut,
    QueuedRow,
    Reply,
    StagedRow,
    TaskMeta,
    Turn,
    rows_of_replay,
)

ENVELOPE = Envelope("t/f", "a", b"x", 2**64 - 1, Address("t/g", "b"), Meta(headers={"h": "1"}, request_id="r"))


@pytest.mark.parametrize(
    "record",
    [
        ENVELOPE,
        ENVELOPE._replace(caller=None, meta=None),
        EgressRow(b"x", 2**64 - 1),
        EgressRow(b"x", 7, b"key", "topic", (("h", "1"),)),
        EgressRow(b"x", 7, None, None, (), 3, 1_700_000_000_000),
        StagedRow(1, 2, EgressRow(b"x", 7)),
        Reply("r", b"x"),
        Reply("r", b"", "PEN0210 Because."),
        QueueCut(1, 2, 1, [("a", b"x", 7, None, None)]),
        EpochFrame(1, 2, 3, 4, [ENVELOPE]),
        TaskMeta(clock_ms=5, marks={1: (2, 3)}, sequences={1: 2}, schedule=[Turn(1, 9, 2, [("i", 3)])]),
        Meta(),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_comes_back_as_it_was(record: Any) -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=type(record))

    assert decoded == record
    assert type(decoded) is type(record)


def test_a_row_from_before_it_could_have_a_partition_is_still_read() -> None:
    stored = msgspec.msgpack.encode([b"x", 7, b"key", "topic", [["h", "1"]]])

    assert msgspec.msgpack.decode(stored, type=EgressRow) == EgressRow(b"x", 7, b"key", "topic", (("h", "1"),))


def rows(first: int, tail: int) -> list[QueuedRow]:
    return [(f"id{number}", b"x", number, None, None) for number in range(first, tail)]


def cut(head: int, first: int, tail: int) -> QueueCut:
    return QueueCut(head, tail, first, rows(first, tail))


@pytest.mark.parametrize(
    ("older", "newer", "both"),
    [
        (cut(0, 0, 3), cut(1, 3, 5), cut(1, 1, 5)),  # One was taken, two came.
        (cut(0, 0, 3), cut(3, 3, 3), cut(3, 3, 3)),  # All were taken.
        (cut(0, 0, 3), cut(4, 4, 6), cut(4, 4, 6)),  # Some came and were taken in between.
        (cut(1, 2, 3), cut(1, 3, 4), cut(1, 2, 4)),  # Message 1 is in a cut before these.
    ],
)
def test_a_later_cut_keeps_what_still_waits(older: QueueCut, newer: QueueCut, both: QueueCut) -> None:
    assert older.followed_by(newer) == both


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_all_cuts_of_a_queue_together_hold_what_waits(intervals: list[tuple[int, int]]) -> None:
    """Each interval is how many messages came, and how many were taken."""
    head = tail = 0
    whole = QueueCut(0, 0, 0, [])
    for came, taken in intervals:
        known, tail = tail, tail + came
        head = min(tail, head + taken)
        whole = whole.followed_by(cut(head, max(head, known), tail))

    assert whole == cut(head, head, tail)


def test_a_row_of_a_replay_is_another_row_and_says_so() -> None:
    row = EgressRow(b"x", 7, headers=(("trace", "1"),))

    (once,) = rows_of_replay([row], 2)
    (again,) = rows_of_replay([row], 3)

    assert once == row._replace(cause=once.cause, headers=(("trace", "1"), ("penstock-replay", "2")))
    assert len({row.cause, once.cause, again.cause}) == 3
    assert rows_of_replay([row], 0) == [row]
