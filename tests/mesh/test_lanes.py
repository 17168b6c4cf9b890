"""Messages of one lane go out one by one and in order; lanes do not wait for one another."""

from __future__ import annotations

from penstock.ids import Address
from penstock.mesh.lanes import Lanes
from penstock.mesh.store import Kept, Outgoing

ALICE = Address("shop/cart", "alice")


def kept(number: int, *, to: str = "s", sender: Address = ALICE, due_ms: int = 0) -> Kept:
    return Kept(number, sender, Outgoing("shop/stock", to, b"", "", due_ms))


def taken(lanes: Lanes) -> list[int]:
    """The numbers of all that are ready."""
    found = []
    while (each := lanes.take()) is not None:
        found.append(each.number)
    return found


def test_the_next_of_a_lane_waits_until_the_first_is_finished() -> None:
    lanes = Lanes()
    for number in (1, 2, 3):
        lanes.add(kept(number))

    assert taken(lanes) == [1]
    lanes.finish(kept(1))
    assert taken(lanes) == [2]
    assert len(lanes) == 2
    assert (1 in lanes, 2 in lanes) == (False, True)


def test_lanes_do_not_wait_for_one_another() -> None:
    lanes = Lanes()
    lanes.add(kept(1))
    lanes.add(kept(2, to="t"))
    lanes.add(kept(3, sender=Address("shop/cart", "bob")))

    assert taken(lanes) == [1, 2, 3]


def test_delayed_messages_are_lanes_of_their_own() -> None:
    lanes = Lanes()
    lanes.add(kept(1))
    lanes.add(kept(2, due_ms=5))
    lanes.add(kept(3, due_ms=5))

    assert taken(lanes) == [1, 2, 3]


def test_a_message_that_rests_holds_its_lane_up() -> None:
    lanes = Lanes()
    lanes.add(kept(1))
    lanes.add(kept(2))
    first = lanes.take()
    assert first is not None

    lanes.rest(first._replace(attempts=1), 10.0)
    lanes.wake(9.9)
    assert lanes.take() is None
    assert lanes.wakes_s == 10.0

    lanes.wake(10.0)
    again = lanes.take()
    assert again is not None
    assert (again.number, again.attempts) == (1, 1)
    lanes.finish(again)
    assert taken(lanes) == [2]
