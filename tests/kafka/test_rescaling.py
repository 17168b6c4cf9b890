"""`penstock rescale` of an application on Kafka: more tasks and fewer, in place, and who is refused from then on."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock.checkpoint.stores import open_store
from penstock.engine.cluster import rescaling
from penstock.engine.cluster.looking import Topology, read_topology
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.saved import KafkaCheckpoints
from penstock.engine.config import Config
from penstock.engine.rescaling import Rescaled
from penstock.errors import Fenced, Refused
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import Ensured, inventory, leader_id
from penstock.router.kafka_transactions import KafkaTransactions
from tests.kafka.plainly import create_topic, records_of
from tests.kafka.test_cluster_http import run as in_time
from tests.kafka.test_kafka_ingress import produce
from tests.kafka.test_run import Run
from tests.kafka.test_savepoints_kafka import ask, rows
from tests.kafka.test_taking import counting, worker_of
from tests.kafka.waiting import until

pytestmark = pytest.mark.kafka

COUNT, IDS = 8_000, 97

APP = """
import os
import time

from penstock import App, Context, FileEgress, KafkaEgress, KafkaIngress, State

app = App("ledger")
lines = app.egress("ledger/lines", FileEgress("out"))
records = app.egress("ledger/records", KafkaEgress(os.environ["TOPIC"] + "-out"))


class Count(State):
    count: int = 0


@app.function("ledger/fast")
def fast(ctx: Context[Count], number: int) -> None:
    ctx.state.count += 1
    ctx.send(slow, f"s{ctx.id}", number)


@app.function("ledger/slow")
def slow(ctx: Context[Count], number: int) -> None:
    time.sleep(0.001)
    ctx.state.count += 1
    ctx.emit(lines, {"id": ctx.id, "count": ctx.state.count})
    ctx.emit(records, {"id": ctx.id, "count": ctx.state.count})


app.ingress(KafkaIngress(os.environ["TOPIC"] + "-in", type=int), to=fast, name="numbers")
"""
"""More comes in than is done: messages wait in inboxes, and rows go out all the time."""


def committed(kafka: str, topic: str) -> Counter[tuple[str, int]]:
    found = [json.loads(record.value) for record in asyncio.run(records_of(kafka, topic))]
    return Counter((row["id"], row["count"]) for row in found)


def own_topics(kafka: str, app: str) -> set[str]:
    return {each.name for each in asyncio.run(inventory(KafkaOptions(kafka), app)).holdings if each.kind == "topic"}


def test_tasks_become_more_and_fewer_and_everything_is_done_once(
    tmp_path: Path, kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{kafka_app}-data"
    monkeypatch.setenv("TOPIC", topic)
    (tmp_path / "app.py").write_text(APP)
    asyncio.run(create_topic(kafka, f"{topic}-in", partitions=4))
    asyncio.run(create_topic(kafka, f"{topic}-out", partitions=2))
    keyed = [(b"%d" % (n % IDS), b"%d" % n) for n in range(COUNT)]
    asyncio.run(produce(kafka, f"{topic}-in", keyed, partition=None))

    def started(tasks: int, *arguments: str) -> Run:
        flags = ("--dir", "data", "--parallelism", str(tasks), *arguments)
        return Run(tmp_path, kafka, kafka_app, "run", *flags, count=0, rate=1)

    def rescale(tasks: int, *arguments: str, code: int = 0) -> Any:
        return ask(
            tmp_path, kafka, kafka_app, "rescale", "--dir", "data", "--parallelism", str(tasks), *arguments, code=code
        )

    def done_so_far() -> int:
        return committed(kafka, f"{topic}-out").total()

    first = started(4, "--workers", "2")
    first.wait_working()
    first.wait_until(lambda: done_so_far() > COUNT // 10, "rows")
    assert "PEN0626" in rescale(8, "--yes", code=4)
    first.process.send_signal(signal.SIGTERM)
    first.wait_end()
    before = own_topics(kafka, kafka_app)

    assert rescale(8) == {"before": 4, "after": 8, "done": False}
    assert own_topics(kafka, kafka_app) == before
    done = rescale(8, "--yes")
    assert (done["before"], done["after"], done["done"]) == (4, 8, True)
    shown = ask(tmp_path, kafka, kafka_app, "savepoint", "show", done["savepoint"], "--dir", "data")
    assert shown["parallelism"] == 4
    assert own_topics(kafka, kafka_app) == {f"{kafka_app}.{part}" for part in ("control", "dead")} | {
        f"{kafka_app}.{part}-g2" for part in ("inbox", "requests", "deltas", "egress-marks", "replies", "reports")
    }
    listed = ask(tmp_path, kafka, kafka_app, "checkpoint", "list", "--dir", "data")
    assert [each["checkpoint"] for each in listed] == [done["checkpoint"]]
    assert "PEN0441" in rescale(8, "--yes", code=4)
    refused = started(4)
    refused.wait_end(4)
    assert "PEN0745" in refused.log
    assert "Start it with parallelism = 8" in refused.log

    second = started(8, "--workers", "2")
    second.wait_working()
    already = done_so_far()
    second.wait_until(lambda: done_so_far() > already, "rows")
    second.process.send_signal(signal.SIGTERM)
    second.wait_end()
    assert rescale(2, "--yes")["before"] == 8

    third = started(2)
    third.wait_log("continued from")
    third.wait_until(lambda: done_so_far() >= COUNT, "rows")
    third.process.send_signal(signal.SIGTERM)
    third.wait_end()
    expected = Counter({(f"s{n % IDS}", n // IDS + 1): 1 for n in range(COUNT)})
    assert committed(kafka, f"{topic}-out") == expected
    assert rows(tmp_path) == expected


def config_of(directory: Path, tasks: int) -> Config:
    return Config(directory=directory / "rescaling", parallelism=tasks, memory_bytes=64 << 20)


async def rescaled_to(tasks: int, kafka: str, name: str, directory: Path) -> Rescaled:
    cluster = ClusterOptions(kafka=KafkaOptions(kafka), store=str(directory / "store"))
    config = config_of(directory, tasks)
    found = KafkaCheckpoints(cluster.kafka, name, open_store(cluster.store), directory)
    return await rescaling.rescale(
        counting(name), config, cluster, found, now_ms=int(time.time() * 1000), progress=lambda done, total: None
    )


def test_when_somebody_leads_meanwhile_nothing_has_changed_and_it_can_be_done_again(
    kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = KafkaOptions(kafka)
    begin = rescaling._begin

    async def disturbed(*arguments: Any) -> Ensured:
        ensured = await begin(*arguments)
        other = KafkaTransactions(options, leader_id(kafka_app))
        await other.fence()
        await other.close()
        return ensured

    async def run_for_a_moment(number: int, tasks: int) -> int:
        worker = worker_of(kafka, kafka_app, tmp_path, number, tasks=tasks)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.ready, running)
        checkpoint = await worker.take_checkpoint()
        worker.stop()
        await running
        return checkpoint

    async def scenario() -> None:
        await run_for_a_moment(0, 2)
        with monkeypatch.context() as patched:
            patched.setattr(rescaling, "_begin", disturbed)
            with pytest.raises(Fenced):
                await rescaled_to(4, kafka, kafka_app, tmp_path)
        assert await read_topology(options, kafka_app) == Topology(1, 2)
        before = await run_for_a_moment(1, 2)

        done = await rescaled_to(4, kafka, kafka_app, tmp_path)

        assert done.checkpoint > before
        assert await read_topology(options, kafka_app) == Topology(2, 4)
        assert await run_for_a_moment(2, 4) > done.checkpoint

    in_time(scenario())


def test_a_worker_that_slept_meanwhile_ends(
    kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(kafka: KafkaOptions, application: str) -> None:
        """As if the worker had not been heard of."""

    async def scenario() -> None:
        worker = worker_of(kafka, kafka_app, tmp_path, 0)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.ready, running)
        await worker.take_checkpoint()
        monkeypatch.setattr(rescaling, "refuse_alive", nobody)

        await rescaled_to(1, kafka, kafka_app, tmp_path)

        with pytest.raises((Fenced, Refused), match=r"PEN0770|PEN0448"):
            await running

    in_time(scenario())
