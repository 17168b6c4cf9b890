"""What a host asks before it begins with a request."""

from __future__ import annotations

from random import Random

import pytest

from penstock.mesh.policies.access import Peer
from penstock.mesh.policies.guard import Admission, Refusal
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import (
    Abort,
    AccessRule,
    AdaptiveConcurrency,
    AdmissionControl,
    Delay,
    Fault,
    FunctionPolicy,
    Match,
    PolicySet,
    RateLimit,
    Route,
    Side,
    TextMatch,
    TokenBucket,
)
from tests.mesh.policies.script import FUNCTION

ONLY_ORDER = AccessRule(TextMatch(exact=FUNCTION), (TextMatch(exact="shop/order"),))
ONE_EACH_MINUTE = RateLimit(TokenBucket(1, fill_interval_s=60))


def guarded(policy: FunctionPolicy | None = None, *routes: Route, access: tuple[AccessRule, ...] = ()) -> Policies:
    return Policies(PolicySet({FUNCTION: policy} if policy else {}, routes, access), draw=Random(1).random)


def admit(live: Policies, now_s: float = 0.0, caller: str = "shop/order") -> Admission | Refusal:
    return live.admit(FUNCTION, "charge", Peer(caller), now_s)


def code_of(found: Admission | Refusal) -> tuple[int, str]:
    assert isinstance(found, Refusal)
    return found.status, found.code


def test_without_policies_everything_is_admitted() -> None:
    found = admit(guarded())

    assert isinstance(found, Admission)
    assert (found.delay_s, found.abort) == (0.0, None)
    found.finish(1.0, succeeded=False)


def test_a_caller_that_may_not_is_told_so_before_anything_counts_its_request() -> None:
    live = guarded(FunctionPolicy(rate_limit=ONE_EACH_MINUTE), access=(ONLY_ORDER,))

    assert code_of(admit(live, caller="shop/cart")) == (403, "PEN0846")
    assert code_of(admit(live, caller="")) == (403, "PEN0846")

    assert isinstance(admit(live), Admission)
    assert live.refused() == {FUNCTION: {403: 2}}


def test_a_rate_limit_says_when_to_come_back() -> None:
    live = guarded(FunctionPolicy(rate_limit=ONE_EACH_MINUTE))
    admit(live)

    found = admit(live, now_s=45.0)

    assert code_of(found) == (429, "PEN0847")
    assert isinstance(found, Refusal)
    assert found.retry_after_s == 15


def test_a_host_whose_requests_fail_sheds_some() -> None:
    live = guarded(FunctionPolicy(admission_control=AdmissionControl()))
    statuses = set()
    for _ in range(200):
        found = admit(live)
        if isinstance(found, Admission):
            found.finish(0.0, succeeded=False)
        else:
            statuses.add(code_of(found))

    assert statuses == {(503, "PEN0848")}


def test_a_host_with_as_many_under_way_as_it_can_do_sheds_the_others() -> None:
    live = guarded(FunctionPolicy(adaptive_concurrency=AdaptiveConcurrency(min_concurrency=1)))
    first = admit(live)
    assert isinstance(first, Admission)
    assert code_of(admit(live)) == (503, "PEN0848")

    first.finish(1.0, succeeded=True)

    assert isinstance(admit(live, now_s=1.0), Admission)


def test_a_host_that_answers_as_fast_as_ever_lets_more_in() -> None:
    settings = AdaptiveConcurrency(min_concurrency=1, min_rtt_request_count=1)
    live = guarded(FunctionPolicy(adaptive_concurrency=settings))
    for now_s in (0.0, 10.0):
        first = admit(live, now_s)
        assert isinstance(first, Admission)
        first.finish(now_s + 0.01, succeeded=True)

    assert [isinstance(admit(live, 10.2), Admission) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("side", Side)
def test_a_fault_of_the_side_of_the_server_is_injected_here(side: Side) -> None:
    match = Match(TextMatch(exact=FUNCTION), {"x-chaos": TextMatch()})
    live = guarded(None, Route((match,), fault=Fault(Delay(100, 0.2), Abort(100, 418), side)))

    plain = admit(live)
    chosen = live.admit(FUNCTION, "charge", Peer(), 0.0, {"x-chaos": "1"})

    assert isinstance(plain, Admission)
    assert plain.abort is None
    assert isinstance(chosen, Admission)
    if side is Side.SERVER:
        assert chosen.delay_s == 0.2
        assert chosen.abort is not None
        assert (chosen.abort.status, chosen.abort.code) == (418, "PEN0845")
    else:
        assert (chosen.delay_s, chosen.abort) == (0.0, None)
