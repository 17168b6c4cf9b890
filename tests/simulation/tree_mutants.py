"""Rules of awaiting, each taken away: a world of trees that breaks one must be noticed.

As in `mutants`, a mutant replaces one attribute of a class or module while its worlds run.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

from penstock.engine.awaiting import Awaiting
from penstock.engine.entry import Entry
from penstock.engine.invocation import Invocation
from penstock.engine.invocation_journal import CANCELLATION, InvocationJournal
from penstock.engine.regroup import _Waiting
from penstock.engine.task import TaskCore
from penstock.engine.unit import Suspended
from penstock.functions.context import Context
from penstock.functions.durable import Stepped
from penstock.ids import Address
from penstock.records import Envelope, Frozen, QueuedRow
from penstock.state import keys
from penstock.state.overlay import Overlay
from penstock.state.stateful import Opened, RowCollections
from tests.simulation.mix import Move
from tests.simulation.mutants import Mutant
from tests.simulation.tree_world import GROWING, STORMS, TreeWorld
from tests.simulation.walks import NATURE

REGROUPED = GROWING.more({Move.RESCALE: 1.5}, tasks=(4,), steps=150, lazy=1.0)

_end_turn = Awaiting.end_turn
_arrived = Awaiting.arrived
_arrive = InvocationJournal.arrive
_flush = InvocationJournal.flush
_load = InvocationJournal.load.__func__  # type: ignore[attr-defined]
_freeze = TaskCore.freeze
_lets_in = Awaiting.lets_in
_open = Entry.open
_take = _Waiting._take


def _write_later(self: Awaiting) -> None:
    """Write a journal only when its handler is put aside."""
    self._touched.clear()
    _end_turn(self)


def _without_journals(self: TaskCore, checkpoint: int) -> Frozen:
    frozen = _freeze(self, checkpoint)
    kept = {key: row for key, row in frozen.rows.items() if not (key[0] < keys.META and key[1] == keys.JOURNAL)}
    return frozen._replace(rows=kept)


def _arrive_twice(self: InvocationJournal, index: int, *result: Any) -> bool:
    if not _arrive(self, index, *result):
        return False
    self.arrivals.append(index)
    return True


def _arrive_late(self: InvocationJournal, index: int, value: bytes, error: Any, clock_ms: int) -> bool:
    if not 0 <= index < len(self.lines):
        return False
    self.lines[index].arrived = 0
    return _arrive(self, index, value, error, clock_ms)


def _arrived_for_anybody(self: Awaiting, address: Address, cause: int, index: int, value: bytes, error: Any) -> None:
    found = self.invocation_of(address)
    _arrived(self, address, cause if found is None else found[1].cause, index, value, error)


def _load_newer(cls: Any, overlay: Overlay, address: tuple[str, str]) -> InvocationJournal | None:
    """Begin with the state as it is."""
    journal: InvocationJournal | None = _load(cls, overlay, address)
    if journal is not None:
        journal.state = overlay.load(overlay.cells(address[0]), address[1])
    return journal


def _load_as_asked(cls: Any, overlay: Overlay, address: tuple[str, str]) -> InvocationJournal | None:
    """Give results in the order in which they were asked for."""
    journal: InvocationJournal | None = _load(cls, overlay, address)
    if journal is not None:
        journal.arrivals.sort(key=lambda index: 1 << 30 if index == CANCELLATION else index)
    return journal


def _load_uncancelled(cls: Any, overlay: Overlay, address: tuple[str, str]) -> InvocationJournal | None:
    journal: InvocationJournal | None = _load(cls, overlay, address)
    if journal is not None and journal.cancelled:
        journal.arrivals.remove(CANCELLATION)
        journal._cancelled = None
    return journal


def _let_in_at_once(self: Awaiting, entry: Entry, message: QueuedRow) -> bool:
    """Let a call in that came back, although something has arrived before it."""
    with patch.object(Invocation, "has_news", False):
        return _lets_in(self, entry, message)


def _open_as_it_began(self: Entry, context: Context[Any], *arguments: Any) -> Opened:
    """Show who only reads the state with which a handler that waits began."""
    if self.reads_only:
        journal = InvocationJournal.load(self.overlay, (self.function.state_typename, context.id))
        if journal is not None:
            return _open(self, context, arguments[0], journal.state)
    return _open(self, context, *arguments)


def _always_passive(self: InvocationJournal, *, passive: bool) -> None:
    _flush(self, passive=True)


def _begin_at_once(self: Suspended, typename: str, id: str, cause: int, index: int, step: Stepped) -> None:
    self._begin_step(typename, id, cause, index, step)


def _leave_answers(self: _Waiting, envelope: Envelope) -> None:
    if envelope.meta is None or not envelope.meta.operation:
        _take(self, envelope)


_tree = partial(Mutant, kind=TreeWorld)

MUTANTS = [
    _tree("a journal is written with its segment", Awaiting, "end_turn", _write_later, STORMS),
    _tree("journals are in the snapshot", TaskCore, "freeze", _without_journals, STORMS),
    _tree("a result is delivered once", InvocationJournal, "arrive", _arrive_twice, GROWING),
    _tree("a result that came stands", InvocationJournal, "arrive", _arrive_late, GROWING),
    _tree("an answer is for the invocation that asked", Awaiting, "arrived", _arrived_for_anybody, GROWING),
    _tree("a handler begins with its first state", InvocationJournal, "load", classmethod(_load_newer), GROWING),
    _tree("and with the rows of its tables", InvocationJournal, "before", lambda self, changes: None, GROWING),
    _tree("results come as they arrived", InvocationJournal, "load", classmethod(_load_as_asked), GROWING),
    _tree("and at the time when they did", InvocationJournal, "arrived_ms", lambda *_: NATURE.clock_ms, GROWING),
    _tree("a cancellation is kept", InvocationJournal, "load", classmethod(_load_uncancelled), GROWING),
    _tree("what has arrived wakes after a restore", InvocationJournal, "flush", _always_passive, STORMS),
    _tree("who only reads sees the last segment", Entry, "open", _open_as_it_began, GROWING),
    _tree("a call that came back is let in", Awaiting, "lets_in", lambda *_: False, GROWING),
    _tree("but not before what has arrived", Awaiting, "lets_in", _let_in_at_once, GROWING),
    _tree("who waits goes on with what it left", Awaiting, "joined", lambda *_: None, GROWING),
    _tree("and with what it left in tables", RowCollections, "take", lambda *_: None, GROWING),
    _tree("a step waits for a checkpoint", Suspended, "perform", _begin_at_once, STORMS),
    _tree("and has one taken early", TaskCore, "has_steps", False, GROWING),
    _tree("answers under way are regrouped", _Waiting, "_take", _leave_answers, REGROUPED),
]
