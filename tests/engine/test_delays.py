"""What happens later: delayed messages with their tokens, expirations, and results to be forgotten."""

from __future__ import annotations

from penstock.engine.delays import Delays, DueExpiration, DueMessage
from penstock.functions.context import Delayed, Target
from penstock.ids import Address
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay

SENDER = Address("t/sender", "s")
TARGET = Target("t/target", lambda value: b"", accepts=None, name="Any", bytes_max=10)


def delays(overlay: Overlay | None = None) -> Delays:
    return Delays(overlay or Overlay(MemoryBackend()))


def later(delay_ms: int, id: str = "a", token: str = "") -> Delayed:
    return Delayed(delay_ms, TARGET, id, b"payload", token)


def due_ids(core: Delays, clock_ms: int, count_max: int = 100) -> list[str]:
    return [due.envelope.id for due in core.pop_due(clock_ms, count_max) if isinstance(due, DueMessage)]


def test_messages_fire_once_and_in_the_order_of_their_times() -> None:
    core = delays()
    for delay_ms, id in [(30, "c"), (10, "a"), (20, "b")]:
        core.schedule(SENDER, later(delay_ms, id), 7, 1_000)

    assert core.next_due_ms() == 1_010
    assert due_ids(core, 1_009) == []
    assert due_ids(core, 1_020) == ["a", "b"]
    assert due_ids(core, 5_000) == ["c"]
    assert (core.next_due_ms(), core.fired) == (None, 3)


def test_messages_of_one_moment_fire_in_the_order_they_were_set() -> None:
    core = delays()
    for id in "abc":
        core.schedule(SENDER, later(10, id), 7, 0)

    assert due_ids(core, 10) == ["a", "b", "c"]


def test_no_more_fire_than_were_asked_for() -> None:
    core = delays()
    for id in "abc":
        core.schedule(SENDER, later(10, id), 7, 0)

    assert (due_ids(core, 10, 2), due_ids(core, 10, 2)) == (["a", "b"], ["c"])


def test_what_fires_may_call_back_what_is_due_as_well() -> None:
    core = delays()
    for id in "abc":
        core.schedule(SENDER, later(10, id, id), 7, 0)

    fired = []
    for due in core.pop_due(10, 100):
        assert isinstance(due, DueMessage)
        fired.append(due.envelope.id)
        core.cancel(SENDER.id, "b")
    assert fired == ["a", "c"]
    assert core.next_due_ms() is None


def test_a_message_keeps_its_cause_and_its_sender() -> None:
    core = delays()
    core.schedule(SENDER, later(0), 2**64 - 1, 0)

    (due,) = core.pop_due(0, 1)

    assert isinstance(due, DueMessage)
    assert due.envelope[:4] == ("t/target", "a", b"payload", 2**64 - 1)
    assert due.envelope.caller == SENDER


def test_a_token_names_one_message_of_its_owner() -> None:
    core = delays()
    core.schedule(SENDER, later(10, "moved", "x"), 7, 0)
    core.schedule(SENDER, later(20, "kept", "x"), 7, 0)
    core.schedule(SENDER, later(20, "other", "y"), 7, 0)
    core.cancel("somebody", "x")
    core.cancel("s", "y")

    assert due_ids(core, 100) == ["kept"]


def test_a_token_is_shared_by_the_functions_of_an_id() -> None:
    core = delays()
    core.schedule(Address("t/one", "s"), later(10, "a", "x"), 7, 0)
    core.schedule(Address("t/two", "s"), later(20, "b", "x"), 7, 0)

    assert due_ids(core, 100) == ["b"]


def test_rows_are_gone_when_nothing_is_left_to_do() -> None:
    overlay = Overlay(MemoryBackend())
    core = delays(overlay)
    core.schedule(SENDER, later(10, "a", "x"), 7, 0)
    core.schedule(SENDER, later(10, "b", "y"), 7, 0)
    core.cancel("s", "y")
    core.expire_at(SENDER, 20)
    overlay.put(b"\x05kept", b"result")
    core.forget_at(b"\x05kept", 30)

    assert len(list(core.pop_due(100, 100))) == 2
    assert list(overlay.scan(b"", b"\xff")) == []


def test_the_earliest_wish_to_look_at_an_address_stands() -> None:
    core = delays()
    for due_ms in (50, 20, 90):
        core.expire_at(SENDER, due_ms)

    assert core.next_due_ms() == 20
    assert list(core.pop_due(100, 100)) == [DueExpiration(SENDER)]
    core.expire_at(SENDER, 200)
    assert list(core.pop_due(200, 100)) == [DueExpiration(SENDER)]


def test_timers_and_tokens_survive_in_their_rows() -> None:
    overlay = Overlay(MemoryBackend())
    core = delays(overlay)
    core.schedule(SENDER, later(10, "a", "x"), 7, 0)
    core.schedule(SENDER, later(20, "b"), 7, 0)

    again = delays(overlay)
    again.next_number = core.next_number
    again.cancel("s", "x")
    again.schedule(SENDER, later(15, "c"), 7, 0)

    assert due_ids(again, 100) == ["c", "b"]


def test_rows_written_by_another_run_are_learnt_of() -> None:
    overlay, other = Overlay(MemoryBackend()), Overlay(MemoryBackend())
    core, follower = delays(overlay), delays(other)
    assert follower.next_due_ms() is None
    core.schedule(SENDER, later(10), 7, 0)
    values, rows = overlay.take_batch()

    other.apply(values, rows)
    follower.written(rows)

    assert follower.next_due_ms() == 10
