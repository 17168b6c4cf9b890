"""Rules of sagas, each taken away: some world of one fault, or of two, must notice it, or the worlds are blind there.

A mutant replaces one attribute of a class or module while its worlds run. Nothing in the product knows of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from penstock.errors import PenstockError
from penstock.functions import fence, participant
from penstock.functions.fence import Asked, Fence, Move, Phase, Ruling
from penstock.functions.saga_course import Course, Stage
from penstock.functions.saga_record import StepPhase, StepRecord
from penstock.mesh import awaits, invocation
from tests.mesh.saga_world import SCENARIOS, Clock, World, check, world_of_two_faults, worlds_of_one_fault

PAIRS = 400
"""Worlds of two faults, of each saga, in which a mutant must be noticed; more worlds have one."""


class Mutant(NamedTuple):
    """One rule taken away."""

    name: str
    owner: Any
    attribute: str
    replacement: Any
    sagas: Collection[str] = SCENARIOS
    """Those that have the rule."""


# What each rule becomes.

_noted = Course._noted
_carry_out = Course.carry_out
_carry_out_all = Course.carry_out_all
_decide = Fence.decide
_rule = fence.rule


def _note_anew(self: Any, step: Any) -> StepRecord:
    """The code is run again, and asks again for what has failed."""
    for record in self.ctx.state.steps:
        if record.name == step.name and record.phase is StepPhase.FAILED:
            record.phase = StepPhase.STARTED
    return _noted(self, step)


async def _undo_what_is_done(self: Any) -> None:
    for record in reversed(self.ctx.state.steps):
        if record.phase is StepPhase.DONE:
            await self._insist(record, Asked.CANCEL)
        record.phase = StepPhase.CANCELLED
        await self._keeper.commit()


async def _undo_from_the_first(self: Any) -> None:
    for record in self.ctx.state.steps:
        if record.phase is not StepPhase.CANCELLED:
            await self._insist(record, Asked.CANCEL)
            record.phase = StepPhase.CANCELLED
            await self._keeper.commit()


async def _undo_once(self: Any) -> None:
    for record in reversed(self.ctx.state.steps):
        with suppress(PenstockError, TimeoutError):
            await self._ask(record, Asked.CANCEL, detached=True)
        record.phase = StepPhase.CANCELLED
        await self._keeper.commit()


async def _ask_before_it_is_kept(self: Any, step: Any) -> Any:
    return await _without_commits(self, _carry_out(self, step))


async def _ask_all_before_they_are_kept(self: Any, steps: Any) -> Any:
    return await _without_commits(self, _carry_out_all(self, steps))


async def _without_commits(self: Any, work: Any) -> Any:
    """The first commit of a step, or of several at once, comes to nothing."""
    keeper = self._keeper
    self._keeper = _NoFirstCommit(keeper)
    try:
        return await work
    finally:
        self._keeper = keeper


class _NoFirstCommit:
    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper
        self._left_out = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keeper, name)

    async def commit(self) -> None:
        if self._left_out:
            await self._keeper.commit()
        self._left_out = True


async def _confirm_without_waiting(self: Any) -> None:
    for record in self.ctx.state.steps:
        if record.phase in (StepPhase.FAILED, StepPhase.STARTED):
            if self._plan.stage_of(record) is Stage.COMPENSABLE:
                await self._insist(record, Asked.CANCEL)
                record.phase = StepPhase.CANCELLED
            else:
                await self._insist(record, Asked.TRY)
        if record.phase is StepPhase.DONE:
            self.ctx.send(record.typename, record.id, self._command(record, Asked.CONFIRM))
            record.phase = StepPhase.CONFIRMED


async def _confirm_what_is_done(self: Any) -> None:
    """What failed and was not missed stays as it is."""
    for record in self.ctx.state.steps:
        if record.phase is StepPhase.DONE:
            await self._insist(record, Asked.CONFIRM)
            record.phase = StepPhase.CONFIRMED
        else:
            record.phase = StepPhase.CANCELLED


async def _settle_on_nothing(self: Any, pivot: StepRecord) -> None:
    """A pivot without an answer is taken for one that was not done."""
    pivot.phase = StepPhase.CANCELLED


async def _go_back_past_the_pivot(self: Any, failure: Any) -> None:
    self.ctx.state.failure = failure
    self._enter(type(self.ctx.state.phase).BACKWARD)
    await self._keeper.commit()


def _forget_what_came_too_early(self: Any, branch: str, phase: Phase, now_ms: int) -> bool:
    return phase is not Phase.SUSPENDED and _decide(self, branch, phase, now_ms)


def _do_again(asked: Asked, phase: Phase | None) -> Move:
    move = _rule(asked, phase)
    return Move(Ruling.RUN, move.to) if move.ruling is Ruling.REPEAT else move


def _do_what_is_late(asked: Asked, phase: Phase | None) -> Move:
    move = _rule(asked, phase)
    return Move(Ruling.RUN, Phase.TRIED) if move.ruling is Ruling.LATE else move


def _undo_again(asked: Asked, phase: Phase | None) -> Move:
    return Move(Ruling.RUN, Phase.CANCELLED) if asked is Asked.CANCEL else _rule(asked, phase)


MUTANTS = [
    Mutant("answers are final", Course, "_noted", _note_anew, ["sagas/either"]),
    Mutant("a step without an answer may be done", Course, "_compensate", _undo_what_is_done),
    Mutant("the last one is undone first", Course, "_compensate", _undo_from_the_first),
    Mutant("what undoes is tried until it succeeds", Course, "_compensate", _undo_once),
    Mutant("a step is kept before it is asked for", Course, "carry_out", _ask_before_it_is_kept),
    Mutant("several at once are kept before", Course, "carry_out_all", _ask_all_before_they_are_kept),
    Mutant("confirmations are waited for", Course, "_confirm", _confirm_without_waiting),
    Mutant("what failed and was not missed is undone", Course, "_confirm", _confirm_what_is_done, ["sagas/either"]),
    Mutant("a pivot without an answer is asked", Course, "_settle", _settle_on_nothing),
    Mutant("so it is when something else fails", Course, "_turn_back", _go_back_past_the_pivot),
    Mutant("an empty compensation is remembered", Fence, "decide", _forget_what_came_too_early),
    Mutant("what was done is answered as the first time", participant, "rule", _do_again),
    Mutant("what comes too late is refused", participant, "rule", _do_what_is_late),
    Mutant("what was undone is not undone again", participant, "rule", _undo_again),
]


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (awaits, invocation):
        monkeypatch.setattr(module, "time", Clock())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_rule_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutant.owner, mutant.attribute, mutant.replacement)
    assert any(map(_notices, _worlds(mutant.sagas))), f"nothing notices that this is missing: {mutant.name}"


def _worlds(sagas: Collection[str]) -> Iterator[World]:
    for saga in sagas:
        for keyed in (True, False):
            yield from worlds_of_one_fault(saga, keyed=keyed)
    for saga in sagas:
        for seed in range(PAIRS):
            yield world_of_two_faults(saga, seed)


def _notices(world: World) -> bool:
    try:
        check(world, world.run())
    except (AssertionError, PenstockError, KeyError):  # Some rules are guarded by the saga itself.
        return True
    return False
