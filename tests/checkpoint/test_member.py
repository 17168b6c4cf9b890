"""What a worker makes of decisions and hints, in the orders in which they may come."""

from __future__ import annotations

from msgspec.structs import replace

from penstock.checkpoint.control import FORMAT, Assign, AttemptBegun, Complete, Manifest, Reserve
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.member import Adopt, Cut, Drop, End, Fetch, GoOn, Halt, Leave, Member, Restore, Settle
from penstock.checkpoint.reports import Begin, Expelled, Finish, Leading, Prepare

ME, OTHER = "a#1", "b#1"


def attempt(number: int = 1) -> AttemptBegun:
    return AttemptBegun(Lineage(number), 0, 1_000 * number, 0)


def manifest(checkpoint: int, number: int = 1) -> Manifest:
    return Manifest(FORMAT, "shop", checkpoint, Lineage(number), 0, 128, 2, 1, {}, ())


def assign(
    version: int,
    owners: dict[int, str],
    *,
    number: int = 1,
    moved: tuple[int, ...] = (),
    state: Manifest | None = None,
    resolved: int = 0,
    members: tuple[str, ...] = (ME, OTHER),
) -> Assign:
    return Assign(version, attempt(number), owners, members, moved, state, resolved)


BEGUN = assign(1, {0: ME, 1: ME}, moved=(0, 1))


def working() -> Member:
    """A worker that owns tasks 0 and 1 of attempt 1."""
    member = Member(ME)
    assert member.decided(BEGUN) == [Restore(attempt(), (0, 1), None)]
    return member


def releasing(checkpoint: int = 7) -> Member:
    """The same, after it has let task 1 stand still for a checkpoint."""
    member = working()
    assert member.hinted(Begin(1, checkpoint, (1,))) == [Cut(checkpoint, frozenset({1}))]
    member.released({1}, checkpoint)
    return member


# Another parallelism.


def test_a_worker_with_tasks_from_before_the_application_was_rescaled_ends() -> None:
    member = working()
    rescaled = replace(assign(9, {}, members=()), generation=2, tasks=8)

    assert member.decided(rescaled) == [End("has the parallelism from before the application was rescaled")]


def test_a_worker_with_the_new_parallelism_is_given_tasks() -> None:
    member = Member(ME, 2)
    assigned = replace(assign(9, {0: ME}, number=3), generation=2, tasks=1)

    assert member.decided(assigned) == [Restore(assigned.attempt, (0,), None)]


# Attempts.


def test_before_any_assignment_nothing_is_done() -> None:
    member = Member(ME)

    assert member.decided(attempt()) == []
    assert member.decided(Complete(manifest(5))) == []
    assert member.hinted(Begin(1, 5, (0,))) == []
    assert member.number == 0


def test_an_attempt_that_begins_stops_what_the_one_before_did() -> None:
    member = working()

    assert member.decided(attempt(2)) == [Halt()]
    assert member.hinted(Begin(1, 5)) == []
    assert member.decided(Complete(manifest(5))) == []


def test_an_attempt_that_is_over_is_not_begun_again() -> None:
    member = working()
    member.decided(attempt(3))

    assert member.decided(attempt(2)) == []


def test_who_has_nothing_in_the_next_attempt_lets_go_of_what_it_had() -> None:
    member = working()

    assert member.decided(assign(2, {0: OTHER, 1: OTHER}, number=2, moved=(0, 1))) == [Restore(attempt(2), (), None)]
    assert not member.tasks


def test_standing_still_ends_with_the_attempt() -> None:
    member = releasing()

    member.decided(assign(2, {0: ME, 1: ME}, number=2, moved=(0, 1), state=manifest(5)))

    assert not member.still


def test_an_assignment_older_than_the_newest_says_nothing() -> None:
    member = working()
    member.decided(assign(3, {0: ME, 1: ME}))

    assert member.decided(assign(2, {0: OTHER, 1: OTHER}, members=(OTHER,))) == []
    assert member.tasks == {0, 1}


# Belonging.


def test_who_is_not_named_any_more_ends() -> None:
    (end,) = working().decided(assign(2, {0: OTHER, 1: OTHER}, members=(OTHER,)))
    assert end == End("is not named in the newest assignment")  # Behind: Worker NAME was fenced: it ...


def test_who_was_never_named_waits() -> None:
    assert Member(ME).decided(assign(2, {0: OTHER, 1: OTHER}, members=(OTHER,))) == []


def test_who_is_expelled_ends_and_nobody_else() -> None:
    member = working()

    assert member.hinted(Expelled(OTHER, "was silent")) == []
    assert member.hinted(Expelled(ME, "was silent")) == [End("was silent")]


def test_what_is_done_for_good_is_left_in_the_attempt_that_did_it() -> None:
    member = working()

    assert member.hinted(Finish(2)) == []
    assert member.hinted(Finish(1)) == [Leave()]


# Checkpoints.


def test_a_complete_checkpoint_of_the_attempt_settles() -> None:
    member = working()

    assert member.decided(Complete(manifest(5))) == [Settle(manifest(5))]
    assert member.decided(Reserve(2_000)) == member.hinted(Leading("l")) == []


def test_a_hint_that_comes_before_its_attempt_is_remembered_for_the_tasks_that_come() -> None:
    member = Member(ME)

    assert member.hinted(Begin(1, 5)) == []
    member.decided(BEGUN)

    assert member.begun == 5


def test_a_hint_that_comes_late_does_not_bring_an_older_checkpoint_back() -> None:
    member = working()
    member.hinted(Begin(1, 9))
    member.hinted(Begin(1, 8))

    assert member.begun == 9


def test_what_another_attempt_began_is_nothing_to_join() -> None:
    member = working()
    member.hinted(Begin(2, 2_005))

    assert member.begun == 0


# Tasks change hands.


def test_a_released_task_that_is_given_away_is_dropped() -> None:
    member = releasing()

    assert member.decided(assign(2, {0: ME, 1: OTHER}, moved=(1,), state=manifest(7), resolved=7)) == [
        Drop((1,), frozenset())
    ]
    assert member.tasks == {0}
    assert not member.still


def test_a_task_that_nobody_takes_is_an_orphan() -> None:
    member = releasing()

    assert member.decided(assign(2, {0: ME}, state=manifest(7), resolved=7)) == [Drop((1,), frozenset({1}))]


def test_a_released_task_goes_on_when_an_assignment_that_knows_of_it_leaves_it_here() -> None:
    member = releasing()

    assert member.decided(assign(2, {0: ME, 1: ME}, resolved=7)) == [GoOn((1,))]
    assert not member.still


def test_an_assignment_from_before_the_release_does_not_end_it() -> None:
    """Hints overtake decisions: this one was made before the hint that released the task."""
    member = releasing(checkpoint=7)

    assert member.decided(assign(2, {0: ME, 1: ME}, resolved=6)) == []
    assert set(member.still) == {1}


def test_a_release_that_is_decided_already_does_not_begin() -> None:
    """The hint is of a leader that leads no longer: no assignment to come would end the standing still."""
    member = working()
    member.decided(assign(2, {0: ME, 1: ME}, resolved=12))

    assert member.hinted(Begin(1, 8, (1,))) == [Cut(8, frozenset())]
    assert member.hinted(Begin(1, 13, (1,))) == [Cut(13, frozenset({1}))]


def test_a_task_that_comes_is_adopted() -> None:
    member = Member(ME)
    member.decided(assign(1, {0: ME, 1: OTHER}, moved=(0, 1)))

    assert member.decided(assign(2, {0: ME, 1: ME}, moved=(1,), state=manifest(7))) == [
        Adopt(attempt(), (1,), manifest(7))
    ]


def test_the_first_task_of_a_newcomer_is_adopted_too() -> None:
    """It has read no assignment of this attempt, but the attempt has begun long ago."""
    member = Member(ME)

    assert member.decided(assign(2, {0: OTHER, 1: ME}, moved=(1,), state=manifest(7))) == [
        Adopt(attempt(), (1,), manifest(7))
    ]
    assert member.number == 1


def test_an_attempt_that_continues_an_older_one_is_restored() -> None:
    member = Member(ME)

    assert member.decided(assign(2, {0: ME, 1: ME}, number=2, moved=(0, 1), state=manifest(7, number=1))) == [
        Restore(attempt(2), (0, 1), manifest(7, number=1))
    ]


def test_only_the_one_who_will_get_a_task_prepares_for_it() -> None:
    member = working()

    assert member.hinted(Prepare(OTHER, (3,), None)) == []
    assert member.hinted(Prepare(ME, (3,), None)) == [Fetch((3,), None)]
