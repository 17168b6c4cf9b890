"""The fence of a saga's participant: what a command does, in whatever order and however often commands come.

                   try                  confirm
        (no row) -------->  TRIED  --------------->  CONFIRMED
            |                  |
            |                  '---- cancel ----->  CANCELLED     a try that comes now is too late: it is refused
            '------ cancel -------------------->   SUSPENDED      so it is here, although there was nothing to undo

What always holds: forward work is done at most once for each branch of a saga, and what undoes it at most once, after
it; once a branch is cancelled, or was cancelled before it came, it is never done. The row lies in the participant's own
state, so it changes together with what the work changes, or not at all. A row whose branch is decided is forgotten some
time later, when no message of the saga can be under way any more; one that is not decided is never forgotten.

Decides and remembers: running the work is for the participant.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final, NamedTuple

import msgspec

from penstock.functions.state import Log, State, Table

SWEPT_MAX: Final = 1_000
"""Rows that are forgotten in one go: each go is one run of a handler, and other messages wait for it."""


class Asked(StrEnum):
    """What a command asks for."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"


class Phase(StrEnum):
    """How far a branch is; no row for one that is not known."""

    TRIED = "tried"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    SUSPENDED = "suspended"


class Ruling(Enum):
    """What a command leads to."""

    RUN = "run"
    REPEAT = "repeat"
    """It was done: answer as the first time."""
    NOTHING = "nothing"
    """There is nothing to do (any more), and all is well."""
    LATE = "late"
    """Its branch has been cancelled."""
    WRONG = "wrong"
    """It contradicts what was decided: somebody has broken the rules."""


class Move(NamedTuple):
    """What a command leads to, and where."""

    ruling: Ruling
    to: Phase | None


_MOVES: Final = {
    (Asked.TRY, None): Move(Ruling.RUN, Phase.TRIED),
    (Asked.TRY, Phase.TRIED): Move(Ruling.REPEAT, Phase.TRIED),
    # A saga that is run again from its start asks for what it has confirmed, and must be told what it was told.
    (Asked.TRY, Phase.CONFIRMED): Move(Ruling.REPEAT, Phase.CONFIRMED),
    (Asked.TRY, Phase.CANCELLED): Move(Ruling.LATE, Phase.CANCELLED),
    (Asked.TRY, Phase.SUSPENDED): Move(Ruling.LATE, Phase.SUSPENDED),
    (Asked.CONFIRM, None): Move(Ruling.WRONG, None),
    (Asked.CONFIRM, Phase.TRIED): Move(Ruling.RUN, Phase.CONFIRMED),
    (Asked.CONFIRM, Phase.CONFIRMED): Move(Ruling.NOTHING, Phase.CONFIRMED),
    (Asked.CONFIRM, Phase.CANCELLED): Move(Ruling.WRONG, Phase.CANCELLED),
    (Asked.CONFIRM, Phase.SUSPENDED): Move(Ruling.WRONG, Phase.SUSPENDED),
    (Asked.CANCEL, None): Move(Ruling.NOTHING, Phase.SUSPENDED),
    (Asked.CANCEL, Phase.TRIED): Move(Ruling.RUN, Phase.CANCELLED),
    (Asked.CANCEL, Phase.CONFIRMED): Move(Ruling.WRONG, Phase.CONFIRMED),
    (Asked.CANCEL, Phase.CANCELLED): Move(Ruling.NOTHING, Phase.CANCELLED),
    (Asked.CANCEL, Phase.SUSPENDED): Move(Ruling.NOTHING, Phase.SUSPENDED),
}


def rule(asked: Asked, phase: Phase | None) -> Move:
    """What a command leads to for a branch in `phase`."""
    return _MOVES[asked, phase]


class FenceRow(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a participant remembers of one branch."""

    phase: Phase
    answer: bytes | None = None
    """What its forward work answered; None while it has not: it failed in the midst, or waits."""


class Decided(msgspec.Struct, array_like=True, frozen=True):
    """A branch whose row can be forgotten some time after `at_ms`."""

    at_ms: int
    branch: str


class FencedState(State):
    """Base of the state of a participant: `class Shelf(FencedState): available: int = 0`."""

    fence_rows: Table[str, FenceRow] = Table()
    """By branch."""
    fence_decided: Log[Decided] = Log()
    """In the order in which it was decided: each branch once."""


class Fence:
    """The rows in `state`, as a participant uses them."""

    def __init__(self, state: FencedState) -> None:
        self._rows = state.fence_rows
        self._decided = state.fence_decided

    def find(self, branch: str) -> FenceRow | None:
        return self._rows.get(branch)

    def begin(self, branch: str) -> None:
        """The forward work is about to be done: noted before it does anything, as it may fail half-way."""
        self._rows[branch] = FenceRow(Phase.TRIED)

    def refuse(self, branch: str) -> None:
        """The forward work has refused to be done, and nothing is left of it."""
        del self._rows[branch]

    def keep(self, branch: str, answer: bytes) -> None:
        """The forward work is done."""
        self._rows[branch] = FenceRow(Phase.TRIED, answer)

    def decide(self, branch: str, phase: Phase, now_ms: int) -> bool:
        """It has come to an end. Returns whether it is the only row that waits to be forgotten."""
        row = self._rows.get(branch)
        self._rows[branch] = FenceRow(phase, None if row is None else row.answer)
        self._decided.append(Decided(now_ms, branch))
        return len(self._decided) == 1

    def sweep(self, before_ms: int) -> int | None:
        """Forget what was decided before then, but not too much at once. Returns when the next was decided."""
        swept = 0
        for decided in self._decided[: SWEPT_MAX + 1]:
            if decided.at_ms > before_ms or swept == SWEPT_MAX:
                self._decided.truncate(swept)
                return decided.at_ms
            del self._rows[decided.branch]
            swept += 1
        self._decided.truncate(swept)
        return None
