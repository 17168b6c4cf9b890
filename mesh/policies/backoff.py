"""How long to wait before retry N, by Envoy's back-off or by those of Dapr.

    Envoy         uniform in [0, (2^N - 1) * base), and never beyond the cap: below 25, 75, 175, 250, 250 ... ms
    constant      the base, each time
    exponential   base * multiplier^(N-1), capped, plus or minus half of it by chance

A `Retry-After` of the server takes the place of all that: by chance between that and one and a half times that, so that
those who were told the same moment don't come back in the same moment.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.mesh.policies.settings import Backoff

Draw = Callable[[], float]
"""A number by chance, from 0 up to 1."""

_DOUBLINGS_MAX = 60
"""Beyond it every cap is reached, and the power would only grow."""


def backoff_s(settings: Backoff, retry: int, draw: Draw) -> float:
    """The wait before retry number `retry`, counted from 1."""
    base, cap = settings.base_interval_s, settings.max_interval_s
    if settings.constant:
        return base
    if settings.multiplier:
        wait: float = min(cap, base * settings.multiplier ** min(retry - 1, _DOUBLINGS_MAX))
        return wait * (0.5 + draw())
    ceiling: float = min(cap, base * (2 ** min(retry, _DOUBLINGS_MAX) - 1))
    return ceiling * draw()


def told_s(retry_after_s: float, draw: Draw) -> float:
    """The wait after a server has named one."""
    return retry_after_s * (1 + draw() / 2)
