"""What a saga remembers, in the state of its address: how far it is, and each step it has asked for.

               body asks for steps           the pivot is done, or the body has returned
    NEW ------------------------> RUNNING ---------------------------------------------> FORWARD ----> (ended)
     |  (recovery = "forward")       |                                                      ^
     '-------------------------------|------------------------------------------------------'
                                     '----> BACKWARD ----> (ended)
                             a step failed, the deadline passed, the body raised, or was cancelled

What always holds: a step stands here before its command is sent; a step whose outcome is not known counts as started;
from FORWARD nothing is undone, and from BACKWARD nothing new is done. When the saga has ended, how it did is kept for a
week, so that who begins it again under its id is told.

Decides nothing: `penstock.functions.saga_course` does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from penstock.functions.state import Expire, Message, State

R = TypeVar("R")


class Completed(Message, Generic[R]):
    """A saga has done all of its steps."""

    value: R
    """What its handler returned."""


class Compensated(Message):
    """A saga has undone whatever it did."""

    reason: str
    step: str = ""
    """The one that failed; empty when it was something else."""


class SagaAlert(Message):
    """Something that a saga has to do has failed `tries` times. It is tried again until it succeeds."""

    saga: str
    step: str
    """Empty for the code of the saga itself."""
    asked: str
    """`try`, `confirm` or `cancel`."""
    tries: int
    reason: str


class Phase(StrEnum):
    """See the module."""

    NEW = "new"
    RUNNING = "running"
    FORWARD = "forward"
    BACKWARD = "backward"


MOVES: Final = {
    Phase.NEW: {Phase.RUNNING, Phase.FORWARD},
    Phase.RUNNING: {Phase.FORWARD, Phase.BACKWARD},
    Phase.FORWARD: {Phase.NEW},
    Phase.BACKWARD: {Phase.NEW},
}


class StepPhase(StrEnum):
    """How far a step is."""

    STARTED = "started"
    """Its command may have arrived, or may not."""
    DONE = "done"
    FAILED = "failed"
    """It said so, or did not answer: which is no reason to believe that it was not done."""
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class StepRecord(msgspec.Struct, omit_defaults=True):
    """One step that was asked for, with what it takes to ask again."""

    name: str
    typename: str
    id: str
    action: str
    message: bytes
    phase: StepPhase = StepPhase.STARTED
    answer: bytes = b""
    reason: str = ""

    @property
    def is_done(self) -> bool:
        return self.phase in (StepPhase.DONE, StepPhase.CONFIRMED)


class Ended(msgspec.Struct):
    """How a saga ended."""

    outcome: Any
    steps: dict[str, StepPhase]
    """In the order in which they were started."""


class SagaRecord(State):
    """The state of a saga's function."""

    phase: Phase = Phase.NEW
    began_ms: int = 0
    steps: list[StepRecord] = []  # noqa: RUF012  # A field, not a shared list.
    failure: Compensated | None = None
    """Why it goes back."""
    trouble: SagaAlert | None = None
    """What was last raised an alert for, and has not succeeded since."""
    ended: Annotated[Ended | None, Expire(after_write="7d")] = None
