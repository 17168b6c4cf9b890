"""Exactly once from Kafka to Kafka, whoever is killed, and whenever.

By chance from outside, and by themselves at the moments that are hardest to hit: around transactions, acknowledgements,
restores and decisions.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.kafka.proof.nemeses import KILLS, strike
from tests.kafka.proof.running import BRISK, Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(280)]

KILLS_WANTED = 30
CRASHES_WANTED = 12
ENDS_AT_ONCE = 2
"""So many processes may meet their end between two times that rows came out: of the three that there are."""
CRASHES = {**BRISK, "PROOF_CRASH_RATE": "0.02", "PROOF_STILL_S": "4"}


def test_nothing_is_lost_or_doubled_when_processes_are_killed(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> Run:
        app = "tests.kafka.proof.brisk:app"
        async with Run(kafka, kafka_app, tmp_path, app=app, seed=1, environment=BRISK) as run:
            await run.progress()
            for nemesis in KILLS:
                await strike(run, nemesis)
            while run.kills.total() < KILLS_WANTED:
                await strike(run, run.random.choice(KILLS))
            assert await run.finish() == []
        return run

    run = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\n{run.report()} {run.summary}")  # noqa: T201  # For whoever runs the test.


def test_nothing_is_lost_or_doubled_when_processes_die_at_the_worst_moments(
    kafka: str, kafka_app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> Counter[str]:
        app = "tests.kafka.proof.crashing:app"
        async with Run(kafka, kafka_app, tmp_path, app=app, session_timeout="3s", environment=CRASHES) as run:
            while (ends := _ends(run)).total() < CRASHES_WANTED:
                run.permit(ENDS_AT_ONCE)
                await run.progress(within_s=60)
            assert await run.finish() == []
            return ends

    ends = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\n{ends.total()} processes met their end: {dict(ends)}")  # noqa: T201  # For whoever runs the test.


def _ends(run: Run) -> Counter[str]:
    return Counter(re.findall("^(?:dies|stands still) .*$", run.said(), re.MULTILINE))
