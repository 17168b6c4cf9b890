"""`penstock rescale`: another parallelism for an application that stands still."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from penstock.engine.cli_common import output_options, print_json, would, yes_option
from penstock.engine.logs import counted


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
    """
    from penstock.engine.cli_savepoint import progress_bar
    from penstock.engine.loading import load_app
    from penstock.engine.offline import Directory
    from penstock.engine.rescaling import rescale as perform
    from penstock.engine.rescaling import tasks_of
    from penstock.engine.settings import load_settings
    from penstock.errors import Refused
    from penstock.files import read_owner

    flags = {"app": target, "dir": directory, "memory": memory, "parallelism": tasks}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(Path.cwd(), os.environ, given)
    if settings["kafka"]:
        raise click.UsageError(
            "This is for one machine. On Kafka: penstock savepoint create --to PLACE, then penstock run --name NEW "
            f"--parallelism {tasks} --from-savepoint PLACE."
        )
    config = settings.to_config()
    app = load_app(settings["app"], Path.cwd(), name=settings["name"]).app
    owner = read_owner(config.directory)
    if owner is not None:
        raise Refused(
            "PEN0626", f"{app.name} runs as process {owner.pid} ({owner.command}). Stop it before it is rescaled."
        )
    with Directory(config.directory) as opened:
        before = tasks_of(opened)
    if not yes:
        if as_json:
            print_json({"before": before, "after": tasks, "done": False})
        else:
            would(f"give {app.name} {counted(tasks, 'task')} instead of {before}")
        return
    with progress_bar("Rescaling") as progress:
        done = perform(app, config, before, now_ms=int(time.time() * 1000), progress=progress)
    if as_json:
        print_json({"before": before, "after": tasks, "done": True, **done._asdict()})
        return
    _say(app.name, tasks, before, done)


def _say(app: str, tasks: int, before: int, done: Any) -> None:
    click.echo(f"{app} has {counted(tasks, 'task')} from checkpoint {done.checkpoint:,} on, and had {before}.")
    click.echo(f"Start it with --parallelism {tasks}. The savepoint it was made of: {done.savepoint}")
