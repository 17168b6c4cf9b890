"""What every placement of the policies promises, in fourteen points, on a virtual clock and with seeded chance.

Where chance decides, the bound is computed: what a right implementation leaves once in a thousand runs, or less.
"""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from itertools import count
from math import log, sqrt
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.mesh.policies.backoff import backoff_s
from penstock.mesh.policies.balance import Balancer
from penstock.mesh.policies.faults import draw_fault
from penstock.mesh.policies.outlier import OutlierDetector
from penstock.mesh.policies.plan import Finish, GiveUp, Plan, Request, Try, Wait
from penstock.mesh.policies.rate_limit import Bucket
from penstock.mesh.policies.ring import Ring
from penstock.mesh.policies.settings import (
    Abort,
    Backoff,
    Balance,
    Breaker,
    Delay,
    Fault,
    FunctionPolicy,
    Limits,
    LoadBalancing,
    Mirror,
    OutlierDetection,
    Retries,
    RetryBudget,
    Route,
    Scope,
    TokenBucket,
    Weighted,
)
from penstock.mesh.policies.split import choose_subset
from penstock.mesh.rehearsal import Answer
from tests.mesh.policies.script import (
    BROKEN,
    FUNCTION,
    NO_CONNECTION,
    OK,
    Caller,
    always,
    endpoints,
    policies,
)

ONCE_IN = 1000
Z = NormalDist().inv_cdf(1 - 1 / ONCE_IN / 2)
"""So many standard deviations are exceeded, up or down, once in a thousand runs."""


def binomial_bounds(n: int, p: float) -> tuple[float, float]:
    spread = Z * sqrt(n * p * (1 - p))
    return n * p - spread, n * p + spread


# ---- 1


@pytest.mark.parametrize(("retry", "longest_s"), [(1, 0.025), (2, 0.075), (3, 0.175), (4, 0.250), (9, 0.250)])
def test_the_back_off_of_retry_n_is_uniform_in_its_range(retry: int, longest_s: float) -> None:
    """Kolmogorov and Smirnov: the greatest distance between what was drawn and the straight line."""
    n, draw = 10_000, Random(retry).random
    drawn = sorted(backoff_s(Backoff(), retry, draw) / longest_s for _ in range(n))

    distance = max(max(value - rank / n, (rank + 1) / n - value) for rank, value in enumerate(drawn))

    assert drawn[0] >= 0
    assert drawn[-1] <= 1
    assert distance < sqrt(-log(1 / ONCE_IN / 2) / 2 / n)


# ---- 2 and 3


@given(
    seconds=st.lists(st.floats(0.001, 3), min_size=1, max_size=12),
    timeout_s=st.floats(0.05, 5),
    per_try_timeout_s=st.one_of(st.just(0.0), st.floats(0.01, 5)),
    timeout_ms=st.one_of(st.none(), st.integers(1, 5000)),
    seed=st.integers(0, 1000),
)
def test_the_deadline_caps_everything_and_no_attempt_starts_after_it(
    seconds: list[float], timeout_s: float, per_try_timeout_s: float, timeout_ms: int | None, seed: int
) -> None:
    retries = Retries(attempts=10, per_try_timeout_s=per_try_timeout_s, retry_on=frozenset({"5xx"}))
    caller = Caller(policies(None, Route(timeout_s=timeout_s, retries=retries), seed=seed), endpoints(3))
    began_s = caller.now_s

    result = caller.ask(
        lambda host, attempt: Answer(BROKEN, seconds[attempt % len(seconds)]), keyed=True, timeout_ms=timeout_ms
    )

    bound_s = timeout_s if timeout_ms is None else min(timeout_s, timeout_ms / 1000)
    assert result.took_s <= bound_s + 1e-9
    for attempt in result.attempts:
        assert attempt.timeout_s is not None
        assert attempt.at_s < began_s + bound_s
        assert attempt.at_s + attempt.timeout_s <= began_s + bound_s + 1e-9


def test_the_timeout_of_one_attempt_leaves_the_rest_to_the_next() -> None:
    retries = Retries(
        attempts=5, per_try_timeout_s=0.4, retry_on=frozenset({"timeout"}), backoff=Backoff(constant=True)
    )
    caller = Caller(policies(None, Route(timeout_s=1.0, retries=retries)), endpoints(3))

    result = caller.ask(always(OK, seconds=9))

    # 0.4, 0.025 of back-off, 0.4, 0.025, and what is left.
    assert [attempt.timeout_s for attempt in result.attempts] == pytest.approx([0.4, 0.4, 0.15])
    assert result.took_s == pytest.approx(1.0)
    assert result.status == 504


# ---- 4


def attempts_per_request(budget: RetryBudget, *, requests: int, rate: float, latency_s: float) -> float:
    """Everything fails, and calls come at a rate, however long those before take."""
    retries = Retries(attempts=2, retry_on=frozenset({"5xx"}))
    live = policies(FunctionPolicy(retry_budget=budget, limits=Limits(10_000, 0)), Route(retries=retries))
    hosts = endpoints(3)
    events: list[tuple[float, int, Plan | None]] = [(number / rate, number, None) for number in range(requests)]
    numbers = count(requests)
    attempts = 0
    while events:
        now_s, _, plan = heappop(events)
        if plan is None:
            plan = live.plan(Request(FUNCTION), hosts, now_s)
        elif plan.is_trying:
            plan.result(now_s, BROKEN)
        match plan.next(now_s):
            case Wait(seconds):
                heappush(events, (now_s + seconds, next(numbers), plan))
            case Try():
                attempts += 1
                heappush(events, (now_s + latency_s, next(numbers), plan))
            case Finish() | GiveUp():
                plan.close(now_s)
    return attempts / requests


def test_a_retry_budget_bounds_the_attempts_when_everything_fails() -> None:
    requests, rate, latency_s, floor = 3000, 2000.0, 0.05, 3
    # The floor allows so many retries at any time, each of which takes as long as an attempt.
    floor_share = floor * (requests / rate) / latency_s / requests

    bounded = attempts_per_request(RetryBudget(20, floor), requests=requests, rate=rate, latency_s=latency_s)
    free = attempts_per_request(RetryBudget(100, 10**6), requests=requests, rate=rate, latency_s=latency_s)

    assert 1.1 < bounded <= 1.2 + floor_share
    assert free == 3


# ---- 5


def test_without_a_key_a_500_is_not_tried_again_and_a_connection_that_failed_is() -> None:
    caller = Caller(policies(), endpoints(3))

    assert len(caller.ask(always(BROKEN)).attempts) == 1
    assert len(caller.ask(always(NO_CONNECTION)).attempts) == 3
    assert len(caller.ask(always(BROKEN), keyed=True).attempts) == 3


# ---- 6 and 7


def detector(hosts: int, **settings: object) -> OutlierDetector:
    found = OutlierDetector(OutlierDetection(**settings), Random(1).random, 0.0)  # type: ignore[arg-type]
    found.watch([str(number) for number in range(hosts)])
    return found


def fail_until_ejected(watched: OutlierDetector, host: str, now_s: float) -> None:
    for _ in range(5):
        watched.record(host, BROKEN, now_s)


def ejected_for_s(watched: OutlierDetector, host: str, now_s: float) -> int:
    """How many whole seconds from now it stays away."""
    return next(seconds for seconds in count() if host not in watched.ejected(now_s + seconds))


def test_ejections_last_longer_each_time_up_to_a_maximum() -> None:
    watched, now_s, lasted = detector(2, max_ejection_percent=50), 0.0, []
    for _ in range(12):
        fail_until_ejected(watched, "0", now_s)
        lasted.append(ejected_for_s(watched, "0", now_s))
        now_s += lasted[-1]

    assert lasted == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]


def test_an_endpoint_that_stays_well_is_ejected_for_a_shorter_time_again() -> None:
    watched, now_s = detector(2, max_ejection_percent=50), 0.0
    for _ in range(3):
        fail_until_ejected(watched, "0", now_s)
        now_s += ejected_for_s(watched, "0", now_s)

    now_s += 20  # Two intervals.
    fail_until_ejected(watched, "0", now_s)

    assert ejected_for_s(watched, "0", now_s) == 60


@pytest.mark.parametrize(
    ("hosts", "percent", "always_one", "ejected"),
    [(9, 10, False, 0), (10, 10, False, 1), (9, 10, True, 1), (3, 34, False, 1), (2, 50, False, 1), (20, 10, True, 2)],
)
def test_no_more_endpoints_are_ejected_than_the_maximum_allows(
    hosts: int, percent: int, always_one: bool, ejected: int
) -> None:
    watched = detector(hosts, max_ejection_percent=percent, always_eject_one_host=always_one)

    for number in range(hosts):
        fail_until_ejected(watched, str(number), 1.0)

    assert len(watched.ejected(1.0)) == ejected


# ---- 8


@pytest.mark.parametrize(("threshold", "status"), [(50, 200), (0, 503)])
def test_in_a_panic_ejected_endpoints_are_used_and_without_one_the_answer_is_503(threshold: int, status: int) -> None:
    detection = OutlierDetection(max_ejection_percent=100)
    live = policies(FunctionPolicy(outlier_detection=detection, panic_threshold=threshold))
    caller = Caller(live, endpoints(3))
    for _ in range(15):
        caller.ask(always(BROKEN, seconds=0))
    assert live.statistics(caller.now_s)[FUNCTION].ejections_active >= 2

    while live.statistics(caller.now_s)[FUNCTION].ejections_active < 3 and threshold:
        caller.ask(always(BROKEN, seconds=0))

    assert caller.ask(always(OK)).status == status


# ---- 9


def test_a_breaker_opens_after_the_sixth_failure_in_a_row_ends_the_retries_and_lets_one_probe_through() -> None:
    breaker = Breaker(scope=Scope.FUNCTION, timeout_s=10)
    retries = Retries(attempts=9, retry_on=frozenset({"5xx"}), backoff=Backoff(0.001, constant=True))
    live = policies(FunctionPolicy(breaker=breaker), Route(retries=retries))
    caller = Caller(live, endpoints(3))

    result = caller.ask(always(BROKEN))
    assert len(result.attempts) == 6
    assert result.end == Finish(BROKEN)
    refused = caller.ask(always(OK))
    assert isinstance(refused.end, GiveUp)
    assert (refused.attempts, refused.end.status, refused.end.code) == ((), 503, "PEN0843")

    caller.now_s += 10
    first, second = (live.plan(Request(FUNCTION), caller.hosts, caller.now_s) for _ in range(2))
    assert isinstance(first.next(caller.now_s), Try)
    assert isinstance(second.next(caller.now_s), GiveUp)
    first.result(caller.now_s, OK)

    assert caller.ask(always(OK)).status == 200


# ---- 10


def test_the_less_loaded_of_two_draws_is_chosen() -> None:
    hosts = endpoints(10)
    settings = LoadBalancing(Balance.LEAST_REQUEST)
    for seed in range(200):
        draws = Random(seed)
        loads = [draws.randrange(100) for _ in hosts]
        balancer = Balancer(settings, Random(seed).random)
        for host, load in zip(hosts, loads, strict=True):
            balancer.load(host.name).active = load

        chosen = balancer.choose(hosts, hosts, "", 0.0)

        # The same draws once more: the first of ten, then one of the other nine.
        again, order = Random(seed), list(range(10))
        for place in range(2):
            other = place + int(again.random() * (10 - place))
            order[place], order[other] = order[other], order[place]
        assert balancer.load(chosen.name).active == min(loads[order[0]], loads[order[1]])


def test_when_an_endpoint_leaves_the_ring_only_its_own_ids_move() -> None:
    names = [f"host-{number}" for number in range(10)]
    ids = [str(number) for number in range(10_000)]
    before, after = Ring(names, 1024), Ring(names[1:], 1024)

    moved = [(next(before.order(id)), next(after.order(id))) for id in ids]
    lost = [new for old, new in moved if old != new]

    # The share of one endpoint spreads by its number of points, and by which ids there are.
    share, points = 1 / len(names), 1024 / 4
    epsilon = Z * sqrt(share**2 / points + share * (1 - share) / len(ids))
    assert all(old == names[0] for old, new in moved if old != new)
    assert len(lost) / len(ids) <= share + epsilon
    assert set(lost) == set(names[1:])


# ---- 11


def test_a_split_keeps_its_weights_and_each_id_its_subset() -> None:
    split = (Weighted("v1", 90), Weighted("v2", 10))
    ids = [str(number) for number in range(10_000)]

    chosen = {id: choose_subset(split, FUNCTION, id, Random(1).random) for id in ids}

    low, high = binomial_bounds(len(ids), 0.1)
    assert low < Counter(chosen.values())["v2"] < high
    assert {id: choose_subset(split, FUNCTION, id, Random(2).random) for id in ids} == chosen


# ---- 12


def test_a_mirror_changes_neither_the_result_nor_the_time_of_a_request() -> None:
    hosts = [*endpoints(3, "v1"), *endpoints(1, "v2")]
    split = (Weighted("v1", 1),)
    plain = Caller(policies(None, Route(split=split), draw=lambda: 0.5), hosts)
    mirrored = Caller(policies(None, Route(split=split, mirror=Mirror("v2")), draw=lambda: 0.5), hosts)

    for number in range(100):
        answers = Random(number)
        answer = Answer(answers.choice([OK, BROKEN, NO_CONNECTION]), answers.random())
        without = plain.ask(lambda host, attempt, answer=answer: answer)  # type: ignore[misc]
        copied = mirrored.ask(lambda host, attempt, answer=answer: answer)  # type: ignore[misc]

        assert copied.end == without.end
        assert copied.took_s == pytest.approx(without.took_s, rel=0.01)
        assert [attempt.mirror for attempt in copied.attempts] == ["v2host-0", "", ""][: len(copied.attempts)]


# ---- 13


@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=100),
    max_tokens=st.integers(1, 10),
    tokens_per_fill=st.integers(1, 5),
    fill_interval_s=st.floats(0.1, 1.5),
)
def test_a_bucket_never_gives_more_than_it_held_and_was_filled_with(
    gaps: list[float], max_tokens: int, tokens_per_fill: int, fill_interval_s: float
) -> None:
    bucket = Bucket(TokenBucket(max_tokens, tokens_per_fill, fill_interval_s), 0.0)
    now_s, taken = 0.0, 0
    for gap in gaps:
        now_s += gap
        wait_s = bucket.take(now_s)
        taken += not wait_s

        assert taken <= max_tokens + tokens_per_fill * now_s / fill_interval_s + 1e-6
        assert 0 <= wait_s <= fill_interval_s + 1e-6


# ---- 14


def test_delays_and_aborts_are_drawn_independently() -> None:
    n, draw = 20_000, Random(14).random
    fault = Fault(Delay(10, 0.2), Abort(10, 503))

    seen = Counter(
        (bool(drawn.delay_s), bool(drawn.abort_status)) for drawn in (draw_fault(fault, draw) for _ in range(n))
    )

    low, high = binomial_bounds(n, 0.1)
    delayed, aborted = seen[True, True] + seen[True, False], seen[True, True] + seen[False, True]
    assert low < delayed < high
    assert low < aborted < high
    # Chi squared of the four cells with one degree of freedom: the square of a normal deviate.
    expected = {
        (delay, abort): (delayed if delay else n - delayed) * (aborted if abort else n - aborted) / n
        for delay in (True, False)
        for abort in (True, False)
    }
    assert sum((seen[cell] - wanted) ** 2 / wanted for cell, wanted in expected.items()) < Z**2
