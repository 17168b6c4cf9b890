"""The fence does the work at most once, undoes it at most once, and never does it too late: in any order, any number of
times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import App, Branch, Context, Declined, FencedState
from penstock.functions import participant
from penstock.functions.commands import Command, Ruled, Sweep, Verdict
from penstock.functions.fence import SWEPT_MAX, Asked, Fence, Move, Phase, Ruling
from penstock.functions.participant import Participant
from penstock.functions.trial import START

TRY, CONFIRM, CANCEL = Asked
DAY_MS = 86_400_000


class Shelf(FencedState):
    done: list[str] = []  # noqa: RUF012  # A field.


def shelf_of(app: App) -> Participant[Shelf]:
    shelf = app.participant("shop/shelf", Shelf)

    @shelf.action
    def reserve(ctx: Context[Shelf], outcome: str, branch: Branch) -> str | Declined:
        if outcome == "decline":
            return Declined("sold out")
        ctx.state.done.append(f"try {branch.saga}")
        return f"held {len(ctx.state.done)}"

    @reserve.compensation
    def release(ctx: Context[Shelf], _: str, branch: Branch) -> None:
        ctx.state.done.append(f"cancel {branch.saga}")

    @reserve.confirmation
    def sell(ctx: Context[Shelf], _: str, branch: Branch) -> None:
        ctx.state.done.append(f"confirm {branch.saga}")

    return shelf


SHELF = shelf_of(App("shop"))


class Ask(NamedTuple):
    """A command as it arrives: for one of two sagas; what is tried may decline."""

    asked: Asked
    saga: str = "a"
    declines: bool = False

    def command(self) -> Command:
        outcome = "decline" if self.declines else "do"
        return Command(self.asked, "reserve", self.saga, "reserve", msgspec.msgpack.encode(outcome))


def played(asks: Sequence[Ask]) -> tuple[Shelf, list[Verdict]]:
    """What the participant does and answers."""
    state, verdicts = Shelf(), []
    for ask in asks:
        trial = SHELF.test(ask.command(), id="tea", state=state)
        state = trial.state
        verdicts.append(trial.reply)
    return state, verdicts


def expected(asks: Sequence[Ask]) -> tuple[list[str], list[Ruled]]:
    """The same by going through all that came before, once for each command: no phases, no rows."""
    done: list[str] = []
    answers: list[Ruled] = []
    for now, ask in enumerate(asks):
        before = [each for each in asks[:now] if each.saga == ask.saga]
        cancel = next(
            (at for at, each in enumerate(before) if each.asked is CANCEL and not _confirmed(before[:at])), None
        )
        was_tried = any(each.asked is TRY and not each.declines for each in before[:cancel])
        match ask.asked:
            case Asked.TRY if cancel is not None:
                answers.append(Ruled.LATE)
            case Asked.TRY if was_tried:
                answers.append(Ruled.DONE)
            case Asked.TRY if ask.declines:
                answers.append(Ruled.DECLINED)
            case Asked.CONFIRM if not was_tried or cancel is not None:
                answers.append(Ruled.WRONG)
            case Asked.CONFIRM if _confirmed(before):
                answers.append(Ruled.DONE)
            case Asked.CANCEL if _confirmed(before):
                answers.append(Ruled.WRONG)
            case Asked.CANCEL if cancel is not None or not was_tried:
                answers.append(Ruled.DONE)
            case _:
                answers.append(Ruled.DONE)
                done.append(f"{ask.asked} {ask.saga}")
    return done, answers


def _confirmed(before: Sequence[Ask]) -> bool:
    """Whether a confirmation came after the work was done, and before anything took it back."""
    for at, ask in enumerate(before):
        if ask.asked is CANCEL:
            return False
        if ask.asked is CONFIRM and any(each.asked is TRY and not each.declines for each in before[:at]):
            return True
    return False


def test_every_order_and_every_duplication_of_up_to_six_commands() -> None:
    for count in range(1, 7):
        for order in product(Asked, repeat=count):
            asks = [Ask(asked) for asked in order]
            state, verdicts = played(asks)
            assert (state.done, [each.ruled for each in verdicts]) == expected(asks), order


@given(st.lists(st.builds(Ask, st.sampled_from(Asked), st.sampled_from("ab"), st.booleans()), max_size=24))
def test_branches_are_apart_and_what_declines_leaves_nothing(asks: list[Ask]) -> None:
    state, verdicts = played(asks)

    assert (state.done, [each.ruled for each in verdicts]) == expected(asks)
    for saga in "ab":
        order = [each.split()[0] for each in state.done if each.endswith(saga)]
        assert order in ([], ["try"], ["try", "confirm"], ["try", "cancel"])
        told = {verdict.answer for ask, verdict in zip(asks, verdicts, strict=True) if _is_done_try(ask, verdict, saga)}
        assert len(told) <= 1  # Who asks again is told the same.


def _is_done_try(ask: Ask, verdict: Verdict, saga: str) -> bool:
    return ask.saga == saga and ask.asked is TRY and verdict.ruled is Ruled.DONE


def test_without_the_fence_a_late_try_leaves_an_orphan_and_a_repeated_one_is_done_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: what the other tests hold is held by the fence."""
    orphan, double = [Ask(CANCEL), Ask(TRY)], [Ask(TRY), Ask(TRY)]
    assert played(orphan)[0].done == []
    assert played(double)[0].done == ["try a"]

    monkeypatch.setattr(participant, "rule", lambda asked, phase: Move(Ruling.RUN, phase))
    assert played(orphan)[0].done == ["try a"]
    assert played(double)[0].done == ["try a", "try a"]


# Forgetting.


def test_a_row_is_forgotten_a_day_after_it_was_decided() -> None:
    at_ms = int(START.timestamp() * 1000)
    trial = SHELF.test(Ask(CANCEL).command(), id="tea")
    (sweep,) = trial.delayed
    assert (sweep.delay.days, sweep.message) == (1, Sweep())

    state: Shelf = trial.state
    assert Fence(state).sweep(at_ms - 1) == at_ms
    assert Fence(state).find("a/reserve") is not None
    assert Fence(state).sweep(at_ms) is None
    assert Fence(state).find("a/reserve") is None
    assert len(state.fence_decided) == 0


def test_a_row_that_is_not_decided_is_never_forgotten() -> None:
    state, _ = played([Ask(TRY)])

    assert Fence(state).sweep(1 << 60) is None
    row = Fence(state).find("a/reserve")
    assert row is not None
    assert row.phase is Phase.TRIED


def test_only_the_first_row_that_is_decided_sets_the_clock() -> None:
    first = SHELF.test(Ask(CANCEL, "a").command(), id="tea")
    second = SHELF.test(Ask(CANCEL, "b").command(), id="tea", state=first.state)

    assert len(first.delayed) == 1
    assert second.delayed == []


def test_much_is_forgotten_in_several_goes() -> None:
    state = Shelf()
    for number in range(SWEPT_MAX + 5):
        Fence(state).decide(str(number), Phase.SUSPENDED, number)

    trial = SHELF.test(Sweep(), id="tea", state=state)
    assert len(trial.state.fence_decided) == 5
    assert trial.delayed[0].delay.total_seconds() == 0
    trial = SHELF.test(Sweep(), id="tea", state=trial.state)
    assert not trial.state.fence_rows
    assert trial.delayed == []
