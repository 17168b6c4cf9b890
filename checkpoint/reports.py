"""What workers and their leader tell one another, beside the decisions in the control log.

Nothing here decides anything: a report may be lost, late or repeated, and a hint as well. What they say counts only for
the attempt they name. Reports go from workers to the leader, hints from the leader to workers. Format version 1, the
first element of each; a field is only ever added, at the end and with a default.
"""

from __future__ import annotations

import msgspec

from penstock.checkpoint.control import Manifest, Part
from penstock.errors import ProtocolError

FORMAT = 1


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive"):
    """The worker is there. Sent every second, and at once when something in it changes."""

    worker: str
    instance: str = ""
    """What stays the same when the worker is started again in its place: at most one process has it at a time."""
    host: str = ""
    pid: int = 0
    url: str = ""
    """Of its HTTP interface; empty when it has none."""
    attempt: int = 0
    """What it takes part in; 0 before it was given a task."""
    leaving: bool = False
    """It wants to stop, and asks to be relieved of its tasks."""


class Changed(msgspec.Struct, frozen=True, array_like=True, tag="changed"):
    """The worker has something that is in no checkpoint. Once between two cuts, and once more when it gets urgent."""

    worker: str
    attempt: int
    reason: str = ""
    """Why it is urgent: somebody waits for a reply, or for rows, or a step for its turn. Empty when it is not."""


class Acknowledgement(msgspec.Struct, frozen=True, array_like=True, tag="acknowledged"):
    """The deltas of these tasks are durable, and so is everything sent before their cut."""

    worker: str
    attempt: int
    checkpoint: int
    parts: tuple[Part, ...]
    sent: dict[int, int]
    """For each inbox that the worker has written to in this attempt, the offset behind its last record there."""
    released: tuple[int, ...] = ()
    """Those of the tasks that stand still since their cut, until an assignment names their owner again."""
    done: bool = False
    """The inputs of these tasks have ended, and nothing that was taken from them is left to do."""
    delta_bytes: int = 0
    cost_ms: float = 0.0


class Unable(msgspec.Struct, frozen=True, array_like=True, tag="unable"):
    """The worker can't take part in the checkpoint; its changes go into the next one."""

    worker: str
    attempt: int
    checkpoint: int
    reason: str


class Prepared(msgspec.Struct, frozen=True, array_like=True, tag="prepared"):
    """The worker has what can be fetched of these tasks before it owns them."""

    worker: str
    tasks: tuple[int, ...]


class Fault(msgspec.Struct, frozen=True, array_like=True, tag="fault"):
    """The attempt can't go on as it is. With `damaged`, that checkpoint can't be restored."""

    worker: str
    attempt: int
    reason: str
    damaged: int = 0


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """The worker has ended. Said by itself, or by whoever watches its process."""

    worker: str
    reason: str = ""


class Pinned(msgspec.Struct, frozen=True, array_like=True, tag="pinned"):
    """Somebody who takes no part in the application reads this checkpoint: it has to stay retained. Said every second,
    and at last with checkpoint 0."""

    holder: str
    checkpoint: int


Report = Alive | Changed | Acknowledgement | Unable | Prepared | Fault | Ended | Pinned


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin"):
    """Cut at this checkpoint, and let the tasks in `release` stand still from the cut on."""

    attempt: int
    checkpoint: int
    release: tuple[int, ...] = ()


class Leading(msgspec.Struct, frozen=True, array_like=True, tag="leading"):
    """The leader is there. Every second, with the workers it knows."""

    leader: str
    members: tuple[Alive, ...] = ()
    pinned: tuple[int, ...] = ()
    """Checkpoints that it retains because somebody asked for it."""


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="prepare"):
    """This worker will be given these tasks: it may fetch what `manifest` names of them already."""

    worker: str
    tasks: tuple[int, ...]
    manifest: Manifest | None


class Expelled(msgspec.Struct, frozen=True, array_like=True, tag="expelled"):
    """This worker was taken for dead, and its tasks are given to others: it must end."""

    worker: str
    reason: str


class Finish(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """Every input has ended, and a complete checkpoint holds what followed from it: workers may stop."""

    attempt: int


Hint = Begin | Leading | Prepare | Expelled | Finish

_encode = msgspec.msgpack.Encoder().encode
_decode_report = msgspec.msgpack.Decoder(tuple[int, Report]).decode
_decode_hint = msgspec.msgpack.Decoder(tuple[int, Hint]).decode


def encode_message(message: Report | Hint) -> bytes:
    return _encode((FORMAT, message))


def decode_report(data: bytes) -> Report:
    """Raises ProtocolError for bytes that are no report of this format."""
    try:
        return _decode_report(data)[1]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable("report of a worker", error) from error


def decode_hint(data: bytes) -> Hint:
    """Raises ProtocolError for bytes that are no hint of this format."""
    try:
        return _decode_hint(data)[1]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable("hint of the leader", error) from error


def _unreadable(what: str, error: Exception) -> ProtocolError:
    return ProtocolError(
        "PEN0511", f"A {what} can't be read: {error}. Only Penstock may write there; find out who does."
    )
