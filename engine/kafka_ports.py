"""What an application reads from Kafka and writes to it, in one process.

    declarations -> partitions of each ingress, sinks of each egress -> feeds and drivers of tasks

What always holds: everything that goes exactly once to one cluster shares the transactions of its task; a cluster is
that of the application unless a declaration names another; where nobody names one, that is said before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from penstock.engine.kafka_feeds import KafkaPartitions, KafkaTaskFeed
from penstock.errors import ConfigurationError, PenstockError
from penstock.functions.app import App, Ingress
from penstock.functions.kafka import KafkaIngress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.functions.types import Codec, codec_for
from penstock.router.formats import encoder_for
from penstock.router.kafka_client import connected
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_routing import KafkaRouter
from penstock.router.kafka_sink import KafkaSinks
from penstock.router.kafka_topics import ensure_marks, topic_name
from penstock.router.schema_registry import Registries
from penstock.router.sink import Sink


class KafkaPorts:
    """See the module. `kafka` is the application's own cluster, if it has one; `resolve` finds the target of a route;
    `wake` is called when there is something to read, and `failed` gets what must end the worker."""

    def __init__(
        self,
        app: App,
        kafka: KafkaOptions | None,
        *,
        tasks: int,
        message_bytes_max: int,
        resolve: Callable[[App, Any], tuple[str, Codec[Any]]],
        wake: Callable[[], None],
        failed: Callable[[PenstockError], None],
    ) -> None:
        self._app = app
        self._kafka = kafka
        self._tasks = tasks
        self._bytes_max = message_bytes_max
        self._resolve = partial(resolve, app)
        self._wake = wake
        self._failed = failed
        self._registries = Registries()
        self._partitions: dict[str, KafkaPartitions] = {}
        self._sinks: dict[KafkaOptions, KafkaSinks] = {}

    async def open_inputs(self) -> None:
        """Connect to what is read. Raises Unavailable, and ConfigurationError for what is not there."""
        for ingress in self._app.ingresses.values():
            if isinstance(ingress.spec, KafkaIngress):
                self._partitions[ingress.name] = partitions = self._read(ingress, ingress.spec)
                await partitions.start()

    async def sink(self, egress: str, spec: KafkaEgress, history: str, generation: int) -> Sink:
        """The sink of an egress. `history` names the one that markers are of, and `generation` that of the topics they
        are in. Raises ConfigurationError for a topic that is not there: each row would become a dead letter."""
        options = cluster_of(spec, self._kafka, f"Egress {egress} writes")
        async with connected(options) as client:
            if not await client.partitions((spec.topic,)):
                raise ConfigurationError(
                    "PEN0727",
                    f"Egress {egress} writes to topic {spec.topic}, which Kafka does not have. Create it, or correct "
                    "the name in KafkaEgress.",
                )
        sinks = self._sinks.get(options)
        if sinks is None:
            if options != self._kafka:
                await ensure_marks(options, self._app.name, parallelism=self._tasks, generation=generation)
            marks = topic_name(self._app.name, "egress-marks", generation)
            sinks = KafkaSinks(options, self._app.name, marks=marks, history=history)
            self._sinks[options] = sinks
        return sinks.sink(egress, spec, encoder_for(spec.format, self._registries, topic=spec.topic))

    def feed(self, ingress: str, task: int, positions: Mapping[str, Any]) -> KafkaTaskFeed:
        """What a task reads of an ingress, from these positions on."""
        return self._partitions[ingress].feed_for(task, positions)

    def drop(self, task: int) -> None:
        """The task is not here any more. Its feeds are closed by whoever has them."""
        for partitions in self._partitions.values():
            partitions.drop(task)

    def completed(self, positions: Mapping[str, Any]) -> None:
        """A checkpoint with these positions is complete: consumer groups may be told."""
        for partitions in self._partitions.values():
            partitions.completed(positions)

    @property
    def partitions(self) -> list[KafkaPartitions]:
        """Of every ingress."""
        return list(self._partitions.values())

    async def close(self) -> None:
        for partitions in self._partitions.values():
            await partitions.close()
        await self._registries.close()

    def _read(self, ingress: Ingress, spec: KafkaIngress) -> KafkaPartitions:
        options = cluster_of(spec, self._kafka, f"Ingress {ingress.name} reads")
        router = compile_kafka_router(ingress, spec, self._resolve, self._registries, self._bytes_max)
        return KafkaPartitions(
            self._app.name, ingress, router, options, tasks=self._tasks, wake=self._wake, failed=self._failed
        )


def cluster_of(spec: KafkaIngress | KafkaEgress, own: KafkaOptions | None, does: str) -> KafkaOptions:
    """The cluster of a declaration: `own`, that of the application, if it names none. Raises ConfigurationError where
    nobody does."""
    if spec.brokers is not None:
        return KafkaOptions(spec.brokers, spec.properties)
    if own is None:
        raise ConfigurationError(
            "PEN0779",
            f"{does} Kafka, and nobody says where that is. Run with --kafka BROKERS, or give it brokers=.",
        )
    return own


def compile_kafka_router(
    ingress: Ingress,
    spec: KafkaIngress,
    resolve: Callable[[Any], tuple[str, Codec[Any]]],
    registries: Registries,
    message_bytes_max: int,
) -> KafkaRouter:
    """Where the records of an ingress go. Raises ConfigurationError for a route that makes no sense."""
    return KafkaRouter.compile(
        ingress.name,
        spec,
        to=ingress.to,
        key=ingress.key,
        router=ingress.router,
        value_codec=codec_for(spec.type) if spec.type is not None else None,
        resolve=resolve,
        registries=registries,
        message_bytes_max=message_bytes_max,
    )
