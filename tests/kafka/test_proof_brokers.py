"""Exactly once from Kafka to Kafka while brokers are killed, frozen, and started again on the data they left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kafka.broker import temporary_cluster
from tests.kafka.proof.brokers import BROKER_NEMESES, strike_broker
from tests.kafka.proof.nemeses import kill_worker, strike
from tests.kafka.proof.running import Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(280), pytest.mark.usefixtures("java")]


def test_the_only_broker_is_killed_and_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(bootstrap: str) -> Run:
        async with Run(bootstrap, "proof", tmp_path, seed=3) as run:
            await run.progress()
            for nemesis in BROKER_NEMESES:
                await run.work(0.5)
                await nemesis(run, cluster.nodes[0], 1.0)
                await run.progress(within_s=60)
            assert await run.finish() == []
        return run

    with temporary_cluster() as cluster:
        run = asyncio.run(scenario(cluster.bootstrap))
    with capsys.disabled():
        print(f"\n{run.report()} {run.summary}")  # noqa: T201  # For whoever runs the test.


def test_brokers_of_three_are_killed_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(bootstrap: str) -> Run:
        async with Run(bootstrap, "proof", tmp_path, seed=4, replicas=3) as run:
            await run.progress()
            for _ in range(3):
                await strike_broker(run, cluster, 1 + 3 * run.random.random())
                await strike(run, kill_worker)
            assert await run.finish() == []
        return run

    with temporary_cluster(nodes=3) as cluster:
        run = asyncio.run(scenario(cluster.bootstrap))
    with capsys.disabled():
        print(f"\n{run.report()} {run.summary}")  # noqa: T201  # For whoever runs the test.
