"""A set of policies while its documents are read: one after the other, each adds to what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from penstock.mesh.fields import Notes, Section
from penstock.mesh.policies.settings import AccessRule, FunctionPolicy, PolicySet, Route, TextMatch, Tls
from penstock.mesh.policy_checks import ejection_warnings, retry_warnings, unreachable


class HttpMatch(NamedTuple):
    """One match of SMI's HTTPRouteGroup, which other documents name."""

    name: str
    operation: TextMatch
    headers: Mapping[str, TextMatch]


class PolicyDraft:
    def __init__(self, notes: Notes, replicas: int = 0) -> None:
        self.notes = notes
        self.replicas = replicas
        """How many endpoints each function has, for warnings; 0 is not known."""
        self.functions: dict[str, FunctionPolicy] = {}
        self.routes: list[Route] = []
        self.access: list[AccessRule] = []
        self.tls: Tls | None = None
        self.http_matches: dict[str, Sequence[HttpMatch]] = {}
        """By namespace and name of their group."""

    def set_function(self, function: str, policy: FunctionPolicy, section: Section, field: str) -> None:
        """This holds for a function. `field` of `section` is where its ejections are set."""
        self.functions[function] = policy
        if policy.outlier_detection is not None:
            for warning in ejection_warnings(policy.outlier_detection, policy.panic_threshold, self.replicas):
                section.warn(field, warning)

    def add_route(self, route: Route, section: Section, field: str = "retries") -> None:
        """This is done with what matches, unless a route before takes it. `field` of `section` has its retries."""
        if unreachable(self.routes, route):
            section.warn("match", "a route before takes everything that matches, so nothing comes here")
        for warning in retry_warnings(route.timeout_s, route.retries):
            section.warn(field, warning)
        self.routes.append(route)

    def function(self, function: str) -> FunctionPolicy:
        """What was said of it so far."""
        return self.functions.get(function, FunctionPolicy())

    def finished(self) -> PolicySet:
        return PolicySet(
            self.functions,
            tuple(self.routes),
            tuple(self.access),
            self.tls,
            tuple(str(note) for note in self.notes.warnings),
        )
