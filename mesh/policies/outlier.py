"""Ejects endpoints that fail more than the others do, for a while: Envoy's outlier detection.

Errors in a row are looked at with each outcome; shares of errors, over all endpoints, once in an interval. An ejection
lasts the base time multiplied by the number of ejections in a row, up to a maximum, and each interval without an error
of that kind takes one off that number.

What always holds: an ejected endpoint is back at its time and not before; one more is ejected only while
(ejected + 1) / endpoints stays within `max_ejection_percent`, with the one exception that `always_eject_one_host`
names. With the default of 10 % that means none of fewer than ten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf, sqrt

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.outcomes import Outcome
from penstock.mesh.policies.settings import OutlierDetection

_GATEWAY = (502, 503, 504)
_ROUNDING = 1e-9
"""What a mean is off by must not make all endpoints worse than their mean when they are equally good."""


class _Watched:
    """One endpoint."""

    __slots__ = ("ejected_until_s", "ejections", "gateway", "local", "requests", "returned_s", "server", "successes")

    def __init__(self) -> None:
        self.server = self.gateway = self.local = 0
        """Errors in a row."""
        self.requests = self.successes = 0
        """In this interval."""
        self.ejections = 0
        """In a row: what the ejection time is multiplied by."""
        self.ejected_until_s: float | None = None
        self.returned_s = -inf
        """When the last ejection was over."""


def ejection_s(settings: OutlierDetection, ejections: int) -> float:
    """How long the ejection number `ejections` in a row lasts."""
    longest = max(settings.base_ejection_time_s, settings.max_ejection_time_s)
    return min(settings.base_ejection_time_s * ejections, longest)


def fits(settings: OutlierDetection, ejected: int, endpoints: int) -> bool:
    """Whether one more may be ejected, by the numbers."""
    if settings.always_eject_one_host and ejected == 0:
        return True
    return (ejected + 1) * 100 <= settings.max_ejection_percent * endpoints


class OutlierDetector:
    """Watches the endpoints of one function, as one calling process sees them."""

    def __init__(self, settings: OutlierDetection, draw: Draw, now_s: float) -> None:
        self._settings = settings
        self._draw = draw
        self._watched: dict[str, _Watched] = {}
        self._interval_since_s = now_s
        self.ejections_total = 0
        self.overflows = 0
        """Ejections that the maximum has prevented."""

    def ejected(self, now_s: float) -> Collection[str]:
        """The endpoints that should not be used at this time."""
        self._pass_time(now_s)
        return [name for name, watched in self._watched.items() if watched.ejected_until_s is not None]

    def record(self, name: str, outcome: Outcome, now_s: float) -> None:
        """What came of one attempt at an endpoint."""
        self._pass_time(now_s)
        watched = self._watched.get(name)
        if watched is None:
            return  # It was gone before it answered.
        watched.requests += 1
        watched.successes += outcome.succeeded
        self._count_in_a_row(watched, outcome)
        if watched.ejected_until_s is None and self._has_too_many(watched):
            watched.server = watched.gateway = watched.local = 0
            self._eject(watched, now_s)

    def watch(self, names: Collection[str]) -> None:
        """These are all endpoints there are now. Those that are gone are forgotten."""
        if self._watched.keys() != set(names):
            self._watched = {name: self._watched.get(name) or _Watched() for name in names}

    # ---- errors in a row

    def _count_in_a_row(self, watched: _Watched, outcome: Outcome) -> None:
        is_local = outcome.failure is not None and not outcome.status
        if is_local and self._settings.split_external_local_origin_errors:
            watched.local += 1
            return
        watched.local = 0
        watched.server = 0 if outcome.succeeded else watched.server + 1
        watched.gateway = watched.gateway + 1 if is_local or outcome.status in _GATEWAY else 0

    def _has_too_many(self, watched: _Watched) -> bool:
        settings = self._settings
        counted = (
            (watched.server, settings.consecutive_5xx),
            (watched.gateway, settings.consecutive_gateway_failure),
            (watched.local, settings.consecutive_local_origin_failure),
        )
        return any(limit and count >= limit for count, limit in counted)

    # ---- ejections

    def _eject(self, watched: _Watched, now_s: float) -> None:
        ejected = sum(other.ejected_until_s is not None for other in self._watched.values())
        if not fits(self._settings, ejected, len(self._watched)):
            self.overflows += 1
            return
        watched.ejections += 1
        jitter_s = self._settings.max_ejection_time_jitter_s * self._draw()
        watched.ejected_until_s = now_s + ejection_s(self._settings, watched.ejections) + jitter_s
        self.ejections_total += 1

    def _pass_time(self, now_s: float) -> None:
        for watched in self._watched.values():
            if watched.ejected_until_s is not None and now_s >= watched.ejected_until_s:
                watched.returned_s, watched.ejected_until_s = watched.ejected_until_s, None
                watched.server = watched.gateway = watched.local = 0
        intervals = int((now_s - self._interval_since_s) / self._settings.interval_s)
        if intervals > 0:
            self._interval_since_s += intervals * self._settings.interval_s
            self._end_interval(intervals, now_s)

    # ---- once in an interval

    def _end_interval(self, intervals: int, now_s: float) -> None:
        """`intervals` are over, and in all but the first of them nothing was asked of this function."""
        for watched in self._watched.values():
            if watched.ejected_until_s is None:
                healthy_s = max(0.0, self._interval_since_s - watched.returned_s)
                healthy = min(float(intervals), healthy_s // self._settings.interval_s)
                watched.ejections = max(0, watched.ejections - int(healthy))
        self._eject_below_the_others(now_s)
        self._eject_above_the_threshold(now_s)
        for watched in self._watched.values():
            watched.requests = watched.successes = 0

    def _eject_below_the_others(self, now_s: float) -> None:
        settings = self._settings
        judged = self._with_volume(settings.success_rate_request_volume)
        if len(judged) < max(1, settings.success_rate_minimum_hosts):
            return
        rates = [_success_rate(watched) for watched in judged]
        mean = sum(rates) / len(rates)
        deviation = sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
        least = mean - deviation * settings.success_rate_stdev_factor / 1000 - _ROUNDING
        self._eject_if(judged, settings.enforcing_success_rate, now_s, lambda rate: rate < least)

    def _eject_above_the_threshold(self, now_s: float) -> None:
        settings = self._settings
        judged = self._with_volume(settings.failure_percentage_request_volume)
        if len(judged) >= max(1, settings.failure_percentage_minimum_hosts):
            most = settings.failure_percentage_threshold
            self._eject_if(judged, settings.enforcing_failure_percentage, now_s, lambda rate: 100 - 100 * rate >= most)

    def _with_volume(self, volume: int) -> list[_Watched]:
        return [
            watched
            for watched in self._watched.values()
            if watched.ejected_until_s is None and watched.requests >= max(1, volume)
        ]

    def _eject_if(self, judged: list[_Watched], enforcing: int, now_s: float, is_bad: Callable[[float], bool]) -> None:
        for watched in judged:
            # With 0 nothing is drawn, so that a policy that is off changes no other one's luck.
            if enforcing and is_bad(_success_rate(watched)) and self._draw() * 100 < enforcing:
                self._eject(watched, now_s)


def _success_rate(watched: _Watched) -> float:
    return watched.successes / watched.requests
