"""Functions that only read: they answer from the last committed state while a handler that waits holds the address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest

from penstock import App, Context, Expire, Function, FunctionError, State, Table, Value
from penstock.engine.task import TaskCore
from penstock.errors import ConfigurationError, InvalidInput
from penstock.ids import Address
from penstock.testing import Harness
from tests.engine.test_awaiting import way  # noqa: F401  # A fixture.


class Order(State):
    stage: str = "new"
    note: Annotated[str, Expire(after_write="1h")] = ""
    items: Table[str, int] = Table()


class Count(State):
    n: int = 0


def shop() -> tuple[App, Function[str, str], Function[int, str]]:
    """An order that waits for a promise, and who reads it."""
    app = App("shop")

    @app.function("shop/order")
    async def order(ctx: Context[Order], note: str) -> str:
        ctx.state.stage, ctx.state.note = "asked", note
        ctx.state.items["apples"] = 3
        await ctx.promise("paid")
        ctx.state.stage = "paid"
        await ctx.promise("sent")
        ctx.state.stage = "sent"
        return note

    @app.function("shop/stage", reads_only=True, state_of=order)
    def stage(ctx: Context[Order], _: int) -> str:
        return f"{ctx.state.stage} {ctx.state.note} {ctx.state.items.get('apples', 0)}".strip()

    return app, order, stage


def test_who_reads_does_not_wait_for_who_waits(way: dict[str, Any]) -> None:  # noqa: F811
    app, order, stage = shop()

    @app.function("shop/clerk")
    def clerk(ctx: Context[None], name: str) -> None:
        ctx.resolve(order, "o", name)

    with Harness(app, **way) as h:
        assert h.call(stage, "o", 1) == "new  0"
        h.send(order, "o", "first")
        h.send(order, "o", "second")
        h.advance("1s")
        assert h.call(stage, "o", 1) == "asked first 3"
        h.send(clerk, "c", "paid")
        h.advance("1s")
        assert h.call(stage, "o", 1) == "paid first 3"
        h.send(clerk, "c", "sent")
        h.advance("2h")
        assert h.call(stage, "o", 1) == "asked  3"  # The second stands where the first did, and its note has expired.
        assert h.state(stage, "o").stage == "asked"
        assert h.dead_letters() == []


def test_who_awaits_what_others_read_goes_on_with_what_it_has_seen(way: dict[str, Any]) -> None:  # noqa: F811
    app = App("shop")

    @app.function("shop/count")
    def count(ctx: Context[Count], amount: int) -> None:
        ctx.state.n += amount

    @app.function("shop/seen", reads_only=True, state_of=count)
    def seen(ctx: Context[Count], _: int) -> int:
        return ctx.state.n

    @app.function("shop/twice", reads_only=True, state_of=count)
    async def twice(ctx: Context[Count], _: int) -> list[int]:
        before = ctx.state.n
        async with ctx.timeout("1h"):
            await ctx.sleep("1m")
            others = await asyncio.gather(ctx.call(seen, ctx.id, 1), ctx.call(seen, "other", 1))
        return [before, ctx.state.n, *others]

    @app.function("shop/sum", reads_only=True)
    async def total(ctx: Context[None], ids: list[str]) -> int:
        return sum(await asyncio.gather(*(ctx.call(seen, id, 1) for id in ids)))

    with Harness(app, **way) as h:
        h.send(count, "c", 5)
        h.send(count, "other", 1)
        h.send(twice, "c", 1)
        h.advance("1s")
        h.send(count, "c", 2)
        assert h.call(twice, "d", 1) == [0, 0, 0, 1]
        h.advance("2m")
        assert h.call(twice, "c", 1) == [7, 7, 7, 1]
        assert h.call(total, "t", ["c", "other"]) == 8
        assert h.states(count)["c"].n == 7
        assert h.dead_letters() == []


def writes() -> list[Any]:
    def change(ctx: Context[Count], count: Any) -> None:
        ctx.state.n += 1

    def send(ctx: Context[Count], count: Any) -> None:
        ctx.send(count, "c", 1)

    def send_after(ctx: Context[Count], count: Any) -> None:
        ctx.send_after("1h", count, "c", 1)

    def cancel(ctx: Context[Count], count: Any) -> None:
        ctx.cancel("token")

    def emit(ctx: Context[Count], count: Any) -> None:
        ctx.emit("shop/out", 1)

    def resolve(ctx: Context[Count], count: Any) -> None:
        ctx.resolve(count, "c", "paid")

    def call(ctx: Context[Count], count: Any) -> None:
        ctx.call(count, "c", 1)

    def run(ctx: Context[Count], count: Any) -> None:
        ctx.run("step", int)

    def promise(ctx: Context[Count], count: Any) -> None:
        ctx.promise("paid")

    return [change, send, send_after, cancel, emit, resolve, call, run, promise]


@pytest.mark.parametrize("write", writes(), ids=lambda write: write.__name__)
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "behind an await"])
def test_who_reads_does_nothing_else(write: Callable[..., None], waits: bool) -> None:
    app = App("shop")

    @app.function("shop/count")
    def count(ctx: Context[Count], amount: int) -> None:
        ctx.state.n += amount

    @app.function("shop/seen", reads_only=True, state_of=count)
    async def seen(ctx: Context[Count], _: int) -> None:
        if waits:
            await ctx.sleep(1)
        write(ctx, count)

    with Harness(app, parallelism=2) as h:
        h.send(count, "c", 5)
        with pytest.raises(FunctionError, match=r"PEN0274 shop/seen/c (uses ctx\.\w+|changes its state)"):
            h.call(seen, "c", 1)
        assert h.states(count) == {"c": Count(n=5)}
        (letter,) = h.dead_letters()
        assert (letter.code, letter.attempts) == ("PEN0274", 1)


def test_rows_and_named_values_are_left_alone_too() -> None:
    app, order, _ = shop()

    @app.function("shop/taker", reads_only=True, state_of=order)
    def taker(ctx: Context[Order], _: int) -> None:
        ctx.state.items["pears"] = 1

    @app.function("shop/dynamic", storage={"names": Value(list[str]), "n": Value(int, expire=Expire(after_call="1h"))})
    def dynamic(ctx: Context[None], name: str) -> None:
        ctx.storage.names = [*(ctx.storage.names or []), name]
        ctx.storage.n = 1

    @app.function("shop/names", reads_only=True, state_of=dynamic)
    def names(ctx: Context[None], change: str) -> list[str]:
        if change == "in place":
            ctx.storage.names.append("x")
        elif change == "deleted":
            del ctx.storage.names
        return list(ctx.storage.names or [])

    with Harness(app) as h:
        h.send(dynamic, "d", "a")
        assert h.call(names, "d", "none") == ["a"]
        for change in ("in place", "deleted"):
            with pytest.raises(FunctionError, match="PEN0274"):
                h.call(names, "d", change)
        with pytest.raises(FunctionError, match="PEN0274"):
            h.call(taker, "o", 1)
        assert h.call(names, "d", "none") == ["a"]
        assert "pears" not in h.state(order, "o").items


def test_it_stores_nothing_and_nothing_can_be_stored_for_it() -> None:
    app, order, stage = shop()
    assert stage.state_shape() == {"state": None, "storage": {}}
    assert stage.state_incompatibilities(stage.state_shape()) == []
    assert stage.state_incompatibilities(order.state_shape()) != []
    with Harness(app) as h:
        h.send(order, "o", "first")
        h.run_until_idle()
        core: TaskCore = h._units[0].core
        view, address = core.view(), Address("shop/stage", "o")
        assert view.ids("shop/stage") == ["o"]
        assert view.state(address)["state"]["stage"] == "asked"
        with pytest.raises(InvalidInput, match="reads that of shop/order: set that"):
            view.encode_state(address, b"{}")


# What can't be meant.


def test_a_state_is_that_of_a_function_that_has_the_same() -> None:
    app, order, _ = shop()
    with pytest.raises(ConfigurationError, match=r"PEN0128 .*is for functions with reads_only=True"):
        app.function("shop/both", state_of=order)

    with pytest.raises(ConfigurationError, match=r"PEN0128 .*reads the state of shop/order, which is Order, and"):

        @app.function("shop/other", reads_only=True, state_of=order)
        def other(ctx: Context[Count], _: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"PEN0128 .*storage=n.* Declare the same, and storage= there alone"):

        @app.function("shop/stored", reads_only=True, state_of=order, storage={"n": Value(int)})
        def stored(ctx: Context[Order], _: int) -> None: ...


def test_rows_are_read_by_who_does_not_wait() -> None:
    app, order, _ = shop()
    with pytest.raises(ConfigurationError, match=r"PEN0128 .*reads tables or logs, which may be others"):

        @app.function("shop/slow", reads_only=True, state_of=order)
        async def slow(ctx: Context[Order], _: int) -> None: ...
