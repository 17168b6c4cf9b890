"""The policy file, mesh.yaml: its text becomes a set of policies, or a list of what is wrong with it.

    functions:      what holds for a target function (Istio's DestinationRule)
    routes:         what is done with the requests that match, the first match wins (Istio's VirtualService)
    access:         who may ask what of whom (SMI's TrafficTarget)
    tls:            the identities of processes

A file may hold several documents. One with `apiVersion` and `kind` is a document of Istio, SMI or Dapr, and is read as
what it means there (`penstock.mesh.loaders`). What always holds: a text with one mistake gives no policies at all;
every mistake is told with its line and its field; what is no mistake, and yet will not do what it seems to say, is a
warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.errors import ConfigurationError
from penstock.ids import check_typename
from penstock.mesh.fields import Note, Notes, Section
from penstock.mesh.loaders import dapr, istio, smi
from penstock.mesh.policies.outcomes import CONDITIONS, is_condition
from penstock.mesh.policies.settings import (
    Abort,
    AccessRule,
    Action,
    AdaptiveConcurrency,
    AdmissionControl,
    Backoff,
    Balance,
    Breaker,
    Delay,
    Fault,
    FunctionPolicy,
    Limits,
    LoadBalancing,
    Match,
    Mirror,
    OutlierDetection,
    PolicySet,
    RateLimit,
    Retries,
    RetryBudget,
    Route,
    Scope,
    Side,
    TextMatch,
    Tls,
    TlsMode,
    TokenBucket,
    Weighted,
)
from penstock.mesh.policies.trip import parse_trip
from penstock.mesh.policy_draft import PolicyDraft
from penstock.mesh.yaml_tree import Table, YamlError, parse_yaml

TEXT_MAX: Final = 1 << 20
"""A megabyte is ten thousand routes; more is some other file."""
_LOADERS: Final = {**istio.LOADERS, **smi.LOADERS, **dapr.LOADERS}
_PERIOD_S: Final = 0.001
"""The shortest period: a duration is counted in whole milliseconds, and a period of 0 would never end."""


def read_policies(text: str, name: str = "mesh.yaml", *, replicas: int = 0) -> PolicySet:
    """The policies that `text` says. Raises ConfigurationError with every mistake in it. With `replicas`, the number of
    endpoints of each function, the warnings are about that number."""
    notes = Notes()
    draft = PolicyDraft(notes, replicas)
    if len(text) > TEXT_MAX:
        notes.errors.append(Note(1, "", f"it has {len(text)} characters; {TEXT_MAX} are the most"))
    else:
        _read_documents(text, draft)
    if notes.errors:
        raise _refusal(name, notes.errors)
    return draft.finished()


def _refusal(name: str, errors: list[Note]) -> ConfigurationError:
    told = "\n".join(f"  {note}" for note in errors[1:])
    first = f"{name} {errors[0]}. Nothing of it is used; correct it."
    return ConfigurationError("PEN0840", first if not told else f"{first} Also:\n{told}")


def _read_documents(text: str, draft: PolicyDraft) -> None:
    try:
        documents = parse_yaml(text)
    except YamlError as error:
        draft.notes.errors.append(Note(error.line, "", error.message))
        return
    for document in documents:
        if not isinstance(document, Table):
            draft.notes.errors.append(Note(document.line, "", "expected fields such as functions: and routes:"))
        elif "kind" in document.entries or "apiVersion" in document.entries:
            _read_foreign(Section(document, "", draft.notes, strict=False), draft)
        else:
            _read_own(Section(document, "", draft.notes), draft)


def _read_foreign(section: Section, draft: PolicyDraft) -> None:
    kind = section.text("kind")
    api = section.text("apiVersion").partition("/")[0]
    loader = _LOADERS.get((api, kind))
    if loader is None:
        known = ", ".join(f"{kind} of {api}" for api, kind in sorted(_LOADERS))
        section.error("kind", f"{kind!r} of {api!r} is none of {known}")
        return
    loader(section, draft)


def _read_own(section: Section, draft: PolicyDraft) -> None:
    functions = section.section("functions")
    for function in functions.names() if functions is not None else ():
        assert functions is not None
        _check_function(functions, function, function)
        inner = functions.section(function)
        if inner is not None:
            draft.set_function(function, _function_policy(inner), inner, "outlier_detection")
    for inner in section.sections("routes"):
        draft.add_route(_route(inner), inner)
    for rule in section.sections("access"):
        draft.access.append(_access_rule(rule))
    tls = section.section("tls")
    if tls is not None:
        draft.tls = Tls(tls.choice("mode", TlsMode, TlsMode.PERMISSIVE), tls.text("trust_domain", Tls().trust_domain))
        tls.finish()
    section.finish()


def _check_function(section: Section, field: str, function: str) -> None:
    try:
        check_typename(function)
    except ConfigurationError as error:
        section.error(field, error.message)


# ---- functions


def _function_policy(section: Section) -> FunctionPolicy:
    default = FunctionPolicy()
    policy = FunctionPolicy(
        lb=_load_balancing(section.section("lb")),
        subsets=_subsets(section.section("subsets")),
        limits=_limits(section.section("limits")),
        breaker=_breaker(section.section("breaker")),
        outlier_detection=_outlier_detection(section.section("outlier_detection")),
        panic_threshold=section.percentage("panic_threshold", default.panic_threshold),
        retry_budget=_retry_budget(section.section("retry_budget")),
        rate_limit=_rate_limit(section.section("rate_limit")),
        admission_control=_admission_control(section.section("admission_control")),
        adaptive_concurrency=_adaptive_concurrency(section.section("adaptive_concurrency")),
    )
    section.finish()
    return policy


def _load_balancing(section: Section | None) -> LoadBalancing | None:
    if section is None:
        return None
    default = LoadBalancing(Balance.LEAST_REQUEST)
    if not section.has("policy"):
        section.error("policy", f"it is missing; expected one of {', '.join(member.value for member in Balance)}")
    found = LoadBalancing(
        section.choice("policy", Balance, default.policy),
        section.count("choice_count", default.choice_count, least=2, most=100),
        section.count("minimum_ring_size", default.minimum_ring_size, least=1, most=1 << 17),
        section.count("hash_balance_factor", default.hash_balance_factor, most=10_000),
    )
    if 0 < found.hash_balance_factor < 100:
        section.error("hash_balance_factor", "below 100 percent there is no place for every request; 150 is usual")
    section.finish()
    return found


def _subsets(section: Section | None) -> dict[str, dict[str, str]]:
    return {} if section is None else {name: section.labels(name) for name in section.names()}


def _limits(section: Section | None) -> Limits:
    default = Limits()
    if section is None:
        return default
    found = Limits(
        section.count("max_requests", default.max_requests, least=1),
        section.count("max_pending_requests", default.max_pending_requests),
    )
    section.finish()
    return found


def _breaker(section: Section | None) -> Breaker | None:
    if section is None:
        return None
    default = Breaker()
    found = Breaker(
        section.parsed("trip", default.trip, parse_trip, "a condition such as 'consecutiveFailures > 5'"),
        section.duration_s("timeout", default.timeout_s, _PERIOD_S),
        section.count("maxRequests", default.max_requests, least=1),
        section.duration_s("interval", default.interval_s),
        section.choice("scope", Scope, default.scope),
        section.count("cacheSize", default.cache_size, least=1, most=1_000_000),
    )
    section.finish()
    return found


def _outlier_detection(section: Section | None) -> OutlierDetection | None:
    if section is None:
        return None
    default = OutlierDetection()
    found = OutlierDetection(
        consecutive_5xx=section.count("consecutive_5xx", default.consecutive_5xx),
        consecutive_gateway_failure=section.count("consecutive_gateway_failure", default.consecutive_gateway_failure),
        consecutive_local_origin_failure=section.count(
            "consecutive_local_origin_failure", default.consecutive_local_origin_failure
        ),
        split_external_local_origin_errors=section.flag(
            "split_external_local_origin_errors", default.split_external_local_origin_errors
        ),
        interval_s=section.duration_s("interval", default.interval_s, _PERIOD_S),
        base_ejection_time_s=section.duration_s("base_ejection_time", default.base_ejection_time_s, _PERIOD_S),
        max_ejection_time_s=section.duration_s("max_ejection_time", default.max_ejection_time_s),
        max_ejection_time_jitter_s=section.duration_s("max_ejection_time_jitter", default.max_ejection_time_jitter_s),
        max_ejection_percent=section.count("max_ejection_percent", default.max_ejection_percent, most=100),
        always_eject_one_host=section.flag("always_eject_one_host", default.always_eject_one_host),
        enforcing_success_rate=section.count("enforcing_success_rate", default.enforcing_success_rate, most=100),
        success_rate_minimum_hosts=section.count("success_rate_minimum_hosts", default.success_rate_minimum_hosts),
        success_rate_request_volume=section.count("success_rate_request_volume", default.success_rate_request_volume),
        success_rate_stdev_factor=section.count("success_rate_stdev_factor", default.success_rate_stdev_factor),
        enforcing_failure_percentage=section.count(
            "enforcing_failure_percentage", default.enforcing_failure_percentage, most=100
        ),
        failure_percentage_threshold=section.count(
            "failure_percentage_threshold", default.failure_percentage_threshold, most=100
        ),
        failure_percentage_minimum_hosts=section.count(
            "failure_percentage_minimum_hosts", default.failure_percentage_minimum_hosts
        ),
        failure_percentage_request_volume=section.count(
            "failure_percentage_request_volume", default.failure_percentage_request_volume
        ),
    )
    section.finish()
    return found


def _retry_budget(section: Section | None) -> RetryBudget:
    if section is None:
        return FunctionPolicy().retry_budget
    default = RetryBudget()
    found = RetryBudget(
        section.percentage("budget_percent", default.budget_percent),
        section.count("min_retry_concurrency", default.min_retry_concurrency),
    )
    section.finish()
    return found


def _rate_limit(section: Section | None) -> RateLimit | None:
    if section is None:
        return None
    bucket = section.section("token_bucket")
    if bucket is None:
        section.error("token_bucket", "it is missing; expected max_tokens, tokens_per_fill and fill_interval")
        return None
    if not bucket.has("max_tokens"):
        bucket.error("max_tokens", "it is missing; expected a whole number from 1 on")
    found = TokenBucket(
        bucket.count("max_tokens", 1, least=1),
        bucket.count("tokens_per_fill", 1, least=1),
        bucket.duration_s("fill_interval", 1.0, _PERIOD_S),
    )
    bucket.finish()
    per = section.text("per", "function")
    if per not in ("function", "identity"):
        section.error("per", f"expected function or identity, got {per!r}")
    section.finish()
    return RateLimit(found, per_identity=per == "identity")


def _admission_control(section: Section | None) -> AdmissionControl | None:
    if section is None:
        return None
    default = AdmissionControl()
    found = AdmissionControl(
        section.duration_s("sampling_window", default.sampling_window_s, 1.0),
        section.number("sr_threshold", default.sr_threshold, 1, 100),
        section.number("aggression", default.aggression, 1),
        section.count("rps_threshold", default.rps_threshold),
        section.percentage("max_rejection_probability", default.max_rejection_probability),
    )
    section.finish()
    return found


def _adaptive_concurrency(section: Section | None) -> AdaptiveConcurrency | None:
    if section is None:
        return None
    default = AdaptiveConcurrency()
    found = AdaptiveConcurrency(
        section.count("min_concurrency", default.min_concurrency, least=1),
        section.count("max_concurrency_limit", default.max_concurrency_limit, least=1),
        section.duration_s("concurrency_update_interval", default.concurrency_update_interval_s, _PERIOD_S),
        section.percentage("sample_aggregate_percentile", default.sample_aggregate_percentile),
        section.duration_s("min_rtt_interval", default.min_rtt_interval_s, _PERIOD_S),
        section.count("min_rtt_request_count", default.min_rtt_request_count, least=1),
        section.percentage("min_rtt_buffer", default.min_rtt_buffer),
    )
    section.finish()
    return found


# ---- routes


def _route(section: Section) -> Route:
    default = Route()
    route = Route(
        _matches(section),
        tuple(_split(section)),
        section.duration_s("timeout", default.timeout_s),
        _retries(section.section("retries")),
        _mirror(section.section("mirror")),
        _fault(section.section("fault")),
    )
    section.finish()
    return route


def _matches(section: Section) -> tuple[Match, ...]:
    if not section.has("match"):
        return (Match(),)
    if section.is_list("match"):
        return tuple(_match(inner) for inner in section.sections("match"))
    inner = section.section("match")
    return () if inner is None else (_match(inner),)


def _match(section: Section) -> Match:
    found = Match(
        section.text_match("function"),
        _lowered(section.text_matches("headers")),
        _lowered(section.text_matches("without_headers")),
        section.text_match("caller"),
    )
    section.finish()
    return found


def _lowered(headers: dict[str, TextMatch]) -> dict[str, TextMatch]:
    """Names of headers mean the same in capitals."""
    return {name.lower(): match for name, match in headers.items()}


def _split(section: Section) -> Iterator[Weighted]:
    total = 0
    for part in section.sections("split"):
        weight = part.count("weight", 1, most=1_000_000)
        total += weight
        yield Weighted(part.text("subset"), weight)
        part.finish()
    if section.items("split") and not total:
        section.error("split", "expected weights of which at least one is not 0")


def _retries(section: Section | None) -> Retries:
    default = Retries()
    if section is None:
        return default
    found = Retries(
        section.count("attempts", default.attempts, least=-1, most=100),
        section.duration_s("per_try_timeout", default.per_try_timeout_s),
        _conditions(section, "retry_on", default.retry_on),
        _conditions(section, "retry_on_keyed", default.retry_on_keyed),
        _backoff(section.section("backoff")),
        section.duration_s("retry_after_max", default.retry_after_max_s),
        section.flag("previous_hosts", default.previous_hosts),
    )
    section.finish()
    return found


def _conditions(section: Section, name: str, default: frozenset[str]) -> frozenset[str]:
    if not section.has(name):
        return default
    found = section.texts(name)
    for condition in found:
        if not is_condition(condition):
            section.error(name, f"{condition!r} is none of {', '.join(CONDITIONS)}, or a status from 400 to 599")
    return frozenset(found)


def _backoff(section: Section | None) -> Backoff:
    default = Backoff()
    if section is None:
        return default
    policy = section.text("policy", "jittered")
    if policy not in ("jittered", "constant", "exponential"):
        section.error("policy", f"expected jittered, constant or exponential, got {policy!r}")
    base_s = section.duration_s("base_interval", default.base_interval_s)
    found = Backoff(
        base_s,
        # As in Envoy, the cap is ten times the base unless it is said.
        section.duration_s("max_interval", 10 * base_s),
        constant=policy == "constant",
        multiplier=section.number("multiplier", 1.5, 1, 100) if policy == "exponential" else 0.0,
    )
    section.finish()
    return found


def _mirror(section: Section | None) -> Mirror | None:
    if section is None:
        return None
    if not section.has("subset"):
        section.error("subset", "it is missing; expected the name of a subset")
    state = section.text("state", "shadow")
    if state != "shadow":
        section.error("state", f"expected shadow, got {state!r}: a copy must not change what the request changes")
    found = Mirror(section.text("subset"), section.percentage("percentage", 100.0))
    section.finish()
    return found


def _fault(section: Section | None) -> Fault | None:
    if section is None:
        return None
    found = Fault(
        _delay(section.section("delay")), _abort(section.section("abort")), section.choice("side", Side, Side.SERVER)
    )
    section.finish()
    return found


def _delay(section: Section | None) -> Delay | None:
    if section is None:
        return None
    # As in Istio, a fault without a percentage is none: it must not be forgotten into every request.
    found = Delay(section.percentage("percentage", 0.0), section.duration_s("fixed_delay", 0.0))
    section.finish()
    return found


def _abort(section: Section | None) -> Abort | None:
    if section is None:
        return None
    found = Abort(section.percentage("percentage", 0.0), section.count("http_status", 503, least=400, most=599))
    section.finish()
    return found


# ---- access


def _access_rule(section: Section) -> AccessRule:
    for name in ("destination", "sources"):
        if not section.has(name):
            section.error(name, "it is missing: a rule names a destination and its sources")
    rule = AccessRule(
        _pattern(section.text("destination")),
        tuple(_pattern(source) for source in section.texts("sources")),
        tuple(_pattern(operation) for operation in section.texts("operations")),
        section.choice("action", Action, Action.ALLOW),
    )
    section.finish()
    return rule


def _pattern(text: str) -> TextMatch:
    """A text, where `*` at the end stands for any end."""
    if text.endswith("*"):
        return TextMatch(prefix=text[:-1])
    return TextMatch(exact=text)
