"""Istio's VirtualService and DestinationRule, of networking.istio.io.

Differences that follow from what is carried here: every request is one of HTTP for a function, so conditions of gRPC
never occur; a route splits between the subsets of its own function; consistent hashing is by the id of the function.
Faults are injected at the calling side, and end retries and timeouts of their route, as they do in Istio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from penstock.mesh.fields import Section
from penstock.mesh.loaders.names import Head, spec_of
from penstock.mesh.policies.outcomes import is_condition
from penstock.mesh.policies.settings import (
    Abort,
    Backoff,
    Balance,
    Delay,
    Fault,
    FunctionPolicy,
    Limits,
    LoadBalancing,
    Match,
    Mirror,
    OutlierDetection,
    Retries,
    RetryBudget,
    Route,
    Side,
    TextMatch,
    Weighted,
)
from penstock.mesh.policy_draft import PolicyDraft

_UNLIMITED: Final = 2**32 - 1
_GRPC: Final = {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
_RETRIES: Final = Retries(retry_on=frozenset({"connect-failure", "refused-stream"}), retry_on_keyed=frozenset())
"""Istio's default: two, on what was surely not processed. It also names two conditions of gRPC."""
_BALANCES: Final = {
    "LEAST_CONN": Balance.LEAST_REQUEST,
    "LEAST_REQUEST": Balance.LEAST_REQUEST,
    "RANDOM": Balance.RANDOM,
    "ROUND_ROBIN": Balance.ROUND_ROBIN,
}


# ---- VirtualService


def load_virtual_service(document: Section, draft: PolicyDraft) -> None:
    head = Head(document)
    spec = spec_of(document)
    if spec is None:
        return
    functions = [head.function(host) for host in spec.texts("hosts")]
    if not functions:
        spec.error("hosts", "it is missing: expected the functions that are routed")
    for http in spec.sections("http"):
        route = _route(http, head, functions)
        if route is not None:
            draft.add_route(route, http)
    spec.finish()


def _route(http: Section, head: Head, functions: list[str]) -> Route | None:
    http.has("name")
    http.refuse(
        "delegate", "directResponse", "redirect", reason="the request would go somewhere else than to the function"
    )
    route = Route(
        matches=tuple(_matches(http, functions)),
        split=tuple(_split(http, head, functions)),
        timeout_s=http.duration_s("timeout", 0.0),
        retries=_retries(http.section("retries")),
        mirror=_mirror(http, head, functions),
        fault=_fault(http.section("fault")),
    )
    http.finish()
    return route


def _matches(http: Section, functions: list[str]) -> Iterator[Match]:
    names = [TextMatch(exact=function) for function in functions]
    if not http.has("match"):
        yield from (Match(name) for name in names)
        return
    for match in http.sections("match"):
        match.has("name")
        headers = _lowered(match.text_matches("headers"))
        without = _lowered(match.text_matches("withoutHeaders"))
        for name in match.unasked():
            match.refuse(name, reason="the route would take other requests than those it names")
        yield from (Match(name, headers, without) for name in names)


def _lowered(headers: Mapping[str, TextMatch]) -> dict[str, TextMatch]:
    return {name.lower(): match for name, match in headers.items()}


def _split(http: Section, head: Head, functions: list[str]) -> Iterator[Weighted]:
    parts = list(http.sections("route"))
    total = 0
    for part in parts:
        destination = part.section("destination")
        weight = part.count("weight", 0 if len(parts) > 1 else 1)
        total += weight
        if destination is None:
            part.error("destination", "it is missing")
        else:
            yield Weighted(_own_subset(destination, head, functions), weight)
            destination.finish()
        part.finish()
    if parts and not total:
        http.error("route", "expected weights of which at least one is not 0")


def _own_subset(destination: Section, head: Head, functions: list[str]) -> str:
    """The subset of a destination, which must be one of the functions that are routed."""
    host = destination.text("host")
    if head.function(host) not in functions:
        destination.error("host", f"{host!r} is another function: a route splits between the subsets of its own")
    return destination.text("subset")


def _retries(section: Section | None) -> Retries:
    if section is None:
        return _RETRIES
    backoff_s = section.duration_s("backoff", Backoff().base_interval_s, 0.001)
    found = Retries(
        attempts=section.count("attempts", _RETRIES.attempts, most=100),
        per_try_timeout_s=section.duration_s("perTryTimeout", 0.0),
        retry_on=_conditions(section),
        retry_on_keyed=frozenset(),
        backoff=Backoff(backoff_s, 10 * backoff_s),
        previous_hosts=section.flag("retryIgnorePreviousHosts", True),
    )
    section.finish()
    return found


def _conditions(section: Section) -> frozenset[str]:
    if not section.has("retryOn"):
        return _RETRIES.retry_on
    named = section.texts("retryOn")
    # This one only says that statuses follow, and they do.
    unknown = [name for name in named if not is_condition(name) and name != "retriable-status-codes"]
    for name in unknown:
        reason = "no request here is one of gRPC" if name in _GRPC else "there is no such condition here"
        section.warn("retryOn", f"{name!r} is not supported: {reason}")
    return frozenset(name for name in named if is_condition(name))


def _mirror(http: Section, head: Head, functions: list[str]) -> Mirror | None:
    mirror = http.section("mirror")
    if mirror is None:
        return None
    percentage = _percentage(http, "mirrorPercentage", 100.0)
    subset = _own_subset(mirror, head, functions)
    if not subset:
        mirror.error("subset", "it is missing: a copy goes to another subset than the request")
    mirror.finish()
    return Mirror(subset, percentage)


def _fault(section: Section | None) -> Fault | None:
    if section is None:
        return None
    delay, abort = section.section("delay"), section.section("abort")
    fault = Fault(
        Delay(_percentage(delay, "percentage", 0.0), delay.duration_s("fixedDelay", 0.0)) if delay else None,
        Abort(_percentage(abort, "percentage", 0.0), abort.count("httpStatus", 503, least=400, most=599))
        if abort
        else None,
        Side.CLIENT,
    )
    for part in (delay, abort, section):
        if part is not None:
            part.finish()
    return fault


def _percentage(section: Section, name: str, default: float) -> float:
    """{value: 12.5}"""
    inner = section.section(name)
    if inner is None:
        return default
    found = inner.percentage("value", 0.0)
    inner.finish()
    return found


# ---- DestinationRule


def load_destination_rule(document: Section, draft: PolicyDraft) -> None:
    head = Head(document)
    spec = spec_of(document)
    if spec is None:
        return
    host = spec.text("host")
    if not host:
        spec.error("host", "it is missing: expected the function the rule is for")
    function = head.function(host)
    subsets = dict(_subsets(spec))
    traffic = spec.section("trafficPolicy")
    policy = _function_policy(traffic, subsets, draft.function(function))
    spec.finish()
    if policy is not None:
        draft.set_function(function, policy, traffic or spec, "outlierDetection")


def _subsets(spec: Section) -> Iterator[tuple[str, dict[str, str]]]:
    for subset in spec.sections("subsets"):
        yield subset.text("name"), subset.labels("labels")
        subset.finish()


def _function_policy(
    traffic: Section | None, subsets: Mapping[str, Mapping[str, str]], before: FunctionPolicy
) -> FunctionPolicy:
    if traffic is None:
        return replace(before, subsets=subsets)
    limits, retries_max = _connection_pool(traffic.section("connectionPool"))
    outliers = traffic.section("outlierDetection")
    policy = replace(
        before,
        subsets=subsets,
        lb=_load_balancer(traffic.section("loadBalancer")),
        limits=limits,
        # In Istio it is a number and no share of the requests.
        retry_budget=RetryBudget(budget_percent=0, min_retry_concurrency=retries_max),
        outlier_detection=_outlier_detection(outliers),
        panic_threshold=outliers.percentage("minHealthPercent", 0.0) if outliers else before.panic_threshold,
    )
    if outliers is not None:
        outliers.finish()
    traffic.finish()
    return policy


def _load_balancer(section: Section | None) -> LoadBalancing | None:
    if section is None:
        return None
    hashed = section.section("consistentHash")
    if hashed is not None:
        ring = hashed.section("ringHash")
        size = ring.count("minimumRingSize", 1024, least=1, most=1 << 17) if ring is not None else 1024
        for part in (ring, hashed):
            if part is not None:
                part.finish()
        section.finish()
        return LoadBalancing(Balance.RING_HASH, minimum_ring_size=size)
    simple = section.text("simple", "LEAST_REQUEST")
    if simple not in _BALANCES:
        section.warn("simple", f"{simple!r} is not supported; the default is used")
    section.finish()
    return LoadBalancing(_BALANCES[simple]) if simple in _BALANCES else None


def _connection_pool(section: Section | None) -> tuple[Limits, int]:
    """The limits, and how many retries may be under way."""
    if section is None:
        return Limits(_UNLIMITED, _UNLIMITED), _UNLIMITED
    tcp, http = section.section("tcp"), section.section("http")
    # A request takes a connection of its own, so both bound the same thing.
    most = [tcp.count("maxConnections", _UNLIMITED, least=1)] if tcp is not None else []
    pending = retries_max = _UNLIMITED
    if http is not None:
        most.append(http.count("http2MaxRequests", _UNLIMITED, least=1))
        pending = http.count("http1MaxPendingRequests", _UNLIMITED)
        retries_max = http.count("maxRetries", _UNLIMITED)
    for part in (tcp, http, section):
        if part is not None:
            part.finish()
    return Limits(min(most, default=_UNLIMITED), pending), retries_max


def _outlier_detection(section: Section | None) -> OutlierDetection | None:
    if section is None:
        return None
    default = OutlierDetection()
    return OutlierDetection(
        consecutive_5xx=section.count("consecutive5xxErrors", default.consecutive_5xx),
        consecutive_gateway_failure=section.count("consecutiveGatewayErrors", 0),
        consecutive_local_origin_failure=section.count(
            "consecutiveLocalOriginFailures", default.consecutive_local_origin_failure
        ),
        split_external_local_origin_errors=section.flag("splitExternalLocalOriginErrors", False),
        interval_s=section.duration_s("interval", default.interval_s, 0.001),
        base_ejection_time_s=section.duration_s("baseEjectionTime", default.base_ejection_time_s, 0.001),
        max_ejection_percent=section.count("maxEjectionPercent", default.max_ejection_percent, most=100),
        # Istio switches it off: its documents have no words for it.
        enforcing_success_rate=0,
    )


LOADERS: Final[dict[tuple[str, str], Callable[[Section, PolicyDraft], None]]] = {
    ("networking.istio.io", "DestinationRule"): load_destination_rule,
    ("networking.istio.io", "VirtualService"): load_virtual_service,
}
