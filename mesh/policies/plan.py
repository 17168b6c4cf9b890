"""One call on its way: which endpoint is tried, for how long, what comes next, and when it is over.

              place in the queue                slot                    endpoint
    READY ────────────────────────> QUEUED ─────────────────> READY ──────────────> TRYING
      ^                                                         │                     │
      │ a retry is allowed                                      │ nothing to try      │ answer, or no retry
      └─────────────────────────────────────────────────────────│─────────────────────┤
                                                                v                     v
                                                              ENDED <─────────────────┘

The plan decides and its caller performs: it asks `next`, sends, waits or stops as it is told, and reports what came of
an attempt by `result`. What always holds: no attempt begins at or after the deadline, and none is given more time than
is left until then; slots, retries and breakers are given back once, when an attempt ends, when the call ends, or at
`close`; the last answer of a call is what it ends with, if it had one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from penstock.mesh.policies.backoff import Draw, backoff_s, told_s
from penstock.mesh.policies.breaker import Passage
from penstock.mesh.policies.faults import Injected, draw_fault
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.limits import Ticket
from penstock.mesh.policies.outcomes import Failure, Outcome, is_retriable
from penstock.mesh.policies.settings import Retries, Route, Side
from penstock.mesh.policies.split import choose_subset
from penstock.mesh.policies.target import Target

QUEUE_POLL_S: Final = 0.02
"""How often a caller that can't be woken looks whether it has got a slot."""
NO_RETRIES: Final = Retries(attempts=0)


class Request(NamedTuple):
    """What is asked of a function."""

    function: str
    id: str = ""
    headers: Mapping[str, str] = {}
    """Names are in lower case."""
    caller: str = ""
    """The function that asks, or the identity of its process."""
    keyed: bool = False
    """Whether it carries an idempotency key, so that it has its effect once, however often it is sent."""
    timeout_ms: int | None = None
    """What is left of the deadline of whoever asks."""
    patient: bool = False
    """Whether nobody waits for the answer, so that it may take as long as it takes: a route's timeouts, and the slots
    of a function's limits, are for those who wait."""


class Try(NamedTuple):
    """Send the request to `endpoint`, then report the result."""

    endpoint: Host
    timeout_s: float | None
    """Until then there must be an answer. None: as long as it takes."""
    attempt: int
    """From 1."""
    mirror: Host | None = None
    """Sees a copy, whose answer nobody waits for."""


class Wait(NamedTuple):
    """Ask again after `seconds`, or when woken."""

    seconds: float


class Finish(NamedTuple):
    """The last answer is what the caller gets."""

    outcome: Outcome


class GiveUp(NamedTuple):
    """There is no answer of the target, and there will be none."""

    status: int
    code: str
    message: str


Step: TypeAlias = Try | Wait | Finish | GiveUp


class Phase(Enum):
    READY = "ready"
    QUEUED = "queued"
    TRYING = "trying"
    ENDED = "ended"


_MOVES: Final = {
    (Phase.READY, Phase.QUEUED),  # All slots are taken.
    (Phase.QUEUED, Phase.READY),  # A slot is granted.
    (Phase.READY, Phase.TRYING),  # An endpoint was chosen.
    (Phase.TRYING, Phase.READY),  # The attempt failed, and another one is allowed.
    (Phase.READY, Phase.ENDED),  # The deadline, a full queue, a fault, or no endpoint to try.
    (Phase.QUEUED, Phase.ENDED),  # The deadline.
    (Phase.TRYING, Phase.ENDED),  # An answer, or a failure that is not tried again.
}


class Attempt(NamedTuple):
    """The one that is under way."""

    endpoint: Host
    passage: Passage
    began_s: float


class Plan:
    """See the module. `close` it when the call is over, whatever ended it."""

    def __init__(
        self,
        request: Request,
        route: Route,
        target: Target,
        endpoints: Sequence[Host],
        draw: Draw,
        now_s: float,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._request = request
        self._target = target
        self._draw = draw
        self._wake = wake
        self._fault = Injected()
        if route.fault is not None and route.fault.side is Side.CLIENT:
            # As in Istio: what is injected here stands for the whole call, which is not tried again or timed.
            self._fault = draw_fault(route.fault, draw)
            self._retries, timeout_s = NO_RETRIES, 0.0
        else:
            self._retries, timeout_s = route.retries, 0.0 if request.patient else route.timeout_s
        self._deadline_s = _deadline_s(now_s, timeout_s, request.timeout_ms)
        self._subset = choose_subset(route.split, request.function, request.id, draw) if route.split else ""
        self._endpoints: Sequence[Host] = ()
        self.see(endpoints)
        self._mirror = self._chosen_mirror(route, endpoints)
        self._not_before_s = now_s + self._fault.delay_s
        self._phase = Phase.READY
        self._ticket: Ticket | None = None
        self._attempt: Attempt | None = None
        self._attempts = 0
        self._tried: list[str] = []
        self._is_retrying = False
        """Whether it counts as a retry in the budget, instead of a first try."""
        self._last: Outcome | None = None
        self._end: Finish | GiveUp | None = None
        target.calls += 1
        target.allowance.first_tries += 1

    @property
    def deadline_s(self) -> float | None:
        """From then on nothing is tried. None: whenever it is answered."""
        return self._deadline_s

    @property
    def is_trying(self) -> bool:
        """Whether an attempt is under way, whose result comes next."""
        return self._phase is Phase.TRYING

    def see(self, endpoints: Sequence[Host]) -> None:
        """These serve the function now: what is tried from now on is one of them."""
        self._target.see(endpoints)
        self._endpoints = self._target.subset(endpoints, self._subset)

    def next(self, now_s: float) -> Step:
        """What to do now. While an attempt is under way its result comes first."""
        assert not self.is_trying, "report the result of the attempt first"
        if self._end is not None:
            return self._end
        if self._deadline_s is not None and now_s >= self._deadline_s:
            return self._stop(_too_late(self._request))
        if now_s < self._not_before_s:
            return Wait(self._not_before_s - now_s)
        if self._fault.abort_status:
            return self._stop(_aborted(self._request, self._fault.abort_status))
        if self._ticket is None and not self._request.patient:
            self._ticket = self._target.limit.enter(self._wake)
            if self._ticket is None:
                return self._stop(_overflown(self._target))
        if self._ticket is not None and not self._ticket.granted:
            return self._queue(now_s)
        if self._phase is Phase.QUEUED:
            self._enter(Phase.READY)
        return self._begin(now_s)

    def result(self, now_s: float, outcome: Outcome) -> None:
        """What came of the attempt that `next` asked for."""
        attempt = self._attempt
        assert attempt is not None, "no attempt is under way"
        self._target.end(attempt.endpoint, attempt.passage, outcome, began_s=attempt.began_s, now_s=now_s)
        self._attempt = None
        self._leave_limit()
        self._last = outcome
        if self._try_again(outcome, now_s):
            return
        if outcome.status:
            self._end_with(Finish(outcome))
        elif self._deadline_s is not None and now_s >= self._deadline_s:
            self._end_with(_too_late(self._request))
        else:
            self._end_with(self._unanswered(outcome))

    def close(self, now_s: float) -> None:
        """The call is over, or its caller has gone. Gives everything back; more than once is as good as once."""
        if self._phase is Phase.ENDED:
            return
        if self._attempt is not None:
            self._target.abandon(self._attempt.endpoint, self._attempt.passage, now_s)
            self._attempt = None
        self._stop(_closed(self._request))

    # ---- one attempt

    def _begin(self, now_s: float) -> Step:
        target, request = self._target, self._request
        tried = self._tried if self._retries.previous_hosts else ()
        endpoint = target.choose(self._endpoints, request.id, tried, now_s)
        if endpoint is None:
            return self._stop(self._why_none(now_s))
        self._attempts += 1
        self._tried.append(endpoint.name)
        self._attempt = Attempt(endpoint, target.begin(endpoint, request.id, now_s), now_s)
        self._enter(Phase.TRYING)
        mirror, self._mirror = self._mirror, None
        return Try(endpoint, self._timeout_s(now_s), self._attempts, mirror)

    def _timeout_s(self, now_s: float) -> float | None:
        """Of an attempt that begins now."""
        left_s = None if self._deadline_s is None else self._deadline_s - now_s
        per_try_s = None if self._request.patient else self._retries.per_try_timeout_s or None
        bounds = [bound for bound in (left_s, per_try_s) if bound is not None]
        return min(bounds, default=None)

    def _queue(self, now_s: float) -> Wait:
        if self._phase is Phase.READY:
            self._enter(Phase.QUEUED)
        longest = 3600.0 if self._wake is not None else QUEUE_POLL_S
        return Wait(longest if self._deadline_s is None else min(longest, self._deadline_s - now_s))

    def _chosen_mirror(self, route: Route, endpoints: Sequence[Host]) -> Host | None:
        mirror = route.mirror
        if mirror is None or self._draw() * 100 >= mirror.percentage:
            return None
        copies = self._target.subset(endpoints, mirror.subset)
        return copies[int(self._draw() * len(copies))] if copies else None

    # ---- another one

    def _try_again(self, outcome: Outcome, now_s: float) -> bool:
        """Whether there is to be a retry; if so, everything is set for it."""
        if not self._may_retry(outcome):
            return False
        wait_s = self._backoff_s(outcome)
        if self._deadline_s is not None and now_s + wait_s >= self._deadline_s:
            return False
        if self._target.is_cut_off(self._request.id, now_s):
            return False
        if not self._is_retrying:
            if not self._target.allowance.take():
                return False
            self._target.allowance.first_tries -= 1
            self._is_retrying = True
        self._target.retries += 1
        self._not_before_s = now_s + wait_s
        self._enter(Phase.READY)
        return True

    def _may_retry(self, outcome: Outcome) -> bool:
        retries = self._retries
        if 0 <= retries.attempts < self._attempts:
            return False
        return is_retriable(outcome, retries.retry_on) or (
            self._request.keyed and is_retriable(outcome, retries.retry_on_keyed)
        )

    def _backoff_s(self, outcome: Outcome) -> float:
        told = outcome.retry_after_s
        # A host that refused before it began speaks of itself only, and the retry goes to another one.
        if told is not None and outcome.failure is None and told <= self._retries.retry_after_max_s:
            return told_s(told, self._draw)
        return backoff_s(self._retries.backoff, self._attempts, self._draw)

    # ---- the end

    def _stop(self, reason: GiveUp) -> Finish | GiveUp:
        """Nothing more is tried. An answer that an attempt has brought says more than the reason for that."""
        last = self._last
        return self._end_with(Finish(last) if last is not None and last.status else reason)

    def _end_with(self, end: Finish | GiveUp) -> Finish | GiveUp:
        """Give back what is held, and count how it ended."""
        if isinstance(end, Finish):
            self._target.calls_succeeded += end.outcome.succeeded
            self._target.retries_succeeded += end.outcome.succeeded and self._attempts > 1
        self._leave_limit()
        if self._is_retrying:
            self._target.allowance.give_back()
        else:
            self._target.allowance.first_tries -= 1
        self._enter(Phase.ENDED)
        self._end = end
        return end

    def _leave_limit(self) -> None:
        if self._ticket is not None:
            self._target.limit.leave(self._ticket)
            self._ticket = None

    def _why_none(self, now_s: float) -> GiveUp:
        target, where = self._target, f"{self._target.function}/{self._request.id}"
        if not self._endpoints:
            of = f" of subset {self._subset!r}" if self._subset else ""
            return GiveUp(
                503, "PEN0841", f"No endpoint{of} serves {target.function}. Start a host, or correct the route."
            )
        if target.has_open_breaker(now_s):
            return GiveUp(503, "PEN0843", f"The breaker for {where} is open: too many requests have failed. Try later.")
        return GiveUp(
            503,
            "PEN0841",
            f"None of the {len(self._endpoints)} endpoints of {target.function} is healthy: all are ejected and the "
            "panic threshold is 0.",
        )

    def _unanswered(self, outcome: Outcome) -> GiveUp:
        tries = f"{self._attempts} {'attempt' if self._attempts == 1 else 'attempts'}"
        why = outcome.failure.value if outcome.failure is not None else str(outcome.status)
        return GiveUp(
            504 if outcome.failure is Failure.TIMEOUT else 503,
            "PEN0849",
            f"{self._target.function}/{self._request.id} gave no answer ({why}, after {tries}); "
            f"the last one asked was {self._tried[-1]}.",
        )

    def _enter(self, phase: Phase) -> None:
        assert (self._phase, phase) in _MOVES, (self._phase, phase)
        self._phase = phase


def _deadline_s(now_s: float, timeout_s: float, left_ms: int | None) -> float | None:
    bounds = [bound for bound in (timeout_s or None, None if left_ms is None else left_ms / 1000) if bound is not None]
    return now_s + min(bounds) if bounds else None


def _too_late(request: Request) -> GiveUp:
    return GiveUp(
        504, "PEN0842", f"The time for {request.function}/{request.id} is over. It may or may not have been done."
    )


def _aborted(request: Request, status: int) -> GiveUp:
    return GiveUp(status, "PEN0845", f"{request.function}/{request.id} was refused by a fault of the policy file.")


def _overflown(target: Target) -> GiveUp:
    limits = target.limit.limits
    return GiveUp(
        503,
        "PEN0844",
        f"{limits.max_requests} requests for {target.function} are under way and {limits.max_pending_requests} wait. "
        "Send fewer at once, or raise its limits.",
    )


def _closed(request: Request) -> GiveUp:
    return GiveUp(499, "PEN0842", f"The caller of {request.function}/{request.id} has gone.")
