"""Faults in a harness: right applications come to the same results under all of them, wrong ones are found out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest

from penstock.errors import ConfigurationError, FunctionError
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.io import GeneratorIngress, MemoryEgress
from penstock.functions.state import Message, State
from penstock.testing import ClockJumps, Crash, FailingSink, Fault, Harness, Repeats, SlowSink

app = App("shop")
receipts = app.egress("shop/receipts", MemoryEgress())
eager = app.egress("shop/log", MemoryEgress(delivery="eager"))


class Order(Message):
    customer: str
    amount: int


class Remind(Message):
    pass


class Balance(State):
    spent: int = 0
    orders: int = 0
    reminders: int = 0


class Stock(State):
    sold: int = 0


@app.function("shop/customer")
def customer(ctx: Context[Balance], message: Order | Remind) -> int:
    match message:
        case Order(amount=amount):
            ctx.state.spent += amount
            ctx.state.orders += 1
            ctx.send(stock, f"shelf{amount % 3}", amount)
            ctx.emit(receipts, {"customer": ctx.id, "order": ctx.state.orders, "spent": ctx.state.spent})
            ctx.send_after("1m", customer, ctx.id, Remind())
        case Remind():
            ctx.state.reminders += 1
    return ctx.state.spent


@app.function("shop/stock")
async def stock(ctx: Context[Stock], amount: int) -> int:
    await asyncio.sleep(0.01)
    if amount == 13:
        raise ValueError("unlucky")
    ctx.state.sold += amount
    ctx.emit(eager, amount)
    return ctx.state.sold


app.ingress(GeneratorIngress(lambda start: iter(()), type=Order), to=customer, key="customer", name="orders")

FAULTS: dict[str, tuple[Fault, ...]] = {
    "crashes": (Crash(every=3),),
    "crash at every message": (Crash(every=1),),
    "slow sink": (SlowSink(), Crash(every=6)),
    "failing sink": (FailingSink(0.5), Crash(every=6)),
    "repeats": (Repeats(0.9), Crash(every=6)),
    "clock": (ClockJumps(0.5), Crash(every=6)),
    "all": (Crash(every=5), SlowSink(), FailingSink(), Repeats(), ClockJumps()),
}


def use(h: Harness) -> None:
    h.feed("orders", [Order(f"c{number % 4}", number) for number in range(12)])
    h.run_until_idle()
    h.send(customer, "c1", Order("c1", 13), idempotency_key="k")
    h.run_until_idle()
    assert h.call(customer, "c9", Order("c9", 5), idempotency_key="again") == 5
    h.advance("2m")
    h.run_until_idle()


@pytest.mark.parametrize("parallelism", [1, 4])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_faults_make_no_difference(faults: tuple[Fault, ...], parallelism: int) -> None:
    crashes = 0
    for seed in range(6):
        with Harness(app, seed=seed, parallelism=parallelism).faults(*faults) as h:
            use(h)
            crashes += h.crashes
            assert sum(balance.orders for balance in h.states(customer).values()) == 14
            assert sum(balance.reminders for balance in h.states(customer).values()) == 14
            assert len(h.egress(receipts)) == 14
            assert len(h.dead_letters()) == 1
            h.assert_exactly_once()
    assert crashes > 6


def test_the_same_seed_makes_the_same_trouble() -> None:
    def run(seed: int) -> tuple[int, list[object]]:
        with Harness(app, seed=seed, parallelism=4).faults(*FAULTS["all"]) as h:
            use(h)
            return h.crashes, h.egress(receipts)

    assert run(3) == run(3)
    assert len({run(seed)[0] for seed in range(8)}) > 1


def test_a_call_that_fails_does_so_with_and_without_faults() -> None:
    with Harness(app, seed=1).faults(Crash(every=2)) as h:
        with pytest.raises(FunctionError, match="unlucky"):
            h.call(stock, "shelf", 13)
        h.assert_exactly_once()


# Applications that are wrong.


def counted_outside() -> tuple[App, str]:
    wrong = App("wrong")
    runs: list[int] = []

    @wrong.function("w/count")
    def count(ctx: Context[Stock], amount: int) -> None:
        runs.append(amount)
        ctx.state.sold = len(runs)

    return wrong, r'The state of w/count "a" is Stock\(sold=\d+\), and without faults'


def drawn_by_chance() -> tuple[App, str]:
    wrong = App("wrong")
    rows = wrong.egress("w/rows", MemoryEgress())

    @wrong.function("w/count")
    def count(ctx: Context[None], amount: int) -> None:
        ctx.emit(rows, random.random())

    return wrong, r"Egress w/rows has 0\.\d+ never, and without faults once"


def taken_from_an_iterator() -> tuple[App, str]:
    wrong = App("wrong")
    tickets: Iterator[int] = iter(range(1_000))

    @wrong.function("w/count")
    def count(ctx: Context[None], amount: int) -> int:
        return next(tickets)

    return wrong, r"The call of w/count/a was answered \d+, and without faults \d+"


@pytest.mark.parametrize("make", [counted_outside, drawn_by_chance])
def test_what_does_not_live_in_the_state_is_found_out(make: Callable[[], tuple[App, str]]) -> None:
    wrong, explanation = make()
    with Harness(wrong, seed=7).faults(Crash(every=2)) as h:
        for amount in range(10):
            h.send("w/count", "a", amount)

        with pytest.raises(AssertionError, match=explanation) as caught:
            h.assert_exactly_once()
    assert "Seed 7" in str(caught.value)
    assert "Keep it in the state" in str(caught.value)


def test_an_answer_that_is_another_each_time_is_found_out() -> None:
    wrong, explanation = taken_from_an_iterator()
    with Harness(wrong, seed=7).faults(Crash(every=1)) as h:
        h.call("w/count", "a", 1)  # type: ignore[arg-type]

        with pytest.raises(AssertionError, match=explanation):
            h.assert_exactly_once()


def test_what_a_handler_does_outside_happens_at_each_run() -> None:
    """Nobody but the test itself knows that it should not."""
    mails: list[str] = []
    wrong = App("wrong")

    @wrong.function("w/mail")
    def mail(ctx: Context[None], message: str) -> None:
        mails.append(message)

    with Harness(wrong, seed=1).faults(Crash(every=2)) as h:
        for number in range(10):
            h.send(mail, "a", str(number))
        h.run_until_idle()

    assert len(mails) > len(set(mails)) == 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Crash(every=0), r"PEN0233 Crash\(every=0\)"),
        (lambda: SlowSink(1.0), r"PEN0233 SlowSink\(chance=1.0\)"),
        (lambda: FailingSink(-0.1), r"PEN0233 FailingSink\(chance=-0.1\)"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make: Callable[[], Fault], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()
