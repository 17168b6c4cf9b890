"""Which checkpoint a new attempt continues from, according to what the control log says.

Newest COMPLETE of the current attempt; else the checkpoint that attempt began from (never "the latest overall", which
would silently undo a person's replay); else, when the files of a candidate turn out to be damaged, the next older one
on the lineage (PROTOCOL 16). Pure: the caller reads the log, tries the candidates in order, and says loudly when it
had to go back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Manifest, Recap, Reserve
from penstock.checkpoint.coordinator import RESERVED_IDS
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.retention import Retained
from penstock.errors import Refused


def attempts_needed(restored: Manifest, retained: Iterable[Manifest]) -> Callable[[int], bool]:
    """Which ancestors the lineage of an attempt that continues `restored` must still name, so that it does not grow
    with every attempt (PROTOCOL 16).

    `retained` has the oldest retained checkpoint of every attempt that has one. Of those on the history of `restored`
    an attempt before all is needed only while an inbox is still to be read from before the end it had at the oldest of
    them: nothing of that attempt lies behind it. Other histories have lineages of their own.
    """
    behind = [each for each in retained if restored.lineage.contains(each.lineage.attempt, each.checkpoint)]
    oldest = min([restored, *behind], key=lambda manifest: manifest.checkpoint)
    ends = {part.task: part.inbox_end for part in oldest.parts}
    passed = all(part.task in ends and part.inbox_position >= ends[part.task] for part in restored.parts)
    return lambda attempt: not passed or attempt >= oldest.lineage.attempt


class History:
    """What the control log says, record by record."""

    def __init__(
        self,
        attempt: AttemptBegun | None = None,
        high: int = 0,
        checkpoints: Iterator[Retained] | None = None,
        scanned: int = 0,
        *,
        deltas_apart: bool = False,
    ) -> None:
        """`deltas_apart`: deltas do not stand in the control log, so their offsets say nothing about it."""
        self._deltas_apart = deltas_apart
        self._parallelism = 0
        """Of the newest checkpoint; 0 while none is known."""
        self.attempt = attempt
        """The newest attempt."""
        self.assigned: Assign | None = None
        """The newest assignment of tasks to workers, where there are several."""
        self.high = high
        """The highest reserved checkpoint id: no epoch has ever been above it."""
        self._attempts_skipped = 0
        self._attempt_seen = 0
        self.checkpoints: dict[int, Retained] = {each.checkpoint: each for each in checkpoints or ()}
        """Complete and restorable, oldest first."""
        self.scanned = scanned
        """Where the log continues behind the last record taken in."""
        self.missing: set[int] = set()
        """Retained checkpoints whose records stand before the first that was taken in: nothing is known of them."""

    def apply(self, offset: int, record: ControlRecord) -> None:
        """Take in the record that stands at `offset`, which is durable. Records come in the order of the log."""
        self.scanned = offset + 1
        match record:
            case Reserve(high):
                self.high = max(self.high, high)
            case AttemptBegun():
                self.attempt = record
                self.high = max(self.high, record.high)
            case Assign():
                self.assigned = record
            case Recap(attempt, high, assigned, retained, newest):
                self.attempt, self.assigned = attempt, assigned
                self.high = max(self.high, high)
                # Of those named by an older repetition some may have been deleted since.
                kept = frozenset(retained)
                self.checkpoints = {each: found for each, found in self.checkpoints.items() if each in kept}
                if newest is not None:
                    self._parallelism = newest[1].parallelism
                    self._hold(*newest)
                self.missing = set(kept - self.checkpoints.keys())
            case Complete(manifest):
                self._forget_other_tasks(manifest)
                self._learn_attempt(manifest)
                self._hold(offset, manifest)

    @property
    def generation(self) -> int:
        """Of the topics that tasks work with, where there are several workers."""
        return self.assigned.generation if self.assigned is not None else 1

    def _forget_other_tasks(self, manifest: Manifest) -> None:
        """With another parallelism, an application of several workers begins new topics: what the checkpoints before
        need is gone with those they lie in."""
        if self._deltas_apart and self._parallelism not in (0, manifest.parallelism):
            self.checkpoints.clear()
            self.missing.clear()
        self._parallelism = manifest.parallelism

    def recall(self, offset: int, manifest: Manifest) -> bool:
        """Take in a record that stands before those known so far. Returns whether it was missing."""
        if manifest.checkpoint not in self.missing:
            return False
        self.missing.discard(manifest.checkpoint)
        self._hold(offset, manifest)
        if not self.missing:
            self.checkpoints = dict(sorted(self.checkpoints.items()))
        return True

    def _hold(self, offset: int, manifest: Manifest) -> None:
        self.checkpoints[manifest.checkpoint] = Retained(
            manifest.checkpoint,
            offset,
            manifest.created_ms,
            manifest.lineage.attempt,
            -1 if self._deltas_apart else manifest.first,
            tuple(part.base for part in manifest.parts if part.base),
            manifest.delta_bytes,
            manifest.reason,
        )

    def _learn_attempt(self, manifest: Manifest) -> None:
        """Learn from a checkpoint of the attempt that took it. That is news when the index is lost, and the record that
        began the attempt has been truncated."""
        lineage = manifest.lineage
        if self.attempt is None or self.attempt.lineage.attempt < lineage.attempt:
            restored = lineage.ancestors[-1][1] if lineage.ancestors else 0
            self.attempt = AttemptBegun(lineage, restored, manifest.checkpoint, manifest.created_ms)
        self.high = max(self.high, manifest.checkpoint)

    def skip(self, count: int) -> None:
        """Some records could not be read: pass over so many ids and attempts that none they issued is used again."""
        self.high += count
        self._attempts_skipped = count

    def pass_attempt(self, number: int) -> None:
        """An attempt that this log may know nothing of has left its traces: begin only later ones. It happens when the
        log is a backup, and the original ran on."""
        self._attempt_seen = max(self._attempt_seen, number)

    def candidates(self) -> Iterator[Retained]:
        """What a recovery may restore, best first. Nothing left means: the empty state, if nothing was ever
        complete."""
        if self.attempt is None:
            return
        lineage, restored = self.attempt.lineage, self.attempt.restored
        for each in sorted(self.checkpoints.values(), key=lambda c: c.checkpoint, reverse=True):
            own = each.attempt == lineage.attempt
            if own or (each.checkpoint <= restored and lineage.contains(each.attempt, each.checkpoint)):
                yield each

    def chosen(self, checkpoint: int) -> Retained:
        """The checkpoint a person wants to replay from. Raises Refused when it is not retained."""
        found = self.checkpoints.get(checkpoint)
        if found is None:
            known = f"{min(self.checkpoints)} to {max(self.checkpoints)}" if self.checkpoints else "none"
            raise Refused(
                "PEN0403",
                f"Checkpoint {checkpoint} can't be replayed: it is not retained. Retained: {known}. "
                "List them: penstock checkpoint list.",
            )
        return found

    def next_attempt(
        self, lineage: Lineage | None, restored: int, now_ms: int, reason: str, *, replay: bool = False
    ) -> AttemptBegun:
        """The record that begins an attempt which continues `restored`, a checkpoint of `lineage`
        (None and 0: nothing). `replay`: a person goes back to it.

        Its ids are above every id that was ever issued, on whichever branch, and its number above every attempt seen.
        """
        known = (self.attempt.lineage.attempt if self.attempt is not None else 0) + self._attempts_skipped
        number = max(known, self._attempt_seen) + 1
        descended = Lineage(number) if lineage is None else lineage.descend(number, restored)
        if self.attempt is not None:
            # A replay that ended before its first checkpoint is known of its attempt alone.
            descended = descended.replayed() if replay else descended.with_replays(self.attempt.lineage.replays)
        return AttemptBegun(descended, restored, self.high + RESERVED_IDS, now_ms, reason)
