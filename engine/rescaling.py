"""Gives a stopped application another parallelism.

    start without a turn: rows go out -> stop: a checkpoint that says so -> savepoint -> restored with other tasks

What always holds: until the last step the application is as it was, and can be started as before; no row is on its way
to an egress when tasks change, so no marker of a task that is gone decides anything (PROTOCOL 18). The savepoint shares
its files with the directory.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple

from penstock.checkpoint.savepoint import SavepointReader
from penstock.engine.config import Config
from penstock.engine.offline import Directory
from penstock.engine.savepoints import Progress, default_place, open_place_of, restore_savepoint, take
from penstock.engine.worker import Worker
from penstock.errors import Refused
from penstock.functions.app import App
from penstock.loops import loop_factory


class Rescaled(NamedTuple):
    """What came of it."""

    checkpoint: int
    savepoint: str


def tasks_of(directory: Directory) -> int:
    """The present parallelism. Raises Refused when nothing was ever complete."""
    newest = directory.newest()
    if newest is None:
        raise nothing_to_rescale(directory.place)
    return directory.journal.manifest(newest).parallelism


def rescale(app: App, config: Config, before: int, *, now_ms: int, progress: Progress) -> Rescaled:
    """Give the application of the directory, which has `before` tasks, the parallelism of `config`.

    Raises Refused, with nothing changed, when that is what it has.
    """
    if config.parallelism == before:
        raise has_already(app.name, before)
    write_rows(app, replace(config, parallelism=before))
    place = default_place(config.directory, app.name, now_ms)
    blobs = open_place_of(place, config)
    with Directory(config.directory) as directory:
        newest = directory.newest()
        assert newest is not None, "it was there before the start"
        # Whether it knows that its rows are visible is looked at once, by the restore.
        take(directory, newest, blobs, committed={}, now_ms=now_ms)
    manifest = restore_savepoint(
        app,
        SavepointReader(blobs),
        config,
        command="penstock rescale",
        reason=f"rescale {before} to {config.parallelism}",
        now_ms=now_ms,
        replacing=True,
        progress=progress,
    )
    return Rescaled(manifest.checkpoint, place)


def nothing_to_rescale(place: str) -> Refused:
    return Refused(
        "PEN0437",
        f"There is nothing to rescale: no checkpoint of {place} is complete. Start it with the --parallelism that you "
        "want.",
    )


def has_already(application: str, tasks: int) -> Refused:
    return Refused("PEN0441", f"{application} has {tasks} tasks already. Ask for another --parallelism.")


def write_rows(app: App, config: Config) -> None:
    """Start the application and stop it before its first turn: what it had decided becomes visible, and its last
    checkpoint says so."""
    worker = Worker(app, replace(config, port=None))
    worker.stop()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(worker.run())
