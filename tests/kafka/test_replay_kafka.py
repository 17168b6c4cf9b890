"""`penstock replay` of an application on Kafka: aside from production (`--diff`), and as a roll-back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from penstock.engine.cli_common import DIFFERENCES
from tests.kafka.plainly import create_topic, records_of
from tests.kafka.test_run import PENSTOCK, Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

ACCOUNTS, PARTITIONS, BATCH = 40, 8, 25
PAUSE_S = 0.3
BURST = 3_000
"""Bookings that are there when the application starts: it can't take them all at once."""

BANK = """
import asyncio
import os

from penstock import App, Context, KafkaEgress, KafkaIngress, Message, State

app = App("bank")
rows = app.egress("bank/rows", KafkaEgress(os.environ["ROWS"]))


class Booking(Message):
    amount: int


class Transfer(Message):
    amount: int


class Reminder(Message):
    text: str


class Account(State):
    balance: int = 0
    bookings: int = 0


@app.function("bank/account", attempts=2, backoff="1ms")
def account(ctx: Context[Account], message: Booking | Transfer | Reminder) -> int:
    match message:
        case Booking(amount):
            if amount % 97 == 0 and ctx.message.attempt == 1:
                raise RuntimeError("not yet")
            if amount % 101 == 0:
                raise RuntimeError("never")
            ctx.state.balance += amount
            ctx.state.bookings += 1
            ctx.send(account, f"other-{amount % 13}", Transfer(amount))
            ctx.send_after("2ms", account, ctx.id, Reminder("look"), token=f"t{amount % 3}")
        case Transfer(amount):
            ctx.state.balance -= amount
            ctx.emit(rows, {"id": ctx.id, "balance": ctx.state.balance}, key=ctx.id)
        case Reminder():
            ctx.state.bookings += 100
            ctx.send(audit, "all", Transfer(ctx.state.bookings))
    return ctx.state.balance


@app.function("bank/audit")
async def audit(ctx: Context[Account], message: Transfer) -> None:
    ctx.state.balance += message.amount


app.ingress(KafkaIngress(os.environ["BOOKINGS"], type=Booking), to=account, name="bookings")
"""


class Bank:
    """The application of a test, its topics, and everything that was started for it."""

    def __init__(self, folder: Path, kafka: str, app: str) -> None:
        self.folder, self.kafka, self.app = folder, kafka, app
        self.bookings, self.rows = f"{app}-bookings", f"{app}-rows"
        self.runs: list[Run] = []
        (folder / "app.py").write_text(BANK)

    async def create_topics(self) -> None:
        await create_topic(self.kafka, self.bookings, partitions=PARTITIONS)
        await create_topic(self.kafka, self.rows)

    async def book(self, first: int, last: int) -> None:
        """Bookings with these amounts, one bad record, and a transaction that is given up."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, transactional_id=f"{self.app}-feeder")
        await producer.start()
        try:
            for batch in range(first, last, BATCH):
                async with producer.transaction():
                    for n in range(batch, min(batch + BATCH, last)):
                        id = f"id-{n % ACCOUNTS}".encode()
                        await producer.send(self.bookings, json.dumps({"amount": n}).encode(), id)
            async with producer.transaction():
                await producer.send(self.bookings, b"{", b"id-0")
            await producer.begin_transaction()
            await producer.send(self.bookings, b'{"amount": 1000000}', b"id-1")
            await producer.flush()
            await producer.abort_transaction()
        finally:
            await producer.stop()

    @contextmanager
    def booking(self) -> Iterator[None]:
        """Book all the time meanwhile."""
        ended = threading.Event()

        def book() -> None:
            first = BURST
            while not ended.is_set():
                asyncio.run(self.book(first, first + 20 * BATCH))
                first += 20 * BATCH
                ended.wait(PAUSE_S)

        feeder = threading.Thread(target=book)
        feeder.start()
        try:
            yield
        finally:
            ended.set()
            feeder.join()

    async def feed(self, numbers: Iterable[int]) -> None:
        """Numbers, each for an id of its own, in one partition."""
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        await producer.start()
        try:
            for number in numbers:
                await producer.send_and_wait(self.bookings, b"%d" % number, b"id-%d" % number, partition=0)
        finally:
            await producer.stop()

    def run_until(self, count: int, *arguments: str) -> None:
        """Run until so many records are there, and stop in order."""
        run = self.start(*(arguments or ("run",)), "--dir", "first")
        run.wait_until(lambda: self.records_of_rows() >= count, f"{count} rows")
        run.process.terminate()
        run.wait_end()

    def records_of_rows(self) -> int:
        """How many the egress has written so far."""
        return len(asyncio.run(records_of(self.kafka, self.rows)))

    def start(self, *arguments: str) -> Run:
        store = ("--store", str(self.folder / "store"))
        run = Run(self.folder, self.kafka, self.app, *arguments, *store, "--interval", "20ms", count=0, rate=1)
        self.runs.append(run)
        return run

    def ask(self, *arguments: str, code: int = 0) -> Any:
        """What a verb answers."""
        done = subprocess.run(
            [*PENSTOCK, *arguments, "--json", "--dir", "aside"],
            cwd=self.folder,
            env={
                **os.environ,
                "PENSTOCK_KAFKA": self.kafka,
                "PENSTOCK_NAME": self.app,
                "PENSTOCK_STORE": str(self.folder / "store"),
            },
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr.decode()
        return json.loads(done.stdout)

    def replay(self, first: int, *arguments: str, code: int = 0) -> Any:
        """What `replay --diff` finds."""
        return self.ask("replay", "--from", str(first), "--diff", *arguments, code=code)

    def checkpoints(self) -> list[int]:
        return [each["checkpoint"] for each in self.ask("checkpoint", "list")]


@pytest.fixture
def bank(tmp_path: Path, kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    bank = Bank(tmp_path, kafka, kafka_app)
    monkeypatch.setenv("BOOKINGS", bank.bookings)
    monkeypatch.setenv("ROWS", bank.rows)
    asyncio.run(bank.create_topics())
    yield bank
    for run in bank.runs:
        run.process.kill()
        run.process.wait()


def test_the_same_code_gives_no_difference_also_beside_production(bank: Bank) -> None:
    """From one worker to two, to one that goes on alone after the other was killed, with bookings all the time."""
    asyncio.run(bank.book(0, BURST))
    first = bank.start("run", "--dir", "first", "--session-timeout", "2s")
    with bank.booking():
        first.wait_checkpoints(5)
        begin = bank.checkpoints()[1]
        second = bank.start("run", "--dir", "second", "--session-timeout", "2s")
        second.wait_tasks(2)
        answered = first.post("/call/bank/account/id-1", b'{"type": "Reminder", "text": "hello"}')
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        second.wait_tasks(4)
        beside = bank.replay(begin)
    second.process.terminate()
    second.wait_end()
    ends = asyncio.run(all_ends(bank))
    found = bank.replay(begin)

    assert isinstance(answered, int)
    assert (beside["states"], beside["outputs"], beside["first"]) == ([], [], None)
    assert (found["states"], found["outputs"], found["first"]) == ([], [], None)
    assert found["to"] > beside["to"] > begin
    assert found["messages"] > beside["messages"] > BURST
    assert asyncio.run(all_ends(bank)) == ends, "nothing was written"


def test_other_code_is_told_by_the_first_message_and_by_all_that_differs(bank: Bank) -> None:
    asyncio.run(bank.book(0, 300))
    bank.run_until(290)
    begin = bank.checkpoints()[-1]
    asyncio.run(bank.book(300, 600))
    bank.run_until(580)
    code = bank.folder / "fees.py"
    code.write_text(BANK.replace("ctx.state.balance += amount\n", "ctx.state.balance += amount - (amount == 301)\n"))
    assert code.read_text() != BANK

    found = bank.replay(begin, "--code", "fees.py", code=DIFFERENCES)
    alone = bank.replay(begin, "--code", "fees.py", "--only", "bank/account/id-2", code=0)
    until = bank.replay(begin, "--code", "fees.py", "--until", str(found["first"]["checkpoint"]), code=DIFFERENCES)

    assert found["first"]["address"] == "bank/account/id-21"
    assert found["first"]["message"] == {"type": "Booking", "amount": 301}
    assert re.fullmatch(rf"topic {bank.bookings} partition \d+ offset \d+", found["first"]["origin"])
    (state,) = found["states"]
    assert (state["function"], state["id"], state["change"]) == ("bank/account", "id-21", "changed")
    assert state["replayed"]["balance"] == state["recorded"]["balance"] - 1
    assert alone["states"] == []
    assert until["to"] == found["first"]["checkpoint"] < found["to"]


PASSING = """
import os

from penstock import App, Context, KafkaEgress, KafkaIngress, State

app = App("passing")
rows = app.egress("passing/rows", KafkaEgress(os.environ["ROWS"]))


class Seen(State):
    count: int = 0


@app.function("passing/pass")
def pass_(ctx: Context[Seen], number: int) -> None:
    ctx.state.count += 1
    ctx.emit(rows, [number, ctx.state.count], key=ctx.id)


app.ingress(KafkaIngress(os.environ["BOOKINGS"], type=int), to=pass_, name="numbers")
"""


def test_a_roll_back_processes_the_records_of_a_topic_again_under_the_number_of_the_replay(bank: Bank) -> None:
    """To a checkpoint, and to nothing. What leaves from then on says so, and what left before does not."""
    (bank.folder / "app.py").write_text(PASSING)
    asyncio.run(bank.feed(range(3)))
    bank.run_until(3)
    begin = bank.checkpoints()[-1]
    asyncio.run(bank.feed(range(3, 5)))
    bank.run_until(5)
    bank.run_until(7, "replay", "--from", str(begin), "--yes")
    replay = bank.ask("checkpoint", "show", str(bank.checkpoints()[-1]))["replay"]
    bank.run_until(12, "run", "--from", "none")
    fresh = bank.ask("checkpoint", "show", str(bank.checkpoints()[-1]))["replay"]

    records = asyncio.run(records_of(bank.kafka, bank.rows))

    found = [(json.loads(record.value)[0], dict(record.headers).get("penstock-replay")) for record in records]
    assert sorted(found[:5]) == [(number, None) for number in range(5)]
    assert sorted(found[5:7]) == [(number, str(replay).encode()) for number in (3, 4)]
    assert sorted(found[7:]) == [(number, str(fresh).encode()) for number in range(5)]
    assert [json.loads(record.value)[1] for record in records] == [1] * 12, "state went back as well"
    assert 0 < replay < fresh


async def all_ends(bank: Bank) -> dict[TopicPartition, int]:
    """Where each partition of the cluster that belongs to the application ends."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bank.kafka)
    await admin.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=bank.kafka)
    await consumer.start()
    try:
        topics = [topic for topic in await admin.list_topics() if topic.startswith(bank.app)]
        described = await admin.describe_topics(topics)
        places = [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in described
            for partition in topic["partitions"]
        ]
        return dict(await consumer.end_offsets(places))
    finally:
        await consumer.stop()
        await admin.close()
