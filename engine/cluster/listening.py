"""Listens to whoever leads, for a process that has no tasks: it waits for the role, or for something it asked for.

What always holds: the leader shows itself every second, in the hints; what was said before `start` is of no interest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from penstock.checkpoint.reports import Leading
from penstock.engine.cluster.topics import HINTS, Topics, hint_in
from penstock.errors import PenstockError
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import KafkaReader

RECORDS_MAX = 1_000


class Listener:
    """See the module. What a `Candidate` wants to know."""

    def __init__(self, kafka: KafkaOptions, application: str, *, failed: Callable[[PenstockError], None]) -> None:
        self.leader = ""
        self.leader_heard_s = 0.0
        self.pinned: tuple[int, ...] = ()
        """Checkpoints that it retains because somebody asked for it."""
        self._kafka = kafka
        self._place = (Topics.of(application).control, HINTS)
        self._reader = KafkaReader(kafka, isolation="read_committed", on_records=self._hear, failed=failed)

    async def start(self) -> None:
        await self._reader.start()
        self._reader.add(*self._place, (await offsets(self._kafka, [self._place]))[self._place].end)
        self.leader_heard_s = asyncio.get_running_loop().time()

    async def close(self) -> None:
        await self._reader.close()

    def _hear(self) -> None:
        for record in self._reader.take(*self._place, RECORDS_MAX):
            hint = hint_in(record)
            if isinstance(hint, Leading):
                self.leader, self.pinned = hint.leader, hint.pinned
                self.leader_heard_s = asyncio.get_running_loop().time() if hint.leader else -math.inf
