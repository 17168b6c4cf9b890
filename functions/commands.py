"""What is said to a participant, and what it answers: by sagas, by other participants, and by itself."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from penstock.functions.fence import Asked
from penstock.functions.state import Message


class Hop(msgspec.Struct, array_like=True, frozen=True):
    """A step of a saga that its participants hand on, with what it takes to ask for it again."""

    typename: str
    id: str
    action: str
    step: str
    message: bytes


class Command(Message):
    """Do, confirm or cancel one step of a saga."""

    asked: Asked
    action: str
    saga: str
    step: str
    message: bytes
    """As the action's codec has it."""
    trail: list[Hop] | None = None
    """The steps before it, the first one first, when participants hand the saga on; None when somebody else owns it."""


class Sweep(Message):
    """What a participant sends to itself: forget old rows."""


class Watch(Message):
    """The same: see whether a saga that was handed on has come to its end."""

    saga: str
    step: str
    every_ms: int
    alert: str
    """The function to be told; empty for none."""
    times: int = 1


class Ruled(StrEnum):
    """How a command ended."""

    DONE = "done"
    DECLINED = "declined"
    LATE = "late"
    STANDS = "stands"
    """It was to be cancelled and can't be: it is done, and nothing undoes it."""
    UNFINISHED = "unfinished"
    """The same, but it failed half-way: it has to be tried again."""
    WRONG = "wrong"


class Verdict(msgspec.Struct, omit_defaults=True):
    """What a command is answered."""

    ruled: Ruled
    answer: bytes = b""
    """What the action returned."""
    reason: str = ""
