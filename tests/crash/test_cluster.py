"""Workers, the leader and the supervisor of an application on Kafka die at the moments that matter most.

These are some of all points; `make crash-matrix` tries them all, and each also with an exception, a halt, and with
leader and worker dying together.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.faults import POINTS
from tests.crash.matrix import findings_of, try_cluster
from tests.crash.points import embedded, on_kafka, quick

pytestmark = pytest.mark.timeout(290)


@pytest.mark.kafka
@pytest.mark.slow
def test_nothing_is_lost_or_doubled_wherever_processes_are_killed(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    assert findings_of(asyncio.run(try_cluster(kafka, kafka_app, tmp_path, quick()))) == []


def test_every_point_is_tried_somewhere() -> None:
    assert {case.point for case in (*embedded("kill"), *on_kafka("kill"))} == set(POINTS)
    assert len(quick()) >= 20
