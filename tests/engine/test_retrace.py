"""Running an application again aside from production (engine/retrace.py): the same code gives no difference, other code
gives those that it makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from penstock import (
    App,
    Context,
    Expire,
    FileEgress,
    GeneratorIngress,
    Message,
    PenstockError,
    Scheduled,
    State,
    Table,
)
from penstock.engine.config import Config
from penstock.engine.offline import Directory
from penstock.engine.retrace import Outcomes, retrace
from penstock.engine.worker import Worker
from penstock.ids import Address, key_group

RECORDS = 3_000
PARALLELISM = 4


class Booking(Message):
    account: str
    amount: int


class Transfer(Message):
    amount: int


class Reminder(Message):
    text: str


class Account(State):
    balance: int = 0
    bookings: int = 0
    recent: Annotated[str, Expire(after_write="5ms")] = ""
    seen: Table[str, int] = Table()


Fee = Callable[[Booking], int]


def bank(output: Path, *, fee: Fee = lambda booking: 0, records: int = RECORDS) -> App:
    """Accounts that send money to one another, write rows, remind themselves, fail at times, and give up at others."""
    app = App("bank")
    rows = app.egress("bank/rows", FileEgress(str(output)))

    @app.function("bank/account", attempts=2, backoff="1ms")
    def account(ctx: Context[Account], message: Booking | Transfer | Reminder) -> None:
        match message:
            case Booking(_, amount):
                if amount % 97 == 0 and ctx.message.attempt == 1:
                    raise RuntimeError("not yet")
                if amount % 101 == 0:
                    raise RuntimeError("never")
                ctx.state.balance += amount - fee(message)
                ctx.state.bookings += 1
                ctx.state.recent = f"booking {amount}"
                ctx.state.seen[str(amount % 7)] = amount
                ctx.send(account, f"other-{amount % 13}", Transfer(amount))
                ctx.send_after("2ms", account, ctx.id, Reminder("look"), token=f"t{amount % 3}")
            case Transfer(amount):
                ctx.state.balance -= amount
                ctx.emit(rows, {"id": ctx.id, "balance": ctx.state.balance})
            case Reminder():
                ctx.state.bookings += 100
                ctx.send(audit, "all", Transfer(ctx.state.bookings))

    @app.function("bank/audit")
    async def audit(ctx: Context[Account], message: Transfer) -> None:
        ctx.state.balance += message.amount

    def bookings(start: int) -> Iterator[Booking]:
        return (Booking(f"id-{n % 40}", n) for n in range(start, records))

    app.ingress(GeneratorIngress(bookings, type=Booking), to=account, key="account", name="bookings")
    return app


def run_live(app: App, directory: Path) -> None:
    """Run it to the end, ended once in between without notice, as a crash does."""
    asyncio.run(_run_until(app, directory, 600))
    config = Config(directory=directory, parallelism=PARALLELISM, interval_ms=5, port=None, until_done=True)
    asyncio.run(Worker(app, config).run())


async def _run_until(app: App, directory: Path, records: int) -> None:
    config = Config(directory=directory, parallelism=PARALLELISM, interval_ms=5, port=None)
    worker = Worker(app, config)
    running = asyncio.create_task(worker.run())
    while worker.last_checkpoint is None or sum(feed.records for feed in worker.ingresses) < records:
        assert not running.done(), running.exception()
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait({running})


def replayed(app: App, directory: Path, *, first: int | None = None, only: Address | None = None) -> Outcomes:
    with Directory(directory) as opened:
        known = list(opened.history.checkpoints)
        config = Config(directory=directory, parallelism=PARALLELISM)
        return asyncio.run(retrace(app, opened, config, first or known[0], known[-1], only=only))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bank")
    run_live(bank(directory / "out"), directory / "data")
    return directory


def test_the_same_code_gives_no_difference(recorded: Path) -> None:
    outcomes = replayed(bank(recorded / "out"), recorded / "data")

    assert (outcomes.outputs, outcomes.states, outcomes.diverged) == ([], [], None)
    assert outcomes.same
    assert outcomes.invocations > RECORDS
    assert len(outcomes.last.lineage.ancestors) == 1, "the run went on after a crash, and so did the replay"


def test_it_may_begin_in_the_middle_of_everything(recorded: Path) -> None:
    """Messages wait in queues, behind held addresses and for their time; handlers are under way."""
    with Directory(recorded / "data") as opened:
        known = list(opened.history.checkpoints)

    outcomes = [replayed(bank(recorded / "out"), recorded / "data", first=first) for first in known[1:-1:3]]

    assert outcomes
    assert all(each.same for each in outcomes)


def test_what_other_code_does_is_named_from_its_first_message_on(recorded: Path) -> None:
    outcomes = replayed(bank(recorded / "out", fee=lambda booking: booking.amount == 1_500), recorded / "data")

    assert [each.address for each in outcomes.states] == [Address("bank/account", "id-20")]
    (state,) = outcomes.states
    assert state.recorded is not None
    assert state.replayed is not None
    assert state.replayed["state"]["balance"] == state.recorded["state"]["balance"] - 1
    assert outcomes.outputs == [], "the rows of that account are of transfers, which come to others"
    assert outcomes.diverged is not None
    assert outcomes.diverged.step is not None
    assert outcomes.diverged.step.address == Address("bank/account", "id-20")


def test_rows_and_messages_that_differ_are_named_with_what_they_were(recorded: Path) -> None:
    class Doubling(Message):
        amount: int

    app = bank(recorded / "out", fee=lambda booking: 0)
    original = app.functions["bank/account"].handler

    def twice(ctx: Context[Account], message: Booking | Transfer | Reminder) -> None:
        original(ctx, message)
        if isinstance(message, Transfer) and message.amount == 1_000:
            ctx.emit("bank/rows", {"id": ctx.id, "again": True})
        if isinstance(message, Booking) and message.amount == 1_000:
            ctx.send("bank/audit", "all", Transfer(1))

    app.functions["bank/account"].handler = twice

    outcomes = replayed(app, recorded / "data")

    kinds = {(each.replayed.kind, each.replayed.to) for each in outcomes.outputs if each.replayed is not None}
    assert ("row", "bank/rows") in kinds
    assert all(each.recorded is None for each in outcomes.outputs)
    assert not outcomes.same


def test_one_address_can_be_looked_at_alone(recorded: Path) -> None:
    app = bank(recorded / "out", fee=lambda booking: 1)

    everything = replayed(app, recorded / "data")
    one = replayed(app, recorded / "data", only=Address("bank/account", "id-3"))

    assert len(everything.states) == 40
    assert [each.address.id for each in one.states] == ["id-3"]


def test_checkpoints_of_two_histories_are_refused(recorded: Path) -> None:
    with Directory(recorded / "data") as opened:
        known = list(opened.history.checkpoints)
        with pytest.raises(PenstockError, match=r"PEN0443 Checkpoint .* does not follow"):
            asyncio.run(retrace(bank(recorded / "out"), opened, Config(), known[-1], known[0]))


def test_an_input_that_is_not_there_any_more_is_named(recorded: Path) -> None:
    with pytest.raises(PenstockError, match=r"PEN0443 An input ends at .*record 101"):
        replayed(bank(recorded / "out", records=100), recorded / "data")


def test_a_step_is_not_carried_out_again_and_has_the_result_it_had(tmp_path: Path) -> None:
    carried_out: list[int] = []

    def app() -> App:
        app = App("steps")

        @app.function("steps/one")
        async def one(ctx: Context[Account], message: int) -> None:
            async def carry_out() -> int:
                carried_out.append(message)
                return 1_000 + len(carried_out)

            ctx.state.balance += await ctx.run("carry out", carry_out)

        def numbers(start: int) -> Iterator[int]:
            return iter(range(start, 40))

        app.ingress(GeneratorIngress(numbers), to=one, key=lambda number: f"id-{number % 7}", name="numbers")
        return app

    config = Config(directory=tmp_path, parallelism=PARALLELISM, interval_ms=5, port=None)
    asyncio.run(_run_until(app(), tmp_path, 1))
    asyncio.run(Worker(app(), replace(config, until_done=True)).run())
    steps = len(carried_out)
    outcomes = replayed(app(), tmp_path)

    assert outcomes.same
    assert len(carried_out) == steps >= 40


class Ticks(State):
    due: list[int] = []  # noqa: RUF012  # A field.


@pytest.mark.parametrize("way", ["as it was", "in other code"])
def test_schedules_that_ran_through_a_crash_run_again_as_they_did(tmp_path: Path, way: str) -> None:
    def app(cron: str = "* * * * * *") -> App:
        app = App("ticks")

        @app.function("ticks/one")
        def one(ctx: Context[Ticks], run: Scheduled) -> None:
            ctx.state.due.append(run.due_ms)

        for number in range(PARALLELISM):
            app.schedule(cron, one, id=f"id-{number}", missed="all")
        return app

    def ticks(worker: Worker) -> list[list[int]]:
        found = []
        for number in range(PARALLELISM):
            unit = worker.units[key_group(f"id-{number}") % PARALLELISM]
            raw = unit.core.entries["ticks/one"].raw(f"id-{number}")
            found.append(msgspec.msgpack.decode(raw, type=Ticks).due if raw else [])
        return found

    began = time.time()

    async def run_until(count: int, *, crash: bool) -> list[list[int]]:
        config = Config(directory=tmp_path, parallelism=PARALLELISM, interval_ms=5, port=None)
        worker = Worker(app(), config, clock=lambda: began + 100 * (time.time() - began))
        running = asyncio.create_task(worker.run())
        while worker.last_checkpoint is None or min(map(len, ticks(worker))) < count:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.001)
        if crash:
            running.cancel()
            await asyncio.wait({running})
            return []
        worker.stop()
        await running
        return ticks(worker)

    asyncio.run(run_until(10, crash=True))
    found = asyncio.run(run_until(25, crash=False))
    for due in found:
        assert due == list(range(due[0], due[0] + 1_000 * len(due), 1_000))

    outcomes = replayed(app() if way == "as it was" else app("*/2 * * * * *"), tmp_path)
    assert outcomes.same == (way == "as it was")
