"""Decides when the rows of one task go to one egress, so that each becomes visible exactly once (PROTOCOL 20 and 21).

What always holds: a row is committed only after the checkpoint that holds it is complete; a row whose (attempt,
checkpoint) the marker covers is never committed again; after an outcome that is unknown the marker is read before
anything else is done; rows go out in the order they were staged. Performs nothing: the driver hands each action to
the sink of the egress, one at a time and in order, and reports how it went.

A row is safe before it is staged here: it is part of a durable snapshot. So everything in this module may be lost at
any moment; `Restored` brings back what the snapshot holds, and the marker says which of it is visible.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias, assert_never

from penstock.records import EgressRow, rows_of_replay

# Events: what happened.


@dataclass(frozen=True, slots=True)
class Staged:
    """A durable snapshot holds these rows; COMPLETE(`checkpoint`) of `attempt` will decide them."""

    attempt: int
    checkpoint: int
    rows: Sequence[EgressRow]


@dataclass(frozen=True, slots=True)
class Completed:
    """`checkpoint` of `attempt` is complete: what was staged for it, or before, is decided."""

    attempt: int
    checkpoint: int


@dataclass(frozen=True, slots=True)
class Restored:
    """The task was set back to a complete checkpoint, which holds `batches`, the oldest first. All else is void."""

    batches: Sequence[Staged]


@dataclass(frozen=True, slots=True)
class MarkerRead:
    """The sink says which checkpoint of each attempt is visible."""

    marker: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class MarkerFailed:
    """The sink could not say."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The rows and the marker are visible."""


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The rows and the marker are visible or not: nobody knows."""


@dataclass(frozen=True, slots=True)
class RowsRejected:
    """Nothing of the commit is visible, because these of its rows never can be: index and reason of each."""

    rejected: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Buried:
    """The rows of the `Bury` with this number are durable as dead letters."""

    number: int


Event: TypeAlias = (
    Staged | Completed | Restored | MarkerRead | MarkerFailed | Committed | CommitFailed | RowsRejected | Buried
)

# Actions: what to do.


@dataclass(frozen=True, slots=True)
class ReadMarker:
    """Ask the sink for its marker, after `delay_s`; then report MarkerRead or MarkerFailed."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit `rows` together with `marker`; then report Committed, CommitFailed or RowsRejected."""

    rows: Sequence[EgressRow]
    marker: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Bury:
    """Make these rows dead letters, with the reason of each; report Buried when a complete checkpoint holds them.

    After a crash the same rows may come again: a dead letter is filed under the cause of its row.
    """

    rows: Sequence[tuple[EgressRow, str]]
    number: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Rows of `attempt` up to `checkpoint` are visible: the next snapshot need not hold them."""

    attempt: int
    checkpoint: int


Action: TypeAlias = ReadMarker | Commit | Bury | Discard


class Phase(Enum):
    """What is known of the marker, and what the sink is doing.

              restored, or rows decided   marker read
        UNKNOWN ---------------> READING -------------> READY <------------.
           ^                      |   ^                   | rows decided   | committed
           | restored             '---'                   v                |
           |                   marker failed          COMMITTING ----------'
           |                      ^                       |   ^
           '--(from any phase     '-----------------------'   | buried
               but READING)             outcome unknown   |   |
                                                          v   |
                                          rows rejected  BURYING

    After a restore the marker is read at once, before any rows are decided: with Kafka that takes the transactional id,
    which would hold up the first output by a second otherwise.

    In READING a restore changes nothing: the marker that will be read is as good after it.
    """

    UNKNOWN = "unknown"
    READING = "reading"
    READY = "ready"
    COMMITTING = "committing"
    BURYING = "burying"


_MOVES = {
    Phase.UNKNOWN: {Phase.READING},
    Phase.READING: {Phase.READING, Phase.READY},
    Phase.READY: {Phase.COMMITTING, Phase.UNKNOWN},
    Phase.COMMITTING: {Phase.READY, Phase.READING, Phase.BURYING, Phase.UNKNOWN},
    Phase.BURYING: {Phase.COMMITTING, Phase.UNKNOWN},
}

_DELAY_FIRST_S = 0.1
_DELAY_MAX_S = 10.0
"""After an outage of any length the first row is out at most so long after the sink answers again."""
_DOUBLINGS_MAX = 7
"""Enough to reach the maximum from the first delay; without a bound the power would overflow in a long outage."""


class Statistics(NamedTuple):
    """What waits, and what was done, for metrics."""

    rows_undecided: int
    rows_decided: int
    """Decided and not known to be visible."""
    rows_committed: int
    commits: int
    failures: int
    """Failed commits and failed readings of the marker, in all."""


class _Decided(NamedTuple):
    """A batch that may be committed, with the checkpoint that decided it.

    That is another than the one it was staged for when that was given up, and both count. The marker must name the one
    that decided: the rows may stand under its number in the snapshot that a restore reads. But a marker that reaches
    the one they were staged for covers them too: whoever wrote that had them from a snapshot of their own.
    """

    batch: Staged
    by: int


def no_replay(attempt: int) -> int:
    """Of a history on which nobody went back."""
    return 0


class TwoPhaseSink:
    """The second phase of the commit, for one task and one egress. `replay_of` tells which replay rows of an attempt
    come of."""

    def __init__(self, replay_of: Callable[[int], int] = no_replay) -> None:
        self._replay_of = replay_of
        self._phase = Phase.UNKNOWN
        self._marker: dict[int, int] = {}
        """As it was last read or written. Meaningful in READY, COMMITTING and BURYING."""
        self._retained: frozenset[int] | None = None
        self._undecided: list[Staged] = []
        self._decided: list[_Decided] = []
        self._in_flight = 0
        """How many of the decided batches, from the first, the commit under way holds."""
        self._completed: dict[int, int] = {}
        self._burials = 0
        self._failures_in_row = 0
        self._rows_committed = 0
        self._commits = 0
        self._failures = 0

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def quiet(self) -> bool:
        """Whether every decided row is known to be visible: when a stop need not wait."""
        return not self._decided

    @property
    def oldest(self) -> int | None:
        """The oldest checkpoint with rows that are not known to be visible; None when there are none."""
        batches = (*self._undecided, *(batch for batch, _ in self._decided))
        return min((batch.checkpoint for batch in batches), default=None)

    def statistics(self) -> Statistics:
        return Statistics(
            _row_count(self._undecided),
            _row_count(batch for batch, _ in self._decided),
            self._rows_committed,
            self._commits,
            self._failures,
        )

    def retain(self, attempts: Collection[int]) -> None:
        """Keep marker entries of `attempts` only: those that the lineage of some retained manifest names."""
        self._retained = frozenset(attempts)

    def handle(self, event: Event) -> list[Action]:
        match event:
            case Staged():
                return self._stage(event)
            case Completed(attempt, checkpoint):
                return self._decide(attempt, checkpoint)
            case Restored(batches):
                return self._restore(batches)
            case MarkerRead(marker):
                return self._marker_read(marker)
            case MarkerFailed():
                return self._marker_failed()
            case Committed():
                return self._committed()
            case CommitFailed():
                return self._commit_failed()
            case RowsRejected(rejected):
                return self._rejected(rejected)
            case Buried(number):
                return self._buried(number)
            case _:
                assert_never(event)

    # Rows come in.

    def _stage(self, batch: Staged) -> list[Action]:
        assert batch.checkpoint > self._completed.get(batch.attempt, -1), (
            f"rows staged for checkpoint {batch.checkpoint} of attempt {batch.attempt}, which is decided already"
        )
        if batch.rows:
            self._undecided.append(batch)
        return []

    def _decide(self, attempt: int, checkpoint: int) -> list[Action]:
        self._completed[attempt] = max(checkpoint, self._completed.get(attempt, -1))
        undecided: list[Staged] = []
        for batch in self._undecided:
            if batch.attempt == attempt and batch.checkpoint <= checkpoint:
                self._decided.append(_Decided(batch, checkpoint))
            else:
                undecided.append(batch)
        self._undecided = undecided
        return self._proceed()

    def _restore(self, batches: Sequence[Staged]) -> list[Action]:
        self._undecided = []
        self._decided = [_Decided(batch, batch.checkpoint) for batch in batches if batch.rows]
        self._completed = {}
        self._in_flight = 0
        if self._phase not in (Phase.UNKNOWN, Phase.READING):
            # A commit may be under way. Its outcome is reported before the marker that is read after it.
            self._enter(Phase.UNKNOWN)
        return self._read_first()

    # The sink reports.

    def _marker_read(self, marker: Mapping[int, int]) -> list[Action]:
        assert self._phase is Phase.READING, self._phase
        self._marker = dict(marker)
        self._enter(Phase.READY)
        return self._proceed()

    def _marker_failed(self) -> list[Action]:
        assert self._phase is Phase.READING, self._phase
        return [self._read_later()]

    def _committed(self) -> list[Action]:
        if self._phase in (Phase.UNKNOWN, Phase.READING):
            return []  # A commit from before a restore: the marker that is read next tells the same.
        assert self._phase is Phase.COMMITTING, self._phase
        batches = self._decided[: self._in_flight]
        self._rows_committed += _row_count(batch for batch, _ in batches)
        self._commits += 1
        self._failures_in_row = 0
        self._marker = self._next_marker(batches)
        self._in_flight = 0
        self._enter(Phase.READY)
        return self._proceed()

    def _commit_failed(self) -> list[Action]:
        if self._phase in (Phase.UNKNOWN, Phase.READING):
            return []  # As above.
        assert self._phase is Phase.COMMITTING, self._phase
        self._in_flight = 0
        return [self._read_later()]

    def _rejected(self, rejected: Sequence[tuple[int, str]]) -> list[Action]:
        if self._phase in (Phase.UNKNOWN, Phase.READING):
            return []  # As above. The rows were restored too, and will be rejected again.
        assert self._phase is Phase.COMMITTING, self._phase
        assert rejected, "a commit is rejected because of a row"
        rows = _rows(self._decided[: self._in_flight])
        self._remove_in_flight({index for index, _ in rejected})
        self._enter(Phase.BURYING)
        # The others wait until the dead letters are durable: once the marker covers their checkpoint, a crash
        # would restore none of them.
        self._burials += 1
        return [Bury([(rows[index], reason) for index, reason in rejected], self._burials)]

    def _buried(self, number: int) -> list[Action]:
        if self._phase is not Phase.BURYING or number != self._burials:
            return []  # The burial of rows from before a restore.
        self._enter(Phase.COMMITTING)
        return [self._commit(self._decided[: self._in_flight])]

    # What follows.

    def _proceed(self) -> list[Action]:
        """Start whatever the decided rows need and the phase allows."""
        if self._phase is Phase.READY:
            discarded = self._drop_visible()
            if not self._decided:
                return discarded
            self._in_flight = len(self._decided)
            self._enter(Phase.COMMITTING)
            return [*discarded, self._commit(self._decided)]
        return self._read_first() if self._decided else []

    def _read_first(self) -> list[Action]:
        if self._phase is not Phase.UNKNOWN:
            return []
        self._enter(Phase.READING)
        return [ReadMarker(0.0)]

    def _drop_visible(self) -> list[Action]:
        """Forget the decided batches that the marker covers."""
        visible: dict[int, int] = {}
        waiting: list[_Decided] = []
        for decided in self._decided:
            attempt, checkpoint = decided.batch.attempt, decided.batch.checkpoint
            if self._marker.get(attempt, -1) >= checkpoint:
                visible[attempt] = max(checkpoint, visible.get(attempt, -1))
            else:
                waiting.append(decided)
        self._decided = waiting
        return [Discard(attempt, checkpoint) for attempt, checkpoint in visible.items()]

    def _commit(self, batches: Sequence[_Decided]) -> Commit:
        rows: list[EgressRow] = []
        for batch, _ in batches:
            rows += rows_of_replay(batch.rows, self._replay_of(batch.attempt))
        return Commit(rows, self._next_marker(batches))

    def _next_marker(self, batches: Sequence[_Decided]) -> dict[int, int]:
        kept = {
            attempt: checkpoint
            for attempt, checkpoint in self._marker.items()
            if self._retained is None or attempt in self._retained
        }
        return kept | _highest(batches)

    def _remove_in_flight(self, indices: Collection[int]) -> None:
        index = 0
        for number, (batch, by) in enumerate(self._decided[: self._in_flight]):
            kept = [row for offset, row in enumerate(batch.rows) if index + offset not in indices]
            self._decided[number] = _Decided(Staged(batch.attempt, batch.checkpoint, kept), by)
            index += len(batch.rows)

    def _read_later(self) -> ReadMarker:
        delay_s = min(_DELAY_FIRST_S * 2 ** min(self._failures_in_row, _DOUBLINGS_MAX), _DELAY_MAX_S)
        self._failures_in_row += 1
        self._failures += 1
        self._enter(Phase.READING)
        return ReadMarker(delay_s)

    def _enter(self, phase: Phase) -> None:
        assert phase in _MOVES[self._phase], f"{self._phase} -> {phase}"
        self._phase = phase


def _highest(decided: Sequence[_Decided]) -> dict[int, int]:
    """For each attempt the newest checkpoint that decided one of them."""
    highest: dict[int, int] = {}
    for batch, by in decided:
        highest[batch.attempt] = max(by, highest.get(batch.attempt, -1))
    return highest


def _rows(decided: Sequence[_Decided]) -> list[EgressRow]:
    return [row for batch, _ in decided for row in batch.rows]


def _row_count(batches: Iterable[Staged]) -> int:
    return sum(len(batch.rows) for batch in batches)
