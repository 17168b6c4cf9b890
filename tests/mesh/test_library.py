"""The mesh in the caller's process: the same functions, with nothing to start."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from penstock import App, CallTimeout, ConfigurationError, Context, FunctionError, InvalidInput, State
from penstock.mesh.library import Mesh
from penstock.mesh.options import REGISTRY
from penstock.mesh.registry import LocalRegistry
from penstock.mesh.sqlite_store import SqliteStore
from tests.mesh.stores import open_below

app = App("library")


class Account(State):
    balance: int = 0


@app.function("bank/account", attempts=1)
def account(ctx: Context[Account], amount: int) -> int:
    if ctx.state.balance + amount < 0:
        raise ValueError(f"only {ctx.state.balance} left")
    ctx.state.balance += amount
    return ctx.state.balance


@app.function("bank/transfer", attempts=1)
async def transfer(ctx: Context[None], order: tuple[str, str, int]) -> tuple[int, int]:
    source, target, amount = order
    return await ctx.call(account, source, -amount), await ctx.call(account, target, amount)


@app.function("bank/gift")
def gift(ctx: Context[None], to: list[str]) -> None:
    for each in to:
        ctx.send(account, each, 1)


@app.function("bank/approval", attempts=1)
async def approval(ctx: Context[None], limit: int) -> str:
    approved: bool = await ctx.promise("decision", bool)
    return "yes" if approved else "no"


def meshed(test: Callable[[Mesh], Awaitable[None]]) -> Callable[[Path], None]:
    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        async def call() -> None:
            async with Mesh(app, directory=tmp_path) as mesh:
                await test(mesh)

        asyncio.run(call())

    del run.__wrapped__
    return run


async def balance_becomes(mesh: Mesh, id: str, balance: int) -> None:
    """Messages that were sent are delivered soon."""
    async with asyncio.timeout(5):
        while await mesh.call(account, id, 0) != balance:  # noqa: ASYNC110  # Of another task, which tells nobody.
            await asyncio.sleep(0.002)


@meshed
async def test_a_call_is_answered_with_the_declared_type(mesh: Mesh) -> None:
    assert await mesh.call(account, "alice", 10) == 10
    assert await mesh.call(account, "bob", 1) == 1
    assert await mesh.call(transfer, "t1", ("alice", "bob", 4)) == (6, 5)


@meshed
async def test_a_function_may_be_named(mesh: Mesh) -> None:
    answer: int = await mesh.call("bank/account", "alice", 10)

    assert answer == 10


@meshed
async def test_what_handlers_send_arrives(mesh: Mesh) -> None:
    await mesh.call(gift, "g", ["alice", "bob", "alice"])

    await balance_becomes(mesh, "alice", 2)
    await balance_becomes(mesh, "bob", 1)


@meshed
async def test_what_is_sent_is_done_once_under_its_key(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.send(account, "alice", 5, key="once")
    await mesh.send(account, "alice", 1)

    await balance_becomes(mesh, "alice", 6)


@meshed
async def test_a_key_that_is_asked_again_has_the_same_answer(mesh: Mesh) -> None:
    assert [await mesh.call(account, "alice", 5, key="k") for _ in range(2)] == [5, 5]


@meshed
async def test_a_promise_is_kept_from_outside(mesh: Mesh) -> None:
    waiting = asyncio.ensure_future(mesh.call(approval, "a", 100))
    await asyncio.sleep(0)

    await mesh.resolve(approval, "a", "decision", True)

    assert await waiting == "yes"


@meshed
async def test_a_failed_handler_raises_where_it_was_called(mesh: Mesh) -> None:
    with pytest.raises(FunctionError, match="only 0 left"):
        await mesh.call(account, "alice", -1)
    with pytest.raises(FunctionError, match="only 0 left"):
        await mesh.call(transfer, "t", ("alice", "bob", 1))
    assert await mesh.call(account, "bob", 0) == 0


@meshed
async def test_a_call_ends_when_its_time_does(mesh: Mesh) -> None:
    with pytest.raises(CallTimeout):
        await mesh.call(approval, "never", 1, timeout="10ms")


@meshed
async def test_what_can_not_be_sent_is_refused_before_it_is(mesh: Mesh) -> None:
    for target, id, message, code in (
        (account, "", 1, "PEN0203"),
        (account, "a", "text", "PEN0107"),
        (gift, "a", ["x" * (1 << 20)], "PEN0204"),
    ):
        with pytest.raises(InvalidInput) as error:
            await mesh.call(target.typename, id, message)
        assert error.value.code == code
    with pytest.raises(ConfigurationError):
        await mesh.call("bank/missing", "a", 1)


def test_state_outlives_the_process(tmp_path: Path) -> None:
    async def deposit() -> int:
        async with Mesh(app, directory=tmp_path) as mesh:
            return await mesh.call(account, "alice", 5)

    assert [asyncio.run(deposit()) for _ in range(2)] == [5, 10]


def test_two_programs_on_one_directory_leave_one_another_their_sessions(tmp_path: Path) -> None:
    async def run() -> None:
        async with Mesh(app, directory=tmp_path) as one, Mesh(app, directory=tmp_path) as other:
            await asyncio.gather(*(mesh.call(account, "alice", 1) for mesh in (one, other) for _ in range(5)))
            await one.call(gift, "g", ["bob"])
            await balance_becomes(other, "bob", 1)
            assert await other.call(account, "alice", 0) == 10
            store = SqliteStore(tmp_path)
            known = await store.sessions()
            await store.close()
            assert [session.fenced for session in known] == [False, False]

    asyncio.run(run())


def test_one_that_can_not_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    """Neither its store, which is there by then, nor the leases beside it."""
    (tmp_path / REGISTRY).write_text("leases = 1\n" * 100)

    async def run() -> None:
        with pytest.raises(ConfigurationError, match="PEN0871"):
            async with Mesh(app, directory=tmp_path):
                pass
        assert open_below(tmp_path) == []

    asyncio.run(run())


def test_with_a_registry_the_functions_run_where_it_says(tmp_path: Path) -> None:
    async def run() -> None:
        async with Mesh(app, directory=tmp_path, registry=LocalRegistry()) as mesh:
            with pytest.raises(Exception, match="PEN0841"):
                await mesh.call(account, "alice", 5)

    asyncio.run(run())


def test_that_migrations_are_not_carried_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = App("people")

    @people.function("people/person")
    def person(ctx: Context[Account], amount: int) -> int:
        return ctx.state.balance

    @people.migrate("people/person")
    def renamed(state: dict[str, object]) -> dict[str, object]:
        return state

    async def run() -> None:
        async with Mesh(people, directory=tmp_path) as mesh:
            assert await mesh.call(person, "ada", 1) == 0

    asyncio.run(run())

    assert "PEN0810 The migration for people/person is not carried out" in caplog.text
