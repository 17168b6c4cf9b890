"""The application of the proof, whose processes kill themselves at the moments that matter most.

A chance kill seldom falls between a transaction and the fence behind it, or between an acknowledgement and the next
line. Here each such moment is a point, and whoever comes past one dies there once in a while, or stands still for
longer than a session. The points change nothing else: no product code knows of them.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from penstock.engine.build import Assembly
from penstock.engine.cluster.leading import LeaderService
from penstock.engine.cluster.link import LeaderLink
from penstock.engine.cluster.replies import Replies
from penstock.engine.cluster.snapshots import Snapshots
from penstock.engine.cluster.tasks import Tasks
from penstock.router.kafka_sink import KafkaSink
from penstock.router.kafka_transactions import KafkaTransactions
from penstock.router.kafka_writer import KafkaWriter
from tests.kafka.proof import brisk

app = brisk.app

POINTS: tuple[tuple[type, str], ...] = (
    (KafkaTransactions, "fence"),
    (KafkaTransactions, "commit"),
    (KafkaTransactions, "_send_all"),
    (KafkaWriter, "flush"),
    (KafkaSink, "read_marker"),
    (Replies, "commit"),
    (Snapshots, "cut"),
    (Snapshots, "_append"),
    (LeaderLink, "report"),
    (LeaderLink, "actions"),
    (Tasks, "_place"),
    (Tasks, "_restore"),
    (Tasks, "_remove"),
    (Tasks, "change"),
    (Assembly, "resume"),
    (LeaderService, "_begin"),
    (LeaderService, "_fence"),
    (LeaderService, "_tell"),
)
"""Each counts twice: before it is called, and when it has returned."""
RATE = float(os.environ.get("PROOF_CRASH_RATE", "0.03"))
"""How often a second a process may meet its end, on the average, whatever it does most."""
STILL_S = float(os.environ.get("PROOF_STILL_S", "0"))
"""How long a process stands still that is not killed. 0 has all of them killed."""
RARE_S = 30.0
"""A point that nobody has come past for so long is as bad as any."""
CALM_S = 1.0
"""Before the first: something must have begun."""

_choose = random.Random(os.getpid() ^ time.time_ns())
_began = time.monotonic()
_passed: dict[str, float] = {}


def pass_by(point: str) -> None:
    """Die, or stand still, once in a while. A point that is passed a thousand times a second is not worse than one that
    is passed once: what counts is the time since somebody last came past."""
    now = time.monotonic()
    waited, _passed[point] = min(now - _passed.get(point, _began), RARE_S), now
    if now - _began < CALM_S or _choose.random() > RATE * waited:
        return
    frozen = STILL_S > 0 and _choose.random() < 0.4
    sys.stderr.write(f"{'stands still' if frozen else 'dies'} {point}\n")
    sys.stderr.flush()
    if not frozen:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(
        STILL_S
    )  # Threads go on, but for those that wait for the loop: as close to SIGSTOP as one can get alone.


def watch(kind: type, name: str) -> None:
    """Have a point before and behind a method."""
    method: Callable[..., Any] = getattr(kind, name)
    point = f"{kind.__name__}.{name.strip('_')}"

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            pass_by(f"before {point}")
            result = await method(*args, **kwargs)
            pass_by(f"after {point}")
            return result
    else:

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            pass_by(f"before {point}")
            result = method(*args, **kwargs)
            pass_by(f"after {point}")
            return result

    setattr(kind, name, wrapped)


for _kind, _name in POINTS:
    watch(_kind, _name)
