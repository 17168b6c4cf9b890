"""What can't be a saga, or part of one, is refused where it is declared, with a code and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from penstock import (
    Action,
    App,
    Branch,
    ConfigurationError,
    Context,
    Declined,
    FencedState,
    FunctionError,
    Message,
    Participant,
    Saga,
    SagaAlert,
    State,
)
from penstock.functions.commands import Command, Ruled, Verdict
from penstock.functions.fence import Asked
from penstock.testing import Harness


class Ask(Message):
    pass


class Tell(Message):
    pass


class Books(FencedState):
    entries: list[str] = []  # noqa: RUF012  # A field.


class Plain(State):
    pass


class OtherTag(Message, tag_field="kind"):
    pass


def declared() -> tuple[App, Participant[Books], Action[str, int]]:
    """An application with one action that nothing undoes."""
    app = App("shop")
    shelf = app.participant("shop/shelf", Books)

    @shelf.action
    def reserve(ctx: Context[Books], what: str) -> int | Declined:
        ctx.state.entries.append(what)
        return len(ctx.state.entries)

    return app, shelf, reserve


def undone(reserve: Action[str, int]) -> Action[str, int]:
    @reserve.compensation
    def release(ctx: Context[Books], what: str) -> None:
        ctx.state.entries.append(f"not {what}")

    return reserve


async def code(saga: Saga, what: str) -> None:
    """Of a saga; which does not matter."""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (lambda _, plain: {"steps": [plain]}, "PEN0892 .* before its pivot, and nothing undoes that"),
        (lambda _, plain: {}, "PEN0893 .* has no steps"),
        (lambda _, plain: {"then": [plain]}, r"PEN0893 .* has steps in then=, and no pivot"),
        (lambda _, plain: {"pivot": plain, "then": [plain]}, "PEN0893 .* twice"),
        (lambda _, plain: {"pivot": plain, "recovery": "sideways"}, "PEN0893 .* recovery='sideways'"),
        (lambda _, plain: {"pivot": plain, "recovery": "forward"}, "PEN0893 .* has a pivot"),
        (lambda _, plain: {"steps": [plain], "recovery": "forward", "deadline": "1h"}, "PEN0893 .* has a deadline"),
        (lambda _, plain: {"pivot": plain, "alert_after": 0}, "PEN0893 .* alert_after=0"),
        (lambda _, plain: {"pivot": code}, "PEN0891 .* no action of a participant"),
        (lambda _, plain: {"pivot": declared()[2]}, "PEN0891 .* is not of this application"),
    ],
)
def test_a_saga_that_could_not_be_taken_back_is_refused(
    options: Callable[[App, Any], dict[str, Any]], told: str
) -> None:
    app, _, plain = declared()

    with pytest.raises(ConfigurationError, match=told):
        app.saga("shop/checkout", **options(app, plain))(code)
    assert "shop/checkout" not in app.functions


def test_forward_recovery_and_what_stands_behind_the_pivot_need_no_compensation() -> None:
    app, _, plain = declared()

    app.saga("shop/close", steps=[plain], recovery="forward")(code)
    app.saga("shop/open", pivot=plain)(code)
    app.check()


def test_the_code_of_a_saga_awaits_and_takes_a_saga() -> None:
    app, _, plain = declared()

    def at_once(saga: Saga, what: str) -> None: ...

    async def of_a_context(ctx: Context[None], what: str) -> None: ...

    for handler in (at_once, of_a_context):
        with pytest.raises(ConfigurationError, match="PEN0894"):
            app.saga("shop/checkout", pivot=plain)(handler)  # type: ignore[arg-type]


def test_alerts_go_to_a_function_of_the_application_that_takes_them() -> None:
    app, _, plain = declared()
    other = App("other")

    @other.function("other/pager")
    def elsewhere(ctx: Context[None], alert: SagaAlert) -> None: ...

    @app.function("shop/deaf")
    def deaf(ctx: Context[None], what: int) -> None: ...

    for number, (pager, told) in enumerate([(elsewhere, "PEN0891 .* no function"), (deaf, "PEN0893 .* takes int")]):
        app, _, plain = declared()
        if pager is deaf:
            app.functions[pager.typename] = pager
        app.saga(f"shop/checkout-{number}", pivot=plain, alert=pager)(code)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=told):
            app.check()


def test_a_saga_and_a_participant_have_a_name_of_their_own() -> None:
    app, _, plain = declared()

    with pytest.raises(ConfigurationError, match=r"PEN0103 shop/shelf is declared twice: test_saga\.py:"):
        app.participant("shop/shelf", Books)
    with pytest.raises(ConfigurationError, match="PEN0103"):
        app.saga("shop/shelf", pivot=plain)(code)


# Participants.


def test_a_participant_needs_a_place_for_the_fence() -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0890 shop/shelf \(test_saga.py:\d+\) has Plain as its state"):
        App("shop").participant("shop/shelf", Plain)  # type: ignore[type-var]


def test_handlers_of_a_participant_take_its_state() -> None:
    _, shelf, reserve = declared()

    def other(ctx: Context[Plain], what: str) -> None: ...

    ways: list[Any] = [shelf.action, shelf.message, reserve.compensation, reserve.confirmation]
    for declare in ways:
        with pytest.raises(ConfigurationError, match=r"PEN0890 shop/shelf .* takes Context\[Plain\]"):
            declare(other)


@pytest.mark.parametrize("kept", ["59s", "7d"])
def test_rows_of_the_fence_are_kept_for_minutes_to_days(kept: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PEN0893 shop/shelf .* for {kept}"):
        App("shop").participant("shop/shelf", Books, fence_kept=kept)


def test_a_participant_has_one_handler_for_each() -> None:
    _, shelf, reserve = declared()

    with pytest.raises(ConfigurationError, match="PEN0899 shop/shelf has an action reserve twice"):

        @shelf.action
        def reserve(ctx: Context[Books], what: str) -> int:
            return 1

    undone(reserve)
    with pytest.raises(ConfigurationError, match="PEN0899 shop/shelf has a compensation of reserve twice"):
        undone(reserve)


def test_messages_of_a_participant_are_told_apart_by_their_types() -> None:
    app, shelf, _ = declared()

    @shelf.message
    def ask(ctx: Context[Books], message: Ask) -> str:
        return "asked"

    @shelf.message
    async def tell(ctx: Context[Books], message: Tell) -> str:
        await ctx.sleep("1s")
        return "told"

    def other_tag(ctx: Context[Books], message: OtherTag) -> None: ...

    with Harness(app) as h:
        assert (h.call(shelf, "tea", Ask()), h.call(shelf, "tea", Tell())) == ("asked", "told")

    for second, told in ((ask, "PEN0899 shop/shelf has a handler of Ask twice"), (other_tag, "PEN0102 shop/shelf")):
        app, shelf, _ = declared()
        shelf.message(ask)
        shelf.message(second)
        with pytest.raises(ConfigurationError, match=told):
            app.check()


def test_an_action_may_await_and_know_its_branch() -> None:
    app, shelf, reserve = declared()

    @shelf.action
    async def order(ctx: Context[Books], what: str, branch: Branch) -> str:
        await ctx.sleep("1s")
        return f"{what} for {branch.key}"

    command = Command(Asked.TRY, "order", "s/s/1", "a", msgspec.msgpack.encode("tea"))
    with Harness(app) as h:
        verdict = msgspec.convert(h.call(shelf, "x", command), Verdict)
        assert (verdict.ruled, msgspec.msgpack.decode(verdict.answer)) == (Ruled.DONE, "tea for s/s/1/a")
    assert reserve.forward.reply_codec.name == "int"
    assert [handler.is_async for handler in (reserve.forward, order.forward)] == [False, True]


def test_an_action_can_be_called_in_a_test() -> None:
    _, shelf, reserve = declared()
    trial = shelf.test(Command(Asked.TRY, "reserve", "s/s/1", "a", msgspec.msgpack.encode("tea")), id="x")
    assert trial.state.entries == ["tea"]

    class Stub:
        state = Books()

    assert reserve(Stub(), "rum") == 1
    assert Stub.state.entries == ["rum"]


def test_an_action_that_was_removed_leaves_a_dead_letter_that_says_so() -> None:
    app, shelf, _ = declared()

    with Harness(app) as h:
        with pytest.raises(FunctionError, match="PEN0898 shop/shelf/tea is asked by s/s/1 for gone"):
            h.call(shelf, "tea", Command(Asked.TRY, "gone", "s/s/1", "a", b"\xc0"))
        assert len(h.dead_letters()) == 1


def test_the_fingerprint_of_a_participant_changes_with_its_handlers() -> None:
    prints = {declared()[1].fingerprint}
    _, shelf, reserve = declared()
    prints.add(shelf.fingerprint)
    assert len(prints) == 1

    _, shelf, reserve = declared()
    undone(reserve)
    assert shelf.fingerprint not in prints
