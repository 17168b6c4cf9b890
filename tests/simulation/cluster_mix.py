"""What may happen in a simulated cluster, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from functools import cached_property
from typing import Any

from penstock.checkpoint.retention import Retention
from tests.simulation.dice import Dice, Weights


class Step(IntEnum):
    """One step of a cluster. Those of the second group are faults, or work of people."""

    LOOP = auto()
    """A worker does what the leader has said, as far as it has heard it, and lets its tasks take turns."""
    WORK = auto()
    """Something a worker does beside its turns comes one pause further: a snapshot, a restore."""
    PUMP = auto()
    """Some of what a worker wrote arrives."""
    RESUME = auto()
    """A suspended handler goes on."""
    SINK = auto()
    FOLD = auto()
    BASE = auto()
    BEAT = auto()
    """A worker says that it is alive."""
    HEAR = auto()
    """A leader takes in reports, and looks at its clock."""
    TELL = auto()
    """Some of the hints and fences of a leader arrive."""
    DECIDE = auto()
    """A leader commits the next of its decisions, or learns that it leads no longer."""
    TICK = auto()
    AGE = auto()
    RECALL = auto()
    """A leader reads some of what was decided before the records that it began with."""
    ASK = auto()

    CRASH = auto()
    """A worker dies; sometimes whoever watches it says so."""
    RESTART = auto()
    """A worker dies, and is started again in its place."""
    JOIN = auto()
    LEAVE = auto()
    CONDEMN = auto()
    """Somebody says that a worker has ended, and it has not."""
    HURRY = auto()
    """A worker that leaves does not wait any longer."""
    SLOW = auto()
    """A worker hears nothing more of one partition, or hears of all again."""
    ABDICATE = auto()
    """A leader dies, and another begins, at once or later."""
    DUEL = auto()
    """Another leader begins while one leads."""
    DOUBT = auto()
    """A leader does not learn whether its decision is durable, and ends."""
    POWER = auto()
    """Everybody dies."""
    REFUSE = auto()
    """One partition takes nothing, or can't be read, for a while; or all answer again."""
    REPLAY = auto()
    DAMAGE = auto()
    UNABLE = auto()
    """A worker does not learn where its delta is."""
    CLOCK = auto()


USUAL = {
    Step.LOOP: 60.0,
    Step.WORK: 45.0,
    Step.PUMP: 40.0,
    Step.RESUME: 5.0,
    Step.SINK: 14.0,
    Step.FOLD: 8.0,
    Step.BASE: 4.0,
    Step.BEAT: 8.0,
    Step.HEAR: 26.0,
    Step.TELL: 20.0,
    Step.DECIDE: 22.0,
    Step.TICK: 10.0,
    Step.AGE: 2.5,
    Step.RECALL: 4.0,
    Step.ASK: 2.0,
}

FAULTS = {
    Step.CRASH: 0.6,
    Step.RESTART: 0.4,
    Step.JOIN: 3.0,
    Step.LEAVE: 2.2,
    Step.CONDEMN: 1.0,
    Step.HURRY: 0.3,
    Step.SLOW: 6.0,
    Step.ABDICATE: 0.8,
    Step.DUEL: 0.8,
    Step.DOUBT: 0.6,
    Step.POWER: 0.25,
    Step.REFUSE: 3.0,
    Step.REPLAY: 0.6,
    Step.DAMAGE: 2.0,
    Step.UNABLE: 1.0,
    Step.CLOCK: 0.4,
}


EVERYTHING_KEPT = Retention()
LITTLE_KEPT = Retention(all_ms=2, spacing_ms=4, spaced_ms=8, bytes_max=8_000)


@dataclass(frozen=True)
class ClusterMix:
    """How often each step comes, and how long a schedule is."""

    weights: dict[Step, float] = field(default_factory=lambda: {**USUAL, **FAULTS})
    steps: int = 220
    walks: int = 3
    """How much there is to do, at least."""
    tasks: tuple[int, ...] = (4,)
    workers: tuple[int, ...] = (1, 2, 2, 3)
    """How many a world begins with."""
    workers_max: int = 3
    lazy: float = 0.2
    """In how many worlds one task falls behind."""
    laziness: float = 0.95
    """How often that one takes no turn when it could."""
    resend: float = 0.05
    retentions: tuple[Retention, ...] = (EVERYTHING_KEPT, LITTLE_KEPT)
    lag: tuple[float, ...] = (0.0, 0.0, 0.5, 0.8)
    """How often a worker that asks what its leader has said hears nothing."""
    inboxes: float = 0.5
    """How often it is an inbox that takes nothing, or can't be read, and not just any partition."""
    silent: float = 0.3
    """How often it can't be read."""
    sink_fails: float = 0.1
    slow_sink: float = 0.15
    patient: float = 0.6
    """In how many worlds no checkpoint is ever given up because of the time it takes: nothing may hang there."""
    fresh: float = 0.15
    """How often a person who goes back goes back to nothing."""
    farewell: float = 0.2
    """In how many worlds all workers leave in the end, and one comes back."""
    warm: float = 0.7
    """In how many worlds the first attempt begins undisturbed."""
    swarm: bool = True
    """Whether each world has some kinds of faults only, so that one does not always hide what follows from another."""

    def draw_weights(self, dice: Dice) -> Weights[Step]:
        """Of one world."""
        if not self.swarm:
            return self.prepared
        scale = dice.choose((0.5, 1.0, 2.0))
        return Weights(
            {
                step: weight * scale * dice.chance(0.5) if step.value >= Step.CRASH.value else weight
                for step, weight in self.weights.items()
            }
        )

    @cached_property
    def prepared(self) -> Weights[Step]:
        return Weights(self.weights)

    def more(self, weights: dict[Step, float], **changes: Any) -> ClusterMix:
        """The same with other weights for some steps, and other fields."""
        return replace(self, weights={**self.weights, **weights}, **changes)


EVERYTHING = ClusterMix()

_NONE = dict.fromkeys(FAULTS, 0.0)
HANDOFFS = EVERYTHING.more(
    {**_NONE, Step.JOIN: 4.0, Step.LEAVE: 5.0, Step.UNABLE: 2.0, Step.SLOW: 4.0, Step.RESTART: 0.2},
    tasks=(2, 4),
    swarm=False,
    warm=1.0,
)
LEADERS = EVERYTHING.more(
    {**_NONE, Step.JOIN: 4.0, Step.LEAVE: 4.0, Step.ABDICATE: 3.0, Step.DOUBT: 4.0, Step.UNABLE: 2.0, Step.AGE: 6.0},
    tasks=(1, 2),
    swarm=False,
)
DUELS = EVERYTHING.more(
    {**_NONE, Step.JOIN: 4.0, Step.LEAVE: 4.0, Step.DUEL: 3.0, Step.SLOW: 4.0, Step.TELL: 8.0},
    tasks=(1, 2),
    swarm=False,
)
ZOMBIES = EVERYTHING.more(
    {**_NONE, Step.JOIN: 3.0, Step.CONDEMN: 4.0, Step.SLOW: 8.0, Step.CRASH: 1.0, Step.PUMP: 20.0},
    tasks=(2, 4),
    workers=(2, 3, 4),
    swarm=False,
)
MESSAGES = EVERYTHING.more(
    {**_NONE, Step.JOIN: 2.0, Step.CRASH: 2.5, Step.LOOP: 90.0},
    tasks=(2, 4),
    workers=(2, 3),
    lag=(0.8,),
    swarm=False,
    warm=1.0,
    walks=12,
)
BACKLOG = MESSAGES.more({Step.CRASH: 3.0, Step.RESTART: 3.0}, tasks=(2,), workers=(2,), lag=(0.0,), lazy=1.0)
LOSSES = MESSAGES.more({Step.CRASH: 3.0, Step.PUMP: 16.0}, lag=(0.0,), tasks=(4,), walks=25)
REFUSALS = LOSSES.more(
    {
        Step.REFUSE: 12.0,
        Step.CRASH: 4.0,
        Step.WORK: 90.0,
        Step.PUMP: 60.0,
        Step.HEAR: 60.0,
        Step.TELL: 60.0,
        Step.DECIDE: 60.0,
    },
    tasks=(2,),
    workers=(2,),
    lazy=0.0,
    inboxes=1.0,
    silent=0.0,
    walks=40,
    steps=400,
)
"""Checkpoints are often complete while an inbox takes nothing; then one who sent to it dies."""
UNSEALED = LOSSES.more(
    {
        Step.LOOP: 15.0,
        Step.WORK: 60.0,
        Step.PUMP: 60.0,
        Step.HEAR: 50.0,
        Step.TELL: 40.0,
        Step.DECIDE: 50.0,
        Step.CRASH: 4.0,
    }
)
"""Checkpoints are often complete before a worker comes to the end of another pass over its tasks."""
RETRIES = HANDOFFS.more(
    {Step.SINK: 10.0, Step.UNABLE: 6.0, Step.SLOW: 10.0, Step.CLOCK: 2.0}, patient=0.2, sink_fails=0.2, walks=12
)
REPEATS = HANDOFFS.more(
    {Step.AGE: 40.0, Step.DECIDE: 16.0, Step.ABDICATE: 2.0, Step.TICK: 25.0, Step.SLOW: 0.0},
    tasks=(1, 2),
    retentions=(Retention(all_ms=0, spacing_ms=0, spaced_ms=0),),
    steps=350,
)
BRIEF = BACKLOG.more(
    {
        **_NONE,
        Step.RESTART: 3.0,
        Step.JOIN: 6.0,
        Step.AGE: 20.0,
        Step.LOOP: 90.0,
        Step.WORK: 90.0,
        Step.PUMP: 80.0,
        Step.HEAR: 50.0,
        Step.DECIDE: 60.0,
    },
    retentions=(Retention(all_ms=0, spacing_ms=0, spaced_ms=0),),
    laziness=1.0,
    steps=1_500,
)
"""Nothing but the newest checkpoint is retained, while one task falls behind by several attempts."""
STUCK = BRIEF.more({Step.SINK: 0.0}, lazy=0.0)
"""The same, but it is sinks that fall behind."""
PEOPLE = EVERYTHING.more(
    {**_NONE, Step.JOIN: 3.0, Step.REPLAY: 4.0, Step.CRASH: 3.0, Step.AGE: 0.0}, tasks=(1, 2), swarm=False
)
DAMAGES = EVERYTHING.more(
    {**_NONE, Step.DAMAGE: 3.0, Step.ABDICATE: 2.0, Step.JOIN: 2.0, Step.FOLD: 20.0, Step.BASE: 10.0},
    tasks=(1, 2),
    retentions=(EVERYTHING_KEPT,),
    swarm=False,
)
FRESH = EVERYTHING.more(
    {**_NONE, Step.JOIN: 3.0, Step.REPLAY: 1.5, Step.AGE: 8.0, Step.SLOW: 4.0},
    retentions=(LITTLE_KEPT,),
    swarm=False,
    fresh=0.7,
)
