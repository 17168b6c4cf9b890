"""Cuts off a target that keeps failing, and looks whether it is well again with a few real requests.

           trip holds                    timeout is over
    CLOSED ──────────> OPEN ──────────────────────────────> HALF_OPEN
      ^                  ^      one request fails              │  │
      │                  └─────────────────────────────────────┘  │
      └───────────────────────────────────────────────────────────┘
                   max_requests in a row have succeeded

What always holds: while it is open nothing passes; while it is half open at most `max_requests` are under way; what was
let through before the last change of phase counts for nothing when it ends, because it says how things were then.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Final

from penstock.mesh.policies.settings import Breaker, Scope
from penstock.mesh.policies.trip import Counts


class Phase(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


_MOVES: Final = {
    (Phase.CLOSED, Phase.OPEN),  # The trip condition holds.
    (Phase.OPEN, Phase.HALF_OPEN),  # The timeout is over.
    (Phase.HALF_OPEN, Phase.CLOSED),  # The probes succeeded.
    (Phase.HALF_OPEN, Phase.OPEN),  # A probe failed.
}


class CircuitBreaker:
    """One breaker. `enter` asks to pass and returns the generation that `leave` gives back."""

    def __init__(self, settings: Breaker, now_s: float) -> None:
        self._settings = settings
        self._phase = Phase.CLOSED
        self._generation = 0
        self._under_way = 0
        """Of this generation."""
        self._counts = Counts()
        self._since_s = now_s
        """When this generation, or this interval of counting, began."""

    def phase(self, now_s: float) -> Phase:
        """What it does with a request at this time."""
        settings, waited_s = self._settings, now_s - self._since_s
        if self._phase is Phase.OPEN and waited_s >= settings.timeout_s:
            self._enter(Phase.HALF_OPEN, now_s)
        elif self._phase is Phase.CLOSED and settings.interval_s and waited_s >= settings.interval_s:
            self._counts, self._since_s = Counts(), now_s
        return self._phase

    def lets_through(self, now_s: float) -> bool:
        """Whether `enter` would."""
        phase = self.phase(now_s)
        return phase is Phase.CLOSED or (phase is Phase.HALF_OPEN and self._under_way < self._settings.max_requests)

    def enter(self, now_s: float) -> int | None:
        """Begin a request: what to give back when it ends, or None if it must not pass."""
        if not self.lets_through(now_s):
            return None
        self._under_way += 1
        self._counts = self._counts._replace(requests=self._counts.requests + 1)
        return self._generation

    def leave(self, generation: int, now_s: float, *, succeeded: bool | None) -> None:
        """A request ended. None: nothing was learned of the target, as of one that its caller has given up."""
        phase = self.phase(now_s)
        if generation != self._generation:
            return  # It was let through before the last change.
        self._under_way -= 1
        if succeeded is None:
            return
        counts = self._counts
        if succeeded:
            self._counts = counts._replace(
                total_successes=counts.total_successes + 1,
                consecutive_successes=counts.consecutive_successes + 1,
                consecutive_failures=0,
            )
            if phase is Phase.HALF_OPEN and self._counts.consecutive_successes >= self._settings.max_requests:
                self._enter(Phase.CLOSED, now_s)
        else:
            self._counts = counts._replace(
                total_failures=counts.total_failures + 1,
                consecutive_failures=counts.consecutive_failures + 1,
                consecutive_successes=0,
            )
            if phase is Phase.HALF_OPEN or self._settings.trip.holds(self._counts):
                self._enter(Phase.OPEN, now_s)

    def _enter(self, phase: Phase, now_s: float) -> None:
        assert (self._phase, phase) in _MOVES, (self._phase, phase)
        self._phase = phase
        self._generation += 1
        self._under_way = 0
        self._counts = Counts()
        self._since_s = now_s


class Passage:
    """What one attempt has to tell the breakers it passed, once."""

    __slots__ = ("_passed",)

    def __init__(self, passed: list[tuple[CircuitBreaker, int]]) -> None:
        self._passed = passed

    def end(self, now_s: float, *, succeeded: bool | None) -> None:
        for breaker, generation in self._passed:
            breaker.leave(generation, now_s, succeeded=succeeded)
        self._passed = []


class Breakers:
    """The breakers of one function; the least used ones are forgotten."""

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()

    @property
    def judge_endpoints(self) -> bool:
        """Whether another endpoint may be let through when one is not."""
        return self._settings.scope is Scope.ENDPOINT

    def let_through(self, endpoint: str, id: str, now_s: float) -> bool:
        """Whether a request for `id` may go to `endpoint`."""
        keys = self._keys(endpoint, id)
        return all(key not in self._breakers or self._breakers[key].lets_through(now_s) for key in keys)

    def pass_through(self, endpoint: str, id: str, now_s: float) -> Passage:
        """Begin a request, which was just asked about."""
        passed = []
        for key in self._keys(endpoint, id):
            breaker = self._breaker(key, now_s)
            generation = breaker.enter(now_s)
            assert generation is not None, f"{key} was not asked first"
            passed.append((breaker, generation))
        return Passage(passed)

    def open_count(self, now_s: float) -> int:
        """How many let nothing through."""
        return sum(breaker.phase(now_s) is Phase.OPEN for breaker in self._breakers.values())

    def _keys(self, endpoint: str, id: str) -> tuple[str, ...]:
        """What a request is counted under: the letter before keeps an endpoint from having the breaker of an id."""
        match self._settings.scope:
            case Scope.ENDPOINT:
                return ("e" + endpoint,)
            case Scope.FUNCTION:
                return ("f",)
            case Scope.ID:
                return ("i" + id,)
            case Scope.BOTH:
                return ("f", "i" + id)

    def _breaker(self, key: str, now_s: float) -> CircuitBreaker:
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = CircuitBreaker(self._settings, now_s)
            if len(self._breakers) > self._settings.cache_size:
                self._breakers.popitem(last=False)
        self._breakers.move_to_end(key)
        return breaker
