"""Rules of the protocol, each taken away: a world that breaks one must be noticed, or the simulator is blind there.

A mutant replaces one attribute of a class or module while its worlds run. Nothing in the product knows of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec

from penstock.checkpoint.control import AttemptBegun
from penstock.checkpoint.coordinator import Coordinator
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.recovery import History
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.sinks import Action, Staged, TwoPhaseSink, _Decided
from penstock.checkpoint.snapshot import Admission, Snapshot, SnapshotTask
from penstock.checkpoint.store import BaseStore
from penstock.engine import data, forgetting, offline, regroup, savepoints
from penstock.engine.data import DataDirectory
from penstock.engine.delays import Delays
from penstock.engine.effects import Batch
from penstock.engine.journal import Journal
from penstock.engine.task import TaskCore
from penstock.engine.unit import TaskUnit
from penstock.errors import CorruptSnapshot, PenstockError
from penstock.records import EpochFrame, Frozen
from penstock.state import keys
from tests.simulation import directory, world
from tests.simulation.database import Database
from tests.simulation.log import Producer
from tests.simulation.mix import EVERYTHING, Mix, Move
from tests.simulation.node import Node
from tests.simulation.world import Run, World

SEEDS_MAX = 3_000
"""Worlds in which a mutant must be noticed."""

ZOMBIES = EVERYTHING.more({Move.TAKE_OVER: 0.6, Move.CRASH: 0.1, Move.REPLAY: 0.0}, zombie_share=0.4)
MESSAGES = EVERYTHING.more({Move.TURN: 60.0, Move.PUMP: 30.0, Move.BEGIN: 8.0})
BACKLOG = EVERYTHING.more({Move.CRASH: 0.4, Move.PUMP: 20.0}, lazy=1.0)
UPKEEP = EVERYTHING.more({Move.FOLD: 20.0, Move.BASE: 10.0, Move.RETAIN: 4.0, Move.CRASH: 0.5}, steps=250)
DAMAGES = EVERYTHING.more(
    {Move.DAMAGE: 0.6, Move.FOLD: 10.0, Move.BASE: 10.0, Move.RETAIN: 0.5, Move.TAKE_OVER: 0.05, Move.REPLAY: 0.03},
    steps=250,
)
PEOPLE = EVERYTHING.more({Move.REPLAY: 0.4})
REFUSALS = EVERYTHING.more({Move.REFUSE: 6.0, Move.PUMP: 12.0, Move.CRASH: 0.5})
RESCALES = EVERYTHING.more({Move.RESCALE: 1.5, Move.TURN: 50.0}, tasks=(4,))
JUMPS = EVERYTHING.more({Move.CLOCK: 4.0, Move.CRASH: 0.0, Move.TAKE_OVER: 0.0})
DISKS = EVERYTHING.more(
    {
        Move.DISK_FULL: 3.0,
        Move.TURN: 8.0,
        Move.WRITE: 30.0,
        Move.BEGIN: 30.0,
        Move.ACKNOWLEDGE: 30.0,
        Move.DECIDE: 20.0,
        Move.LEARN: 20.0,
        Move.SINK: 30.0,
        Move.CRASH: 0.8,
        Move.TAKE_OVER: 0.0,
        Move.REPLAY: 0.0,
        Move.DAMAGE: 0.0,
    },
    slow_sink=0.0,
)
DECISIONS = EVERYTHING.more(
    {
        Move.DECIDE: 3.0,
        Move.RETAIN: 2.0,
        Move.LEARN: 20.0,
        Move.SINK: 20.0,
        Move.CRASH: 0.5,
        Move.TAKE_OVER: 0.0,
    },
    slow_sink=0.0,
)
QUIET_ENDS = EVERYTHING.more(
    {Move.FORGET: 3.0, Move.DISK_FULL: 2.0, Move.CRASH: 0.05, Move.TAKE_OVER: 0.05, Move.DAMAGE: 0.0},
    steps=250,
)


NOTICED = (AssertionError, PenstockError, msgspec.MsgspecError, KeyError)
"""Some rules are guarded by a core itself."""


@dataclass(frozen=True)
class Mutant:
    """One rule taken away. `mix` brings about what the rule is for."""

    name: str
    owner: Any
    attribute: str
    replacement: Any
    mix: Mix = EVERYTHING
    kind: type[World] = World

    def caught(self) -> tuple[int, str]:
        """How many worlds it takes to notice it, and what is noticed. The count is beyond SEEDS_MAX when nothing is."""
        with patch.object(self.owner, self.attribute, self.replacement):
            for seed in range(SEEDS_MAX):
                try:
                    self.kind(seed, self.mix).run()
                except (
                    AssertionError,
                    PenstockError,
                    msgspec.MsgspecError,
                    KeyError,
                ) as error:  # Some rules are guarded by a core itself.
                    return seed + 1, f"{type(error).__name__}: {error}"
        return SEEDS_MAX + 1, "nothing"


# What each rule becomes.

_admit = SnapshotTask.admit
_cut = SnapshotTask.cut
_failed = SnapshotTask.failed
_freeze = TaskCore.freeze
_acknowledge = Coordinator._acknowledge
_next_attempt = History.next_attempt
_chain = Journal.chain
_pop_due = Delays.pop_due
_turn = World._turn
_commit = Database.commit
_write_index = Journal.write_index
_stamp = SnapshotTask.stamp
_run = TaskCore.run
_flush_next = Producer.flush_next
_pump = Producer.pump
_restore_newest = data.restore_newest


def _admit_at_once(self: SnapshotTask, frame: EpochFrame) -> Admission:
    admission = _admit(self, frame)
    return Admission.PROCESS if admission is Admission.CUT_FIRST else admission


def _accept_any_attempt(self: Lineage, attempt: int, epoch: int) -> bool:
    return attempt == self.attempt or epoch < max((cut for _, cut in self.ancestors), default=0)


def _accept_any_epoch(self: Lineage, attempt: int, epoch: int) -> bool:
    return attempt in self.attempts


def _accept_only_the_predecessor(self: Lineage, attempt: int, epoch: int) -> bool:
    return attempt == self.attempt or (
        (attempt, epoch) < (self.ancestors[-1] if self.ancestors else (0, 0)) and (attempt == self.ancestors[-1][0])
    )


def _ids_from_the_restored(
    self: History, lineage: Lineage | None, restored: int, now_ms: int, reason: str, *, replay: bool = False
) -> AttemptBegun:
    begun = _next_attempt(self, lineage, restored, now_ms, reason, replay=replay)
    return msgspec.structs.replace(begun, high=restored + world.IDS_RESERVED)


def _latest_overall(self: History) -> Iterator[Retained]:
    yield from sorted(self.checkpoints.values(), key=lambda each: each.checkpoint, reverse=True)


def _stage_as_decided(self: TwoPhaseSink, batch: Staged) -> list[Action]:
    self._decided.append(_Decided(batch, batch.checkpoint))
    return self._proceed()


def _decide_as_staged(self: TwoPhaseSink, attempt: int, checkpoint: int) -> list[Action]:
    self._decided += [_Decided(each, each.checkpoint) for each in self._undecided if each.checkpoint <= checkpoint]
    self._undecided = [batch for batch in self._undecided if batch.checkpoint > checkpoint]
    return self._proceed()


def _forget_failed(self: SnapshotTask, checkpoint: int) -> None:
    _failed(self, checkpoint)
    self._unwritten = None


def _without(kind: int) -> Callable[[TaskCore, int], Frozen]:
    def freeze(self: TaskCore, checkpoint: int) -> Frozen:
        frozen = _freeze(self, checkpoint)
        return frozen._replace(rows={key: row for key, row in frozen.rows.items() if key[0] != kind})

    return freeze


def _without_queues(self: TaskCore, checkpoint: int) -> Frozen:
    frozen = _freeze(self, checkpoint)
    return frozen._replace(queues={}, meta=msgspec.structs.replace(frozen.meta, queues={}))


def _without_positions(self: TaskCore, checkpoint: int) -> Frozen:
    frozen = _freeze(self, checkpoint)
    return frozen._replace(meta=msgspec.structs.replace(frozen.meta, ingress_positions={}))


def _always_new(self: TaskCore, attempt: int, source: int, sequence: int) -> bool:
    self._meta.marks[source] = (attempt, sequence)
    return True


def _extend_the_base(self: SnapshotTask, frozen: Frozen) -> Snapshot:
    return _cut(self, frozen)._replace(previous=-1)


def _acknowledge_anything(self: Coordinator, checkpoint: int, part: Any, delta_bytes: int) -> list[Any]:
    return _acknowledge(self, self._last_id, part, delta_bytes)


def _tell_at_once(self: World, run: Run, node: Node, invocations_max: int) -> bool:
    before = len(node.core._replies)
    worked = _turn(self, run, node, invocations_max)
    for reply in node.core._replies[before:]:
        self.answer(reply, run.attempt.lineage.attempt, 0)  # No checkpoint has decided it.
    return worked


def _commit_unfenced(self: Database, task: int, owner: object, rows: Any, marker: dict[int, int]) -> bool:
    self._owners[task] = owner
    return _commit(self, task, owner, rows, marker)


def _index_to_the_end(self: Journal, history: History) -> None:
    history.scanned = self.end
    _write_index(self, history)


def _stamp_as_before_the_cut(self: SnapshotTask, sequence: int, messages: Any) -> EpochFrame:
    frame = _stamp(self, sequence, messages)
    return frame._replace(epoch=frame.epoch - 1)


def _fire_and_keep(self: Delays, clock_ms: int, count_max: int) -> Iterator[Any]:
    """Leave the row of a timer that fired where it is: after a restore it fires again."""
    rows = {key: self._overlay.get(key) for key in self._index._near}
    yield from _pop_due(self, clock_ms, count_max)
    for key, row in rows.items():
        if row is not None and self._overlay.get(key) is None:
            self._overlay.put(key, row)


def _believe_the_clock(self: TaskCore, batch: Batch, expired: Callable[[], bool] = lambda: False) -> Any:
    self._meta.clock_ms = batch.clock_ms
    return _run(self, batch, expired)


def _first_of_all(manifest_of: Any, candidates: Any, restore: Any, pass_over: Any) -> Any:
    """Restore the newest or nothing."""
    return _restore_newest(manifest_of, list(candidates)[:1], restore, pass_over)


def _pass_over_quietly(self: DataDirectory, damaged: Retained, error: CorruptSnapshot) -> None:
    self.history.checkpoints.pop(damaged.checkpoint)


def _believe_any_file(content: bytes, place: str) -> bytes:
    return content.partition(b"\n")[2]


def _flush_what_answers(self: Producer) -> bool:
    for partition in self.refusing.intersection(self._unflushed):
        del self._unflushed[partition]
    return _flush_next(self)


def _send_the_last_first(self: Producer, partition: str, count_max: int) -> None:
    if partition in self.refusing:
        self._unsent.get(partition, deque[bytes]()).reverse()
    _pump(self, partition, count_max)


MUTANTS = [
    # What holds while a partition refuses.
    Mutant("a flush waits for all", Producer, "flush_next", _flush_what_answers, REFUSALS),
    Mutant("what was refused goes first", Producer, "pump", _send_the_last_first, REFUSALS),
    # How tasks are regrouped.
    Mutant("what is under way goes with its target", savepoints, "not_admitted", lambda marks, frames: (), RESCALES),
    Mutant("what was admitted does not", savepoints, "not_admitted", lambda marks, frames: frames, RESCALES),
    Mutant("what was rolled back does not", offline, "sent_before", lambda manifest, frames: frames, RESCALES),
    Mutant("delayed messages are numbered anew", regroup, "_offsets", lambda counts: [0, *counts], RESCALES),
    Mutant("inputs go on where they stood", regroup, "positions_of", lambda task, tasks, before: {}, RESCALES),
    # What restores compare, and pass over.
    Mutant("a damaged checkpoint is passed over", data, "restore_newest", _first_of_all, DAMAGES),
    Mutant("nobody starts from nothing unasked", DataDirectory, "_pass_over", _pass_over_quietly, DAMAGES),
    Mutant("ids are passed over where records are lost", History, "skip", lambda self, count: None, DAMAGES),
    Mutant("the index has a checksum", directory, "unchecked", _believe_any_file, DAMAGES),
    Mutant("files of bases have a hash", BaseStore, "_check_hash", lambda self, *_: None, DAMAGES),
    Mutant("each address has one task", TaskCore, "_foreign", lambda self, ids: set(), MESSAGES),
    Mutant("frames are of the epoch they leave in", SnapshotTask, "stamp", _stamp_as_before_the_cut, ZOMBIES),
    Mutant("the clock of handlers never goes back", TaskCore, "run", _believe_the_clock, JUMPS),
    Mutant("inputs of every retained attempt", forgetting, "oldest_of_attempts", lambda kept: kept[-1:], UPKEEP),
    Mutant("Rule F", SnapshotTask, "admit", _admit_at_once, MESSAGES),
    Mutant("flush before acknowledge", Node, "flush_next", lambda self: False, MESSAGES),
    Mutant("lineage: attempt", Lineage, "accepts", _accept_any_attempt, ZOMBIES),
    Mutant("lineage: epoch", Lineage, "accepts", _accept_any_epoch, ZOMBIES),
    Mutant("lineage: all ancestors", Lineage, "accepts", _accept_only_the_predecessor, BACKLOG),
    Mutant("ids above the highest reserved", History, "next_attempt", _ids_from_the_restored),
    Mutant("recover the attempt's own base", History, "candidates", _latest_overall, PEOPLE),
    Mutant("marker check", TwoPhaseSink, "_drop_visible", lambda self: []),
    Mutant("commit after COMPLETE", TwoPhaseSink, "_stage", _stage_as_decided),
    Mutant("marker of the deciding checkpoint", TwoPhaseSink, "_decide", _decide_as_staged, DISKS),
    Mutant("fence before the marker is read", Database, "commit", _commit_unfenced, ZOMBIES),
    Mutant("fenced control log", World, "fenced", lambda self, run: False, ZOMBIES),
    Mutant("tell after COMPLETE", World, "_turn", _tell_at_once),
    Mutant("failed delta in the next", SnapshotTask, "failed", _forget_failed, DISKS),
    Mutant("pending rows in the snapshot", TaskCore, "freeze", _without(keys.PENDING)),
    Mutant("timer rows in the snapshot", TaskCore, "freeze", _without(keys.TIMER)),
    Mutant("queues in the snapshot", TaskCore, "freeze", _without_queues),
    Mutant("positions in the snapshot", TaskCore, "freeze", _without_positions),
    Mutant("duplicate frames", TaskCore, "_is_new", _always_new, MESSAGES.more({}, resend=0.3)),
    Mutant("previous delta", SnapshotTask, "cut", _extend_the_base),
    Mutant("acknowledgements of this checkpoint", Coordinator, "_acknowledge", _acknowledge_anything, DISKS),
    Mutant("a checkpoint given up is made up for", Coordinator, "owing", False, QUIET_ENDS),
    Mutant("a timer that fired is gone", Delays, "pop_due", _fire_and_keep),
    Mutant("timers are not early", Delays, "pop_due", lambda self, now, count: _pop_due(self, now + 9, count)),
    Mutant("restored rows are folded", TaskUnit, "adopt", lambda self, restored: None, UPKEEP),
    Mutant("index behind what is durable", Journal, "write_index", _index_to_the_end, DECISIONS),
    Mutant("chains end at the base", Journal, "chain", lambda self, head, first: _chain(self, head, 0), UPKEEP),
]

EXEMPT = {
    "settle after COMPLETE": (
        "Every rollback reloads the base and the deltas, so what a store got too early is never read again. The rule "
        "is for survivors that roll back in place; Overlay.rollback asserts it."
    ),
    "epoch of the first frames": (
        "A restored task could as well begin in the epoch it was restored to: until its first cut, what it sends is "
        "told apart by its attempt, and new ids are above those reserved in any case."
    ),
}
"""Rules that no world can need, because something else holds without them."""
