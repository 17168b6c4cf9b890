"""Proves which checkpoints stay restorable, and what may be deleted for it."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis.strategies import builds, integers, lists

from penstock.checkpoint.retention import (
    Retained,
    Retention,
    decide,
    oldest_of_attempts,
    tells_what_is_read,
    truncation_point,
)

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
NOBODY: frozenset[int] = frozenset()


def kept_at(checkpoint: int, created_ms: int, **changes: object) -> Retained:
    made = Retained(checkpoint, checkpoint * 10, created_ms, 1, checkpoint * 10 - 5, (), 100, "interval")
    return msgspec.structs.replace(made, **changes)


def numbers(kept: list[Retained]) -> list[int]:
    return [each.checkpoint for each in kept]


def test_all_of_the_last_minutes_stay() -> None:
    checkpoints = [kept_at(n, n * SECOND) for n in range(1, 601)]

    verdict = decide(checkpoints, Retention(), 600 * SECOND, needed=NOBODY)

    assert verdict.kept == checkpoints


def test_older_ones_thin_out_to_one_a_minute_and_end_after_an_hour() -> None:
    checkpoints = [kept_at(n, n * 10 * SECOND) for n in range(1, 601)]

    verdict = decide(checkpoints, Retention(), 6_000 * SECOND, needed=NOBODY)

    old = [each for each in verdict.kept if each.created_ms < 5_400 * SECOND]
    assert old[0].created_ms == 2_400 * SECOND
    assert {later.created_ms - each.created_ms for each, later in pairwise(old)} == {MINUTE}
    assert numbers(verdict.kept)[-61:] == list(range(540, 601))


def test_the_newest_stays_however_old_it_is() -> None:
    checkpoints = [kept_at(1, 0), kept_at(2, SECOND)]

    assert numbers(decide(checkpoints, Retention(), 48 * HOUR, needed=NOBODY).kept) == [2]


def test_what_the_running_attempt_began_from_stays() -> None:
    checkpoints = [kept_at(1, 0), kept_at(2, SECOND), kept_at(3, 2 * SECOND)]

    assert numbers(decide(checkpoints, Retention(), 48 * HOUR, needed=frozenset({1})).kept) == [1, 3]


def test_beyond_the_size_limit_the_oldest_go_and_are_named() -> None:
    checkpoints = [kept_at(n, n * SECOND) for n in range(1, 11)]

    verdict = decide(checkpoints, Retention(bytes_max=450), 10 * SECOND, needed=NOBODY)

    assert numbers(verdict.kept) == [7, 8, 9, 10]
    assert numbers(verdict.over_limit) == [1, 2, 3, 4, 5, 6]


def test_the_size_limit_never_takes_the_last_one_nor_a_needed_one() -> None:
    checkpoints = [kept_at(1, 0), kept_at(2, 0), kept_at(3, 0)]

    assert numbers(decide(checkpoints, Retention(bytes_max=0), 0, needed=NOBODY).kept) == [3]
    assert numbers(decide(checkpoints, Retention(bytes_max=0), 0, needed=frozenset({1})).kept) == [1, 2, 3]


def test_the_journal_may_be_cut_before_all_that_any_kept_checkpoint_reads() -> None:
    kept = [kept_at(5, 0, first=20), kept_at(6, 0, first=12), kept_at(7, 0, first=-1)]

    assert truncation_point(kept) == 12
    assert truncation_point([kept_at(5, 0, first=-1)]) == 50
    assert truncation_point([]) is None


def test_inputs_are_as_old_as_the_oldest_checkpoint_of_any_attempt() -> None:
    """Attempt 2 went back: its checkpoint 9 is later than 5 and 6, and behind them in the input."""
    kept = [kept_at(5, 0), kept_at(6, 0), kept_at(9, 0, attempt=2), kept_at(10, 0, attempt=2)]

    assert numbers(oldest_of_attempts(kept)) == [5, 9]


def test_an_attempt_that_began_from_nothing_reads_from_the_start_until_it_has_a_checkpoint() -> None:
    kept = [kept_at(5, 0), kept_at(6, 0)]

    assert tells_what_is_read(kept, attempt=2, restored=6)
    assert not tells_what_is_read(kept, attempt=2, restored=0)
    assert tells_what_is_read([*kept, kept_at(9, 0, attempt=2)], attempt=2, restored=0)


@given(lists(builds(int, integers(0, 2 * HOUR)), min_size=1, max_size=60), integers(0, 500), integers(0, 3))
def test_any_verdict_keeps_the_newest_and_the_order_and_is_final(ages: list[int], limit: int, needed: int) -> None:
    checkpoints = [kept_at(n, created) for n, created in enumerate(sorted(ages), 1)]
    policy = Retention(bytes_max=limit * 10)

    verdict = decide(checkpoints, policy, 2 * HOUR, needed=frozenset({needed}))

    assert verdict.kept[-1] == checkpoints[-1]
    assert numbers(verdict.kept) == sorted(numbers(verdict.kept))
    assert needed not in range(1, len(checkpoints) + 1) or needed in numbers(verdict.kept)
    assert not set(numbers(verdict.kept)) & set(numbers(verdict.over_limit))
    point = truncation_point(verdict.kept)
    assert point is not None
    assert all(each.offset >= point and each.first >= point for each in verdict.kept)
