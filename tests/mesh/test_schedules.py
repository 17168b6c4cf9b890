"""What is due is sent once, by one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock import App, Context
from penstock.functions.schedule import Missed, Scheduled
from penstock.mesh import schedules as module
from penstock.mesh.outbox import Outbox, Refusal
from penstock.mesh.schedules import Scheduler
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Kept
from tests.mesh.stores import quick_directory

MINUTE_S = 60.0
HOUR_S = 3_600.0


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


def application(cron: str = "0 * * * *", missed: Missed = "run-once") -> App:
    app = App("shop")

    @app.function("shop/report")
    def report(ctx: Context[None], message: Scheduled) -> None: ...

    app.schedule(cron, report, name="hourly", missed=missed)
    return app


async def _take_nothing(_: Kept) -> Refusal | None:
    return None


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0


@asynccontextmanager
async def scheduling(directory: Path, app: App, clock: Clock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(directory)
    session = await store.begin_session("test")
    scheduler = Scheduler(app, store, session, Outbox(store, session, _take_nothing), clock=lambda: clock.now_s)
    task = asyncio.create_task(scheduler.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.fence(session)
        await store.close()


async def sent(store: SqliteStore) -> list[str]:
    """The keys of all that was sent, once nothing more comes."""
    found: list[str] = []
    for _ in range(10):
        await asyncio.sleep(0.02)
        found = [kept.outgoing.key for each in await store.sessions() for kept in await store.due(each.number, 0, 100)]
    return found


@pytest.fixture(autouse=True)
def short_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLEEP_MAX_S", 0.01)
    monkeypatch.setattr(module, "CLAIM_S", 0.01)


def test_a_schedule_begins_when_it_is_seen_and_is_sent_when_it_is_due(directory: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with scheduling(directory, application(), clock) as store:
            assert await sent(store) == []
            clock.now_s = HOUR_S
            assert await sent(store) == ["schedule hourly:3600000"]
            (kept,) = await store.due(1, 0, 10)
            assert kept.outgoing.outside
            assert kept.outgoing.headers["penstock-schedule"] == "hourly"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("missed", "hours"), [("run-once", [3]), ("all", [1, 2, 3]), ("skip", [])], ids=["run-once", "all", "skip"]
)
def test_what_was_missed_while_nothing_ran(directory: Path, missed: Missed, hours: list[int]) -> None:
    async def main() -> None:
        clock = Clock()
        app = application(missed=missed)
        async with scheduling(directory, app, clock) as store:
            await sent(store)
        clock.now_s = 3 * HOUR_S + 2 * MINUTE_S
        async with scheduling(directory, app, clock) as store:
            assert await sent(store) == [f"schedule hourly:{hour * 3_600_000}" for hour in hours]

    asyncio.run(main())


def test_another_expression_goes_on_from_the_present(directory: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with scheduling(directory, application(), clock) as store:
            await sent(store)
        clock.now_s = 5 * HOUR_S + MINUTE_S
        async with scheduling(directory, application("30 * * * *"), clock) as store:
            assert await sent(store) == []
            clock.now_s = 5.5 * HOUR_S
            assert await sent(store) == [f"schedule hourly:{int(5.5 * 3_600_000)}"]

    asyncio.run(main())


def test_one_process_sends_for_all(directory: Path) -> None:
    async def main() -> None:
        clock = Clock()
        app = application()
        async with scheduling(directory, app, clock) as store, scheduling(directory, app, clock):
            await sent(store)
            clock.now_s = HOUR_S
            assert await sent(store) == ["schedule hourly:3600000"]

    asyncio.run(main())
