"""When a host refuses requests to stay well: Envoy's admission control and adaptive concurrency.

Admission control refuses the more, the lower the share of successes of the last window is:

    p = max(0, (n - s / T) / (n + 1)) ^ (1 / aggression)        n requests, s successes, T the threshold

Adaptive concurrency bounds how many requests are under way. Now and then it lets only a few in, which shows the latency
without a queue; from then on the limit is moved by the ratio of that to the latency now, plus the square root of the
limit as room for a queue.

What always holds: what is refused here was not begun; refused requests count in neither measure.
"""

from __future__ import annotations

from collections import deque
from math import sqrt

from penstock.mesh.policies.backoff import Draw
from penstock.mesh.policies.settings import AdaptiveConcurrency, AdmissionControl


class AdmissionController:
    """Refuses by chance, by the share of successes."""

    def __init__(self, settings: AdmissionControl, draw: Draw) -> None:
        self._settings = settings
        self._draw = draw
        self._seconds: deque[tuple[int, int, int]] = deque()
        """Second, requests and successes in it, oldest first: what leaves the window leaves by the second."""
        self._requests = 0
        self._successes = 0

    def rejection_probability(self, now_s: float) -> float:
        """From 0 to 1."""
        self._forget(now_s)
        settings, requests = self._settings, self._requests
        if requests < settings.rps_threshold * settings.sampling_window_s:
            return 0.0
        excess = (requests - self._successes * 100 / settings.sr_threshold) / (requests + 1)
        probability: float = max(0.0, excess) ** (1 / settings.aggression)
        return min(probability, settings.max_rejection_probability / 100)

    def admits(self, now_s: float) -> bool:
        probability = self.rejection_probability(now_s)
        return probability == 0 or self._draw() >= probability

    def record(self, now_s: float, *, succeeded: bool) -> None:
        second, requests, successes = int(now_s), 0, 0
        if self._seconds and self._seconds[-1][0] == second:
            _, requests, successes = self._seconds.pop()
        self._seconds.append((second, requests + 1, successes + succeeded))
        self._requests += 1
        self._successes += succeeded

    def _forget(self, now_s: float) -> None:
        while self._seconds and self._seconds[0][0] < now_s - self._settings.sampling_window_s:
            _, requests, successes = self._seconds.popleft()
            self._requests -= requests
            self._successes -= successes


class ConcurrencyController:
    """Bounds how many are under way, by the latency."""

    def __init__(self, settings: AdaptiveConcurrency, now_s: float) -> None:
        self._settings = settings
        self.limit = settings.min_concurrency
        """At first, and while the latency without a queue is measured."""
        self.under_way = 0
        self._limit_before = settings.min_concurrency
        self._min_rtt_s: float | None = None
        """None while it is measured."""
        self._samples: list[float] = []
        self._update_s = now_s
        self._measure_s = now_s + settings.min_rtt_interval_s

    def enter(self, now_s: float) -> bool:
        """Whether one more may begin; if so, it counts until `leave`."""
        self._pass_time(now_s)
        if self.under_way >= self.limit:
            return False
        self.under_way += 1
        return True

    def leave(self, latency_s: float, now_s: float) -> None:
        self.under_way -= 1
        self._samples.append(latency_s)
        if self._min_rtt_s is None and len(self._samples) >= self._settings.min_rtt_request_count:
            self._min_rtt_s = self._aggregate()
            self.limit = self._limit_before
            self._update_s = now_s
            self._measure_s = now_s + self._settings.min_rtt_interval_s
        self._pass_time(now_s)

    def _pass_time(self, now_s: float) -> None:
        if self._min_rtt_s is None:
            return
        if now_s - self._update_s >= self._settings.concurrency_update_interval_s and self._samples:
            self._update_s = now_s
            self._move(self._min_rtt_s, self._aggregate())
        if now_s >= self._measure_s:
            self._limit_before, self.limit = self.limit, self._settings.min_concurrency
            self._min_rtt_s = None
            self._samples.clear()

    def _move(self, min_rtt_s: float, sampled_s: float) -> None:
        settings = self._settings
        gradient = min_rtt_s * (1 + settings.min_rtt_buffer / 100) / max(sampled_s, 1e-9)
        # Envoy's bounds of one step: halved at worst, doubled at best, whatever one sample of the clock says.
        wanted = self.limit * min(2.0, max(0.5, gradient)) + sqrt(self.limit)
        self.limit = int(min(settings.max_concurrency_limit, max(settings.min_concurrency, wanted)))

    def _aggregate(self) -> float:
        """The percentile of the samples, which start again."""
        ordered = sorted(self._samples)
        self._samples.clear()
        return ordered[min(len(ordered) - 1, int(len(ordered) * self._settings.sample_aggregate_percentile / 100))]
