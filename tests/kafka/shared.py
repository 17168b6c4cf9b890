"""One broker for all processes of a run of pytest, whichever of them needs it first.

Whoever uses the broker holds a lock on a file, shared with the other users. The first starts a keeper, a process of
its own that belongs to none of them: it runs the broker, waits until it gets that lock for itself, which is when the
last user has ended in whatever way, and stops the broker.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kafka.broker import temporary_cluster

ROOT = Path(__file__).resolve().parent.parent.parent
_READY = "ready "


@contextmanager
def shared_broker(directory: Path) -> Iterator[str]:
    """Where the broker answers that everybody who names the same `directory` shares."""
    with (directory / "kafka.starting").open("w") as starting, (directory / "kafka.used").open("w") as used:
        fcntl.flock(starting, fcntl.LOCK_EX)
        # Waits while a keeper whose users have all gone stops its broker.
        fcntl.flock(used, fcntl.LOCK_SH)
        address = directory / "kafka.bootstrap"
        if not address.exists():
            address.write_text(_start_keeper(directory), encoding="utf-8")
        bootstrap = address.read_text(encoding="utf-8")
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield bootstrap


def _start_keeper(directory: Path) -> str:
    """Start it, and return where its broker answers."""
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as said:
        try:
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "tests.kafka.shared", str(directory)],
                {**os.environ, "PYTHONPATH": str(ROOT)},
                file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
                setsid=True,
            )
        finally:
            os.close(writer)
        told = said.read()
    assert told.startswith(_READY), f"the shared Kafka broker did not start:\n{told}"
    return told.removeprefix(_READY)


def keep(directory: Path) -> None:
    """Run a broker, say where, and stop it once nobody uses it."""
    with (directory / "kafka.used").open("w") as used, temporary_cluster() as cluster:
        print(_READY, cluster.bootstrap, sep="", end="", flush=True)  # noqa: T201  # Its starter reads it.
        # Both point to the pipe, whose end its starter waits for.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        fcntl.flock(used, fcntl.LOCK_EX)
        (directory / "kafka.bootstrap").unlink(missing_ok=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
