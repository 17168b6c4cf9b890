"""What a worker or leader of several must know beside the configuration of an application."""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from penstock.checkpoint.blobs import BucketOptions
from penstock.durations import format_duration
from penstock.engine.settings import SPECS, Settings
from penstock.errors import ConfigurationError
from penstock.router.egress import instance_of as history_of
from penstock.router.kafka_options import KafkaOptions

SESSION_MS_MIN = 1_000
HEARTBEAT_MS = 1_000
HEARTBEATS_MIN = 5
"""In the time after which a worker is taken for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Times in milliseconds."""

    kafka: KafkaOptions
    store: str
    """Where bases go: a directory that every worker reaches, or a bucket (`penstock.checkpoint.stores`)."""
    store_options: BucketOptions | None = None
    instance: str = ""
    """Of this worker: what stays the same when it is started again in its place. Empty: host and directory."""
    name: str = ""
    """Of this worker, unique for ever: its instance, `#`, and anything. Empty: chosen at random."""
    replicas: int | None = None
    """Of internal topics. None: as many as there are brokers, at most three."""
    workers_expected: int = 1
    settle_ms: float = 500
    session_ms: float = 10_000
    heartbeat_ms: float = HEARTBEAT_MS
    candidate: bool = True
    """Whether this worker leads when nobody else does."""
    cache: Path | None = None
    """Where fetched bases are kept; None: in the directory of the worker."""


def instance_of(directory: Path) -> str:
    """What a worker on this directory is called, whichever process it is. By host and path people find it; machines
    that have both in common are told apart by what the directory holds."""
    return f"{socket.gethostname()}-{history_of(directory)[:8]}{directory.absolute()}"


def new_name(instance: str) -> str:
    """Of a process that takes the place of `instance`: no other was ever called so."""
    return f"{instance}#{uuid.uuid4().hex[:8]}"


def cluster_options(settings: Settings, directory: Path, *, name: str = "", candidate: bool = True) -> ClusterOptions:
    """What the settings say. `directory` is that of all workers here; `name` is that of the worker, for one that is
    watched. Raises ConfigurationError."""
    session_ms = settings["session_timeout"]
    if session_ms < SESSION_MS_MIN:
        raise ConfigurationError(
            "PEN0774",
            f"session_timeout = {format_duration(session_ms)} is too short for a worker to be heard of in between. "
            f"Give at least {format_duration(SESSION_MS_MIN)}.",
        )
    return ClusterOptions(
        kafka=settings.kafka(),
        store=settings["store"] or str(directory / "store"),
        store_options=_bucket_options(settings),
        name=name,
        replicas=settings["replicas"] or None,
        workers_expected=settings["workers"] or 1,
        session_ms=session_ms,
        heartbeat_ms=min(HEARTBEAT_MS, session_ms / HEARTBEATS_MIN),
        candidate=candidate,
    )


def _bucket_options(settings: Settings) -> BucketOptions | None:
    """None if nothing was said: a directory takes no options."""
    if all(settings.origin(spec.name) == "default" for spec in SPECS if spec.name.startswith("store_")):
        return None
    return settings.bucket()
