"""Leads the workers of one application: who owns which task, when a new attempt begins, when a checkpoint is complete.

              enough workers       ATTEMPT durable       fences durable       ASSIGN durable
    WAITING ────────────────> BEGINNING ────────> FENCING ──────────> ASSIGNING ──────────> LEADING
       ^                                                                                       │
       └────────── a worker with tasks is gone, a fault, or all tasks were given back ─────────┘

What always holds: decisions are records of the control log, written one after the other and acted on only when they are
durable; a recovery chooses its checkpoint when every earlier decision is known; a task changes hands without an attempt
only after its owner let it stand still at a cut whose checkpoint is complete, and stands still until an assignment
names an owner. So a leader that dies costs at most one checkpoint: the next one reads the log, and goes on.

What a leader must know is in the log and in the reports of the workers. Reads no clock and does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import msgspec

from penstock.checkpoint import coordinator as rounds
from penstock.checkpoint.control import (
    Assign,
    AttemptBegun,
    Complete,
    ControlRecord,
    Manifest,
    Part,
    Recap,
    decode_control,
    encode_control,
)
from penstock.checkpoint.coordinator import Coordinator, CoordinatorOptions
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.ownership import balance
from penstock.checkpoint.recovery import History, attempts_needed
from penstock.checkpoint.reports import (
    Acknowledgement,
    Alive,
    Begin,
    Changed,
    Ended,
    Expelled,
    Fault,
    Finish,
    Hint,
    Leading,
    Pinned,
    Prepare,
    Prepared,
    Report,
    Unable,
)
from penstock.checkpoint.retention import Retention, decide, oldest_of_attempts, tells_what_is_read, truncation_point
from penstock.errors import CorruptSnapshot, Refused

LEADING_MS = 1_000
"""How often the leader shows that it is there."""
PREPARE_MS = 10_000
"""After that a task moves although its new owner has not fetched its base yet."""
GONE_MAX = 10_000
RECAP_RECORDS = 250
"""After so many records what they say is repeated: whoever leads next reads little more before it leads."""


class Phase(Enum):
    """What the leader waits for."""

    WAITING = "workers, or earlier decisions to be durable"
    BEGINNING = "the record of the new attempt to be durable"
    FENCING = "the fences in the inboxes to be durable"
    ASSIGNING = "the assignment to be durable"
    LEADING = "nothing: checkpoints are taken as they fall due"


_MOVES = {
    Phase.WAITING: {Phase.BEGINNING},
    Phase.BEGINNING: {Phase.FENCING},
    Phase.FENCING: {Phase.ASSIGNING},
    Phase.ASSIGNING: {Phase.LEADING},
    Phase.LEADING: {Phase.WAITING},
}

# Events.


class Heard(NamedTuple):
    """A report came in."""

    report: Report


class Ticked(NamedTuple):
    """Time has passed. `deaf`: what workers say does not get here at present, so nobody's silence means anything."""

    deaf: bool = False


class Written(NamedTuple):
    """The oldest record handed out by Write that was not reported yet is durable, at this offset."""

    offset: int


class FencesWritten(NamedTuple):
    """Every inbox holds the fence of the attempt."""

    attempt: int


class Aged(NamedTuple):
    """It is time to forget what is retained no longer, and to repeat what the next leader must know."""


class Recalled(NamedTuple):
    """Some of the records that stand in the log before those this leader began with. `last`: there are no others."""

    records: Sequence[tuple[int, ControlRecord]]
    last: bool


Event = Heard | Ticked | Written | FencesWritten | Aged | Recalled

# Actions.


class Write(NamedTuple):
    """Append this record to the control log in a transaction of its own, then report Written. In order; when one can't
    be written, or nobody knows, this leader has to end."""

    record: ControlRecord


class Tell(NamedTuple):
    """Give this hint to all workers."""

    hint: Hint


class Fence(NamedTuple):
    """Append a fence of this attempt to every inbox, then report FencesWritten."""

    attempt: int


class Announce(NamedTuple):
    """The checkpoint is complete. Workers learn it from the control log; this is for upkeep and people."""

    manifest: Manifest


class Forget(NamedTuple):
    """What no retained checkpoint needs may be deleted: of the control log all before `offset`, and elsewhere what lies
    before the positions of all `manifests`, the oldest of each attempt."""

    offset: int
    manifests: tuple[Manifest, ...]
    bases: frozenset[str]
    """Those that retained checkpoints build on."""
    decided_ms: float
    """When that was so: bases that are younger are not judged."""


class Note(NamedTuple):
    """For people: what happened."""

    text: str
    ordinary: bool = False
    """Whether it belongs to a day on which nothing goes wrong."""


Action = Write | Tell | Fence | Announce | Forget | Note


@dataclass(frozen=True, slots=True)
class LeaderOptions:
    """Times in milliseconds."""

    name: str
    """Of this leader, for people."""
    application: str
    tasks: int
    fingerprints: dict[str, dict[str, object]]
    interval_ms: float = 200
    timeout_ms: float = 60_000
    session_ms: float = 10_000
    """A worker that was not heard of for so long is taken for dead."""
    settle_ms: float = 500
    """How long the first worker waits for others before it gets every task."""
    workers_expected: int = 1
    """When so many are there, nobody waits any longer."""
    moves_max: int = 4
    """Tasks that change hands at a time."""
    from_checkpoint: int | None = None
    """Go back to this checkpoint, once."""
    fresh: bool = False
    """Begin from nothing, once."""
    until_done: bool = False
    topics: dict[str, str] = field(default_factory=dict)
    """Of the application, with their ids, to be known again by the next leader."""
    retention: Retention = field(default_factory=Retention)
    generation: int = 1


@dataclass(slots=True)
class _Member:
    alive: Alive
    heard_ms: float
    since_ms: float


@dataclass(slots=True)
class _Pin:
    """A checkpoint that somebody reads."""

    checkpoint: int
    heard_ms: float


@dataclass(slots=True)
class _Move:
    """A task on its way to another worker; to nobody when `target` is empty."""

    target: str
    since_ms: float
    prepared: bool
    checkpoint: int | None = None
    """The one at which the owner lets it stand still; None while none was begun for that."""


class _Round:
    """What the workers say of the checkpoint under way."""

    def __init__(self, checkpoint: int) -> None:
        self.checkpoint = checkpoint
        self.parts: dict[int, Part] = {}
        self.released: set[int] = set()
        self.undone = False
        self.delta_bytes = 0
        self.cost_ms = 0.0


class Leader:
    """See the module. `records` are those of the control log with their offsets, all of them or those from a `Recap`
    on. In that case it is told the others later, and until then forgets nothing, and waits if it needs one of them.
    Raises Refused when they are those of another application."""

    def __init__(self, options: LeaderOptions, records: Iterable[tuple[int, ControlRecord]], now_ms: float) -> None:
        self._options = options
        self.history = History(deltas_apart=True)
        self._manifests: dict[int, bytes] = {}
        """Of the retained checkpoints, encoded: thousands of them, of which a few will ever be read."""
        self._unrepeated = 0
        """Records since the last that repeats what was said before."""
        self._forgetting = False
        """Whether something is no longer retained since then."""
        self._passed_over: dict[int, str] = {}
        """Checkpoints that can't be restored, and why. No record says so."""
        for offset, record in records:
            self._learn(offset, record)
        if self.history.generation != options.generation:
            raise rescaled(options.application, self.history.assigned, options.tasks)
        if self.history.attempt is not None and not options.fresh:
            refuse_other_functions(options.application, self.history.attempt.fingerprints, options.fingerprints)
        self._members: dict[str, _Member] = {}
        self._gone: dict[str, str] = {}
        self._pins: dict[str, _Pin] = {}
        """By who said so."""
        self._owners: dict[int, str] = {}
        self._version = 0
        self._listed: frozenset[str] = frozenset()
        """The workers that the newest assignment names."""
        self._attempt: AttemptBegun | None = None
        self._restored: Manifest | None = None
        self._coordinator: Coordinator | None = None
        self._round: _Round | None = None
        self._moves: dict[int, _Move] = {}
        self._sent: dict[int, int] = {}
        self._resolved = 0
        """The newest checkpoint that is complete or given up: what was released for it is decided."""
        self._unwritten: list[ControlRecord] = []
        self._phase = Phase.WAITING
        self._reason = "start"
        self._went_back = False
        """Whether the checkpoint that a person chose was restored."""
        self._replay = False
        """Whether the next attempt is the one that does it."""
        self._changed = False
        self._urgent = ""
        self._finished = False
        self._waiting_since_ms: float | None = None
        self._told_ms = 0.0
        self._ticked_ms = now_ms
        self._pending: list[Action] = []
        assigned = self.history.assigned
        if assigned is not None:
            self._version = assigned.version
            if self._may_adopt(assigned):
                self._adopt(assigned, now_ms)

    # What people ask.

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def attempt(self) -> AttemptBegun | None:
        """The attempt that runs; None while there is none."""
        return self._attempt

    @property
    def owners(self) -> Mapping[int, str]:
        return self._owners

    @property
    def version(self) -> int:
        """Of the newest assignment."""
        return self._version

    @property
    def members(self) -> list[Alive]:
        """The workers that are there."""
        return [member.alive for member in self._members.values()]

    def manifest(self, checkpoint: int) -> Manifest:
        """Of a retained checkpoint."""
        record = decode_control(self._manifests[checkpoint])
        assert isinstance(record, Complete)
        return record.manifest

    def due_in_ms(self, now_ms: float) -> float:
        """How long until a tick may do something."""
        due = max(0.0, self._told_ms + LEADING_MS - now_ms)
        if self._coordinator is not None:
            begin = self._coordinator.due_in_ms(now_ms, dirty=self._dirty, urgent=self._is_urgent)
            due = due if begin is None else min(due, begin)
        if self._phase is Phase.WAITING and self._waiting_since_ms is not None:
            due = min(due, max(0.0, self._waiting_since_ms + self._options.settle_ms - now_ms))
        return due

    # Events.

    def handle(self, event: Event, now_ms: float) -> list[Action]:
        """What the driver must do, in order. Raises CorruptSnapshot when no checkpoint can be restored any more, and
        Refused when the one that a person chose is not retained."""
        actions, self._pending = self._pending, []
        match event:
            case Heard(report):
                actions += self._hear(report, now_ms)
            case Ticked(deaf):
                actions += self._tick(now_ms, deaf=deaf)
            case Written(offset):
                actions += self._written(offset, now_ms)
            case FencesWritten(attempt):
                actions += self._assign_all(attempt)
            case Aged():
                actions += self._age(now_ms)
            case Recalled(records, last):
                actions += self._recall(records, now_ms, last=last)
        return actions

    def _hear(self, report: Report, now_ms: float) -> list[Action]:
        match report:
            case Alive():
                return self._alive(report, now_ms)
            case Ended(worker, reason):
                return self._lose(worker, reason or "ended", now_ms)
            case Prepared(worker, tasks):
                for task in tasks:
                    move = self._moves.get(task)
                    if move is not None and move.target == worker:
                        move.prepared = True
                return self._tick_checkpoints(now_ms)
            case Pinned(holder, checkpoint):
                return self._pin(holder, checkpoint, now_ms)
            case _:
                return self._hear_of_attempt(report, now_ms)

    def _hear_of_attempt(self, report: Changed | Acknowledgement | Unable | Fault, now_ms: float) -> list[Action]:
        """What counts only while the attempt it names goes on."""
        attempt = self._attempt
        if attempt is None or report.attempt != attempt.lineage.attempt or self._phase is not Phase.LEADING:
            return []
        match report:
            case Changed(_, _, reason):
                self._changed = True
                self._urgent = reason or self._urgent
                return self._tick_checkpoints(now_ms)
            case Acknowledgement():
                return self._acknowledged(report, now_ms)
            case Unable(_, _, checkpoint, reason):
                return self._rounds(rounds.Failed(checkpoint, reason), now_ms)
            case Fault(worker, _, reason, damaged):
                return self._fault(worker, reason, damaged, now_ms)

    # Workers come and go.

    def _alive(self, alive: Alive, now_ms: float) -> list[Action]:
        name = alive.worker
        if name in self._gone:
            return [Tell(Expelled(name, self._gone[name]))]
        actions: list[Action] = []
        for other in list(self._members.values()):
            if alive.instance and other.alive.instance == alive.instance and other.alive.worker != name:
                actions += self._lose(other.alive.worker, "was started again", now_ms)
        for owner in sorted(set(self._owners.values())):
            if alive.instance and owner not in self._members and _instance(owner) == alive.instance and owner != name:
                actions += self._lose(owner, "was started again", now_ms)
        member = self._members.get(name)
        if member is None:
            self._members[name] = _Member(alive, now_ms, now_ms)
            actions.append(Note(f"worker {name} is there", ordinary=True))
        else:
            member.alive, member.heard_ms = alive, now_ms
        if self._phase is Phase.WAITING:
            return actions + self._try_to_begin(now_ms)
        return actions + self._tick_checkpoints(now_ms)

    def _lose(self, worker: str, reason: str, now_ms: float) -> list[Action]:
        """A worker is gone for good: one that comes back under this name is told to end."""
        self._members.pop(worker, None)
        self._gone[worker] = reason
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        for move in self._moves.values():
            if move.target == worker:
                move.target = ""
        if worker not in self._owners.values():
            return []
        if self._phase is not Phase.LEADING:
            return [Note(f"worker {worker} {reason}")]
        actions = self._recover(f"worker {worker} {reason}", now_ms)
        begun = any(isinstance(action, Note) for action in actions)  # Which says why.
        return actions if begun else [Note(f"worker {worker} {reason}"), *actions]

    def _eligible(self) -> list[str]:
        """The workers that may be given tasks, in the order they came."""
        return [name for name, member in self._members.items() if not member.alive.leaving]

    def _restorers(self) -> list[str]:
        """The workers for a new attempt. Where all leave, those do that have not given back everything yet: they can't,
        before a checkpoint is complete."""
        assigned = self.history.assigned
        owners = frozenset(assigned.owners.values()) if assigned is not None else frozenset[str]()
        return self._eligible() or [name for name in self._members if name in owners]

    # A new attempt.

    def _recover(self, reason: str, now_ms: float) -> list[Action]:
        """Go back to the newest complete checkpoint, as soon as it is known which one that is."""
        self._coordinator, self._round = None, None
        self._moves.clear()
        self._finished = False
        self._reason = reason
        self._enter(Phase.WAITING)
        self._waiting_since_ms = None
        return self._try_to_begin(now_ms)

    def _try_to_begin(self, now_ms: float) -> list[Action]:
        workers = self._restorers()
        if self._unwritten or not workers or not self._knows_target:
            return []
        if self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms
        first = self._attempt is None
        waited = now_ms - self._waiting_since_ms >= self._options.settle_ms
        if first and len(workers) < self._options.workers_expected and not waited:
            return []
        self._waiting_since_ms = None
        self._restored = self._target()
        self._enter(Phase.BEGINNING)
        return [*self._notes(), self._write(self._next_attempt(self._restored, now_ms))]

    @property
    def _knows_target(self) -> bool:
        """Whether what to go back to is among the records read so far, or there are no others."""
        options, history = self._options, self.history
        if not history.missing or (options.fresh and not self._went_back):
            return True
        if options.from_checkpoint is not None and not self._went_back:
            return options.from_checkpoint in history.checkpoints
        return next(history.candidates(), None) is not None

    def _next_attempt(self, restored: Manifest | None, now_ms: float) -> AttemptBegun:
        """The record that begins it. It names no more of its ancestors than somebody may still ask for: frames that are
        to be taken, checkpoints to go back to, and rows that may be visible (PROTOCOL 16, 21)."""
        lineage, checkpoint = (restored.lineage, restored.checkpoint) if restored is not None else (None, 0)
        begun = self.history.next_attempt(lineage, checkpoint, int(now_ms), self._reason, replay=self._replay)
        self._replay = False
        begun = msgspec.structs.replace(begun, fingerprints=self._options.fingerprints)
        if self.history.missing:
            return begun  # Who knows what those ask for that were not read yet.
        kept = list(self.history.checkpoints.values())
        oldest = [self.manifest(each.checkpoint) for each in oldest_of_attempts(kept)]
        if restored is not None:
            begun = msgspec.structs.replace(begun, lineage=_pruned(begun.lineage, restored, oldest))
        retained = begun.lineage.attempts.union(*(manifest.lineage.attempts for manifest in oldest))
        return msgspec.structs.replace(begun, retained=tuple(sorted(retained)))

    def _target(self) -> Manifest | None:
        """The checkpoint to continue from; None for the empty state."""
        options = self._options
        if not self._went_back:
            self._went_back = True
            if options.fresh:
                self._reason, self._replay = "fresh start", True
                return None
            if options.from_checkpoint is not None:
                self._reason, self._replay = "replay", True
                return self.manifest(self.history.chosen(options.from_checkpoint).checkpoint)
        newest = self._newest()
        if newest is not None:
            refuse_other_functions(options.application, newest.fingerprints, options.fingerprints)
            return newest
        if self._passed_over:
            *_, last = self._passed_over.values()
            raise CorruptSnapshot(
                "PEN0404",
                f"No checkpoint of {options.application} can be restored: {last} Restore the "
                "checkpoint store from a backup, or start from nothing with --from none.",
            )
        return None

    def _notes(self) -> list[Action]:
        return [Note(f"a new attempt begins: {self._reason}")] if self._reason != "start" else []

    def _assign_all(self, attempt: int) -> list[Action]:
        assert self._phase is Phase.FENCING
        assert self._attempt is not None
        assert attempt == self._attempt.lineage.attempt
        self._enter(Phase.ASSIGNING)
        workers = self._restorers()
        owners = balance(self._options.tasks, self._owners, workers) if workers else {}
        return [self._assign(owners, tuple(range(self._options.tasks)), self._restored)]

    def _assign(self, owners: Mapping[int, str], moved: tuple[int, ...], manifest: Manifest | None) -> Write:
        """From here on these own the tasks, for this leader: if the record can't be written, it ends."""
        assert self._attempt is not None
        self._version += 1
        self._owners = dict(owners)
        members = tuple(dict.fromkeys([*self._members, *owners.values()]))
        self._listed = frozenset(members)
        options = self._options
        return self._write(
            Assign(
                self._version,
                self._attempt,
                dict(owners),
                members,
                moved,
                manifest,
                self._resolved,
                options.topics,
                options.generation,
                options.tasks,
            )
        )

    def _may_adopt(self, assigned: Assign) -> bool:
        """Whether the attempt that runs can go on under this leader."""
        begun, options = self.history.attempt, self._options
        return (
            begun is not None
            and begun.lineage.attempt == assigned.attempt.lineage.attempt
            and set(assigned.owners) == set(range(options.tasks))
            and options.from_checkpoint is None
            and not options.fresh
        )

    def _adopt(self, assigned: Assign, now_ms: float) -> None:
        """Lead on. Nobody knows what the last leader had begun, so every task that stands still goes on where it is,
        and every member has a session's time to be heard of."""
        self._attempt, self._owners = assigned.attempt, dict(assigned.owners)
        for name in assigned.members:
            self._members[name] = _Member(Alive(name, _instance(name)), now_ms, now_ms)
        for phase in (Phase.BEGINNING, Phase.FENCING, Phase.ASSIGNING, Phase.LEADING):
            self._enter(phase)
        self._went_back = True
        self._resolved = self.history.high
        self._start_rounds(used=self.history.high)
        self._changed = True
        self._pending.append(self._assign(self._owners, (), None))

    def _start_rounds(self, *, used: int | None = None) -> None:
        assert self._attempt is not None
        options = self._options
        self._coordinator = Coordinator(
            CoordinatorOptions(
                application=options.application,
                tasks=options.tasks,
                fingerprints=self._attempt.fingerprints or options.fingerprints,
                interval_ms=options.interval_ms,
                timeout_ms=options.timeout_ms,
                generation=options.generation,
            ),
            self._attempt,
            used=used,
        )
        # What was sent before the checkpoint that goes on, and is not taken yet, is still to be taken.
        began_from = self._restored if used is None else self._newest()
        parts = began_from.parts if began_from is not None else ()
        self._sent, self._round = {part.task: part.inbox_end for part in parts}, None

    def _fault(self, worker: str, reason: str, damaged: int, now_ms: float) -> list[Action]:
        if damaged and damaged in self.history.checkpoints:
            del self.history.checkpoints[damaged]
            self._passed_over[damaged] = f"Checkpoint {damaged} can't be restored. {reason}"
        return [Note(f"worker {worker}: {reason}"), *self._recover(reason, now_ms)]

    # Records become durable.

    def _write(self, record: ControlRecord) -> Write:
        self._unwritten.append(record)
        return Write(record)

    def _written(self, offset: int, now_ms: float) -> list[Action]:
        record = self._unwritten.pop(0)
        self._learn(offset, record)
        if isinstance(record, AttemptBegun):
            self._attempt = record
            self._enter(Phase.FENCING)
            return [Fence(record.lineage.attempt)]
        if isinstance(record, Assign):
            return self._assigned(now_ms)
        if isinstance(record, Recap):
            forgotten, self._forgetting = self._forget(now_ms) if self._forgetting else [], False
            return [*forgotten, *self._tick(now_ms)]
        if self._phase is Phase.WAITING:
            return self._try_to_begin(now_ms)
        cost_ms = self._round.cost_ms if self._round is not None else 0.0
        return self._rounds(rounds.Durable(now_ms, cost_ms), now_ms)

    def _learn(self, offset: int, record: ControlRecord) -> None:
        self.history.apply(offset, record)
        self._unrepeated += 1
        if isinstance(record, Complete):
            self._manifests[record.manifest.checkpoint] = encode_control(record)
        elif isinstance(record, Recap):
            self._unrepeated = 0
            if record.newest is not None:
                manifest = record.newest[1]
                self._manifests[manifest.checkpoint] = encode_control(Complete(manifest))
            for damaged in self._passed_over:  # It was on its way when that was found, and names it still.
                self.history.checkpoints.pop(damaged, None)
                self.history.missing.discard(damaged)

    def _recall(self, records: Sequence[tuple[int, ControlRecord]], now_ms: float, *, last: bool) -> list[Action]:
        """Learn of checkpoints that are retained from before this leader's time."""
        for offset, record in records:
            if isinstance(record, Complete) and self.history.recall(offset, record.manifest):
                self._manifests[record.manifest.checkpoint] = encode_control(record)
        if last:
            self.history.missing.clear()
        return self._tick(now_ms) if last else []

    def _assigned(self, now_ms: float) -> list[Action]:
        if self._phase is Phase.WAITING:
            return self._try_to_begin(now_ms)  # A recovery was decided meanwhile.
        if self._phase is Phase.ASSIGNING:
            self._enter(Phase.LEADING)
            self._start_rounds()
            self._changed = True
        lost = sorted({owner for owner in self._owners.values() if owner not in self._members})
        if lost or not self._owners:
            return self._recover(f"worker {lost[0]} ended" if lost else "start", now_ms)
        return self._tick_checkpoints(now_ms)

    # Checkpoints.

    @property
    def _dirty(self) -> bool:
        coordinator = self._coordinator
        return self._changed or self._releases_due or (coordinator is not None and coordinator.owing)

    @property
    def _is_urgent(self) -> bool:
        return bool(self._urgent) or self._releases_due

    @property
    def _releases_due(self) -> bool:
        return any(move.prepared and move.checkpoint is None for move in self._moves.values())

    def _tick(self, now_ms: float, *, deaf: bool = False) -> list[Action]:
        actions: list[Action] = []
        unheeded_ms = max(0.0, now_ms - self._ticked_ms - LEADING_MS)
        self._ticked_ms = now_ms
        for name, member in list(self._members.items()):
            # While this process was stopped, or its clock was set forward, it could not hear anybody.
            member.heard_ms = now_ms if deaf else min(now_ms, member.heard_ms + unheeded_ms)
            silent_ms = now_ms - member.heard_ms
            if silent_ms > self._options.session_ms:
                actions += self._lose(name, f"was silent for {silent_ms / 1000:.1f} s", now_ms)
        for holder, pin in list(self._pins.items()):
            pin.heard_ms = now_ms if deaf else min(now_ms, pin.heard_ms + unheeded_ms)
            if now_ms - pin.heard_ms > self._options.session_ms:
                del self._pins[holder]
        if now_ms - self._told_ms >= LEADING_MS:
            self._told_ms = now_ms
            actions.append(self._show())
            if self._finished and self._attempt is not None:
                actions.append(Tell(Finish(self._attempt.lineage.attempt)))
        if self._phase is Phase.WAITING:
            return actions + self._try_to_begin(now_ms)
        return actions + self._tick_checkpoints(now_ms)

    def _tick_checkpoints(self, now_ms: float) -> list[Action]:
        if self._phase is not Phase.LEADING:
            return []
        actions = self._plan_moves(now_ms)
        if not self._listed.issuperset(self._members):
            actions.append(self._assign(self._owners, (), None))  # Whoever gets no task must know that it belongs here.
        tick = rounds.Tick(now_ms, self._dirty, self._is_urgent, self._urgent or "interval")
        return actions + self._rounds(tick, now_ms)

    def _rounds(self, event: rounds.Event, now_ms: float) -> list[Action]:
        """Hand an event to the coordinator, and translate what it decides."""
        if self._coordinator is None:
            return []
        actions: list[Action] = []
        for decision in self._coordinator.handle(event):
            match decision:
                case rounds.Begin(checkpoint):
                    actions.append(self._begin(checkpoint))
                case rounds.Write(record):
                    actions.append(self._write(record))
                case rounds.Announce(manifest):
                    actions += [Announce(manifest), *self._completed(manifest, now_ms)]
                case rounds.Abandoned(checkpoint, reason):
                    actions += [Note(f"PEN0401 checkpoint {checkpoint} was given up: {reason}"), *self._abandoned()]
        return actions

    def _begin(self, checkpoint: int) -> Tell:
        assert self._attempt is not None
        self._changed, self._urgent = False, ""
        self._round = _Round(checkpoint)
        release = []
        for task, move in self._moves.items():
            if move.prepared and move.checkpoint is None:
                move.checkpoint = checkpoint
                release.append(task)
        return Tell(Begin(self._attempt.lineage.attempt, checkpoint, tuple(release)))

    def _acknowledged(self, said: Acknowledgement, now_ms: float) -> list[Action]:
        """Collect the parts. The last one completes what each part says of its inbox: where the frames end that were
        sent before the cut."""
        current = self._round
        if current is None or said.checkpoint != current.checkpoint:
            return []
        for inbox, end in said.sent.items():
            self._sent[inbox] = max(end, self._sent.get(inbox, 0))
        current.parts.update((part.task, part) for part in said.parts if self._owners.get(part.task) == said.worker)
        current.released.update(said.released)
        current.undone |= not said.done
        current.delta_bytes += said.delta_bytes
        current.cost_ms += said.cost_ms
        if len(current.parts) < self._options.tasks:
            return []
        actions: list[Action] = []
        for task, part in sorted(current.parts.items()):
            whole = msgspec.structs.replace(part, inbox_end=max(part.inbox_end, self._sent.get(task, 0)))
            delta_bytes = current.delta_bytes if task == 0 else 0
            actions += self._rounds(rounds.Acknowledged(current.checkpoint, whole, delta_bytes), now_ms)
        return actions

    def _completed(self, manifest: Manifest, now_ms: float) -> list[Action]:
        current, self._round = self._round, None
        if current is None:
            return []
        self._resolved = current.checkpoint
        actions: list[Action] = []
        settled = all(part.inbox_position >= part.inbox_end for part in manifest.parts)
        if self._options.until_done and settled and not current.undone and not self._finished:
            assert self._attempt is not None
            self._finished = True
            actions.append(Tell(Finish(self._attempt.lineage.attempt)))
        return actions + self._hand_over(current.released, manifest) + self._tick_checkpoints(now_ms)

    # Tasks change hands.

    def _plan_moves(self, now_ms: float) -> list[Action]:
        """Plan who gives which task to whom, a few at a time."""
        for move in self._moves.values():
            if now_ms - move.since_ms > PREPARE_MS:
                move.prepared = True
        workers = self._eligible()
        if not workers:
            under_way = {task: move for task, move in self._moves.items() if move.checkpoint is not None}
            self._moves = {task: _Move("", now_ms, prepared=True) for task in self._owners} | under_way
            return []
        missing = tuple(task for task in range(self._options.tasks) if task not in self._owners)
        if missing:  # Given back while nobody was there. No checkpoint can have been complete without them since.
            balanced = balance(self._options.tasks, self._owners, workers)
            # Of the others none changes hands here, though it may have to: they take turns where they are.
            owners = {**self._owners, **{task: balanced[task] for task in missing}}
            return [self._assign(owners, missing, self._newest())]
        for task, move in list(self._moves.items()):
            if move.checkpoint is None and move.target not in workers:
                del self._moves[task]  # Its target is gone, or somebody came to whom it can go.
        going = self._owners | {task: move.target for task, move in self._moves.items()}
        wanted = balance(self._options.tasks, going, workers)
        actions: list[Action] = []
        for task, target in sorted(wanted.items()):
            if going.get(task) == target or task in self._moves or len(self._moves) >= self._options.moves_max:
                continue
            self._moves[task] = _Move(target, now_ms, prepared=False)
            actions.append(Tell(Prepare(target, (task,), self._newest())))
        return actions

    def _newest(self) -> Manifest | None:
        newest = next(self.history.candidates(), None)
        return self.manifest(newest.checkpoint) if newest is not None else None

    def _hand_over(self, released: set[int], manifest: Manifest) -> list[Action]:
        """The owners let these tasks stand still at the cut of `manifest`: give them to their new owners, or back. Back
        to nobody goes all or nothing: without the others no checkpoint is complete any more, so they could never go."""
        owners, moved = dict(self._owners), []
        to_nobody = {task for task in released if task in self._moves and not self._moves[task].target}
        for task in sorted(released):
            move = self._moves.get(task)
            gone = move is not None and move.target and move.target not in self._members
            if move is None or gone or (not move.target and to_nobody != self._owners.keys()):
                continue  # Where it is it goes on.
            del self._moves[task]
            if move.target:
                owners[task] = move.target
                moved.append(task)
            else:
                del owners[task]
        self._forget_round_of_moves()
        return [self._assign(owners, tuple(moved), manifest)] if released else []

    def _abandoned(self) -> list[Action]:
        """Whoever let a task stand still for the checkpoint goes on with it."""
        if self._round is not None:
            self._resolved, self._round = self._round.checkpoint, None
        asked = any(move.checkpoint is not None for move in self._moves.values())
        self._forget_round_of_moves()
        return [self._assign(self._owners, (), None)] if asked else []

    def _forget_round_of_moves(self) -> None:
        """Those that were not carried out are tried again with the next checkpoint."""
        for move in self._moves.values():
            move.checkpoint = None

    # Retention.

    def _pin(self, holder: str, checkpoint: int, now_ms: float) -> list[Action]:
        """Retain what somebody reads, for as long as they say so. The first time they are told: from then on they may
        rely on it."""
        known = self._pins.pop(holder, None)
        if not checkpoint:
            return []
        self._pins[holder] = _Pin(checkpoint, now_ms)
        return [self._show()] if known is None or known.checkpoint != checkpoint else []

    def _show(self) -> Tell:
        """Say that this leader is there, and what it knows."""
        retained = self.history.checkpoints.keys() | self.history.missing
        pinned = {pin.checkpoint for pin in self._pins.values()} & retained
        return Tell(Leading(self._options.name, tuple(self.members), tuple(sorted(pinned))))

    def _age(self, now_ms: float) -> list[Action]:
        """Forget checkpoints that need not be retained any more. Only when a record says what those before it said may
        they be deleted. It is written as well when there are many."""
        attempt = self._attempt
        if attempt is None or self._phase is not Phase.LEADING or not self.history.checkpoints:
            return []
        if self._unwritten or self.history.missing:
            return []  # The record would repeat what was decided before those, behind them. The next time is soon.
        needed = frozenset({attempt.restored, *(pin.checkpoint for pin in self._pins.values())})
        retained = list(self.history.checkpoints.values())
        if not tells_what_is_read(retained, attempt=attempt.lineage.attempt, restored=attempt.restored):
            return []
        verdict = decide(retained, self._options.retention, int(now_ms), needed=needed)
        if len(verdict.kept) < len(retained):
            self._forgetting = True
            self.history.checkpoints = {each.checkpoint: each for each in verdict.kept}
            self._manifests = {each.checkpoint: self._manifests[each.checkpoint] for each in verdict.kept}
        elif self._unrepeated < RECAP_RECORDS:
            return []
        notes = [
            Note(
                f"PEN0402 checkpoint {dropped.checkpoint} is dropped before its time: checkpoints reached their limit "
                f"of {self._options.retention.bytes_max:,} bytes"
            )
            for dropped in verdict.over_limit
        ]
        kept, best = tuple(self.history.checkpoints), next(self.history.candidates(), None)
        newest = (best.offset, self.manifest(best.checkpoint)) if best is not None else None
        return [*notes, self._write(Recap(attempt, self.history.high, self.history.assigned, kept, newest))]

    def _forget(self, now_ms: float) -> list[Action]:
        kept = list(self.history.checkpoints.values())
        offset = truncation_point(kept)
        if offset is None:
            return []
        oldest = tuple(self.manifest(each.checkpoint) for each in oldest_of_attempts(kept))
        return [Forget(offset, oldest, frozenset(base for each in kept for base in each.bases), now_ms)]

    def _enter(self, phase: Phase) -> None:
        assert phase in _MOVES[self._phase], f"{self._phase} -> {phase}"
        self._phase = phase


def _pruned(lineage: Lineage, restored: Manifest, oldest: Iterable[Manifest]) -> Lineage:
    """The lineage of an attempt that continues `restored`, without the ancestors that nobody asks for."""
    if any(part.staged is None for part in restored.parts):
        return lineage
    staged = frozenset(attempt for part in restored.parts for attempt in part.staged or ())
    return lineage.prune(staged | frozenset(filter(attempts_needed(restored, oldest), lineage.attempts)))


def _instance(worker: str) -> str:
    """The part of a worker's name that stays when it is started again."""
    return worker.rpartition("#")[0]


def rescaled(application: str, assigned: Assign | None, tasks: int) -> Refused:
    """The application has had another parallelism since this process looked at it."""
    has = assigned.tasks if assigned is not None else 0
    return Refused(
        "PEN0448",
        f"{application} was rescaled: it has {has or 'other'} tasks now, and this process was to run it with {tasks}. "
        f"Start it again with --parallelism {has or 'N'}.",
    )


def refuse_other_functions(application: str, known: Mapping[str, object], fingerprints: Mapping[str, object]) -> None:
    """Two applications under one name would take turns in ruining each other's state. `known` are the fingerprints of
    an attempt or a checkpoint. Raises Refused."""
    stored, ours = known.keys(), fingerprints.keys()
    if stored and ours and stored.isdisjoint(ours):
        raise Refused(
            "PEN0780",
            f"The topics of {application} hold the state of functions {', '.join(sorted(stored))}, and this "
            f"application has {', '.join(sorted(ours))}: it is another one. Give it another name with --name, or start "
            "it from nothing with --from none.",
        )
