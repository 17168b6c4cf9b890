"""Everything that can be set, as one frozen value that was checked as a whole.

The CLI reads flags, environment and files, and builds it; nothing else looks at the environment. A relation between two
settings stands beside the check of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from penstock.checkpoint.blobs import BucketOptions
from penstock.checkpoint.retention import Retention
from penstock.errors import ConfigurationError
from penstock.ids import KEY_GROUPS_MAX
from penstock.loopback import check_listening

MEMORY_BYTES_MIN = 64 << 20
"""Below this RocksDB, the caches and the queues of one task have no sensible shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Raises ConfigurationError when its parts contradict each other. Times in milliseconds, sizes in bytes."""

    directory: Path = Path(".penstock")
    """Where state, log and checkpoints of this application lie."""
    parallelism: int = 1
    """Number of tasks: a power of two up to 128. Fixed for a data directory."""
    memory_bytes: int = 1 << 30
    """Bound for caches, write buffers and queues together. Python itself comes on top: about 60 MB."""
    interval_ms: float = 200
    """Time between checkpoints while there is work."""
    checkpoint_timeout_ms: float = 60_000
    message_bytes_max: int = 1 << 20
    idempotency_keep_ms: int = 24 * 3_600_000
    check_state: bool = False
    always_replay: bool = False
    """For tests: put a handler aside wherever it waits, so that each result has it run again from its start."""
    """Read every state back before it is stored, so that a value of a wrong type fails the message that left it."""
    host: str = "127.0.0.1"
    port: int | None = 7070
    """Of the HTTP interface; 0 chooses a free one, None serves none."""
    token: str | None = field(default=None, repr=False)
    """What HTTP clients must present as `Authorization: Bearer ...`. Required off the loopback interface."""
    body_bytes_max: int = 2 << 20
    requests_per_s_max: float = 0
    """Of HTTP requests accepted; 0 sets no bound."""
    until_done: bool = False
    """Stop when every ingress has ended and everything it caused is done."""
    from_checkpoint: int | None = None
    """Replay: continue from this checkpoint instead of the newest."""
    fresh: bool = False
    """Ignore the existing state: continue from nothing, in a new attempt."""
    stop_timeout_ms: float = 30_000
    retention: Retention = field(default_factory=Retention)
    bucket: BucketOptions = field(default_factory=BucketOptions)
    """How an object store is reached that a savepoint goes to."""

    def __post_init__(self) -> None:
        p = self.parallelism
        if not 1 <= p <= KEY_GROUPS_MAX or p & (p - 1):
            raise ConfigurationError(
                "PEN0130",
                f"parallelism = {p}: give a power of two from 1 to {KEY_GROUPS_MAX}, so key groups split evenly.",
            )
        if self.memory_bytes < MEMORY_BYTES_MIN:
            raise ConfigurationError(
                "PEN0130", f"memory = {self.memory_bytes:,} bytes is too little: give at least 64MB (--memory 64MB)."
            )
        if self.interval_ms < 1 or self.checkpoint_timeout_ms <= self.interval_ms:
            raise ConfigurationError(
                "PEN0130",
                f"interval = {self.interval_ms:g} ms must be at least 1 ms and below the checkpoint timeout of "
                f"{self.checkpoint_timeout_ms:g} ms, or no checkpoint could ever complete.",
            )
        if self.port is not None:
            check_listening(self.host, self.token)
        if self.from_checkpoint is not None and self.fresh:
            raise ConfigurationError("PEN0130", "--from N and --from none exclude one another. Keep one.")

    @property
    def cache_bytes(self) -> int:
        """Share of the decoded-value caches of all tasks."""
        return self.memory_bytes * 4 // 10

    @property
    def store_bytes(self) -> int:
        """Share of RocksDB: block cache and write buffers."""
        return self.memory_bytes * 3 // 10

    @property
    def pending_bytes(self) -> int:
        """Share of changes not yet in RocksDB, and of queues: beyond it ingresses are paused (PROTOCOL 25)."""
        return self.memory_bytes * 3 // 10
