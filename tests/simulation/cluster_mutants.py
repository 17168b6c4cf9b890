"""Rules of the protocol between workers and their leader, each taken away: a cluster that breaks one must be noticed.

A mutant replaces one attribute of a class or module while its clusters run. Nothing in the product knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec

from penstock.checkpoint import delta as delta_module
from penstock.checkpoint import leader as leader_module
from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Manifest
from penstock.checkpoint.leader import Action, Event, Leader, Write, Written
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.member import Member
from penstock.checkpoint.recovery import History
from penstock.checkpoint.reports import Acknowledgement, Hint
from penstock.checkpoint.sinks import TwoPhaseSink
from penstock.checkpoint.snapshot import Snapshot, SnapshotTask
from penstock.checkpoint.store import BaseStore
from penstock.engine.cluster.deltas import Deltas
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.link import LeaderLink
from penstock.engine.cluster.tasks import Tasks
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.restore import Restored
from penstock.engine.task import TaskCore
from penstock.engine.unit import TaskUnit
from penstock.records import Frozen
from tests.simulation import cluster_mix as mixes
from tests.simulation.cluster_kafka import Overtaken, SimulatedKafka, SimulatedWriter
from tests.simulation.cluster_leader import SimulatedLeader
from tests.simulation.cluster_mix import ClusterMix
from tests.simulation.cluster_stage import pause
from tests.simulation.cluster_worker import IDS_RESERVED, TOPICS, staged
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.mutants import (
    NOTICED,
    _accept_any_attempt,
    _accept_any_epoch,
    _accept_only_the_predecessor,
    _admit_at_once,
    _always_new,
    _decide_as_staged,
    _latest_overall,
    _stage_as_decided,
)

SEEDS_MAX = 1_500
"""Clusters in which a mutant must be noticed."""
MADE_UP = 1_000_000
"""An offset from which on no record stands."""


@dataclass(frozen=True)
class ClusterMutant:
    """One rule taken away. `mix` brings about what the rule is for."""

    name: str
    owner: Any
    attribute: str
    replacement: Any
    mix: ClusterMix = mixes.EVERYTHING

    def caught(self) -> tuple[int, str]:
        """How many clusters it takes to notice it, and what is noticed. The count is beyond SEEDS_MAX when nothing
        is."""
        with staged(), patch.object(self.owner, self.attribute, self.replacement):
            for seed in range(SEEDS_MAX):
                try:
                    ClusterWorld(seed, self.mix).run()
                except (*NOTICED, Overtaken) as error:
                    return seed + 1, f"{type(error).__name__}: {error}"
        return SEEDS_MAX + 1, "nothing"


# What each rule becomes.

_hand_over = Leader._hand_over
_acknowledged = Leader._acknowledged
_adopt = Leader._adopt
_age = Leader._age
_hear_of_attempt = Leader._hear_of_attempt
_start_rounds = Leader._start_rounds
_try_to_begin = Leader._try_to_begin
_change_tasks = Member._change_tasks
_decided = Member.decided
_hinted = Member.hinted
_change = Tasks.change
_cut = SnapshotTask.cut
_next_attempt = History.next_attempt
_restore = TaskCore.restore
_adopt_rows = TaskUnit.adopt


def _hand_over_an_older_one(self: Leader, released: set[int], manifest: Manifest) -> list[Action]:
    older = [number for number in self.history.checkpoints if number < manifest.checkpoint]
    return _hand_over(self, released, self.manifest(max(older)) if older else manifest)


def _hand_over_at_once(self: Leader, said: Acknowledgement, now_ms: float) -> list[Action]:
    """As soon as all have acknowledged: the assignment comes before COMPLETE."""
    actions = _acknowledged(self, said, now_ms)
    complete = actions[-1].record if actions and isinstance(actions[-1], Write) else None
    if not isinstance(complete, Complete) or self._round is None or not self._round.released:
        return actions
    released, self._round.released = self._round.released, set()
    self._unwritten.pop()
    early = _hand_over(self, released, complete.manifest)
    self._unwritten.append(complete)
    return [*actions[:-1], *early, actions[-1]]


def _forget_the_round(self: Leader) -> list[Action]:
    self._round = None
    self._forget_round_of_moves()
    return []


def _adopt_silently(self: Leader, assigned: Assign, now_ms: float) -> None:
    _adopt(self, assigned, now_ms)
    self._pending.clear()
    self._unwritten.clear()


def _believe_at_once(self: SimulatedLeader, event: Event) -> None:
    """Take a decision for durable when it is made."""
    if isinstance(event, Written) and event.offset < MADE_UP:
        return
    for action in self.core.handle(event, self.world.clock_ms):
        self.perform(action)
        if isinstance(action, Write):
            self.handle(Written(MADE_UP + self.world.clock_ms))


def _begin_at_once(self: Leader, now_ms: float) -> list[Action]:
    """Choose what to go back to while a decision is on its way."""
    unwritten, self._unwritten = self._unwritten, []
    actions = _try_to_begin(self, now_ms)
    self._unwritten = unwritten + self._unwritten
    return actions


def _hear_of_any_round(self: Leader, report: Any, now_ms: float) -> list[Action]:
    """Take every acknowledgement for one of the checkpoint under way."""
    if isinstance(report, Acknowledgement) and self._round is not None and self._attempt is not None:
        attempt, checkpoint = self._attempt.lineage.attempt, self._round.checkpoint
        report = msgspec.structs.replace(report, attempt=attempt, checkpoint=checkpoint)
    return _hear_of_attempt(self, report, now_ms)


def _age_at_any_time(self: Leader, now_ms: float) -> list[Action]:
    unwritten, self._unwritten = self._unwritten, []
    actions = _age(self, now_ms)
    self._unwritten = unwritten + self._unwritten
    return actions


def _start_from_the_first_id(self: Leader, *, used: int | None = None) -> None:
    _start_rounds(self)


def _go_on_after_complete(self: Member, record: ControlRecord) -> list[Any]:
    if isinstance(record, Complete):
        self._released = {t: since for t, since in self._released.items() if since > record.manifest.checkpoint}
    return _decided(self, record)


def _go_on_with_any_assignment(self: Member, assigned: Assign, owned: frozenset[int]) -> list[Any]:
    return _change_tasks(self, msgspec.structs.replace(assigned, resolved=1 << 60), owned)


def _release_what_is_decided(self: Member, hint: Hint) -> list[Any]:
    resolved, self._resolved = self._resolved, 0
    actions = _hinted(self, hint)
    self._resolved = resolved
    return actions


def _change_later(self: Tasks, asked: Any) -> None:
    _change(self, asked)
    self.leaving.clear()


def _number_anew(self: TaskCore, *arguments: Any, attempt_starts: bool = True) -> None:
    _restore(self, *arguments, attempt_starts=True)


def _ids_from_the_restored(
    self: History, lineage: Lineage | None, restored: int, now_ms: int, reason: str, *, replay: bool = False
) -> AttemptBegun:
    begun = _next_attempt(self, lineage, restored, now_ms, reason, replay=replay)
    return msgspec.structs.replace(begun, high=restored + IDS_RESERVED)


async def _flush_what_answers(self: SimulatedWriter) -> None:
    """Frames that a partition refuses are taken for sent."""
    mark, kafka = self._appended, self._kafka
    while any(
        waiting[0][0] <= mark
        for place, waiting in self._waiting.items()
        if place[0] != TOPICS.inbox or place not in kafka.refusing
    ):
        await pause()


async def _flush_deltas(self: SimulatedWriter) -> None:
    """Only those: without them nobody would know what to acknowledge."""
    mark = self._appended
    while any(waiting[0][0] <= mark for place, waiting in self._waiting.items() if place[0] == TOPICS.deltas):
        await pause()


def _all_in_range(self: Deltas, head: int, first: int) -> list[int]:
    return [at for at in self._offsets if max(first, 0) <= at <= head and not self._header(at).index]


def _extend_the_base(self: SnapshotTask, frozen: Frozen) -> Snapshot:
    return _cut(self, frozen)._replace(previous=-1)


def _name_what_is_retained(lineage: Lineage, restored: Manifest, oldest: Any) -> Lineage:
    """As if every frame that was sent before the oldest retained checkpoint had been taken."""
    needed = frozenset(attempt for part in restored.parts for attempt in part.staged or ())
    first = min(manifest.lineage.attempt for manifest in [restored, *oldest])
    return lineage.prune(needed | frozenset(attempt for attempt in lineage.attempts if attempt >= first))


def _forget_whose_rows(self: TaskUnit, restored: Restored) -> None:
    _adopt_rows(self, restored)
    self._inherited.clear()


MUTANTS = [
    # What restores compare.
    ClusterMutant("deltas have a checksum", delta_module, "zlib", SimpleNamespace(crc32=lambda *_: 0), mixes.DAMAGES),
    ClusterMutant("files of shared bases have a hash", BaseStore, "_check_hash", lambda self, *_: None, mixes.DAMAGES),
    # How a task changes hands.
    ClusterMutant("a released task stands still", Member, "released", lambda *_: None, mixes.HANDOFFS),
    ClusterMutant("it does so until an assignment", Member, "decided", _go_on_after_complete, mixes.HANDOFFS),
    ClusterMutant("one that knows of it", Member, "_change_tasks", _go_on_with_any_assignment, mixes.RETRIES),
    ClusterMutant("what is decided is not released again", Member, "hinted", _release_what_is_decided, mixes.DUELS),
    ClusterMutant("what is given away takes no turn", Tasks, "change", _change_later, mixes.HANDOFFS),
    ClusterMutant(
        "who goes on joins the round", ClusterWorker, "_join_round", lambda self, units: None, mixes.HANDOFFS
    ),
    ClusterMutant("the manifest of the release", Leader, "_hand_over", _hand_over_an_older_one, mixes.HANDOFFS),
    ClusterMutant("COMPLETE before ASSIGN", Leader, "_acknowledged", _hand_over_at_once, mixes.LEADERS),
    ClusterMutant("ASSIGN after what is given up", Leader, "_abandoned", _forget_the_round, mixes.HANDOFFS),
    ClusterMutant("ASSIGN of a new leader", Leader, "_adopt", _adopt_silently, mixes.LEADERS),
    ClusterMutant("adopted tasks number on", TaskCore, "restore", _number_anew, mixes.HANDOFFS),
    # How the leader decides.
    ClusterMutant("the log knows only one leader", SimulatedKafka, "holds", lambda *_: True, mixes.DUELS),
    ClusterMutant("decisions count when they are durable", SimulatedLeader, "handle", _believe_at_once, mixes.DUELS),
    ClusterMutant("what is decided is known before a recovery", Leader, "_try_to_begin", _begin_at_once, mixes.ZOMBIES),
    ClusterMutant("acknowledgements of this round", Leader, "_hear_of_attempt", _hear_of_any_round, mixes.HANDOFFS),
    ClusterMutant(
        "ids that no leader used",
        Leader,
        "_start_rounds",
        _start_from_the_first_id,
        mixes.LEADERS,
    ),
    ClusterMutant("ids above the highest reserved", History, "next_attempt", _ids_from_the_restored),
    ClusterMutant("recover the attempt's own base", History, "candidates", _latest_overall, mixes.PEOPLE),
    ClusterMutant("repeat what is durable only", Leader, "_age", _age_at_any_time, mixes.REPEATS),
    ClusterMutant(
        "an attempt from nothing reads from the start",
        leader_module,
        "tells_what_is_read",
        lambda *_, **__: True,
        mixes.FRESH,
    ),
    ClusterMutant("a fault is said again", LeaderLink, "give_up", LeaderLink.report, mixes.DAMAGES),
    # What workers write and read.
    ClusterMutant("Rule F", SnapshotTask, "admit", _admit_at_once, mixes.MESSAGES),
    ClusterMutant("flush before acknowledge", SimulatedWriter, "flush", _flush_deltas, mixes.REFUSALS),
    ClusterMutant("a flush waits for all", SimulatedWriter, "flush", _flush_what_answers, mixes.REFUSALS),
    ClusterMutant("frames are sealed before the flush", FrameWriter, "seal", lambda self: None, mixes.UNSEALED),
    ClusterMutant("lineage: attempt", Lineage, "accepts", _accept_any_attempt, mixes.ZOMBIES),
    ClusterMutant("lineage: epoch", Lineage, "accepts", _accept_any_epoch, mixes.ZOMBIES),
    ClusterMutant("lineage: all ancestors", Lineage, "accepts", _accept_only_the_predecessor, mixes.BACKLOG),
    ClusterMutant("duplicate frames", TaskCore, "_is_new", _always_new, mixes.MESSAGES.more({}, resend=0.4)),
    ClusterMutant(
        "lineage: what inboxes may still give", leader_module, "_pruned", _name_what_is_retained, mixes.BRIEF
    ),
    ClusterMutant(
        "frames count wherever they stand", FrameWriter, "probe", lambda self: False, mixes.BRIEF.more({}, resend=0.6)
    ),
    ClusterMutant("deltas by what they extend", Deltas, "chain", _all_in_range, mixes.ZOMBIES),
    ClusterMutant("previous delta", SnapshotTask, "cut", _extend_the_base),
    # How rows become visible.
    ClusterMutant("marker check", TwoPhaseSink, "_drop_visible", lambda self: []),
    ClusterMutant("marker of the deciding checkpoint", TwoPhaseSink, "_decide", _decide_as_staged, mixes.HANDOFFS),
    ClusterMutant("attempts of rows on their way", TaskUnit, "adopt", _forget_whose_rows, mixes.STUCK),
    ClusterMutant("commit after COMPLETE", TwoPhaseSink, "_stage", _stage_as_decided, mixes.ZOMBIES),
]

EXEMPT = {
    "acknowledgements of this attempt": (
        "Ids of checkpoints are never used twice, whoever leads, so an acknowledgement of another attempt never names "
        "the checkpoint under way."
    ),
    "acknowledgements of the owner": (
        "A worker cuts only tasks that an assignment gives it and that do not stand still, and a task is given away "
        "only while it stands still: two never cut it for one checkpoint."
    ),
    "ATTEMPT stops what goes on": (
        "What tasks do between ATTEMPT and ASSIGN is void either way: its frames are dropped because of the attempt, "
        "its deltas are in no manifest, and its rows wait for a COMPLETE that nobody writes. Stopping early saves work."
    ),
    "fences": (
        "Frames are dropped by attempt and epoch wherever they stand. A fence bounds what a restore has to read."
    ),
    "frames of an attempt that is over are not written": ("Receivers would drop them. Forgetting them saves writing."),
}
"""Rules that no cluster can need, because something else holds without them."""
