"""Sagas in real hosts over a real store: the same application as in the engine, and another host that goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock import App, Branch, Compensated, Completed, Context, Declined, FencedState, Saga
from penstock.mesh import library, outbox
from penstock.mesh.library import Mesh

app = App("sagas")


class Books(FencedState):
    entries: list[str] = []  # noqa: RUF012  # A field.


class World:
    """What actions run into, and what they did, whichever host they ran in."""

    hangs = False
    resumed: asyncio.Event
    began = 0
    done: list[str] = []  # noqa: RUF012  # Made anew by each test.


stock = app.participant("shop/stock", Books)
bank = app.participant("shop/bank", Books)


@stock.action
def reserve(ctx: Context[Books], what: str, branch: Branch) -> int | Declined:
    if what == "gold":
        return Declined("sold out")
    World.done.append(f"reserve {what}")
    ctx.state.entries.append(branch.key)
    return len(ctx.state.entries)


@reserve.compensation
def release(ctx: Context[Books], what: str, branch: Branch) -> None:
    World.done.append(f"release {what}")
    ctx.state.entries.remove(branch.key)


@bank.action
async def charge(ctx: Context[Books], what: str, branch: Branch) -> str:
    World.began += 1
    if World.hangs:
        await asyncio.Event().wait()
    World.done.append(f"charge {what}")
    return branch.key


@bank.action
async def transfer(ctx: Context[Books], what: str) -> None:
    World.done.append(await ctx.run("ask the bank", lambda: f"transfer {what}"))
    raise ValueError("half-way")


@transfer.compensation
def take_back(ctx: Context[Books], what: str) -> None:
    World.done.append(f"take back {what}")


@app.saga("shop/gift", steps=[transfer])
async def gift(saga: Saga, what: str) -> None:
    await saga.step(transfer, "x", what)


@bank.action
def thank(ctx: Context[Books], what: str) -> None:
    World.done.append(f"thank for {what}")


@app.saga("shop/slow", steps=[], pivot=charge, then=[thank])
async def slow(saga: Saga, what: str) -> str:
    await saga.step(charge, "x", what)
    if not World.done.count("pause"):
        World.done.append("pause")
        await World.resumed.wait()
    await saga.step(thank, "x", what)
    return what


@app.saga("shop/checkout", steps=[reserve], pivot=charge)
async def checkout(saga: Saga, wanted: list[str]) -> str:
    first, *others = (saga.step(reserve, each, each, name=each) for each in wanted)
    await asyncio.gather(first, saga.all(*others))
    return await saga.step(charge, "x", wanted[0])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "hangs", False)
    monkeypatch.setattr(World, "began", 0)
    monkeypatch.setattr(World, "done", [])


def test_a_saga_is_done_or_undone_and_known_by_its_id(tmp_path: Path) -> None:
    async def use() -> None:
        async with Mesh(app, directory=tmp_path) as mesh:
            done = Completed("shop/checkout/1/charge")
            assert await mesh.call(checkout, "1", ["tea", "rum"]) == done
            assert await mesh.call(checkout, "1", ["milk"]) == done
            assert await mesh.call(checkout, "2", ["tea", "gold"]) == Compensated("sold out", "gold")

    asyncio.run(use())
    assert sorted(World.done) == sorted(["reserve tea", "reserve rum", "charge tea", "reserve tea", "release tea"])


def test_an_action_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    async def use() -> None:
        async with Mesh(app, directory=tmp_path) as mesh:
            ended = await mesh.call(gift, "1", "tea")
            assert ended == Compensated("PEN0210 Handler raised ValueError: half-way", "transfer")

    asyncio.run(use())
    assert World.done == ["transfer tea"] * 3 + ["take back tea"]


def test_a_host_whose_saga_another_has_carried_on_learns_how_it_ended(tmp_path: Path) -> None:
    async def use() -> None:
        World.resumed = asyncio.Event()
        async with Mesh(app, directory=tmp_path) as one, Mesh(app, directory=tmp_path) as other:
            outrun = asyncio.create_task(one.call(slow, "1", "tea", key="a"))
            async with asyncio.timeout(10):
                while "pause" not in World.done:  # noqa: ASYNC110  # Of a handler, which tells nobody.
                    await asyncio.sleep(0.01)
                assert await other.call(slow, "1", "tea", key="b") == Completed("tea")
                World.resumed.set()
                assert await outrun == Completed("tea")

    asyncio.run(use())
    assert World.done == ["charge tea", "pause", "thank for tea"]


def test_another_host_goes_on_where_one_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "DRAIN_S", 0)
    monkeypatch.setattr(outbox, "CLOSE_S", 0.1)

    async def begin() -> None:
        async with Mesh(app, directory=tmp_path) as mesh:
            await mesh.send(checkout, "1", ["tea", "rum"])
            async with asyncio.timeout(10):
                while not World.began:  # noqa: ASYNC110  # Of a handler, which tells nobody.
                    await asyncio.sleep(0.01)

    async def go_on() -> None:
        async with Mesh(app, directory=tmp_path) as mesh:
            async with asyncio.timeout(20):
                while World.done[-1] != "charge tea":  # noqa: ASYNC110  # The same.
                    await asyncio.sleep(0.01)
            assert await mesh.call(checkout, "1", []) == Completed("shop/checkout/1/charge")

    World.hangs = True
    asyncio.run(begin())
    assert sorted(World.done) == ["reserve rum", "reserve tea"]

    World.hangs = False
    asyncio.run(go_on())
    assert sorted(World.done) == ["charge tea", "reserve rum", "reserve tea"]
    assert World.began == 2
