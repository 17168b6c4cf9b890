"""Dapr's Resiliency, of dapr.io.

An app is the function app/NAME, and an actor type actor/TYPE, which are the names of those beside sidecars; a name with
a slash is a function itself. As in Dapr the timeout is that of one attempt, and nothing but the deadline of the caller
bounds the whole; every failure is tried again, unless `matching` says which. Dapr's breaker of an app is the one of its
function here. Components are no targets of requests between functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from penstock.mesh.fields import Section
from penstock.mesh.loaders.names import Head, spec_of
from penstock.mesh.policies.settings import Backoff, Breaker, Match, Retries, Route, Scope, TextMatch
from penstock.mesh.policies.trip import parse_trip
from penstock.mesh.policy_draft import PolicyDraft

_T = TypeVar("_T")

_ANY_FAILURE: Final = frozenset({"5xx"}) | {str(status) for status in range(400, 500)}
_SCOPES: Final = {"type": Scope.FUNCTION, "id": Scope.ID, "both": Scope.BOTH}


class _Named(NamedTuple):
    """The policies of a document by name."""

    timeouts: dict[str, float]
    retries: dict[str, Retries]
    breakers: dict[str, Breaker]


def load_resiliency(document: Section, draft: PolicyDraft) -> None:
    Head(document)
    scopes = [TextMatch(exact=_function("apps", app)) for app in document.texts("scopes")] or [TextMatch()]
    spec = spec_of(document)
    if spec is None:
        return
    named = _policies(spec.section("policies"))
    targets = spec.section("targets")
    if targets is not None:
        for kind in ("apps", "actors"):
            section = targets.section(kind)
            for name in section.names() if section is not None else ():
                assert section is not None
                target = section.section(name)
                if target is not None:
                    _target(target, _function(kind, name), scopes, named, draft, is_actor=kind == "actors")
        targets.finish()
    spec.finish()


def _function(kind: str, name: str) -> str:
    return name if "/" in name else f"{kind.removesuffix('s')}/{name}"


# ---- policies


def _policies(section: Section | None) -> _Named:
    found = _Named({}, {}, {})
    if section is None:
        return found
    for kind in ("timeouts", "retries", "circuitBreakers"):
        inner = section.section(kind)
        for name in inner.names() if inner is not None else ():
            assert inner is not None
            if name.startswith("Default"):
                inner.warn(name, "policies that hold by their name are not supported: name it at each target")
            _policy(kind, name, inner, found)
    section.finish()
    return found


def _policy(kind: str, name: str, inner: Section, found: _Named) -> None:
    if kind == "timeouts":
        found.timeouts[name] = inner.duration_s(name, 0.0)
        return
    section = inner.section(name)
    if section is None:
        return
    if kind == "retries":
        found.retries[name] = _retries(section)
    else:
        found.breakers[name] = _breaker(section)
    section.finish()


def _retries(section: Section) -> Retries:
    policy = section.text("policy", "constant")
    if policy not in ("constant", "exponential"):
        section.error("policy", f"expected constant or exponential, got {policy!r}")
    if policy == "exponential":
        backoff = Backoff(
            section.duration_s("initialInterval", 0.5),
            section.duration_s("maxInterval", 60.0),
            multiplier=section.number("multiplier", 1.5, 1, 100),
        )
    else:
        backoff = Backoff(section.duration_s("duration", 5.0), constant=True)
    retry_on = _ANY_FAILURE
    matching = section.section("matching")
    if matching is not None:
        if matching.has("httpStatusCodes"):
            retry_on = matching.parsed("httpStatusCodes", retry_on, _statuses, "statuses such as 429,500-599")
        if matching.has("gRPCStatusCodes"):
            matching.warn("gRPCStatusCodes", "it is not supported: no request here is one of gRPC")
        matching.finish()
    # What has no status is a failure in any case.
    retry_on |= {"reset"}
    return Retries(section.count("maxRetries", -1, least=-1), 0.0, retry_on, frozenset(), backoff)


def _statuses(text: str) -> frozenset[str]:
    found: set[str] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        low, high = int(first), int(last or first)
        if not 100 <= low <= high <= 599:
            raise ValueError(f"{part.strip()!r} is no range of statuses")
        found |= {str(status) for status in range(max(low, 400), high + 1)}
    return frozenset(found)


def _breaker(section: Section) -> Breaker:
    default = Breaker()
    return Breaker(
        section.parsed("trip", default.trip, parse_trip, "a condition such as 'consecutiveFailures > 5'"),
        section.duration_s("timeout", default.timeout_s, 0.001),
        section.count("maxRequests", default.max_requests, least=1),
        section.duration_s("interval", default.interval_s),
        Scope.FUNCTION,
    )


# ---- targets


def _target(
    section: Section, function: str, scopes: list[TextMatch], named: _Named, draft: PolicyDraft, *, is_actor: bool
) -> None:
    timeout_s = _named(section, "timeout", named.timeouts, 0.0)
    retries = _named(section, "retry", named.retries, Retries(attempts=0))
    breaker = _named(section, "circuitBreaker", dict[str, Breaker | None](named.breakers), None)
    if is_actor:
        scope = section.text("circuitBreakerScope", "type")
        if scope not in _SCOPES:
            section.error("circuitBreakerScope", f"expected one of {', '.join(_SCOPES)}, got {scope!r}")
        if breaker is not None:
            breaker = replace(breaker, scope=_SCOPES.get(scope, Scope.FUNCTION))
    size = section.count("circuitBreakerCacheSize", 5000, least=1, most=1_000_000)
    section.finish()
    matches = tuple(Match(TextMatch(exact=function), caller=caller) for caller in scopes)
    draft.add_route(
        Route(matches, timeout_s=0.0, retries=replace(retries, per_try_timeout_s=timeout_s)), section, "retry"
    )
    if breaker is not None:
        policy = replace(draft.function(function), breaker=replace(breaker, cache_size=size))
        draft.set_function(function, policy, section, "circuitBreaker")


def _named(section: Section, field: str, policies: dict[str, _T], default: _T) -> _T:
    """The policy that a target names."""
    if not section.has(field):
        return default
    name = section.text(field)
    if name not in policies:
        section.error(field, f"there is no policy {name!r} among {', '.join(sorted(policies)) or 'those of this kind'}")
    return policies.get(name, default)


LOADERS: Final[dict[tuple[str, str], Callable[[Section, PolicyDraft], None]]] = {
    ("dapr.io", "Resiliency"): load_resiliency,
}
