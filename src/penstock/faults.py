"""Named moments at which a process can be made to die, so that one can see what becomes of an application then.

    PENSTOCK_FAULT=worker-0/settle.told:3:kill,leader/complete.durable:1:hang

A fault strikes at the n-th time that a process comes past its point, and once. Before it does, it says so on standard
error: an experiment in which nothing struck would prove nothing.

What always holds: where nothing is armed, a point costs a call that looks at an empty table, and none lies between one
message and the next; every point there is, is in `POINTS`. Points lie where something is performed: mechanisms, which
only decide, have none. Reads no environment: the command line does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from penstock.errors import ConfigurationError

FAULT_VARIABLE: Final = "PENSTOCK_FAULT"

POINTS: Final[Mapping[str, str]] = {
    # A worker, during a turn.
    "turn.taken": "a batch is taken from the inputs, and no handler has run",
    "turn.half": "some messages of a batch are done, and others are not",
    "turn.run": "the handlers have run, and nothing they sent is on its way",
    "turn.sent": "what they sent is on its way, and in no checkpoint",
    # A worker, for a checkpoint.
    "cut.frozen": "a task is cut, and perhaps another is not; nothing of the cut is written",
    "delta.appended": "a record of a delta is appended, and perhaps not durable",
    "delta.written": "all deltas of the cut are appended, and not known to be durable",
    "cut.durable": "the deltas, or what was sent before the cut, are durable; the cut is not acknowledged",
    "cut.acknowledged": "the cut is acknowledged",
    "settle.told": "COMPLETE was read, and nothing has followed from it",
    "settle.done": "a task has settled, and its rows may go out",
    # A worker, in the background.
    "fold.begun": "settled changes are about to be written into the store",
    "fold.half": "some of them are written",
    "fold.done": "all of them are written",
    "base.linked": "the files of a base are linked, and not stored",
    "base.half": "a file of a base is stored, and no list names it",
    "base.stored": "a base is stored, and no checkpoint names it",
    "base.named": "the next checkpoint names the base",
    # Whoever decides: the leader on Kafka, the process itself on one machine.
    "lead.begun": "on Kafka: a leader has fenced older ones and read all decisions, and nobody knows of it",
    "reserve.writing": "ids of checkpoints are to be reserved",
    "reserve.durable": "they are, and none is used",
    "begin.telling": "a checkpoint is to begin, and nobody knows of it",
    "begin.told": "on Kafka: the hint that it begins is on its way",
    "acknowledgement.heard": "on Kafka: a worker has acknowledged a cut, and the leader has not counted it",
    "complete.writing": "everything is acknowledged, and COMPLETE is not written",
    "complete.durable": "COMPLETE is durable, and nobody has acted on it",
    "attempt.writing": "an attempt is to begin, and nothing says so",
    "attempt.durable": "an attempt has begun, and nothing has followed from it",
    "fence.half": "on Kafka: some inboxes have the fence of the attempt, and others have not",
    "fence.written": "on Kafka: all have it, and no task has an owner",
    "assign.writing": "on Kafka: tasks are to get owners, or to change hands",
    "assign.durable": "on Kafka: their owners are decided, and have not acted on it",
    "recap.writing": "on Kafka: what older decisions said is to be repeated",
    "recap.durable": "on Kafka: it is, and nothing older is deleted",
    "forget.begun": "what no checkpoint needs is to be deleted",
    "forget.half": "records are deleted, and bases are not",
    "forget.done": "it is all deleted",
    # A worker, when tasks come and go.
    "restore.begun": "the manifest is read, and nothing is restored",
    "restore.half": "the files of a base are fetched, and its store is not open",
    "restore.base": "the store of a task is open, and no delta is applied",
    "restore.delta": "a delta is applied",
    "restore.done": "tasks are restored, and have taken no turn",
    "handoff.standing": "on Kafka: a task that is to move stands still at its cut",
    "handoff.dropping": "on Kafka: a task was given to another worker, and is still here",
    "handoff.adopting": "on Kafka: a task of another worker is to be taken over, and nothing is restored",
    "handoff.adopted": "on Kafka: it is restored, and has taken no turn",
    # A worker, at its egresses.
    "egress.marked": "the marker is read, and nothing is decided by it",
    "egress.committing": "rows are to become visible",
    "egress.committed": "rows are visible, and nobody here knows",
    "file.appended": "rows are in a hidden part of a FileEgress, and its marker does not count them",
    "file.marked": "its marker counts them",
    "file.sealed": "its marker says that the part is finished, and the part is still hidden",
    "file.renamed": "the part is visible, and its directory is not synced",
    # Whoever writes transactions on Kafka: a worker at its egresses, the leader for its decisions.
    "transaction.fenced": "on Kafka: the transactional id is taken or renewed",
    "transaction.begun": "on Kafka: a transaction has begun",
    "transaction.half": "on Kafka: some batches of it are sent",
    "transaction.sent": "on Kafka: all of them are acknowledged, and it is not committed",
    "transaction.committed": "on Kafka: it is committed, and nobody here knows",
    # The supervisor.
    "supervisor.ended": "on Kafka: a process has ended, and the leader has not been told",
    "supervisor.starting": "on Kafka: a process is to be started",
}
"""Every point, and what is true there."""

WHO: Final = ("worker", "leader", "supervisor", "worker-N")


class InjectedFault(Exception):
    """What the action `raise` raises: an exception like any other."""


def _kill(point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(point: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _raise(point: str) -> None:
    raise InjectedFault(f"{FAULT_VARIABLE} raises this at {point}")


ACTIONS: Final[Mapping[str, Callable[[str], None]]] = {"kill": _kill, "hang": _hang, "raise": _raise}


@dataclass(slots=True)
class _Fault:
    """One that waits."""

    action: str
    count: int
    passed: int = 0


_names: tuple[str, ...] = ("worker",)
"""What this process is called by faults: its role, and its place under a supervisor."""
_armed: dict[str, list[_Fault]] = {}
"""By point."""
_counting = threading.Lock()
"""Points are passed by threads, too."""


def fault(point: str) -> None:
    """This process comes past `point`."""
    if _armed:
        _pass(point)


def begin(faults: str, *names: str) -> None:
    """Say what this process is, the last name being the most exact, and arm the faults that concern it.

    Raises ConfigurationError, which lists the points, for one that does not exist.
    """
    global _names
    _names = names
    arm(faults)


def arm(faults: str) -> None:
    """Have these faults, of those that concern this process, instead of the present ones. Counts begin anew."""
    global _armed
    armed: dict[str, list[_Fault]] = {}
    for text in filter(None, map(str.strip, faults.split(","))):
        who, point, fault = _parse(text)
        if not who or who in _names:
            armed.setdefault(point, []).append(fault)
    _armed = armed


def _parse(text: str) -> tuple[str, str, _Fault]:
    who, slash, rest = text.rpartition("/")
    point, *others = rest.split(":")
    if len(others) != 2 or not others[0].isdecimal() or int(others[0]) < 1:
        raise _refused(text, "It is written point:count:action, and counts from 1")
    count, action = others
    if slash and who not in WHO and not (who.startswith("worker-") and who.removeprefix("worker-").isdecimal()):
        raise _refused(text, f"{who!r} is no process: there are {', '.join(WHO)}")
    if action not in ACTIONS:
        raise _refused(text, f"{action!r} is no action: there are {', '.join(ACTIONS)}")
    if point not in POINTS:
        near = get_close_matches(point, POINTS, 1)
        hint = f" Do you mean {near[0]}?" if near else ""
        raise _refused(text, f"{point!r} is no point.{hint} There are {', '.join(POINTS)}")
    return who, point, _Fault(action, int(count))


def _refused(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError("PEN0159", f"{FAULT_VARIABLE} has {text!r}. {reason}.")


def _pass(point: str) -> None:
    with _counting:
        due = None
        for each in _armed.get(point, ()):
            each.passed += 1
            if each.passed == each.count:
                due = each
    if due is not None:
        # At once and as a whole, whatever becomes of this process.
        os.write(2, f"{FAULT_VARIABLE}: {_names[-1]} at {point}, for the {due.count}. time: {due.action}\n".encode())
        ACTIONS[due.action](point)
