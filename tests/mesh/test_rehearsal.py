"""Trying out a policy file without hosts."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.rehearsal import Rehearsal

FUNCTION = "shop/payment"


def test_answers_are_those_to_attempts_the_last_one_over_and_over() -> None:
    mesh = Rehearsal("routes: [{retries: {attempts: 3}}]")

    played = mesh.call(FUNCTION, "7", ["connect-failure", 503], keyed=True)

    assert [attempt.outcome.status for attempt in played.attempts] == [0, 503, 503, 503]
    assert played.status == 503
    assert mesh.now_s == played.took_s


def test_answers_may_be_those_of_each_host_and_take_time() -> None:
    mesh = Rehearsal("routes: [{retries: {per_try_timeout: 1s}}]", stateful=[FUNCTION])
    owner = mesh.call(FUNCTION, "7").attempts[0].host

    played = mesh.call(FUNCTION, "7", {owner: (200, 5.0)}, keyed=True)

    assert played.status == 200
    assert f"{owner} timeout" in str(played)


def test_the_same_rehearsal_gives_the_same_results() -> None:
    def play() -> list[str]:
        mesh = Rehearsal(PolicySet(), seed=5)
        return [str(mesh.call(FUNCTION, str(number), ["reset", 200], keyed=True)) for number in range(20)]

    assert play() == play()


def test_time_passes_when_nothing_happens() -> None:
    mesh = Rehearsal("functions: {shop/payment: {breaker: {trip: consecutiveFailures > 0, timeout: 10s}}}", hosts=1)
    assert mesh.call(FUNCTION, "7", [500]).status == 500
    mesh.pass_time(9.9)
    assert mesh.call(FUNCTION, "7").status == 503

    mesh.pass_time(0.1)

    assert mesh.call(FUNCTION, "7").status == 200
    assert mesh.policies.statistics(mesh.now_s)[FUNCTION].calls_under_way == 0


def test_what_is_told_of_a_call_is_its_end_and_what_was_tried() -> None:
    mesh = Rehearsal("routes: [{fault: {abort: {percentage: 100}, side: client}}]", hosts={"a": "v1"})

    assert str(mesh.call(FUNCTION)) == "503 PEN0845 after 0 ms: nothing was tried"
    assert str(Rehearsal(PolicySet(), hosts=1).call(FUNCTION)) == "200 after 10 ms: host-0 200"


def test_what_is_told_of_a_request_at_the_door() -> None:
    mesh = Rehearsal(
        "functions: {shop/payment: {rate_limit: {token_bucket: {max_tokens: 1, fill_interval: 60s}}}}\n"
        "access: [{destination: shop/payment, sources: [shop/order]}]\n"
        "routes: [{match: {headers: {x-slow: {}}}, fault: {delay: {percentage: 100, fixed_delay: 200ms}}}]\n"
    )

    told = [
        str(mesh.arrive(FUNCTION, caller="shop/order", headers={"x-slow": ""})),
        str(mesh.arrive(FUNCTION, caller="shop/order")),
        str(mesh.arrive(FUNCTION, caller="shop/cart")),
    ]

    assert told == ["200, after 200 ms", "429 PEN0847, retry after 60 s", "403 PEN0846"]


def test_a_host_can_not_fail_in_a_way_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Rehearsal(PolicySet()).call(FUNCTION, "", ["no-connection"])

    assert caught.value.code == "PEN0851"
    assert "There are connect-failure," in caught.value.message
