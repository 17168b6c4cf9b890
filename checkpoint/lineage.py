"""Which attempts the present state descends from, and hence which frames it may still process.

    attempt 1 ──k=7──┐          lineage of attempt 3: ((1, 7), (2, 12)), attempt 3
                     attempt 2 ──k=12──┐
                                       attempt 3 ──>

A frame of attempt 2 counts only if it was sent before cut 12: everything after it was rolled back. A frame of an
attempt that is not in the lineage belongs to a zombie, or to a branch a person has abandoned. Invariant: attempts and
cuts in a lineage both grow.

A lineage also knows the attempts that a person began by going back. What leaves the application from then on says which
of them it comes of, so that whoever gets it can tell it from what came before.
"""

from __future__ import annotations

import msgspec


class Lineage(msgspec.Struct, frozen=True, array_like=True):
    """The attempt that runs, and its ancestors with the cut at which each was left."""

    attempt: int
    ancestors: tuple[tuple[int, int], ...] = ()
    replays: tuple[int, ...] = ()
    """Attempts up to this one that a person began, by going back to a checkpoint or to nothing, oldest first."""

    def replay_of(self, attempt: int) -> int:
        """The last replay that what `attempt` did on this history comes of; 0 when nobody had gone back by then.

        It is the number of an attempt, and not a count: of two replays of one checkpoint each knows nothing of the
        other, and both would be the first.
        """
        return max((each for each in self.replays if each <= attempt), default=0)

    def accepts(self, attempt: int, epoch: int) -> bool:
        """Whether a frame sent in `epoch` of `attempt` is part of this history (PROTOCOL 9; exactly_once I3)."""
        if attempt == self.attempt:
            return True
        return any(attempt == ancestor and epoch < cut for ancestor, cut in self.ancestors)

    def contains(self, attempt: int, checkpoint: int) -> bool:
        """Whether the checkpoint taken by `attempt` lies on this history."""
        if attempt == self.attempt:
            return True
        return any(attempt == ancestor and checkpoint <= cut for ancestor, cut in self.ancestors)

    def descend(self, attempt: int, cut: int) -> Lineage:
        """The lineage of a new attempt that continues from the cut `cut` of this one. Ancestors that were left at or
        after the cut have been rolled back with it and keep only what lies before."""
        assert attempt > self.attempt
        kept = tuple((ancestor, min(left, cut)) for ancestor, left in self.ancestors)
        return Lineage(attempt, (*kept, (self.attempt, cut)), self.replays)

    def replayed(self) -> Lineage:
        """The same, of an attempt that a person began by going back."""
        return self.with_replays((*self.replays, self.attempt))

    def with_replays(self, replays: tuple[int, ...]) -> Lineage:
        return Lineage(self.attempt, self.ancestors, replays)

    def prune(self, attempts: frozenset[int]) -> Lineage:
        """Without the ancestors that no retained checkpoint can still receive frames of."""
        return Lineage(self.attempt, tuple(a for a in self.ancestors if a[0] in attempts), self.replays)

    @property
    def attempts(self) -> frozenset[int]:
        return frozenset({self.attempt, *(ancestor for ancestor, _ in self.ancestors)})
