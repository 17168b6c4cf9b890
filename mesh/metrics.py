"""What Prometheus may ask of a process of the mesh.

What always holds: figures are read when they are asked for, from counters that are kept anyway; labels are bounded
(functions, statuses), and never an id. The effective success rate is what callers saw; the actual one is what hosts
did, before anything was tried again. Envoy's names stay where they fit, such as `upstream_rq_retry`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from penstock.exposition import CounterMetricFamily, Exposition, GaugeMetricFamily, HistogramMetricFamily, Metric
from penstock.functions.saga import SagaFunction
from penstock.mesh.background import Background
from penstock.mesh.edges import BUCKETS_S, Edge, Edges
from penstock.mesh.policies.live import Policies
from penstock.saga_figures import saga_figures

if TYPE_CHECKING:
    from penstock.mesh.host import Host  # A sidecar has none, and should not hold what comes with one.

_EDGE: Final = ["source", "destination"]
_UPSTREAM: Final = (
    (CounterMetricFamily, "upstream_rq_retry_total", "Retries."),
    (CounterMetricFamily, "upstream_rq_retry_success_total", "Calls that a retry has saved."),
    (CounterMetricFamily, "upstream_rq_retry_overflow_total", "Retries that the budget did not allow."),
    (CounterMetricFamily, "upstream_rq_pending_overflow_total", "Calls refused because too many waited."),
    (CounterMetricFamily, "outlier_detection_ejections_enforced_total", "Endpoints that were ejected."),
    (GaugeMetricFamily, "upstream_rq_active", "Attempts under way."),
    (GaugeMetricFamily, "upstream_rq_pending", "Calls that wait for a slot."),
    (GaugeMetricFamily, "outlier_detection_ejections_active", "Endpoints that are ejected."),
    (GaugeMetricFamily, "breakers_open", "Breakers that let nothing through."),
)
_OUTBOX: Final = (
    (GaugeMetricFamily, "messages_held", "Messages that this process delivers, or is about to."),
    (CounterMetricFamily, "messages_delivered_total", "Messages that were taken."),
    (CounterMetricFamily, "messages_failed_total", "Deliveries of messages that are tried again."),
    (CounterMetricFamily, "messages_buried_total", "Messages that became dead letters."),
    (CounterMetricFamily, "messages_adopted_total", "Messages taken over from hosts that are gone."),
)
_FIELDS: Final = {
    "upstream_rq_retry_total": "retry",
    "upstream_rq_retry_success_total": "retry_success",
    "upstream_rq_retry_overflow_total": "retry_overflow",
    "upstream_rq_pending_overflow_total": "pending_overflow",
    "outlier_detection_ejections_enforced_total": "ejections_total",
    "upstream_rq_active": "active",
    "upstream_rq_pending": "pending",
    "outlier_detection_ejections_active": "ejections_active",
    "breakers_open": "breakers_open",
}
"""The fields of `TargetStatistics` they are."""


class MeshMetrics(Exposition):
    """Of one process: its calls, its host with the work beside that, if it has one, and the sagas it carries out."""

    def __init__(
        self,
        app: str,
        edges: Edges,
        policies: Policies,
        host: Host | None = None,
        background: Background | None = None,
        sagas: Sequence[SagaFunction] = (),
    ) -> None:
        super().__init__(app)
        self._edges = edges
        self._policies = policies
        self._host = host
        self._background = background
        self._sagas = sagas

    def figures(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._upstream()
        if self._host is not None:
            yield from self._served(self._host)
        if self._background is not None:
            yield from _moved(self._background)
        if self._sagas:
            under_way = ((saga, saga.tally.records()) for saga in self._sagas)
            yield from saga_figures(under_way, time.time_ns() // 1_000_000)

    def _calls(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "penstock_mesh_requests_total",
            "Calls, each once, however often it was tried.",
            labels=[*_EDGE, "response_code"],
        )
        attempts = CounterMetricFamily(
            "penstock_mesh_attempts_total", "Attempts of calls, by status or failure.", labels=[*_EDGE, "outcome"]
        )
        rates = GaugeMetricFamily(
            "penstock_mesh_success_ratio",
            "Effective: of calls, as callers saw them. Actual: of attempts, as hosts answered them.",
            labels=[*_EDGE, "kind"],
        )
        durations = HistogramMetricFamily(
            "penstock_mesh_request_duration_seconds", "From the call to its answer, retries included.", labels=_EDGE
        )
        for name, edge in self._edges.known.items():
            for status, count in edge.calls.items():
                requests.add_metric([*name, str(status)], count)
            for outcome, count in edge.attempts.items():
                attempts.add_metric([*name, outcome], count)
            rates.add_metric([*name, "effective"], edge.effective_success_rate)
            rates.add_metric([*name, "actual"], edge.actual_success_rate)
            durations.add_metric([*name], _buckets(edge), edge.seconds)
        yield from (requests, attempts, rates, durations)

    def _upstream(self) -> Iterator[Metric]:
        """What policies have counted."""
        found = self._policies.statistics(time.monotonic())
        for kind, name, about in _UPSTREAM:
            metric = kind(f"penstock_mesh_{name}", about, labels=["destination"])
            for function, statistics in found.items():
                metric.add_metric([function], getattr(statistics, _FIELDS[name]))
            yield metric

    def _served(self, host: Host) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "penstock_mesh_host_requests_active", "Requests that were begun and have no answer.", value=host.active
        )
        yield GaugeMetricFamily(
            "penstock_mesh_host_requests_waiting", "Requests that wait for their turn.", value=host.waiting
        )
        refused = CounterMetricFamily(
            "penstock_mesh_host_refused_total",
            "Requests that policies refused.",
            labels=["destination", "response_code"],
        )
        for function, counts in self._policies.refused().items():
            for status, count in counts.items():
                refused.add_metric([function, str(status)], count)
        yield refused


def _moved(background: Background) -> Iterator[Metric]:
    """What was delivered, written and read."""
    found = background.outbox.statistics._asdict()
    for kind, name, about in _OUTBOX:
        field = name.removeprefix("messages_").removesuffix("_total")
        yield kind(f"penstock_mesh_{name}", about, value=found[field])
    rows = CounterMetricFamily("penstock_mesh_egress_rows_total", "Rows written by this process.", labels=["egress"])
    for writer in background.writers:
        rows.add_metric([writer.name], writer.rows)
    records = CounterMetricFamily(
        "penstock_mesh_ingress_records_total", "Records read by this process.", labels=["ingress"]
    )
    for feed in background.feeds:
        records.add_metric([feed.name], feed.records)
    yield from (rows, records)


def _buckets(edge: Edge) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus counts."""
    total, found = 0, []
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), edge.buckets, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
