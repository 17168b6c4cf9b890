"""Sagas without a journal, under every fault and random pairs of faults: all is done, or nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from penstock import Completed
from penstock.functions import participant
from penstock.functions.fence import Move, Ruling
from penstock.mesh import awaits, invocation
from tests.mesh.saga_world import (
    DEADLINE_S,
    DID,
    ON_COMMITS,
    REVIVED_S,
    SCENARIOS,
    Clock,
    Did,
    Fault,
    Violation,
    World,
    check,
)

PAIRS = 400
"""Of each saga."""


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (awaits, invocation):
        monkeypatch.setattr(module, "time", Clock())


REVIVALS = (REVIVED_S, DEADLINE_S + 1)
CRASHES = {Fault.CRASH, Fault.CRASH_AFTER}


def schedules(saga: str, *, keyed: bool) -> Iterator[tuple[dict[int, Fault], str]]:
    """Each fault at each operation, whoever declines."""
    for declines in ("", *SCENARIOS[saga]):
        undisturbed = World(saga, {}, declines=declines, keyed=keyed)
        check(undisturbed, undisturbed.run())
        for number, operation in enumerate(undisturbed.operations, start=1):
            for fault in ON_COMMITS if operation == "commit" else Fault:
                yield {number: fault}, declines


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
@pytest.mark.parametrize("saga", SCENARIOS)
def test_any_single_fault(saga: str, keyed: bool) -> None:
    ends = Counter[str]()
    for faults, declines in schedules(saga, keyed=keyed):
        for revived_s in REVIVALS if CRASHES & set(faults.values()) else REVIVALS[:1]:
            world = World(saga, faults, declines=declines, keyed=keyed, revived_s=revived_s)
            outcome = world.run()
            check(world, outcome)
            ends[type(outcome).__name__] += 1

    assert ends["Completed"] > 10
    assert ends["Compensated"] > 10


@pytest.mark.parametrize("saga", SCENARIOS)
def test_random_pairs_of_faults(saga: str) -> None:
    for seed in range(PAIRS):
        dice = random.Random(f"{saga} {seed}")
        declines = dice.choice(("", "", *SCENARIOS[saga]))
        faults = {number: dice.choice(list(Fault)) for number in dice.sample(range(1, 18), 2)}
        world = World(saga, faults, declines=declines, keyed=dice.random() < 0.5, revived_s=dice.choice(REVIVALS))
        try:
            check(world, world.run())
        except Violation as violation:
            raise AssertionError(f"seed {seed}: {faults}, {declines} declines") from violation


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
