"""The phases of one breaker, and the keeping of many."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.breaker import Breakers, CircuitBreaker, Phase
from penstock.mesh.policies.settings import Breaker, Scope
from penstock.mesh.policies.trip import parse_trip

SETTINGS = Breaker(parse_trip("consecutiveFailures > 2"), timeout_s=10, max_requests=2)


def use(breaker: CircuitBreaker, now_s: float, *, succeeded: bool | None) -> None:
    generation = breaker.enter(now_s)
    assert generation is not None
    breaker.leave(generation, now_s, succeeded=succeeded)


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker(SETTINGS, 0.0)
    for _ in range(3):
        use(breaker, 0.0, succeeded=False)
    return breaker


def test_it_is_closed_until_the_condition_holds() -> None:
    breaker = CircuitBreaker(SETTINGS, 0.0)
    for succeeded in (False, False, True, False, False):
        use(breaker, 0.0, succeeded=succeeded)
    assert breaker.phase(0.0) is Phase.CLOSED

    use(breaker, 0.0, succeeded=False)

    assert breaker.phase(0.0) is Phase.OPEN
    assert breaker.enter(9.9) is None


def test_after_its_timeout_it_lets_a_few_through_and_closes_when_they_succeed() -> None:
    breaker = opened()
    probes = [breaker.enter(10.0) for _ in range(3)]
    assert probes[2] is None

    for generation in probes[:2]:
        assert generation is not None
        breaker.leave(generation, 10.0, succeeded=True)

    assert breaker.phase(10.0) is Phase.CLOSED


def test_one_failed_probe_opens_it_again_for_the_whole_time() -> None:
    breaker = opened()
    use(breaker, 10.0, succeeded=True)

    use(breaker, 12.0, succeeded=False)

    assert breaker.phase(21.9) is Phase.OPEN
    assert breaker.phase(22.0) is Phase.HALF_OPEN


def test_a_probe_that_was_given_up_makes_room_for_another() -> None:
    breaker = opened()
    for _ in range(5):
        use(breaker, 10.0, succeeded=None)

    assert breaker.phase(10.0) is Phase.HALF_OPEN
    assert breaker.lets_through(10.0)


@pytest.mark.parametrize("succeeded", [True, False])
def test_what_was_let_through_before_counts_for_nothing_after(succeeded: bool) -> None:
    breaker = CircuitBreaker(SETTINGS, 0.0)
    late = breaker.enter(0.0)
    assert late is not None
    for _ in range(3):
        use(breaker, 0.0, succeeded=False)
    assert breaker.phase(10.0) is Phase.HALF_OPEN

    breaker.leave(late, 10.0, succeeded=succeeded)

    assert breaker.phase(10.0) is Phase.HALF_OPEN


def test_counts_start_again_with_each_interval() -> None:
    breaker = CircuitBreaker(Breaker(parse_trip("totalFailures > 2"), interval_s=30), 0.0)
    for now_s in (0.0, 1.0, 30.0, 31.0):
        use(breaker, now_s, succeeded=False)
    assert breaker.phase(31.0) is Phase.CLOSED

    use(breaker, 32.0, succeeded=False)

    assert breaker.phase(32.0) is Phase.OPEN


def test_a_condition_may_be_about_how_many_requests_there_were() -> None:
    breaker = CircuitBreaker(Breaker(parse_trip("requests >= 4 && totalFailures * 2 >= requests")), 0.0)
    for succeeded in (False, True, True):
        use(breaker, 0.0, succeeded=succeeded)
    assert breaker.phase(0.0) is Phase.CLOSED

    use(breaker, 0.0, succeeded=False)

    assert breaker.phase(0.0) is Phase.OPEN


@pytest.mark.parametrize(
    ("scope", "let_through"),
    [
        (Scope.ENDPOINT, {("b", "1"), ("b", "2")}),
        (Scope.FUNCTION, set()),
        (Scope.ID, {("a", "2"), ("b", "2")}),
        (Scope.BOTH, set()),
    ],
)
def test_a_failure_cuts_off_what_has_a_breaker_of_its_own(scope: Scope, let_through: set[tuple[str, str]]) -> None:
    breakers = Breakers(Breaker(parse_trip("consecutiveFailures > 0"), scope=scope))

    breakers.pass_through("a", "1", 0.0).end(0.0, succeeded=False)

    found = {(endpoint, id) for endpoint in "ab" for id in "12" if breakers.let_through(endpoint, id, 0.0)}
    assert found == let_through


def test_an_id_has_not_the_breaker_of_an_endpoint_of_its_name() -> None:
    breakers = Breakers(Breaker(parse_trip("consecutiveFailures > 2"), scope=Scope.BOTH))
    for id in ("", "f", ""):
        breakers.pass_through("a", id, 0.0).end(0.0, succeeded=False)

    assert breakers.open_count(0.0) == 1


def test_the_least_used_breaker_is_forgotten() -> None:
    breakers = Breakers(Breaker(parse_trip("consecutiveFailures > 0"), cache_size=2))
    for endpoint in ("a", "b"):
        breakers.pass_through(endpoint, "1", 0.0).end(0.0, succeeded=False)
    assert breakers.open_count(0.0) == 2

    breakers.pass_through("c", "1", 0.0).end(0.0, succeeded=True)

    assert breakers.let_through("a", "1", 0.0)
    assert not breakers.let_through("b", "1", 0.0)
