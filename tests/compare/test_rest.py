"""A run is judged when nothing moves any more, and nothing that was begun is still going to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from penstock.compare.rest import GIVEN_UP_S, QUIET_S, REST_MAX_S, Look, Rest, come_to_rest
from penstock.durations import parse_duration
from penstock.functions.saga_course import WATCH
from penstock.functions.virtual_loop import VirtualLoop

STILL = Look(0, 0, (7,))
LATE_S = 1.0
"""How much later than it happens anything is seen, at most."""


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def rest(
    loop: VirtualLoop, look: Callable[[float], Look], unended: Callable[[float], Sequence[str] | None] = lambda _: []
) -> Rest:
    """Both are given the time since the load."""

    async def seen() -> Look:
        return look(loop.time())

    async def told() -> Sequence[str] | None:
        return unended(loop.time())

    return loop.run(come_to_rest(seen, told))


def test_what_is_still_from_the_beginning_has_come_to_rest_then(loop: VirtualLoop) -> None:
    assert rest(loop, lambda _: STILL) == Rest(0.0)
    assert loop.time() == pytest.approx(QUIET_S, abs=LATE_S)


def test_what_is_under_way_is_waited_for(loop: VirtualLoop) -> None:
    found = rest(loop, lambda now_s: STILL._replace(busy=now_s < 20))

    assert found.since_s == pytest.approx(20, abs=LATE_S)


def test_what_only_the_bank_sees_is_waited_for(loop: VirtualLoop) -> None:
    """A request that is tried again every two seconds, of a handler that nobody is told of."""
    found = rest(loop, lambda now_s: STILL._replace(done=(min(10, int(now_s / 2)),)))

    assert found.since_s == pytest.approx(20, abs=LATE_S)


def test_a_saga_that_was_given_up_with_its_request_is_waited_for_until_it_is_gone_on_with(loop: VirtualLoop) -> None:
    """Nothing moves for a minute, and then it ends. Judged before, its order would be lost."""
    watch_s = parse_duration(WATCH) / 1000

    def look(now_s: float) -> Look:
        return STILL._replace(held=now_s < watch_s, busy=watch_s <= now_s < watch_s + 3)

    found = rest(loop, look, lambda now_s: [] if now_s >= watch_s + 3 else ["o-0-7"])

    assert found.since_s == pytest.approx(watch_s + 3, abs=LATE_S)
    assert watch_s + 3 < REST_MAX_S / 2  # It may be given up once more.


def test_what_nothing_goes_on_with_is_at_rest_unended(loop: VirtualLoop) -> None:
    """A host that is gone, or a message that was given up: the oracle is to find that it is lost."""
    assert rest(loop, lambda _: STILL, lambda _: ["o-0-7"]) == Rest(0.0)
    assert loop.time() == pytest.approx(GIVEN_UP_S, abs=QUIET_S + LATE_S)


def test_messages_that_are_held_for_orders_that_have_ended_need_not_be_sent(loop: VirtualLoop) -> None:
    assert rest(loop, lambda _: STILL._replace(held=3)) == Rest(0.0)


def test_what_moves_while_the_orders_are_read_is_not_at_rest(loop: VirtualLoop) -> None:
    """Orders say that they have ended a moment before what they send then is on its way."""
    reads: list[float] = []

    def unended(now_s: float) -> list[str]:
        reads.append(now_s)
        return []

    found = rest(loop, lambda now_s: STILL._replace(done=(len(reads) > 0,)), unended)

    assert found.since_s == pytest.approx(reads[0], abs=LATE_S)
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("look", "orders", "reason"),
    [
        (STILL._replace(busy=3), [], "3 requests and messages are under way"),
        (
            STILL._replace(busy=1),
            ["o-0-7 (pay: down)"],
            "1 requests and messages are under way; these orders have not ended: o-0-7 (pay: down)",
        ),
        (
            STILL._replace(held=1),
            ["o-0-7 (pay: down)", *"abcdef"],
            "these orders have not ended: o-0-7 (pay: down), a, b, c, d and 2 more",
        ),
        (STILL, None, "the states of its orders can't be read"),
    ],
)
def test_what_has_not_come_to_rest_within_its_limit_is_told(
    loop: VirtualLoop, look: Look, orders: list[str] | None, reason: str
) -> None:
    found = rest(loop, lambda _: look, lambda _: orders)

    assert found == Rest(None, f"it has not come to rest {REST_MAX_S:g} s after the load: {reason}")
    assert loop.time() == pytest.approx(REST_MAX_S, abs=LATE_S)


def test_what_goes_on_being_done_has_not_come_to_rest(loop: VirtualLoop) -> None:
    found = rest(loop, lambda now_s: STILL._replace(done=(int(now_s),)))

    assert found.since_s is None
    assert "something goes on being done" in found.reason
