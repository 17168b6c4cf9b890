"""What people may see of messages that are not done: who holds an address, what it waits for, who waits for it; and
what became of a request that has an Idempotency-Key.

An address that is *held* (see `penstock.engine.pending`) has one row here: its handler awaits something, is run by the
event loop, is parked because it can't go on with the code there is, or waits to be tried again. What always holds: all
of it is read from rows, so a stopped application tells the same as a running one. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any, Final, NamedTuple

from penstock.durations import timestamp
from penstock.engine.invocation_journal import CANCELLATION, InvocationJournal, Line
from penstock.engine.pending import Hold, PendingMessage, read_pending
from penstock.engine.views import View
from penstock.errors import InvalidInput
from penstock.functions.durable import DEADLINE
from penstock.ids import Address, key_group
from penstock.records import Meta, QueuedRow
from penstock.state import keys
from penstock.state.showing import ENTRIES_MAX, builtins_of

WAITS_LISTED_MAX: Final = 10
"""Of what one invocation waits for, in a row of a list. A handler may gather thousands of calls."""
BEHIND_SHOWN_MAX: Final = 100
"""Messages in line that are shown with the one they wait for."""


class _Held(NamedTuple):
    """What an address is busy with."""

    address: Address
    message: PendingMessage
    journal: InvocationJournal | None
    """None for a handler that keeps none: it failed, and is to be tried again."""
    behind: Sequence[int]
    """Numbers of the messages in line."""


def list_calls(
    view: View,
    *,
    typename: str | None = None,
    parked: bool = False,
    after: tuple[str, str] = ("", ""),
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Held addresses behind `after`, in order, of one function or only parked ones if that is asked for."""
    held_of = [task.held() for task in view.tasks]
    chosen: list[Address] = []
    for name in sorted({name for each in held_of for name in each}):
        if name < after[0] or typename not in (None, name) or len(chosen) == limit:
            continue
        # Of a million ids a few are wanted: an address is made for those only.
        ids = (id for each in held_of for id in each.get(name, ()) if (name, id) > after)
        if parked:
            ids = (id for id in ids if _is_parked(view, Address(name, id)))
        chosen += [Address(name, id) for id in nsmallest(limit - len(chosen), ids)]
    return [_summarize(view, held) for address in chosen if (held := _held(view, address)) is not None]


def show_call(view: View, address: Address) -> dict[str, Any]:
    """Everything known of what an address is busy with. Raises InvalidInput when that is nothing."""
    view.check_address(address)
    held = _held(view, address)
    if held is None:
        raise InvalidInput(
            "PEN0312",
            f"{address} is not busy: none of its messages waits for anything. What waits is told by penstock calls "
            "list.",
        )
    _, message, journal, behind = held
    task = view.task_of(address.id)
    return _summarize(view, held) | {
        "origin": (message.meta or Meta()).origin,
        "message": builtins_of(message.payload, task.entries[address.typename].codec),
        "cancelled": timestamp(journal.arrived_ms(CANCELLATION)) if journal is not None and journal.cancelled else None,
        "journal": [] if journal is None else _show_lines(journal.lines),
        "line": [_who_waits(read_pending(task.overlay, number)) for number in islice(behind, BEHIND_SHOWN_MAX)],
    }


def show_request(view: View, address: Address, key: str) -> dict[str, Any]:
    """What became of the request with this Idempotency-Key: it is `running` (or waits in line), `finished` with the
    answer, `failed` with the dead letter, or `unknown`."""
    view.check_address(address)
    shown: dict[str, Any] = {"function": address.typename, "id": address.id, "key": key}
    task = view.task_of(address.id)
    kept = task.overlay.get(keys.encode_idempotency_key(key_group(address.id), *address, key))
    if kept is not None:
        return shown | {"state": "finished", "answer": builtins_of(kept)}
    if any(row[4] is not None and row[4].idempotency_key == key for row in _undone(view, address)):
        return shown | {"state": "running"}
    for letter in task.letters.all():
        if (letter.typename, letter.id, letter.idempotency_key) == (*address, key):
            return shown | {"state": "failed", "letter": letter.number, "code": letter.code, "reason": letter.reason}
    return shown | {"state": "unknown"}


def _undone(view: View, address: Address) -> Iterator[QueuedRow]:
    """The messages of an address that are not done."""
    task = view.task_of(address.id)
    hold = _hold_of(view, address)
    if hold is not None:
        yield from (read_pending(task.overlay, number).queued for number in (hold.current, *hold.waiting))
    yield from (row for row in task.entries[address.typename].queue if row[0] == address.id)


def _hold_of(view: View, address: Address) -> Hold | None:
    return view.task_of(address.id).held().get(address.typename, {}).get(address.id)


def _held(view: View, address: Address) -> _Held | None:
    """None for an address that is not busy."""
    hold = _hold_of(view, address)
    if hold is None:
        return None
    overlay = view.task_of(address.id).overlay
    message = read_pending(overlay, hold.current)
    return _Held(address, message, InvocationJournal.load(overlay, address), hold.waiting)


def _is_parked(view: View, address: Address) -> bool:
    return InvocationJournal.is_parked(view.task_of(address.id).overlay, address)


def _summarize(view: View, held: _Held) -> dict[str, Any]:
    """An address in one row."""
    address, message, journal, behind = held
    waits = [line for line in journal.lines if _is_open(line)] if journal is not None else []
    return {
        "function": address.typename,
        "id": address.id,
        "state": _state(message, journal, bool(waits), view.clock_ms),
        "since": None if journal is None else timestamp(journal.clock_ms),
        "waits_for": [
            {"kind": line.kind, "name": line.name, "since": timestamp(line.since_ms)}
            for line in waits[:WAITS_LISTED_MAX]
        ],
        "waits": len(waits),
        "called_by": _who_waits(message),
        "chain": ["/".join(each) for each in (message.meta or Meta()).chain],
        "behind": len(behind),
        "attempt": message.attempt,
        "next_try": timestamp(message.due_ms) if message.due_ms > view.clock_ms else None,
        "parked": journal.parked if journal is not None else "",
    }


def _state(message: PendingMessage, journal: InvocationJournal | None, waits: bool, clock_ms: int) -> str:
    if journal is not None and journal.parked:
        return "parked"
    if message.due_ms > clock_ms:
        return "failed"
    if journal is not None and journal.cancelled:
        return "ending"
    return "waiting" if waits else "running"


def _is_open(line: Line) -> bool:
    """Whether it waits for that. A limit of time is nothing that anybody waits for."""
    return not line.arrived and line.kind != DEADLINE


def _who_waits(message: PendingMessage) -> str | None:
    """Who waits for the answer: a function, or a request by where it entered."""
    meta = message.meta or Meta()
    if meta.call is not None and message.caller is not None:
        return "/".join(message.caller)
    return meta.origin if meta.request_id else None


def _show_lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The newest lines of a journal."""
    first = max(0, len(lines) - ENTRIES_MAX)
    return [_show_line(number, line) for number, line in enumerate(lines[first:], first + 1)]


def _show_line(number: int, line: Line) -> dict[str, Any]:
    return {
        "number": number,
        "kind": line.kind,
        "name": line.name,
        "since": timestamp(line.since_ms),
        "arrived": timestamp(line.clock_ms) if line.arrived else None,
        "order": line.arrived or None,
        "result": builtins_of(line.value),
        "error": None if line.error is None else " ".join(line.error),
    }
