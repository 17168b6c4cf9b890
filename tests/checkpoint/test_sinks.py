"""Rows are committed once, whatever fails and whenever: by cases, by all short histories, and by random long ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import booleans, integers, sampled_from

from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.sinks import (
    Action,
    Buried,
    Bury,
    Commit,
    CommitFailed,
    Committed,
    Completed,
    Discard,
    Event,
    MarkerFailed,
    MarkerRead,
    Phase,
    ReadMarker,
    Restored,
    RowsRejected,
    Staged,
    TwoPhaseSink,
)
from penstock.records import EgressRow, rows_of_replay

A, B, C = (EgressRow(text.encode(), cause) for cause, text in enumerate(("a", "b", "c"), start=1))


def after(*events: Event) -> tuple[TwoPhaseSink, list[Action]]:
    """A sink that has seen `events`, and what it asked for at the last of them."""
    sink = TwoPhaseSink()
    actions: list[Action] = []
    for event in events:
        actions = sink.handle(event)
    return sink, actions


# Cases.


def test_rows_wait_for_their_checkpoint() -> None:
    sink, actions = after(Staged(1, 5, [A]))

    assert actions == []
    assert sink.quiet
    assert sink.statistics().rows_undecided == 1


def test_it_tells_since_which_checkpoint_rows_wait() -> None:
    sink, _ = after(Staged(1, 5, [A]), Staged(1, 7, [A]), Completed(1, 5), MarkerRead({}))
    assert sink.oldest == 5

    sink.handle(Committed())

    assert sink.oldest == 7
    assert after()[0].oldest is None


def test_rows_say_of_which_replay_they_are() -> None:
    sink = TwoPhaseSink(Lineage(4, ((1, 5), (3, 7)), (3,)).replay_of)
    sink.handle(Restored([Staged(1, 5, [A]), Staged(3, 7, [B])]))

    (commit,) = sink.handle(MarkerRead({}))

    assert commit == Commit([A, *rows_of_replay([B], 3)], {1: 5, 3: 7})


def test_a_row_that_is_refused_becomes_a_dead_letter_as_it_was_emitted() -> None:
    sink = TwoPhaseSink(lambda attempt: 3)
    for event in (Restored([Staged(3, 7, [A, B])]), MarkerRead({})):
        sink.handle(event)

    assert sink.handle(RowsRejected([(0, "no")])) == [Bury([(A, "no")], 1)]
    assert sink.handle(Buried(1)) == [Commit(rows_of_replay([B], 3), {3: 7})]


def test_the_first_rows_are_preceded_by_the_marker() -> None:
    _, actions = after(Staged(1, 5, [A]), Completed(1, 5))

    assert actions == [ReadMarker(0.0)]


def test_rows_go_out_with_the_marker_that_covers_them() -> None:
    _, actions = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}))

    assert actions == [Commit([A], {1: 5})]


def test_rows_that_the_marker_covers_are_not_committed_again() -> None:
    sink, actions = after(Restored([Staged(1, 4, [A]), Staged(1, 5, [B])]), MarkerRead({1: 4}))

    assert actions == [Discard(1, 4), Commit([B], {1: 5})]
    assert not sink.quiet


def test_a_marker_of_another_attempt_covers_nothing() -> None:
    _, actions = after(Restored([Staged(2, 5, [A])]), MarkerRead({1: 9}))

    assert actions == [Commit([A], {1: 9, 2: 5})]


def test_committed_rows_may_leave_the_snapshot() -> None:
    sink, actions = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), Committed())

    assert actions == [Discard(1, 5)]
    assert sink.quiet
    assert sink.phase is Phase.READY


def test_checkpoints_that_complete_during_a_commit_are_merged_into_the_next() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}))
    for checkpoint, row in ((6, B), (7, C)):
        assert sink.handle(Staged(1, checkpoint, [row])) == []
        assert sink.handle(Completed(1, checkpoint)) == []

    assert sink.handle(Committed()) == [Discard(1, 5), Commit([B, C], {1: 7})]


def test_the_marker_is_read_once_as_long_as_nothing_fails() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), Committed(), Staged(1, 6, [B]))

    assert sink.handle(Completed(1, 6)) == [Commit([B], {1: 6})]


def test_rows_of_a_checkpoint_that_was_given_up_are_decided_by_the_next() -> None:
    _, actions = after(Staged(1, 5, [A]), Staged(1, 6, [B]), Completed(1, 6), MarkerRead({}))

    assert actions == [Commit([A, B], {1: 6})]


def test_rows_that_the_next_owner_wrote_under_the_checkpoint_that_was_given_up_are_not_written_again() -> None:
    """Its snapshot names the cut they were staged for; only the old owner knows that it was given up."""
    next_owner, _ = after(Restored([Staged(1, 5, [A])]))
    (commit,) = next_owner.handle(MarkerRead({}))
    assert isinstance(commit, Commit)
    old_owner, actions = after(Staged(1, 5, [A]), Completed(1, 6), MarkerRead(commit.marker))

    assert actions == [Discard(1, 5)]
    assert old_owner.quiet


def test_a_checkpoint_without_rows_asks_for_nothing() -> None:
    sink, actions = after(Staged(1, 5, []), Completed(1, 5))

    assert actions == []
    assert sink.phase is Phase.UNKNOWN


def test_after_an_unknown_outcome_the_marker_decides() -> None:
    sink, actions = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), CommitFailed())

    assert actions == [ReadMarker(0.1)]
    assert sink.handle(MarkerRead({1: 5})) == [Discard(1, 5)]


def test_waiting_grows_with_each_failure_up_to_ten_seconds_and_starts_anew_after_a_success() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5))
    delays = [
        action.delay_s for _ in range(2000) for action in sink.handle(MarkerFailed()) if isinstance(action, ReadMarker)
    ]

    assert delays[:8] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert set(delays[8:]) == {10.0}
    sink.handle(MarkerRead({}))
    sink.handle(Committed())
    sink.handle(Staged(1, 6, [B]))
    sink.handle(Completed(1, 6))
    assert sink.handle(CommitFailed()) == [ReadMarker(0.1)]


def test_marker_entries_leave_with_the_attempts_that_no_lineage_names() -> None:
    sink, _ = after(Restored([Staged(2, 5, [A])]))
    sink.retain({2, 3})

    assert sink.handle(MarkerRead({1: 3, 2: 4})) == [Commit([A], {2: 5})]


def test_rows_that_can_never_be_written_are_buried_before_the_others_are_committed() -> None:
    sink, _ = after(Staged(1, 5, [A, B]), Staged(1, 6, [C]), Completed(1, 6), MarkerRead({}))

    assert sink.handle(RowsRejected([(1, "too wide")])) == [Bury([(B, "too wide")], 1)]
    assert sink.handle(Staged(1, 7, [A])) == sink.handle(Completed(1, 7)) == []
    assert sink.handle(Buried(1)) == [Commit([A, C], {1: 6})]
    assert sink.handle(Committed()) == [Discard(1, 6), Commit([A], {1: 7})]


def test_a_commit_of_nothing_but_rejected_rows_still_writes_its_marker() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), RowsRejected([(0, "no")]))

    assert sink.handle(Buried(1)) == [Commit([], {1: 5})]


def test_a_restore_voids_what_was_staged_and_offers_what_the_snapshot_holds() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), Committed(), Staged(1, 6, [B]))

    assert sink.handle(Restored([Staged(1, 5, [A])])) == [ReadMarker(0.0)]
    assert sink.handle(MarkerRead({1: 5})) == [Discard(1, 5)]
    assert sink.statistics().rows_undecided == 0


@pytest.mark.parametrize("late", [Committed(), CommitFailed(), RowsRejected([(0, "no")])])
def test_the_outcome_of_a_commit_from_before_a_restore_is_left_to_the_marker(late: Event) -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}))
    sink.handle(Restored([Staged(1, 5, [A])]))

    assert sink.handle(late) == []
    assert sink.handle(MarkerRead({})) == [Commit([A], {1: 5})]


def test_a_restore_while_the_marker_is_being_read_asks_for_it_only_once() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5))

    assert sink.handle(Restored([Staged(1, 4, [B])])) == []
    assert sink.handle(MarkerRead({})) == [Commit([B], {1: 4})]


def test_a_burial_from_before_a_restore_releases_nothing() -> None:
    sink, _ = after(Staged(1, 5, [A]), Completed(1, 5), MarkerRead({}), RowsRejected([(0, "no")]))
    sink.handle(Restored([Staged(1, 5, [A])]))
    sink.handle(MarkerRead({}))
    sink.handle(RowsRejected([(0, "no")]))

    assert sink.handle(Buried(1)) == []
    assert sink.phase is Phase.BURYING


@pytest.mark.parametrize("event", [MarkerRead({}), MarkerFailed()])
def test_an_answer_nobody_asked_for_is_our_mistake(event: Event) -> None:
    with pytest.raises(AssertionError):
        after(event)


def test_rows_for_a_decided_checkpoint_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="checkpoint 5 of attempt 1, which is decided already"):
        after(Completed(1, 5), Staged(1, 5, [A]))


# A world in which anything can fail: rows are numbers, produced again after a crash as by a deterministic handler.


class Checkpoint(NamedTuple):
    """What a restore goes back to."""

    produced: int
    held: tuple[Staged, ...]


class World:
    """One task with its snapshots, its sink, and an outside that keeps what was committed."""

    def __init__(self) -> None:
        self.visible: list[int] = []
        self.marker: dict[int, int] = {}
        self.graves: set[int] = set()
        self.attempt = 1
        self.checkpoint = 0
        self.produced = 0
        self.held: list[Staged] = []
        self.cut: Checkpoint | None = None
        self.complete = Checkpoint(0, ())
        self.core = TwoPhaseSink()
        self.actions: deque[Action] = deque()
        self.burials: list[Bury] = []
        self.rejects: Callable[[int], bool] = lambda number: False

    def tell(self, event: Event) -> None:
        for action in self.core.handle(event):
            if isinstance(action, Discard):
                self.held = [
                    batch
                    for batch in self.held
                    if batch.attempt != action.attempt or batch.checkpoint > action.checkpoint
                ]
            else:
                self.actions.append(action)

    def snapshot(self, rows: int) -> None:
        """Produce rows, and store them in a delta: the cut of the next checkpoint."""
        self.checkpoint += 1
        numbers = range(self.produced, self.produced + rows)
        self.produced += rows
        batch = Staged(self.attempt, self.checkpoint, [EgressRow(b"%d" % number, number) for number in numbers])
        if rows:
            self.held.append(batch)
        self.cut = Checkpoint(self.produced, tuple(self.held))
        self.tell(batch)

    def finish(self) -> None:
        """COMPLETE of the newest cut. The dead letters before it are durable with it."""
        assert self.cut is not None
        self.complete, self.cut = self.cut, None
        self.core.retain({self.attempt} | {batch.attempt for batch in self.complete.held})
        burials, self.burials = self.burials, []
        for bury in burials:
            self.graves |= {row.cause for row, _ in bury.rows}
        self.tell(Completed(self.attempt, self.checkpoint))
        for bury in burials:
            self.tell(Buried(bury.number))

    def perform(self, *, fails: bool, applied: bool) -> None:
        """Perform the oldest action. It may fail, and what failed may have been done all the same."""
        match self.actions.popleft():
            case ReadMarker():
                self.tell(MarkerFailed() if fails else MarkerRead(dict(self.marker)))
            case Commit(rows, marker):
                rejected = [(index, "no") for index, row in enumerate(rows) if self.rejects(row.cause)]
                if not rejected and (applied or not fails):
                    self.visible += [row.cause for row in rows]
                    self.marker = dict(marker)
                self.tell(CommitFailed() if fails else RowsRejected(rejected) if rejected else Committed())
            case Bury() as bury:
                self.burials.append(bury)
            case _:
                raise AssertionError

    def restore(self, *, process_dies: bool) -> None:
        """Go back to the last complete checkpoint. A commit under way goes on if the process lives."""
        self.attempt += 1
        self.produced = self.complete.produced
        self.held = list(self.complete.held)
        self.cut = None
        self.burials = []
        if process_dies:
            self.core = TwoPhaseSink()
            self.actions.clear()
        self.tell(Restored(list(self.held)))

    def drain(self) -> None:
        """Let everything succeed from here on."""
        for _ in range(100):
            while self.actions:
                self.perform(fails=False, applied=True)
            if self.core.quiet and not self.burials and self.cut is None:
                return
            self.snapshot(0)
            self.finish()
        raise AssertionError("it never comes to rest")

    def check(self) -> None:
        """Everything visible is there once, in order, and belongs to a complete checkpoint."""
        assert self.visible == sorted(set(self.visible))
        assert all(number < self.complete.produced for number in self.visible)

    def check_all_out(self) -> None:
        expected = {n for n in range(self.complete.produced) if not self.rejects(n)}
        assert set(self.visible) == expected
        assert self.graves >= {n for n in range(self.complete.produced) if self.rejects(n)}


STEPS: dict[str, Callable[[World], None]] = {
    "rows": lambda world: world.snapshot(1),
    "complete": lambda world: world.finish() if world.cut else None,
    "performed": lambda world: world.perform(fails=False, applied=True) if world.actions else None,
    "failed": lambda world: world.perform(fails=True, applied=False) if world.actions else None,
    "answer lost": lambda world: world.perform(fails=True, applied=True) if world.actions else None,
    "killed": lambda world: world.restore(process_dies=True),
    "set back": lambda world: world.restore(process_dies=False),
}


@pytest.mark.parametrize("rejected", [frozenset(), frozenset({0})], ids=["all rows fit", "row 0 never fits"])
def test_every_short_history_ends_with_each_row_out_once(rejected: frozenset[int]) -> None:
    for prefix in (["rows", "complete"], ["rows", "complete", "performed", "rows"]):
        for history in product(STEPS, repeat=5):
            world = World()
            world.rejects = rejected.__contains__
            for step in (*prefix, *history):
                STEPS[step](world)
                world.check()
            world.drain()
            world.check()
            world.check_all_out()


class AnyHistory(RuleBasedStateMachine):
    """The same world, in long random histories with many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(every=sampled_from([0, 2, 7]))
    def some_rows_never_fit(self, every: int) -> None:
        self.world.rejects = lambda number: every > 0 and number % every == 1

    @rule(rows=integers(0, 3))
    def snapshot(self, rows: int) -> None:
        self.world.snapshot(rows)

    @precondition(lambda self: self.world.cut is not None)
    @rule()
    def finish(self) -> None:
        self.world.finish()

    @precondition(lambda self: len(self.world.actions) > 0)
    @rule(fails=booleans(), applied=booleans())
    def perform(self, fails: bool, applied: bool) -> None:
        self.world.perform(fails=fails, applied=applied)

    @rule(process_dies=booleans())
    def restore(self, process_dies: bool) -> None:
        self.world.restore(process_dies=process_dies)

    @invariant()
    def nothing_twice(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.drain()
        self.world.check()
        self.world.check_all_out()


AnyHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
TestAnyHistory = AnyHistory.TestCase
