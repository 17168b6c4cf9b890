"""What a worker or leader of several must know beside the configuration of an application."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.checkpoint.blobs import BucketOptions
from penstock.router.kafka_options import KafkaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Times in milliseconds."""

    kafka: KafkaOptions
    store: str
    """Where bases go: a directory that every worker reaches, or a bucket (`penstock.checkpoint.stores`)."""
    store_options: BucketOptions | None = None
    instance: str = ""
    """Of this worker: what stays the same when it is started again in its place. Empty: host and directory."""
    replicas: int | None = None
    """Of internal topics. None: as many as there are brokers, at most three."""
    workers_expected: int = 1
    settle_ms: float = 500
    session_ms: float = 10_000
    heartbeat_ms: float = 1_000
    candidate: bool = True
    """Whether this worker leads when nobody else does."""
    cache: Path | None = None
    """Where fetched bases are kept; None: in the directory of the worker."""
