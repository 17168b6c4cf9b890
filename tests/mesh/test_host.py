"""One request at one host: turn, run, commit, answer; and all that it refuses, with nothing changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import CallTimeout, CallUnavailable, FunctionError, InvalidInput, Refused, Unavailable
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import Log, State, Table
from penstock.ids import Address
from penstock.mesh.host import CONFLICTS_MAX
from penstock.mesh.policies.settings import AccessRule, PolicySet, TextMatch
from penstock.mesh.store import Commit
from penstock.mesh.wire import KIND, NOTHING, Kind, Reply, error_of, failure
from tests.mesh.hosting import Bench, bench_of, hosted, in_ms

app = App("host")


class Count(State):
    n: int = 0


class Items(State):
    by: Table[str, int] = Table()
    log: Log[str] = Log()


class Flaky(Exception):
    pass


failures: dict[str, int] = {}
seen: list[tuple[str, int]] = []


@app.function("t/count", attempts=1)
def count(ctx: Context[Count], by: int) -> int:
    ctx.state.n += by
    return ctx.state.n


@app.function("t/items")
def items(ctx: Context[Items], name: str) -> tuple[int, list[str]]:
    if name:
        ctx.state.by[name] = ctx.state.by.get(name, 0) + 1
        ctx.state.log.append(name)
    return len(list(ctx.state.by.items())), list(ctx.state.log)


@app.function("t/echo")
def echo(ctx: Context[None], message: Any) -> Any:
    return message


@app.function("t/flaky", attempts=3, backoff="1ms")
def flaky(ctx: Context[Count], times: int) -> int:
    ctx.state.n += 1
    failures[ctx.id] = failures.get(ctx.id, 0) + 1
    if failures[ctx.id] <= times:
        raise Flaky(f"try {ctx.message.attempt}")
    return ctx.state.n


@app.function("t/slow", attempts=1)
async def slow(ctx: Context[Count], ms: int) -> int:
    ctx.state.n += 1
    await ctx.sleep(ms / 1000)
    return ctx.state.n


@app.function("t/order")
async def order(ctx: Context[Count], number: int) -> None:
    seen.append((ctx.id, number))
    await ctx.sleep(0.001)
    seen.append((ctx.id, number))


@app.function("t/sender", attempts=1)
def sender(ctx: Context[Count], fail: bool) -> str:
    ctx.state.n += 1
    ctx.send(count, "a", 1)
    ctx.send(count, "a", 2)
    ctx.send_after("1h", count, "b", 3, token="late")
    ctx.send_after("1h", count, "b", 4, token="never")
    ctx.cancel("never")
    if fail:
        raise Flaky("after all that")
    ctx.reply("replied")
    return "returned"


@app.function("t/asks", attempts=1)
async def asks(ctx: Context[None], id: str) -> int | str:
    try:
        return await ctx.call(count, id, 1)
    except FunctionError as error:
        return f"{type(error).__name__} {error.code}"


@app.function("t/both", attempts=1)
async def both(ctx: Context[Count], fail: bool) -> tuple[int, ...]:
    answers = await asyncio.gather(ctx.call(count, "x", 1), ctx.call(count, "x", 10), ctx.call(count, "y", 100))
    ctx.state.n += 1
    if fail:
        raise Flaky("after the calls")
    return answers


@app.function("t/loop", attempts=1)
async def loop(ctx: Context[Count], depth: int) -> str:
    try:
        return await ctx.call("t/loop", ctx.id, depth)
    except FunctionError as error:
        return error.message


@app.function("t/impatient", attempts=1)
async def impatient(ctx: Context[None], ms: int) -> str:
    try:
        await ctx.call(slow, ctx.id, ms, timeout="100ms")
    except CallTimeout as error:
        return error.code
    return "answered"


@app.function("t/limited", attempts=1)
async def limited(ctx: Context[None], ms: int) -> str:
    try:
        async with ctx.timeout("100ms"):
            await ctx.sleep(ms / 1000)
    except TimeoutError:
        return "late"
    return "in time"


@app.function("t/promised", attempts=1)
async def promised(ctx: Context[Count], name: str) -> int:
    ctx.state.n += await ctx.promise(name, int)
    return ctx.state.n


@app.function("t/keeper")
def keeper(ctx: Context[None], value: int) -> None:
    ctx.resolve(promised, ctx.id, "approved", value)


keys: list[str] = []


def charge(amount: int, idempotency_key: str) -> int:
    keys.append(idempotency_key)
    return amount


@app.function("t/steps", attempts=1)
async def steps(ctx: Context[Count], fail: bool) -> int:
    amount: int = await ctx.run("charge", charge, 5)
    if fail:
        raise Flaky("after the step")
    ctx.state.n += amount
    return ctx.state.n


# What is done.


@hosted(app)
async def test_state_is_kept_from_one_request_to_the_next(bench: Bench) -> None:
    assert [await bench.value("t/count", "a", by) for by in (1, 2, 3)] == [1, 3, 6]
    assert await bench.value("t/count", "b", 1) == 1


@hosted(app)
async def test_tables_and_logs_are_kept_with_it(bench: Bench) -> None:
    for name in ("tea", "milk", "tea"):
        await bench.ask("t/items", "a", name)

    assert await bench.value("t/items", "a", "") == [2, ["tea", "milk", "tea"]]


@hosted(app)
async def test_what_changes_nothing_and_asks_for_nothing_is_not_written(bench: Bench) -> None:
    await bench.value("t/count", "a", 1)
    version = await bench.version("t/count", "a")

    assert await bench.value("t/count", "a", 0, key="k") == 1
    assert await bench.version("t/count", "a") == version
    assert (await bench.store.load("t/count", "a", "k")).answer is None


@hosted(app)
async def test_a_key_has_its_effect_once_and_the_same_answer(bench: Bench) -> None:
    assert [await bench.value("t/count", "a", 5, key="k") for _ in range(3)] == [5, 5, 5]
    assert await bench.value("t/count", "a", 5, key="other") == 10


@hosted(app)
async def test_one_address_takes_one_turn_at_a_time_in_the_order_of_arrival(bench: Bench) -> None:
    seen.clear()

    await asyncio.gather(*(bench.ask("t/order", "turns", number) for number in range(4)))

    assert seen == [("turns", number) for number in range(4) for _ in range(2)]


def test_two_hosts_that_take_turns_at_one_address_lose_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        one, other = await bench_of(app, tmp_path), await bench_of(app, tmp_path)

        await asyncio.gather(*(bench.ask("t/slow", "a", 0) for bench in (one, other) for _ in range(5)))

        assert await one.value("t/slow", "a", 0) == 11
        await one.store.close()
        await other.store.close()

    asyncio.run(run())


@hosted(app)
async def test_who_is_outrun_again_and_again_is_told_409(bench: Bench) -> None:
    async def outrun(commit: Commit) -> Any:
        stale = await bench.store.load("t/count", "a")
        await original(
            Commit(bench.session, "t/count", "a", version=stale.version, value=msgspec.msgpack.encode({"n": 1}))
        )
        outrun_times.append(1)
        return await original(commit)

    outrun_times: list[int] = []
    original = bench.store.commit
    bench.store.commit = outrun  # type: ignore[method-assign]

    status, error = await bench.error("t/count", "a", 1)

    assert (status, error.code) == (409, "PEN0822")
    assert isinstance(error, Refused)
    assert len(outrun_times) == CONFLICTS_MAX + 1


# What a handler asks for.


@hosted(app)
async def test_messages_are_kept_with_the_state_and_the_reply_is_the_answer(bench: Bench) -> None:
    assert await bench.value("t/sender", "s", False, key="k") == "replied"

    assert [(kept.outgoing.target, kept.outgoing.id, kept.outgoing.payload) for kept in bench.kept] == [
        ("t/count", "a", b"\x01"),
        ("t/count", "a", b"\x02"),
    ]
    far = await bench.store.due(bench.session, 1 << 60, 10)
    assert [kept.outgoing.token for kept in far if kept.outgoing.due_ms] == ["late"]


@hosted(app)
async def test_a_handler_that_raises_leaves_nothing_behind(bench: Bench) -> None:
    status, error = await bench.error("t/sender", "s", True, key="k")

    assert (status, error.code, error.message) == (422, "PEN0210", "Handler raised Flaky: after all that")
    assert bench.kept == []
    assert await bench.store.due(bench.session, 1 << 60, 10) == []
    assert await bench.version("t/sender", "s") == 0


@hosted(app)
async def test_a_handler_is_tried_as_often_as_its_options_say(bench: Bench) -> None:
    assert await bench.value("t/flaky", "twice", 2) == 1
    status, error = await bench.error("t/flaky", "always", 100)

    assert (status, error.message, failures["always"]) == (422, "Handler raised Flaky: try 3", 3)


@hosted(app)
async def test_what_is_asked_goes_under_keys_that_are_the_same_when_the_handler_is_run_again(
    bench: Bench,
) -> None:
    status, _ = await bench.error("t/both", "b", True, key="k")
    first = [(str(request.address), request.key) for request in bench.called]
    assert status == 422

    bench.called.clear()
    assert (await bench.error("t/both", "b", True, key="k"))[0] == 422

    assert [(str(request.address), request.key) for request in bench.called] == first
    assert len({key for _, key in first}) == 3
    assert await bench.value("t/count", "x", 0) == 11, "called twice, done once"


@hosted(app)
async def test_a_call_carries_the_deadline_and_who_waits(bench: Bench) -> None:
    deadline_s = in_ms(5_000)

    assert (
        await bench.value("t/asks", "q", "a", deadline_s=deadline_s, headers={"traceparent": "00-1", "x-own": "1"}) == 1
    )

    (asked,) = bench.called
    assert asked.deadline_s == deadline_s
    assert asked.caller == Address("t/asks", "q")
    assert asked.chain == (Address("t/asks", "q"),)
    assert asked.headers == {"traceparent": "00-1"}


@hosted(app)
async def test_a_call_that_could_not_be_carried_out_is_a_function_error_that_may_be_tried_again(bench: Bench) -> None:
    async def unavailable(request: object) -> Reply:
        return failure(503, "PEN0841", "No endpoint serves t/count.")

    bench.call = unavailable  # type: ignore[method-assign]

    assert await bench.value("t/asks", "q", "a") == f"{CallUnavailable.__name__} PEN0841"


@hosted(app)
async def test_a_handler_that_does_not_catch_that_is_not_to_blame(bench: Bench) -> None:
    async def unavailable(request: object) -> Reply:
        return failure(503, "PEN0841", "No endpoint serves t/count.")

    bench.call = unavailable  # type: ignore[method-assign]
    status, error = await bench.error("t/both", "b", False)

    assert (status, error.code) == (503, "PEN0841")
    assert isinstance(error, Unavailable)


@hosted(app)
async def test_a_cycle_of_calls_is_spelled_out(bench: Bench) -> None:
    assert "t/loop/l -> t/loop/l" in await bench.value("t/loop", "l", 1)


@hosted(app)
async def test_a_call_with_a_timeout_ends_by_it(bench: Bench) -> None:
    assert await bench.value("t/impatient", "i", 10_000) == "PEN0260"
    assert await bench.value("t/impatient", "j", 0) == "answered"


@hosted(app)
async def test_a_block_with_a_timeout_ends_by_it(bench: Bench) -> None:
    assert [await bench.value("t/limited", "l", ms) for ms in (0, 10_000)] == ["in time", "late"]


@hosted(app)
async def test_a_step_has_the_same_key_whenever_its_handler_is_run_again(bench: Bench) -> None:
    keys.clear()

    assert (await bench.error("t/steps", "s", True, key="k"))[0] == 422
    assert await bench.value("t/steps", "s", False, key="k") == 5
    assert await bench.value("t/steps", "s", False, key="k") == 5
    assert await bench.value("t/steps", "s", False, key="other") == 10

    assert keys[0] == keys[1]
    assert len(keys) == 3, "the answer is kept, so the third request runs nothing"
    assert keys[2] != keys[0]


@hosted(app)
async def test_a_promise_wakes_who_waits_for_it_and_is_taken_once(bench: Bench) -> None:
    waiting = asyncio.ensure_future(bench.value("t/promised", "p", "approved"))
    await asyncio.sleep(0)

    await bench.ask("t/promised", "p", 3, kind=Kind.RESOLVE, promise="approved")

    assert await waiting == 3
    assert await bench.store.resolution(Address("t/promised", "p"), "approved") is None


def test_a_promise_that_another_host_has_taken_for_the_same_request_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def run() -> None:
        benches = [await bench_of(app, tmp_path) for _ in range(2)]
        waiting = [asyncio.ensure_future(bench.value("t/promised", "p", "approved", key="k")) for bench in benches]
        await asyncio.sleep(0.05)

        await benches[0].ask("t/promised", "p", 3, kind=Kind.RESOLVE, promise="approved")

        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiting) == [3, 3]
        for bench in benches:
            await bench.store.close()

    asyncio.run(run())


@hosted(app)
async def test_a_promise_may_be_kept_before_anybody_waits_and_through_another_handler(bench: Bench) -> None:
    await bench.ask("t/keeper", "p", 4)
    (kept,) = bench.kept

    assert kept.outgoing.headers[KIND] == Kind.RESOLVE.value
    await bench.host.handle(
        bench.request("t/promised", "p", kind=Kind.RESOLVE, promise="approved")._replace(payload=kept.outgoing.payload)
    )
    assert await bench.value("t/promised", "p", "approved") == 4


@hosted(app)
async def test_a_message_that_is_sent_is_kept_once_under_its_key(bench: Bench) -> None:
    replies = [await bench.ask("t/count", "a", 7, kind=Kind.SEND, key="k") for _ in range(2)]

    assert replies == [Reply(200, NOTHING)] * 2
    (kept,) = bench.kept
    assert (kept.outgoing.target, kept.outgoing.id, kept.outgoing.payload, kept.outgoing.key) == (
        "t/count",
        "a",
        b"\x07",
        "k",
    )


@hosted(app)
async def test_what_a_delivered_message_returns_need_not_be_an_answer(bench: Bench) -> None:
    assert await bench.ask("t/count", "a", 1, kind=Kind.DELIVER) == Reply(200, NOTHING)
    assert await bench.value("t/count", "a", 0) == 1


@hosted(app)
async def test_a_shadow_runs_and_leaves_nothing_behind(bench: Bench) -> None:
    assert await bench.value("t/count", "a", 5, shadow=True) == 5
    assert await bench.value("t/sender", "s", False, shadow=True) == "replied"

    assert await bench.ask("t/count", "a", 5, kind=Kind.SEND, shadow=True) == Reply(200, NOTHING)
    assert await bench.version("t/count", "a") == 0
    assert bench.kept == []
    status, error = await bench.error("t/steps", "s", False, shadow=True)
    assert (status, error.code) == (422, "PEN0803")


# What is refused.


@hosted(app)
async def test_an_unknown_function_is_named_with_those_there_are(bench: Bench) -> None:
    status, error = await bench.error("t/missing", "a")

    assert (status, error.code) == (404, "PEN0105")
    assert isinstance(error, InvalidInput)
    assert "t/count" in error.message


@hosted(app, only=frozenset({"t/echo"}))
async def test_a_host_of_some_functions_refuses_the_others_so_that_another_is_asked(bench: Bench) -> None:
    reply = await bench.ask("t/count", "a", 1)

    assert (reply.status, reply.refused, error_of(reply, "t/count/a").code) == (503, True, "PEN0805")
    assert await bench.value("t/echo", "a", "hello") == "hello"


@hosted(
    app,
    policies=PolicySet(
        access=(
            AccessRule(
                TextMatch(exact="t/count"), sources=(TextMatch(exact="t/asks"),), operations=(TextMatch(exact="int"),)
            ),
        )
    ),
)
async def test_a_caller_that_is_denied_changes_nothing(bench: Bench) -> None:
    reply = await bench.ask("t/count", "a", 1)

    assert (reply.status, reply.refused, error_of(reply, "t/count/a").code) == (403, True, "PEN0846")
    assert await bench.version("t/count", "a") == 0
    assert await bench.value("t/asks", "q", "a") == 1, "this one is named"
    assert await bench.value("t/echo", "a", 1) == 1, "about this one nothing is said"


@hosted(app)
async def test_an_expired_request_is_not_begun_and_not_done_later(bench: Bench) -> None:
    status, error = await bench.error("t/count", "a", 1, deadline_s=in_ms(-1))

    assert (status, error.code) == (504, "PEN0802")
    await asyncio.sleep(0.01)
    assert await bench.version("t/count", "a") == 0


@hosted(app)
async def test_one_whose_time_is_over_while_it_runs_changes_nothing(bench: Bench) -> None:
    status, error = await bench.error("t/slow", "a", 10_000, deadline_s=in_ms(10))

    assert (status, error.code) == (504, "PEN0802")
    assert isinstance(error, CallTimeout)
    assert await bench.value("t/slow", "a", 0) == 1


@hosted(app)
async def test_one_whose_time_is_over_while_it_waits_for_its_turn_is_never_run(bench: Bench) -> None:
    first = asyncio.ensure_future(bench.value("t/slow", "a", 30))
    await asyncio.sleep(0)

    status, _ = await bench.error("t/slow", "a", 0, deadline_s=in_ms(5))

    assert status == 504
    assert await first == 1
    assert await bench.value("t/slow", "a", 0) == 2


@hosted(app)
async def test_a_message_of_another_type_is_told_by_its_place(bench: Bench) -> None:
    for kind in (Kind.CALL, Kind.SEND):
        status, error = await bench.error("t/count", "a", "seven", kind=kind)
        assert (status, error.code) == (400, "PEN0201"), kind
        assert "t/count/a" in error.message


@hosted(app)
async def test_a_state_that_can_not_be_read_is_told(bench: Bench) -> None:
    await bench.store.commit(Commit(bench.session, "t/count", "a", value=msgspec.msgpack.encode({"n": "many"})))

    status, error = await bench.error("t/count", "a", 1)

    assert status == 422
    assert "State of t/count/a" in error.message


@hosted(app)
async def test_a_host_that_drains_refuses_and_finishes_what_it_has_begun(bench: Bench) -> None:
    begun = asyncio.ensure_future(bench.value("t/slow", "a", 20))
    await asyncio.sleep(0)
    bench.host.draining = True

    reply = await bench.ask("t/count", "a", 1)
    await bench.host.wait_quiet()

    assert (reply.status, reply.refused) == (503, True)
    assert await begun == 1


@hosted(app)
async def test_a_store_that_does_not_answer_is_nobodys_mistake(bench: Bench) -> None:
    async def down(commit: Commit) -> Any:
        raise Unavailable("PEN0820", "The store does not take part.")

    bench.store.commit = down  # type: ignore[method-assign]

    status, error = await bench.error("t/count", "a", 1)

    assert (status, error.code) == (503, "PEN0820")
