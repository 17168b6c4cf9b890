"""The ledger as a program in which faults strike: money moves until it is told to finish.

    python -m tests.crash.ledger DIRECTORY

Each line of standard input is faults to arm, or `finish`: then the input ends. On standard output it says how far it
has come, on standard error what struck. It does often what is seldom due, since a point that is not passed proves
nothing: it folds, makes bases, reserves ids and finishes parts all the time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from penstock import App, FileEgress, GeneratorIngress
from penstock.checkpoint import coordinator, recovery
from penstock.checkpoint.retention import Retention
from penstock.engine import upkeep
from penstock.engine.config import Config
from penstock.faults import FAULT_VARIABLE, arm, begin
from tests.kill import ledger
from tests.kill.telling import run_telling

PARALLELISM = 4
PAUSE_S = 0.02
"""After every 20 transfers: 1,000 a second, which leaves a core for whoever looks on."""
PART_S = 0.2
RETENTION = Retention(all_ms=1_000, spacing_ms=1_000, spaced_ms=3_000)

_finishing = threading.Event()


def connect(results: Path) -> App:
    async def transfers_from(start: int) -> AsyncIterator[ledger.Transfer]:
        number = start
        while not _finishing.is_set():
            if number % ledger.BURST == 0:
                await asyncio.sleep(PAUSE_S)
            yield ledger.transfer(number)
            number += 1

    app = ledger.app
    app.ingress(
        GeneratorIngress(transfers_from, type=ledger.Transfer), to=ledger.account, key="payer", name="transfers"
    )
    app.egress("ledger/bookings", FileEgress(str(results), part_seconds_max=PART_S))
    return app


def hurry() -> None:
    upkeep.BASE_DELTAS = 8
    upkeep.FOLD_SHARE = 10_000
    coordinator.RESERVED_IDS = recovery.RESERVED_IDS = 10  # type: ignore[attr-defined]


def obey() -> None:
    for line in sys.stdin:
        if line.strip() == "finish":
            _finishing.set()
        else:
            arm(line)


def main() -> None:
    begin(os.environ.get(FAULT_VARIABLE, ""), "worker")
    hurry()
    threading.Thread(target=obey, daemon=True).start()
    directory = Path(sys.argv[1])
    config = Config(
        directory=directory / "state", parallelism=PARALLELISM, until_done=True, port=None, retention=RETENTION
    )
    run_telling(connect(directory / "results"), config)


if __name__ == "__main__":
    main()
