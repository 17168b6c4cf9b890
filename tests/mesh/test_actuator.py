"""INIT, UP and DOWN: what a group is follows from its components."""

from __future__ import annotations

from functools import partial

import pytest

from penstock.mesh.actuator import Actuator, Health, Indicator, Status, aggregated

INIT, UP, DOWN = Status.INIT, Status.UP, Status.DOWN


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [([], UP), ([UP, UP], UP), ([UP, INIT], INIT), ([INIT, DOWN, UP], DOWN)],
)
def test_the_worst_component_decides(statuses: list[Status], whole: Status) -> None:
    assert aggregated(statuses) is whole


def test_only_up_is_200_and_components_are_told() -> None:
    health = {"store": Health(UP), "registry": Health(INIT, {"endpoints": 0})}
    actuator = Actuator(liveness={"host": lambda: Health(UP)}, readiness=_indicators(health), info=lambda: {"app": 1})

    assert actuator.health("liveness") == (
        200,
        {"status": "UP", "components": {"host": {"status": "UP", "details": {}}}},
    )
    status, body = actuator.health("readiness")
    assert (status, body["status"]) == (503, "INIT")
    assert body["components"]["registry"] == {"status": "INIT", "details": {"endpoints": 0}}
    health["registry"] = Health(UP)
    assert actuator.health("readiness")[0] == 200
    assert actuator.info() == (200, {"app": 1})


def _indicators(health: dict[str, Health]) -> dict[str, Indicator]:
    return {name: partial(health.__getitem__, name) for name in health}
