"""How many requests may be under way at once, how many wait for one of them to end, and how many may be retries.

What always holds: at most `max_requests` slots are taken, and at most `max_pending_requests` tickets wait; a slot that
becomes free goes to the ticket that has waited longest; whoever took or waits gives back exactly once. Retries under
way are bounded by a share of the first attempts that are: what counts is how much is added at this moment, so a burst
of failures can't save up a burst of retries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from penstock.mesh.policies.settings import Limits, RetryBudget


class Ticket:
    """The place of one attempt in the queue. `wake` is called when its turn has come."""

    __slots__ = ("granted", "wake")

    def __init__(self, wake: Callable[[], None] | None, *, granted: bool) -> None:
        self.wake = wake
        self.granted = granted


class ConcurrencyLimit:
    """The slots of one function."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.active = 0
        self.overflows = 0
        self._waiting: deque[Ticket] = deque()

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def enter(self, wake: Callable[[], None] | None) -> Ticket | None:
        """A ticket, whose slot is granted now or later; None if too many wait already."""
        if self.active < self.limits.max_requests:
            self.active += 1
            return Ticket(wake, granted=True)
        if len(self._waiting) >= self.limits.max_pending_requests:
            self.overflows += 1
            return None
        ticket = Ticket(wake, granted=False)
        self._waiting.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back the slot, or the place in the queue."""
        if ticket.granted:
            self.active -= 1
            self._grant()
        else:
            self._waiting.remove(ticket)

    def change(self, limits: Limits) -> None:
        """Other limits from now on. Nothing under way is cut off."""
        self.limits = limits
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.active < self.limits.max_requests:
            ticket = self._waiting.popleft()
            ticket.granted = True
            self.active += 1
            if ticket.wake is not None:
                ticket.wake()


class RetryAllowance:
    """How many retries of one function may be under way, back-off included."""

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self.first_tries = 0
        """Calls under way, or waiting for a slot, that have not come to a retry."""
        self.retries = 0
        self.overflows = 0

    def take(self) -> bool:
        """Whether one more retry is allowed; if so, it counts until `give_back`."""
        allowed = max(self.budget.min_retry_concurrency, self.first_tries * self.budget.budget_percent / 100)
        if self.retries + 1 > allowed:
            self.overflows += 1
            return False
        self.retries += 1
        return True

    def give_back(self) -> None:
        self.retries -= 1
