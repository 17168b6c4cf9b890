"""Which arms and faults of a comparison a question is about.

Faults are found by what they do, and not by their names, so that scripts of one's own answer the same questions.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.compare.records import HARMLESS, PlannedArm
from penstock.compare.summary import Cell, Summary


def protected(summary: Summary, mode: str) -> list[PlannedArm]:
    """The arms of a mode that are meant to be right: no controls."""
    return [arm for arm in summary.arms(mode) if not is_control(arm)]


def is_control(arm: PlannedArm) -> bool:
    """Arms that leave out a protection on purpose, to show that the harm it prevents would be seen."""
    return arm.title.startswith("control")


def leading(summary: Summary, mode: str) -> str:
    """The arm that stands for its mode where one has to: the first of these that was measured. Empty if none was."""
    order = {"stream": ("S2", "S1", "S3"), "mesh": ("M3", "M2", "M6", "M4", "M5")}[mode]
    measured = [arm.name for arm in protected(summary, mode)]
    return next((arm for arm in order if arm in measured), measured[0] if measured else "")


def faults_with(summary: Summary, what: str, where: str = "") -> list[str]:
    """The faults of which a step does this, in the order of the plan."""
    return [
        fault.name
        for fault in summary.plan.faults
        if any(step.get("what") == what and where in ("", step.get("where")) for step in fault.steps)
    ]


def cells_with(summary: Summary, arms: Iterable[str], faults: Iterable[str]) -> list[Cell]:
    wanted = list(dict.fromkeys(faults))  # A script that kills and crashes is found twice.
    cells = (summary.cell(arm, fault) for arm in arms for fault in wanted)
    return [cell for cell in cells if cell]


def harmless(summary: Summary, arms: Iterable[str], faults: Iterable[str]) -> int:
    """Runs of controls among these that showed no harm. They prove nothing of other arms, and are in no cell; but of a
    claim that there is harm they are the refutation, so a rule must not pass over them."""
    of_arms, under = set(arms), set(faults)
    return sum(
        run.arm in of_arms and run.fault in under and run.status == "invalid" and run.reason.startswith(HARMLESS)
        for run in summary.runs
    )


def names(arms: Iterable[PlannedArm]) -> list[str]:
    return [arm.name for arm in arms]
