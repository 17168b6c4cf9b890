from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.engine.cluster.candidate import Candidate
from penstock.engine.cluster.options import ClusterOptions
from penstock.router.kafka_options import KafkaOptions

UNUSED: Any = None
CLUSTER = ClusterOptions(kafka=KafkaOptions("nowhere:9092"), store="nowhere")


class Took(Exception):
    """The candidate has taken the role."""


async def takes_the_role(leader: str, silent_s: float, session_ms: float) -> bool:
    """Whether a candidate does so at once that has not heard of a leader for so long."""

    class Taking(Candidate):
        async def _lead(self) -> None:
            raise Took

    link = SimpleNamespace(leader=leader, leader_heard_s=asyncio.get_running_loop().time() - silent_s)
    cluster = replace(CLUSTER, session_ms=session_ms)
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


def test_a_candidate_ends_although_closing_swallows_its_cancellation() -> None:
    """Or its process would never end, and take the role from others while nobody serves its worker."""
    leading = asyncio.Event()

    class Closing(Candidate):
        async def _lead(self) -> None:
            leading.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def main() -> None:
        candidate = Closing(CLUSTER, UNUSED, SimpleNamespace(leader="", leader_heard_s=0.0), UNUSED, at_once=True)
        task = asyncio.create_task(candidate.run())
        await leading.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(main())
