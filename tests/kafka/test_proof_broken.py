"""The proof notices when the product lacks a rule of the protocol: otherwise it would prove nothing.

Workers are killed one after the other, as in the proof, and the checker looks after each kill. The build that has all
rules it must find in order, although frames and hints are as late there as in the others.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kafka.proof.running import Run

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

APP = "tests.kafka.proof.broken:app"
KILLS_MAX = 8
INTACT_KILLS = 3


@pytest.mark.parametrize(
    ("without", "sign"),
    [
        pytest.param("marker", "doubled", id="rows committed without a look at the marker"),
        pytest.param("lineage", "doubled", id="frames of what was rolled back processed"),
        pytest.param("rule-f", "doubled", id="frames of a newer epoch processed before the cut"),
        pytest.param("flush", "is due", id="a cut acknowledged before its frames are durable"),
    ],
)
def test_the_checker_finds_what_a_broken_build_does(
    kafka: str, kafka_app: str, tmp_path: Path, without: str, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> int:
        async with Run(kafka, kafka_app, tmp_path, app=APP, environment={"PROOF_WITHOUT": without}) as run:
            await run.progress()
            for kills in range(1, KILLS_MAX + 1):
                await run.kill_a_worker()
                if any(sign in anomaly for anomaly in await run.check("unfinished")):
                    return kills
        return 0

    kills = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\nwithout {without}: found after {kills} kills")  # noqa: T201  # For whoever runs the test.
    assert kills


def test_the_checker_finds_the_same_build_in_order_with_all_rules(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Run(kafka, kafka_app, tmp_path, app=APP) as run:
            await run.progress()
            for _ in range(INTACT_KILLS):
                await run.kill_a_worker()
            assert await run.finish() == []

    asyncio.run(scenario())
