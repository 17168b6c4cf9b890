"""What a leader decides, with workers that do at once what it says, and event by event.

What many workers make of delays is simulated elsewhere.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Part, Recap
from penstock.checkpoint.leader import (
    RECAP_RECORDS,
    Action,
    Aged,
    Fence,
    FencesWritten,
    Forget,
    Heard,
    Leader,
    LeaderOptions,
    Note,
    Phase,
    Recalled,
    Tell,
    Ticked,
    Write,
    Written,
)
from penstock.checkpoint.leader import Event as LeaderEvent
from penstock.checkpoint.reports import (
    Acknowledgement,
    Alive,
    Begin,
    Changed,
    Ended,
    Expelled,
    Fault,
    Hint,
    Leading,
    Pinned,
    Prepare,
    Prepared,
    Report,
    Unable,
)
from penstock.checkpoint.retention import Retention
from penstock.errors import CorruptSnapshot, Refused

TASKS = 4


class Led:
    """A leader whose records are durable at once, and the newest checkpoint it has begun."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.leader = Leader(LeaderOptions("leader#1", "shop", TASKS, {}, workers_expected=2), (), self.now_ms)
        self.begun: Begin | None = None
        self._offset = 0

    def tell(self, event: LeaderEvent) -> None:
        waiting = [event]
        while waiting:
            for action in self.leader.handle(waiting.pop(0), self.now_ms):
                match action:
                    case Write():
                        waiting.append(Written(self._offset))
                        self._offset += 1
                    case Fence(attempt):
                        waiting.append(FencesWritten(attempt))
                    case Tell(hint) if isinstance(hint, Begin):
                        self.begun = hint

    def pass_time(self, ms: float) -> None:
        self.now_ms += ms
        self.tell(Ticked())

    def begin(self) -> Begin:
        """Let a checkpoint be begun."""
        self.begun = None
        attempt = self.leader.attempt
        assert attempt is not None
        self.tell(Heard(Changed("w", attempt.lineage.attempt, "output")))
        for _ in range(10):
            if self.begun is None:
                self.pass_time(300)
        assert self.begun is not None
        return self.begun

    def acknowledge(self, begun: Begin) -> None:
        """All workers cut, and let stand still what they are asked to."""
        for worker in sorted(set(self.leader.owners.values())):
            tasks = [task for task, owner in self.leader.owners.items() if owner == worker]
            parts = tuple(Part(task, "", 0, -1, 0, -1, 0, 0) for task in tasks)
            released = tuple(task for task in tasks if task in begun.release)
            self.tell(Heard(Acknowledgement(worker, begun.attempt, begun.checkpoint, parts, {}, released)))

    def alive(self, worker: str, *, leaving: bool = False) -> None:
        self.tell(Heard(Alive(worker, worker.partition("#")[0], leaving=leaving)))


def test_what_goes_to_nobody_goes_all_at_once() -> None:
    """Tasks are on their way to a worker that leaves, when all others leave, too."""
    led = Led()
    led.alive("a#1")
    led.pass_time(1_000)
    led.alive("b#1")
    assert led.begun is not None
    led.acknowledge(led.begun)
    led.tell(Heard(Prepared("b#1", tuple(range(TASKS)))))
    moving = led.begin()
    assert 0 < len(moving.release) < TASKS

    led.alive("a#1", leaving=True)
    led.alive("b#1", leaving=True)
    led.tell(Heard(Ended("b#1", "stopped")))
    led.acknowledge(moving)
    assert set(led.leader.owners) == set(range(TASKS))

    last = led.begin()
    assert set(last.release) == set(range(TASKS))
    led.acknowledge(last)
    assert led.leader.owners == {}


# One event, and the actions that must follow.


class Slow:
    """A leader whose records become durable when the test says so."""

    def __init__(self, records: tuple[tuple[int, ControlRecord], ...] = (), *, tasks: int = 2, **options: Any) -> None:
        self.now_ms = 0.0
        self.options = LeaderOptions("leader#1", "shop", tasks, {}, **options)
        self.leader = Leader(self.options, records, self.now_ms)
        self.log = list(records)
        self.to_write: list[ControlRecord] = []
        self.staged: tuple[int, ...] | None = ()
        """The attempts of rows that workers say are on their way."""
        self.hints: list[Hint] = []

    def tell(self, event: LeaderEvent) -> list[Action]:
        actions = self.leader.handle(event, self.now_ms)
        self.to_write += [action.record for action in actions if isinstance(action, Write)]
        self.hints += [action.hint for action in actions if isinstance(action, Tell)]
        return actions

    def hear(self, report: Report) -> list[Action]:
        return self.tell(Heard(report))

    def write(self) -> list[Action]:
        """The oldest record becomes durable."""
        offset = len(self.log)
        self.log.append((offset, self.to_write.pop(0)))
        return self.tell(Written(offset))

    def pass_time(self, ms: float) -> list[Action]:
        self.now_ms += ms
        return self.tell(Ticked())

    def acknowledge(self, worker: str, *released: int, checkpoint: int | None = None) -> list[Action]:
        """A worker has cut all its tasks, and lets some stand still."""
        begun = self.begun
        tasks = [task for task, owner in self.leader.owners.items() if owner == worker]
        parts = tuple(Part(task, "", 0, -1, 0, -1, 0, 0, {}, self.staged) for task in tasks)
        return self.hear(Acknowledgement(worker, begun.attempt, checkpoint or begun.checkpoint, parts, {}, released))

    @property
    def begun(self) -> Begin:
        return next(hint for hint in reversed(self.hints) if isinstance(hint, Begin))

    def begin(self) -> Begin:
        """Let a checkpoint be begun, for which ids are reserved already."""
        count = len(self.hints)
        assert self.leader.attempt is not None
        self.hear(Changed("a#1", self.leader.attempt.lineage.attempt, "output"))
        for _ in range(2):  # Before the second there are more ids.
            self.pass_time(300)
            while self.to_write:
                self.write()
        assert any(isinstance(hint, Begin) for hint in self.hints[count:])
        return self.begun


def leading(*workers: str, tasks: int = 2, **options: Any) -> Slow:
    """A leader of workers that have all tasks, and have not been asked for a checkpoint yet."""
    slow = Slow(tasks=tasks, workers_expected=len(workers), **options)
    begin_attempt(slow, *workers)
    return slow


def begin_attempt(slow: Slow, *workers: str) -> None:
    for worker in workers:
        slow.hear(Alive(worker, worker.partition("#")[0]))
    slow.write()
    assert slow.leader.attempt is not None
    slow.tell(FencesWritten(slow.leader.attempt.lineage.attempt))
    slow.write()
    assert slow.leader.phase is Phase.LEADING


def complete(slow: Slow) -> int:
    """A checkpoint that all workers take part in. Returns its id."""
    checkpoint = slow.begin().checkpoint
    for worker in sorted(set(slow.leader.owners.values())):
        slow.acknowledge(worker)
    slow.write()
    return checkpoint


def releasing() -> Slow:
    """A leader that has asked a#1 to let task 1 stand still, for b#1."""
    slow = leading("a#1")
    complete(slow)
    slow.hear(Alive("b#1", "b"))
    slow.hear(Prepared("b#1", (0, 1)))
    assert slow.begin().release == (1,)
    return slow


def assigned(records: list[ControlRecord]) -> Assign:
    (record,) = records
    assert isinstance(record, Assign)
    return record


def test_an_attempt_begins_with_record_fences_and_assignment_each_durable_before_the_next() -> None:
    slow = Slow()
    slow.hear(Alive("a#1", "a"))
    assert [type(record) for record in slow.to_write] == [AttemptBegun]

    assert slow.write() == [Fence(1)]
    assert slow.to_write == []
    slow.tell(FencesWritten(1))

    assignment = assigned(slow.to_write)
    assert assignment.owners == {0: "a#1", 1: "a#1"}
    assert assignment.moved == (0, 1)
    assert slow.leader.phase is Phase.ASSIGNING


def test_the_first_worker_waits_for_others_but_not_for_ever() -> None:
    slow = Slow(workers_expected=2, settle_ms=500)
    slow.hear(Alive("a#1", "a"))
    assert slow.to_write == []

    slow.pass_time(500)

    assert [type(record) for record in slow.to_write] == [AttemptBegun]


def test_a_recovery_waits_until_it_is_known_whether_the_checkpoint_is_complete() -> None:
    slow = leading("a#1", "b#1")
    begun = slow.begin()
    slow.acknowledge("a#1")
    slow.acknowledge("b#1")
    assert [type(record) for record in slow.to_write] == [Complete]

    slow.hear(Ended("b#1", "was killed"))
    assert len(slow.to_write) == 1
    slow.write()

    (attempt,) = slow.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.restored == begun.checkpoint


def test_a_silent_worker_is_lost_and_told_so_when_it_is_heard_again() -> None:
    slow = leading("a#1", "b#1", session_ms=3_000)
    for _ in range(4):
        slow.hear(Alive("a#1", "a"))
        slow.pass_time(1_000)
    assert [member.worker for member in slow.leader.members] == ["a#1"]

    slow.hear(Alive("b#1", "b"))

    assert slow.hints[-1] == Expelled("b#1", "was silent for 4.0 s")


def test_nobody_is_lost_because_the_leader_slept() -> None:
    """Its process was stopped, or its clock was set forward: the reports lie there, and it has not read them."""
    slow = leading("a#1", "b#1", session_ms=3_000)

    slow.pass_time(60_000)

    assert len(slow.leader.members) == 2
    assert slow.leader.phase is Phase.LEADING


def test_a_worker_that_is_started_again_takes_the_place_of_the_one_before() -> None:
    slow = leading("a#1", "b#1")

    slow.hear(Alive("a#2", "a"))

    assert slow.leader.phase is Phase.BEGINNING
    assert [member.worker for member in slow.leader.members] == ["b#1", "a#2"]


def test_only_acknowledgements_of_owners_for_this_checkpoint_count() -> None:
    slow = leading("a#1", "b#1")
    begun = slow.begin()
    everything = tuple(Part(task, "", 0, -1, 0, -1, 0, 0) for task in range(2))

    slow.hear(Acknowledgement("c#1", begun.attempt, begun.checkpoint, everything, {}))
    slow.hear(Acknowledgement("a#1", begun.attempt + 1, begun.checkpoint, everything, {}))
    slow.hear(Acknowledgement("a#1", begun.attempt, begun.checkpoint - 1, everything, {}))
    slow.acknowledge("a#1")
    assert slow.to_write == []

    slow.acknowledge("b#1")
    assert [type(record) for record in slow.to_write] == [Complete]


def test_a_part_reaches_as_far_into_its_inbox_as_any_worker_has_written() -> None:
    slow = leading("a#1", "b#1")
    begun = slow.begin()
    for worker, task, sent in (("a#1", 0, {1: 9}), ("b#1", 1, {0: 4, 1: 7})):
        assert slow.leader.owners[task] == worker
        part = Part(task, "", 0, -1, 0, -1, 0, 0)
        slow.hear(Acknowledgement(worker, begun.attempt, begun.checkpoint, (part,), sent))

    (record,) = slow.to_write
    assert isinstance(record, Complete)
    assert [part.inbox_end for part in record.manifest.parts] == [4, 9]


# Tasks change hands.


def test_a_task_is_released_once_its_new_owner_is_prepared() -> None:
    slow = leading("a#1")
    complete(slow)
    slow.hear(Alive("b#1", "b"))
    (hint,) = (hint for hint in slow.hints if isinstance(hint, Prepare))
    assert (hint.worker, hint.tasks) == ("b#1", (1,))
    assert slow.begin().release == ()
    slow.acknowledge("a#1")
    slow.write()

    slow.hear(Prepared("b#1", (1,)))

    assert slow.begin().release == (1,)


def test_a_released_task_is_given_away_only_when_its_checkpoint_is_complete() -> None:
    slow = releasing()
    slow.acknowledge("a#1", 1)
    assert [type(record) for record in slow.to_write] == [Complete]

    slow.write()

    assignment = assigned(slow.to_write)
    assert assignment.owners == {0: "a#1", 1: "b#1"}
    assert assignment.moved == (1,)
    assert assignment.manifest is not None
    assert assignment.manifest.checkpoint == assignment.resolved == slow.begun.checkpoint


def test_a_task_that_was_not_released_stays() -> None:
    """A frame of the new epoch made it cut before it heard of the release."""
    slow = releasing()

    slow.acknowledge("a#1")
    slow.write()

    assert slow.to_write == []
    assert slow.leader.owners == {0: "a#1", 1: "a#1"}


def test_when_the_checkpoint_is_given_up_an_assignment_lets_the_task_go_on() -> None:
    slow = releasing()

    slow.hear(Unable("a#1", slow.begun.attempt, slow.begun.checkpoint, "nobody knows where it is"))

    assignment = assigned(slow.to_write)
    assert assignment.owners == {0: "a#1", 1: "a#1"}
    assert assignment.moved == ()
    assert assignment.resolved == slow.begun.checkpoint


def test_when_the_target_is_gone_the_task_finds_another_owner_and_no_other_task_moves() -> None:
    slow = releasing()
    slow.hear(Ended("b#1", "was killed"))
    slow.acknowledge("a#1", 1)
    while slow.to_write:
        slow.write()

    last = [record for _, record in slow.log if isinstance(record, Assign)][-1]
    assert last.owners == {0: "a#1", 1: "a#1"}
    assert last.moved in ((), (1,))


def test_when_ownerless_tasks_find_an_owner_those_of_a_worker_that_leaves_stay_for_now() -> None:
    slow = leading("a#1", "b#1")
    slow.hear(Alive("a#1", "a", leaving=True))
    slow.hear(Alive("b#1", "b", leaving=True))
    begun = slow.begin()
    assert set(begun.release) == {0, 1}
    slow.acknowledge("a#1", 0)
    slow.acknowledge("b#1")
    slow.hear(Alive("c#1", "c"))
    while slow.to_write:
        slow.write()

    assert slow.leader.owners[1] == "b#1"


def test_when_all_that_remain_leave_a_new_attempt_begins_so_that_they_can() -> None:
    """Nobody else comes, and what they have they can only give back at a checkpoint."""
    slow = leading("a#1", "b#1")
    complete(slow)
    slow.hear(Alive("b#1", "b", leaving=True))
    slow.hear(Ended("a#1", "was killed"))
    slow.write()
    assert slow.leader.attempt is not None
    slow.tell(FencesWritten(slow.leader.attempt.lineage.attempt))
    assert assigned(slow.to_write).owners == {0: "b#1", 1: "b#1"}

    slow.write()
    assert set(slow.begun.release) == {0, 1}
    slow.acknowledge("b#1", 0, 1)
    slow.write()
    assert assigned(slow.to_write).owners == {}
    slow.write()
    slow.pass_time(5_000)
    slow.hear(Alive("b#1", "b", leaving=True))
    assert slow.to_write == []


def test_a_worker_for_whom_there_is_no_task_learns_that_it_belongs_here() -> None:
    slow = leading("a#1", "b#1")
    slow.hear(Alive("c#1", "c"))
    assignment = assigned(slow.to_write)
    assert assignment.members == ("a#1", "b#1", "c#1")
    assert (assignment.owners, assignment.moved) == ({0: "a#1", 1: "b#1"}, ())

    slow.write()
    slow.pass_time(100)
    assert slow.to_write == []


def test_that_a_worker_has_come_is_ordinary_and_that_one_is_lost_is_not() -> None:
    slow = leading("a#1")
    notes = [action for action in slow.hear(Alive("b#1", "b")) if isinstance(action, Note)]
    notes += [action for action in slow.hear(Ended("a#1", "was killed")) if isinstance(action, Note)]
    assert [note.ordinary for note in notes] == [True, False]


# Another leader.


def test_another_leader_leads_the_attempt_on_and_lets_all_that_stands_still_go_on() -> None:
    slow = releasing()
    next_one = Slow(tuple(slow.log))

    assert next_one.leader.phase is Phase.LEADING
    assert next_one.leader.owners == slow.leader.owners
    next_one.pass_time(1)
    assignment = assigned(next_one.to_write[:1])
    assert (assignment.owners, assignment.moved) == ({0: "a#1", 1: "a#1"}, ())
    assert assignment.resolved >= slow.begun.checkpoint


def test_another_leader_uses_no_id_that_the_one_before_may_have_used() -> None:
    slow = releasing()
    next_one = Slow(tuple(slow.log))
    next_one.hear(Alive("a#1", "a"))

    assert next_one.begin().checkpoint > slow.begun.checkpoint + 900


def test_another_leader_does_not_lead_on_an_attempt_without_owners() -> None:
    slow = Slow()
    slow.hear(Alive("a#1", "a"))
    slow.write()

    next_one = Slow(tuple(slow.log))
    assert next_one.leader.phase is Phase.WAITING
    next_one.hear(Alive("a#1", "a"))

    (attempt,) = next_one.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.lineage.attempt == 2


def test_what_is_repeated_for_another_leader_waits_for_what_is_being_written() -> None:
    """Otherwise the repetition stands behind an assignment that it does not know of, and undoes it."""
    slow = releasing()
    slow.acknowledge("a#1", 1)
    slow.write()
    assert [type(record) for record in slow.to_write] == [Assign]
    slow.now_ms += 3_600_000

    assert slow.tell(Aged()) == []


def test_another_leader_knows_what_is_not_retained_any_more() -> None:
    slow = leading("a#1", retention=Retention(all_ms=1_000, spacing_ms=1_000, spaced_ms=1_000))
    dropped = complete(slow)
    for _ in range(20):
        slow.pass_time(1_000)
        slow.hear(Alive("a#1", "a"))
    newest = complete(slow)
    slow.tell(Aged())
    slow.write()

    next_one = Slow(tuple(slow.log))

    assert set(next_one.leader.history.checkpoints) == {newest}
    assert dropped < newest


def test_what_somebody_reads_is_retained_for_as_long_as_they_say_so() -> None:
    slow = leading("a#1", retention=Retention(all_ms=0, spacing_ms=0, spaced_ms=0))
    read = complete(slow)
    (told,) = slow.hear(Pinned("savepoint-1", read))
    assert isinstance(told, Tell)
    assert isinstance(told.hint, Leading)
    assert told.hint.pinned == (read,)
    assert slow.hear(Pinned("savepoint-1", read)) == []  # They know.
    forgotten, newest = complete(slow), complete(slow)

    def age() -> set[int]:
        slow.tell(Aged())
        while slow.to_write:
            slow.write()
        return set(slow.leader.history.checkpoints)

    assert not {read, newest} - age()
    assert forgotten not in age()
    for _ in range(20):
        slow.pass_time(1_000)
        slow.hear(Alive("a#1", "a"))
        slow.hear(Pinned("savepoint-1", read))
    assert read in age()
    slow.hear(Pinned("savepoint-1", 0))
    assert read not in age()


def test_a_reader_that_is_silent_for_long_has_ended() -> None:
    slow = leading("a#1")
    read = complete(slow)
    slow.hear(Pinned("savepoint-1", read))
    for _ in range(11):
        slow.pass_time(1_000)
        slow.hear(Alive("a#1", "a"))

    hints = [action.hint for action in slow.pass_time(1_000) if isinstance(action, Tell)]

    assert [hint.pinned for hint in hints if isinstance(hint, Leading)] == [()]


def test_what_is_not_retained_can_not_be_pinned_any_more() -> None:
    slow = leading("a#1")
    complete(slow)

    (told,) = slow.hear(Pinned("savepoint-1", 999_999))

    assert isinstance(told, Tell)
    assert isinstance(told.hint, Leading)
    assert told.hint.pinned == ()


def test_nothing_is_forgotten_before_an_attempt_from_nothing_has_a_checkpoint_of_its_own() -> None:
    """It reads its inputs from their start, and those of the attempts before it are further on."""
    slow = leading("a#1")
    complete(slow)
    complete(slow)
    little = Retention(all_ms=0, spacing_ms=0, spaced_ms=0)
    fresh = Slow(tuple(slow.log), fresh=True, retention=little)
    begin_attempt(fresh, "a#1")
    fresh.now_ms += 3_600_000

    assert fresh.tell(Aged()) == []
    complete(fresh)
    assert [type(action) for action in fresh.tell(Aged())] == [Write]


def test_a_leader_that_has_looked_before_the_application_was_rescaled_is_refused() -> None:
    slow = leading("a#1")
    complete(slow)
    _, assigned = next((offset, record) for offset, record in slow.log if isinstance(record, Assign))
    assert (assigned.generation, assigned.tasks) == (1, 2)
    rescaled = msgspec.structs.replace(assigned, version=9, owners={}, members=(), generation=2, tasks=8)

    with pytest.raises(Refused, match=r"PEN0448 .* it has 8 tasks now, and this process was to run it with 2"):
        Slow((*slow.log, (99, rescaled)))


# A leader that leads before it has read everything.


def repeated(**options: Any) -> tuple[Slow, int]:
    """A leader of four checkpoints, which has repeated what it knows at the third. And where that record stands."""
    slow = leading("a#1", **options)
    for _ in range(3):
        complete(slow)
    slow.leader._unrepeated = RECAP_RECORDS
    slow.tell(Aged())
    (recap,) = slow.to_write
    assert isinstance(recap, Recap)
    slow.write()
    complete(slow)
    return slow, next(offset for offset, record in slow.log if record is recap)


def test_what_was_decided_is_repeated_now_and_then_and_nothing_is_deleted_for_that() -> None:
    slow = leading("a#1")
    complete(slow)
    assert slow.tell(Aged()) == []

    slow.leader._unrepeated = RECAP_RECORDS
    assert [type(action) for action in slow.tell(Aged())] == [Write]
    assert not any(isinstance(action, Forget) for action in slow.write())
    assert slow.tell(Aged()) == []


def test_a_leader_that_knows_the_newest_decisions_leads_and_learns_the_others_later() -> None:
    slow, at = repeated()
    whole = Slow(tuple(slow.log))
    next_one = Slow(tuple(slow.log[at:]))
    assert next_one.leader.phase is Phase.LEADING
    assert next_one.leader.owners == whole.leader.owners
    assert len(next_one.leader.history.checkpoints) == 2

    next_one.pass_time(1)
    next_one.write()
    next_one.leader._unrepeated = RECAP_RECORDS
    assert next_one.tell(Aged()) == []
    next_one.tell(Recalled(slow.log[:at], last=True))

    known, expected = next_one.leader.history.checkpoints, whole.leader.history.checkpoints
    assert list(known.items()) == list(expected.items())
    assert [next_one.leader.manifest(each) for each in known] == [whole.leader.manifest(each) for each in expected]


def test_it_goes_back_to_the_newest_checkpoint_at_once_and_names_all_ancestors() -> None:
    slow, at = repeated()
    next_one = Slow(tuple(slow.log[at : at + 1]))
    next_one.pass_time(1)
    while next_one.to_write:
        next_one.write()

    next_one.hear(Fault("a#1", 1, "a frame is missing"))

    (attempt,) = next_one.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.restored == next(reversed(list(slow.leader.history.checkpoints)[:-1]))
    assert attempt.retained is None


@pytest.mark.parametrize("wish", [0, 1], ids=["when the newest is damaged", "as a person wants it"])
def test_it_waits_for_an_older_checkpoint_that_it_has_to_go_back_to(wish: int) -> None:
    slow, at = repeated()
    first, _, third, _ = slow.leader.history.checkpoints
    options = {"from_checkpoint": first} if wish else {}
    next_one = Slow(tuple(slow.log[at : at + 1]), **options)
    next_one.hear(Alive("a#1", "a"))
    next_one.pass_time(1_000)
    while next_one.to_write:
        next_one.write()
    if not wish:
        next_one.hear(Fault("a#1", 1, "a delta is damaged", third))
    assert next_one.to_write == []

    next_one.tell(Recalled(slow.log[:at], last=False))
    next_one.tell(Recalled([], last=True))

    (attempt,) = next_one.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.restored == (first if wish else first + 1)


# What an attempt says of those before it.


@pytest.mark.parametrize(
    ("staged", "named"),
    [
        pytest.param((), {3, 4, 5}, id="nothing is left of them"),
        pytest.param((2,), {2, 3, 4, 5}, id="rows of one may be visible"),
        pytest.param(None, {1, 2, 3, 4, 5}, id="nobody has said whose rows may be"),
    ],
)
def test_an_attempt_names_only_ancestors_that_something_is_left_of(
    staged: tuple[int, ...] | None, named: set[int]
) -> None:
    slow = leading("a#1", retention=Retention(all_ms=0, spacing_ms=0, spaced_ms=0))
    slow.staged = staged
    complete(slow)
    for attempt in (2, 3, 4, 5):
        complete(slow)
        slow.pass_time(1)
        slow.tell(Aged())
        while slow.to_write:
            slow.write()
        slow.hear(Fault("a#1", attempt - 1, "a frame is missing"))
        slow.write()
        slow.tell(FencesWritten(attempt))
        slow.write()
        slow.acknowledge("a#1")
        slow.write()
    assert slow.leader.attempt is not None
    assert slow.leader.attempt.lineage.attempts == named


def test_markers_keep_what_they_say_of_a_branch_that_a_person_may_go_back_to() -> None:
    slow = leading("a#1")
    older, newer = complete(slow), complete(slow)
    slow.hear(Fault("a#1", 1, "a frame is missing"))
    slow.write()
    slow.tell(FencesWritten(2))
    slow.write()
    slow.acknowledge("a#1")
    slow.write()
    back = Slow(tuple(slow.log), from_checkpoint=older)
    back.hear(Alive("a#1", "a"))
    (attempt,) = back.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.lineage.attempts == {1, 3}
    assert attempt.retained == (1, 2, 3)
    assert older < newer


# The code that an attempt runs.


def coded(records: list[tuple[int, ControlRecord]], code: str, *functions: str, **options: Any) -> Slow:
    slow = Slow.__new__(Slow)
    fingerprints: dict[str, dict[str, object]] = {function: {"code": code, "state": None} for function in functions}
    slow.now_ms, slow.log, slow.to_write, slow.hints, slow.staged = 0.0, list(records), [], [], ()
    slow.options = LeaderOptions("leader#1", "shop", 2, fingerprints, **options)
    slow.leader = Leader(slow.options, records, 0.0)
    return slow


def test_another_application_is_refused_before_there_is_a_checkpoint() -> None:
    slow = coded([], "1", "shop/cart")
    begin_attempt(slow, "a#1")

    with pytest.raises(Refused, match=r"PEN0780 .* functions shop/cart, and this application has bank/account"):
        coded(slow.log, "1", "bank/account")
    coded(slow.log, "1", "bank/account", fresh=True)
    coded(slow.log, "2", "shop/cart", "shop/new")


def test_manifests_name_the_code_that_the_attempt_began_with_whoever_leads() -> None:
    slow = coded([], "1", "shop/cart")
    begin_attempt(slow, "a#1")
    next_one = coded(slow.log, "2", "shop/cart")
    next_one.hear(Alive("a#1", "a"))

    checkpoint = complete(next_one)

    assert next_one.leader.manifest(checkpoint).fingerprints == slow.options.fingerprints


# Faults, and people.


def test_a_damaged_checkpoint_is_passed_over() -> None:
    slow = leading("a#1")
    older, newest = complete(slow), complete(slow)

    slow.hear(Fault("a#1", 1, "a delta is damaged", newest))

    (attempt,) = slow.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.restored == older


def test_it_is_not_brought_back_by_a_repetition_that_was_on_its_way() -> None:
    slow = leading("a#1")
    older, newest = complete(slow), complete(slow)
    slow.leader._unrepeated = RECAP_RECORDS
    slow.tell(Aged())

    slow.hear(Fault("a#1", 1, "a delta is damaged", newest))
    (recap,) = slow.to_write
    assert isinstance(recap, Recap)
    assert recap.retained == (older, newest)
    slow.write()

    (attempt,) = slow.to_write
    assert isinstance(attempt, AttemptBegun)
    assert attempt.restored == older
    assert list(slow.leader.history.checkpoints) == [older]


def test_when_no_checkpoint_can_be_restored_nothing_is_begun() -> None:
    slow = leading("a#1")

    with pytest.raises(CorruptSnapshot, match=r"PEN0404 No checkpoint of shop can be restored.*--from none"):
        slow.hear(Fault("a#1", 1, "a delta is damaged", complete(slow)))


def test_a_fault_of_an_attempt_that_is_over_is_no_news() -> None:
    slow = leading("a#1")

    assert slow.hear(Fault("a#1", 7, "a frame is missing")) == []


def test_a_person_goes_back_once() -> None:
    slow = leading("a#1")
    older, _ = complete(slow), complete(slow)
    back = Slow(tuple(slow.log), from_checkpoint=older)
    back.hear(Alive("a#1", "a"))
    (attempt,) = back.to_write
    assert isinstance(attempt, AttemptBegun)
    assert (attempt.restored, attempt.reason) == (older, "replay")


def test_a_checkpoint_that_is_not_retained_is_refused() -> None:
    back = Slow(tuple(leading("a#1").log), from_checkpoint=99_999)

    with pytest.raises(Refused, match="PEN0403 Checkpoint 99999 can't be replayed"):
        back.hear(Alive("a#1", "a"))
