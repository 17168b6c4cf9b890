"""Faults that a test asks for, as data; and the trouble they make for one harness, decided by its seed.

What always holds: the same seed and the same calls of the harness make the same trouble; it never lasts for ever, so
everything is done in the end. A fault changes nothing that the application promises: whatever it does, the results must
be those of a run without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Final, TypeVar

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError, Unavailable
from penstock.records import EgressRow
from penstock.router.sink import Sink

T = TypeVar("T")


@dataclass(frozen=True)
class Crash:
    """The application is killed, on average after so many runs of handlers: in the midst of a batch, of a snapshot, or
    before rows are visible. It goes on from its last checkpoint."""

    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigurationError(
                "PEN0233", f"Crash(every={self.every}): give how many runs of handlers, from 1 up."
            )


@dataclass(frozen=True)
class SlowSink:
    """An egress takes its time: other things go on before rows are visible."""

    chance: float = 0.5

    def __post_init__(self) -> None:
        _check_chance(self.chance, "SlowSink")


@dataclass(frozen=True)
class FailingSink:
    """An egress does not answer. Half of the times it has written the rows all the same."""

    chance: float = 0.2

    def __post_init__(self) -> None:
        _check_chance(self.chance, "FailingSink")


@dataclass(frozen=True)
class Repeats:
    """A request with an idempotency key comes again, as from a caller that got no answer."""

    chance: float = 0.3

    def __post_init__(self) -> None:
        _check_chance(self.chance, "Repeats")


@dataclass(frozen=True)
class ClockJumps:
    """The clock of the machine is back by up to `by` for a while."""

    chance: float = 0.2
    by: str | float | timedelta = "10s"

    def __post_init__(self) -> None:
        _check_chance(self.chance, "ClockJumps")
        parse_duration(self.by)


Fault = Crash | SlowSink | FailingSink | Repeats | ClockJumps

CRASHES_WITHOUT_CHECKPOINT_MAX: Final = 3
"""Then there is none until the next checkpoint: an application that is killed before it can take one gets nowhere."""
FAILURES_IN_A_ROW_MAX: Final = 3
"""Of a sink. Each costs some virtual time."""
SLOW_S: Final = 0.01
"""Virtual time passes only when nothing else can go on, so any time is long."""
BATCH_MAX: Final = 4
"""Handler runs in a turn are few, so that much can come between them."""

SURVIVORS_MAX: Final = 5
"""Records of one partition: the frames of about as many turns."""


class Crashed(Exception):
    """The application was killed. Raised and caught inside the harness."""


class Trouble:
    """See the module. Without a seed and faults there is none."""

    def __init__(self, seed: int | None, faults: Sequence[Fault] = ()) -> None:
        self.seed = seed
        self.faults = tuple(faults)
        self.crashes = 0
        self._random = Random(seed)
        self._crash = self._one_of(Crash)
        self._slow = self._one_of(SlowSink)
        self._failing = self._one_of(FailingSink)
        self._repeats = self._one_of(Repeats)
        self._jumps = self._one_of(ClockJumps)
        self._runs_left = self._draw_runs()
        self._crashes_since_checkpoint = 0

    def __bool__(self) -> bool:
        """Whether anything is to be different from an undisturbed run."""
        return self.seed is not None

    def _one_of(self, kind: type[T]) -> T | None:
        """The last one counts, when there are several of a kind."""
        return next((fault for fault in reversed(self.faults) if isinstance(fault, kind)), None)

    # What comes between.

    def shuffled(self, units: Sequence[T]) -> Sequence[T]:
        return self._random.sample(units, len(units)) if self else units

    def batch_max(self, usual: int) -> int:
        return min(usual, self._random.randint(1, BATCH_MAX)) if self else usual

    def wants_checkpoint(self) -> bool:
        """Whether one is taken between two turns."""
        return bool(self) and self._random.random() < 0.25

    # Crashes.

    def ran(self, invocations: int) -> None:
        """So many handlers have run."""
        self._runs_left -= invocations

    def strike(self) -> None:
        """Raise Crashed, if it is time: called wherever a process may die."""
        if self._crash is None or self._runs_left > 0 or self._random.random() < 0.6:
            return
        if self._crashes_since_checkpoint < CRASHES_WITHOUT_CHECKPOINT_MAX:
            self.crashes += 1
            self._crashes_since_checkpoint += 1
            self._runs_left = self._draw_runs()
            raise Crashed

    def checkpointed(self) -> None:
        self._crashes_since_checkpoint = 0

    def survivors(self) -> int:
        """How many of the records of a partition that were not flushed outlive a crash, if there are as many."""
        return self._random.randint(0, SURVIVORS_MAX)

    def _draw_runs(self) -> int:
        return self._random.randint(1, 2 * self._crash.every - 1) if self._crash is not None else 0

    # Everything else.

    def repeats_request(self) -> bool:
        return self._repeats is not None and self._random.random() < self._repeats.chance

    def clock_behind_ms(self) -> int:
        """By how much the clock is back at present."""
        if self._jumps is None or self._random.random() >= self._jumps.chance:
            return 0
        return self._random.randint(1, max(1, parse_duration(self._jumps.by)))

    def around(self, sink: Sink) -> Sink:
        """The sink as faults let it be."""
        if self._slow is None and self._failing is None:
            return sink
        slow = self._slow.chance if self._slow is not None else 0.0
        failing = self._failing.chance if self._failing is not None else 0.0
        return _TroubledSink(sink, self._random, slow=slow, failing=failing)


class _TroubledSink:
    """A sink that is slow, or does not answer."""

    def __init__(self, sink: Sink, random: Random, *, slow: float, failing: float) -> None:
        self._sink = sink
        self._random = random
        self._slow = slow
        self._failing = failing
        self._failures = 0

    async def open(self) -> None:
        await self._sink.open()

    async def read_marker(self, task: int) -> dict[int, int]:
        await self._dawdle()
        self._fail()
        return await self._sink.read_marker(task)

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        await self._dawdle()
        self._fail(share=0.5)
        await self._sink.commit(task, rows, marker)
        self._fail(share=0.5)
        self._failures = 0

    async def release(self, task: int, *, final: bool) -> None:
        await self._sink.release(task, final=final)

    async def tick(self) -> None:
        await self._sink.tick()

    async def close(self, final: bool) -> None:
        await self._sink.close(final)

    async def _dawdle(self) -> None:
        if self._random.random() < self._slow:
            await asyncio.sleep(SLOW_S)

    def _fail(self, *, share: float = 1.0) -> None:
        if self._failures < FAILURES_IN_A_ROW_MAX and self._random.random() < self._failing * share:
            self._failures += 1
            raise Unavailable("PEN0232", "This sink does not answer, because the test wants it so.")


def _check_chance(chance: float, where: str) -> None:
    if not 0 <= chance < 1:
        raise ConfigurationError(
            "PEN0233", f"{where}(chance={chance}): give a probability from 0 up to, and without, 1."
        )
