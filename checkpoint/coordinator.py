"""Decides when checkpoints begin and when one is complete. One per application.

          Tick, due and dirty            last Acknowledged             Durable
    IDLE ───────────────────> COLLECTING ─────────────────> COMPLETING ───────> IDLE
      │ ids used up                │ Failed, timeout                              ^
      └──> RESERVING ── Durable ───┼──────────────────────────────────────────────┘
                                   └── (the absence of COMPLETE is the abort)

What always holds: one checkpoint is in flight at a time; ids are unique, grow, and are durable before use; a COMPLETE
is written only when every task has acknowledged that checkpoint in this attempt; nothing is announced before its
COMPLETE is durable. Takes no snapshot and touches no sink: tasks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from penstock.checkpoint.control import FORMAT, AttemptBegun, Complete, ControlRecord, Manifest, Part, Reserve
from penstock.checkpoint.lineage import Lineage
from penstock.ids import KEY_GROUPS_MAX

RESERVED_IDS = 1_000
"""Ids reserved by one durable record. More would cost nothing but larger gaps after a restart."""
PAUSE_MIN_MS = 5
COST_SHARE = 10
"""Checkpoints may take a tenth of the time: the next one starts after ten times what the last one cost (PROTOCOL
15)."""


class Phase(Enum):
    """What the coordinator waits for."""

    IDLE = "nothing: the next checkpoint may begin"
    RESERVING = "more ids to be durable"
    COLLECTING = "the tasks"
    COMPLETING = "its decision to be durable"


_MOVES = {
    Phase.IDLE: {Phase.RESERVING, Phase.COLLECTING},
    Phase.RESERVING: {Phase.IDLE},
    Phase.COLLECTING: {Phase.COMPLETING, Phase.IDLE},
    Phase.COMPLETING: {Phase.IDLE},
}


class Tick(NamedTuple):
    """Time has passed, or something changed. `dirty`: some task has uncheckpointed work. `urgent`: replies, rows or a
    person wait for a checkpoint."""

    now_ms: float
    dirty: bool
    urgent: bool = False
    reason: str = "interval"


class Acknowledged(NamedTuple):
    """A task's delta, and everything it sent before its cut, will be durable before any COMPLETE written from now
    on."""

    checkpoint: int
    part: Part
    delta_bytes: int


class Failed(NamedTuple):
    """A task could not take its snapshot. The checkpoint is given up; its changes go into the next one."""

    checkpoint: int
    reason: str


class Durable(NamedTuple):
    """The last control record handed out by Write is durable."""

    now_ms: float
    cost_ms: float = 0.0
    """CPU time the checkpoint has taken, all tasks together."""


Event = Tick | Acknowledged | Failed | Durable


class Write(NamedTuple):
    """Append this record to the control log, make it durable, then report Durable."""

    record: ControlRecord


class Begin(NamedTuple):
    """Tell every task to cut at this checkpoint."""

    checkpoint: int


class Announce(NamedTuple):
    """The checkpoint is complete: tasks settle, sinks commit."""

    manifest: Manifest


class Abandoned(NamedTuple):
    """The checkpoint was given up; for people."""

    checkpoint: int
    reason: str


Action = Write | Begin | Announce | Abandoned


@dataclass(frozen=True, slots=True)
class CoordinatorOptions:
    """Times in milliseconds."""

    application: str
    tasks: int
    fingerprints: dict[str, dict[str, object]]
    interval_ms: float = 200
    timeout_ms: float = 60_000
    generation: int = 1


class Coordinator:
    """See the module. Starts with `attempt`; handle(event) returns what the driver must do, in order.

    `used`: another coordinator has led this attempt before, and may have used ids up to there.
    """

    def __init__(self, options: CoordinatorOptions, attempt: AttemptBegun, *, used: int | None = None) -> None:
        self._options = options
        self._lineage = attempt.lineage
        self._reserved = attempt.high if used is None else used
        self._last_id = attempt.high - RESERVED_IDS if used is None else used
        self._phase = Phase.IDLE
        self._began_ms = 0.0
        self._last_end_ms = 0.0
        self._pause_ms = float(PAUSE_MIN_MS)
        self._reason = ""
        self._parts: dict[int, Part] = {}
        self._delta_bytes = 0
        self._manifest: Manifest | None = None
        self.completed = 0
        self.abandoned = 0
        self.trying_since_ms: float | None = None
        """When the first checkpoint after the last complete one began; None while none has been needed since."""

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def lineage(self) -> Lineage:
        return self._lineage

    @property
    def current(self) -> int | None:
        """The checkpoint in flight."""
        return self._last_id if self._phase in (Phase.COLLECTING, Phase.COMPLETING) else None

    @property
    def owing(self) -> bool:
        """Whether a checkpoint has begun since the last complete one. If it was given up, tasks hold changes that they
        no longer report as dirty, and rows and replies wait for the next."""
        return self.trying_since_ms is not None

    @property
    def last_id(self) -> int:
        """The newest id that was used."""
        return self._last_id

    def due_in_ms(self, now_ms: float, *, dirty: bool, urgent: bool) -> float | None:
        """How long until a Tick would begin a checkpoint; None while nothing calls for one."""
        if self._phase is not Phase.IDLE or not (dirty or urgent or self.owing):
            return None
        wait = self._pause_ms if urgent else max(self._options.interval_ms, self._pause_ms)
        return max(0.0, self._last_end_ms + wait - now_ms)

    def handle(self, event: Event) -> list[Action]:
        match event:
            case Tick():
                return self._tick(event)
            case Acknowledged(checkpoint, part, delta_bytes):
                return self._acknowledge(checkpoint, part, delta_bytes)
            case Failed(checkpoint, reason):
                return self._give_up(reason) if checkpoint == self.current else []
            case Durable(now_ms, cost_ms):
                return self._durable(now_ms, cost_ms)
            case _:
                assert_never(event)

    def _tick(self, tick: Tick) -> list[Action]:
        if self._phase is Phase.COLLECTING and tick.now_ms - self._began_ms > self._options.timeout_ms:
            missing = ", ".join(str(t) for t in range(self._options.tasks) if t not in self._parts)
            return self._give_up(f"no acknowledgement of task {missing} within {self._options.timeout_ms / 1000:g} s")
        if self.due_in_ms(tick.now_ms, dirty=tick.dirty, urgent=tick.urgent) != 0.0:
            return []
        if self._last_id == self._reserved:
            self._enter(Phase.RESERVING)
            return [Write(Reserve(self._reserved + RESERVED_IDS))]
        self._last_id += 1
        self._began_ms = tick.now_ms
        if self.trying_since_ms is None:
            self.trying_since_ms = tick.now_ms
        self._reason = tick.reason
        self._parts, self._delta_bytes = {}, 0
        self._enter(Phase.COLLECTING)
        return [Begin(self._last_id)]

    def _acknowledge(self, checkpoint: int, part: Part, delta_bytes: int) -> list[Action]:
        if self._phase is not Phase.COLLECTING or checkpoint != self._last_id:
            return []  # Acknowledges a checkpoint that was given up.
        self._parts[part.task] = part
        self._delta_bytes += delta_bytes
        if len(self._parts) < self._options.tasks:
            return []
        self._manifest = Manifest(
            format=FORMAT,
            application=self._options.application,
            checkpoint=checkpoint,
            lineage=self._lineage,
            created_ms=int(self._began_ms),
            key_groups_max=KEY_GROUPS_MAX,
            parallelism=self._options.tasks,
            generation=self._options.generation,
            fingerprints=self._options.fingerprints,
            parts=tuple(self._parts[task] for task in range(self._options.tasks)),
            delta_bytes=self._delta_bytes,
            reason=self._reason,
        )
        self._enter(Phase.COMPLETING)
        return [Write(Complete(self._manifest))]

    def _durable(self, now_ms: float, cost_ms: float) -> list[Action]:
        if self._phase is Phase.RESERVING:
            self._reserved += RESERVED_IDS
            self._enter(Phase.IDLE)
            return []
        assert self._phase is Phase.COMPLETING
        assert self._manifest is not None
        manifest, self._manifest = self._manifest, None
        self.completed += 1
        self.trying_since_ms = None
        self._last_end_ms = now_ms
        self._pause_ms = max(PAUSE_MIN_MS, COST_SHARE * cost_ms)
        self._enter(Phase.IDLE)
        return [Announce(manifest)]

    def _give_up(self, reason: str) -> list[Action]:
        """The driver may also report Failed while COMPLETE is being written: only if it is certain not to be
        durable."""
        self.abandoned += 1
        self._manifest = None
        self._last_end_ms = self._began_ms + self._options.interval_ms
        self._phase = Phase.COLLECTING if self._phase is Phase.COMPLETING else self._phase
        self._enter(Phase.IDLE)
        return [Abandoned(self._last_id, reason)]

    def _enter(self, phase: Phase) -> None:
        assert phase in _MOVES[self._phase], f"{self._phase} -> {phase}"
        self._phase = phase
