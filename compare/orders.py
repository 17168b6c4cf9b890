"""What became of each order of a run, seen from the client and checked against the oracle.

What always holds: an order counts once, however many records speak of it; the order of the records in the file changes
nothing; an answer is *right* only if it is a terminal one and no violated invariant names its order. Times are those
of the intended requests, so a client that was kept waiting can't hide it.
"""

from __future__ import annotations

import enum
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from penstock.compare.checkout import data
from penstock.compare.records import Event, Verdict

LOAD: Final = "client"
"""The node of records that the clients wrote."""


class Outcome(enum.Enum):
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    """A result of the business, such as an empty shelf: no fault."""
    FAILED = "failed"
    """An error, or a time that ran out."""
    SILENT = "silent"
    """No answer of any kind was recorded."""


class Place(NamedTuple):
    """A function instance that an order touched."""

    fn: str
    id: str


@dataclass(frozen=True, slots=True)
class Order:
    """One order from its intended request to its answer."""

    name: str
    key: str
    offered_s: float
    outcome: Outcome
    reason: str
    answered_s: float | None
    latency_ms: float | None
    right: bool
    """Answered with a result, and none of the violated invariants names it."""
    places: frozenset[Place]
    starts: int
    """Handlers that began for it."""


def orders_of(events: Iterable[Event], verdict: Verdict | None) -> list[Order]:
    """In the order of their intended times. Records of orders that were never offered are left out."""
    about: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.order:
            about[event.order].append(event)
    blamed = blamed_orders(verdict, about)
    orders = (_order(name, records, blamed) for name, records in about.items())
    return sorted((order for order in orders if order), key=lambda order: (order.offered_s, order.name))


def blamed_orders(verdict: Verdict | None, names: Mapping[str, object] | set[str]) -> set[str]:
    """The orders that the text of a violation names."""
    texts = [text for found in (verdict.invariants.values() if verdict else ()) for text in found.violations]
    return {word for text in texts for word in _WORD.findall(text) if word in names}


_WORD: Final = re.compile(r"[\w-]+(?:[.:/][\w-]+)*")


def _order(name: str, records: list[Event], blamed: set[str]) -> Order | None:
    offered = min((event for event in records if event.kind == "offered"), key=lambda event: event.t, default=None)
    if offered is None:
        return None
    outcome, answer = _answer(records)
    latency_ms = None
    if answer:
        latency_ms = answer.dur_ms if answer.dur_ms is not None else (answer.t - offered.t) * 1000
    starts = [event for event in records if event.kind == "start"]
    return Order(
        name=name,
        key=offered.key or name,
        offered_s=offered.t,
        outcome=outcome,
        reason=_reason(outcome, answer),
        answered_s=answer.t if answer else None,
        latency_ms=latency_ms,
        right=outcome in (Outcome.CONFIRMED, Outcome.REJECTED) and name not in blamed,
        places=frozenset(Place(event.fn, event.id) for event in starts),
        starts=len(starts),
    )


def _answer(records: list[Event]) -> tuple[Outcome, Event | None]:
    """The first result; without one, the first error. A client that was told twice has heard the first."""
    replies = sorted((event for event in records if event.kind == "reply"), key=lambda event: (event.t, event.outcome))
    for reply in replies:
        outcome = classify(reply.outcome)
        if outcome is not Outcome.FAILED:
            return outcome, reply
    return (Outcome.FAILED, replies[0]) if replies else (Outcome.SILENT, None)


def classify(outcome: str) -> Outcome:
    """Of the text of a reply: `CONFIRMED`, or `OK` of an application that is not the shop; `REJECTED:no stock`; or an
    error. An order that was undone because something failed is no refusal of the business: the client got nothing."""
    match outcome.partition(":"):
        case ("CONFIRMED" | "OK", _, _):
            return Outcome.CONFIRMED
        case ("REJECTED", _, reason) if reason != data.FAILED:
            return Outcome.REJECTED
        case _:
            return Outcome.FAILED


def _reason(outcome: Outcome, answer: Event | None) -> str:
    if answer is None:
        return "no answer"
    if outcome is Outcome.FAILED:
        return answer.outcome or f"status {answer.status}"
    return answer.outcome.partition(":")[2]
