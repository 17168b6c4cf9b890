"""`penstock rescale`: another parallelism for an application that stands still."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.logs import counted
from penstock.output import output_options, print_json, would, yes_option

if TYPE_CHECKING:
    from penstock.engine.rescaling import Rescaled
    from penstock.engine.savepoints import Progress
    from penstock.engine.settings import Settings
    from penstock.functions.app import App


@click.command()
@click.argument("target", required=False, metavar="[APP]")
@click.option("--parallelism", "tasks", type=int, required=True, metavar="N", help="A power of two up to 128.")
@click.option("--dir", "directory", metavar="DIR", help="Its data directory.")
@click.option("--memory", metavar="SIZE", help="Bound for caches and buffers meanwhile.")
@yes_option
@output_options
def rescale(
    target: str | None, tasks: int, directory: str | None, memory: str | None, yes: bool, as_json: bool
) -> None:
    """Give a stopped application another parallelism.

    Everything is kept: state, messages under way, delayed ones, dead letters, positions of inputs. First it is started
    for a moment without processing anything, so that no row waits for its egress. A savepoint is taken and restored;
    it stays until you delete it, and older checkpoints can be replayed with the old parallelism.

    On Kafka, all workers must have stopped in an orderly way. The application gets new topics of its own, and those
    before are deleted, so what came before is only in the savepoint.
    """
    from penstock.engine.cli_savepoint import progress_bar
    from penstock.engine.settings import load_settings
    from penstock.loading import load_app

    flags = {"app": target, "dir": directory, "memory": memory, "parallelism": tasks}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(Path.cwd(), os.environ, given)
    app = load_app(settings["app"], Path.cwd(), name=settings["name"]).app
    scaling = _OnKafka(app, settings) if settings["kafka"] else _OnOneMachine(app, settings)
    before = scaling.before()
    if not yes:
        if as_json:
            print_json({"before": before, "after": tasks, "done": False})
        else:
            would(f"give {app.name} {counted(tasks, 'task')} instead of {before}")
        return
    with progress_bar("Rescaling") as progress:
        done = scaling.perform(before, progress)
    if as_json:
        print_json({"before": before, "after": tasks, "done": True, **done._asdict()})
        return
    _say(app.name, tasks, before, done)


class _OnOneMachine:
    """An application of a data directory."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._config = settings.to_config()

    def before(self) -> int:
        """The present parallelism. Raises Refused."""
        from penstock.engine.offline import Directory
        from penstock.engine.rescaling import tasks_of
        from penstock.errors import Refused
        from penstock.files import read_owner

        owner = read_owner(self._config.directory)
        if owner is not None:
            raise Refused(
                "PEN0626",
                f"{self._app.name} runs as process {owner.pid} ({owner.command}). Stop it before it is rescaled.",
            )
        with Directory(self._config.directory) as opened:
            return tasks_of(opened)

    def perform(self, before: int, progress: Progress) -> Rescaled:
        from penstock.engine.rescaling import rescale as perform

        return perform(self._app, self._config, before, now_ms=int(time.time() * 1000), progress=progress)


class _OnKafka:
    """An application of several workers."""

    def __init__(self, app: App, settings: Settings) -> None:
        from penstock.engine.cli_common import topics_of
        from penstock.engine.cluster.options import cluster_options

        self._app = app
        self._config = settings.to_config()
        self._cluster = cluster_options(settings, self._config.directory)
        self._found = topics_of(app.name, settings, self._config.directory)

    def before(self) -> int:
        from penstock.engine.cluster.rescaling import tasks_of

        return asyncio.run(tasks_of(self._found))

    def perform(self, before: int, progress: Progress) -> Rescaled:
        from penstock.engine.cluster.rescaling import rescale as perform

        now_ms = int(time.time() * 1000)
        return asyncio.run(
            perform(self._app, self._config, self._cluster, self._found, now_ms=now_ms, progress=progress)
        )


def _say(app: str, tasks: int, before: int, done: Rescaled) -> None:
    click.echo(f"{app} has {counted(tasks, 'task')} from checkpoint {done.checkpoint:,} on, and had {before}.")
    click.echo(f"Start it with --parallelism {tasks}. The savepoint it was made of: {done.savepoint}")
