"""What the two modes do about the same concern, as they are set in this comparison, and whether it is the same.

What always holds: every concern has both sides; whether they are equal follows from comparing them, and is declared by
nobody. What can't be made equal is what the comparison is about, and is told before any figure.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.compare.records import Difference, PlannedArm
from penstock.durations import format_duration
from penstock.engine.settings import Settings, load_settings
from penstock.mesh.node import LEASE_S
from penstock.mesh.options import MeshOptions


class Deployment(NamedTuple):
    """How the runtimes are started."""

    workers: int
    interval_s: float
    detection_s: float
    kafka: str


def differences_of(arms: Sequence[PlannedArm], deployment: Deployment) -> list[Difference]:
    """One for each concern, those that differ first."""
    settings = load_settings(Path(), {}, {"interval": f"{deployment.interval_s:g}s"})
    stream = _of_stream(deployment, settings) | _of_arms(arms, "stream")
    mesh = _of_mesh(deployment) | _of_arms(arms, "mesh")
    assert stream.keys() == mesh.keys(), "a concern has one side only"
    found = [
        Difference(concern, stream[concern], mesh[concern], stream[concern] == mesh[concern]) for concern in stream
    ]
    return sorted(found, key=lambda difference: difference.equal)


def _of_stream(deployment: Deployment, settings: Settings) -> dict[str, str]:
    kafka, workers = bool(deployment.kafka), deployment.workers
    keys_kept = format_duration(settings["idempotency_keep"])
    return _of_everything() | {
        "processes that carry out functions": str(workers if kafka else 1),
        "a failed process is noticed": (
            f"a crash at once, by its supervisor; silence after {deployment.detection_s:g} s"
            if kafka
            else "a crash at once, by what starts it; silence never"
        ),
        "where state lies": "in the worker, with changes in Kafka"
        if kafka
        else "in the process, with changes in its log",
        "an accepted request is durable": "when all brokers in sync have it" if kafka else "when its log is synced",
        "an answer is given": (
            f"when a checkpoint has it, synced: one every {deployment.interval_s:g} s, and sooner while an answer waits"
        ),
        "what is done again": "what was done since the last checkpoint",
        "what fails together": "all tasks",
        "what is kept from being done twice": f"by position; by key for {keys_kept}",
        "overload": "waits, in a queue that grows",
    }


def _of_mesh(deployment: Deployment) -> dict[str, str]:
    keep_ms = int(MeshOptions(app="", folder="").keep_answers_s * 1000)
    return _of_everything() | {
        "processes that carry out functions": str(deployment.workers),
        "a failed process is noticed": f"a crash at once, by its supervisor; silence after {LEASE_S:g} s",
        "where state lies": "in one SQLite file for each function, shared by all hosts",
        "an accepted request is durable": "with its own transaction, synced",
        "an answer is given": "when its own transaction is synced",
        "what is done again": "the request",
        "what fails together": "one request",
        "what is kept from being done twice": f"by version of the state; by key for {format_duration(keep_ms)}",
        "overload": "is refused, beyond the limits of the policies",
    }


def _of_everything() -> dict[str, str]:
    """Read from where both are started by the same interpreter, in the same environment."""
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "garbage collection": f"thresholds {gc.get_threshold()}",
        "CPU quota": "none: both have the whole machine, one after the other",
        "clients": "one process, which asks again under the same key where there was no answer",
    }


def _of_arms(arms: Sequence[PlannedArm], mode: str) -> dict[str, str]:
    """What the arms of a mode are told, beside what they are about."""
    own = [arm for arm in arms if arm.mode == mode]
    return {
        "flow of an order": _each(own, lambda arm: arm.flow),
        "mode of the bank": _each(own, lambda arm: arm.bank),
        "clients give keys": _each(own, lambda arm: "yes" if arm.settings["client_keys"] else "no"),
    }


def _each(arms: Sequence[PlannedArm], value: Any) -> str:
    """One value if all have the same, else each arm with its own."""
    values: Mapping[str, str] = {arm.name: value(arm) for arm in arms}
    if not values:
        return "no arm"
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name} {value}" for name, value in values.items())
