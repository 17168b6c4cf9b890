"""What can be said about requests: the policies as plain values, in the words and with the defaults of Envoy.

What always holds: a value here makes sense by itself (the readers of files refuse the others, with line and field);
times are seconds; percentages go from 0 to 100. Frozen, so that a set of policies is replaced as a whole or not at all.
Reads no files and remembers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from penstock.mesh.policies.trip import Trip, parse_trip


class Balance(Enum):
    """How one of several endpoints is chosen."""

    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    PEAK_EWMA = "PEAK_EWMA"
    RING_HASH = "RING_HASH"
    RANDOM = "RANDOM"


class Scope(Enum):
    """What a breaker counts the failures of."""

    ENDPOINT = "endpoint"
    FUNCTION = "function"
    ID = "id"
    BOTH = "both"
    """Of the function and of the id: Dapr's name for two breakers at once."""


class Side(Enum):
    """Where a fault is injected."""

    SERVER = "server"
    CLIENT = "client"


class Action(Enum):
    """What an access rule does with the requests it matches."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class TlsMode(Enum):
    """Of a host that has a certificate. Istio's words."""

    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    """Mutual TLS from those that offer TLS; the others are served as nobody in particular."""
    STRICT = "STRICT"
    """Mutual TLS or nothing."""


# ---- how a request is carried to its target


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    policy: Balance
    choice_count: int = 2
    minimum_ring_size: int = 1024
    hash_balance_factor: int = 0
    """Of RING_HASH: an endpoint takes no more than this percentage of the average load. 0 is without a bound."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Envoy's `circuit_breakers.thresholds`: for one function, in one calling process."""

    max_requests: int = 1024
    """Under way at once. One request takes one connection here, so this is Envoy's `max_connections` as well."""
    max_pending_requests: int = 1024
    """Waiting until one of those ends. What comes beyond is answered 503 at once."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """Dapr's circuit breaker, which is sony/gobreaker."""

    trip: Trip = field(default_factory=lambda: parse_trip("consecutiveFailures > 5"))
    timeout_s: float = 60.0
    max_requests: int = 1
    interval_s: float = 0.0
    """How often the counts start again while it is closed. 0 is never."""
    scope: Scope = Scope.ENDPOINT
    cache_size: int = 5000
    """How many breakers are remembered at most: by id there is no other bound."""


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    consecutive_5xx: int = 5
    consecutive_gateway_failure: int = 0
    consecutive_local_origin_failure: int = 5
    split_external_local_origin_errors: bool = False
    interval_s: float = 10.0
    base_ejection_time_s: float = 30.0
    max_ejection_time_s: float = 300.0
    max_ejection_time_jitter_s: float = 0.0
    max_ejection_percent: int = 10
    always_eject_one_host: bool = False
    enforcing_success_rate: int = 100
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: int = 1900
    """In thousandths: mean - 1.9 standard deviations."""
    enforcing_failure_percentage: int = 0
    failure_percentage_threshold: int = 85
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50


@dataclass(frozen=True, slots=True)
class RetryBudget:
    budget_percent: float = 20.0
    min_retry_concurrency: int = 3


@dataclass(frozen=True, slots=True)
class TokenBucket:
    max_tokens: int
    tokens_per_fill: int = 1
    fill_interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class RateLimit:
    token_bucket: TokenBucket
    per_identity: bool = False
    """A bucket for each caller, so that one of them can't use up what is there for all."""


@dataclass(frozen=True, slots=True)
class AdmissionControl:
    sampling_window_s: float = 30.0
    sr_threshold: float = 95.0
    aggression: float = 1.0
    rps_threshold: int = 0
    max_rejection_probability: float = 80.0


@dataclass(frozen=True, slots=True)
class AdaptiveConcurrency:
    min_concurrency: int = 3
    max_concurrency_limit: int = 1000
    concurrency_update_interval_s: float = 0.1
    sample_aggregate_percentile: float = 50.0
    min_rtt_interval_s: float = 60.0
    min_rtt_request_count: int = 50
    min_rtt_buffer: float = 25.0


DEFAULT_RETRY_BUDGET: Final = RetryBudget(min_retry_concurrency=64)
"""For functions of which a file says nothing. With Envoy's floor of 3, the calls that a killed replica held would not
all be allowed their second try, at a load at which trying again costs the others nothing; 64 still ends a storm."""


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """What holds for one target function: Istio's DestinationRule."""

    lb: LoadBalancing | None = None
    """None is RING_HASH for functions with state, and LEAST_REQUEST for the others."""
    subsets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Name -> the labels of its endpoints. A name that is not here is a version."""
    limits: Limits = Limits()
    breaker: Breaker | None = None
    outlier_detection: OutlierDetection | None = None
    panic_threshold: float = 50.0
    retry_budget: RetryBudget = DEFAULT_RETRY_BUDGET
    rate_limit: RateLimit | None = None
    admission_control: AdmissionControl | None = None
    adaptive_concurrency: AdaptiveConcurrency | None = None


# ---- which requests, and what is done with them


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Istio's StringMatch: exactly one of them is given, or none, which any text matches."""

    exact: str | None = None
    prefix: str | None = None
    regex: re.Pattern[str] | None = None

    def matches(self, text: str) -> bool:
        if self.exact is not None:
            return text == self.exact
        if self.prefix is not None:
            return text.startswith(self.prefix)
        return self.regex is None or self.regex.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Match:
    """Everything in it must hold."""

    function: TextMatch = TextMatch()
    headers: Mapping[str, TextMatch] = field(default_factory=dict)
    """Names are in lower case."""
    without_headers: Mapping[str, TextMatch] = field(default_factory=dict)
    caller: TextMatch = TextMatch()

    def matches(self, headers: Mapping[str, str], caller: str) -> bool:
        """Of a request for a function that `function` matches."""
        return (
            self.caller.matches(caller)
            and all(name in headers and wanted.matches(headers[name]) for name, wanted in self.headers.items())
            and not any(name in headers and no.matches(headers[name]) for name, no in self.without_headers.items())
        )


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a retry."""

    base_interval_s: float = 0.025
    max_interval_s: float = 0.25
    constant: bool = False
    """Dapr's constant back-off: the base interval each time, without chance."""
    multiplier: float = 0.0
    """Of Dapr's exponential back-off: base * multiplier^(N-1), plus or minus half. 0 is Envoy's."""


@dataclass(frozen=True, slots=True)
class Retries:
    attempts: int = 2
    """Retries after the first attempt, as in Istio. -1 is without end, as in Dapr."""
    per_try_timeout_s: float = 0.0
    """0 is none: then an attempt has all the time that is left."""
    retry_on: frozenset[str] = frozenset({"connect-failure", "refused-stream", "reset-before-request"})
    retry_on_keyed: frozenset[str] = frozenset({"5xx", "reset"})
    """Also, for requests with an idempotency key, which the target carries out once."""
    backoff: Backoff = Backoff()
    retry_after_max_s: float = 300.0
    """The longest Retry-After that is heeded; one that asks for more counts as if it were not there."""
    previous_hosts: bool = True
    """Whether a retry avoids the endpoints that were tried."""


@dataclass(frozen=True, slots=True)
class Weighted:
    subset: str
    weight: int


@dataclass(frozen=True, slots=True)
class Mirror:
    subset: str
    percentage: float = 100.0


@dataclass(frozen=True, slots=True)
class Delay:
    percentage: float
    fixed_delay_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    percentage: float
    http_status: int


@dataclass(frozen=True, slots=True)
class Fault:
    delay: Delay | None = None
    abort: Abort | None = None
    side: Side = Side.SERVER


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with the requests that match: Istio's VirtualService."""

    matches: tuple[Match, ...] = (Match(),)
    """One of them is enough."""
    split: tuple[Weighted, ...] = ()
    timeout_s: float = 15.0
    """Of the whole call, retries included; 0 is none but the caller's own."""
    retries: Retries = Retries()
    mirror: Mirror | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class AccessRule:
    destination: TextMatch
    sources: tuple[TextMatch, ...]
    operations: tuple[TextMatch, ...] = ()
    """None is all of them."""
    action: Action = Action.ALLOW


@dataclass(frozen=True, slots=True)
class Tls:
    mode: TlsMode = TlsMode.PERMISSIVE
    trust_domain: str = "cluster.local"


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Everything one file says. The default is what holds without a file."""

    functions: Mapping[str, FunctionPolicy] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    access: tuple[AccessRule, ...] = ()
    tls: Tls | None = None
    warnings: tuple[str, ...] = ()
    """What is allowed and yet won't do what one would expect of it, each with the place and the reason."""
