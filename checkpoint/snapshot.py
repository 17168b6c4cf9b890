"""The aligned protocol on the side of one task: at which frame it cuts, and when it may acknowledge.

                 Begin(k), or a frame of epoch k           delta appended, sends durable
    RUNNING(e) ─────────────────────────────────> CUT(k) ───────────────────────────────> RUNNING(k)
                                                     └──── append failed: the layer waits for the next cut

What always holds: no frame of a newer epoch is processed before the cut that begins it (Rule F); a frame is processed
only if the lineage accepts it; what is sent carries the attempt and the epoch it is sent in; a task acknowledges only
what is durable, and a failed delta is part of the next (PROTOCOL 9 to 11). Freezes and writes nothing itself.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from penstock.checkpoint.control import Part
from penstock.checkpoint.delta import merge_frozen
from penstock.checkpoint.lineage import Lineage
from penstock.records import Envelope, EpochFrame, Frozen


class Admission(Enum):
    """What to do with a frame."""

    PROCESS = "it belongs to this history and epoch"
    DROP = "it was rolled back, or sent by a zombie"
    CUT_FIRST = "it belongs to a newer epoch: cut at that epoch, then ask again"


class BaseRef(NamedTuple):
    """The base that deltas build on."""

    name: str = ""
    checkpoint: int = 0
    first: int = -1
    """Offset of the oldest delta not contained in the base; -1 while there is none."""


class Snapshot(NamedTuple):
    """A cut to be written: the delta since the last one that was appended."""

    frozen: Frozen
    previous: int


class SnapshotTask:
    """See the module. One per task and attempt."""

    def __init__(self, task: int, lineage: Lineage, epoch: int, *, base: BaseRef, head: int, checksum: int) -> None:
        self._task = task
        self.lineage = lineage
        self._epoch = epoch
        self._base = base
        self._head = head
        self._checksum = checksum
        self._unwritten: Frozen | None = None
        self._writing: int | None = None
        self.dropped = 0

    @property
    def epoch(self) -> int:
        """The number of the last cut this task has passed."""
        return self._epoch

    @property
    def attempt(self) -> int:
        return self.lineage.attempt

    @property
    def base_name(self) -> str:
        return self._base.name

    @property
    def base_checkpoint(self) -> int:
        """The cut of the newest base."""
        return self._base.checkpoint

    @property
    def writing(self) -> int | None:
        """The checkpoint whose delta is being written."""
        return self._writing

    def admit(self, frame: EpochFrame) -> Admission:
        """Rule F and the lineage filter."""
        if not self.lineage.accepts(frame.attempt, frame.epoch):
            self.dropped += 1
            return Admission.DROP
        if frame.attempt == self.lineage.attempt and frame.epoch > self._epoch:
            return Admission.CUT_FIRST
        return Admission.PROCESS

    def stamp(self, sequence: int, messages: list[Envelope]) -> EpochFrame:
        """The frame of messages that leave now."""
        return EpochFrame(self.lineage.attempt, self._epoch, self._task, sequence, messages)

    def wants(self, checkpoint: int) -> bool:
        """Whether Begin(checkpoint) calls for a cut. It does not when a frame of that epoch came first."""
        return checkpoint > self._epoch

    def cut(self, frozen: Frozen) -> Snapshot:
        """The core was frozen at `frozen.checkpoint`, between two batches. What is sent from now on is of that
        epoch."""
        assert frozen.checkpoint > self._epoch
        self._epoch = frozen.checkpoint
        if self._unwritten is not None:
            frozen = merge_frozen(self._unwritten, frozen)
        self._unwritten = frozen
        self._writing = frozen.checkpoint
        return Snapshot(frozen, self._head)

    def written(
        self,
        checkpoint: int,
        offset: int,
        checksum: int,
        *,
        inbox_end: int,
        staged: tuple[int, ...] | None = None,
        visible: int = -1,
    ) -> Part:
        """The delta was appended at `offset`, behind everything this task sent before the cut. `staged`: the earlier
        attempts of rows whose fate the cut does not know; `visible`: rows of checkpoints up to this one were visible.
        Returns what to acknowledge. The delta is the one the next extends, whether this checkpoint completes or not
        (PROTOCOL 10)."""
        assert checkpoint == self._writing
        assert self._unwritten is not None
        meta = self._unwritten.meta
        self._head, self._checksum = offset, checksum
        if self._base.first < 0:
            self._base = self._base._replace(first=offset)
        self._unwritten, self._writing = None, None
        return Part(
            task=self._task,
            base=self._base.name,
            base_checkpoint=self._base.checkpoint,
            head=offset,
            checksum=checksum,
            first=self._base.first,
            inbox_position=meta.inbox_position,
            inbox_end=inbox_end,
            ingress_positions=dict(meta.ingress_positions),
            staged=staged,
            visible=visible,
        )

    def failed(self, checkpoint: int) -> None:
        """The delta could not be appended. Its changes stay here, for the next cut."""
        assert checkpoint == self._writing
        self._writing = None

    def rebase(self, base: BaseRef) -> None:
        """A base now contains everything up to its cut: later checkpoints build on it."""
        assert base.checkpoint > self._base.checkpoint
        self._base = base
