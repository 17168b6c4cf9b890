"""Makes of a schedule that failed a short one that fails in the same way, and writes it down as a test.

Each step has its random numbers to itself, so leaving some out leaves the others what they are: first as many faults as
possible go, then everything else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from tests.simulation.invariants import Violation
from tests.simulation.schedules import Kind

TRIES_MAX = 600
"""Schedules played for it: a few seconds."""

Play = Callable[[Sequence[int]], tuple[str, list[int]]]
"""Plays some of the steps. Returns the name of what fails, empty for nothing, and which steps were faults."""


def minimise(seed: int, kind: Kind[Any], mix: Any = None) -> tuple[list[int], str]:
    """The steps that are needed for the failure of `seed`, and what it says then."""
    said = ""
    mix = mix or kind.everything

    def play(steps: Sequence[int]) -> tuple[str, list[int]]:
        nonlocal said
        failure, faults = _play(seed, kind, mix, steps)
        if failure is not None:
            said = f"{type(failure).__name__}: {failure}"
        return _name(failure), faults

    steps = list(range(mix.steps))
    wanted, faults = play(steps)
    assert wanted, f"seed {seed} fails no more"
    tries = _Tries(play, wanted)
    steps = tries.leave_out(steps, faults)
    steps = tries.leave_out(steps, steps)
    play(steps)
    return steps, said


def as_test(seed: int, kind: Kind[Any], steps: Sequence[int], said: str) -> str:
    """The same as a test, ready to be put into `tests/simulation`."""
    first_line = said.replace("\n", " ")[:90]
    listed = textwrap.fill(
        " ".join(f"{step}," for step in steps), 110, initial_indent=" " * 8, subsequent_indent=" " * 8
    )
    played = f"{kind.world.__name__}({seed}, {kind.mix_name}, only=steps).run()"
    body = f"    {played}" if kind.staged is nullcontext else f"    with staged():\n        {played}"
    return (
        f"def test_seed_{seed}_of_{kind.name}() -> None:\n"
        f"    # Fails with {first_line}\n"
        f"    steps = (\n{listed}\n    )\n"
        f"{body}\n"
    )


class _Tries:
    """Leaves out what is not needed for the failure `wanted`."""

    def __init__(self, play: Play, wanted: str) -> None:
        self._play = play
        self._wanted = wanted
        self._left = TRIES_MAX

    def leave_out(self, steps: list[int], candidates: Sequence[int]) -> list[int]:
        """`steps` without as many of `candidates` as possible: in halves, quarters, and so on, the last ones first."""
        size = max(1, len(candidates) // 2)
        while True:
            remaining = [step for step in candidates if step in set(steps)]
            for start in range(len(remaining) - len(remaining) % size, -1, -size):
                dropped = set(remaining[start : start + size])
                shorter = [step for step in steps if step not in dropped]
                if dropped and self._fails(shorter):
                    steps = shorter
            if size == 1 or not self._left:
                return steps
            size //= 2

    def _fails(self, steps: list[int]) -> bool:
        if not self._left:
            return False
        self._left -= 1
        return self._play(steps)[0] == self._wanted


def _play(seed: int, kind: Kind[Any], mix: Any, steps: Sequence[int]) -> tuple[Exception | None, list[int]]:
    with kind.staged():
        world = kind.world(seed, mix, only=steps)
        failure = _run(world.run)
    faulty = [fault for entry in world.trace if (fault := kind.is_fault(entry)) is not None]
    return failure, [at for at, fault in zip(steps, faulty, strict=False) if fault]


def _run(run: Callable[[], object]) -> Exception | None:
    try:
        run()
    except Exception as error:  # noqa: BLE001  # Whatever it is, it is what is to be seen again.
        return error
    return None


def _name(failure: Exception | None) -> str:
    if failure is None:
        return ""
    return failure.invariant if isinstance(failure, Violation) else type(failure).__name__
