"""How many requests are under way, wait, and are retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.mesh.policies.limits import ConcurrencyLimit, RetryAllowance, Ticket
from penstock.mesh.policies.settings import Limits, RetryBudget


@given(
    max_requests=st.integers(1, 4),
    max_pending=st.integers(0, 4),
    steps=st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=60),
)
def test_slots_are_never_exceeded_and_go_to_who_has_waited_longest(
    max_requests: int, max_pending: int, steps: list[int | None]
) -> None:
    """None enters; a number says which of those inside leaves."""
    limit, inside, woken = ConcurrencyLimit(Limits(max_requests, max_pending)), list[Ticket](), list[int]()
    entered = 0
    for step in steps:
        if step is None:
            ticket = limit.enter(lambda number=entered: woken.append(number))  # type: ignore[misc]
            entered += 1
            if ticket is None:
                assert limit.active == max_requests
                assert limit.pending == max_pending
            else:
                inside.append(ticket)
        elif inside:
            limit.leave(inside.pop(step % len(inside)))

        assert limit.active == sum(ticket.granted for ticket in inside) <= max_requests
        assert limit.pending == sum(not ticket.granted for ticket in inside) <= max_pending
        assert not limit.pending or limit.active == max_requests
    assert woken == sorted(woken)


def test_a_higher_limit_lets_in_those_who_wait() -> None:
    limit, woken = ConcurrencyLimit(Limits(1, 2)), list[str]()
    for name in "abc":
        limit.enter(lambda name=name: woken.append(name))  # type: ignore[misc]

    limit.change(Limits(2, 2))

    assert woken == ["b"]


def test_retries_are_bounded_by_a_share_of_first_tries_and_never_below_the_floor() -> None:
    allowance = RetryAllowance(RetryBudget(budget_percent=20, min_retry_concurrency=3))

    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    allowance.first_tries = 25
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    allowance.give_back()
    assert allowance.take()
    assert allowance.overflows == 2
