"""A small application on a simulated log, disk, clock and network: one seed, one run.

The world drives the real cores as a worker does, but one action at a time, and between any two of them anything may
happen that its mix allows. It knows nothing of what is right: it tells the invariants what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import msgspec

from penstock.checkpoint import coordinator as coordinator_module
from penstock.checkpoint import recovery as recovery_module
from penstock.checkpoint.control import AttemptBegun, Complete, ControlRecord, Manifest, Part
from penstock.checkpoint.coordinator import (
    Abandoned,
    Acknowledged,
    Action,
    Announce,
    Begin,
    Coordinator,
    CoordinatorOptions,
    Durable,
    Failed,
    Phase,
    Tick,
    Write,
)
from penstock.checkpoint.retention import Retained
from penstock.checkpoint.sinks import Restored as RowsRestored
from penstock.checkpoint.snapshot import SnapshotTask
from penstock.engine import savepoints as savepoints_module
from penstock.engine.feeds import Completions, request_envelope
from penstock.engine.journal import PARTITION
from penstock.engine.restore import Restored, staged_attempts
from penstock.engine.task import Start, TaskCore, TaskOptions
from penstock.errors import CorruptSnapshot, ProtocolError, Refused
from penstock.functions.context import Outlet
from penstock.ids import Address, key_group
from penstock.records import Envelope, Reply
from penstock.router.requests import encode_request
from tests.simulation.database import Database, SimulatedDriver
from tests.simulation.dice import Dice
from tests.simulation.directory import INDEX, Files, SimulatedDirectory, refuse_forgotten, simulated_files
from tests.simulation.invariants import Invariant, Violation, all_invariants
from tests.simulation.log import PowerFailure, Producer, SimulatedLog, damaged_text
from tests.simulation.mix import Mix, Move
from tests.simulation.node import GENERATION, Handlers, Node, sources_of
from tests.simulation.rescale import rescale
from tests.simulation.store import SimulatedBlobs, SimulatedStore, Stored, damage_bytes
from tests.simulation.walks import EGRESS, FUNCTIONS, IDS, NATURE, OUT, POISON, WALKS, Step, encode_step

IDS_RESERVED = 3
"""Few, so that ids are used up and reserved again within a schedule."""
TIMEOUT_MS = 150
ROUNDS_MAX = 300
"""Of fair scheduling without faults, until everything must have been done."""
PARALLELISMS = (2, 4, 8)
"""Between which a world that has one of these may change: only powers of two can be regrouped."""
STARTS_MAX = 8
"""Of a person who does what the last one asked for."""
SWEEPS_MAX = 8
"""Turns of every task in one such round, before what they did is in a checkpoint."""
_OUTLETS = {EGRESS: Outlet(EGRESS, OUT.spec.encode, 1 << 20)}


class Client:
    """Somebody outside who asks until there is an answer."""

    def __init__(self, walk: int, address: Address) -> None:
        self.walk = walk
        self.address = address
        self.asked = 0
        self.answer: Reply | None = None
        self.decided = (0, 0)
        """The attempt and the checkpoint that decided the answer."""

    @property
    def payload(self) -> bytes:
        return encode_step(Step(self.walk, 0))

    def request(self) -> Envelope:
        self.asked += 1
        name = f"{self.walk}-{self.asked}"
        return request_envelope(self.address, self.payload, request_id=name, idempotency_key=f"key-{self.walk}")

    def hear(self, reply: Reply, attempt: int, checkpoint: int) -> None:
        """The first answer to any of its requests counts."""
        if self.answer is None and int(reply.request_id.partition("-")[0]) == self.walk:
            self.answer, self.decided = reply, (attempt, checkpoint)


class Victim(NamedTuple):
    """What a disk damages."""

    kind: str
    place: int | str
    """The offset of a record of the journal, or the key of a file of a base."""


class Run:
    """One attempt: its coordinator, its tasks, and what is on its way between them."""

    def __init__(self, attempt: AttemptBegun, coordinator: Coordinator) -> None:
        self.attempt = attempt
        self.coordinator: Coordinator | None = coordinator
        self.nodes: list[Node] = []
        self.mail: list[Acknowledged | Failed] = []
        self.unsynced: tuple[int, Write] | None = None
        """The control record that was appended, and where."""


class Coverage(NamedTuple):
    """How often something worth testing happened."""

    recoveries: int = 0
    replays: int = 0
    completed: int = 0
    abandoned: int = 0
    zombie_records: int = 0
    """Frames dropped because of the lineage."""
    colour_cuts: int = 0
    """Cuts because a frame of a newer epoch came before Begin."""
    duplicates: int = 0
    bases: int = 0
    older: int = 0
    """Checkpoints that turned out to be damaged."""
    records_harmed: int = 0
    """Deltas and manifests in the journal."""
    bases_harmed: int = 0
    indexes_harmed: int = 0
    brought_back: int = 0
    """Directories of which nothing whole was left."""
    rescales: int = 0
    refusals: int = 0
    """Of one partition of the log, for a while."""


class World:
    """See the module."""

    app = WALKS
    """What runs in it. Its functions have the addresses `IDS`, and it emits to `EGRESS`."""
    fingerprints = WALKS.fingerprints()

    def __init__(self, seed: int, mix: Mix, *, only: Sequence[int] | None = None) -> None:
        dice = self.dice = Dice(seed)
        self.mix = mix
        self.steps = range(mix.steps) if only is None else only
        """Numbers of the steps to be done."""
        self.tasks = dice.choose(mix.tasks)
        self.clock_ms = 1_000
        self.log = SimulatedLog()
        self.files: Files = {}
        self.bases = SimulatedStore(SimulatedBlobs("bases", lambda: self.clock_ms))
        self.database = Database(self._committed)
        self.buffered = dice.chance(0.5)
        self.standby = dice.chance(0.25)
        self.slow_disk = dice.chance(mix.slow_disk)
        self.lazy = dice.below(self.tasks) if dice.chance(mix.lazy) else -1
        """A task that rarely has a turn, so that its inbox holds messages of several checkpoints."""
        self.sink_fails = 0.95 if dice.chance(mix.slow_sink) else mix.sink_fails
        self.clients: list[Client] = []
        self.inputs: dict[str, list[tuple[str, str, bytes]]] = {f"source-{n}": [] for n in range(self.tasks)}
        self._draw_inputs()
        self.runs: list[Run] = []
        self.directory: SimulatedDirectory
        self.trace: list[tuple[Move, int, int]] = []
        """What was done so far: the move, the attempt and the task."""
        self.rolled_back = False
        """Whether a person or a damaged file took back what had been complete: rows may then come again."""
        self.forgotten: set[int] = set()
        """Checkpoints that retention has dropped. Without an index they are known again."""
        self.harmed = Counter[str]()
        """What was damaged, by kind."""
        self.damaged_places: set[str] = set()
        self._victims: set[Victim] = set()
        self._backup: dict[str, Stored] = {}
        """What was in the damaged files of bases."""
        self.recoveries = self.replays = self.abandoned = self.completed = self.dropped = 0
        self.colour_cuts = self.duplicates = self.bases_made = self.older = self.brought_back = self.rescales = (
            self.refusals
        ) = 0
        self.invariants = self.make_invariants()
        self._told_of: dict[str, list[Callable[..., None]]] = {}
        self._turned = _hooks(self.invariants, "turned")
        self._moves = self._prepare_moves()

    def make_invariants(self) -> list[Invariant]:
        """Whoever watches."""
        return all_invariants()

    def _draw_inputs(self) -> None:
        dice = self.dice
        self.walks = 2 + dice.below(4)
        for walk in range(self.walks):
            typename, id = dice.choose(FUNCTIONS), dice.choose(IDS)
            if dice.chance(0.3):
                self.clients.append(Client(walk, Address(typename, id)))
            else:
                source = self.inputs[f"source-{dice.below(self.tasks)}"]
                source.append((typename, id, encode_step(Step(walk, 0))))
        self.poison = dice.below(3)
        for _ in range(self.poison):
            source = self.inputs[f"source-{dice.below(self.tasks)}"]
            source.append((dice.choose(FUNCTIONS), dice.choose(IDS), POISON))

    # The life of a world.

    def run(self) -> Coverage:
        """Play one schedule. Raises Violation."""
        NATURE.dice, NATURE.clock_ms, NATURE.broken = self.dice, self.clock_ms, []
        with _small_numbers(), simulated_files(self.files):
            try:
                self.recover()
                weights, dice = self.mix.prepared, self.dice
                for step in self.steps:
                    dice.begin_step(step)
                    while not self.perform(dice.draw(weights)):
                        pass
                dice.begin_step(self.mix.steps)
                self.settle_down()
                self._tell("ended")
            finally:
                for run in self.runs:
                    _close(run)
        return Coverage(
            self.recoveries,
            self.replays,
            self.completed,
            self.abandoned,
            self.dropped,
            self.colour_cuts,
            self.duplicates,
            self.bases_made,
            self.older,
            self.harmed["journal"],
            self.harmed["base"],
            self.harmed["index"],
            self.brought_back,
            self.rescales,
            self.refusals,
        )

    def take_apart(self) -> None:
        """Break the circles of a world that has been, whose memory is free then without a search for garbage. That
        would take as long as half a world."""
        self.__dict__.clear()

    @property
    def current(self) -> Run:
        return self.runs[-1]

    def perform(self, move: Move) -> bool:
        """Let one thing happen. False when there is no occasion for it."""
        run = self._some_run()
        if not run.nodes:
            self.runs.remove(run)
            return False
        action, has_occasion = self._moves[move]
        nodes = run.nodes if has_occasion is None else [node for node in run.nodes if has_occasion(run, node)]
        if not nodes:
            return False
        node = self.dice.choose(nodes)
        attempt = run.attempt.lineage.attempt
        if action(run, node) is False:
            return False
        self.trace.append((move, attempt, node.task))
        return True

    def _prepare_moves(self) -> dict[Move, tuple[Callable[[Run, Node], object], Callable[[Run, Node], object] | None]]:
        """What each does, False when it turns out to be nothing; and for which tasks there is an occasion."""
        return {
            Move.TURN: (self._some_turn, lambda run, node: node.awake(self.clock_ms)),
            Move.RESUME: (self._resume, lambda run, node: len(node.handlers)),
            Move.PUMP: (self._pump, lambda run, node: node.producer.waiting),
            Move.WRITE: (self._write_some, lambda run, node: node.writing),
            Move.BEGIN: (lambda run, node: self._begin(node), lambda run, node: node.begins),
            Move.ACKNOWLEDGE: (self._some_mail, lambda run, node: run.mail),
            Move.DECIDE: (lambda run, node: self._decide(run), lambda run, node: run.unsynced and self._answers),
            Move.LEARN: (lambda run, node: self._learn(node), lambda run, node: node.announced),
            Move.TICK: (self._some_tick, None),
            Move.SINK: (lambda run, node: node.driver.step(), lambda run, node: not node.driver.quiet),
            Move.FOLD: (self._fold, lambda run, node: node.unit.overlay.folding or node.unit.overlay.next_fold),
            Move.BASE: (self._make_base, lambda run, node: node.base_due),
            Move.RETAIN: (lambda run, node: self._retain(), None),
            Move.ASK: (self._some_request, lambda run, node: self._unanswered),
            Move.CRASH: (self._crash_and_recover, None),
            Move.TAKE_OVER: (self._take_over_and_recover, None),
            Move.REPLAY: (self._replay, None),
            Move.FORGET: (self._forget, lambda run, node: run.mail or node.begins),
            Move.REPEAT: (self._repeat, lambda run, node: run.mail),
            Move.DISK_FULL: (self._fill_disk, lambda run, node: node.writing and not self.log.refusing),
            Move.CLOCK: (self._jump, None),
            Move.DAMAGE: (self._damage, None),
            Move.REFUSE: (self._refuse, None),
            Move.RESCALE: (self._rescale, lambda run, node: self.tasks in PARALLELISMS),
        }

    def settle_down(self) -> None:
        """No more faults: everything must be done in the end."""
        for run in self.runs[:-1]:
            _close(run)
        del self.runs[:-1]
        run = self.current
        self.log.heal()
        self.sink_fails = 0.0
        for node in run.nodes:
            node.driver.failing = 0.0
        for round in range(ROUNDS_MAX):
            self.clock_ms += 20
            if round % 10 == 0:
                for client in self._unanswered:
                    self._ask(client)
            self._fair_round(run)
            self._hear_of_it(run)
            if round > 1 and not self._busy(run):
                return
        raise Violation("Progress", f"there is work left after {ROUNDS_MAX} rounds without faults")

    def _fair_round(self, run: Run, *, sweeps_max: int = SWEEPS_MAX) -> None:
        """Everybody does at once what there is to do, and a checkpoint of it is taken."""
        self._tick(run)
        for node in run.nodes:
            while node.begins:
                self._begin(node)
        for _ in range(sweeps_max):
            worked = [self._sweep(run, node) for node in run.nodes]
            if not any(worked):
                break
        for node in run.nodes:
            while node.writing:
                self._write(run, node, disk_full=False)
        while run.mail:
            self._deliver(run, run.mail.pop(0))
        self._decide(run)

    def _hear_of_it(self, run: Run) -> None:
        """Everybody learns what is complete, and rows go out."""
        for node in run.nodes:
            while node.announced:
                self._learn(node)
            for _ in range(3):
                if not node.driver.quiet:
                    node.driver.step()

    def _sweep(self, run: Run, node: Node) -> bool:
        """One task goes on. Whether there was anything to do."""
        worked = node.awake(self.clock_ms) and self._turn(run, node, 10)
        for _ in range(len(node.handlers)):
            node.handlers.resume(0)
        node.producer.pump_all()
        return worked

    def _busy(self, run: Run) -> bool:
        coordinator = run.coordinator
        assert coordinator is not None
        return (
            coordinator.owing
            or coordinator.phase is not Phase.IDLE
            or any(node.busy for node in run.nodes)
            or bool(self._unanswered)
        )

    # What tasks do.

    def _some_run(self) -> Run:
        if len(self.runs) > 1 and self.dice.chance(self.mix.zombie_share):
            return self.dice.choose(self.runs[:-1])
        return self.runs[-1]

    def _some_turn(self, run: Run, node: Node) -> bool:
        return (node.task != self.lazy or self.dice.chance(0.15)) and self._turn(run, node, 1 + self.dice.below(3))

    def _resume(self, run: Run, node: Node) -> None:
        node.handlers.resume(self.dice.below(len(node.handlers)))

    def _pump(self, run: Run, node: Node) -> None:
        node.producer.pump(self.dice.choose(node.producer.waiting), 1 + self.dice.below(3))

    def _turn(self, run: Run, node: Node, invocations_max: int) -> bool:
        """One turn of a task. Whether there was anything to do."""
        NATURE.clock_ms = max(NATURE.clock_ms, self.clock_ms)
        due = node.inbox.cut_due
        if due is not None:
            node.inbox.cut_due = None
            if node.snapshot.wants(due):
                self.colour_cuts += 1
                self._cut(node, due)
        try:
            effects = node.turn(invocations_max, self.clock_ms)
        except ProtocolError:
            if run is self.current:
                raise
            run.nodes.remove(node)  # A zombie that slept until what it would read was deleted ends here.
            node.close()
            return False
        if effects is None:
            return False
        for hook in self._turned:
            hook(self, node, effects)
        return True

    def _cut(self, node: Node, checkpoint: int) -> None:
        frozen = node.cut(checkpoint).frozen
        self._tell("cut", node, frozen)

    def _begin(self, node: Node) -> None:
        if node.begins:
            checkpoint = node.begins.popleft()
            if node.snapshot.wants(checkpoint):
                self._cut(node, checkpoint)

    def _write_some(self, run: Run, node: Node) -> bool:
        if self.slow_disk and self.dice.chance(0.9):
            return False
        for _ in range(1 + self.dice.below(8)):
            if node.writing:
                self._write(run, node, disk_full=False)
        return True

    def _fill_disk(self, run: Run, node: Node) -> None:
        while node.writing:
            self._write(run, node, disk_full=True)

    def _write(self, run: Run, node: Node, *, disk_full: bool) -> None:
        event = node.write(disk_full=disk_full)
        if event is not None:
            run.mail.append(event)

    def _learn(self, node: Node) -> None:
        if node.announced:
            manifest = node.announced[0]
            for reply in node.learn():
                self.answer(reply, manifest.lineage.attempt, manifest.checkpoint)

    def _fold(self, run: Run, node: Node) -> None:
        overlay = node.unit.overlay
        if overlay.folding:
            overlay.fold_slice(2 + self.dice.below(8))
        else:
            node.unit.begin_fold()

    def _make_base(self, run: Run, node: Node) -> None:
        """As a worker does: a base of what has been folded, once the fold is done."""
        overlay = node.unit.overlay
        checkpoint = overlay.folded_checkpoint
        name = f"{checkpoint:012d}-{run.attempt.lineage.attempt}-{node.task}"
        self.bases.put_rows(name, list(overlay.backend.scan(b"", b"\xff")))
        self.bases_made += 1
        if self.dice.chance(0.9):
            node.unit.rebase(name, checkpoint)

    # What the coordinator does.

    def _some_tick(self, run: Run, node: Node) -> None:
        self.clock_ms += 1 + self.dice.below(8)
        self._tick(run)

    def _some_mail(self, run: Run, node: Node) -> None:
        self._deliver(run, run.mail.pop(self.dice.below(len(run.mail))))

    def _tick(self, run: Run) -> None:
        if run.coordinator is not None:
            dirty = any(node.core.changed for node in run.nodes)
            urgent = any(node.core.has_steps for node in run.nodes)
            self._obey(run, run.coordinator.handle(Tick(self.clock_ms, dirty, urgent)))

    def _deliver(self, run: Run, event: Acknowledged | Failed) -> None:
        if run.coordinator is not None:
            self._obey(run, run.coordinator.handle(event))

    def _decide(self, run: Run) -> None:
        if run.unsynced is None or run.coordinator is None:
            return
        (offset, write), run.unsynced = run.unsynced, None
        self.log.flush_partition(PARTITION)
        self.directory.history.apply(offset, write.record)
        if isinstance(write.record, Complete):
            self.completed += 1
        self._obey(run, run.coordinator.handle(Durable(self.clock_ms)))

    def _obey(self, run: Run, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Write(record):
                    if self.fenced(run):
                        run.coordinator = None
                        return
                    written = Write(self._with_inbox_ends(record))
                    run.unsynced = (self.directory.journal.append_control(written.record), written)
                case Begin(checkpoint):
                    self._tell("begun", run, checkpoint)
                    for node in run.nodes:
                        node.begins.append(checkpoint)
                case Announce(manifest):
                    for node in run.nodes:
                        node.announced.append(manifest)
                case Abandoned():
                    self.abandoned += 1

    def _with_inbox_ends(self, record: ControlRecord) -> ControlRecord:
        """Tasks of a worker say where their inboxes end when all are frozen, and all they sent is durable."""
        if not isinstance(record, Complete):
            return record
        parts = tuple(
            msgspec.structs.replace(part, inbox_end=int(self.log.end(f"inbox-{part.task}")))
            for part in record.manifest.parts
        )
        return Complete(msgspec.structs.replace(record.manifest, parts=parts))

    def fenced(self, run: Run) -> bool:
        """Whether the control log refuses what `run` writes."""
        return run is not self.current

    def _retain(self) -> None:
        history = self.directory.history
        before = set(history.checkpoints)
        self.directory.forget([node.unit for node in self.current.nodes], self.clock_ms)
        self.forgotten |= before - history.checkpoints.keys()
        self._tell("retained")

    # Clients.

    @property
    def _unanswered(self) -> list[Client]:
        return [client for client in self.clients if client.answer is None]

    def _some_request(self, run: Run, node: Node) -> None:
        self._ask(self.dice.choose(self._unanswered))

    def _ask(self, client: Client) -> None:
        partition = f"requests-{key_group(client.address.id) % self.tasks}"
        if partition in self.log.refusing:
            return
        self.log.append(partition, encode_request(client.request()))
        if self.dice.chance(0.7):
            self.log.flush_partition(partition)

    def answer(self, reply: Reply, attempt: int, checkpoint: int) -> None:
        for client in self.clients:
            client.hear(reply, attempt, checkpoint)

    # Faults.

    def _crash_and_recover(self, run: Run, node: Node) -> None:
        self._crash()
        self.recover()

    def _take_over_and_recover(self, run: Run, node: Node) -> None:
        self._take_over()
        self.recover()

    def _repeat(self, run: Run, node: Node) -> None:
        run.mail.append(self.dice.choose(run.mail))

    def _jump(self, run: Run, node: Node) -> None:
        self.clock_ms += self.dice.choose((-20, 50, 2 * TIMEOUT_MS))

    def _crash(self) -> None:
        for run in self.runs:
            _close(run)
            self._count_dropped(run)
        self.runs.clear()
        self.log.crash(self.dice)

    def _take_over(self) -> None:
        """Some tasks of the present attempt die, with what they had not sent; the others don't know that it is over."""
        old = self.current
        survivors = [node for node in old.nodes if self.dice.chance(0.6)]
        for node in old.nodes:
            if node not in survivors:
                node.close()
        self._count_dropped(old)
        for node in old.nodes:
            node.snapshot.dropped = 0
        old.nodes = survivors
        if self.dice.chance(0.3):
            old.coordinator = None
        if not survivors:
            self.runs.remove(old)
        for run in self.runs[:-2]:
            _close(run)
            self.runs.remove(run)

    def _replay(self, run: Run, node: Node) -> None:
        if self.dice.chance(0.5):
            self._crash()
        else:
            self._take_over()
        known = list(self._open().history.checkpoints)
        if known:
            self.replays += 1
            self.rolled_back = True
        self.recover(replay=self.dice.choose(known) if known else None)

    def _forget(self, run: Run, node: Node) -> None:
        if run.mail and self.dice.chance(0.5):
            run.mail.pop(self.dice.below(len(run.mail)))
        elif node.begins:
            node.begins.popleft()

    def _damage(self, run: Run, node: Node) -> None:
        """Restart, with something damaged: what the newest checkpoint needs, or the index of all."""
        self._crash()
        victim = self._choose_victim() if self.dice.chance(0.8) else None
        if victim is not None:
            self.rolled_back = True
            self._harm(victim)
        if INDEX in self.files and (victim is None or self.dice.chance(0.2)):
            self._harm(Victim("index", ""))
        self.recover()

    def _choose_victim(self) -> Victim | None:
        """Something that a restore of the newest checkpoint reads; as a rule, that of the one before does not."""
        directory = self._open()
        history = iter(list(directory.history.candidates()))
        newest, older = next(history, None), next(history, None)
        if newest is None:
            return None
        victims = self._needed_by(newest)
        if self.dice.chance(0.6) and any(victim.kind == "base" for victim in victims):
            victims = [victim for victim in victims if victim.kind == "base"]
        elif older is not None and self.dice.chance(0.8):
            shared = set(self._needed_by(older))
            victims = [victim for victim in victims if victim not in shared]
        return self.dice.choose(victims)

    def _whole(self, checkpoint: Retained) -> bool:
        try:
            return self._victims.isdisjoint(self._read_by(checkpoint))
        except CorruptSnapshot:
            return False

    def _needed_by(self, checkpoint: Retained) -> list[Victim]:
        """All that a restore reads; up to the first of it that is damaged."""
        needed: list[Victim] = []
        with suppress(CorruptSnapshot):
            needed.extend(self._read_by(checkpoint))
        return needed

    def _read_by(self, checkpoint: Retained) -> Iterator[Victim]:
        """Raises CorruptSnapshot when it can't be known."""
        journal = self.directory.journal
        yield Victim("journal", checkpoint.offset)
        for part in journal.manifest(checkpoint).parts:
            if part.base:
                yield from (Victim("base", key) for key in self.bases.keys_of(part.base))
            yield from (Victim("journal", offset) for offset in journal.chain(part.head, part.first))

    @property
    def _answers(self) -> bool:
        """Whether decisions can be made durable."""
        return PARTITION not in self.log.refusing

    def _refuse(self, run: Run, node: Node) -> None:
        log = self.log
        if (log.refusing or log.silent) and self.dice.chance(0.5):
            log.heal()
            return
        self.refusals += 1
        inbox = f"inbox-{self.dice.below(self.tasks)}"
        if self.dice.chance(0.3):
            log.silent.add(inbox)
        else:
            log.refusing.add(self.dice.choose((inbox, inbox, f"requests-{node.task}", PARTITION)))

    def _rescale(self, run: Run, node: Node) -> None:
        """`penstock rescale`, whose last step power may end."""
        after = self.dice.choose([tasks for tasks in PARALLELISMS if tasks != self.tasks])
        self._crash()
        try:
            rescale(
                self.app,
                self.tasks,
                after,
                clock_ms=self.clock_ms,
                write_rows=self._write_rows,
                open_directory=lambda tasks: self._open(tasks=tasks),
            )
        except PowerFailure:
            self.log.fails_once = False
        except Refused as error:
            if error.code != "PEN0437":
                raise  # Nothing was ever complete.
        else:
            self.tasks = after
            self.rescales += 1
        self._crash()
        self.recover()

    def _write_rows(self) -> None:
        """A start without a turn: all rows become visible, and the last checkpoint says so."""
        self.recover()
        run = self.current
        for node in run.nodes:
            node.driver.failing = 0.0
        for _ in range(ROUNDS_MAX):
            self.clock_ms += 20
            self._fair_round(run, sweeps_max=0)
            self._hear_of_it(run)
            for node in run.nodes:
                node.core.tell_commits()
            if not self._anything_untold(run):
                break
        else:
            raise Violation("Progress", f"a start without a turn is not done after {ROUNDS_MAX} rounds")
        self._crash()
        self._tell("regrouping", *self._restore(None))
        self.log.fails_once = self.dice.chance(0.15)

    def _anything_untold(self, run: Run) -> bool:
        coordinator = run.coordinator
        assert coordinator is not None
        return (
            coordinator.owing
            or coordinator.phase is not Phase.IDLE
            or any(node.core.changed or node.writing or node.announced or not node.driver.quiet for node in run.nodes)
        )

    def _harm(self, victim: Victim) -> None:
        self.harmed[victim.kind] += 1
        self._victims.add(victim)
        match victim:
            case Victim("journal", int(offset)):
                self.log.damaged.add((PARTITION, offset))
                self.damaged_places.add(damaged_text(PARTITION, offset))
            case Victim("base", str(key)):
                self._backup.setdefault(key, self.bases.blobs.damage(key, self.dice))
                self.damaged_places.add(self.bases.blobs.place(key))
            case _:
                harmed = damage_bytes(self.dice, self.files.pop(INDEX))
                if harmed is not None:
                    self.files[INDEX] = harmed

    # Recovery.

    def recover(self, *, replay: int | None = None) -> None:
        """Begin a new attempt, as a worker that starts does."""
        manifest, restored = self._restore(replay)
        directory = self.directory
        replayed = directory.replay is not None
        attempt = directory.next_attempt(manifest, self.clock_ms, staged=staged_attempts(restored))
        if self.dice.chance(0.05):
            self._die_beginning(attempt, replayed=replayed)
            return
        directory.begin_attempt(attempt)
        self.recoveries += 1
        self._tell("read", manifest, restored)
        self._build(attempt, manifest, restored)
        directory.journal.write_index(directory.history)
        self._tell("restored", self.current, manifest, restored, replayed)

    def _die_beginning(self, attempt: AttemptBegun, *, replayed: bool) -> None:
        """The power fails while an attempt begins, or behind that."""
        end = self.log.end(PARTITION)
        self.log.fails_once = self.dice.chance(0.7)
        with suppress(PowerFailure):
            self.directory.begin_attempt(attempt)
        self.log.fails_once = False
        self._crash()
        if replayed and self.log.end(PARTITION) > end:
            self._tell("chosen", attempt)
        self.recover()

    def _restore(self, replay: int | None) -> tuple[Manifest | None, list[Restored]]:
        """What a start continues, and `directory`, which it was read from. Whoever is refused does what it asks for."""
        notes: list[str] = []
        self.log.heal()  # A start waits until all of it answers.
        for tries in range(STARTS_MAX):
            directory = self._open(replay)
            notes = directory.notes
            try:
                manifest, restored = directory.restore(self.app, _no_progress)
                refuse_forgotten(self.log, restored)
            except CorruptSnapshot as error:
                if replay is None or tries:
                    self._bring_back(error if replay is None else None)
                replay = None  # The person is told that it is damaged, and starts without a wish.
            except Refused as error:
                if directory.refused is None:
                    raise
                self.tasks = directory.refused.parallelism
                if "--from" in error.message:
                    replay = directory.refused.checkpoint
                    self.rolled_back = True
            except ProtocolError:
                if not self.forgotten:
                    raise
                replay = None
                self._bring_back(None)
            else:
                return manifest, restored
        raise Violation("Restorable", f"a start is refused, whatever is tried: {notes}")

    def _bring_back(self, error: CorruptSnapshot | None) -> None:
        """A person brings back what was damaged, from a backup: nothing whole is left."""
        candidates = list(self._open().history.candidates())
        whole = [each.checkpoint for each in candidates if each.checkpoint not in self.forgotten and self._whole(each)]
        if not self._victims or (error is not None and whole):
            raise Violation("DamageIsPassedOver", f"a start is refused, and these are whole: {whole}: {error}")
        self.brought_back += 1
        self._victims.clear()
        self.log.damaged.clear()
        self.bases.blobs.restore(self._backup)
        self._backup.clear()

    def _open(self, replay: int | None = None, *, tasks: int = 0) -> SimulatedDirectory:
        self.directory = SimulatedDirectory(
            self.log, self.bases, tasks or self.tasks, replay=replay, passed_over=self._passed_over
        )
        return self.directory

    def _passed_over(self, damaged: Retained, error: CorruptSnapshot) -> None:
        self.older += 1
        self._tell("refused", damaged, error)

    def restore_part(self, part: Part) -> Restored:
        return self.directory.restore_part(part)

    def _build(self, attempt: AttemptBegun, manifest: Manifest | None, restored: list[Restored]) -> None:
        generation = GENERATION if manifest is None else manifest.generation
        options = CoordinatorOptions(self.app.name, self.tasks, self.fingerprints, 10, TIMEOUT_MS, generation)
        run = Run(attempt, Coordinator(options, attempt))
        self.runs.append(run)
        epoch = first_epoch(attempt)
        retained = self.directory.retained_attempts()
        for task, each in enumerate(restored):
            node = self._build_node(attempt, epoch, task, each)
            if retained is not None:
                node.driver.retain(attempt.lineage.attempts | retained)
            node.driver.handle(RowsRestored(each.staged.get(EGRESS, ())))
            run.nodes.append(node)

    def _build_node(self, attempt: AttemptBegun, epoch: int, task: int, restored: Restored) -> Node:
        completions = Completions()
        handlers = self.make_handlers(completions)
        core = self.build_core(task, restored, handlers.start)
        snapshot = SnapshotTask(
            task, attempt.lineage, epoch, base=restored.base, head=restored.head, checksum=restored.checksum
        )
        producer = Producer(self.log, buffered=self.buffered, resend=lambda: self.dice.chance(self.mix.resend))
        inputs = {name: known for name, known in self.inputs.items() if key_group(name) % self.tasks == task}
        sources = sources_of(task, inputs, self.log, core.meta.ingress_positions)
        journal = self.directory.journal
        node = Node(task, core, restored.overlay, snapshot, completions, handlers, sources, producer, journal)
        node.application = self.app.name
        driver = SimulatedDriver(task, self.database, self.dice, partial(node.unit.committed, EGRESS))
        driver.failing = self.sink_fails
        node.unit.adopt(restored)
        node.connect(driver)
        return node

    def make_handlers(self, completions: Completions) -> Handlers:
        """What goes on between the turns of a task."""
        return Handlers(completions)

    def options_of(self, task: int) -> TaskOptions:
        return TaskOptions(task=task, tasks=self.tasks)

    def build_core(self, task: int, restored: Restored, start: Start) -> TaskCore:
        core = TaskCore(self.app.functions.values(), _OUTLETS, restored.overlay, self.options_of(task), start)
        core.restore(restored.meta, restored.queues, restored.staged)
        return core

    # Telling the invariants.

    def _tell(self, hook: str, *arguments: object) -> None:
        hooks = self._told_of.get(hook)
        if hooks is None:
            hooks = self._told_of[hook] = _hooks(self.invariants, hook)
        for told in hooks:
            told(self, *arguments)

    def _committed(self, task: int) -> None:
        self._tell("committed", task)

    def _count_dropped(self, run: Run) -> None:
        self.dropped += sum(node.snapshot.dropped for node in run.nodes)
        self.duplicates += sum(node.core.statistics().duplicate_frames for node in run.nodes)


def first_epoch(attempt: AttemptBegun) -> int:
    """The highest id reserved before the attempt: nothing was ever sent in a later epoch (PROTOCOL 16)."""
    return attempt.high - IDS_RESERVED


def _hooks(invariants: Sequence[Invariant], name: str) -> list[Callable[..., None]]:
    nothing = getattr(Invariant, name)
    return [getattr(each, name) for each in invariants if getattr(type(each), name) is not nothing]


def _close(run: Run) -> None:
    for node in run.nodes:
        node.close()


@contextmanager
def _small_numbers() -> Iterator[None]:
    with ExitStack() as stack:
        for module in (coordinator_module, recovery_module, savepoints_module):
            stack.enter_context(patch.object(module, "RESERVED_IDS", IDS_RESERVED))
        yield


def _no_progress(progress: object) -> None:
    pass
