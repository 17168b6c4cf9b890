"""Sagas in the engine: each ends with all of its steps done or all undone, however often their code is run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock import (
    Action,
    App,
    Branch,
    Compensated,
    Completed,
    Context,
    Declined,
    FencedState,
    Function,
    Participant,
    Retry,
    Saga,
    SagaAlert,
    State,
    StepFailed,
)
from penstock.testing import Crash, Harness

WAYS = [
    {},
    {"always_replay": True},
    {"parallelism": 4, "always_replay": True},
    {"restart_every": 1},
]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way) or "plain")
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


class Books(FencedState):
    """Of one participant: what was done and undone here, by saga."""

    entries: list[str] = []  # noqa: RUF012  # A field.
    trouble: str = ""
    """What the next commands run into."""


class Shop:
    """Participants that write down what they do. Their troubles are set by messages."""

    def __init__(self) -> None:
        self.app = App("shop")
        self.stock, self.reserve = self._participant("shop/stock", undoes=True)
        self.seat, self.hold = self._participant("shop/seat", undoes=True)
        self.bank, self.charge = self._participant("shop/bank", undoes=False)
        self.post, self.ship = self._participant("shop/post", undoes=False)

    def _participant(self, typename: str, *, undoes: bool) -> tuple[Participant[Books], Action[str, str]]:
        participant = self.app.participant(typename, Books, attempts=1)

        @participant.message
        def trouble(ctx: Context[Books], what: str) -> None:
            ctx.state.trouble = what

        @participant.action
        async def do(ctx: Context[Books], what: str, branch: Branch) -> str | Declined:
            if ctx.state.trouble == "decline":
                return Declined(f"no {what}")
            if ctx.state.trouble == "raise":
                raise ValueError("broken")
            ctx.state.entries.append(f"do {branch.saga.rpartition('/')[2]}")
            if ctx.state.trouble == "slow":
                await ctx.sleep("1h")
            if ctx.state.trouble == "half":
                await ctx.sleep("1s")
                raise ValueError("half-way")
            return f"{what} {len(ctx.state.entries)}"

        if undoes:

            @do.compensation
            def undo(ctx: Context[Books], what: str, branch: Branch) -> None:
                if ctx.state.trouble == "raise":
                    raise ValueError("broken")
                ctx.state.entries.append(f"undo {branch.saga.rpartition('/')[2]}")

        return participant, do

    def entries(self, h: Harness) -> dict[str, list[str]]:
        return {each.typename: h.state(each, "x").entries for each in (self.stock, self.seat, self.bank, self.post)}


def checkout_of(shop: Shop, **options: Any) -> Function[str, Completed[str] | Compensated]:
    """Stock and seat, then money, then the post."""

    @shop.app.saga("shop/checkout", steps=[shop.reserve, shop.hold], pivot=shop.charge, then=[shop.ship], **options)
    async def checkout(saga: Saga, what: str) -> str:
        first = await saga.step(shop.reserve, "x", what, name="reserve")
        second = await saga.step(shop.hold, "x", what, name="hold")
        third = await saga.step(shop.charge, "x", what, name="charge")
        fourth = await saga.step(shop.ship, "x", what, name="ship")
        return f"{first}, {second}, {third}, {fourth}"

    return checkout


def steps_of(h: Harness, saga: Function[Any, Any], id: str) -> dict[str, str]:
    """How the steps of a saga ended, in the order in which they were started."""
    ended = h.state(saga, id).ended
    return {} if ended is None else {name: str(phase) for name, phase in ended.steps.items()}


# To the end, or back to the beginning.


def test_all_steps_are_done(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        assert h.call(checkout, "1", "tea") == Completed("tea 1, tea 1, tea 1, tea 1")
        assert all(each == ["do 1"] for each in shop.entries(h).values())
        assert steps_of(h, checkout, "1") == dict.fromkeys(("reserve", "hold", "charge", "ship"), "confirmed")
        assert h.dead_letters() == []


@pytest.mark.parametrize(
    ("where", "undone"),
    [("stock", []), ("seat", ["shop/stock"]), ("bank", ["shop/stock", "shop/seat"])],
)
@pytest.mark.parametrize("trouble", ["decline", "raise"])
def test_what_fails_before_the_end_of_the_pivot_takes_all_back(
    where: str, undone: list[str], trouble: str, way: dict[str, Any]
) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        h.send(getattr(shop, where), "x", trouble)
        outcome = h.call(checkout, "1", "tea")
        assert isinstance(outcome, Compensated)
        assert outcome.step == {"stock": "reserve", "seat": "hold", "bank": "charge"}[where]
        assert outcome.reason == "no tea" if trouble == "decline" else "ValueError: broken" in outcome.reason
        entries = shop.entries(h)
        assert {name for name, each in entries.items() if each} == set(undone)
        assert all(each == ["do 1", "undo 1"] for each in entries.values() if each)
        assert set(steps_of(h, checkout, "1").values()) == {"cancelled"}
        # Redriving a message that failed comes too late: its branch is cancelled.
        h.send(getattr(shop, where), "x", "")
        h.redrive()
        h.advance("1m")
        assert shop.entries(h) == entries


def test_compensations_run_in_reverse_order_of_the_steps_that_were_started(way: dict[str, Any]) -> None:
    app = App("shop")
    everyone = app.participant("shop/everyone", Books)

    @everyone.action
    def join(ctx: Context[Books], name: str) -> Declined | None:
        return Declined("full") if name == "d" else None

    @join.compensation
    def leave(ctx: Context[Books], name: str) -> None:
        ctx.state.entries.append(name)

    @app.saga("shop/party", steps=[join])
    async def party(saga: Saga, names: str) -> None:
        await saga.step(join, "x", names[0], name=names[0])
        await saga.all(*(saga.step(join, "x", name, name=name) for name in names[1:3]))
        await saga.step(join, "x", names[3], name=names[3])

    with Harness(app, **way) as h:
        assert h.call(party, "1", "abcd") == Compensated("full", "d")
        assert h.state(everyone, "x").entries == ["c", "b", "a"]


def test_after_the_pivot_a_step_is_tried_until_it_succeeds_and_somebody_is_told(
    way: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()

    class Told(State):
        alerts: list[SagaAlert] = []  # noqa: RUF012  # A field.

    @shop.app.function("shop/pager")
    def pager(ctx: Context[Told], alert: SagaAlert) -> None:
        ctx.state.alerts.append(alert)

    checkout = checkout_of(shop, alert=pager, alert_after=2, deadline="1m")
    with Harness(shop.app, **way) as h:
        h.send(shop.post, "x", "decline")
        h.send(checkout, "1", "tea")
        h.advance("10s")
        told = h.state(pager, "1").alerts
        assert told[0] == SagaAlert("shop/checkout/1", "ship", "try", 2, "no tea")
        assert caplog.text.count("PEN0897 try of step ship has failed 2 times") == 1
        h.send(shop.post, "x", "")
        h.advance("2m")
        assert steps_of(h, checkout, "1")["ship"] == "confirmed"
        assert h.call(checkout, "1", "tea") == Completed("tea 1, tea 1, tea 1, tea 1")


def test_a_compensation_is_tried_until_it_succeeds(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        h.send(shop.bank, "x", "decline")
        h.send(shop.seat, "x", "slow")
        h.send(checkout, "1", "tea")
        h.advance("1m")
        h.send(shop.stock, "x", "raise")
        h.advance("70m")
        assert shop.entries(h)["shop/stock"] == ["do 1"]
        assert steps_of(h, checkout, "1") == {}
        h.send(shop.stock, "x", "")
        h.advance("1h")
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1"]
        assert set(steps_of(h, checkout, "1").values()) == {"cancelled"}
        # Each try that failed is a dead letter. Sending them again does nothing.
        assert h.redrive() > 0
        h.advance("1m")
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1"]


def test_work_that_fails_half_way_is_undone(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        h.send(shop.seat, "x", "half")
        outcome = h.call(checkout, "1", "tea")
        assert isinstance(outcome, Compensated)
        assert shop.entries(h)["shop/seat"] == ["do 1", "undo 1"]


def test_a_saga_is_what_its_id_says_however_often_it_is_begun(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        first = h.call(checkout, "1", "tea")
        assert h.call(checkout, "1", "rum") == first
        assert shop.entries(h)["shop/bank"] == ["do 1"]
        h.advance("8d")
        assert h.states(checkout) == {}
        assert not h.state(shop.bank, "x").fence_rows


# Time.


def test_the_deadline_takes_back_what_is_under_way(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop, deadline="10m")

    with Harness(shop.app, **way) as h:
        h.send(shop.seat, "x", "slow")
        began = h.now
        assert h.call(checkout, "1", "tea") == Compensated("it was not done within 10m")
        assert shop.entries(h)["shop/stock"] == shop.entries(h)["shop/seat"] == ["do 1", "undo 1"]
        assert (h.now - began).total_seconds() < 3700


def test_a_step_has_a_time_of_its_own(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", steps=[shop.reserve, shop.hold])
    async def visit(saga: Saga, what: str) -> str:
        try:
            return await saga.step(shop.reserve, "x", what, name="best", timeout="10s")
        except StepFailed as error:
            return f"{error.step} failed by {error.code}, {await saga.step(shop.hold, 'x', what, name='next')}"

    with Harness(shop.app, **way) as h:
        h.send(shop.stock, "x", "slow")
        assert h.call(visit, "1", "tea") == Completed("best failed by PEN0896, tea 1")
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1"]
        assert steps_of(h, visit, "1") == {"best": "cancelled", "next": "confirmed"}


def test_a_pivot_that_does_not_answer_in_time_is_asked_whether_it_was_done(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop, deadline="1m")

    with Harness(shop.app, **way) as h:
        h.send(shop.bank, "x", "slow")
        assert h.call(checkout, "1", "tea") == Completed("tea 1, tea 1, tea 1, tea 1")
        assert shop.entries(h)["shop/bank"] == ["do 1"]


def test_a_pivot_that_failed_half_way_is_finished(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    with Harness(shop.app, **way) as h:
        h.send(shop.bank, "x", "half")
        h.send(checkout, "1", "tea")
        h.advance("2s")
        h.send(shop.bank, "x", "")
        h.advance("1h")
        assert steps_of(h, checkout, "1")["charge"] == "confirmed"
        assert shop.entries(h)["shop/stock"] == ["do 1"]


def test_what_undoes_does_not_know_the_deadline_of_who_called_the_saga(way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    @shop.app.function("shop/visitor")
    async def visitor(ctx: Context[None], what: str) -> str:
        try:
            await ctx.call(checkout, "1", what, timeout="10s")
        except TimeoutError:
            return "gone"
        return "stayed"

    with Harness(shop.app, **way) as h:
        h.send(shop.seat, "x", "slow")
        assert h.call(visitor, "v", "tea") == "gone"
        h.advance("2h")
        assert shop.entries(h)["shop/stock"] == shop.entries(h)["shop/seat"] == ["do 1", "undo 1"]
        assert set(steps_of(h, checkout, "1").values()) == {"cancelled"}


# Cancelling, aborting, failing.


@pytest.mark.parametrize(("trouble_at", "ends"), [("seat", "cancelled"), ("post", "confirmed")])
def test_who_cancels_a_saga_is_told_how_it_ended(trouble_at: str, ends: str, way: dict[str, Any]) -> None:
    shop = Shop()
    checkout = checkout_of(shop)

    @shop.app.function("shop/visitor")
    async def visitor(ctx: Context[None], what: str) -> bool:
        call = ctx.call(checkout, "1", what)
        await ctx.sleep("1m")
        ctx.cancel_call(call)
        return isinstance(await call, Compensated)

    with Harness(shop.app, **way) as h:
        h.send(getattr(shop, trouble_at), "x", "slow")
        assert h.call(visitor, "v", "tea") is (ends == "cancelled")
        assert set(steps_of(h, checkout, "1").values()) == {ends}


def test_the_code_of_a_saga_can_give_up_or_break(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", steps=[shop.reserve])
    async def visit(saga: Saga, what: str) -> None:
        await saga.step(shop.reserve, "x", what)
        if what == "tea":
            saga.abort("changed my mind")
        raise KeyError(what)

    with Harness(shop.app, **way) as h:
        assert h.call(visit, "1", "tea") == Compensated("changed my mind")
        assert h.call(visit, "2", "rum") == Compensated("KeyError: 'rum'")
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1", "do 2", "undo 2"]


def test_code_that_breaks_after_the_pivot_is_run_again(way: dict[str, Any]) -> None:
    shop = Shop()
    broken = [True]

    @shop.app.saga("shop/visit", steps=[shop.reserve], pivot=shop.charge)
    async def visit(saga: Saga, what: str) -> str:
        await saga.step(shop.reserve, "x", what, name="reserve")
        paid = await saga.step(shop.charge, "x", what, name="charge")
        if await saga.ctx.run("look", lambda: broken[0]):
            raise RuntimeError("broken")
        return paid

    with Harness(shop.app, **way) as h:
        h.send(visit, "1", "tea")
        h.advance("10s")
        broken[0] = False
        h.advance("1m")
        assert h.call(visit, "1", "tea") == Completed("tea 1")
        assert shop.entries(h)["shop/bank"] == shop.entries(h)["shop/stock"] == ["do 1"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (lambda shop, saga: saga.step(shop.hold, "x", ""), "asks for shop/seat do, which it does not declare"),
        (lambda shop, saga: saga.step(shop.ship, "x", ""), "asks for 'do' before its pivot"),
        (lambda shop, saga: saga.step(shop.reserve, "x", "", name="a b"), "names a step 'a b'"),
        (
            lambda shop, saga: saga.all(*(saga.step(shop.reserve, "x", "", name="a") for _ in "ab")),
            "asks for 'a' twice",
        ),
        (lambda shop, saga: saga.all(saga.step(shop.charge, "x", "")), "asks for its pivot beside other steps"),
        (lambda shop, saga: [saga.step(shop.reserve, "x", "")], "has asked for do and never awaited it"),
        (lambda shop, saga: saga.step(shop.reserve, "x", "y" * 2_000_000), "exceeds message_bytes_max"),
    ],
)
def test_code_that_asks_for_what_can_not_be_is_told_and_taken_back(
    code: Callable[[Shop, Saga], Any], told: str
) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", steps=[shop.reserve], pivot=shop.charge, then=[shop.ship])
    async def visit(saga: Saga, what: str) -> None:
        await saga.step(shop.reserve, "x", what, name="first")
        asked = code(shop, saga)
        if not isinstance(asked, list):
            await asked

    with Harness(shop.app) as h:
        outcome = h.call(visit, "1", "tea")
        assert isinstance(outcome, Compensated)
        assert told in outcome.reason
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1"]


# Several at once.


def test_several_steps_at_once_end_together(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", steps=[shop.reserve, shop.hold])
    async def visit(saga: Saga, what: str) -> list[str]:
        both = await saga.all(
            saga.step(shop.reserve, "x", what, name="a"),
            saga.step(shop.hold, "x", what, name="b"),
        )
        return list(both)

    with Harness(shop.app, **way) as h:
        h.send(shop.seat, "x", "slow")
        h.send(shop.stock, "x", "slow")
        began = h.now
        assert h.call(visit, "1", "tea") == Completed(["tea 1", "tea 1"])
        assert (h.now - began).total_seconds() < 3700


def test_the_first_that_fails_ends_the_others(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", steps=[shop.reserve, shop.hold])
    async def visit(saga: Saga, what: str) -> None:
        await saga.all(
            saga.step(shop.reserve, "x", what, name="a"),
            saga.step(shop.hold, "x", what, name="b"),
        )

    with Harness(shop.app, **way) as h:
        h.send(shop.stock, "x", "slow")
        h.send(shop.seat, "x", "decline")
        began = h.now
        assert h.call(visit, "1", "tea") == Compensated("no tea", "b")
        assert (h.now - began).total_seconds() < 60
        h.advance("2h")
        assert shop.entries(h)["shop/stock"] == ["do 1", "undo 1"]
        assert shop.entries(h)["shop/seat"] == []


def test_several_steps_behind_the_pivot(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/visit", pivot=shop.charge, then=[shop.ship, shop.hold])
    async def visit(saga: Saga, what: str) -> list[str]:
        await saga.step(shop.charge, "x", what, name="charge")
        return list(
            await saga.all(
                saga.step(shop.ship, "x", what, name="ship"),
                saga.step(shop.hold, "x", what, name="hold"),
            )
        )

    with Harness(shop.app, **way) as h:
        h.send(shop.post, "x", "decline")
        h.send(visit, "1", "tea")
        h.advance("10s")
        h.send(shop.post, "x", "")
        h.advance("1m")
        assert h.call(visit, "1", "tea") == Completed(["tea 1", "tea 1"])


# Forward recovery, and TCC.


def test_forward_recovery_undoes_nothing(way: dict[str, Any]) -> None:
    shop = Shop()

    @shop.app.saga("shop/close", steps=[shop.charge, shop.ship], recovery="forward")
    async def close(saga: Saga, what: str) -> str:
        await saga.step(shop.charge, "x", what, name="charge")
        return await saga.step(shop.ship, "x", what, name="ship")

    with Harness(shop.app, **way) as h:
        h.send(shop.post, "x", "raise")
        h.send(close, "1", "tea")
        h.advance("10s")
        h.send(shop.post, "x", "")
        h.advance("1m")
        assert h.call(close, "1", "tea") == Completed("tea 1")
        assert shop.entries(h)["shop/bank"] == ["do 1"]


class Seats(FencedState):
    free: int = 1
    held: int = 0
    sold: int = 0


@pytest.mark.parametrize(("free", "sold"), [((1, 1), True), ((1, 0), False)])
def test_what_was_tried_is_confirmed_or_cancelled(free: tuple[int, int], sold: bool, way: dict[str, Any]) -> None:
    app = App("tcc")
    flight = app.participant("tcc/flight", Seats)

    @flight.message
    def open_seats(ctx: Context[Seats], free: int) -> None:
        ctx.state.free = free

    @flight.action
    def hold(ctx: Context[Seats], _: None) -> Declined | None:
        if not ctx.state.free:
            return Declined("full")
        ctx.state.free -= 1
        ctx.state.held += 1
        return None

    @hold.confirmation
    def sell(ctx: Context[Seats], _: None) -> None:
        ctx.state.held -= 1
        ctx.state.sold += 1

    @hold.compensation
    def release(ctx: Context[Seats], _: None) -> None:
        ctx.state.held -= 1
        ctx.state.free += 1

    @app.saga("tcc/trip", steps=[hold])
    async def trip(saga: Saga, _: str) -> None:
        await saga.all(saga.step(hold, "out", None, name="out"), saga.step(hold, "back", None, name="back"))

    with Harness(app, **way) as h:
        for id, seats in zip(("out", "back"), free, strict=True):
            h.send(flight, id, seats)
        outcome = h.call(trip, "1", "")
        assert isinstance(outcome, Completed) is sold
        for id, seats in zip(("out", "back"), free, strict=True):
            state = h.state(flight, id)
            assert (state.free, state.held, state.sold) == ((0, 0, 1) if sold else (seats, 0, 0))


def test_a_saga_ends_when_all_is_confirmed(way: dict[str, Any]) -> None:
    app = App("tcc")
    flight = app.participant("tcc/flight", Books, attempts=1)

    @flight.message
    def trouble(ctx: Context[Books], what: str) -> None:
        ctx.state.trouble = what

    @flight.action
    def hold(ctx: Context[Books], _: None) -> None:
        ctx.state.entries.append("hold")

    @hold.confirmation
    def sell(ctx: Context[Books], _: None) -> None:
        if ctx.state.trouble:
            raise ValueError(ctx.state.trouble)
        ctx.state.entries.append("sell")

    @app.saga("tcc/trip", pivot=hold)
    async def trip(saga: Saga, _: str) -> None:
        await saga.step(hold, "x", None)

    with Harness(app, **way) as h:
        h.send(flight, "x", "raise")
        h.send(trip, "1", "")
        h.advance("1m")
        assert steps_of(h, trip, "1") == {}
        h.send(flight, "x", "")
        assert h.call(trip, "1", "") == Completed(None)
        assert h.state(flight, "x").entries == ["hold", "sell"]


# Effects outside.


@pytest.mark.parametrize("keyed", [True, False])
def test_a_lost_reply_doubles_the_charge_without_a_key_and_not_with_one(keyed: bool) -> None:
    """With `keyed` off it is the negative control."""
    app, booked = App("outside"), dict[str, int]()

    def bank(amount: int, key: str) -> None:
        """Books each key once. The first reply is lost."""
        is_first = not booked
        booked.setdefault(key, amount)
        if is_first:
            raise TimeoutError("no reply")

    account = app.participant("outside/account", Books)

    @account.action
    async def charge(ctx: Context[Books], amount: int, branch: Branch) -> None:
        await ctx.run("charge", bank, amount, branch.key if keyed else str(ctx.uuid()), retry=Retry(attempts=1))

    @app.saga("outside/order", pivot=charge)
    async def order(saga: Saga, amount: int) -> None:
        await saga.step(charge, "x", amount)

    with Harness(app) as h:
        assert h.call(order, "1", 30) == Completed(None)
    assert sum(booked.values()) == (30 if keyed else 60)


# Under faults.


@pytest.mark.parametrize("seed", range(6))
def test_crashes_change_nothing(seed: int) -> None:
    shop = Shop()
    checkout = checkout_of(shop, deadline="30m")

    with Harness(shop.app, parallelism=2, seed=seed, always_replay=bool(seed % 2)).faults(Crash(every=4)) as h:
        for number, (where, trouble) in enumerate(
            [("seat", "decline"), ("seat", ""), ("bank", "raise"), ("bank", "slow"), ("post", "slow")]
        ):
            h.send(getattr(shop, where), "x", trouble)
            h.advance("1s")
            h.call(checkout, str(number), "tea")
            h.advance("2h")
        assert h.crashes > 0
        h.assert_exactly_once()
