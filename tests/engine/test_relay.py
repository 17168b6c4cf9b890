"""Sagas that nobody owns: each participant hands them on, and all is confirmed, or all that was done is undone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from penstock import Action, App, Branch, Context, Declined, FencedState, Function, SagaAlert, State
from penstock.functions.commands import Command
from penstock.testing import Crash, Harness

WAYS = [{}, {"parallelism": 4}, {"restart_every": 1}]
NAMES = ("stock", "bank", "post")


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way) or "plain")
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


class Books(FencedState):
    entries: list[str] = []  # noqa: RUF012  # A field.
    trouble: str = ""


class Told(State):
    alerts: list[SagaAlert] = []  # noqa: RUF012  # A field.
    order: list[str] = []  # noqa: RUF012  # A field.


Following = Callable[[Context[Any], Branch, str], None]
"""What an action does to hand a saga on."""


class Line:
    """Stock, bank and post, in this order; whoever is undone says so to a witness."""

    def __init__(self) -> None:
        self.app = App("line")
        self.actions: dict[str, Action[str, None]] = {}

        @self.app.function("line/witness")
        def witness(ctx: Context[Told], what: SagaAlert | str) -> None:
            if isinstance(what, str):
                ctx.state.order.append(what)
            else:
                ctx.state.alerts.append(what)

        self.witness: Function[SagaAlert | str, None] = witness
        following: Following = lambda ctx, branch, what: None  # noqa: E731  # Behind the last there is nobody.
        for name in reversed(NAMES):
            following = self._participant(name, following)

        @self.app.function("line/order")
        def order(ctx: Context[None], what: str) -> None:
            self.actions["stock"].begin(ctx, "x", what, saga=f"order {ctx.id}", watch="1h", alert=self.witness)

        self.order = order

    def _participant(self, name: str, following: Following) -> Following:
        participant = self.app.participant(f"line/{name}", Books, attempts=1)

        @participant.message
        def trouble(ctx: Context[Books], what: str) -> None:
            ctx.state.trouble = what

        @participant.action
        def do(ctx: Context[Books], what: str, branch: Branch) -> Declined | None:
            if ctx.state.trouble == "decline":
                return Declined("no")
            if ctx.state.trouble == "raise":
                raise ValueError("broken")
            ctx.state.entries.append(f"do {what}")
            following(ctx, branch, what)
            return None

        @do.compensation
        def undo(ctx: Context[Books], what: str) -> None:
            ctx.state.entries.append(f"undo {what}")
            ctx.send(self.witness, "x", f"undo {name}")

        @do.confirmation
        def confirm(ctx: Context[Books], what: str) -> None:
            ctx.state.entries.append(f"confirm {what}")

        self.actions[name] = do
        return lambda ctx, branch, what: branch.hand_on(ctx, do, "x", what, name=name)

    def entries(self, h: Harness) -> list[list[str]]:
        return [h.state(f"line/{name}", "x").entries for name in NAMES]


def test_what_all_have_done_is_confirmed(way: dict[str, Any]) -> None:
    line = Line()

    with Harness(line.app, **way) as h:
        h.send(line.order, "1", "tea")
        h.send(line.order, "1", "tea")  # Begun again: what was done answers as the first time.
        h.advance("2h")
        assert line.entries(h) == [["do tea", "confirm tea"]] * 3
        assert h.state(line.witness, "order 1").alerts == []
        h.advance("2d")
        assert not h.state("line/bank", "x").fence_rows


@pytest.mark.parametrize("where", range(3))
def test_who_declines_has_those_before_undo_what_they_did(where: int, way: dict[str, Any]) -> None:
    line = Line()

    with Harness(line.app, **way) as h:
        h.send(f"line/{NAMES[where]}", "x", "decline")
        h.send(line.order, "1", "tea")
        h.advance("1m")
        assert line.entries(h) == [["do tea", "undo tea"]] * where + [[]] * (3 - where)
        assert h.state(line.witness, "x").order == [f"undo {name}" for name in reversed(NAMES[:where])]


def test_one_that_stands_still_is_noticed_and_goes_on_when_its_dead_letter_does(way: dict[str, Any]) -> None:
    line = Line()

    with Harness(line.app, **way) as h:
        h.send("line/bank", "x", "raise")
        h.send(line.order, "1", "tea")
        h.advance("150m")
        told = h.state(line.witness, "order 1").alerts
        assert [(alert.saga, alert.step, alert.tries) for alert in told] == [("order 1", "do", 1), ("order 1", "do", 2)]
        h.send("line/bank", "x", "")
        h.redrive()
        h.advance("1m")
        assert line.entries(h) == [["do tea", "confirm tea"]] * 3


@pytest.mark.parametrize("seed", range(4))
def test_crashes_change_nothing(seed: int) -> None:
    line = Line()

    with Harness(line.app, parallelism=2, seed=seed).faults(Crash(every=3)) as h:
        for number, trouble in enumerate(("", "decline", "")):
            h.send("line/post", "x", trouble)
            h.advance("1s")
            h.send(line.order, str(number), "tea")
            h.advance("1m")
        h.assert_exactly_once()


@pytest.mark.parametrize("where", [None, 0, 1, 2])
def test_commands_that_come_twice_and_in_any_order(where: int | None) -> None:
    """Each command that is under way comes whenever it likes, and sometimes again."""
    line = Line()
    participants = {name: line.app.functions[f"line/{name}"] for name in NAMES}
    for seed in range(200):
        dice = random.Random(seed)
        states = {name: Books(trouble="decline" if NAMES.index(name) == where else "") for name in NAMES}
        bag = list(_commands(line.app.functions["line/order"].test("tea", id="1").sent))
        while bag:
            name, command = bag.pop(dice.randrange(len(bag)))
            trial = participants[name].test(command, id="x", state=states[name])
            states[name] = trial.state
            bag += _commands(trial.sent)
            if dice.random() < 0.3 and len(bag) < 20:
                bag.append((name, command))
        done = 3 if where is None else 0
        undone = 0 if where is None else where
        expected = [["do tea", "confirm tea"]] * done + [["do tea", "undo tea"]] * undone
        assert [states[name].entries for name in NAMES] == expected + [[]] * (3 - len(expected)), seed


def _commands(sent: Iterable[tuple[Any, str, Any]]) -> Iterable[tuple[str, Command]]:
    for target, _, message in sent:
        if isinstance(message, Command):
            name = target if isinstance(target, str) else target.typename
            yield name.removeprefix("line/"), message


Code = Callable[[Branch, Context[Any], Action[str, None]], object]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (lambda branch, ctx, do: branch.hand_on(ctx, do, "x", ""), "comes after a step 'do'"),
        (
            lambda branch, ctx, do: [branch.hand_on(ctx, do, "x", "", name=each) for each in "ab"],
            "was handed on before",
        ),
        (lambda branch, ctx, do: branch._replace(trail=None).hand_on(ctx, do, "x", ""), "who says what comes next"),
        (None, "has no compensation, so it must be the last"),
    ],
)
def test_a_saga_is_handed_on_once_and_from_where_it_can_be_undone(code: Code | None, told: str) -> None:
    app = App("line")
    some = app.participant("line/some", Books, attempts=1)

    @some.action
    def do(ctx: Context[Books], what: str, branch: Branch) -> None:
        if code is None:
            branch.hand_on(ctx, do, "x", what, name="next")
        else:
            code(branch, ctx, do)

    if code is not None:

        @do.compensation
        def undo(ctx: Context[Books], what: str) -> None: ...

    @app.function("line/order")
    def order(ctx: Context[None], what: str) -> None:
        do.begin(ctx, "x", what, saga="1")

    with Harness(app) as h:
        h.send(order, "1", "tea")
        h.advance("1m")
        (letter,) = h.dead_letters()
        assert letter.code == "PEN0895"
        assert letter.reason.startswith("Step 1/do at line/some/x ")
        assert told in letter.reason
