"""Faults on purpose. That the two kinds are independent is among the conformance tests."""

from __future__ import annotations

import pytest

from penstock.mesh.policies.faults import Injected, draw_fault
from penstock.mesh.policies.settings import Abort, Delay, Fault


@pytest.mark.parametrize(
    ("fault", "drawn", "injected"),
    [
        (None, 0.0, Injected()),
        (Fault(), 0.0, Injected()),
        (Fault(Delay(0, 0.2), Abort(0, 503)), 0.0, Injected()),
        (Fault(Delay(100, 0.2)), 0.999, Injected(0.2)),
        (Fault(abort=Abort(100, 503)), 0.999, Injected(0.0, 503)),
        (Fault(Delay(10, 0.2), Abort(20, 503)), 0.099, Injected(0.2, 503)),
        (Fault(Delay(10, 0.2), Abort(20, 503)), 0.1, Injected(0.0, 503)),
        (Fault(Delay(10, 0.2), Abort(20, 503)), 0.2, Injected()),
    ],
)
def test_a_share_of_the_requests_meets_a_fault(fault: Fault | None, drawn: float, injected: Injected) -> None:
    assert draw_fault(fault, lambda: drawn) == injected
