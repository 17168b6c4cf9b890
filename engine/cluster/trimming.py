"""Deletes what no retained checkpoint needs: records of the application's own topics, and bases.

What always holds: it deletes only what the leader has said may go, after a record that says so is durable; a failure
leaves something undeleted until the next time, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.checkpoint.leader import Forget
from penstock.engine.background import in_thread
from penstock.engine.cluster.topics import DECISIONS, Topics
from penstock.engine.feeds import RequestFeed
from penstock.errors import PenstockError
from penstock.faults import fault
from penstock.logs import logger
from penstock.router.kafka_admin import Admin
from penstock.router.kafka_options import KafkaOptions

Collect = Callable[[frozenset[str], float], object]
"""Deletes the bases that are old and not among those named. The time in seconds is that of the decision: what was made
since is not judged by it, however late it is carried out."""


class Trimming:
    """See the module."""

    def __init__(self, kafka: KafkaOptions, application: str, *, collect: Collect, generation: int = 1) -> None:
        self._kafka = kafka
        self._topics = Topics.of(application, generation)
        self._collect = collect

    async def forget(self, what: Forget) -> None:
        fault("forget.begun")
        try:
            async with Admin(self._kafka) as admin:
                await admin.delete_records(self._floors(what))
            fault("forget.half")
            await in_thread(self._collect, what.bases, what.decided_ms / 1000)
            fault("forget.done")
        except PenstockError as error:
            logger.warning("%s", error)

    def _floors(self, what: Forget) -> dict[tuple[str, int], int]:
        """The offset of each partition below which nothing is needed."""
        floors = {(self._topics.control, DECISIONS): what.offset}
        for manifest in what.manifests:
            for part in manifest.parts:
                requests = part.ingress_positions.get(RequestFeed.SOURCE)
                positions = {
                    self._topics.inbox: part.inbox_position,
                    self._topics.requests: requests if isinstance(requests, int) else 0,
                    self._topics.deltas: max(part.first, 0),
                }
                for topic, position in positions.items():
                    place = (topic, part.task)
                    floors[place] = min(position, floors.get(place, position))
        return {place: floor for place, floor in floors.items() if floor > 0}
