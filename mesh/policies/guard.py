"""What a host asks before it begins with a request: may this caller, is there room, is a fault to be injected.

What always holds: who may not is told so before anything counts his request; what is refused was not begun; whatever
was admitted is finished once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penstock.mesh.policies.access import Peer, is_allowed
from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.faults import draw_fault
from penstock.mesh.policies.rate_limit import RateLimiter
from penstock.mesh.policies.settings import AccessRule, Fault, FunctionPolicy
from penstock.mesh.policies.shedding import AdmissionController, ConcurrencyController


class Refusal(NamedTuple):
    """The answer to a request that is not begun."""

    status: int
    code: str
    message: str
    retry_after_s: int = 0
    """0 is none."""


class Guard:
    """Of one function at one host."""

    def __init__(
        self, function: str, policy: FunctionPolicy, rules: Sequence[AccessRule], draw: Draw, now_s: float
    ) -> None:
        self._function = function
        self._draw = draw
        self.policy = policy
        self.rules = rules
        self.refused: dict[int, int] = {}
        """Status -> how many."""
        self._rates = RateLimiter(policy.rate_limit) if policy.rate_limit else None
        control, concurrency = policy.admission_control, policy.adaptive_concurrency
        self._control = AdmissionController(control, draw) if control else None
        self._concurrency = ConcurrencyController(concurrency, now_s) if concurrency else None

    def admit(self, operation: str, peer: Peer, fault: Fault | None, now_s: float) -> Admission | Refusal:
        """See `Policies.admit`."""
        refusal = self._refusal(operation, peer, now_s)
        if refusal is not None:
            self.refused[refusal.status] = self.refused.get(refusal.status, 0) + 1
            return refusal
        injected = draw_fault(fault, self._draw)
        abort = None
        if injected.abort_status:
            abort = Refusal(
                injected.abort_status, "PEN0845", f"{self._function} was refused by a fault of the policy file."
            )
        return Admission(injected.delay_s, abort, self._control, self._concurrency, now_s)

    def _refusal(self, operation: str, peer: Peer, now_s: float) -> Refusal | None:
        function = self._function
        if not is_allowed(self.rules, operation, peer):
            return Refusal(
                403,
                "PEN0846",
                f"{function} may not be asked {operation!r} by {peer}. Name it in an access rule for that destination.",
            )
        retry_after_s = (
            self._rates.retry_after_s(peer.identity or peer.function, now_s) if self._rates is not None else 0
        )
        if retry_after_s:
            return Refusal(429, "PEN0847", f"More requests for {function} than its rate limit allows.", retry_after_s)
        if self._control is not None and not self._control.admits(now_s):
            return Refusal(503, "PEN0848", f"{function} sheds load: too many of its requests have failed.", 1)
        if self._concurrency is not None and not self._concurrency.enter(now_s):
            return Refusal(
                503, "PEN0848", f"{function} sheds load: {self._concurrency.limit} requests are under way.", 1
            )
        return None


class Admission:
    """A request that may begin, after `delay_s`; then `abort`, if there is one, is its answer. `finish` it."""

    def __init__(
        self,
        delay_s: float = 0.0,
        abort: Refusal | None = None,
        control: AdmissionController | None = None,
        concurrency: ConcurrencyController | None = None,
        now_s: float = 0.0,
    ) -> None:
        self.delay_s = delay_s
        self.abort = abort
        self._control = control
        self._concurrency = concurrency
        self._began_s = now_s

    def finish(self, now_s: float, *, succeeded: bool) -> None:
        """Its answer is there: a success is any that is not the host's own fault, so below 500."""
        if self._control is not None:
            self._control.record(now_s, succeeded=succeeded)
        if self._concurrency is not None:
            self._concurrency.leave(now_s - self._began_s, now_s)
