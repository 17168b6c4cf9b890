"""The index of timers: every timer fires once, in order, however many there are and however few fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.state import keys, timers
from penstock.state.timers import TimerIndex


class Rows:
    """Timer rows as the overlay would hold them, and how many a scan went through."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.scanned: list[bytes] = []

    def add(self, index: TimerIndex, due_ms: int, number: int) -> None:
        key = keys.encode_timer_key(due_ms, number)
        self.keys.add(key)
        index.add(key)

    def remove(self, index: TimerIndex, due_ms: int, number: int) -> None:
        key = keys.encode_timer_key(due_ms, number)
        self.keys.remove(key)
        index.remove(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.keys):
            if start <= key < end:
                self.scanned.append(key)
                yield key, b""

    def pop(self, index: TimerIndex, now_ms: int, count_max: int = 1_000) -> list[int]:
        popped = index.pop_due(now_ms, count_max)
        self.keys.difference_update(popped)
        return [keys.decode_timer_key(key).due_ms for key in popped]


def test_timers_are_due_at_their_time_and_in_order() -> None:
    rows = Rows()
    index = TimerIndex(rows.scan)
    for number, due_ms in enumerate([30, 10, 20, 10]):
        rows.add(index, due_ms, number)

    assert index.next_due_ms() == 10
    assert (rows.pop(index, 9), rows.pop(index, 20)) == ([], [10, 10, 20])
    assert rows.pop(index, 100) == [30]
    assert index.next_due_ms() is None


def test_timers_that_were_there_before_the_index_are_found() -> None:
    rows = Rows()
    rows.keys = {keys.encode_timer_key(due_ms, due_ms) for due_ms in range(5)}

    assert rows.pop(TimerIndex(rows.scan), 100) == [0, 1, 2, 3, 4]


def test_a_timer_set_while_others_fire_is_not_missed() -> None:
    rows = Rows()
    index = TimerIndex(rows.scan)
    rows.add(index, 10, 0)
    rows.pop(index, 10)

    rows.add(index, 10, 1)

    assert rows.pop(index, 10) == [10]


def test_a_scan_never_looks_behind_what_has_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "NEAR_TIMERS_MAX", 4)
    rows = Rows()
    index = TimerIndex(rows.scan)
    for number in range(40):
        rows.add(index, number, number)

    assert rows.pop(index, 100) == list(range(40))
    assert len(rows.scanned) == len(set(rows.scanned)) == 40


def test_a_timer_that_was_removed_counts_for_nothing() -> None:
    rows = Rows()
    index = TimerIndex(rows.scan)
    for number, due_ms in enumerate([10, 20, 30, 40]):
        rows.add(index, due_ms, number)

    rows.remove(index, 10, 0)
    rows.remove(index, 30, 2)

    assert index.next_due_ms() == 20
    assert rows.pop(index, 100, 2) == [20, 40]


@given(st.lists(st.one_of(st.integers(0, 60), st.tuples(st.integers(0, 5), st.integers(1, 4))), max_size=60))
def test_nothing_is_lost_when_few_timers_fit_in_memory(steps: list[int | tuple[int, int]]) -> None:
    """A number sets a timer so much later, or removes the last one if it is zero; a pair moves the clock and takes some
    that are due."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timers, "NEAR_TIMERS_MAX", 3)
        rows, now_ms, due = Rows(), 0, list[int]()
        index = TimerIndex(rows.scan)
        for number, step in enumerate(steps):
            if step == 0 and rows.keys:
                last = max(rows.keys)
                rows.remove(index, *keys.decode_timer_key(last))
                due.remove(keys.decode_timer_key(last).due_ms)
                continue
            if isinstance(step, int):
                rows.add(index, now_ms + step, number)
                due.append(now_ms + step)
                continue
            now_ms += step[0]
            popped = rows.pop(index, now_ms, step[1])
            assert popped == sorted(each for each in due if each <= now_ms)[: step[1]]
            for each in popped:
                due.remove(each)

        assert index.next_due_ms() == min(due, default=None)
        assert rows.pop(index, 1_000) == sorted(due)
