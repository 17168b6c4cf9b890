"""A call that is cancelled ends where it waits, and says itself how."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from penstock import App, Context, FunctionError, State
from penstock.ids import Address
from penstock.mesh.delivery import refusal_of
from penstock.mesh.interrupts import Interrupt, Interrupts
from penstock.mesh.store import Commit, Committed
from penstock.mesh.wire import NO, YES, Kind, Reply, Request
from tests.mesh.hosting import Bench, hosted

app = App("interrupts")


class Job(State):
    ends: list[str] = []  # noqa: RUF012  # A field, not a shared list.


@app.function("t/job", attempts=3)
async def job(ctx: Context[Job], puts_right: bool) -> str:
    """Waits for ever."""
    try:
        await ctx.promise("never")
    except asyncio.CancelledError:
        if not puts_right:
            raise
        await ctx.sleep(0.001)
        ctx.state.ends.append("put right")
        return "cancelled"
    return "done"


@app.function("t/asks", attempts=1)
async def asks(ctx: Context[None], puts_right: bool) -> str:
    called = ctx.call(job, ctx.id, puts_right)
    try:
        async with ctx.timeout("20ms"):
            return str(await called)
    except TimeoutError:
        ctx.cancel_call(called)
    try:
        return str(await called)
    except FunctionError as error:
        return error.code


@app.function("t/patient", attempts=1)
async def patient(ctx: Context[None], message: None) -> str:
    """A wait that was ended can be waited for again."""
    slept = ctx.sleep(0.06)
    try:
        async with ctx.timeout("10ms"):
            await slept
    except TimeoutError:
        await slept
        return "slept after all"
    return "too quick"


@app.function("t/slow")
async def slow(ctx: Context[None], message: bool) -> str:
    """Takes its time when it is cancelled."""
    try:
        await ctx.promise("never")
    except asyncio.CancelledError:
        await ctx.sleep(0.05)
    return "put right"


@app.function("t/fails", attempts=2, backoff="20s")
async def fails(ctx: Context[None], message: None) -> str:
    """Only the first time."""
    try:
        if ctx.message.attempt == 1:
            raise ConnectionError
        await ctx.promise("never")
    except asyncio.CancelledError:
        return f"put right at try {ctx.message.attempt}"
    return "done"


@app.function("t/keeps")
async def keeps(ctx: Context[Job], message: None) -> int:
    """Is cancelled while it has the store keep what it did so far."""
    assert ctx._keeper is not None
    ctx.state.ends.append("kept")
    ctx.send(book, ctx.id, "line")
    with suppress(asyncio.CancelledError):
        await ctx._keeper.commit()
    return len(ctx.state.ends)


@app.function("t/book")
async def book(ctx: Context[Job], line: str) -> None:
    await ctx.sleep(0.03)
    ctx.state.ends.append(line)


@app.function("t/leaves")
async def leaves(ctx: Context[None], message: None) -> None:
    """Does not wait for what it calls."""
    ctx.call(book, ctx.id, "called")
    ctx.call(book, ctx.id, "called again")
    ctx.send(book, ctx.id, "sent")
    await ctx.sleep(0)


@hosted(app)
async def test_who_is_cancelled_may_put_things_right_and_answer(bench: Bench) -> None:
    assert await bench.value("t/asks", "a", True) == "cancelled"
    assert (await bench.store.load("t/job", "a")).version > 0


@hosted(app)
async def test_who_does_not_catch_it_has_changed_nothing_and_is_not_tried_again(bench: Bench) -> None:
    assert await bench.value("t/asks", "a", False) == "PEN0272"
    assert (await bench.store.load("t/job", "a")).version == 0
    assert bench.host.active == 0


@hosted(app)
async def test_what_waits_for_its_turn_does_not_begin(bench: Bench) -> None:
    first = asyncio.create_task(bench.ask("t/job", "a", True, key="first"))
    second = asyncio.create_task(bench.error("t/job", "a", True, key="second"))
    await asyncio.sleep(0.02)

    await bench.ask("t/job", "a", kind=Kind.CANCEL, key="second")
    status, error = await second

    assert (status, error.code) == (422, "PEN0272")
    assert not first.done()
    await bench.ask("t/job", "a", kind=Kind.CANCEL, key="first")
    assert (await first).status == 200
    assert bench.host.waiting == bench.host.active == 0


@hosted(app)
async def test_what_waits_to_be_tried_again_is_tried_at_once_up_to_where_it_waits(bench: Bench) -> None:
    asked = asyncio.create_task(bench.value("t/fails", "a", None, key="k"))
    await asyncio.sleep(0.02)
    await bench.ask("t/fails", "a", kind=Kind.CANCEL, key="k")

    async with asyncio.timeout(5):
        assert await asked == "put right at try 2"


@hosted(app)
async def test_cancelling_what_is_not_there_does_no_harm(bench: Bench) -> None:
    assert await bench.ask("t/job", "a", kind=Kind.CANCEL, key="unknown") == Reply(200, NO)
    assert await bench.ask("t/job", "a", kind=Kind.CANCEL) == Reply(200, NO)


@hosted(app)
async def test_without_a_key_whatever_runs_at_the_address_is_cancelled(bench: Bench) -> None:
    asked = asyncio.create_task(bench.value("t/job", "a", True))
    await asyncio.sleep(0.02)

    assert await bench.ask("t/job", "a", kind=Kind.CANCEL) == Reply(200, YES)

    assert await asked == "cancelled"


@hosted(app)
async def test_who_asks_again_under_the_key_gets_the_same_end(bench: Bench) -> None:
    """A caller whose reply was lost must not begin anew what it has cancelled."""
    asked = asyncio.create_task(bench.ask("t/job", "a", False, key="k"))
    await asyncio.sleep(0.02)
    await bench.ask("t/job", "a", kind=Kind.CANCEL, key="k")
    first = await asked

    assert first.status == 422
    assert await bench.ask("t/job", "a", False, key="k") == first


@hosted(app)
async def test_a_message_whose_handler_is_cancelled_is_taken(bench: Bench) -> None:
    """So it is no dead letter, and nobody delivers it again."""
    delivered = asyncio.create_task(bench.ask("t/job", "a", False, kind=Kind.DELIVER, key="k"))
    await asyncio.sleep(0.02)
    await bench.ask("t/job", "a", kind=Kind.CANCEL, key="k")

    assert refusal_of(await delivered, "t/job/a") is None
    assert refusal_of(await bench.ask("t/job", "a", False, kind=Kind.DELIVER, key="k"), "t/job/a") is None


@hosted(app)
async def test_a_cancellation_that_comes_before_the_call_is_told_again(bench: Bench) -> None:
    carry = bench.call

    async def late(request: Request) -> Reply:
        if request.kind is Kind.CALL:
            await asyncio.sleep(0.06)
        return await carry(request)

    bench.call = late  # type: ignore[method-assign]
    assert await bench.value("t/asks", "a", True) == "cancelled"
    cancellations = [request for request in bench.called if request.kind is Kind.CANCEL]
    assert len(cancellations) > 1


@hosted(app)
async def test_who_is_cancelled_again_is_not_disturbed_while_it_puts_things_right(bench: Bench) -> None:
    asked = asyncio.create_task(bench.value("t/slow", "a", True, key="k"))
    await asyncio.sleep(0.02)
    for _ in range(3):
        await bench.ask("t/slow", "a", kind=Kind.CANCEL, key="k")
        await asyncio.sleep(0.005)

    assert await asked == "put right"


@hosted(app)
async def test_what_is_sent_comes_behind_what_was_called(bench: Bench) -> None:
    """Also when nobody waits for the call any more."""
    began = asyncio.get_running_loop().time()
    await bench.value("t/leaves", "a", None)

    assert asyncio.get_running_loop().time() - began >= 0.05
    assert [kept.outgoing.target for kept in bench.kept] == ["t/book"]
    assert (await bench.store.load("t/book", "a")).version == 2


@hosted(app)
async def test_what_a_timeout_has_ended_the_wait_for_goes_on(bench: Bench) -> None:
    assert await bench.value("t/patient", "p") == "slept after all"


@hosted(app)
async def test_a_commit_is_not_interrupted(bench: Bench) -> None:
    """Else the handler would not know of it, and what it sends would go out twice."""
    carry_out = bench.host.commit

    async def slow(commit: Commit) -> Committed:
        committed = await carry_out(commit)
        await asyncio.sleep(0.05)
        return committed

    bench.host.commit = slow  # type: ignore[method-assign]
    asked = asyncio.create_task(bench.value("t/keeps", "a", None, key="k"))
    await asyncio.sleep(0.03)
    await bench.ask("t/keeps", "a", kind=Kind.CANCEL, key="k")

    assert await asked == 1
    assert len(bench.kept) == 1


JOB = Request(Address("t/job", "a"), b"", key="k", identity="spiffe://shop/asks")


def test_only_who_has_asked_may_cancel() -> None:
    interrupts = Interrupts()
    with interrupts.watch(JOB) as interrupt:
        assert not interrupts.interrupt(JOB._replace(identity="spiffe://shop/other"))
        assert not interrupts.interrupt(JOB._replace(key="other"))
        assert not interrupt.requested
        assert interrupts.interrupt(JOB)
        assert interrupt.requested
    assert not interrupts.interrupt(JOB)


@pytest.mark.parametrize("attempt", [1, 2])
def test_what_another_host_may_have_begun_is_run_up_to_where_it_waits(attempt: int) -> None:
    """It may have done something on the outside, which the handler puts right."""
    steps: list[str] = []

    async def run() -> None:
        interrupts = Interrupts()
        request = JOB._replace(attempt=attempt)
        with interrupts.watch(request) as interrupt:
            interrupts.interrupt(request)
            with suppress(asyncio.CancelledError), interrupt.handler():
                steps.append("begun")
                await asyncio.sleep(0)
                await asyncio.sleep(10)
                steps.append("went on")

    asyncio.run(run())
    assert steps == (["begun"] if attempt == 2 else [])


@pytest.mark.parametrize("where", ["handler", "before it"])
@pytest.mark.parametrize("just_ended", [False, True])
def test_a_wait_that_has_just_ended_is_interrupted_all_the_same(where: str, just_ended: bool) -> None:
    """Nothing is left then that could be cancelled but the task itself, whose cancellation must not be taken back
    before it was raised."""
    ends: list[str] = []

    async def carry_out(interrupt: Interrupt, wait: asyncio.Future[None]) -> None:
        if where == "before it":
            ends.append("went on" if await interrupt.wait(wait) else "interrupted")
        else:
            with interrupt.handler():
                try:
                    await wait
                    ends.append("went on")
                except asyncio.CancelledError:
                    ends.append("interrupted")
                await asyncio.sleep(0)
                async with asyncio.timeout(5):
                    await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def run() -> None:
        interrupts, wait = Interrupts(), asyncio.get_running_loop().create_future()
        with interrupts.watch(JOB) as interrupt:
            task = asyncio.create_task(carry_out(interrupt, wait))
            await asyncio.sleep(0)
            if just_ended:
                wait.set_result(None)
            interrupts.interrupt(JOB)
            await task

    asyncio.run(run())
    assert ends == ["interrupted"]
