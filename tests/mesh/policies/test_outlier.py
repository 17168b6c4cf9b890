"""Which outcomes eject an endpoint. How long, and how many, is among the conformance tests."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.outlier import OutlierDetector
from penstock.mesh.policies.settings import OutlierDetection

HOSTS = [str(number) for number in range(10)]
OK = Outcome(200)
BROKEN = Outcome(500)
GATEWAY = Outcome(503)
NO_CONNECTION = Outcome(failure=Failure.CONNECT)


def detector(**settings: object) -> OutlierDetector:
    found = OutlierDetector(
        OutlierDetection(max_ejection_percent=100, **settings),  # type: ignore[arg-type]
        lambda: 0.5,
        0.0,
    )
    found.watch(HOSTS)
    return found


def record(watched: OutlierDetector, host: str, *outcomes: Outcome, now_s: float = 1.0) -> None:
    for outcome in outcomes:
        watched.record(host, outcome, now_s)


@pytest.mark.parametrize(
    ("settings", "outcomes", "ejected"),
    [
        ({}, [BROKEN] * 5, True),
        ({}, [BROKEN] * 4 + [OK] + [BROKEN] * 4, False),
        ({}, [BROKEN, NO_CONNECTION, GATEWAY, BROKEN, NO_CONNECTION], True),
        ({}, [Outcome(422)] * 9, False),
        ({"consecutive_5xx": 0}, [BROKEN] * 9, False),
        ({"consecutive_5xx": 0, "consecutive_gateway_failure": 3}, [GATEWAY] * 3, True),
        ({"consecutive_5xx": 0, "consecutive_gateway_failure": 3}, [GATEWAY, GATEWAY, BROKEN, GATEWAY], False),
        ({"split_external_local_origin_errors": True}, [NO_CONNECTION, BROKEN] * 4, False),
        ({"split_external_local_origin_errors": True}, [NO_CONNECTION] * 5, True),
        (
            {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 0},
            [NO_CONNECTION] * 9,
            False,
        ),
    ],
)
def test_errors_in_a_row_eject_an_endpoint(settings: dict[str, object], outcomes: list[Outcome], ejected: bool) -> None:
    watched = detector(**settings)

    record(watched, "0", *outcomes)

    assert ("0" in watched.ejected(1.0)) is ejected


def test_an_endpoint_far_below_the_success_of_the_others_is_ejected_at_the_end_of_the_interval() -> None:
    watched = detector(consecutive_5xx=0)
    for host in HOSTS:
        failures = 40 if host == "3" else 2
        record(watched, host, *[OK] * (100 - failures), *[BROKEN] * failures)
    assert watched.ejected(9.9) == []

    assert watched.ejected(10.0) == ["3"]


@pytest.mark.parametrize(
    ("settings", "ejected"),
    [
        ({"success_rate_request_volume": 100, "success_rate_minimum_hosts": 10}, ["3"]),
        ({"success_rate_request_volume": 101}, []),
        ({"success_rate_minimum_hosts": 11}, []),
        ({"success_rate_stdev_factor": 4000}, []),
        ({"enforcing_success_rate": 0}, []),
        ({"enforcing_success_rate": 51}, ["3"]),
        ({"enforcing_success_rate": 50}, []),
    ],
)
def test_shares_are_judged_only_on_enough_and_as_far_as_they_are_enforced(
    settings: dict[str, object], ejected: list[str]
) -> None:
    watched = detector(consecutive_5xx=0, **settings)
    for host in HOSTS:
        failures = 40 if host == "3" else 2
        record(watched, host, *[OK] * (100 - failures), *[BROKEN] * failures)

    assert watched.ejected(10.0) == ejected


@pytest.mark.parametrize("failures", [0, 97, 41, 100])
@pytest.mark.parametrize("factor", [1900, 0])
def test_endpoints_that_are_equally_good_are_not_ejected(failures: int, factor: int) -> None:
    """Whatever their mean is rounded to."""
    watched = detector(consecutive_5xx=0, success_rate_stdev_factor=factor)
    for host in HOSTS:
        record(watched, host, *[OK] * (100 - failures), *[BROKEN] * failures)

    assert watched.ejected(10.0) == []


def test_an_endpoint_with_too_many_failures_is_ejected_when_that_is_enforced() -> None:
    settings: dict[str, object] = {"enforcing_failure_percentage": 100, "enforcing_success_rate": 0}
    watched = detector(consecutive_5xx=0, **settings)
    for host in HOSTS:
        failures = 43 if host in ("3", "4") else 42
        record(watched, host, *[OK] * (50 - failures), *[BROKEN] * failures)

    # The threshold is 85 %: 43 of 50 are 86, and 42 are 84.
    assert watched.ejected(10.0) == ["3", "4"]


def test_what_was_counted_in_one_interval_counts_no_more_in_the_next() -> None:
    watched = detector(consecutive_5xx=0, enforcing_failure_percentage=100, enforcing_success_rate=0)
    for host in HOSTS:
        record(watched, host, *[BROKEN] * 49)
    assert watched.ejected(10.0) == []
    for host in HOSTS:
        record(watched, host, BROKEN, now_s=11.0)

    assert watched.ejected(20.0) == []


def test_chance_may_make_an_ejection_longer() -> None:
    watched = detector(max_ejection_time_jitter_s=10.0)

    record(watched, "0", *[BROKEN] * 5)

    assert "0" in watched.ejected(35.9)
    assert "0" not in watched.ejected(36.0)


def test_an_endpoint_that_was_away_for_long_has_had_no_healthy_interval() -> None:
    """Nothing is asked for while it is ejected: the intervals of that time are no proof that it is well."""
    watched = detector()
    record(watched, "0", *[BROKEN] * 5, now_s=1.0)
    record(watched, "0", *[BROKEN] * 5, now_s=31.0)

    assert "0" in watched.ejected(90.9)
    assert "0" not in watched.ejected(91.0)


def test_an_endpoint_that_is_gone_is_forgotten_and_its_late_answers_with_it() -> None:
    watched = detector()
    record(watched, "0", *[BROKEN] * 5)

    watched.watch(HOSTS[1:])
    record(watched, "0", BROKEN)
    watched.watch(HOSTS)

    assert watched.ejected(1.0) == []
