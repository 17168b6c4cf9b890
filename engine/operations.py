"""What a person asks of a task itself: to show or set a state, to send dead letters again, to end what waits.

An operation travels through the requests log like any message from outside (PROTOCOL 3), so it has its place in the
order of things, is replayed with them, and happens exactly once. What it answers is JSON.
"""

from __future__ import annotations

import msgspec

from penstock.engine.looks import Question
from penstock.errors import ProtocolError
from penstock.records import EgressRow


class SetState(msgspec.Struct, frozen=True, array_like=True):
    """Replace the state of the address. `value` is JSON, `null` for none; with `expected`, JSON too, only if the state
    is that now."""

    __match_args__ = ("value", "expected")
    value: bytes
    expected: bytes | None = None


class Look(msgspec.Struct, frozen=True, array_like=True):
    """Say what the task knows. It changes nothing."""

    __match_args__ = ("question",)
    question: Question


class Redrive(msgspec.Struct, frozen=True, array_like=True):
    """Send these dead letters again, to where they were going."""

    __match_args__ = ("numbers",)
    numbers: list[int]


class Drop(msgspec.Struct, frozen=True, array_like=True):
    """Delete these dead letters."""

    __match_args__ = ("numbers",)
    numbers: list[int]


class BuryRows(msgspec.Struct, frozen=True, array_like=True):
    """An egress can never write these rows: keep them as dead letters, each with the reason."""

    __match_args__ = ("egress", "rows")
    egress: str
    rows: list[tuple[EgressRow, str]]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What an invocation of the address waits for has come: the answer to a call, or the time of a sleep. `error` is
    code and text of why there is no value."""

    __match_args__ = ("cause", "index", "value", "error")
    cause: int
    index: int
    value: bytes = b""
    error: tuple[str, str] | None = None


class Resolve(msgspec.Struct, frozen=True, array_like=True):
    """Keep a promise: `value` is msgpack."""

    __match_args__ = ("name", "value")
    name: str
    value: bytes


class CancelInvocation(msgspec.Struct, frozen=True, array_like=True):
    """End what the address is busy with; with `call`, only if it is that call, or take that call out of the line."""

    __match_args__ = ("call",)
    call: tuple[str, str, int, int] | None = None
    """Typename and id of the caller, cause of its invocation, and number of the wish."""


class ResumeInvocation(msgspec.Struct, frozen=True, array_like=True):
    """Run an invocation that was parked again, as the code is now."""


class Attach(msgspec.Struct, frozen=True, array_like=True):
    """Say what became of the request with this Idempotency-Key. It stands in line like a message, so that everything
    which came to the address before it is done then."""

    __match_args__ = ("key",)
    key: str


class PauseSchedule(msgspec.Struct, frozen=True, array_like=True):
    """Let the schedule that the id names rest, or go on. Answers whether it did not before."""

    __match_args__ = ("paused",)
    paused: bool


class RunSchedule(msgspec.Struct, frozen=True, array_like=True):
    """Send what the schedule sends, now."""


class BackfillSchedule(msgspec.Struct, frozen=True, array_like=True):
    """Send what the schedule would have sent in this time, or only say how much that is. Answers the number."""

    __match_args__ = ("start_ms", "end_ms", "dry")
    start_ms: int
    end_ms: int | None
    """None for the present, by the clock of the task."""
    dry: bool


Operation = (
    SetState
    | Look
    | Redrive
    | Drop
    | BuryRows
    | Answer
    | Resolve
    | CancelInvocation
    | ResumeInvocation
    | Attach
    | PauseSchedule
    | RunSchedule
    | BackfillSchedule
)

_KINDS: dict[str, type[Operation]] = {
    "state.set": SetState,
    "look": Look,
    "dead.redrive": Redrive,
    "dead.drop": Drop,
    "egress.bury": BuryRows,
    "call.answer": Answer,
    "call.attach": Attach,
    "call.cancel": CancelInvocation,
    "call.resume": ResumeInvocation,
    "promise.resolve": Resolve,
    "schedule.pause": PauseSchedule,
    "schedule.run": RunSchedule,
    "schedule.backfill": BackfillSchedule,
}


def encode_operation(operation: Operation) -> tuple[str, bytes]:
    """The name that goes into `Meta.operation`, and the payload."""
    name = next(name for name, kind in _KINDS.items() if kind is type(operation))
    return name, msgspec.msgpack.encode(operation)


def decode_operation(name: str, payload: bytes) -> Operation:
    """Raises ProtocolError for a name or payload that `encode_operation` does not produce."""
    try:
        return msgspec.msgpack.decode(payload, type=_KINDS[name])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("PEN0504", f"A request asks for the unknown operation {name!r}: {error}.") from error
