"""All runs of a comparison: in which order, which are done already, how long it takes still.

What always holds: a directory has one plan, and a command with another one is refused there; a run that has no run.json
is done again from nothing; the order of the arms under a fault is drawn anew for each seed, so that no arm is always
the one that finds the machine warm.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from penstock.compare.records import Comparison, Plan, PlannedArm, PlannedFault, Run, run_name, write_json
from penstock.compare.runner import LEAD_S, Conditions, Runner
from penstock.errors import Refused
from penstock.files import storage_errors

AROUND_S = 12.0
"""What a run takes beside its load, until it is known better: to start, to come to rest, to be judged."""


class Due(NamedTuple):
    arm: PlannedArm
    fault: PlannedFault
    seed: int

    @property
    def name(self) -> str:
        return run_name(self.arm.name, self.fault.name, self.seed)


def order_of(plan: Plan) -> list[Due]:
    """Every run, seed by seed: what is there when it is interrupted is a smaller comparison of all arms."""
    found: list[Due] = []
    for seed in plan.seeds:
        for fault in plan.faults:
            arms = list(plan.arms)
            random.Random(f"{seed}/{fault.name}").shuffle(arms)
            found += [Due(arm, fault, seed) for arm in arms]
    return found


def opened(directory: Path, plan: Plan) -> Comparison:
    """The directory with this plan, new or gone on with. Raises Refused when it has another one.

    When it was made and by which way of writing the command makes no other plan of it; what it was measured on does.
    """
    path = directory / "plan.json"
    if path.is_file():
        found = Comparison(directory)
        different = [
            name
            for name in Plan.__struct_fields__
            if name not in ("command", "differences") and getattr(found.plan, name) != getattr(plan, name)
        ]
        if different:
            raise Refused(
                "PEN0910",
                f"{directory} has the runs of another plan: it differs in {', '.join(different)}. Repeat the command "
                "that began it, or give another --out.",
            )
        return found
    with storage_errors(directory, "beginning a comparison"):
        directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Refused("PEN0910", f"{directory} is not empty, and has no plan. Give another --out.")
    write_json(path, plan)
    return Comparison(directory)


def forget_unusable(comparison: Comparison) -> None:
    """Have the runs missing that failed or prove nothing."""
    for run, directory in list(comparison.done()):
        if run.status in ("failed", "invalid"):
            (directory.directory / "run.json").unlink()


class Clock:
    """How long the runs that are left will take: as long as those of this time, run by run."""

    def __init__(self, plan: Plan, left: int) -> None:
        self.left = left
        self._expected_s = LEAD_S + plan.warmup_s + plan.seconds + AROUND_S
        self._took_s: list[float] = []

    def ran(self, seconds: float) -> None:
        self.left -= 1
        self._took_s.append(seconds)

    @property
    def left_s(self) -> float:
        each_s = sum(self._took_s) / len(self._took_s) if self._took_s else self._expected_s
        return each_s * self.left


async def carry_out(
    comparison: Comparison, conditions: Conditions, say: Callable[[Due, Run | None, Clock], None]
) -> list[Run]:
    """Do the runs that are missing. `say` is told of each one before it begins, and with its result when it is over."""
    missing = set(comparison.missing())
    due = [each for each in order_of(comparison.plan) if each.name in missing]
    clock = Clock(comparison.plan, sum(f"{each.arm.name}-{each.fault.name}" not in comparison.plan.na for each in due))
    runner = Runner(comparison.plan, comparison.plan_sha256, conditions)
    done: list[Run] = []
    for each in due:
        say(each, None, clock)
        began_s = time.monotonic()
        run = await runner.run(comparison.run_directory(each.name).directory, each.arm, each.fault, each.seed)
        if run.status != "na":
            clock.ran(time.monotonic() - began_s)
        say(each, run, clock)
        done.append(run)
    return done
