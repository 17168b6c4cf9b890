"""Reading a checkpoint of an application that runs, which forgets its checkpoints as fast as it can."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock import App, Context, State
from penstock.checkpoint.retention import Retention
from penstock.checkpoint.stores import open_place, open_store
from penstock.engine.cluster import leading, taking
from penstock.engine.cluster.candidate import Candidate
from penstock.engine.cluster.looking import read_history, read_newest
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.replies import REPLIES
from penstock.engine.cluster.saved import KafkaCheckpoints
from penstock.engine.cluster.taking import Hold, take_running
from penstock.engine.cluster.topics import DEAD
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.errors import Refused, Unavailable
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import ensure
from tests.kafka.test_cluster_http import run
from tests.kafka.waiting import until

pytestmark = pytest.mark.kafka

FORGETFUL = Retention(all_ms=0, spacing_ms=0, spaced_ms=0)


class Count(State):
    total: int = 0


def counting(name: str) -> App:
    app = App(name)

    @app.function("t/count")
    def count(ctx: Context[Count], number: int) -> int:
        ctx.state.total += number
        return ctx.state.total

    return app


def worker_of(kafka: str, name: str, directory: Path, number: int, *, tasks: int = 2) -> ClusterWorker:
    config = Config(
        directory=directory / str(number), parallelism=tasks, port=None, memory_bytes=64 << 20, retention=FORGETFUL
    )
    options = ClusterOptions(
        kafka=KafkaOptions(kafka), store=str(directory / "store"), instance=f"worker-{number}", session_ms=3_000
    )
    return ClusterWorker(counting(name), config, options)


def test_what_is_pinned_stays_also_under_another_leader_and_goes_when_nobody_reads_it(
    kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "AGE_S", 1.5)
    options = KafkaOptions(kafka)

    async def scenario() -> None:
        workers = [worker_of(kafka, kafka_app, tmp_path, number) for number in range(2)]
        running = [asyncio.create_task(each.run()) for each in workers]
        await until(lambda: all(each.ready for each in workers), *running)
        await workers[0].take_checkpoint()

        async def retained() -> list[int]:
            return list((await read_history(options, kafka_app)).checkpoints)

        async with Hold(options, kafka_app, 1) as hold:
            pinned = (await read_newest(options, kafka_app))[1]
            assert pinned is not None
            await hold.pin(pinned.checkpoint)
            await hold.wait_visible(pinned)
            leader = next(each for each in workers if each.shared.leads)
            candidate = leader._candidate
            assert isinstance(candidate, Candidate)
            assert candidate.service is not None
            candidate.service._fail(Unavailable("PEN0700", "it leads no longer"))
            await until(lambda: candidate.service is None, *running)
            await until(lambda: any(each.shared.leads for each in workers), *running)
            later = await workers[0].take_checkpoint()
            await workers[0].take_checkpoint()
            while later in (found := await retained()):  # noqa: ASYNC110  # Nobody says what is forgotten.
                await asyncio.sleep(0.1)
            assert pinned.checkpoint in found

        await workers[0].take_checkpoint()
        while pinned.checkpoint in await retained():  # noqa: ASYNC110  # As above.
            await asyncio.sleep(0.1)
        for each in workers:
            each.stop()
        await asyncio.gather(*running)

    run(scenario())


def test_without_a_leader_nothing_is_copied(
    kafka: str, kafka_app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "PIN_S", 0.5)
    options = KafkaOptions(kafka)
    found = KafkaCheckpoints(options, kafka_app, open_store(str(tmp_path / "store")), tmp_path)
    blobs = open_place(str(tmp_path / "saved"), Config().bucket)

    async def scenario() -> None:
        await ensure(options, kafka_app, application_id=kafka_app, parallelism=2)
        with pytest.raises(Refused, match="PEN0437"):
            await take_running(found, options, kafka_app, blobs, [REPLIES, DEAD])
        worker = worker_of(kafka, kafka_app, tmp_path, 0)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.ready, running)
        await worker.take_checkpoint()
        worker.stop()
        await running
        with pytest.raises(Unavailable, match="PEN0446"):
            await take_running(found, options, kafka_app, blobs, [REPLIES, DEAD])

    run(scenario())
    assert not (tmp_path / "saved").exists()
