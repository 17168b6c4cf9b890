"""Proves which checkpoint a new attempt continues from, and that no number is ever issued twice."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from penstock.checkpoint.control import AttemptBegun, Complete, Manifest, Part, Recap, Reserve
from penstock.checkpoint.coordinator import RESERVED_IDS
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.recovery import History, attempts_needed
from penstock.errors import Refused


def complete(checkpoint: int, lineage: Lineage) -> Complete:
    part = Part(0, f"base-{checkpoint}" if checkpoint % 2 else "", 0, checkpoint, 0, checkpoint, 0, 0)
    return Complete(Manifest(1, "shop", checkpoint, lineage, checkpoint * 10, 128, 1, 1, {}, (part,), 7, "interval"))


def began(lineage: Lineage, restored: int, high: int) -> AttemptBegun:
    return AttemptBegun(lineage, restored, high, 0)


def history(*records: Complete | AttemptBegun | Reserve) -> History:
    read = History()
    for offset, record in enumerate(records):
        read.apply(offset, record)
    return read


def choices(read: History) -> list[int]:
    return [each.checkpoint for each in read.candidates()]


FIRST = Lineage(1)
SECOND = Lineage(2, ((1, 3),))
THIRD = Lineage(3, ((1, 3), (2, 12)))


def test_nothing_was_ever_complete() -> None:
    assert choices(history()) == []
    assert choices(history(began(FIRST, 0, 10))) == []


def test_the_newest_of_the_present_attempt_comes_first_and_older_ones_after_it() -> None:
    read = history(began(FIRST, 0, 10), complete(1, FIRST), complete(2, FIRST), complete(3, FIRST))

    assert choices(read) == [3, 2, 1]


def test_an_attempt_without_a_checkpoint_of_its_own_goes_back_to_where_it_began() -> None:
    read = history(began(FIRST, 0, 10), complete(1, FIRST), complete(3, FIRST), began(SECOND, 3, 20))

    assert choices(read) == [3, 1]


def test_a_replay_is_not_undone_by_what_is_newest() -> None:
    """A person went back to 3; then the process died at once. 5 and 6 were rolled back by a decision."""
    read = history(
        began(FIRST, 0, 10), complete(3, FIRST), complete(5, FIRST), complete(6, FIRST), began(SECOND, 3, 20)
    )

    assert choices(read) == [3]


def test_what_was_rolled_back_is_no_candidate_however_long_the_lineage() -> None:
    read = history(
        began(FIRST, 0, 10),
        complete(3, FIRST),
        complete(5, FIRST),
        began(SECOND, 3, 20),
        complete(12, SECOND),
        complete(13, SECOND),
        began(THIRD, 12, 30),
        complete(21, THIRD),
    )

    assert choices(read) == [21, 12, 3]


def test_a_zombie_that_completed_something_is_not_believed() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST), began(SECOND, 3, 20), complete(4, FIRST))

    assert choices(read) == [3]


def test_a_checkpoint_tells_of_its_attempt_when_the_record_that_began_it_is_gone() -> None:
    read = history(complete(3, FIRST), complete(13, SECOND), complete(14, SECOND))

    assert choices(read) == [14, 13, 3]
    assert read.attempt is not None
    assert (read.attempt.lineage, read.attempt.restored, read.high) == (SECOND, 3, 14)


def test_what_is_retained_says_where_its_manifest_and_its_bytes_are() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST))

    kept = read.checkpoints[3]
    assert (kept.offset, kept.created_ms, kept.attempt, kept.first) == (1, 30, 1, 3)
    assert (kept.bases, kept.delta_bytes, kept.reason) == (("base-3",), 7, "interval")


def test_a_person_may_choose_any_retained_checkpoint_also_an_abandoned_one() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST), complete(5, FIRST), began(SECOND, 3, 20))

    assert read.chosen(5).checkpoint == 5
    with pytest.raises(Refused) as refused:
        read.chosen(4)
    assert str(refused.value) == (
        "PEN0403 Checkpoint 4 can't be replayed: it is not retained. Retained: 3 to 5. "
        "List them: penstock checkpoint list."
    )


def test_on_kafka_checkpoints_of_another_parallelism_are_gone_with_their_topics() -> None:
    assert choices(rescaled(deltas_apart=False)) == [20, 3]
    assert choices(rescaled(deltas_apart=True)) == [20]


def test_that_is_so_too_where_the_checkpoints_before_were_not_read() -> None:
    read = History(deltas_apart=True)
    newest = complete(3, FIRST).manifest
    read.apply(7, Recap(began(FIRST, 0, 10), 10, None, (1, 2, 3), (5, newest)))
    assert read.missing == {1, 2}

    read.apply(8, complete(4, FIRST))
    assert read.missing == {1, 2}
    read.apply(9, Complete(replace(complete(20, SECOND).manifest, parallelism=4)))

    assert (choices(read), read.missing) == ([20], set())


def rescaled(*, deltas_apart: bool) -> History:
    read = History(deltas_apart=deltas_apart)
    read.apply(0, began(FIRST, 0, 10))
    read.apply(1, complete(3, FIRST))
    read.apply(2, Complete(replace(complete(20, SECOND).manifest, parallelism=4)))
    return read


def test_with_nothing_retained_the_refusal_says_so() -> None:
    with pytest.raises(Refused, match="Retained: none"):
        history().chosen(1)


# The next attempt.


def test_the_first_attempt_reserves_the_first_ids() -> None:
    begun = history().next_attempt(None, 0, 5, "start")

    assert begun == AttemptBegun(Lineage(1), 0, RESERVED_IDS, 5, "start")


def test_the_next_attempt_descends_from_what_it_restores() -> None:
    begun = history(began(FIRST, 0, 10), complete(3, FIRST)).next_attempt(FIRST, 3, 5, "start")

    assert begun.lineage == SECOND
    assert begun.restored == 3


@pytest.mark.parametrize(
    "records", [(began(FIRST, 0, 10), Reserve(50)), (began(FIRST, 0, 50),), (Reserve(50), Reserve(20))]
)
def test_its_ids_are_above_everything_that_was_ever_reserved(records: tuple[AttemptBegun | Reserve, ...]) -> None:
    begun = history(*records).next_attempt(None, 0, 5, "start")

    assert begun.high == 50 + RESERVED_IDS


def test_an_attempt_that_goes_back_to_an_old_branch_has_a_new_number() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST), began(SECOND, 3, 20), began(THIRD, 12, 30))

    assert read.next_attempt(FIRST, 3, 5, "replay").lineage == Lineage(4, ((1, 3),))


def test_each_replay_of_a_checkpoint_has_a_number_of_its_own() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST))

    once = read.next_attempt(FIRST, 3, 5, "replay", replay=True)
    read.apply(9, once)
    again = read.next_attempt(FIRST, 3, 5, "replay", replay=True)

    assert (once.lineage.replays, again.lineage.replays) == ((2,), (3,))


def test_a_replay_that_ends_before_its_first_checkpoint_is_gone_on_with() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST))
    read.apply(9, read.next_attempt(FIRST, 3, 5, "replay", replay=True))

    following = read.next_attempt(FIRST, 3, 5, "start")

    assert following.lineage.replays == (2,)


def test_what_never_began_can_not_be_repeated() -> None:
    assert history().next_attempt(None, 0, 5, "fresh start", replay=True).lineage.replays == ()


def test_records_that_could_not_be_read_cost_numbers_and_nothing_else() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST))
    read.skip(1_000_000)

    begun = read.next_attempt(FIRST, 3, 5, "start")

    assert begun.lineage == Lineage(1_000_002, ((1, 3),))
    assert begun.high == 10 + 1_000_000 + RESERVED_IDS


# Where reading continues.


def test_a_history_continues_behind_the_last_record_it_took_in() -> None:
    read = history(began(FIRST, 0, 10), complete(3, FIRST))

    assert read.scanned == 2
    again = History(read.attempt, read.high, iter(read.checkpoints.values()), read.scanned)
    assert (choices(again), again.high, again.scanned) == ([3], 10, 2)


def retained(checkpoint: int, lineage: Lineage, *inboxes: tuple[int, int]) -> Manifest:
    """A checkpoint whose tasks had read up to the first number of their inboxes, which then ended at the second."""
    parts = tuple(Part(task, "", 0, -1, 0, -1, position, end) for task, (position, end) in enumerate(inboxes))
    return Manifest(1, "shop", checkpoint, lineage, 0, 128, len(parts), 1, {}, parts)


@pytest.mark.parametrize(
    ("manifests", "needed"),
    [
        ([retained(1, FIRST, (0, 0))], {1, 2, 3}),
        ([retained(4, SECOND, (5, 5), (7, 7))], {2, 3}),
        ([retained(4, SECOND, (5, 5), (6, 7))], {1, 2, 3}),  # A frame of attempt 1 may be before 7.
        ([retained(13, THIRD, (9, 9))], {3}),
        ([retained(4, SECOND, (5, 5)), retained(13, THIRD, (9, 9))], {2, 3}),
        ([retained(4, SECOND, (5, 5)), retained(13, THIRD, (4, 9))], {1, 2, 3}),  # A replay reads from further back.
        # The branch of attempt 2 ends before frames of attempt 1 that the one of attempt 3 still has to take.
        ([retained(13, SECOND, (5, 5)), retained(23, Lineage(3, ((1, 5),)), (6, 9))], {1, 2, 3}),
        ([retained(13, SECOND, (5, 5)), retained(23, Lineage(3, ((1, 5),)), (9, 9))], {3}),
    ],
)
def test_an_ancestor_is_needed_by_what_is_retained_and_by_what_its_inboxes_may_still_give(
    manifests: list[Manifest], needed: set[int]
) -> None:
    is_needed = attempts_needed(manifests[-1], manifests)

    assert {attempt for attempt in (1, 2, 3) if is_needed(attempt)} == needed
