"""The application of the proof, whose processes kill themselves at the moments that matter most.

A chance kill seldom falls between a transaction and the fence behind it, or between an acknowledgement and the next
line. Here whoever comes past a fault point (`penstock.faults`) dies there once in a while, or stands still for longer
than a session. Which points those are, one after the other, is tried by `tests.crash`; here it is left to chance, so
that also two fall together.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from penstock import faults
from tests.kafka.proof import brisk

app = brisk.app

RATE = float(os.environ.get("PROOF_CRASH_RATE", "0.03"))
"""How often a second a process may meet its end, on the average, whatever it does most."""
STILL_S = float(os.environ.get("PROOF_STILL_S", "0"))
"""How long a process stands still that is not killed. 0 has all of them killed."""
PERMITS = Path(os.environ["PROOF_PERMITS"])
"""Where the permits are."""
RARE_S = 30.0
"""A point that nobody has come past for so long is as bad as any."""
CALM_S = 1.0
"""Before the first: something must have begun."""
SUPERVISED = "supervisor."
"""What the points begin with that are left out: whoever runs the application wants the supervisor to live."""

_choose = random.Random(os.getpid() ^ time.time_ns())
_began = time.monotonic()
_passed: dict[str, float] = {}


def pass_by(point: str) -> None:
    """Die, or stand still, once in a while. A point that is passed a thousand times a second is not worse than one that
    is passed once: what counts is the time since somebody last came past."""
    now = time.monotonic()
    waited, _passed[point] = min(now - _passed.get(point, _began), RARE_S), now
    if now - _began < CALM_S or point.startswith(SUPERVISED) or _choose.random() > RATE * waited or not _is_permitted():
        return
    frozen = STILL_S > 0 and _choose.random() < 0.4
    sys.stderr.write(f"{'stands still at' if frozen else 'dies at'} {point}\n")
    sys.stderr.flush()
    if not frozen:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(
        STILL_S
    )  # Threads go on, but for those that wait for the loop: as close to SIGSTOP as one can get alone.


def _is_permitted() -> bool:
    """Whether there is a permit left. It is used up."""
    for permit in PERMITS.iterdir():
        try:
            permit.unlink()
        except FileNotFoundError:
            continue  # Another process was faster.
        return True
    return False


vars(faults).update(_armed={"any": []}, _pass=pass_by)
