from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.checkpoint.reports import Ended
from penstock.engine.cluster import candidate as candidate_module
from penstock.engine.cluster.candidate import Candidate
from penstock.engine.cluster.options import ClusterOptions
from penstock.errors import Unavailable
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


@pytest.mark.parametrize("early", [True, False], ids=["before anybody leads here", "between two leaders"])
def test_the_end_of_a_worker_is_kept_for_a_leader_that_is_not_there_yet(
    early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the reports from their end on, so it would have to wait for the session of that worker to end."""
    ended, heard, begun = Ended("a#1", "was killed"), list[list[Ended]](), list[int]()

    class Service:
        leader = None
        written = 0

        def __init__(self, *_: object, **__: object) -> None:
            heard.append([])

        def hear(self, report: Ended) -> None:
            heard[-1].append(report)

        async def run(self) -> None:
            begun.append(len(begun))
            if len(begun) == 2:
                raise Took
            raise Unavailable("PEN0710", "Nobody answers.")

    class AtOnce(Candidate):
        async def _lead(self) -> None:
            if early == (not begun):
                self.hear(ended)
            self._at_once = True
            await super()._lead()

    monkeypatch.setattr(candidate_module, "LeaderService", Service)
    options: Any = SimpleNamespace(application="shop", name="leader#1", generation=1)
    link = SimpleNamespace(leader="", leader_heard_s=-math.inf)
    with pytest.raises(Took):
        asyncio.run(AtOnce(CLUSTER, options, link, UNUSED, at_once=True).run())
    assert heard == ([[ended], [ended]] if early else [[], [ended]])
