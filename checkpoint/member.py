"""What a worker makes of the decisions and hints of its leader.

    control log, hints -> which tasks to restore, adopt, let stand still, give away; when to cut; what is complete

What always holds: a task takes turns only while the newest assignment of the newest attempt gives it to this worker,
and not between a cut that released it and an assignment that names its owner again; once an attempt is known to have
begun, nothing of the one before it goes on. The control log is read in order, and hints may come before the decisions
they follow. Performs nothing: the worker does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Manifest
from penstock.checkpoint.reports import Begin, Expelled, Finish, Hint, Leading, Prepare


class Halt(NamedTuple):
    """A new attempt begins: all tasks stop, and nothing of what they did since the last checkpoint counts."""


class Restore(NamedTuple):
    """Begin `attempt` with these tasks, as `manifest` left them (None: empty). Forget all others."""

    attempt: AttemptBegun
    tasks: tuple[int, ...]
    manifest: Manifest | None


class Adopt(NamedTuple):
    """Take these tasks over in the attempt that runs, as `manifest` left them."""

    attempt: AttemptBegun
    tasks: tuple[int, ...]
    manifest: Manifest | None


class Drop(NamedTuple):
    """These tasks stand still, and belong to somebody else now, or to nobody (`orphaned`)."""

    tasks: tuple[int, ...]
    orphaned: frozenset[int]


class GoOn(NamedTuple):
    """These tasks, which stand still, take turns again."""

    tasks: tuple[int, ...]


class Cut(NamedTuple):
    """Take part in this checkpoint. Tasks in `release` stand still from the cut on, if it is this hint that makes
    them cut."""

    checkpoint: int
    release: frozenset[int]


class Settle(NamedTuple):
    """The checkpoint is complete."""

    manifest: Manifest


class Fetch(NamedTuple):
    """These tasks will come here: fetch what can be fetched already."""

    tasks: tuple[int, ...]
    manifest: Manifest | None


class Leave(NamedTuple):
    """Everything is done: ask to be relieved, and stop."""


class End(NamedTuple):
    """This worker was fenced: it must end at once."""

    reason: str
    """What follows the words "this worker"."""


Action = Halt | Restore | Adopt | Drop | GoOn | Cut | Settle | Fetch | Leave | End


class Member:
    """See the module."""

    def __init__(self, worker: str, generation: int = 1) -> None:
        """`generation` is that of the topics it works with."""
        self.worker = worker
        self._generation = generation
        self.attempt: AttemptBegun | None = None
        """The one this worker takes part in."""
        self.tasks: frozenset[int] = frozenset()
        """Those it owns."""
        self._released: dict[int, int] = {}
        """Those of them that stand still, with the checkpoint since whose cut they do."""
        self._newest_attempt = 0
        self._version = 0
        self._resolved = 0
        """The newest checkpoint whose releases the assignments so far have decided."""
        self._begun = (0, 0)
        self._listed = False

    @property
    def number(self) -> int:
        """Of the attempt; 0 before the first."""
        return self.attempt.lineage.attempt if self.attempt is not None else 0

    @property
    def begun(self) -> int:
        """The newest checkpoint of this attempt that the leader has begun; 0 for none. A task that joins in later cuts
        at it as soon as it is there."""
        attempt, checkpoint = self._begun
        return checkpoint if attempt == self.number else 0

    def decided(self, record: ControlRecord) -> list[Action]:
        """A record of the control log, which is durable."""
        match record:
            case AttemptBegun():
                return self._begin_attempt(record)
            case Assign():
                return self._assign(record)
            case Complete(manifest):
                mine = manifest.lineage.attempt == self.number == self._newest_attempt
                return [Settle(manifest)] if mine else []
            case _:
                return []

    def hinted(self, hint: Hint) -> list[Action]:
        match hint:
            case Begin(attempt, checkpoint, release):
                self._begun = max(self._begun, (attempt, checkpoint))
                if attempt != self.number or attempt != self._newest_attempt or not self.tasks:
                    return []
                # What the newest assignment has decided is asked for no more: nothing would end the standing still.
                asked = frozenset(release) if checkpoint > self._resolved else frozenset[int]()
                return [Cut(checkpoint, self.tasks & asked)]
            case Prepare(worker, tasks, manifest):
                return [Fetch(tasks, manifest)] if worker == self.worker else []
            case Expelled(worker, reason):
                return [End(reason)] if worker == self.worker else []
            case Finish(attempt):
                return [Leave()] if attempt == self.number else []
            case Leading():
                return []

    @property
    def still(self) -> Collection[int]:
        """The tasks that stand still."""
        return self._released.keys()

    def released(self, tasks: Iterable[int], checkpoint: int) -> None:
        """These stand still since the cut of this checkpoint."""
        self._released.update(dict.fromkeys(tasks, checkpoint))

    def _begin_attempt(self, begun: AttemptBegun) -> list[Action]:
        if begun.lineage.attempt <= self._newest_attempt:
            return []
        self._newest_attempt = begun.lineage.attempt
        return [Halt()] if self.tasks else []

    def _assign(self, assigned: Assign) -> list[Action]:
        if assigned.version <= self._version:
            return []
        if assigned.generation != self._generation:
            return [End("has the parallelism from before the application was rescaled")]
        self._version, self._resolved = assigned.version, assigned.resolved
        if self.worker not in assigned.members:
            return [End("is not named in the newest assignment")] if self._listed else []
        self._listed = True
        number = assigned.attempt.lineage.attempt
        owned = frozenset(task for task, owner in assigned.owners.items() if owner == self.worker)
        if number == self.number:
            return self._change_tasks(assigned, owned)
        self._newest_attempt = max(self._newest_attempt, number)
        had, self.attempt, self.tasks, self._released = self.tasks, assigned.attempt, frozenset(), {}
        if assigned.manifest is not None and assigned.manifest.lineage.attempt == number:
            # The attempt has taken checkpoints already: this worker came later, and takes its first tasks over.
            assert not had, "a worker has slept through the begin of an attempt"
            return self._change_tasks(assigned, owned)
        self.tasks = owned
        return [Restore(assigned.attempt, tuple(sorted(owned)), assigned.manifest)] if owned or had else []

    def _change_tasks(self, assigned: Assign, owned: frozenset[int]) -> list[Action]:
        """The attempt goes on, with some tasks elsewhere."""
        lost, gained = self.tasks - owned, owned - self.tasks
        assert lost <= self._released.keys(), "a task that takes turns was given away"
        assert gained <= frozenset(assigned.moved), "a task was given to this worker without its state"
        going_on = [task for task, since in self._released.items() if task in owned and since <= assigned.resolved]
        for task in (*lost, *going_on):
            del self._released[task]
        self.tasks = owned
        actions: list[Action] = []
        if lost:
            orphaned = frozenset(task for task in lost if task not in assigned.owners)
            actions.append(Drop(tuple(sorted(lost)), orphaned))
        if going_on:
            actions.append(GoOn(tuple(sorted(going_on))))
        if gained:
            actions.append(Adopt(assigned.attempt, tuple(sorted(gained)), assigned.manifest))
        return actions
