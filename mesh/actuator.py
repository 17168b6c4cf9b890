"""Says how a process of the mesh is: whether to restart it, whether to send it requests, and what it is.

    GET /actuator/health/liveness     {"status": "UP" | "INIT" | "DOWN", "components": {NAME: {"status", "details"}}}
    GET /actuator/health/readiness    the same
    GET /actuator/info                {"app": {"name", "version"}, ...}

What always holds: a group is DOWN when one of its components is, else INIT when one is, else UP; only UP is 200, the
others 503. A process whose readiness is not UP goes on living: only liveness asks for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple


class Status(Enum):
    INIT = "INIT"
    """Not yet: wait."""
    UP = "UP"
    DOWN = "DOWN"
    """Not now."""


class Health(NamedTuple):
    """Of one component."""

    status: Status
    details: Mapping[str, Any] = {}


Indicator = Callable[[], Health]


class Actuator:
    """See the module."""

    def __init__(
        self,
        *,
        liveness: Mapping[str, Indicator],
        readiness: Mapping[str, Indicator],
        info: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._groups = {"liveness": liveness, "readiness": readiness}
        self._info = info

    def health(self, group: str) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer."""
        found = {name: indicator() for name, indicator in self._groups[group].items()}
        status = aggregated([health.status for health in found.values()])
        components = {
            name: {"status": health.status.value, "details": dict(health.details)} for name, health in found.items()
        }
        return 200 if status is Status.UP else 503, {"status": status.value, "components": components}

    def info(self) -> tuple[int, dict[str, Any]]:
        return 200, dict(self._info())


def aggregated(statuses: list[Status]) -> Status:
    """Of a group with components of these."""
    for status in (Status.DOWN, Status.INIT):
        if status in statuses:
            return status
    return Status.UP
