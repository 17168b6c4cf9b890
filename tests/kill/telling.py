"""The side of a kill test that is killed: runs an application and says on standard output how far it has come."""

from __future__ import annotations

import asyncio

import msgspec

from penstock.engine.config import Config
from penstock.engine.run import run
from penstock.engine.worker import Worker
from penstock.functions.app import App

TELL_S = 0.01


class Told(msgspec.Struct, frozen=True):
    """One line of a running program."""

    checkpoint: int
    """The newest complete one, of this run or the one it was restored from; 0 when there is none."""
    began_at: int
    """How many records of the input were behind the position this run started from."""
    records: int
    """How many are read by now, those included."""
    dead_letters: int


def run_telling(app: App, config: Config) -> None:
    run(app, config, watch=_tell)


async def _tell(worker: Worker) -> None:
    """One line as soon as something was read, and then one every 10 ms. Never a part of a line, also when killed."""
    while True:
        feeds = worker.ingresses
        newest = worker.last_checkpoint
        if any(feed.records for feed in feeds):
            told = Told(
                checkpoint=newest.checkpoint if newest is not None else worker.recovery.restored,
                began_at=sum(feed.records_total - feed.records for feed in feeds),
                records=sum(feed.records_total for feed in feeds),
                dead_letters=sum(unit.core.statistics().dead_letters for unit in worker.units),
            )
            print(msgspec.json.encode(told).decode(), flush=True)  # noqa: T201  # It is how the test learns.
        await asyncio.sleep(TELL_S)
