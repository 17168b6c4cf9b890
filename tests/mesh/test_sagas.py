"""Sagas without a journal, under every fault and random pairs of faults: all is done, or nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from penstock import Completed
from penstock.functions import participant
from penstock.functions.fence import Move, Ruling
from penstock.mesh import awaits, invocation
from tests.mesh.saga_world import (
    DID,
    SCENARIOS,
    Clock,
    Did,
    Fault,
    Violation,
    World,
    check,
    world_of_two_faults,
    worlds_of_one_fault,
)

PAIRS = 400
"""Of each saga."""


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (awaits, invocation):
        monkeypatch.setattr(module, "time", Clock())


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
@pytest.mark.parametrize("saga", SCENARIOS)
def test_any_single_fault(saga: str, keyed: bool) -> None:
    ends = Counter[str]()
    for world in worlds_of_one_fault(saga, keyed=keyed):
        outcome = world.run()
        check(world, outcome)
        ends[type(outcome).__name__] += 1

    assert ends["Completed"] > 10
    assert ends["Compensated"] > 10


@pytest.mark.parametrize("saga", SCENARIOS)
def test_random_pairs_of_faults(saga: str) -> None:
    for seed in range(PAIRS):
        world = world_of_two_faults(saga, seed)
        try:
            check(world, world.run())
        except Violation as violation:
            raise AssertionError(f"seed {seed}: {world}") from violation


def test_an_undisturbed_saga_does_each_step_once() -> None:
    world = World("sagas/line", {})

    assert world.run() == Completed(["stock tea", "seat tea", "bank tea", "post tea"])
    assert [Did("try", step) for step in ("stock", "seat", "bank", "post")] == DID


# The negative controls: what is held above is held by the fence.


def test_without_the_fence_a_compensation_that_overtakes_its_step_leaves_an_orphan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = {4: Fault.LATE}  # The command for the seat: it comes when the saga has turned back.
    world = World("sagas/line", late)
    assert world.operations == []
    outcome = world.run()
    assert world.operations[3] == "sagas/seat"
    check(world, outcome)

    monkeypatch.setattr(participant, "rule", lambda asked, phase: Move(Ruling.RUN, phase))
    world = World("sagas/line", late)
    outcome = world.run()
    with pytest.raises(Violation, match="seat is cancelled, and was tried 1 times and cancelled 0 times"):
        check(world, outcome)


def test_without_fence_and_keys_a_lost_reply_does_a_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {9: Fault.REPLY_LOST}  # Of the step behind the pivot, which is asked for again.
    for keyed in (True, False):
        world = World("sagas/line", lost, keyed=keyed)
        check(world, world.run())
        assert world.operations[8] == "sagas/post"

    monkeypatch.setattr(participant, "rule", lambda asked, phase: Move(Ruling.RUN, phase))
    world = World("sagas/line", lost, keyed=False)
    outcome = world.run()
    with pytest.raises(Violation, match="post was tried 2 times"):
        check(world, outcome)
