from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.engine.cluster.candidate import Candidate
from penstock.engine.cluster.options import ClusterOptions
from penstock.router.kafka_options import KafkaOptions

UNUSED: Any = None


class Took(Exception):
    """The candidate has taken the role."""


async def takes_the_role(leader: str, silent_s: float, session_ms: float) -> bool:
    """Whether a candidate does so at once that has not heard of a leader for so long."""

    class Taking(Candidate):
        async def _lead(self) -> None:
            raise Took

    link = SimpleNamespace(leader=leader, leader_heard_s=asyncio.get_running_loop().time() - silent_s)
    cluster = ClusterOptions(kafka=KafkaOptions("nowhere:9092"), store="nowhere", session_ms=session_ms)
    with suppress(TimeoutError):
        try:
            async with asyncio.timeout(0.01):
                await Taking(cluster, UNUSED, link, UNUSED).run()
        except Took:
            return True
    return False


@pytest.mark.parametrize(
    ("leader", "silent_s", "session_ms", "takes"),
    [
        pytest.param("one", 3.2, 10_000, False, id="it was heard within a session's third"),
        pytest.param("one", 4.3, 10_000, True, id="it was silent for longer"),
        pytest.param("one", 2.2, 1_000, False, id="it is late, and the session is short"),
        pytest.param("one", 3.3, 1_000, True, id="it is gone, and the session is short"),
        pytest.param("", 0.9, 10_000, False, id="nobody was heard yet"),
        pytest.param("", 1.6, 10_000, True, id="nobody leads"),
    ],
)
def test_a_candidate_takes_the_role_when_the_leader_was_silent_for_long_enough(
    leader: str, silent_s: float, session_ms: float, takes: bool
) -> None:
    assert asyncio.run(takes_the_role(leader, silent_s, session_ms)) is takes
