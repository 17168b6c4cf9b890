"""The application of the proof, in processes in which faults strike when the test wants it.

It changes constants of the product, so only processes of its own may import it. Each of them looks again and again into
the file that CRASH_FAULTS names, and arms what it finds there: so one run of an application serves for many faults, and
also a process that starts again comes past its points armed.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from penstock.checkpoint import coordinator, recovery
from penstock.engine.cluster import supervisor
from penstock.faults import arm
from tests.crash.points import VARIABLE
from tests.kafka.proof import brisk

app = brisk.app

LOOK_S = 0.01

coordinator.RESERVED_IDS = recovery.RESERVED_IDS = 10  # type: ignore[attr-defined]
vars(supervisor)["RESTART_MAX_S"] = 0.4
"""Processes die here as often as nowhere else, and nobody wants to wait for them."""


def look(file: Path, armed: str) -> str:
    """Arm what is in the file now, if it is something else. Returns it."""
    faults = file.read_text(encoding="ascii")
    if faults != armed:
        arm(faults)
    return faults


def watch(file: Path, armed: str) -> None:
    while True:
        time.sleep(LOOK_S)
        armed = look(file, armed)


if VARIABLE in os.environ:
    _file = Path(os.environ[VARIABLE])
    threading.Thread(target=watch, args=(_file, look(_file, "")), daemon=True).start()
