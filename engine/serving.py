"""What a worker offers to those who look at it or ask something of it: HTTP, metrics, progress.

Both kinds of workers are `Served`: the one that has every task, and the one that shares them with others. What only the
latter can tell is in `shared`, which is None for the former. Changes nothing: a worker says here what it is, and takes
what `Requests` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from penstock.checkpoint.control import Manifest
from penstock.checkpoint.reports import Alive
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.savepoint import Savepoint
from penstock.engine.config import Config
from penstock.engine.feeds import InputFeed
from penstock.engine.looks import Question
from penstock.engine.requests import Requests
from penstock.engine.totals import Totals
from penstock.engine.unit import TaskUnit
from penstock.functions.app import App


class Recovery(NamedTuple):
    """What the worker had to do before its tasks could go on."""

    attempt: int
    restored: int
    """The checkpoint; 0 for none."""
    deltas: int
    took_s: float
    notes: tuple[str, ...] = ()


class CheckpointStatistics(NamedTuple):
    """Since the start of the worker."""

    completed: int
    abandoned: int
    trying_since_ms: float | None
    """Since when there has been something that no complete checkpoint holds; None while there is nothing."""
    measured: int
    """How many are in the sum."""
    duration_ms_sum: float
    durations_ms: Sequence[float]
    """The last of them."""
    retained: int | None
    """How many can be restored; None where only the log of decisions knows."""


class SharedStatistics(NamedTuple):
    """What a worker that shares the tasks with others knows of them, and of Kafka. Counts are since its start."""

    worker: str
    attempt: int
    leader: str
    """Who was heard to lead last; empty for nobody."""
    leads: bool
    """Whether it is this worker."""
    leader_silent_s: float
    members: Sequence[Alive]
    """The workers that the leader knows."""
    tasks: Sequence[int]
    still: Sequence[int]
    """Those of the tasks that take no turns, because they are being handed over."""
    paused: bool
    """Whether tasks take in nothing new, because memory is full."""
    lag: Mapping[str, int]
    """Records of each of the application's own topics that its tasks have not taken yet."""
    unflushed_bytes: int
    """What Kafka has not acknowledged yet."""
    records_read: int
    records_written: int
    adopted: int
    """Tasks that were taken over without a new attempt."""
    given: int
    """Tasks that were handed to others, or to nobody, without a new attempt."""
    rollbacks: int
    """New attempts that threw away what tasks here had done since the last checkpoint."""
    decisions: int
    """Records of the control log that this worker wrote while it led, each in a transaction."""


class Served(Protocol):
    """See the module."""

    app: App
    config: Config
    started_at: float
    stopping: bool
    requests: Requests
    last_checkpoint: Manifest | None
    last_checkpoint_ms: float
    recovery: Recovery

    @property
    def ready(self) -> bool:
        """Whether its tasks, if it has any, take turns."""
        ...

    @property
    def problem(self) -> str:
        """Why it can't do its work at present; empty when it can."""
        ...

    @property
    def restoring(self) -> Mapping[int, int]:
        """The tasks that are being restored, and how many percent of each are."""
        ...

    @property
    def units(self) -> Sequence[TaskUnit]: ...

    @property
    def ingresses(self) -> Sequence[InputFeed]: ...

    def totals(self) -> Totals:
        """What was done here, also by tasks that are elsewhere now."""
        ...

    @property
    def shared(self) -> SharedStatistics | None:
        """None where one process has every task."""
        ...

    def checkpoint_statistics(self) -> CheckpointStatistics: ...

    async def checkpoints(self) -> Sequence[Retained]:
        """The retained checkpoints, oldest first."""
        ...

    async def manifest(self, retained: Retained) -> Manifest:
        """Everything that is known of one of them. Raises CorruptSnapshot when it can't be read."""
        ...

    async def take_checkpoint(self) -> int:
        """Take a checkpoint of everything accepted so far, and return its number once it is complete. Raises Refused
        when the worker ends first."""
        ...

    async def take_savepoint(self, place: str) -> Savepoint:
        """Copy everything accepted so far to an empty place, and return when it is there. Raises Refused, Unavailable,
        and ConfigurationError for what is no place."""
        ...

    async def look(self, task: int, question: Question) -> Any:
        """Put a question to a task, wherever it is. Raises InvalidInput for one that has no answer."""
        ...

    def announce(self, url: str) -> None:
        """Tell whoever looks for this worker that it answers there."""
        ...
