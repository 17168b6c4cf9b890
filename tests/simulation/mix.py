"""What may happen in a simulated world, and how often: data, so that a test can ask for the faults it is about."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from functools import cached_property
from typing import Any

from tests.simulation.dice import Weights


class Move(IntEnum):
    """One step of a world. Those of the second group are faults."""

    TURN = auto()
    RESUME = auto()
    """A suspended handler goes on."""
    PUMP = auto()
    """A buffered producer sends some of what waits."""
    WRITE = auto()
    """A snapshot comes one stage further."""
    BEGIN = auto()
    """A task learns that a checkpoint begins."""
    ACKNOWLEDGE = auto()
    """The coordinator learns what a task has done."""
    DECIDE = auto()
    """The control record that was appended becomes durable."""
    LEARN = auto()
    """A task reads the next COMPLETE."""
    TICK = auto()
    SINK = auto()
    FOLD = auto()
    BASE = auto()
    RETAIN = auto()
    ASK = auto()
    """A client sends a request, or repeats it."""

    CRASH = auto()
    """The power fails: everybody dies, and of what was not flushed each partition keeps some prefix."""
    TAKE_OVER = auto()
    """A new attempt begins while tasks of the old one live on, as zombies."""
    REPLAY = auto()
    """A person goes back to some retained checkpoint."""
    FORGET = auto()
    """A message between coordinator and task is lost."""
    REPEAT = auto()
    """An acknowledgement comes twice."""
    DISK_FULL = auto()
    """A delta can't be appended."""
    CLOCK = auto()
    """The clock jumps: far ahead, or a little back."""
    DAMAGE = auto()
    """The disk spoils something that was durable: a delta, a manifest, a file of a base, the index of the journal."""
    REFUSE = auto()
    """One partition of the log takes nothing, or can't be read, for a while; or all answer again."""
    RESCALE = auto()
    """The application is stopped, and goes on with another number of tasks."""


USUAL = {
    Move.TURN: 40.0,
    Move.RESUME: 4.0,
    Move.PUMP: 8.0,
    Move.WRITE: 24.0,
    Move.BEGIN: 16.0,
    Move.ACKNOWLEDGE: 16.0,
    Move.DECIDE: 12.0,
    Move.LEARN: 8.0,
    Move.TICK: 4.0,
    Move.SINK: 5.0,
    Move.FOLD: 2.0,
    Move.BASE: 2.0,
    Move.RETAIN: 0.2,
    Move.ASK: 0.8,
}

FAULTS = {
    Move.CRASH: 0.12,
    Move.TAKE_OVER: 0.15,
    Move.REPLAY: 0.07,
    Move.FORGET: 0.4,
    Move.REPEAT: 0.5,
    Move.DISK_FULL: 0.7,
    Move.CLOCK: 0.3,
    Move.DAMAGE: 0.045,
    Move.REFUSE: 0.8,
    Move.RESCALE: 0.12,
}


@dataclass(frozen=True)
class Mix:
    """How often each move comes where there is an occasion for it, and how long a schedule is."""

    weights: dict[Move, float] = field(default_factory=lambda: {**USUAL, **FAULTS})
    steps: int = 150
    tasks: tuple[int, ...] = (3, 3, 3, 4)
    """How many tasks a world may have."""
    zombie_share: float = 0.15
    """How often a step is one of a zombie, while there are some."""
    lazy: float = 0.2
    """In how many worlds one task falls behind."""
    slow_disk: float = 0.15
    """In how many worlds snapshots take long to be written."""
    resend: float = 0.05
    sink_fails: float = 0.1
    slow_sink: float = 0.2
    """In how many worlds the sink does not answer for long times."""

    @cached_property
    def prepared(self) -> Weights[Move]:
        return Weights(self.weights)

    def more(self, weights: dict[Move, float], **changes: Any) -> Mix:
        """The same with other weights for some moves, and other fields."""
        return replace(self, weights={**self.weights, **weights}, **changes)


EVERYTHING = Mix()
