"""Messages of held addresses: one is current, the others wait in order, and all of them are rows."""

from __future__ import annotations

import pytest

from penstock.engine.pending import Held, Pending
from penstock.ids import Address
from penstock.records import Meta, QueuedRow
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay


def message(payload: bytes, id: str = "a") -> QueuedRow:
    return (id, payload, 7, Address("t/x", "y"), Meta(headers={"h": "1"}))


def pending() -> tuple[Pending, Held, Overlay]:
    overlay = Overlay(MemoryBackend())
    return Pending(overlay), {}, overlay


def test_messages_of_an_address_become_current_one_after_the_other() -> None:
    rows, held, _ = pending()

    first = rows.hold(held, "t/f", message(b"1"), attempt=1)
    rows.wait(held, "t/f", message(b"2"))
    rows.wait(held, "t/f", message(b"3"))
    order = [first]
    while (following := rows.done(held, "a")) is not None:
        order.append(following)

    assert order == [0, 1, 2]
    assert (held, rows.count) == ({}, 0)


def test_a_row_holds_the_message_as_it_came() -> None:
    rows, held, _ = pending()

    number = rows.hold(held, "t/f", message(b"1"), attempt=2)

    kept = rows.get(number)
    assert (kept.typename, kept.attempt, kept.due_ms) == ("t/f", 2, 0)
    assert kept.queued == message(b"1")


def test_a_finished_message_has_no_row() -> None:
    rows, held, overlay = pending()
    rows.hold(held, "t/f", message(b"1"), attempt=1)

    rows.done(held, "a")

    assert list(rows.restore()) == []
    assert list(overlay.scan(b"", b"\xff")) == []


def test_retries_come_when_they_are_due_and_count_the_attempts() -> None:
    rows, held, _ = pending()
    first = rows.hold(held, "t/f", message(b"1"), attempt=2, due_ms=200)
    second = rows.hold(held, "t/f", message(b"1", "b"), attempt=2, due_ms=100)

    assert rows.next_retry_ms() == 100
    assert (rows.pop_retries(99), rows.pop_retries(200)) == ([], [second, first])
    assert rows.next_retry_ms() is None
    rows.retry_at(second, 400)
    assert (rows.get(second).attempt, rows.get(second).due_ms, rows.next_retry_ms()) == (3, 400, 400)


@pytest.mark.parametrize("due_ms", [0, 500])
def test_restored_rows_take_their_old_places(due_ms: int) -> None:
    rows, held, overlay = pending()
    rows.hold(held, "t/f", message(b"1"), attempt=2, due_ms=due_ms)
    rows.hold(held, "t/f", message(b"x", "b"), attempt=1)
    rows.wait(held, "t/f", message(b"2"))

    again, held_again = Pending(overlay), Held()
    runnable = [number for number, row in again.restore() if again.readmit(held_again, number, row)]

    assert runnable == ([1] if due_ms else [0, 1])
    assert again.next_retry_ms() == (due_ms or None)
    assert (again.count, list(held_again["a"].waiting)) == (3, [2])


def test_a_restored_row_that_was_about_to_be_tried_again_does_not_wait_once_more() -> None:
    rows, held, overlay = pending()
    number = rows.hold(held, "t/f", message(b"1"), attempt=2, due_ms=500)

    again = Pending(overlay)
    (restored,) = again.restore()

    assert again.readmit(Held(), *restored, ready=True)
    assert (restored[0], again.next_retry_ms()) == (number, None)


def test_a_restored_row_can_be_discarded() -> None:
    rows, held, overlay = pending()
    rows.hold(held, "t/f", message(b"1"), attempt=1)

    again = Pending(overlay)
    for number, _ in list(again.restore()):
        again.discard(number)

    assert (list(again.restore()), again.count) == ([], 0)
