"""A process that stood still for too long finds that the world went on: it ends, and nothing it does counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kafka.proof.nemeses import FENCED, FREEZES, freeze_worker_for_long, strike
from tests.kafka.proof.running import Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(200)]


def test_frozen_workers_are_fenced_say_so_and_double_nothing(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> Run:
        async with Run(kafka, kafka_app, tmp_path, seed=2, session_timeout="3s") as run:
            await run.progress()
            for nemesis in (*FREEZES, freeze_worker_for_long):
                await run.balanced()
                await strike(run, nemesis)
            assert await run.finish() == []
        return run

    run = asyncio.run(scenario())
    assert run.kills["freeze"] >= 3
    assert FENCED in run.said()
    with capsys.disabled():
        print(f"\n{run.report()} {run.summary}")  # noqa: T201  # For whoever runs the test.
