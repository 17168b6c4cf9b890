"""The destination of simulated rows, and the driver that performs on it what a sink's core decides.

As at a transactional destination, whoever opened last is the only one who may commit, and a commit may have happened
although nobody was told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from penstock.checkpoint.sinks import (
    Action,
    Bury,
    Commit,
    CommitFailed,
    Committed,
    Discard,
    Event,
    MarkerFailed,
    MarkerRead,
    ReadMarker,
    TwoPhaseSink,
)
from penstock.engine.sinks import SinkDriver
from penstock.records import EgressRow
from tests.simulation.dice import Dice


class Database:
    """Rows and markers of each task; both change together."""

    def __init__(self, committed: Callable[[int], None]) -> None:
        self.rows: dict[int, list[EgressRow]] = {}
        self.markers: dict[int, dict[int, int]] = {}
        self._owners: dict[int, object] = {}
        self._committed = committed

    def open(self, task: int, owner: object) -> dict[int, int]:
        """Fence every other committer of `task`, then read its marker."""
        self._owners[task] = owner
        return dict(self.markers.get(task, {}))

    def commit(self, task: int, owner: object, rows: Sequence[EgressRow], marker: dict[int, int]) -> bool:
        if self._owners.get(task) is not owner:
            return False
        self.rows.setdefault(task, []).extend(rows)
        self.markers[task] = marker
        self._committed(task)
        return True


class SimulatedDriver(SinkDriver):
    """A driver whose every action, and every report of one, is a step of the world."""

    def __init__(self, task: int, database: Database, dice: Dice, discard: Callable[[int], None]) -> None:
        self._task = task
        self._database = database
        self._dice = dice
        self._core = TwoPhaseSink()
        self._discard = discard
        self._actions: deque[Action] = deque()
        self._report: tuple[Event, int] | None = None
        """What the sink answered, and the checkpoint it covers, on its way here."""
        self.failing = 0.0

    @property
    def quiet(self) -> bool:
        return not self._actions and self._report is None and self._core.quiet

    def handle(self, event: Event) -> None:
        self._actions.extend(self._core.handle(event))

    def step(self) -> None:
        """Do the next thing, if there is one. Between a commit and its report lies a step: a crash may come there."""
        if self._report is not None:
            (event, covered), self._report = self._report, None
            if isinstance(event, Committed):
                self._discard(covered)
            self.handle(event)
        elif self._actions:
            self._perform_now(self._actions.popleft())

    def _perform_now(self, action: Action) -> None:
        match action:
            case ReadMarker():
                marker = self._database.open(self._task, self)
                failed = self._dice.chance(self.failing)
                self._report = (MarkerFailed() if failed else MarkerRead(marker), 0)
            case Commit(rows, marker):
                if self._dice.chance(self.failing):
                    self._report = (CommitFailed(), 0)
                    return
                done = self._database.commit(self._task, self, rows, dict(marker))
                unheard = self._dice.chance(self.failing)
                self._report = (Committed() if done and not unheard else CommitFailed(), max(marker.values()))
            case Discard(_, checkpoint):
                self._discard(checkpoint)
            case Bury():
                raise AssertionError("this database refuses no rows")
