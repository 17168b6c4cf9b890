"""The policies in force: what a file says, and what has been learned since under each of its headings.

A calling process asks for a `plan` of each call; a host asks `admit` before it begins with a request. What always
holds: a set of policies replaces the one before as a whole; a call that has begun goes on under the route it began
with; what is known of endpoints survives a change, except where the settings it was learned under have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.guard import Admission, Guard, Refusal
from penstock.mesh.policies.host import Host
from penstock.mesh.policies.plan import Plan, Request
from penstock.mesh.policies.settings import AccessRule, FunctionPolicy, PolicySet, Route, Side
from penstock.mesh.policies.target import Target, TargetStatistics

TARGETS_MAX: Final = 10_000
"""Functions of which something is remembered. Beside a sidecar their names are whatever somebody asks for."""
_DEFAULT_POLICY = FunctionPolicy()
_DEFAULT_ROUTE = Route()
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_OPEN = Admission()
"""Of functions about which nothing is said: it counts nothing, so one is enough."""


class Policies:
    """See the module. `stateful` names the functions whose ids have an owner; `draw` gives numbers from 0 up to 1."""

    def __init__(self, policy_set: PolicySet, *, stateful: Container[str] = (), draw: Draw) -> None:
        self.policy_set = policy_set
        self._stateful = stateful
        self._draw = draw
        self._targets: dict[str, Target] = {}
        self._guards: dict[str, Guard | None] = {}
        self._routes: dict[str, tuple[Route, ...]] = {}
        """Function -> the routes that could be for it. What a file names decides how many there are to look at."""

    def plan(
        self,
        request: Request,
        endpoints: Sequence[Host],
        now_s: float,
        wake: Callable[[], None] | None = None,
    ) -> Plan:
        """How the call `request` is carried out. `endpoints` are those that are ready and serve the function; `wake` is
        called when a wait is over early."""
        target = self._target(request.function, now_s)
        route = self._route(request.function, request.headers, request.caller) or _DEFAULT_ROUTE
        return Plan(request, route, target, endpoints, self._draw, now_s, wake)

    def admit(
        self,
        function: str,
        operation: str,
        peer: Peer,
        now_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Admission | Refusal:
        """Whether a host begins with a request that `peer` has sent. `operation` is what access rules call it."""
        guard = self._guard(function, now_s)
        route = self._route(function, headers, peer.function or peer.identity)
        fault = route.fault if route is not None and route.fault and route.fault.side is Side.SERVER else None
        if guard is None:
            if fault is None:
                return _OPEN
            guard = self._guards[function] = Guard(function, _DEFAULT_POLICY, (), self._draw, now_s)
        return guard.admit(operation, peer, fault, now_s)

    def apply(self, policy_set: PolicySet, now_s: float) -> None:
        """From now on these hold."""
        self.policy_set = policy_set
        self._routes.clear()
        for function, target in self._targets.items():
            target.change(self._policy(function), now_s)
        self._guards = {
            function: guard
            for function, guard in self._guards.items()
            if guard is not None and guard.policy == self._policy(function) and guard.rules == self._rules(function)
        }

    def statistics(self, now_s: float) -> Mapping[str, TargetStatistics]:
        """By function, of those that were called."""
        return {function: target.statistics(now_s) for function, target in self._targets.items()}

    def refused(self) -> Mapping[str, Mapping[int, int]]:
        """By function and status, what this host did not begin with."""
        return {function: dict(guard.refused) for function, guard in self._guards.items() if guard is not None}

    def _target(self, function: str, now_s: float) -> Target:
        target = self._targets.get(function)
        if target is None:
            if len(self._targets) >= TARGETS_MAX:
                self._routes.clear()
                self._targets = {name: busy for name, busy in self._targets.items() if not busy.is_idle}
            target = self._targets[function] = Target(
                function, self._policy(function), stateful=function in self._stateful, draw=self._draw, now_s=now_s
            )
        return target

    def _guard(self, function: str, now_s: float) -> Guard | None:
        """None if nothing is ever refused."""
        if function not in self._guards:
            policy, rules = self._policy(function), self._rules(function)
            guarded = rules or policy.rate_limit or policy.admission_control or policy.adaptive_concurrency
            self._guards[function] = Guard(function, policy, rules, self._draw, now_s) if guarded else None
        return self._guards[function]

    def _policy(self, function: str) -> FunctionPolicy:
        return self.policy_set.functions.get(function, _DEFAULT_POLICY)

    def _rules(self, function: str) -> tuple[AccessRule, ...]:
        return tuple(rule for rule in self.policy_set.access if rule.destination.matches(function))

    def _route(self, function: str, headers: Mapping[str, str], caller: str) -> Route | None:
        """The first that matches."""
        routes = self._routes.get(function)
        if routes is None:
            routes = self._routes[function] = tuple(
                route
                for route in self.policy_set.routes
                if any(match.function.matches(function) for match in route.matches)
            )
        for route in routes:
            for match in route.matches:
                if match.function.matches(function) and match.matches(headers, caller):
                    return route
        return None
