"""Proves when checkpoints begin and when one is complete: by events and the actions that must follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import DataObject, data, integers, sampled_from

from penstock.checkpoint.control import AttemptBegun, Complete, Part, Reserve
from penstock.checkpoint.coordinator import (
    RESERVED_IDS,
    Abandoned,
    Acknowledged,
    Action,
    Announce,
    Begin,
    Coordinator,
    CoordinatorOptions,
    Durable,
    Event,
    Failed,
    Phase,
    Tick,
    Write,
)
from penstock.checkpoint.lineage import Lineage

ATTEMPT = AttemptBegun(Lineage(2, ((1, 40),)), 40, 5_000 + RESERVED_IDS, 0)
FIRST = 5_001


def coordinator(tasks: int = 2) -> Coordinator:
    options = CoordinatorOptions("shop", tasks, {"shop/cart": {"code": "f"}}, interval_ms=200, timeout_ms=1_000)
    return Coordinator(options, ATTEMPT)


def after(*events: Event, tasks: int = 2) -> tuple[Coordinator, list[Action]]:
    """A coordinator that has seen `events`, and what it asked for at the last of them."""
    made = coordinator(tasks)
    actions: list[Action] = []
    for event in events:
        actions = made.handle(event)
    return made, actions


def part(task: int) -> Part:
    return Part(task, "", 0, 10 + task, 0, 10, 0, 0)


def acknowledged(task: int, checkpoint: int = FIRST) -> Acknowledged:
    return Acknowledged(checkpoint, part(task), 100)


BEGUN = Tick(200, dirty=True)
COMPLETING = (BEGUN, acknowledged(0), acknowledged(1))


def test_it_begins_above_every_id_that_was_ever_reserved() -> None:
    _, actions = after(BEGUN)

    assert actions == [Begin(FIRST)]


def test_nothing_to_save_is_no_checkpoint() -> None:
    made, actions = after(Tick(10_000, dirty=False))

    assert actions == []
    assert made.due_in_ms(10_000, dirty=False, urgent=False) is None


def test_it_waits_for_the_interval() -> None:
    made, actions = after(Tick(199, dirty=True))

    assert actions == []
    assert made.due_in_ms(199, dirty=True, urgent=False) == 1


def test_somebody_who_waits_does_not_wait_for_the_interval() -> None:
    _, actions = after(Tick(5, dirty=True, urgent=True))

    assert actions == [Begin(FIRST)]


def test_a_second_one_does_not_begin_while_one_is_in_flight() -> None:
    _, actions = after(BEGUN, Tick(500, dirty=True))

    assert actions == []


def test_the_last_acknowledgement_makes_the_decision_to_be_written() -> None:
    made, actions = after(*COMPLETING)

    (write,) = actions
    assert isinstance(write, Write)
    assert isinstance(write.record, Complete)
    manifest = write.record.manifest
    assert (manifest.checkpoint, manifest.lineage, manifest.delta_bytes) == (FIRST, ATTEMPT.lineage, 200)
    assert manifest.parts == (part(0), part(1))
    assert made.phase is Phase.COMPLETING


def test_parts_stand_in_the_order_of_the_tasks_whoever_was_first() -> None:
    _, actions = after(BEGUN, acknowledged(1), acknowledged(0))

    (write,) = actions
    assert isinstance(write, Write)
    assert isinstance(write.record, Complete)
    assert [each.task for each in write.record.manifest.parts] == [0, 1]


def test_nothing_is_announced_before_the_decision_is_durable() -> None:
    _, written = after(*COMPLETING)
    _, actions = after(*COMPLETING, Durable(300))

    assert not any(isinstance(action, Announce) for action in written)
    assert [type(action) for action in actions] == [Announce]


def test_the_same_acknowledgement_twice_is_one() -> None:
    _, actions = after(BEGUN, acknowledged(0), acknowledged(0))

    assert actions == []


def test_an_acknowledgement_of_another_checkpoint_is_none() -> None:
    _, actions = after(BEGUN, acknowledged(0, FIRST - 1), acknowledged(1))

    assert actions == []


def test_a_late_acknowledgement_changes_nothing() -> None:
    made, actions = after(*COMPLETING, acknowledged(0))

    assert actions == []
    assert made.phase is Phase.COMPLETING


def test_a_task_that_fails_ends_the_checkpoint_and_the_next_has_a_new_id() -> None:
    made, actions = after(BEGUN, acknowledged(0), Failed(FIRST, "the disk is full"))

    assert actions == [Abandoned(FIRST, "the disk is full")]
    assert made.handle(acknowledged(1)) == []
    assert made.handle(Tick(600, dirty=True)) == [Begin(FIRST + 1)]


def test_the_failure_of_an_earlier_checkpoint_is_old_news() -> None:
    made, actions = after(BEGUN, Failed(FIRST - 1, "the disk is full"))

    assert actions == []
    assert made.phase is Phase.COLLECTING


def test_a_silent_task_ends_the_checkpoint_in_time_and_is_named() -> None:
    _, patient = after(BEGUN, acknowledged(1), Tick(1_200, dirty=False))
    _, actions = after(BEGUN, acknowledged(1), Tick(1_201, dirty=False))

    assert patient == []
    assert actions == [Abandoned(FIRST, "no acknowledgement of task 0 within 1 s")]


def test_a_checkpoint_given_up_is_made_up_for_even_if_nothing_else_changes() -> None:
    """Tasks have handed over their changes, so they no longer say that they are dirty; rows and replies wait."""
    made, _ = after(BEGUN, Failed(FIRST, "the disk is full"))

    assert made.owing
    assert made.handle(Tick(600, dirty=False)) == [Begin(FIRST + 1)]
    made.handle(acknowledged(0, FIRST + 1))
    made.handle(acknowledged(1, FIRST + 1))
    made.handle(Durable(610))
    assert not made.owing
    assert made.handle(Tick(10_000, dirty=False)) == []


def test_an_expensive_checkpoint_is_followed_by_a_long_pause() -> None:
    made, _ = after(*COMPLETING, Durable(1_000, cost_ms=50))

    assert made.due_in_ms(1_000, dirty=True, urgent=True) == 500
    assert made.handle(Tick(1_499, dirty=True, urgent=True)) == []
    assert made.handle(Tick(1_500, dirty=True, urgent=True)) == [Begin(FIRST + 1)]


def test_used_up_ids_are_reserved_durably_before_the_next_one() -> None:
    made = coordinator(tasks=1)
    now_ms = 0
    for number in range(RESERVED_IDS):
        now_ms += 200
        assert made.handle(Tick(now_ms, dirty=True)) == [Begin(FIRST + number)]
        made.handle(acknowledged(0, FIRST + number))
        made.handle(Durable(now_ms))

    now_ms += 200
    assert made.handle(Tick(now_ms, dirty=True)) == [Write(Reserve(ATTEMPT.high + RESERVED_IDS))]
    assert made.handle(Tick(now_ms, dirty=True)) == []
    assert made.handle(Durable(now_ms)) == []
    assert made.handle(Tick(now_ms, dirty=True)) == [Begin(ATTEMPT.high + 1)]


def test_a_report_that_nobody_waits_for_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        coordinator().handle(Durable(0))


@given(data())
def test_in_any_order_of_events_ids_grow_and_a_decision_has_every_part(data: DataObject) -> None:
    made = coordinator(tasks=3)
    now_ms, begun, written, announced = 0.0, [0], 0, 0
    for _ in range(data.draw(integers(1, 60))):
        now_ms += data.draw(sampled_from([1, 200, 2_000]))
        checkpoint = begun[-1] - data.draw(integers(0, 1))
        events: list[Event] = [
            Tick(now_ms, dirty=True),
            Acknowledged(checkpoint, part(data.draw(integers(0, 2))), 1),
            Failed(checkpoint, "no reason"),
        ]
        if made.phase in (Phase.COMPLETING, Phase.RESERVING):
            events.append(Durable(now_ms))
        for action in made.handle(data.draw(sampled_from(events))):
            match action:
                case Begin(checkpoint):
                    assert checkpoint > begun[-1]
                    begun.append(checkpoint)
                case Write(Complete(manifest)):
                    written += 1
                    assert manifest.checkpoint == begun[-1]
                    assert [each.task for each in manifest.parts] == [0, 1, 2]
                case Announce(manifest):
                    announced += 1
                    assert manifest.checkpoint == begun[-1]
                case _:
                    pass
        assert announced <= written
        assert made.current in (None, begun[-1])
