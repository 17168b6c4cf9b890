"""A call that is cancelled ends where it waits, and says itself how."""

from __future__ import annotations

import asyncio

from penstock import App, Context, FunctionError, State
from penstock.mesh.wire import Kind
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
    await bench.ask("t/job", "a", kind=Kind.CANCEL, key="first")

    assert (await first).status == 200
    status, error = await second
    assert (status, error.code) == (422, "PEN0272")


@hosted(app)
async def test_cancelling_what_is_not_there_does_no_harm(bench: Bench) -> None:
    assert (await bench.ask("t/job", "a", kind=Kind.CANCEL, key="unknown")).status == 200


@hosted(app)
async def test_what_a_timeout_has_ended_the_wait_for_goes_on(bench: Bench) -> None:
    assert await bench.value("t/patient", "p") == "slept after all"
