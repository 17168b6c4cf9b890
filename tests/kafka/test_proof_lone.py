"""Exactly once by workers without a supervisor, as they run in containers: whoever is there leads, too.

Nobody sees a process end there: that a worker is gone shows only in its silence, and so does that the leader is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kafka.proof.nemeses import LONE, strike
from tests.kafka.proof.running import BRISK, Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(280)]


def test_nothing_is_lost_or_doubled_where_workers_lead_themselves(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> Run:
        async with Run(
            kafka,
            kafka_app,
            tmp_path,
            app="tests.kafka.proof.brisk:app",
            seed=5,
            lone=True,
            session_timeout="3s",
            environment=BRISK,
        ) as run:
            await run.progress()
            for nemesis in LONE:
                await strike(run, nemesis)
            assert await run.finish() == []
        return run

    run = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\n{run.report()} {run.summary}")  # noqa: T201  # For whoever runs the test.
