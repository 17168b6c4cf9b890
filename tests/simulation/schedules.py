"""Runs of many schedules of one kind, and what they have covered."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tests.simulation.mix import EVERYTHING, Move
from tests.simulation.world import Coverage, World

TAIL = 12
"""Moves shown of a schedule that failed."""


class Seen(Protocol):
    """How often something worth testing happened: a named tuple of numbers."""

    def _asdict(self) -> dict[str, int]: ...


S = TypeVar("S", bound=Seen)


class Played(Protocol):
    """A world of one seed."""

    trace: list[Any]
    """What was done, one entry a move."""

    def take_apart(self) -> None: ...


@dataclass(frozen=True)
class Kind(Generic[S]):
    """What makes one kind of schedules: which worlds they are, and what they are to see."""

    name: str
    world: Callable[..., Any]
    """Its class: of a seed, a mix, and `only`, the steps to be played."""
    everything: Any
    """The mix in which all is tried."""
    run: Callable[[Any], S]
    """Plays the schedule of a world."""
    seen: Callable[..., S]
    """The class of what `run` returns."""
    per_thousand_min: S
    """Below these a run has not seen enough to mean anything. What is rare enough is not counted on."""
    told: Callable[[Any], str]
    """One entry of a trace, for people."""
    is_fault: Callable[[Any], bool | None]
    """Whether it is a fault; None for an entry that is no step of the schedule."""
    mix_name: str = "EVERYTHING"
    """What `everything` is called where it is defined."""
    staged: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Where its worlds are played."""

    def simulate(self, seeds: Iterable[int], mix: Any = None) -> S:
        """Play the schedule of each seed. What one raises names the seed, which is all it takes to see it again."""
        seen = self.seen()
        with self.staged(), collecting_seldom():
            for seed in seeds:
                seen = self.sum_of(seen, self.play(seed, mix))
        return seen

    def play(self, seed: int, mix: Any = None) -> S:
        """One schedule, where such worlds are played."""
        world: Played = self.world(seed, mix or self.everything)
        try:
            seen = self.run(world)
        except Exception as error:
            error.add_note(
                f"Seed {seed}, after {len(world.trace)} moves, the last of them "
                f"{', '.join(map(self.told, world.trace[-TAIL:]))}. "
                f"Again, and made short: python -m tests.simulation --first {seed} --only {self.name} 1"
            )
            raise
        world.take_apart()
        return seen

    def sum_of(self, first: S, second: S) -> S:
        """What both have seen."""
        added = second._asdict()
        return self.seen(**{name: count + added[name] for name, count in first._asdict().items()})

    def thin(self, seen: S, schedules: int) -> list[str]:
        """What `schedules` of them saw too little of."""
        floors = self.per_thousand_min._asdict()
        return [
            f"{name}: {count:,} in {schedules:,} schedules, and {floors[name]:,} in each thousand are wanted"
            for name, count in seen._asdict().items()
            if count * 1_000 < floors[name] * schedules
        ]


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Few objects of a world are left once it was taken apart, and none of what was there before it: look for garbage
    after many worlds, and only among theirs. Doing it as usual takes a quarter of the time."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def told_of_move(entry: tuple[Move, int, int]) -> str:
    move, attempt, task = entry
    return f"{move.name} {attempt}/{task}"


def is_faulty_move(entry: tuple[Move, int, int]) -> bool:
    return entry[0] >= Move.CRASH


WORLDS = Kind(
    "worlds",
    World,
    EVERYTHING,
    World.run,
    Coverage,
    Coverage(
        recoveries=2_000,
        replays=100,
        completed=2_000,
        abandoned=200,
        zombie_records=500,
        colour_cuts=50,
        duplicates=20,
        bases=200,
        older=30,
        records_harmed=40,
        indexes_harmed=50,
        brought_back=15,
        rescales=15,
        refusals=1_000,
    ),
    told=told_of_move,
    is_fault=is_faulty_move,
)
"""Applications of one process."""
