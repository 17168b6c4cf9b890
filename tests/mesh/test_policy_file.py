"""mesh.yaml: what it says, what is wrong with it and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError
from penstock.mesh.policies.settings import (
    Abort,
    AccessRule,
    Backoff,
    Balance,
    Delay,
    Fault,
    Limits,
    LoadBalancing,
    Mirror,
    PolicySet,
    RateLimit,
    Retries,
    RetryBudget,
    Scope,
    Side,
    TextMatch,
    Tls,
    TlsMode,
    TokenBucket,
    Weighted,
)
from penstock.mesh.policy_file import TEXT_MAX, read_policies
from tests.mesh.strangers import STRANGER, with_a_stranger

EVERYTHING = """
functions:
  shop/payment:
    lb: {policy: LEAST_REQUEST, choice_count: 2}
    subsets: {v1: {version: v1}, v2: {version: 2, zone: a}}
    limits: {max_requests: 256, max_pending_requests: 512}
    breaker: {trip: "consecutiveFailures > 5", timeout: 10s, maxRequests: 1, interval: 30s, scope: endpoint}
    outlier_detection: {consecutive_5xx: 5, interval: 10s, base_ejection_time: 30s, max_ejection_time: 300s,
                        max_ejection_percent: 50, always_eject_one_host: true,
                        split_external_local_origin_errors: false}
    panic_threshold: 0
    retry_budget: {budget_percent: 20, min_retry_concurrency: 3}
    rate_limit: {token_bucket: {max_tokens: 200, tokens_per_fill: 100, fill_interval: 1s}, per: identity}
    admission_control: {sr_threshold: 90}
    adaptive_concurrency: {min_concurrency: 5}
routes:
  - match: {function: shop/payment, headers: {X-Cohort: {exact: beta}}}
    split: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
    timeout: 2s
    retries: {attempts: 2, per_try_timeout: 400ms, retry_on: "connect-failure,refused-stream,reset-before-request",
              retry_on_keyed: "5xx,reset", backoff: {base_interval: 25ms, max_interval: 250ms}, previous_hosts: true}
    mirror: {subset: v2, percentage: 5, state: shadow}
    fault: {delay: {percentage: 10, fixed_delay: 200ms}, abort: {percentage: 1, http_status: 503}, side: server}
access:
  - {destination: shop/payment, sources: [shop/order], operations: [charge, refund]}
tls: {mode: STRICT, trust_domain: demo.local}
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_policies(text)
    assert caught.value.code == "PEN0840"
    return caught.value.message


def test_a_file_with_everything_is_read_as_it_is_written() -> None:
    found = read_policies(EVERYTHING)

    policy, (route,) = found.functions["shop/payment"], found.routes
    assert policy.lb == LoadBalancing(Balance.LEAST_REQUEST, 2)
    assert policy.subsets == {"v1": {"version": "v1"}, "v2": {"version": "2", "zone": "a"}}
    assert policy.limits == Limits(256, 512)
    assert policy.breaker is not None
    assert (policy.breaker.trip.text, policy.breaker.scope) == ("consecutiveFailures > 5", Scope.ENDPOINT)
    assert (policy.breaker.timeout_s, policy.breaker.interval_s) == (10, 30)
    assert policy.outlier_detection is not None
    assert (policy.outlier_detection.max_ejection_percent, policy.outlier_detection.always_eject_one_host) == (50, True)
    assert policy.panic_threshold == 0
    assert policy.retry_budget == RetryBudget(20, 3)
    assert policy.rate_limit == RateLimit(TokenBucket(200, 100, 1.0), per_identity=True)
    assert policy.admission_control is not None
    assert policy.admission_control.sr_threshold == 90
    assert policy.adaptive_concurrency is not None
    assert policy.adaptive_concurrency.min_concurrency == 5
    (match,) = route.matches
    assert match.function == TextMatch(exact="shop/payment")
    assert match.headers == {"x-cohort": TextMatch(exact="beta")}
    assert route.split == (Weighted("v1", 90), Weighted("v2", 10))
    assert (route.timeout_s, route.retries) == (2.0, Retries(per_try_timeout_s=0.4, backoff=Backoff(0.025, 0.25)))
    assert route.mirror == Mirror("v2", 5)
    assert route.fault == Fault(Delay(10, 0.2), Abort(1, 503), Side.SERVER)
    charge, refund = TextMatch(exact="charge"), TextMatch(exact="refund")
    assert found.access == (
        AccessRule(TextMatch(exact="shop/payment"), (TextMatch(exact="shop/order"),), (charge, refund)),
    )
    assert found.tls == Tls(TlsMode.STRICT, "demo.local")
    assert found.warnings == ()


@pytest.mark.parametrize("text", ["", "---\n", "# only a comment\n", "{}"])
def test_an_empty_file_says_nothing(text: str) -> None:
    assert read_policies(text) == PolicySet()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "functions:\n  shop/a:\n    limits:\n      max_requests: many\n",
            "line 4, functions.shop/a.limits.max_requests: expected a whole number from 1 to 4294967295, got 'many'",
        ),
        ("routes:\n- retires: {}\n", "line 2, routes[0].retires: there is no such field. Did you mean 'retries'?"),
        ("routes: {}\n", "line 1, routes: expected a list, got fields"),
        ("routes:\n- 5\n", "line 2, routes[0]: expected fields, got 5"),
        ("- 1\n", "line 1: expected fields such as functions: and routes:"),
        ("functions: {payment: {}}\n", "line 1, functions.payment: 'payment' is not a typename"),
        (
            "routes:\n- timeout: soon\n",
            "line 2, routes[0].timeout: expected a duration such as 250ms or 10s, got 'soon'",
        ),
        ("routes:\n- retries: {retry_on: 5xx;reset}\n", "line 2, routes[0].retries.retry_on: '5xx;reset' is none of"),
        ("routes:\n- match: {function: {regex: '('}}\n", "match.function.regex: expected a regular expression"),
        ("routes:\n- match: {function: {exact: a, prefix: b}}\n", "expected only one of exact, prefix and regex"),
        ("routes:\n- split: [{subset: a, weight: 0}]\n", "expected weights of which at least one is not 0"),
        ("routes:\n- mirror: {percentage: 5}\n", "routes[0].mirror.subset: it is missing"),
        ("routes:\n- mirror: {subset: a, state: live}\n", "expected shadow, got 'live'"),
        ("routes:\n- fault: {abort: {percentage: 101}}\n", "expected a number from 0 to 100, got 101"),
        (
            "functions: {a/b: {breaker: {trip: failures > 5}}}\n",
            "breaker.trip: expected a condition such as 'consecutiveFailures > 5', got 'failures > 5'",
        ),
        ("functions: {a/b: {lb: {}}}\n", "functions.a/b.lb.policy: it is missing"),
        ("functions: {a/b: {lb: {policy: RING_HASH, hash_balance_factor: 50}}}\n", "150 is usual"),
        ("functions: {a/b: {rate_limit: {}}}\n", "rate_limit.token_bucket: it is missing"),
        ("functions: {a/b: {rate_limit: {token_bucket: {}, per: host}}}\n", "expected function or identity"),
        ("functions: {a/b: {outlier_detection: {interval: 0s}}}\n", "expected a duration of at least 0.001s"),
        ("access: [{sources: [a]}]\n", "access[0].destination: it is missing"),
        ("access: [{destination: a/b, sources: [[a]]}]\n", "access[0].sources[0]: expected a text"),
        ("tls: {mode: strict}\n", "tls.mode: expected one of DISABLE, PERMISSIVE, STRICT, got 'strict'"),
        ("tls: yes\n", "line 1, tls: expected fields below it, got True"),
        ("a: [1\n", "line 2: it is no YAML: expected ',' or ']'"),
        ("tls: {mode: STRICT}\ntls: {}\n", "line 2: 'tls' stands here a second time"),
        ("a: !!python/name:os.system\n", "line 1: the tag tag:yaml.org,2002:python/name:os.system is not understood"),
        ("a: &a [*a]\n", "line 1: it has too many values"),
        ("? [a]\n: b\n", "line 1: a name must be a text"),
        ("apiVersion: v1\n", "line 1, kind: '' of 'v1' is none of"),
        ("kind: Gateway\napiVersion: networking.istio.io/v1\n", "line 1, kind: 'Gateway' of 'networking.istio.io'"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_its_field(text: str, told: str) -> None:
    assert told in refusal(text)


FREE = ("functions", "subsets", "v1", "v2", "headers")
"""What is below these has names of the user's own."""


def test_a_field_that_there_is_not_is_refused_wherever_it_stands() -> None:
    for path, text in with_a_stranger(EVERYTHING, free=FREE):
        message = refusal(text)

        assert f"{STRANGER}: there is no such field" in message, path
        assert len(message.splitlines()) == 1, path


def test_every_mistake_is_told_at_once() -> None:
    message = refusal("routes:\n- timeout: soon\n- timout: 1s\n")

    first, second = message.splitlines()
    assert first.startswith("mesh.yaml line 2, routes[0].timeout: expected a duration such as 250ms or 10s, got 'soon'")
    assert first.endswith("Nothing of it is used; correct it. Also:")
    assert second == "  line 3, routes[1].timout: there is no such field. Did you mean 'timeout'?"


def test_a_text_that_grows_by_references_is_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]

    assert "too many values" in refusal("\n".join(levels))


def test_a_text_that_is_nested_without_end_is_refused() -> None:
    assert "values within values" in refusal("[" * 2_000)


def test_a_file_that_is_much_too_long_is_some_other_file() -> None:
    assert f"{TEXT_MAX} are the most" in refusal("#" * (TEXT_MAX + 1))


@given(st.text(alphabet="abr: -[]{}\n\"'&*!0159s%", max_size=60))
def test_no_text_ends_in_anything_but_policies_or_a_refusal(text: str) -> None:
    try:
        read_policies(text)
    except ConfigurationError as error:
        told = error.message
    else:
        return
    assert told.startswith("mesh.yaml line ")


# ---- warnings


@pytest.mark.parametrize(
    ("detection", "replicas", "told"),
    [
        ("{}", 0, "one of fewer than 10 endpoints is more than 10 % of them: with so few, none is ever ejected"),
        ("{}", 3, "one of 3 endpoints is 33.3 % of them, more than 10 %: none is ever ejected. Set 34 or more"),
        ("{max_ejection_percent: 34}", 2, "one of 2 endpoints is 50.0 % of them, more than 34 %"),
        ("{max_ejection_percent: 0}", 0, "0 % of any number is none"),
        (
            "{max_ejection_percent: 100}",
            3,
            "with 2 of 3 endpoints ejected 33 % are healthy, less than the panic threshold of 50 %",
        ),
    ],
)
def test_a_detection_that_can_not_do_its_work_is_warned_of_with_the_arithmetic(
    detection: str, replicas: int, told: str
) -> None:
    text = f"functions:\n  shop/payment:\n    outlier_detection: {detection}\n"

    (warning,) = read_policies(text, replicas=replicas).warnings

    assert warning.startswith("line 3, functions.shop/payment.outlier_detection: ")
    assert told in warning


@pytest.mark.parametrize(("detection", "replicas"), [("{}", 10), ("{always_eject_one_host: true}", 3)])
def test_a_detection_that_can_do_its_work_is_not_warned_of(detection: str, replicas: int) -> None:
    text = f"functions:\n  shop/payment:\n    outlier_detection: {detection}\n"

    assert read_policies(text, replicas=replicas).warnings == ()


def test_retries_for_which_no_time_is_left_are_warned_of() -> None:
    (warning,) = read_policies("routes:\n- timeout: 1s\n  retries: {per_try_timeout: 1s}\n").warnings

    assert warning.startswith("line 3, routes[0].retries: per_try_timeout 1s is no shorter than the timeout")


def test_a_retry_that_may_do_a_thing_twice_is_warned_of() -> None:
    (warning,) = read_policies("routes:\n- retries: {retry_on: '503,reset,connect-failure'}\n").warnings

    assert "it has reset, 503, under which a request may have been processed" in warning


def test_a_route_that_nothing_comes_to_is_warned_of() -> None:
    text = """
routes:
- match: {function: a/b, headers: {x: {}}}
- match: {function: a/b}
- match: [{function: a/b, caller: c/d}]
- match: {function: a/c}
"""
    (warning,) = read_policies(text).warnings

    assert warning.startswith("line 5, routes[2].match: a route before takes everything")
