"""Proves the task's side of the protocol: where it cuts, what it lets in, and what it may acknowledge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.snapshot import Admission, BaseRef, SnapshotTask
from penstock.records import EpochFrame, Frozen, TaskMeta

NO_BASE = BaseRef()


def task(epoch: int = 100, *, head: int = -1, base: BaseRef = NO_BASE) -> SnapshotTask:
    return SnapshotTask(1, Lineage(3, ((1, 7), (2, 12))), epoch, base=base, head=head, checksum=0)


def frame(attempt: int, epoch: int) -> EpochFrame:
    return EpochFrame(attempt, epoch, 0, 1, [])


def frozen(checkpoint: int, **changes: Any) -> Frozen:
    return Frozen(1, checkpoint, TaskMeta(inbox_position=checkpoint), {}, {}, {}, {}, [])._replace(**changes)


# What comes in.


@pytest.mark.parametrize(
    ("attempt", "epoch", "admission"),
    [
        (3, 100, Admission.PROCESS),
        (3, 99, Admission.PROCESS),
        (3, 101, Admission.CUT_FIRST),
        (2, 11, Admission.PROCESS),
        (2, 12, Admission.DROP),
        (2, 500, Admission.DROP),
        (4, 100, Admission.DROP),
    ],
)
def test_a_frame_is_processed_dropped_or_waits_for_the_cut(attempt: int, epoch: int, admission: Admission) -> None:
    made = task()

    assert made.admit(frame(attempt, epoch)) is admission
    assert made.dropped == (admission is Admission.DROP)


def test_after_the_cut_the_frame_that_called_for_it_is_processed() -> None:
    made = task()
    newer = frame(3, 101)

    assert made.admit(newer) is Admission.CUT_FIRST
    made.cut(frozen(101))

    assert made.admit(newer) is Admission.PROCESS
    assert not made.wants(101)


def test_a_task_may_jump_over_checkpoints_it_never_heard_of() -> None:
    made = task()
    made.cut(frozen(105))

    assert made.wants(106)
    assert not made.wants(103)


# What goes out.


def test_what_is_sent_carries_the_epoch_it_is_sent_in() -> None:
    made = task()
    before = made.stamp(1, [])
    made.cut(frozen(101))
    after = made.stamp(2, [])

    assert (before.attempt, before.epoch, before.source, before.sequence) == (3, 100, 1, 1)
    assert (after.epoch, after.sequence) == (101, 2)


# Deltas.


def test_each_delta_extends_the_last_one_that_was_written() -> None:
    made = task(head=40)

    assert made.cut(frozen(101)).previous == 40
    made.written(101, 50, 0xA, inbox_end=9)
    assert made.cut(frozen(102)).previous == 50


def test_the_acknowledgement_says_where_everything_is() -> None:
    made = task(base=BaseRef("b", 90, -1))
    made.cut(frozen(101))

    part = made.written(101, 50, 0xA, inbox_end=9)

    assert (part.task, part.base, part.base_checkpoint) == (1, "b", 90)
    assert (part.head, part.checksum, part.first) == (50, 0xA, 50)
    assert (part.inbox_position, part.inbox_end) == (101, 9)


def test_a_later_checkpoint_still_needs_the_first_delta_behind_the_base() -> None:
    made = task()
    made.cut(frozen(101))
    made.written(101, 50, 0, inbox_end=0)
    made.cut(frozen(102))

    assert made.written(102, 60, 0, inbox_end=0).first == 50


def test_a_delta_that_could_not_be_written_is_part_of_the_next() -> None:
    made = task(head=40)
    made.cut(frozen(101, rows={b"a": b"1", b"b": b"1"}))
    made.failed(101)

    taken = made.cut(frozen(102, rows={b"b": b"2"}))

    assert taken.previous == 40
    assert taken.frozen.checkpoint == 102
    assert taken.frozen.rows == {b"a": b"1", b"b": b"2"}


def test_a_delta_that_was_overtaken_by_the_next_cut_is_part_of_it() -> None:
    made = task(head=40)
    made.cut(frozen(101, rows={b"a": b"1"}))

    taken = made.cut(frozen(102))

    assert (taken.previous, taken.frozen.rows, made.writing) == (40, {b"a": b"1"}, 102)


def test_a_written_delta_is_not_repeated_whether_its_checkpoint_completes_or_not() -> None:
    made = task()
    made.cut(frozen(101, rows={b"a": b"1"}))
    made.written(101, 50, 0, inbox_end=0)

    assert made.cut(frozen(102)).frozen.rows == {}


def test_a_new_base_is_what_later_checkpoints_build_on() -> None:
    made = task()
    made.cut(frozen(101))
    made.written(101, 50, 0, inbox_end=0)
    made.rebase(BaseRef("b", 101, -1))
    made.cut(frozen(102))

    part = made.written(102, 60, 0, inbox_end=0)

    assert (part.base, part.base_checkpoint, part.first) == ("b", 101, 60)


IMPOSSIBLE: dict[str, Callable[[SnapshotTask], object]] = {
    "a cut back": lambda made: made.cut(frozen(100)),
    "written before a cut": lambda made: made.written(101, 50, 0, inbox_end=0),
    "failed before a cut": lambda made: made.failed(101),
    "an older base": lambda made: made.rebase(BaseRef("a", 90, -1)),
}


@pytest.mark.parametrize("step", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_step_is_a_mistake(step: Callable[[SnapshotTask], object]) -> None:
    made = task(base=BaseRef("b", 90, 40))

    with pytest.raises(AssertionError):
        step(made)
