"""What any process of Penstock shows Prometheus: its figures in the text format, beginning with what runs.

What always holds: figures are read when they are asked for; a registry holds those of one process, and nothing that
other code of that process registers. Which figures there are is for each runtime to say. The one place of the client
library: its families are taken from here.
"""

from __future__ import annotations

import platform
from abc import abstractmethod
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import penstock

__all__ = [
    "CONTENT_TYPE",
    "CounterMetricFamily",
    "Exposition",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
    "Metric",
    "SummaryMetricFamily",
]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Exposition(Collector):
    """The figures of one process that runs the application `app`."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @abstractmethod
    def figures(self) -> Iterator[Metric]:
        """Those of the runtime, as they are now."""

    def exposition(self) -> bytes:
        """Everything, in the text format of Prometheus."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: registering asks for it, before there is anything to tell."""
        return []

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "penstock_build_info", "Always 1; the labels say what runs.", labels=["version", "python", "app"]
        )
        info.add_metric([penstock.__version__, platform.python_version(), self._app], 1)
        yield info
        yield from self.figures()
