"""Forgets old checkpoints of a data directory, and what only they needed.

    retention -> index without them -> journal, bases and inputs that nobody needs are deleted

What always holds: nothing that a retained checkpoint reads is deleted, on whichever branch it lies. Which checkpoints
may go is decided by `retention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.checkpoint.retention import Retained, decide, oldest_of_attempts, tells_what_is_read, truncation_point
from penstock.checkpoint.store import UNREFERENCED_S
from penstock.engine.background import in_thread
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory
from penstock.engine.feeds import RequestFeed
from penstock.engine.unit import TaskUnit
from penstock.errors import CorruptSnapshot
from penstock.faults import fault
from penstock.ids import Offset
from penstock.logs import logger


class Forgetting:
    """See the module. `units` are those that run on the directory."""

    def __init__(
        self, config: Config, units: Sequence[TaskUnit], data: DataDirectory, *, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._units = units
        self._data = data
        self._clock = clock

    async def run(self) -> None:
        """Forget old checkpoints, and what only they needed. What waits for the disk does so in a thread: syncing the
        index and deleting large files take tens of ms."""
        history, journal, now_s = self._data.history, self._data.journal, self._clock()
        restored = {history.attempt.restored} if history.attempt is not None else set()
        needed = frozenset(restored | self._data.pinned)
        verdict = decide(list(history.checkpoints.values()), self._config.retention, int(now_s * 1000), needed=needed)
        for dropped in verdict.over_limit:
            logger.warning(
                "PEN0402 Checkpoint %d is dropped before its time: checkpoints reached their limit of %s bytes.",
                dropped.checkpoint,
                f"{self._config.retention.bytes_max:,}",
            )
        history.checkpoints = {each.checkpoint: each for each in verdict.kept}
        fault("forget.begun")
        # The checkpoints that complete meanwhile are in the index, or are read from the journal behind it.
        await in_thread(journal.write_index, history)
        point = truncation_point(verdict.kept)
        if point is not None:
            journal.truncate(point)
        fault("forget.half")
        bases = {base for each in verdict.kept for base in each.bases}
        bases |= {unit.snapshot.base_name for unit in self._units}
        await in_thread(self._data.store.collect, bases, now_s - UNREFERENCED_S)
        attempt = history.attempt
        if attempt is None or tells_what_is_read(
            verdict.kept, attempt=attempt.lineage.attempt, restored=attempt.restored
        ):
            self._truncate_inputs(verdict.kept)
        fault("forget.done")

    def _truncate_inputs(self, kept: Sequence[Retained]) -> None:
        """Requests and frames before the positions of every retained checkpoint are needed by nobody."""
        floors: dict[str, int] = {}
        for each in oldest_of_attempts(kept):
            try:
                manifest = self._data.journal.manifest(each)
            except CorruptSnapshot as error:
                logger.error("%s", error)
                return
            for part in manifest.parts:
                requests = part.ingress_positions.get(RequestFeed.SOURCE)
                positions = {
                    f"inbox-{part.task}": part.inbox_position,
                    f"requests-{part.task}": requests if isinstance(requests, int) else 0,
                }
                for partition, position in positions.items():
                    floors[partition] = min(position, floors.get(partition, position))
        for partition, floor in floors.items():
            self._data.log.truncate(partition, Offset(floor))
