"""Workers, leaders and a Kafka between them: one seed, one run.

The world lets one thing happen at a time, and between any two of them anything may happen that its mix allows: workers
and leaders die, are taken for dead, and come back; what was decided, hinted and reported arrives when it pleases. It
keeps no rule itself: it tells the invariants what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Manifest
from penstock.checkpoint.coordinator import Phase as RoundPhase
from penstock.checkpoint.leader import Forget, LeaderOptions, Phase
from penstock.checkpoint.recovery import History
from penstock.checkpoint.reports import Acknowledgement, Begin, Ended, Unable, encode_message
from penstock.engine.build import Origin
from penstock.engine.cluster.deltas import Deltas
from penstock.engine.cluster.topics import DECISIONS
from penstock.engine.cluster.trimming import Trimming
from penstock.engine.config import Config
from penstock.engine.effects import Effects
from penstock.engine.restore import Restored
from penstock.errors import CorruptSnapshot, Fenced, PenstockError
from penstock.ids import Address, key_group
from penstock.records import Frozen, Reply
from penstock.router.requests import encode_request
from tests.simulation.cluster_invariants import (
    OneOwner,
    PlacedIsTheCut,
    RetainedIsThere,
    RowsAreNamed,
    shared_invariants,
)
from tests.simulation.cluster_kafka import Overtaken, SimulatedKafka
from tests.simulation.cluster_leader import LEADER_ID, SimulatedLeader
from tests.simulation.cluster_mix import EVERYTHING_KEPT, ClusterMix, Step
from tests.simulation.cluster_stage import STAGE
from tests.simulation.cluster_worker import TOPICS, ClusterUnit, ReplyTopic, SimulatedWorker
from tests.simulation.database import Database
from tests.simulation.dice import Dice
from tests.simulation.invariants import Invariant, Violation
from tests.simulation.node import DAY_MS
from tests.simulation.store import SimulatedBlobs, SimulatedStore
from tests.simulation.walks import FUNCTIONS, IDS, NATURE, POISON, WALKS, encode_step
from tests.simulation.walks import Step as Hop
from tests.simulation.world import Client

TIMEOUT_MS = 150
NEVER_MS = 1e12
SESSION_MS = 120
SETTLE_MS = 10
UNREFERENCED_MS = 400
ROUNDS_MAX = 250
"""Of fair scheduling without faults, until everything must have been done."""
SWEEPS_MAX = 6
"""Loops of every worker in one such round, while tasks have anything to do."""
_FINGERPRINTS = WALKS.fingerprints()


class ClusterCoverage(NamedTuple):
    """How often something worth testing happened."""

    recoveries: int = 0
    replays: int = 0
    leaders: int = 0
    adoptions: int = 0
    """Leaders that led on in the attempt of the one before."""
    handoffs: int = 0
    """Tasks that changed hands within an attempt."""
    returned: int = 0
    """Releases that ended where they began, because the checkpoint was given up or the target had gone."""
    completed: int = 0
    abandoned: int = 0
    zombie_frames: int = 0
    zombie_turns: int = 0
    """Turns of workers whose attempt is over, and which do not know it yet."""
    colour_cuts: int = 0
    duplicates: int = 0
    joins: int = 0
    leaves: int = 0
    bases: int = 0
    older: int = 0
    """Restores that met damage."""
    refusals: int = 0
    """Of one partition, for a while."""
    deltas_harmed: int = 0
    bases_harmed: int = 0
    forgets: int = 0
    pruned: int = 0
    """Attempts that no longer name all their ancestors."""


class ClusterWorld:
    """See the module."""

    def __init__(self, seed: int, mix: ClusterMix, *, only: Sequence[int] | None = None) -> None:
        dice = self.dice = Dice(seed)
        self.mix = mix
        self.steps = range(mix.steps) if only is None else only
        """Numbers of the steps to be done."""
        self.tasks = dice.choose(mix.tasks)
        self.config = _config(self.tasks)
        self.clock_ms = 1_000
        resend = mix.resend if dice.chance(0.5) else 0.0
        self.kafka = SimulatedKafka(
            dice, resend=resend, forgets=(TOPICS.inbox,), lag=dice.choose(mix.lag), lagging=TOPICS.control
        )
        self.bases = SimulatedStore(SimulatedBlobs("bases", lambda: self.clock_ms))
        self.database = Database(self._committed)
        self.reply_topic = ReplyTopic(self._told)
        self.patient = dice.chance(mix.patient)
        self.retention = dice.choose(mix.retentions)
        self.lazy = dice.below(self.tasks) if dice.chance(mix.lazy) else -1
        self.sink_fails = 0.95 if dice.chance(mix.slow_sink) else mix.sink_fails
        self.clients: list[Client] = []
        self.inputs: list[list[tuple[str, str, bytes]]] = [[] for _ in range(self.tasks)]
        self._draw_inputs()
        self.workers: list[SimulatedWorker] = []
        self._all_workers: list[SimulatedWorker] = []
        self.leaders: list[SimulatedLeader] = []
        self._started = Counter[str]()
        self._instances = 0
        self._control: list[tuple[int, ControlRecord]] = []
        self.manifests: dict[int, Manifest] = {}
        self.newest_attempt = 0
        self.assigned: Assign | None = None
        self._resolved: dict[tuple[int, int], int] = {}
        """Attempt and task -> what its newest assignment to the same owner says is resolved."""
        self.live: dict[int, ClusterUnit] = {}
        """The unit of each task that counts."""
        self.rolled_back = False
        """Whether a person or a damaged record took back what had been complete: rows may then come again."""
        self.harmed = ""
        """Where something was damaged."""
        self.trace: list[tuple[str, str]] = []
        self._turns = 0
        self._counts = Counter[str]()
        self.invariants = shared_invariants()
        self.is_cut, self.one_owner, self.is_there = PlacedIsTheCut(), OneOwner(), RetainedIsThere()
        self._told_of: dict[str, list[Callable[..., None]]] = {}
        self.are_named = RowsAreNamed()
        self._turned = [*_hooks([*self.invariants, self.is_cut], "turned")]
        self._steps = self._prepare_steps()

    def _draw_inputs(self) -> None:
        dice = self.dice
        self.walks = self.mix.walks + dice.below(4)
        for walk in range(self.walks):
            typename, id = dice.choose(FUNCTIONS), dice.choose(IDS)
            if dice.chance(0.3):
                self.clients.append(Client(walk, Address(typename, id)))
            else:
                self.inputs[dice.below(self.tasks)].append((typename, id, encode_step(Hop(walk, 0))))
        self.poison = dice.below(3)
        for _ in range(self.poison):
            self.inputs[dice.below(self.tasks)].append((dice.choose(FUNCTIONS), dice.choose(IDS), POISON))

    # The life of a cluster.

    def run(self) -> ClusterCoverage:
        """Play one schedule, on the stage. Raises Violation."""
        NATURE.dice, NATURE.clock_ms, NATURE.broken = self.dice, self.clock_ms, []
        STAGE.clock_ms, STAGE.patient = self.clock_ms, lambda: not self.dice.chance(0.1)
        try:
            for _ in range(self.dice.choose(self.mix.workers)):
                self._join()
            self.lead()
            dice = self.dice
            if dice.chance(self.mix.warm):
                self._warm_up()
            weights = self.mix.draw_weights(dice)
            for step in self.steps:
                dice.begin_step(step)
                while not self._steps[dice.draw(weights)]():
                    pass
            dice.begin_step(self.mix.steps)
            self.settle_down()
            if self.dice.chance(self.mix.farewell):
                self._say_farewell()
            self._tell("ended")
        finally:
            for worker in self.workers:
                worker.die()
            for leader in self.leaders:
                leader.end()
        return ClusterCoverage(**{name: self._counts[name] for name in ClusterCoverage._fields})

    def take_apart(self) -> None:
        """As of a world of one process: break the circles."""
        for worker in self._all_workers:
            worker.take_apart()
        self.__dict__.clear()

    def _prepare_steps(self) -> dict[Step, Callable[[], bool]]:
        """Each lets one thing happen, and says whether there was an occasion."""
        on_worker, on_leader, on_world = self._on_worker, self._on_leader, self._on_world
        return {
            Step.LOOP: on_worker(Step.LOOP, self._loop),
            Step.WORK: on_worker(
                Step.WORK, lambda worker: worker.step_work(1 + self.dice.below(8)), lambda worker: bool(worker.works)
            ),
            Step.PUMP: on_worker(
                Step.PUMP,
                lambda worker: worker.writer.pump(1 + self.dice.below(4)),
                lambda worker: not worker.writer.idle,
            ),
            Step.RESUME: on_worker(
                Step.RESUME, self._resume, lambda worker: any(len(each) for each in worker.assembly.handlers)
            ),
            Step.SINK: on_worker(
                Step.SINK, self._step_sink, lambda worker: not all(driver.quiet for driver in worker.drivers)
            ),
            Step.FOLD: on_worker(Step.FOLD, self._fold),
            Step.BASE: on_worker(Step.BASE, self._make_base),
            Step.BEAT: on_worker(Step.BEAT, SimulatedWorker.beat),
            Step.HEAR: on_leader(Step.HEAR, SimulatedLeader.hear),
            Step.TELL: on_leader(Step.TELL, self._deliver, lambda leader: not leader.writer.idle or bool(leader.works)),
            Step.DECIDE: on_leader(Step.DECIDE, SimulatedLeader.decide, lambda leader: bool(leader.to_write)),
            Step.TICK: on_world(Step.TICK, lambda: self._advance(1 + self.dice.below(12))),
            Step.AGE: on_leader(Step.AGE, SimulatedLeader.age),
            Step.RECALL: on_leader(Step.RECALL, SimulatedLeader.recall, lambda leader: bool(leader.earlier)),
            Step.ASK: on_world(Step.ASK, self._some_request),
            Step.CRASH: on_worker(Step.CRASH, lambda worker: self._crash(worker, noticed=self.dice.chance(0.6))),
            Step.RESTART: on_worker(Step.RESTART, self._restart),
            Step.JOIN: on_world(Step.JOIN, self._another_joins),
            Step.LEAVE: on_worker(Step.LEAVE, self._leave),
            Step.CONDEMN: on_worker(Step.CONDEMN, self._condemn),
            Step.HURRY: on_worker(Step.HURRY, self._hurry),
            Step.SLOW: on_worker(Step.SLOW, self._slow),
            Step.ABDICATE: on_leader(Step.ABDICATE, self._abdicate),
            Step.DUEL: on_world(Step.DUEL, self.lead),
            Step.DOUBT: on_leader(Step.DOUBT, self._doubt, lambda leader: bool(leader.to_write)),
            Step.POWER: on_world(Step.POWER, self._fail_power),
            Step.REFUSE: on_world(Step.REFUSE, self._refuse),
            Step.REPLAY: on_world(Step.REPLAY, self._replay),
            Step.DAMAGE: on_world(Step.DAMAGE, self._damage),
            Step.UNABLE: on_worker(Step.UNABLE, self._unable),
            Step.CLOCK: on_world(Step.CLOCK, lambda: self._advance(self.dice.choose((50, 100, 2 * TIMEOUT_MS)))),
        }

    def _on_worker(
        self,
        step: Step,
        action: Callable[[SimulatedWorker], object],
        ready: Callable[[SimulatedWorker], bool] = lambda _: True,
    ) -> Callable[[], bool]:
        def perform() -> bool:
            workers = list(filter(ready, self.workers))
            if workers:
                worker = self.dice.choose(workers)
                self.trace.append((step.name, worker.name))
                action(worker)
            return bool(workers)

        return perform

    def _on_leader(
        self,
        step: Step,
        action: Callable[[SimulatedLeader], object],
        ready: Callable[[SimulatedLeader], bool] = lambda _: True,
    ) -> Callable[[], bool]:
        def perform() -> bool:
            leaders = list(filter(ready, self.leaders))
            if leaders:
                leader = self.dice.choose(leaders)
                self.trace.append((step.name, leader.name))
                self._let(leader, action)
            elif not self.leaders and self.dice.chance(0.02):
                self.lead()
            return bool(leaders)

        return perform

    def _on_world(self, step: Step, action: Callable[[], object]) -> Callable[[], bool]:
        def perform() -> bool:
            self.trace.append((step.name, ""))
            action()
            return True

        return perform

    def _let(self, leader: SimulatedLeader, action: Callable[[SimulatedLeader], object]) -> None:
        """A leader does something, and may end because of it."""
        try:
            action(leader)
        except CorruptSnapshot:
            if not self.harmed:
                raise
            leader.end()
        if leader.ended:
            self.leaders.remove(leader)

    # Without faults.

    def _warm_up(self) -> None:
        """Let the attempt begin undisturbed, and keep all work for later."""
        self.kafka.calm = self.warming = True
        for _ in range(4):
            self._fair_round(beat=False)
        self.kafka.calm = self.warming = False

    def settle_down(self) -> None:
        """No more faults: everything must be done in the end."""
        self.trace.append(("SETTLE", ""))
        self.kafka.heal()
        self.kafka.calm, self.kafka.resend, self.sink_fails = True, 0.0, 0.0
        for worker in self.workers:
            worker.reader.slow.clear()
            worker.control.slow.clear()
        self._until(lambda: not self._busy())

    def _until(self, reached: Callable[[], bool]) -> None:
        for round in range(ROUNDS_MAX):
            if round % 10 == 0:
                for client in self.clients:
                    self._ask(client)
            self._fair_round(beat=round % 3 == 0)
            if round > 2 and reached():
                return
        raise Violation("Progress", f"there is work left after {ROUNDS_MAX} rounds without faults: {self._hanging()}")

    def _fair_round(self, *, beat: bool) -> None:
        self._advance(20)
        if not any(self.kafka.holds(LEADER_ID, leader) for leader in self.leaders):
            self.lead()
        if not self.leaving and not self.workers:
            self._join()
        for leader in list(self.leaders):
            self._let(leader, self._lead_on)
            if beat and leader in self.leaders:
                self._let(leader, SimulatedLeader.age)
        if beat:
            for worker in self.workers:
                worker.beat()
                if self.dice.chance(0.3):
                    self._fold(worker)
        for _ in range(SWEEPS_MAX):
            before = self._turns
            for worker in list(self.workers):
                self._loop(worker)
                if worker in self.workers:
                    self._work_off(worker)
            if self._turns == before:
                break

    def _work_off(self, worker: SimulatedWorker) -> None:
        """All that goes on beside the turns of a worker."""
        for unit in worker.actual_units:
            for driver in unit.sinks.values():
                self._calm_down(driver)
        for handlers in worker.assembly.handlers:
            for _ in range(len(handlers)):
                handlers.resume(0)
        while not worker.writer.idle or any(not work.done() for work in worker.works):
            worker.writer.pump_all()
            worker.step_all()

    def _lead_on(self, leader: SimulatedLeader) -> None:
        """What a leader does at once when it has heard something."""
        leader.hear()
        if leader.earlier:
            leader.recall()
        leader.writer.pump_all()
        leader.step_works()
        while leader.to_write and not leader.ended:
            leader.decide()
        leader.writer.pump_all()

    def _calm_down(self, driver: Any) -> None:
        if not self.sink_fails:
            driver.failing = 0.0
        for _ in range(4):
            if driver.quiet:
                break
            driver.step()

    def _busy(self) -> bool:
        return bool(self._hanging())

    def _hanging(self) -> str:
        """What is not done yet; empty when everything is."""
        leader = next((leader for leader in self.leaders if self.kafka.holds(LEADER_ID, leader)), None)
        if leader is None:
            return "nobody leads"
        core = leader.core
        coordinator = core._coordinator
        if core.phase is not Phase.LEADING or coordinator is None:
            return f"the leader is {core.phase}"
        if coordinator.owing or coordinator.phase is not RoundPhase.IDLE:
            return f"checkpoint {coordinator.last_id} is {coordinator.phase}, owing {coordinator.owing}"
        if core._moves or leader.busy:
            return f"moves {core._moves}, leader {leader.busy}"
        names = {worker.name for worker in self.workers}
        if {member.worker for member in core.members} != names or not set(core.owners.values()) <= names:
            return f"members {[member.worker for member in core.members]}, owners {core.owners}, workers {names}"
        for worker in self.workers:
            if worker.busy:
                return f"{worker.name} is busy"
        for task in range(self.tasks):
            unit = self.live.get(task)
            if unit is None or unit.worker.name != core.owners[task] or self._unit_busy(unit):
                return f"task {task}"
        return "" if all(client.answer for client in self.clients) else "clients"

    def _unit_busy(self, unit: ClusterUnit) -> bool:
        """Whether anything is left to do that needs no new input. Kept results of requests, forgotten after a day, are
        not work."""
        statistics, due_ms = unit.core.statistics(), unit.core.next_due_ms()
        return (
            statistics.queued + statistics.pending > 0
            or (due_ms is not None and due_ms < unit.core.clock_ms + DAY_MS // 2)
            or any(getattr(feed, "behind", 0) for feed in unit.feeds)
            or unit.core.changed
            or not all(driver.quiet for driver in unit.sinks.values())
        )

    def _say_farewell(self) -> None:
        """All workers leave; then one comes, which must find everything as it was."""
        for worker in self.workers:
            worker.leave()
        self.leaving = True
        self._until(lambda: not self.workers)
        self.leaving = False
        self._join()
        self._until(lambda: not self._busy())

    def _advance(self, milliseconds: int) -> None:
        self.clock_ms += milliseconds
        STAGE.clock_ms = self.clock_ms
        NATURE.clock_ms = max(NATURE.clock_ms, self.clock_ms)

    # What workers do.

    def _loop(self, worker: SimulatedWorker) -> None:
        try:
            worker.loop()
        except (PenstockError, Overtaken) as error:
            lost = isinstance(error, Overtaken) and error.place == (TOPICS.control, DECISIONS)
            fenced = isinstance(error, Fenced)
            if any(map(self.is_live, worker.actual_units)) and not lost and not fenced:
                raise
            self._end(worker, str(error))
            return
        if worker.relieved and not worker.works:
            worker.writer.pump_all()
            self._end(worker, "stopped")

    def _end(self, worker: SimulatedWorker, reason: str) -> None:
        """A worker ends, and says so."""
        worker.link.report(Ended(worker.name, reason))
        if self.dice.chance(0.8):
            worker.writer.pump_all()
        self._remove(worker)

    def _remove(self, worker: SimulatedWorker) -> None:
        worker.writer.crash()
        for unit in worker.actual_units:
            self._count_dropped(unit)
        worker.die()
        self.workers.remove(worker)

    def _count_dropped(self, unit: ClusterUnit) -> None:
        self._counts["zombie_frames"] += unit.snapshot.dropped
        self._counts["duplicates"] += unit.core.statistics().duplicate_frames

    def _resume(self, worker: SimulatedWorker) -> None:
        for handlers in worker.assembly.handlers:
            if len(handlers) and self.dice.chance(0.7):
                handlers.resume(self.dice.below(len(handlers)))

    def _step_sink(self, worker: SimulatedWorker) -> None:
        for driver in worker.drivers:
            if not driver.quiet and self.dice.chance(0.7):
                driver.step()

    def _fold(self, worker: SimulatedWorker) -> None:
        for unit in worker.actual_units:
            if unit.overlay.folding or unit.begin_fold():
                unit.overlay.fold_slice(2 + self.dice.below(30))

    def _make_base(self, worker: SimulatedWorker) -> None:
        """As the upkeep of a worker does: a base of what has been folded, once the fold is done."""
        for unit in worker.actual_units:
            overlay = unit.overlay
            checkpoint = overlay.folded_checkpoint
            if overlay.folding or checkpoint <= unit.snapshot.base_checkpoint or self.dice.chance(0.3):
                continue
            name = f"{checkpoint:012d}-{unit.attempt}-{unit.task}"
            self.bases.put_rows(name, list(overlay.backend.scan(b"", b"\xff")))
            self.count("bases")
            if self.dice.chance(0.9):
                unit.rebase(name, checkpoint)

    # Workers come and go.

    def _join(self, instance: str = "") -> None:
        if not instance:
            self._instances += 1
            instance = f"i{self._instances}"
        self._started[instance] += 1
        self.count("joins")
        worker = SimulatedWorker(self, instance, f"{instance}#{self._started[instance]}")
        self.workers.append(worker)
        self._all_workers.append(worker)

    def _another_joins(self) -> None:
        if len(self.workers) < self.mix.workers_max:
            self._join()

    def _crash(self, worker: SimulatedWorker, *, noticed: bool) -> None:
        self._remove(worker)
        if noticed:
            self._report(Ended(worker.name, "was killed"))

    def _restart(self, worker: SimulatedWorker) -> None:
        self._crash(worker, noticed=self.dice.chance(0.3))
        self._join(worker.instance)

    def _leave(self, worker: SimulatedWorker) -> None:
        if not worker.stopping and len(self.workers) > 1:
            self.count("leaves")
            worker.leave()

    def _condemn(self, worker: SimulatedWorker) -> None:
        self._report(Ended(worker.name, "was taken for dead"))

    def _hurry(self, worker: SimulatedWorker) -> None:
        if worker.stopping:
            self._end(worker, "stopped")

    def _slow(self, worker: SimulatedWorker) -> None:
        reader = worker.control if self.dice.chance(0.6) else worker.reader
        if reader.slow:
            reader.slow.clear()
        else:
            places = reader.places()
            if places:
                reader.slow.add(self.dice.choose(places))

    def _unable(self, worker: SimulatedWorker) -> None:
        """As when Kafka does not tell where a delta is."""
        begun = worker.link.member.begun
        if begun and worker.actual_units:
            units = worker.actual_units
            if any(unit.snapshot.writing == begun for unit in units):
                worker.snapshots.forget(units)
                worker.link.report(Unable(worker.name, worker.link.member.number, begun, "nobody knows where it is"))

    def _report(self, report: Any) -> None:
        place = (TOPICS.reports, 0)
        if place not in self.kafka.refusing:
            self.kafka.partition(place).append(encode_message(report))

    # Leaders come and go.

    def lead(self, **wishes: Any) -> None:
        """Another leader begins, whatever became of the one before."""
        self.count("leaders")
        name = f"leader-{self._counts['leaders']}"
        self.trace.append(("LEAD", name))
        options = LeaderOptions(
            name=name,
            application=WALKS.name,
            tasks=self.tasks,
            fingerprints=_FINGERPRINTS,
            interval_ms=10,
            timeout_ms=NEVER_MS if self.patient else TIMEOUT_MS,
            session_ms=SESSION_MS,
            settle_ms=SETTLE_MS,
            workers_expected=1 + self.dice.below(2),
            retention=self.retention,
            **wishes,
        )
        leader = SimulatedLeader(self, options)
        self._counts["adoptions"] += leader.core.phase is Phase.LEADING
        self.leaders.append(leader)

    def _abdicate(self, leader: SimulatedLeader) -> None:
        leader.end()
        if self.dice.chance(0.6):
            self.lead()

    def _doubt(self, leader: SimulatedLeader) -> None:
        leader.doubt()
        if leader.ended and self.dice.chance(0.6):
            self.lead()

    def _deliver(self, leader: SimulatedLeader) -> None:
        leader.writer.pump(1 + self.dice.below(5))
        leader.step_works()

    def decisions(self) -> Iterator[tuple[int, ControlRecord]]:
        start = self.kafka.partition((TOPICS.control, DECISIONS)).start
        return ((offset, record) for offset, record in self._control if offset >= start)

    def forget(self, leader: SimulatedLeader, what: Forget) -> None:
        kafka: Any = self.kafka
        trimming = Trimming(kafka, WALKS.name, collect=lambda bases, decided_s: None)
        for place, floor in trimming._floors(what).items():
            self.kafka.truncate(place, floor)
        used = what.bases | {unit.snapshot.base_name for worker in self.workers for unit in worker.actual_units}
        self.bases.collect(used, (self.clock_ms - UNREFERENCED_MS) / 1000)
        self.count("forgets")
        self.is_there.forgot(self, leader)

    # Clients.

    def _some_request(self) -> None:
        if self.clients:
            self._ask(self.dice.choose(self.clients))

    def _ask(self, client: Client) -> None:
        if client.answer is None:
            place = (TOPICS.requests, key_group(client.address.id) % self.tasks)
            if place in self.kafka.refusing:
                return
            self.kafka.partition(place).append(encode_request(client.request()))

    def _told(self, answer: bytes, attempt: int, checkpoint: int) -> None:
        reply: Reply = _decode_reply(answer)
        for client in self.clients:
            client.hear(reply, attempt, checkpoint)

    # Faults, and people.

    def _fail_power(self) -> None:
        for worker in list(self.workers):
            self._crash(worker, noticed=False)
        for leader in self.leaders:
            leader.end()
        self.leaders.clear()
        for _ in range(self.dice.choose(self.mix.workers)):
            self._join()
        if self.dice.chance(0.8):
            self.lead()

    def _refuse(self) -> None:
        kafka = self.kafka
        if (kafka.refusing or kafka.silent) and self.dice.chance(0.4):
            kafka.heal()
            return
        self.count("refusals")
        inbox = (TOPICS.inbox, self.dice.below(self.tasks))
        place = inbox if self.dice.chance(self.mix.inboxes) else self.dice.choose(kafka.places())
        (kafka.silent if self.dice.chance(self.mix.silent) else kafka.refusing).add(place)

    def _replay(self) -> None:
        """A person goes back to some retained checkpoint, or to nothing."""
        history = History(deltas_apart=True)
        for offset, record in self.decisions():
            history.apply(offset, record)
        retained = list(history.checkpoints)
        if self.leaders:
            retained = [each for each in retained if each in self.leaders[-1].core.history.checkpoints]
        if not retained or self.harmed:
            return
        self.count("replays")
        self.rolled_back = True
        starts = [self.kafka.partition((TOPICS.requests, task)).start for task in range(self.tasks)]
        if self.dice.chance(0.15) and not any(starts):  # What clients no longer ask is there to be read.
            self.lead(fresh=True)
        else:
            self.lead(from_checkpoint=self.dice.choose(retained))

    def _damage(self) -> None:
        """A delta or a file of a base is spoilt that the newest checkpoint needs and an older one does not; then a
        worker dies."""
        if not self.leaders or self.harmed or self.retention is not EVERYTHING_KEPT:
            return
        core = self.leaders[-1].core
        known = [core.manifest(each.checkpoint) for each in core.history.candidates()][:4]
        if len(known) < 2 or not self.workers:
            return
        needed = [set(self._read_by(manifest)) for manifest in (known[0], self.dice.choose(known[1:]))]
        victims = sorted(needed[0] - needed[1])
        if victims:
            self.rolled_back = True
            self._harm(*self.dice.choose(victims))
            self._crash(self.dice.choose(self.workers), noticed=True)

    def _read_by(self, manifest: Manifest) -> Iterator[tuple[str, int | str]]:
        """What restores of a checkpoint read: the topic of deltas of each task with an offset, and files of bases."""
        for part in manifest.parts:
            place = (TOPICS.deltas, part.task)
            deltas = Deltas("", self.kafka.partition(place).records)
            yield from ((str(part.task), offset) for offset in deltas.chain(part.head, part.first))
            if part.base:
                yield from (("base", key) for key in self.bases.keys_of(part.base))

    def _harm(self, where: str, what: int | str) -> None:
        if isinstance(what, str):
            self.count("bases_harmed")
            self.bases.blobs.damage(what, self.dice)
            self.harmed = self.bases.blobs.place(what)
            return
        self.count("deltas_harmed")
        place = (TOPICS.deltas, int(where))
        harm = self.kafka.removed if self.dice.chance(0.3) else self.kafka.damaged
        harm.add((place, what))
        self.harmed = f"{TOPICS.deltas}-{where}"

    # What invariants ask.

    def is_live(self, unit: ClusterUnit) -> bool:
        return self.live.get(unit.task) is unit

    @property
    def current(self) -> Any:
        """What the invariants of all worlds know as the attempt that runs."""
        return SimpleNamespace(nodes=list(self.live.values()))

    standby = leaving = warming = False

    def owner_of(self, unit: ClusterUnit) -> str:
        """Who owns the task of a unit that counts."""
        assert self.assigned is not None
        return self.assigned.owners.get(unit.task, "nobody")

    def resolved_for(self, unit: ClusterUnit) -> int:
        """Up to which checkpoint assignments have decided, for the owner of this unit, that it may go on."""
        assert self.assigned is not None
        mine = self.assigned.owners.get(unit.task) == unit.worker.name
        return self.assigned.resolved if mine and self.assigned.attempt.lineage.attempt == unit.attempt else 0

    def turn_size(self, unit: ClusterUnit) -> int:
        """How many invocations the next turn of a unit has; 0 for no turn."""
        if self.kafka.calm:
            return 0 if self.warming else 10
        dice = self.dice
        if dice.chance(self.mix.laziness if unit.task == self.lazy else 0.35):
            return 0
        return 1 + dice.below(3)

    def count(self, name: str) -> None:
        self._counts[name] += 1

    # What happens is told to the invariants.

    def decided(self, offset: int, record: ControlRecord) -> None:
        """A decision is durable."""
        self._control.append((offset, record))
        match record:
            case AttemptBegun():
                self._attempt_begun(record)
            case Assign():
                if self.assigned is not None and self.assigned.attempt.lineage.attempt == self.newest_attempt:
                    self._counts["handoffs"] += len(record.moved)
                self.assigned = record
            case Complete(manifest):
                if manifest.lineage.attempt != self.newest_attempt:
                    raise Violation("Decisions", f"checkpoint of {manifest.lineage} after {self.newest_attempt} began")
                self.manifests[manifest.checkpoint] = manifest
                self.count("completed")
            case _:
                pass

    def _attempt_begun(self, begun: AttemptBegun) -> None:
        self.newest_attempt = begun.lineage.attempt
        self.count("recoveries")
        for unit in self.live.values():
            unit.replaced = True
        self.live.clear()
        manifest = self.manifests[begun.restored] if begun.restored else None
        self._counts["pruned"] += manifest is not None and not manifest.lineage.attempts <= begun.lineage.attempts
        run = SimpleNamespace(attempt=begun, nodes=[])
        self._tell("restored", run, manifest, [], begun.reason in ("replay", "fresh start"))

    def begun(self, leader: SimulatedLeader, begin: Begin) -> None:
        assert leader.core.attempt is not None
        self._tell("begun", SimpleNamespace(attempt=leader.core.attempt), begin.checkpoint)

    def noted(self, text: str) -> None:
        self._counts["abandoned"] += text.startswith("PEN0401")

    def acknowledged(self, worker: SimulatedWorker, said: Acknowledgement) -> None:
        for unit in worker.actual_units:
            if unit.task in said.released and unit.attempt == said.attempt:
                unit.released_at = said.checkpoint

    def placed(self, unit: ClusterUnit, restored: Restored, origin: Origin) -> None:
        """A task was restored at a worker, and goes on there."""
        if unit.attempt == self.newest_attempt:
            previous = self.live.get(unit.task)
            checkpoint = origin.manifest.checkpoint if origin.manifest is not None else 0
            self.one_owner.placed(self, unit, previous, checkpoint)
            if previous is not None:
                previous.replaced = True
            self.live[unit.task] = unit
        else:
            unit.replaced = True
        self.is_cut.placed(unit, restored, origin.manifest)
        self.are_named.placed(restored, origin)

    def turned(self, unit: ClusterUnit, effects: Effects) -> None:
        self._turns += 1
        self._counts["zombie_turns"] += unit.replaced
        self.one_owner.took_turn(self, unit)
        for hook in self._turned:
            hook(self, unit, effects)

    def cut(self, unit: ClusterUnit, frozen: Frozen) -> None:
        self._tell("cut", unit, frozen)
        world: Any = self
        node: Any = unit
        self.is_cut.cut(world, node, frozen)

    def _committed(self, task: int) -> None:
        self._tell("committed", task)

    def _tell(self, hook: str, *arguments: object) -> None:
        hooks = self._told_of.get(hook)
        if hooks is None:
            hooks = self._told_of[hook] = _hooks(self.invariants, hook)
        for told in hooks:
            told(self, *arguments)


def _hooks(invariants: list[Any], name: str) -> list[Callable[..., None]]:
    nothing = getattr(Invariant, name)
    return [getattr(each, name) for each in invariants if getattr(type(each), name) is not nothing]


@lru_cache
def _config(tasks: int) -> Config:
    return Config(parallelism=tasks, directory=Path("simulated"))


_decode_reply = msgspec.msgpack.Decoder(Reply).decode
