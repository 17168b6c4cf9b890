"""When a host refuses requests to stay well."""

from __future__ import annotations

from random import Random

import pytest

from penstock.mesh.policies.settings import AdaptiveConcurrency, AdmissionControl
from penstock.mesh.policies.shedding import AdmissionController, ConcurrencyController


def controller(requests: int, successes: int, **settings: float) -> AdmissionController:
    found = AdmissionController(AdmissionControl(**settings), Random(1).random)  # type: ignore[arg-type]
    for number in range(requests):
        found.record(0.5, succeeded=number < successes)
    return found


@pytest.mark.parametrize(
    ("requests", "successes", "settings", "probability"),
    [
        (0, 0, {}, 0.0),
        (100, 95, {}, 0.0),
        (99, 38, {}, (99 - 38 / 0.95) / 100),
        (99, 38, {"aggression": 2.0}, ((99 - 38 / 0.95) / 100) ** 0.5),
        (99, 0, {}, 0.8),
        (99, 0, {"max_rejection_probability": 30.0}, 0.3),
        (99, 0, {"rps_threshold": 4}, 0.0),
        (120, 0, {"rps_threshold": 4}, 0.8),
    ],
)
def test_the_more_fail_the_more_are_refused(
    requests: int, successes: int, settings: dict[str, float], probability: float
) -> None:
    assert controller(requests, successes, **settings).rejection_probability(1.0) == pytest.approx(probability)


def test_what_is_older_than_the_window_counts_no_more() -> None:
    failing = controller(100, 0)

    assert failing.rejection_probability(30.0) == 0.8
    assert failing.rejection_probability(31.0) == 0.0


def test_refusals_come_as_often_as_they_should() -> None:
    failing = controller(1000, 0)

    admitted = sum(failing.admits(1.0) for _ in range(1000))

    # Four of five are refused; this many standard deviations happen once in a thousand runs.
    assert abs(admitted - 200) < 3.29 * (1000 * 0.2 * 0.8) ** 0.5


# ---- adaptive concurrency


def serve(controller: ConcurrencyController, now_s: float, *, for_s: float, capacity: int) -> float:
    """A host that answers in 10 ms as long as no more than `capacity` requests are under way, and else slower in
    proportion. As many come as are let in. Returns when it is."""
    until_s = now_s + for_s
    while now_s < until_s:
        entered = 0
        while controller.enter(now_s):
            entered += 1
        latency_s = 0.010 * max(1.0, entered / capacity)
        now_s += latency_s
        for _ in range(entered):
            controller.leave(latency_s, now_s)
    return now_s


def test_the_limit_grows_to_what_the_host_can_do_and_not_far_beyond() -> None:
    found = ConcurrencyController(AdaptiveConcurrency(), 0.0)

    serve(found, 0.0, for_s=30, capacity=40)

    # The buffer of 25 % and the square root are the queue it leaves.
    assert 40 <= found.limit <= 100


def test_a_host_that_becomes_slower_is_given_less() -> None:
    found = ConcurrencyController(AdaptiveConcurrency(), 0.0)
    now_s = serve(found, 0.0, for_s=20, capacity=100)
    before = found.limit

    serve(found, now_s, for_s=5, capacity=10)

    assert found.limit < before / 3


def test_while_the_latency_without_a_queue_is_measured_only_a_few_are_let_in() -> None:
    settings = AdaptiveConcurrency(min_concurrency=3, min_rtt_request_count=50)
    found = ConcurrencyController(settings, 0.0)
    serve(found, 0.0, for_s=59, capacity=100)
    before = found.limit
    assert before > 20

    for _ in range(settings.min_rtt_request_count):
        assert found.enter(61.0)
        assert found.limit == 3
        found.leave(0.01, 61.0)

    assert found.limit == before


def test_the_limit_stays_within_its_bounds() -> None:
    settings = AdaptiveConcurrency(min_concurrency=2, max_concurrency_limit=8)
    found = ConcurrencyController(settings, 0.0)

    serve(found, 0.0, for_s=20, capacity=1000)
    assert found.limit == 8
