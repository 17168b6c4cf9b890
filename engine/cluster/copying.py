"""Takes a savepoint of an application on Kafka for one of its workers, in a process of its own.

See `penstock.engine.copying`. The process goes on when its worker is killed: what it needs is in Kafka and the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from penstock.checkpoint.blobs import BucketOptions
from penstock.checkpoint.savepoint import Savepoint
from penstock.checkpoint.stores import open_store
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.saved import KafkaCheckpoints
from penstock.engine.cluster.taking import take_running
from penstock.engine.config import Config
from penstock.engine.copying import carry_out, obey
from penstock.engine.savepoints import open_place_of
from penstock.router.kafka_options import KafkaOptions


class _Order(msgspec.Struct):
    directory: str
    """For scratch files."""
    bootstrap: str
    properties: dict[str, str]
    application: str
    store: str
    store_options: BucketOptions | None
    egresses: list[str]
    place: str
    bucket: BucketOptions


async def copy_aside(
    config: Config, cluster: ClusterOptions, application: str, place: str, egresses: Collection[str]
) -> Savepoint:
    """Copy the newest checkpoint, and return what is there then. Raises what went wrong."""
    order = _Order(
        directory=str(config.directory.absolute()),
        bootstrap=cluster.kafka.bootstrap,
        properties=dict(cluster.kafka.properties),
        application=application,
        store=cluster.store,
        store_options=cluster.store_options,
        egresses=list(egresses),
        place=place,
        bucket=config.bucket,
    )
    return await carry_out("penstock.engine.cluster.copying", msgspec.json.encode(order), open_place_of(place, config))


def _copy(data: bytes) -> None:
    order = msgspec.json.decode(data, type=_Order)
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # Our errors say what it would.
    config = Config(directory=Path(order.directory), bucket=order.bucket)
    kafka = KafkaOptions(order.bootstrap, order.properties)
    store = open_store(order.store, order.store_options)
    found = KafkaCheckpoints(kafka, order.application, store, config.directory)
    blobs = open_place_of(order.place, config)
    asyncio.run(take_running(found, kafka, order.application, blobs, order.egresses))


if __name__ == "__main__":
    obey(_copy)
