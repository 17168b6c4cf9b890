"""Calls that come back to an address which waits for them: they run between two segments of the handler that waits."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest

from penstock import App, Context, Expire, Function, FunctionError, Log, State, Table
from penstock.errors import ConfigurationError
from penstock.functions.durable import Durable
from penstock.testing import Crash, Harness
from tests.engine.test_awaiting import way  # noqa: F401  # A fixture.


class Order(State):
    notes: list[str] = []  # noqa: RUF012  # A field.
    kept: Annotated[str, Expire(after_write="1h")] = ""
    items: Table[str, int] = Table()
    log: Log[str] = Log()


class Note(State):
    n: int = 0


def note(ctx: Context[Order], text: str) -> None:
    """The same in all three, which must never contradict one another."""
    state = ctx.state
    assert state.notes == list(state.log), f"{state.notes}, and in the log {list(state.log)}"
    assert state.items.get("notes", 0) == len(state.notes)
    state.notes.append(text)
    state.log.append(text)
    state.items["notes"] = len(state.notes)


def shop() -> tuple[App, Function[str, Any]]:
    """An order that has itself priced by somebody who asks it back."""
    app = App("shop")

    @app.function("shop/order", reentrant=True)
    async def order(ctx: Context[Order], asked: str) -> Any:
        if asked.startswith("ask"):
            note(ctx, f"was {asked}")
            return len(ctx.state.notes)
        note(ctx, "begun")
        first: int = await ctx.call("shop/pricer", "p", ctx.id)
        note(ctx, f"first {first}")
        await ctx.sleep("1m")
        calls: list[Durable[int]] = [ctx.call("shop/pricer", each, ctx.id) for each in "pq"]
        both = await asyncio.gather(*calls)
        note(ctx, f"both {sorted(both)}")
        return ctx.state.notes

    @app.function("shop/pricer")
    async def pricer(ctx: Context[Note], id: str) -> int:
        ctx.state.n += 1
        seen: int = await ctx.call("shop/order", id, f"asked {ctx.id}{ctx.state.n}")
        await ctx.sleep("1s")
        return seen

    return app, order


def test_a_call_that_comes_back_joins(way: dict[str, Any]) -> None:  # noqa: F811
    app, order = shop()
    with Harness(app, **way) as h:
        notes = h.call(order, "o", "begin")
        assert notes[:3] == ["begun", "was asked p1", "first 2"]
        assert sorted(notes[3:5]) == ["was asked p2", "was asked q1"]
        assert notes[5:] == ["both [4, 5]"]
        state = h.state(order, "o")
        assert (state.notes, list(state.log), state.items["notes"]) == (notes, notes, 6)
        assert h.dead_letters() == []


@pytest.mark.parametrize("seed", range(6))
def test_and_does_so_once_whatever_crashes(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    app, order = shop()
    with Harness(app, seed=seed, parallelism=2).faults(Crash(every=4)) as h:
        for number in range(4):
            h.send(order, f"o{number}", "begin")
        h.advance("10m")
        assert h.crashes
        states = h.states(order)
        assert sorted(states) == ["o0", "o1", "o2", "o3"]
        assert {len(state.notes) for state in states.values()} == {6}
        assert h.dead_letters() == []
    assert "PEN0261" not in caplog.text


def test_who_is_not_waited_for_stands_in_line(way: dict[str, Any]) -> None:  # noqa: F811
    app, order = shop()

    @app.function("shop/stranger")
    async def stranger(ctx: Context[None], id: str) -> int:
        return int(await ctx.call(order, id, "ask from outside"))

    with Harness(app, **way) as h:
        h.send(order, "o", "begin")
        h.advance("5s")
        assert h.call(stranger, "s", "o") == 7
        assert h.state(order, "o").notes[-1] == "was ask from outside"


def test_an_address_may_call_itself_and_is_not_run_beside_itself(way: dict[str, Any]) -> None:  # noqa: F811
    app = App("self")
    running: list[str] = []

    @app.function("self/a", reentrant=True)
    async def a(ctx: Context[Note], depth: int) -> int:
        ctx.state.n += 1
        if depth == 0:
            assert running == []
            return ctx.state.n
        inner = ctx.call(a, ctx.id, 0)
        running.append(ctx.id)
        try:
            await asyncio.sleep(1)  # The call comes back while this is not at rest.
        finally:
            running.clear()
        return await inner * 10 + ctx.state.n

    with Harness(app, **way) as h:
        assert h.call(a, "x", 1) == 22
        assert h.call(a, "x", 1) == 44


def test_who_joins_and_waits_is_refused(way: dict[str, Any]) -> None:  # noqa: F811
    app = App("self")

    @app.function("self/a", reentrant=True)
    async def a(ctx: Context[Note], how: str) -> str:
        ctx.state.n += 1
        if how == "sleep":
            await ctx.sleep(1)
        elif how == "raw":
            await asyncio.sleep(1)
        elif how == "raise":
            raise ValueError("no")
        else:
            seen = []
            for inner in ("sleep", "raw", "raise"):
                try:
                    await ctx.call(a, ctx.id, inner)
                except FunctionError as error:
                    seen.append(error.code)
            return " ".join(seen)
        return "unreached"

    with Harness(app, **way) as h:
        assert h.call(a, "x", "begin") == "PEN0275 PEN0275 PEN0210"
        assert h.state(a, "x").n == 1
        assert [(letter.code, letter.attempts) for letter in h.dead_letters()] == [
            ("PEN0275", 1),
            ("PEN0275", 1),
            ("PEN0210", 1),
        ]


def test_what_is_sent_from_inside_leaves_once(way: dict[str, Any]) -> None:  # noqa: F811
    app = App("self")

    @app.function("self/count")
    def count(ctx: Context[Note], amount: int) -> None:
        ctx.state.n += amount

    @app.function("self/a", reentrant=True)
    async def a(ctx: Context[Note], depth: int) -> None:
        if depth:
            await ctx.call(a, ctx.id, depth - 1)
            ctx.send(count, "outer", 1)
            await ctx.sleep(1)
        else:
            ctx.send(count, "inner", 1)
            ctx.call(count, "called", 1)

    with Harness(app, **way) as h:
        h.call(a, "x", 1)
        h.run_until_idle()
        assert {id: state.n for id, state in h.states(count).items()} == {"outer": 1, "inner": 1, "called": 1}


def test_reentrant_is_for_who_waits() -> None:
    app = App("self")
    with pytest.raises(ConfigurationError, match="PEN0129"):

        @app.function("self/plain", reentrant=True)
        def plain(ctx: Context[None], _: int) -> None: ...

    with pytest.raises(ConfigurationError, match="PEN0129"):

        @app.function("self/reader", reentrant=True, reads_only=True)
        async def reader(ctx: Context[None], _: int) -> None: ...
