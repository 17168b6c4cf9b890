"""From what was asked for to a plan: arms, faults and seeds, what the machine is, what differs and what may mislead."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

import penstock
from penstock.compare.arms import DETECTION_S, Arm, na_reason
from penstock.compare.differences import Deployment, differences_of
from penstock.compare.records import AppInfo, Plan, PlannedArm, PlannedFault
from penstock.compare.runner import Conditions
from penstock.compare.script import Fault, check_fits
from penstock.errors import ConfigurationError
from penstock.files import hash_file
from penstock.loading import load_app

THREATS: Final = (
    "One machine and its loopback interface: no network, and no second disk.",
    "Python and its interpreter lock flatten differences: compare an arm with its own runs without a fault.",
    "Little state: the time to restore it is hardly seen.",
    "How soon a failure is noticed is a setting, and often decides more than the philosophy.",
    "Functions with state have an owner in a mesh as well: only those without are free to run elsewhere.",
    "In a stream an answer waits for a checkpoint, which is taken early while one waits: the interval says little.",
    "Durability is not the same in both: see the differences for what is synced when.",
)


class Asked(NamedTuple):
    """What was asked for."""

    command: Sequence[str]
    app: str
    arms: Sequence[Arm]
    faults: Sequence[Fault]
    seeds: int
    seconds: float
    warmup_s: float
    rate: float
    theta: float


def plan_of(asked: Asked, conditions: Conditions) -> Plan:
    """Raises ConfigurationError for what does not fit together."""
    for fault in asked.faults:
        check_fits(fault, asked.seconds)
    names = [fault.name for fault in asked.faults]
    if len(set(names)) != len(names):
        raise ConfigurationError("PEN0904", f"Two faults have the same name: {', '.join(names)}. Give them others.")
    arms = [_under(conditions, arm.planned()) for arm in asked.arms]
    faults = [
        PlannedFault(fault.name, fault.title, [step.within(asked.seconds) for step in fault.steps])
        for fault in asked.faults
    ]
    reasons = {
        f"{arm.name}-{fault.name}": na_reason(
            arm, fault.steps, kafka=bool(conditions.kafka), broker=bool(conditions.kafka_pid)
        )
        for arm in arms
        for fault in faults
    }
    return Plan(
        command=list(asked.command),
        app=AppInfo(asked.app, sha256_of_app(asked.app, conditions.folder)),
        machine=machine(),
        arms=arms,
        faults=faults,
        seeds=list(range(asked.seeds)),
        seconds=asked.seconds,
        warmup_s=asked.warmup_s,
        rate=asked.rate,
        theta=asked.theta,
        differences=differences_of(
            arms, Deployment(conditions.workers, conditions.interval_s, DETECTION_S, conditions.kafka)
        ),
        threats=list(THREATS),
        na={name: reason for name, reason in reasons.items() if reason},
    )


def _under(conditions: Conditions, arm: PlannedArm) -> PlannedArm:
    """With what is the same for all arms, and makes another plan when it is another: brokers may move, and checks be
    added, but what is measured is not."""
    own: dict[str, Any] = {"load": conditions.load} if conditions.load else {}
    if arm.mode == "stream":
        own |= {"interval_s": conditions.interval_s, "kafka": bool(conditions.kafka)}
    if arm.mode == "mesh" or conditions.kafka:
        own["workers"] = conditions.workers
    return msgspec.structs.replace(arm, settings=arm.settings | own)


def sha256_of_app(app: str, folder: Path) -> str:
    """Of the file with the functions, which is the same one in every arm. Raises ConfigurationError."""
    module, _, _ = load_app(app, folder).name.partition(":")
    place = sys.modules[Path(module).stem if module.endswith(".py") else module].__file__
    return hash_file(Path(place)) if place is not None else ""


def machine() -> dict[str, Any]:
    """What everything was measured on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "penstock": penstock.__version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "gc_thresholds": list(gc.get_threshold()),
    }
