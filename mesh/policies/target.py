"""One function as one calling process sees it: its endpoints and what the process has learned of them.

What always holds: an endpoint is chosen only among those whose breakers let a request through; one that is ejected is
not chosen, unless so few are left that what is seen is more likely the fault of the function, or of the caller, than of
so many endpoints (panic, Envoy's panic threshold); one that was tried is chosen again only when there is no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.balance import Balancer
from penstock.mesh.policies.breaker import Breakers, Passage
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.limits import ConcurrencyLimit, RetryAllowance
from penstock.mesh.policies.outcomes import Outcome
from penstock.mesh.policies.outlier import OutlierDetector
from penstock.mesh.policies.settings import Balance, FunctionPolicy, LoadBalancing
from penstock.mesh.policies.split import members


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """Of one function, since the process began. The names are Envoy's, with `upstream_rq_` and `outlier_detection.`
    before them."""

    calls_under_way: int
    """Waiting calls included."""
    retries_under_way: int
    """Of those, the ones that the budget counts."""
    calls: int
    calls_succeeded: int
    """Over `calls` it is the effective success rate: what callers see."""
    attempts: int
    attempts_succeeded: int
    """Over `attempts` it is the actual success rate: what the endpoints did."""
    retry: int
    retry_success: int
    retry_overflow: int
    active: int
    pending: int
    pending_overflow: int
    ejections_active: int
    ejections_total: int
    ejections_overflow: int
    breakers_open: int
    panics: int


class Target:
    """The mechanisms of one function."""

    def __init__(self, function: str, policy: FunctionPolicy, *, stateful: bool, draw: Draw, now_s: float) -> None:
        self.function = function
        self.policy = policy
        self.limit = ConcurrencyLimit(policy.limits)
        self.allowance = RetryAllowance(policy.retry_budget)
        self.calls = self.calls_succeeded = self.attempts = self.attempts_succeeded = 0
        self.retries = self.retries_succeeded = 0
        self._stateful = stateful
        self._draw = draw
        self._balancer = Balancer(self._balancing(policy), draw)
        self._outliers = OutlierDetector(policy.outlier_detection, draw, now_s) if policy.outlier_detection else None
        self._breakers = Breakers(policy.breaker) if policy.breaker else None
        self._known: frozenset[str] = frozenset()
        self._panics = 0

    def change(self, policy: FunctionPolicy, now_s: float) -> None:
        """Another policy from now on. A mechanism whose settings are the same goes on with what it has learned."""
        before, self.policy = self.policy, policy
        self.limit.change(policy.limits)
        self.allowance.budget = policy.retry_budget
        self._balancer.change(self._balancing(policy))
        if policy.outlier_detection != before.outlier_detection:
            detection = policy.outlier_detection
            self._outliers = OutlierDetector(detection, self._draw, now_s) if detection else None
            self._known = frozenset()
        if policy.breaker != before.breaker:
            self._breakers = Breakers(policy.breaker) if policy.breaker else None

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self.allowance.first_tries and not self.allowance.retries

    def see(self, endpoints: Sequence[Host]) -> None:
        """These serve the function now."""
        names = frozenset(endpoint.name for endpoint in endpoints)
        if names != self._known:
            self._known = names
            self._balancer.keep_only(names)
            if self._outliers is not None:
                self._outliers.watch(names)

    def subset(self, endpoints: Sequence[Host], name: str) -> Sequence[Host]:
        """Those of one subset; all when it has no name."""
        return members(endpoints, name, self.policy.subsets) if name else endpoints

    # ---- one attempt

    def is_cut_off(self, id: str, now_s: float) -> bool:
        """Whether a breaker of the function, or of the id, lets nothing through, whichever the endpoint."""
        breakers = self._breakers
        return breakers is not None and not breakers.judge_endpoints and not breakers.let_through("", id, now_s)

    def has_open_breaker(self, now_s: float) -> bool:
        return self._breakers is not None and self._breakers.open_count(now_s) > 0

    def choose(self, endpoints: Sequence[Host], id: str, tried: Collection[str], now_s: float) -> Host | None:
        """The endpoint for one attempt. None if there is none that may be used."""
        breakers = self._breakers
        closed: Sequence[Host] = endpoints
        if breakers is not None:
            closed = [endpoint for endpoint in endpoints if breakers.let_through(endpoint.name, id, now_s)]
        usable = self._without_ejected(closed, endpoints, now_s)
        fresh = [endpoint for endpoint in usable if endpoint.name not in tried] or usable
        return self._balancer.choose(fresh, endpoints, id, now_s) if fresh else None

    def begin(self, endpoint: Host, id: str, now_s: float) -> Passage:
        """An attempt goes to `endpoint`, which was just chosen."""
        self.attempts += 1
        self._balancer.load(endpoint.name).active += 1
        return Passage([]) if self._breakers is None else self._breakers.pass_through(endpoint.name, id, now_s)

    def end(self, endpoint: Host, passage: Passage, outcome: Outcome, *, began_s: float, now_s: float) -> None:
        """What came of it."""
        self.attempts_succeeded += outcome.succeeded
        load = self._balancer.load(endpoint.name)
        load.active -= 1
        load.observe(now_s - began_s, now_s)
        passage.end(now_s, succeeded=outcome.succeeded)
        if self._outliers is not None:
            self._outliers.record(endpoint.name, outcome, now_s)

    def abandon(self, endpoint: Host, passage: Passage, now_s: float) -> None:
        """Its caller has given up: nothing was learned of the endpoint."""
        self._balancer.load(endpoint.name).active -= 1
        passage.end(now_s, succeeded=None)

    def statistics(self, now_s: float) -> TargetStatistics:
        outliers, breakers = self._outliers, self._breakers
        return TargetStatistics(
            calls_under_way=self.allowance.first_tries + self.allowance.retries,
            retries_under_way=self.allowance.retries,
            calls=self.calls,
            calls_succeeded=self.calls_succeeded,
            attempts=self.attempts,
            attempts_succeeded=self.attempts_succeeded,
            retry=self.retries,
            retry_success=self.retries_succeeded,
            retry_overflow=self.allowance.overflows,
            active=self.limit.active,
            pending=self.limit.pending,
            pending_overflow=self.limit.overflows,
            ejections_active=len(outliers.ejected(now_s)) if outliers is not None else 0,
            ejections_total=outliers.ejections_total if outliers is not None else 0,
            ejections_overflow=outliers.overflows if outliers is not None else 0,
            breakers_open=breakers.open_count(now_s) if breakers is not None else 0,
            panics=self._panics,
        )

    # ---- helpers

    def _balancing(self, policy: FunctionPolicy) -> LoadBalancing:
        # The owner of an id keeps its turns and its cache; without state every endpoint is as good as another.
        return policy.lb or LoadBalancing(Balance.RING_HASH if self._stateful else Balance.LEAST_REQUEST)

    def _without_ejected(self, closed: Sequence[Host], endpoints: Sequence[Host], now_s: float) -> Sequence[Host]:
        if self._outliers is None:
            return closed
        ejected = self._outliers.ejected(now_s)
        if not ejected:
            return closed
        healthy = sum(endpoint.name not in ejected for endpoint in endpoints)
        if healthy * 100 < self.policy.panic_threshold * len(endpoints):
            self._panics += 1
            return closed
        return [endpoint for endpoint in closed if endpoint.name not in ejected]
