"""Faults on purpose: some requests are held up, some are refused. The two are drawn independently.

What always holds: without a percentage nothing happens; a request that is both held up and refused is refused after the
delay, as by a host that is slow to fail.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.settings import Fault


class Injected(NamedTuple):
    """What is done to one request."""

    delay_s: float = 0.0
    abort_status: int = 0
    """0 is none."""


def draw_fault(fault: Fault | None, draw: Draw) -> Injected:
    """What `fault` does to one request, by chance."""
    if fault is None:
        return Injected()
    delay, abort = fault.delay, fault.abort
    return Injected(
        delay.fixed_delay_s if delay is not None and draw() * 100 < delay.percentage else 0.0,
        abort.http_status if abort is not None and draw() * 100 < abort.percentage else 0,
    )
