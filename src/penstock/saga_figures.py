"""The metrics of sagas, which are the same in either runtime: how many are under way, how far, and how they ended.

Where the records of those under way are found is for each runtime to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from penstock.exposition import CounterMetricFamily, GaugeMetricFamily, Metric
from penstock.functions.function import Function
from penstock.functions.saga import SagaFunction
from penstock.functions.saga_record import SagaRecord
from penstock.functions.saga_tally import standing

OUTCOMES = ("completed", "compensated")


def sagas_of(functions: Mapping[str, Function[object, object]]) -> list[SagaFunction]:
    """Those of an application."""
    return [function for function in functions.values() if isinstance(function, SagaFunction)]


def saga_figures(sagas: Iterable[tuple[SagaFunction, Iterable[SagaRecord]]], now_ms: int) -> Iterator[Metric]:
    """Of each saga, with the records of those that are under way here."""
    under_way = GaugeMetricFamily(
        "penstock_sagas",
        "Sagas under way: running (they can be undone), finishing (past the pivot) or compensating.",
        labels=["saga", "phase"],
    )
    stuck = GaugeMetricFamily(
        "penstock_sagas_stuck", "Sagas under way that have raised an alert, and not got over it.", labels=["saga"]
    )
    oldest = GaugeMetricFamily(
        "penstock_saga_oldest_seconds", "Since the oldest saga under way began; 0 for none.", labels=["saga"]
    )
    ended = CounterMetricFamily("penstock_sagas_ended_total", "Sagas that have ended.", labels=["saga", "outcome"])
    retries = CounterMetricFamily(
        "penstock_saga_retries_total", "What sagas had to do again until it succeeds.", labels=["saga"]
    )
    for saga, records in sagas:
        found = standing(records, now_ms)
        for phase in ("running", "finishing", "compensating"):
            under_way.add_metric([saga.typename, phase], getattr(found, phase))
        stuck.add_metric([saga.typename], found.stuck)
        oldest.add_metric([saga.typename], found.oldest_s)
        for outcome in OUTCOMES:
            ended.add_metric([saga.typename, outcome], saga.tally.ended[outcome])
        retries.add_metric([saga.typename], saga.tally.retries)
    yield from (under_way, stuck, oldest, ended, retries)
