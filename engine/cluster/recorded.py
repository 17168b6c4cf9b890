"""Checkpoints of an application on Kafka with everything that happened between them, for a run aside from production.

    decisions -> two manifests -> deltas, frames and requests from the one to the other, each partition read once

What always holds: it is only read, and works while the application runs; nobody there learns of it. Leaves records of
ingresses to `penstock.engine.kafka_recording`.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.checkpoint.control import Assign
from penstock.engine.cluster.feeds import frames_of, request_of
from penstock.engine.cluster.looking import read_decisions
from penstock.engine.cluster.replies import replies_apart
from penstock.engine.cluster.saved import KafkaCheckpoints
from penstock.engine.cluster.topics import DEAD
from penstock.engine.effects import Rejected
from penstock.engine.feeds import RequestFeed
from penstock.engine.offline import Recorded
from penstock.records import Envelope, EpochFrame, Frozen


class KafkaRecording(KafkaCheckpoints, Recorded):
    """See the module. Look first, and then load what lies between two of the checkpoints that are there."""

    dead_egress = DEAD

    async def look(self) -> None:
        """Read what was decided. Raises InvalidInput for an application that is not there."""
        await self.refuse_absent()
        moved: set[tuple[int, int, int]] = set()
        for offset, decision in await read_decisions(self._kafka, self._application):
            self.history.apply(offset, decision)
            if isinstance(decision, Assign) and decision.manifest is not None:
                attempt, cut = decision.attempt.lineage.attempt, decision.manifest.checkpoint
                moved.update((attempt, task, cut) for task in decision.moved)
        self.moved = moved

    async def load_between(self, first: int, last: int) -> None:
        """Read two checkpoints, and what happened between them. Raises InvalidInput for one that is not there."""
        begin, end = [await self.load_manifest(number) for number in (first, last)]
        for before, after in zip(begin.parts, end.parts, strict=False):  # Of two topologies the recording is refused.
            # From the oldest that one of them is restored from, or that leads from one to the other.
            oldest = min(before.head + 1, *(part.first for part in (before, after) if part.first >= 0))
            deltas = await self._read_deltas(before.task, oldest)
            self._deltas[before.task, before.head] = self._deltas[after.task, after.head] = deltas
            requests_end = after.ingress_positions.get(RequestFeed.SOURCE)
            await self._load_inputs(before, after.inbox_end, requests_end if isinstance(requests_end, int) else 0)

    # As `Recorded`.

    def frames(self, task: int, start: int) -> Iterator[EpochFrame]:
        for record in self._inbox[task]:
            frames = frames_of(record, f"{self._topics.inbox}-{task}")
            yield from frames if not isinstance(frames, Rejected) else ()

    def requests(self, task: int, start: object) -> Iterator[tuple[int, Envelope | Rejected | None]]:
        for record in self._requests[task]:
            yield record.offset, request_of(record, f"{self._topics.requests}-{task}")

    def foreign(self, task: int, offset: int) -> Rejected:
        record = next(record for record in self._inbox[task] if record.offset == offset)
        found = frames_of(record, f"{self._topics.inbox}-{task}")
        assert isinstance(found, Rejected)
        return found

    def as_frozen(self, frozen: Frozen) -> Frozen:
        return replies_apart(frozen)
