"""Handlers that await: calls, steps, sleeps, promises, deadlines, and gatherings of them, each the same however often
the handler is run again."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections import defaultdict
from itertools import count
from typing import Annotated, Any

import pytest

from penstock import App, CallTimeout, Context, Expire, Function, FunctionError, InvalidInput, Retry, State
from penstock.engine.invocation import Invocation
from penstock.errors import ConfigurationError
from penstock.functions.durable import Durable
from penstock.testing import Crash, Harness

WAYS = [
    {},
    {"parallelism": 4},
    {"always_replay": True},
    {"parallelism": 4, "always_replay": True},
    {"restart_every": 1},
    {"parallelism": 2, "restart_every": 3, "always_replay": True},
]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way) or "plain")
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


class Count(State):
    n: int = 0


class Notes(State):
    seen: list[str] = []  # noqa: RUF012  # A field.


def shop() -> tuple[App, Function[int, int]]:
    app = App("shop")

    @app.function("shop/cart")
    def cart(ctx: Context[Count], amount: int) -> int:
        ctx.state.n += amount
        return ctx.state.n

    return app, cart


def test_a_call_is_answered_and_each_segment_is_kept_once(way: dict[str, Any]) -> None:
    app, cart = shop()
    runs: list[str] = []

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        runs.append("run")
        ctx.state.seen.append("asked")
        ctx.send(cart, "sent", 1)
        first = await ctx.call(cart, "alice", amount)
        ctx.state.seen.append(f"first {first}")
        ctx.send(cart, "sent", 1)
        second = await ctx.call(cart, "alice", amount)
        ctx.state.seen.append(f"second {second}")
        return f"{first} {second}"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == "5 10"
        assert h.state(order, "o").seen == ["asked", "first 5", "second 10"]
        assert (h.state(cart, "alice").n, h.state(cart, "sent").n) == (10, 2)
        assert h.dead_letters() == []
    if way.get("always_replay"):
        assert len(runs) >= 3


def test_several_are_awaited_together(way: dict[str, Any]) -> None:
    app, cart = shop()

    async def twice(ctx: Context[Notes], id: str) -> int:
        await ctx.sleep("1s")
        await ctx.call(cart, id, 1)
        return await ctx.call(cart, id, 1)

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> list[int]:
        gathered = await asyncio.gather(ctx.call(cart, "a", amount), ctx.call(cart, "b", 2 * amount))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(twice(ctx, id)) for id in "cd"]
        return [*gathered, *(task.result() for task in tasks)]

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == [5, 10, 2, 2]
        assert [h.state(cart, id).n for id in "abcd"] == [5, 10, 2, 2]


def test_a_step_is_taken_once_and_knows_its_key(way: dict[str, Any]) -> None:
    app, _ = shop()
    keys: list[str] = []

    def charge(amount: int, *, idempotency_key: str) -> str:
        keys.append(idempotency_key)
        return f"paid {amount}"

    async def tell(text: str) -> str:
        await asyncio.sleep(0.1)
        return text.upper()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        ctx.state.seen.append(await ctx.run("charge", charge, amount))
        ctx.state.seen.append(await ctx.run("charge", charge, amount))
        ctx.state.seen.append(await ctx.run("tell", tell, "done"))
        return " ".join(ctx.state.seen)

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == "paid 5 paid 5 DONE"
    assert len(set(keys)) == 2


def test_a_step_that_fails_is_tried_again_and_then_raised(way: dict[str, Any]) -> None:
    app, _ = shop()

    def refuse() -> None:
        raise ValueError("no")

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            await ctx.run("refuse", refuse, retry=Retry(attempts=2, backoff="1s"))
        except FunctionError as error:
            return error.code + " " + error.message
        return "charged"

    with Harness(app, **way) as h:
        began = h.now
        told = h.call(order, "o", 5)
        assert told.startswith("PEN0271 Step test_a_step_that_fails_is_tried_again_and_then_raised.<locals>.refuse of ")
        assert "failed 2 times, the last time with ValueError: no" in told
        assert (h.now - began).total_seconds() >= 1


def test_sleeping_takes_its_time_and_nothing_else(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> float:
        before = ctx.now
        await ctx.sleep("1h30m")
        await ctx.call(cart, "alice", 1)
        return (ctx.now - before).total_seconds()

    with Harness(app, **way) as h:
        h.send(order, "o", 1)
        h.advance("1h29m")
        assert h.state(cart, "alice").n == 0
        h.advance("1m")
        assert h.state(cart, "alice").n == 1
        assert h.call(order, "o", 1) == 5400.0


def test_a_promise_is_kept_before_or_after_it_is_asked_for(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], name: str) -> str:
        ctx.state.seen.append(await ctx.promise(name, str))
        return ctx.state.seen[-1]

    @app.function("shop/clerk")
    def clerk(ctx: Context[None], name: str) -> None:
        ctx.resolve(order, "o", name, f"{name} by {ctx.id}")

    with Harness(app, **way) as h:
        h.send(order, "o", "late")
        h.advance("1s")
        h.send(clerk, "eve", "late")
        h.send(clerk, "adam", "early")
        h.advance("1s")
        assert h.call(order, "o", "early") == "early by adam"
        assert h.state(order, "o").seen == ["late by eve", "early by adam"]


def test_a_deadline_ends_what_is_awaited_inside(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            async with ctx.timeout("10s"):
                await ctx.promise("never")
        except TimeoutError:
            ctx.state.seen.append("timeout")
        async with ctx.timeout("10s") as limit:
            await ctx.call(cart, "alice", 1)
        ctx.state.seen.append(f"passed {limit.passed}")
        await ctx.sleep("20s")
        return " ".join(ctx.state.seen)

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == "timeout passed False"


def test_a_call_that_is_not_answered_in_time(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/slow")
    async def slow(ctx: Context[Count], _: int) -> int:
        await ctx.sleep("1m")
        ctx.state.n += 1
        return 1

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            await ctx.call(slow, "s", 1, timeout="10s")
        except CallTimeout as error:
            return f"{error.code} {isinstance(error, TimeoutError)}"
        return "answered"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "PEN0260 True"
        h.advance("2m")
        assert h.state(slow, "s").n == 1  # The answer came late, and nobody waited for it.
        assert h.call(order, "o", 1) == "PEN0260 True"


def test_who_waits_in_line_until_the_deadline_is_not_run(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/slow")
    async def slow(ctx: Context[Count], _: int) -> int:
        ctx.state.n += 1
        await ctx.sleep("1m")
        return 1

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            await ctx.call(slow, "s", 1, timeout="10s")
        except TimeoutError:
            return "late"
        return "answered"

    with Harness(app, **way) as h:
        h.send(slow, "s", 1)
        h.advance("1s")
        assert h.call(order, "o", 1) == "late"
        h.advance("5m")
        assert h.state(slow, "s").n == 1


def test_the_caller_of_a_dead_letter_is_told(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/broken")
    def broken(ctx: Context[Count], _: int) -> int:
        raise ValueError("broken")

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            await ctx.call(broken, "b", 1)
        except FunctionError as error:
            return f"{error.code} {error.message}"
        return "answered"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1).startswith("PEN0210 Handler raised ValueError: broken. It is dead letter ")
        assert len(h.dead_letters()) == 1


def test_a_cycle_of_calls_is_spelled_out(way: dict[str, Any]) -> None:
    app = App("cycle")

    @app.function("cycle/a")
    async def a(ctx: Context[None], depth: int) -> str:
        return await ctx.call(b, "2", depth)

    @app.function("cycle/b")
    async def b(ctx: Context[None], depth: int) -> str:
        try:
            return await ctx.call(a, "1", depth)
        except FunctionError as error:
            return f"{error.code} {error.message}"

    with Harness(app, **way) as h:
        told = h.call(a, "1", 0)
    assert told.startswith("PEN0273 cycle/b/2 calls cycle/a/1, which waits for this very call")
    assert "cycle/a/1 -> cycle/b/2 -> cycle/a/1" in told


def test_cancelling_a_call_runs_its_compensation(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/slow")
    async def slow(ctx: Context[Count], _: int) -> int:
        try:
            ctx.state.n += 1
            await ctx.sleep("1h")
        except asyncio.CancelledError:
            await ctx.call(cart, "refunds", 1)
            raise
        return 1

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        call = ctx.call(slow, "s", 1)
        await ctx.sleep("10s")
        ctx.cancel_call(call)
        try:
            await call
        except FunctionError as error:
            return error.code
        return "answered"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "PEN0272"
        assert (h.state(slow, "s").n, h.state(cart, "refunds").n) == (1, 1)
        assert h.dead_letters() == []


def test_a_failed_segment_is_tried_again_and_earlier_ones_are_not(way: dict[str, Any]) -> None:
    app, cart = shop()
    tries: list[int] = []

    @app.function("shop/order", attempts=3, backoff="1s")
    async def order(ctx: Context[Notes], amount: int) -> int:
        ctx.state.seen.append("asked")
        got = await ctx.call(cart, "alice", amount)
        tries.append(ctx.message.attempt)
        if ctx.message.attempt < 3:
            raise ValueError("not yet")
        ctx.state.seen.append("got")
        return got

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == 5
        assert h.state(order, "o").seen == ["asked", "got"]
        assert h.state(cart, "alice").n == 5
    assert {1, 2, 3} <= set(tries)


def test_others_wait_for_their_turn(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], name: str) -> str:
        ctx.state.seen.append(f"{name} in")
        await ctx.call(cart, "alice", 1)
        await ctx.sleep(1)
        ctx.state.seen.append(f"{name} out")
        return name

    with Harness(app, **way) as h:
        for name in "abc":
            h.send(order, "o", name)
        h.advance("10s")
        assert h.state(order, "o").seen == ["a in", "a out", "b in", "b out", "c in", "c out"]


def test_several_results_at_once_wake_once(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        first, second = ctx.call(cart, "alice", amount), ctx.call(cart, "alice", amount)
        return await first + await second

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == 15
        assert h.call(order, "o", 5) == 35


def test_the_time_after_a_raw_await_is_that_of_the_last_result(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        first, second = ctx.call(cart, "alice", amount), ctx.call(cart, "alice", amount)
        await first
        before_ms = ctx.now_ms
        await asyncio.sleep(1)
        await second
        ctx.state.seen.append(f"{ctx.now_ms - before_ms} ms")
        await ctx.sleep("1m")
        return ctx.state.seen[0]

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == "0 ms"


def test_what_a_cancelled_handler_does_last_is_kept(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/slow")
    async def slow(ctx: Context[Notes], _: int) -> int:
        try:
            await ctx.sleep("1h")
        finally:
            ctx.state.seen.append("undone")
            ctx.send(cart, "refunds", 1)
        return 1

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        call = ctx.call(slow, "s", 1)
        await ctx.sleep("10s")
        ctx.cancel_call(call)
        try:
            await call
        except FunctionError as error:
            return error.code
        return "answered"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "PEN0272"
        assert (h.state(slow, "s").seen, h.state(cart, "refunds").n) == (["undone"], 1)


def test_a_call_that_is_to_be_tried_again_can_be_cancelled(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/broken", attempts=3, backoff="20s")
    def broken(ctx: Context[Count], _: int) -> int:
        raise ValueError("broken")

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        call = ctx.call(broken, "b", 1)
        await ctx.sleep("10s")
        ctx.cancel_call(call)
        try:
            await call
        except FunctionError as error:
            return error.code
        return "answered"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "PEN0272"
        h.advance("10m")
        assert h.dead_letters() == []


# What is not the same when it is run again.


def test_code_that_goes_another_way_is_parked_and_says_so() -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        ctx.state.seen.append("asked")
        await ctx.call(cart, f"id-{random.random()}", amount)
        return await ctx.call(cart, "alice", amount)

    with Harness(app, always_replay=True) as h:
        h.send(order, "o", 5)
        h.send(order, "o", 6)
        h.advance("1h")
        assert h.state(order, "o").seen == ["asked"]
        assert h.state(cart, "alice").n == 0
        assert h.dead_letters() == []


def test_numbers_and_ids_of_the_context_are_the_same_again() -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        drawn = f"{ctx.random.random()} {ctx.uuid()}"
        await ctx.call(cart, drawn, amount)
        await ctx.sleep(1)
        return f"{drawn} {ctx.uuid()} {ctx.now_ms}"

    with Harness(app) as h:
        plain = h.call(order, "o", 5, idempotency_key="k")
    with Harness(app, always_replay=True) as h:
        assert h.call(order, "o", 5, idempotency_key="k") == plain


# What can't be meant.


def test_a_plain_handler_can_await_nothing() -> None:
    app, cart = shop()

    @app.function("shop/order")
    def order(ctx: Context[Notes], amount: int) -> None:
        ctx.call(cart, "alice", amount)

    with Harness(app) as h:
        h.send(order, "o", 1)
        h.run_until_idle()
        (letter,) = h.dead_letters()
    assert letter.code == "PEN0264"
    with pytest.raises(ConfigurationError, match="PEN0264"):
        order.test(1, id="o")


def test_an_answer_of_another_type_is_refused() -> None:
    app = App("types")

    @app.function("types/liar")
    def liar(ctx: Context[None], _: int) -> int:
        ctx.reply("text")
        return 1

    @app.function("types/asker")
    async def asker(ctx: Context[None], _: int) -> str:
        try:
            await ctx.call(liar, "l", 1)
        except InvalidInput as error:
            return str(error)
        return "fine"

    with Harness(app) as h:
        assert h.call(asker, "a", 1) == (
            "PEN0267 The answer of types/liar/l is not of the type that is declared, int: Expected `int`, got `str`. "
            "Correct the annotation, or what it answers."
        )


def test_a_clock_of_asyncio_around_a_durable_await_is_refused() -> None:
    app, _ = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        async with asyncio.timeout(5):
            await ctx.promise("never")

    with Harness(app) as h:
        h.send(order, "o", 1)
        h.run_until_idle()
        (letter,) = h.dead_letters()
    assert letter.code == "PEN0263"


def test_a_raw_await_beside_a_durable_one_is_refused() -> None:
    app, _ = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        await asyncio.wait(
            [asyncio.ensure_future(ctx.promise("never")), asyncio.ensure_future(asyncio.sleep(5))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await ctx.sleep(1)

    with Harness(app) as h:
        h.send(order, "o", 1)
        h.run_until_idle()
        (letter,) = h.dead_letters()
    assert letter.code == "PEN0262"


def test_a_raw_await_alone_is_allowed(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        await asyncio.sleep(1)
        first = await ctx.call(cart, "alice", amount)
        async with asyncio.timeout(5):
            await asyncio.sleep(1)
        return first + await ctx.call(cart, "alice", amount)

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == 15
        assert h.dead_letters() == []


def test_a_raw_await_is_warned_of_once_for_each_function(caplog: pytest.LogCaptureFixture) -> None:
    app, cart = shop()

    async def slowly(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @app.function("shop/direct")
    async def direct(ctx: Context[None], amount: int) -> None:
        await ctx.call(cart, "alice", amount)
        await asyncio.sleep(1)

    @app.function("shop/inside")
    async def inside(ctx: Context[None], amount: int) -> None:
        await asyncio.gather(slowly(1), slowly(2))

    @app.function("shop/durable")
    async def durable(ctx: Context[None], amount: int) -> None:
        asked = ctx.call(cart, "alice", amount)
        await ctx.sleep(1)
        await asyncio.gather(asked, ctx.sleep(1))
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait([asyncio.ensure_future(ctx.sleep(1))]))

    with Harness(app) as h:
        for function in (direct, inside, durable):
            for number in range(3):
                h.send(function, f"{number}", 1)
        h.advance("1m")
    warned = [record.getMessage() for record in caplog.records if "PEN0276" in record.getMessage()]
    assert sorted(text.split()[1] for text in warned) == ["shop/direct/0", "shop/inside/0"]
    assert "make it a step: await ctx.run(...)" in warned[0]


def test_who_ends_by_the_first_of_two_results_of_one_turn_is_not_run_for_the_second(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        first: Durable[str] = ctx.promise("first", str)
        second: Durable[str] = ctx.promise("second", str)
        ctx.state.seen += [await first, await second]

    @app.function("shop/clerk")
    def clerk(ctx: Context[None], id: str) -> None:
        ctx.resolve(order, id, "first", "1")
        ctx.resolve(order, id, "second", "2")

    with Harness(app, **way) as h:
        h.send(order, "o", 1)
        h.advance("1s")
        h.send(clerk, "eve", "o")
        h.advance("1s")
        assert h.state(order, "o").seen == ["1", "2"]
        assert h.dead_letters() == []


@pytest.mark.parametrize("seed", range(10))
def test_no_step_is_taken_for_what_a_crash_takes_back(seed: int) -> None:
    app, _ = shop()
    runs = count(1)
    told: defaultdict[str, set[int]] = defaultdict(set)

    def tell(id: str, run: int) -> None:
        told[id].add(run)

    @app.function("shop/order")
    async def order(ctx: Context[Count], run: int) -> None:
        await ctx.run("tell", tell, ctx.id, run)
        ctx.state.n = run

    @app.function("shop/asker")
    def asker(ctx: Context[None], id: str) -> None:
        ctx.send(order, id, next(runs))  # Another number whenever it runs, as if it had read a clock.

    with Harness(app, seed=seed, parallelism=2).faults(Crash(every=3)) as h:
        for number in range(20):
            h.send(asker, "asker", f"order-{number}")
        h.run_until_idle()
        assert h.crashes
        assert {id: {state.n} for id, state in h.states(order).items()} == told


def test_several_answers_that_come_at_once_wake_a_handler_once(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        begun = [ctx.call(cart, f"{ctx.id}-{number}", amount) for number in range(5)]
        last = await begun[-1]
        return last + sum([await each for each in begun])

    with Harness(app, **way) as h:
        for number in range(20):
            h.send(order, f"o{number % 3}", 1)
        assert h.call(order, "o", 1) == 6
        assert sum(state.n for state in h.states(cart).values()) == 105


def test_what_finally_blocks_do_when_a_handler_is_put_aside_counts_for_nothing(way: dict[str, Any]) -> None:
    app, cart = shop()
    closed: list[str] = []

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        try:
            await ctx.promise("paid")
        finally:
            closed.append("began")
            ctx.state.seen.append("closed")
            ctx.send(cart, "alice", 1)
            await ctx.call(cart, "alice", 1)
            closed.append("ended")

    with Harness(app, **way) as h:
        h.send(order, "o", 1)
        h.advance("1s")
        h.send(order, "other", 1)  # A turn, in which who has waited for long is put aside.
        h.advance("5s")
        h.restart()
        assert h.state(order, "o").seen == []
        assert h.state(cart, "alice").n == 0
    assert "began" in closed
    assert "ended" not in closed


def test_undoing_by_a_message_knows_no_deadline_and_by_a_call_it_does(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        await ctx.sleep("10s")
        ctx.send(cart, "by send", 1)
        try:
            await ctx.call(cart, "by call", 1)
        except CallTimeout:
            ctx.state.seen.append("late")

    @app.function("shop/customer")
    async def customer(ctx: Context[None], _: int) -> str:
        try:
            await ctx.call(order, "o", 1, timeout="5s")
        except CallTimeout:
            return "gave up"
        return "waited"

    with Harness(app, **way) as h:
        assert h.call(customer, "c", 1) == "gave up"
        h.advance("1m")
        assert h.state(order, "o").seen == ["late"]
        assert (h.state(cart, "by send").n, h.state(cart, "by call").n) == (1, 0)


# Ways of going wrong that asyncio and users' code have of their own.


def test_what_a_handler_raises_when_it_is_put_aside_concerns_nobody(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        entered = False
        try:
            got = await ctx.call(cart, "alice", amount)
            entered = True
        finally:
            if not entered:
                raise KeyError("its clean-up counts on an answer")
        return got

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == 5
        assert h.dead_letters() == []


def test_a_gather_of_results_is_cancelled_with_its_task(way: dict[str, Any]) -> None:
    app, _ = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> str:
        try:
            async with ctx.timeout("10s"):
                await asyncio.gather(ctx.sleep("1h"), ctx.promise("never"))
        except TimeoutError:
            await ctx.sleep("1s")
            return "late"
        return "in time"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "late"


def test_the_tasks_of_a_group_are_cancelled_in_the_same_order_again(way: dict[str, Any]) -> None:
    app, cart = shop()

    async def piece(ctx: Context[Notes], number: int) -> None:
        try:
            await ctx.sleep("1h")
        finally:
            await ctx.call(cart, f"undone-{number}", 1)

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        try:
            async with ctx.timeout("10s"), asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(piece(ctx, number))
        except TimeoutError:
            await ctx.sleep("10s")
        asked = {asyncio.ensure_future(ctx.call(cart, f"more-{number}", number)) for number in range(20)}
        done, _ = await asyncio.wait(asked)
        await ctx.call(cart, "-".join(str(each.result()) for each in done), 1)
        return "undone"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "undone"
        assert all(h.state(cart, f"undone-{number}").n == 1 for number in range(20))


def test_two_deadlines_at_one_time_are_the_same_again(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> int:
        try:
            async with ctx.timeout("5s"), ctx.timeout("5s"):
                await asyncio.gather(ctx.sleep("1h"), ctx.sleep("2h"))
        except TimeoutError:
            await ctx.sleep("1h")
        return await ctx.call(cart, "alice", 1)

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == 1


def test_an_answer_given_before_waiting_is_the_answer(way: dict[str, Any]) -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> str:
        ctx.reply("accepted")
        await ctx.call(cart, "alice", amount)
        if amount == 2:
            ctx.reply("done")
        return "done"

    with Harness(app, **way) as h:
        assert h.call(order, "o", 1) == "accepted"
        with pytest.raises(FunctionError, match="PEN0113"):
            h.call(order, "o", 2)


def test_a_step_in_a_lambda_is_awaited_and_none_ends_the_application(way: dict[str, Any]) -> None:
    app, _ = shop()

    async def charge(amount: int) -> int:
        return amount + 1

    def leave() -> None:
        raise SystemExit(3)

    async def cancel() -> None:
        raise asyncio.CancelledError

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> list[str]:
        told = [str(await ctx.run("charge", lambda: charge(amount)))]
        for step in (leave, cancel):
            try:
                await ctx.run("ends", step, retry=Retry(attempts=2))
            except FunctionError as error:
                told.append(error.code)
        try:
            ctx.run("charge", charge, 1, retry=Retry(backoff="soon"))
        except ConfigurationError as error:
            told.append(error.code)
        return told

    with Harness(app, **way) as h:
        assert h.call(order, "o", 5) == ["6", "PEN0271", "PEN0271", "PEN0110"]


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_a_handler_that_is_back_is_not_taken_for_one_at_rest(seed: int) -> None:
    """It goes from several results to the last of them alone, while others keep its task from hearing of that."""
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], count: int) -> None:
        asked = [ctx.call(cart, f"{ctx.id}-{number}", number) for number in range(count)]
        while len(asked) > 1:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]  # As futures can.
            asked = [each for each in asked if not each.done()]
        for each in asked:
            await each
        await ctx.call(cart, ctx.id, 1)

    with Harness(app, seed=seed, parallelism=2) as h:
        for number in range(20):
            h.send(order, f"b-{number}", 3)
        h.advance("1m")
        assert [h.state(cart, f"b-{number}").n for number in range(20)] == [1] * 20


@pytest.mark.parametrize("seed", range(4))
def test_a_handler_with_many_tasks_goes_the_same_way_after_every_crash(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    app, cart = shop()

    async def piece(ctx: Context[Notes], number: int) -> None:
        try:
            async with ctx.timeout(3 + number % 3):
                await ctx.call(cart, f"{number % 3}", 1)
                await ctx.sleep(number)
                await ctx.run("step", int)
        except TimeoutError:
            ctx.state.seen.append(f"late {number}")
            await ctx.call(cart, "late", 1)

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(piece(ctx, number))
            await ctx.sleep(4)

    with Harness(app, seed=seed, parallelism=2).faults(Crash(every=4)) as h:
        for number in range(6):
            h.send(order, f"o{number}", number)
        h.advance("1m")
        assert h.crashes
        assert h.state(cart, "late").n == sum(len(state.seen) for state in h.states(order).values())
    assert "PEN0261" not in caplog.text


def test_a_handler_that_catches_everything_for_ever_can_be_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    app, cart = shop()
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # Python says that it ignores being closed.

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        while True:
            try:
                await ctx.sleep(2)
                return await ctx.call(cart, "alice", amount)
            except BaseException:  # noqa: BLE001  # What nobody should write.
                pass

    with Harness(app, always_replay=True) as h:
        assert h.call(order, "o", 5) == 5
    gc.collect()


def test_a_handler_that_is_over_or_put_aside_leaves_nothing_to_the_collector() -> None:
    app, cart = shop()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], amount: int) -> int:
        await asyncio.sleep(0)
        async with ctx.timeout("1d"):
            got = await asyncio.gather(ctx.call(cart, "alice", amount), ctx.call(cart, "alice", amount))
        if amount < 0:
            await ctx.promise("never")
        return sum(got)

    with Harness(app, always_replay=True) as h:
        gc.collect()
        of_others = invocations()  # What tests before this one have left in tracebacks, say.
        gc.disable()
        try:
            h.call(order, "o", 5)
            h.send(order, "p", -5)
            h.advance("2s")
            h.send(cart, "alice", 1)  # A turn, in which who has slept for long is forgotten.
            h.run_until_idle()
            assert len(invocations()) == len(of_others)
        finally:
            gc.enable()


def invocations() -> list[Invocation]:
    """All that are in memory."""
    return [found for found in gc.get_objects() if isinstance(found, Invocation)]


def test_what_expires_while_a_handler_waits_is_gone_in_every_run(way: dict[str, Any]) -> None:
    app, cart = shop()

    class Offer(State):
        code: Annotated[str, Expire(after_write="1h")] = ""
        seen: list[str] = []  # noqa: RUF012  # A field.

    @app.function("shop/offer")
    async def offer(ctx: Context[Offer], code: str) -> list[str]:
        ctx.state.code = code
        for _ in range(4):
            await ctx.sleep("25m")
            ctx.state.seen.append(ctx.state.code)
            await ctx.call(cart, "c", 1)
        return ctx.state.seen

    with Harness(app, **way) as h:
        assert h.call(offer, "o", "half") == ["half", "half", "half", ""]
        assert h.dead_letters() == []


@pytest.mark.parametrize("recovers", [False, True])
def test_a_call_that_failed_behind_an_await_is_tried_once_more_when_it_is_cancelled(
    way: dict[str, Any], recovers: bool
) -> None:
    app, cart = shop()
    broken_for: list[str] = []

    @app.function("shop/broken", attempts=100)
    async def broken(ctx: Context[Count], _: int) -> int:
        await ctx.call(cart, "goods", 1)
        if broken_for:
            raise ValueError("broken")
        try:
            await ctx.sleep("1h")
        except asyncio.CancelledError:
            await ctx.call(cart, "goods", -1)
            raise
        return 1

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> str:
        call = ctx.call(broken, "b", 1)
        broken_for.append("9 s")
        await ctx.sleep("9s")
        if recovers:
            broken_for.clear()
        await ctx.sleep("1s")
        ctx.cancel_call(call)
        try:
            await call
        except FunctionError as error:
            return error.code
        return "answered"

    with Harness(app, **way) as h:
        began = h.now
        assert h.call(order, "o", 1) == ("PEN0272" if recovers else "PEN0210")
        assert (h.now - began).total_seconds() == 10
        assert h.state(cart, "goods").n == (0 if recovers else 1)
        assert len(h.dead_letters()) == (0 if recovers else 1)


def test_what_can_not_be_meant_is_refused_where_it_is_written() -> None:
    app, cart = shop()

    async def charge(amount: int) -> object:
        return object()

    @app.function("shop/order")
    async def order(ctx: Context[Notes], _: int) -> list[str]:
        told = []
        for ask in (
            lambda: ctx.promise(""),
            lambda: ctx.run("", charge, 1),
            lambda: ctx.resolve(cart, "c", ""),
            lambda: ctx.run("charge", 5),  # type: ignore[arg-type]
            lambda: ctx.run("charge", charge(1)),  # type: ignore[arg-type]
            lambda: ctx.resolve(cart, "c", "paid", object()),
        ):
            try:
                ask()
            except (InvalidInput, ConfigurationError) as error:
                told.append(str(error))
        try:
            await ctx.run("charge", charge, 1)
        except FunctionError as error:
            told.append(f"{error.code} {error.message}")
        return told

    with Harness(app) as h:
        told = h.call(order, "o", 1)
    assert [text.split()[0] for text in told] == [
        "PEN0277",
        "PEN0277",
        "PEN0277",
        "PEN0265",
        "PEN0265",
        "PEN0208",
        "PEN0208",
    ]
    assert "is 5, which can't be called. Give the function, and its arguments behind it" in told[3]
    assert told[5].startswith("PEN0208 The value for promise paid of shop/order/o is of type object, which")
    assert told[6].startswith("PEN0208 The result of step ")
