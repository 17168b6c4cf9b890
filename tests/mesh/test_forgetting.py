"""What is kept for a time is there until then, and gone after it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import Unavailable
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import State
from penstock.functions.virtual_loop import VirtualLoop
from penstock.ids import Address
from penstock.mesh.forgetting import KEEP_PROMISES_MS, KEEP_SESSIONS_MS, ROUND_S, Forgetting
from penstock.mesh.host import HostOptions
from penstock.mesh.store import PURGED_AT_ONCE, Past
from penstock.mesh.wire import Request
from tests.mesh.hosting import Bench, Kind, hosted

app = App("shop")


class Count(State):
    calls: int = 0


@app.function("shop/count")
def count(ctx: Context[Count], message: int) -> int:
    ctx.state.calls += message
    return ctx.state.calls


COUNT = Address("shop/count", "a")


class Quiet:
    """An outbox that has nothing to do."""

    caught_up = True


def forgetting(store: Any, *, later_ms: int = 0, outbox: Any = Quiet) -> Forgetting:
    """As it is done after a time."""
    return Forgetting(store, outbox, keep_promises_ms=KEEP_PROMISES_MS, clock=lambda: time.time() + later_ms / 1000)


def rows_of(directory: Path, table: str) -> int:
    with sqlite3.connect(directory / "functions" / "shop%2Fcount.sqlite") as connection:
        ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}")
    connection.close()
    return int(rows)


def test_a_late_duplicate_is_known_as_long_as_answers_are_kept(tmp_path: Path) -> None:
    hour_ms = 3_600_000

    @hosted(app, options=HostOptions(keep_answers_ms=hour_ms))
    async def test(bench: Bench) -> None:
        async def ask(key: str) -> bytes:
            return (await bench.host.handle(Request(COUNT, b"1", Kind.CALL, key))).body

        async def at(later_ms: int) -> None:
            await forgetting(bench.store, later_ms=later_ms).forget()

        first = await ask("order-1")
        await at(hour_ms - 60_000)
        assert await ask("order-1") == first, "a duplicate within the time changes nothing"
        assert rows_of(tmp_path, "answers") == 1

        await at(hour_ms + 60_000)
        assert rows_of(tmp_path, "answers") == 0
        assert await ask("order-1") != first

    test(tmp_path)


def test_a_promise_waits_for_its_time_and_no_longer(tmp_path: Path) -> None:
    @hosted(app)
    async def test(bench: Bench) -> None:
        await bench.store.resolve(bench.session, COUNT, "paid", b"1")

        await forgetting(bench.store, later_ms=KEEP_PROMISES_MS - 60_000).forget()
        assert await bench.store.resolution(COUNT, "paid") == b"1"
        await forgetting(bench.store, later_ms=KEEP_PROMISES_MS + 60_000).forget()
        assert rows_of(tmp_path, "promises") == 0

    test(tmp_path)


def test_sessions_do_not_add_up_in_any_file(tmp_path: Path) -> None:
    @hosted(app)
    async def test(bench: Bench) -> None:
        for number in range(5):
            session = await bench.store.begin_session(f"host {number}")
            await bench.store.resolve(session, COUNT, f"paid {number}", b"1")
            await bench.store.fence(session)
            await bench.store.adopt(bench.session)

        await forgetting(bench.store, later_ms=KEEP_SESSIONS_MS - 60_000).forget()
        assert len(await bench.store.sessions()) == 6
        await forgetting(bench.store, later_ms=KEEP_SESSIONS_MS + 60_000).forget()

        assert [each.number for each in await bench.store.sessions()] == [bench.session]
        assert (rows_of(tmp_path, "writers"), rows_of(tmp_path, "ended")) == (1, 0)

    test(tmp_path)


class Shelf:
    """A store with so much that is past, and which is away sometimes."""

    def __init__(self, past: int, *, away: int = 0) -> None:
        self.left = past
        self.away = away
        self.asked: list[tuple[float, int]] = []

    async def purge(self, past: Past) -> int:
        now_s = asyncio.get_running_loop().time()
        if self.away:
            self.away -= 1
            raise Unavailable("PEN0820", "gone")
        forgotten = min(self.left, PURGED_AT_ONCE)
        self.left -= forgotten
        self.asked.append((now_s, forgotten))
        return forgotten


async def run_for(work: Forgetting, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await work.run()


def test_much_is_forgotten_in_small_batches_with_a_pause_behind_each() -> None:
    shelf = Shelf(2 * PURGED_AT_ONCE + 1)

    loop = VirtualLoop()
    loop.run(run_for(forgetting(shelf), 1.5 * ROUND_S))
    loop.close()

    assert [forgotten for _, forgotten in shelf.asked] == [PURGED_AT_ONCE, PURGED_AT_ONCE, 1]
    times_s = [now_s for now_s, _ in shelf.asked]
    assert times_s[0] == ROUND_S
    assert times_s == sorted(set(times_s))


def test_a_store_that_is_away_is_asked_again_in_the_next_round(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(1, away=1)

    loop = VirtualLoop()
    loop.run(run_for(forgetting(shelf), 2.5 * ROUND_S))
    loop.close()

    assert shelf.left == 0
    assert "PEN0820" in caplog.text


def test_nothing_is_forgotten_while_something_may_be_delivered_again() -> None:
    class Busy:
        caught_up = False

    shelf = Shelf(1)
    asyncio.run(forgetting(shelf, outbox=Busy).forget())

    assert shelf.left == 1
