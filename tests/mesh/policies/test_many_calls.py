"""Many calls at once, in any order, with any answers: what is taken is given back, and no bound is exceeded."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.mesh.policies.outcomes import Failure, Outcome
from penstock.mesh.policies.plan import Finish, GiveUp, Plan, Request, Try, Wait
from penstock.mesh.policies.settings import (
    Breaker,
    FunctionPolicy,
    Limits,
    OutlierDetection,
    PolicySet,
    Retries,
    RetryBudget,
    Route,
    Scope,
)
from penstock.mesh.policies.trip import parse_trip
from tests.mesh.policies.script import FUNCTION, endpoints, policies

OUTCOMES = [Outcome(200), Outcome(422), Outcome(500), Outcome(503, Failure.REFUSED), Outcome(503, retry_after_s=1)]
OUTCOMES += [Outcome(failure=failure) for failure in Failure]

POLICIES = st.builds(
    FunctionPolicy,
    limits=st.builds(Limits, st.integers(1, 3), st.integers(0, 2)),
    breaker=st.one_of(
        st.none(),
        st.builds(
            Breaker,
            st.just(parse_trip("consecutiveFailures > 1")),
            st.floats(0.01, 2),
            st.integers(1, 2),
            scope=st.sampled_from(Scope),
            cache_size=st.integers(1, 3),
        ),
    ),
    outlier_detection=st.one_of(
        st.none(),
        st.builds(
            OutlierDetection,
            consecutive_5xx=st.integers(0, 2),
            base_ejection_time_s=st.floats(0.1, 2),
            max_ejection_percent=st.integers(0, 100),
        ),
    ),
    panic_threshold=st.sampled_from([0.0, 50.0]),
    retry_budget=st.builds(RetryBudget, st.just(20.0), st.integers(0, 2)),
)
ROUTES = st.builds(
    Route,
    timeout_s=st.sampled_from([0.0, 0.5, 2.0]),
    retries=st.builds(Retries, st.integers(-1, 3), st.sampled_from([0.0, 0.2])),
)


class World:
    """Calls that come, go on and go away as dice say."""

    def __init__(self, policy: FunctionPolicy, route: Route, seed: int) -> None:
        self.dice = Random(seed)
        self.policy = policy
        self.live = policies(policy, route, seed=seed)
        self.hosts = endpoints(3)
        self.now_s = 0.0
        self.calls: list[Plan] = []

    def step(self) -> None:
        self.now_s += self.dice.choice([0.0, 0.01, 0.3])
        if not self.calls or self.dice.random() < 0.3:
            request = Request(FUNCTION, self.dice.choice("abc"), keyed=self.dice.random() < 0.5)
            hosts = self.dice.sample(self.hosts, self.dice.randint(0, 3)) if self.dice.random() < 0.1 else self.hosts
            self.calls.append(self.live.plan(request, hosts, self.now_s))
            return
        plan = self.dice.choice(self.calls)
        if self.dice.random() < 0.05:
            self.end(plan)
        elif plan.is_trying:
            plan.result(self.now_s, self.dice.choice(OUTCOMES))
        else:
            self.go_on(plan)

    def go_on(self, plan: Plan) -> None:
        match plan.next(self.now_s):
            case Try(_, timeout_s):
                assert timeout_s is None or timeout_s > 0
                assert plan.deadline_s is None or self.now_s + (timeout_s or 0) <= plan.deadline_s + 1e-9
            case Wait(seconds):
                assert seconds > 0
            case Finish() | GiveUp() as end:
                assert plan.next(self.now_s + 1) == end
                self.end(plan)

    def end(self, plan: Plan) -> None:
        plan.close(self.now_s)
        self.calls.remove(plan)

    def check(self) -> None:
        if not self.calls:
            return
        found = self.live.statistics(self.now_s)[FUNCTION]
        # Somebody who waited may have a slot and not know it yet.
        assert sum(plan.is_trying for plan in self.calls) <= found.active <= self.policy.limits.max_requests
        assert found.pending <= self.policy.limits.max_pending_requests
        assert not found.pending or found.active == self.policy.limits.max_requests


@settings(max_examples=60)
@given(policy=POLICIES, route=ROUTES, seed=st.integers(0, 10**6))
def test_whatever_happens_what_is_taken_is_given_back(policy: FunctionPolicy, route: Route, seed: int) -> None:
    world = World(policy, route, seed)
    for _ in range(150):
        world.step()
        world.check()
    for plan in list(world.calls):
        world.end(plan)

    found = world.live.statistics(world.now_s)[FUNCTION]
    assert (found.active, found.pending, found.calls_under_way, found.retries_under_way) == (0, 0, 0, 0)


@settings(max_examples=20)
@given(policy=POLICIES, route=ROUTES, seed=st.integers(0, 10**6))
def test_after_any_trouble_a_mesh_that_is_well_answers_again(policy: FunctionPolicy, route: Route, seed: int) -> None:
    """Breakers close and ejections end by themselves, however they came about."""
    world = World(policy, route, seed)
    for _ in range(150):
        world.step()
    for plan in list(world.calls):
        world.end(plan)
    world.now_s += 1000

    for _ in range(3):
        plan = world.live.plan(Request(FUNCTION, "a"), world.hosts, world.now_s)
        assert isinstance(plan.next(world.now_s), Try)
        plan.result(world.now_s, Outcome(200))
        assert plan.next(world.now_s) == Finish(Outcome(200))


@settings(max_examples=20)
@given(policies_in_turn=st.lists(POLICIES, min_size=2, max_size=4), route=ROUTES, seed=st.integers(0, 10**6))
def test_policies_may_change_at_any_moment(policies_in_turn: list[FunctionPolicy], route: Route, seed: int) -> None:
    world = World(policies_in_turn[0], route, seed)
    for policy in policies_in_turn:
        world.live.apply(PolicySet({FUNCTION: policy}, (route,)), world.now_s)
        for _ in range(50):
            world.step()
    for plan in list(world.calls):
        world.end(plan)

    found = world.live.statistics(world.now_s)[FUNCTION]
    assert (found.active, found.pending, found.calls_under_way, found.retries_under_way) == (0, 0, 0, 0)
