"""`penstock run` and `penstock replay`: an application in the foreground.

The first SIGTERM or SIGINT stops in an orderly way, bounded by stop_timeout; the second ends the process at once, which
loses nothing either, since the next start restores. What people read goes to standard error: standard output is for
egresses.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

import penstock
from penstock.durations import format_duration
from penstock.engine.cli_common import DIFFERENCES, print_replay
from penstock.engine.config import Config
from penstock.engine.data import Progress
from penstock.engine.ending import end_at_once, run_bounded, say_stopping
from penstock.engine.offline import Directory
from penstock.engine.progress import show_progress
from penstock.engine.run import Watch, watched
from penstock.engine.settings import Settings, load_settings
from penstock.engine.worker import Worker
from penstock.errors import Refused
from penstock.faults import FAULT_VARIABLE, begin
from penstock.files import read_owner
from penstock.loading import Loaded, load_app
from penstock.logs import configure_logging, logger
from penstock.output import debug_option, note, yes_option
from penstock.signals import stopped_by_signals


def _run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Settings as flags. Left out, they come from the environment, a file, or the defaults."""
    options = [
        click.option("--app", metavar="MODULE:APP", help="The application, or its file."),
        click.option("--dir", metavar="DIR", help="Its data directory."),
        click.option("--host", metavar="HOST", help="What the HTTP interface listens on."),
        click.option("--port", metavar="PORT", help="Its port; 0 for a free one, none for no HTTP."),
        click.option("--memory", metavar="SIZE", help="Bound for caches, buffers and queues, such as 1GB."),
        click.option("--parallelism", metavar="N", help="Number of tasks; fixed for the life of an application."),
        click.option("--kafka", metavar="BROKERS", help="Run on Kafka, which is at host:port,..."),
        click.option("--workers", metavar="N", help="On Kafka: processes here that share the tasks."),
        click.option("--name", metavar="APP", help="On Kafka: what topics begin with, instead of the App's own name."),
        click.option("--store", metavar="URL", help="On Kafka: where checkpoints lie, such as s3://bucket/shop."),
        click.option("--replicas", metavar="N", help="On Kafka: copies of the application's topics."),
        click.option("--session-timeout", metavar="TIME", help="On Kafka: a worker silent for so long is dead."),
        click.option(
            "--property",
            metavar="NAME=VALUE",
            multiple=True,
            help="A property of Kafka clients, such as security.protocol=SASL_SSL. Can be given several times.",
        ),
        click.option("--interval", metavar="TIME", help="Between checkpoints, such as 200ms."),
        click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
        click.option("--log-json", is_flag=True, default=None, help="Log JSON, one object a line."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
        click.option("--until-done", is_flag=True, help="Stop when every ingress has ended and its work is done."),
    ]
    for option in reversed(options):
        function = option(function)
    return debug_option(function)


class _From(click.ParamType[Any]):
    """`--from`: the number of a checkpoint, or none."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none" or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is neither the number of a checkpoint nor 'none'.", param, ctx)
        return int(value)


@click.command()
@click.argument("target", required=False, metavar="[APP]")
@click.option("--from", "from_", type=_From(), help="Continue from this checkpoint, or from nothing.")
@click.option(
    "--from-savepoint", metavar="PLACE", help="Begin with this savepoint, in an empty directory, with any parallelism."
)
@click.option(
    "--replace", "replacing", is_flag=True, help="With --from-savepoint: also where there are checkpoints already."
)
@click.option("--ephemeral", is_flag=True, help="Keep nothing: state lives in a temporary directory.")
@_run_options
def run(
    target: str | None,
    from_: Any,
    from_savepoint: str | None,
    replacing: bool,
    ephemeral: bool,
    quiet: bool,
    until_done: bool,
    **flags: Any,
) -> None:
    """Run an application until it is told to stop.

    APP is a module and a variable (shop.main:app), or a file. Without one, app.py.
    """
    if ephemeral and flags["dir"] is not None:
        raise click.UsageError("--ephemeral and --dir exclude one another: it keeps nothing.")
    if from_savepoint is not None and (ephemeral or from_ is not None):
        raise click.UsageError("--from-savepoint excludes --from and --ephemeral.")
    if replacing and from_savepoint is None:
        raise click.UsageError("--replace is of use with --from-savepoint.")
    settings, loaded = _prepare(flags, target)
    if settings["kafka"]:
        from penstock.engine.cli_cluster import run_on_kafka

        if replacing:
            raise click.UsageError("--replace and --kafka exclude one another: begin under another --name.")

        if ephemeral:
            raise click.UsageError("--ephemeral and --kafka exclude one another: topics stay. See penstock destroy.")
        run_on_kafka(
            loaded, settings, _given(flags, target), until_done=until_done, from_=from_, from_savepoint=from_savepoint
        )
        return
    config = settings.to_config(
        until_done=until_done,
        from_checkpoint=from_ if isinstance(from_, int) else None,
        fresh=from_ == "none",
    )
    if from_savepoint is not None:
        _restore_savepoint(loaded, config, from_savepoint, replacing=replacing)
    if not ephemeral:
        _run_worker(loaded, config, settings, quiet=quiet)
        return
    with TemporaryDirectory(prefix=f"penstock-{loaded.app.name}-") as directory:
        _run_worker(loaded, replace(config, directory=Path(directory)), settings, quiet=quiet)


def _restore_savepoint(loaded: Loaded, config: Config, place: str, *, replacing: bool) -> None:
    """Make the savepoint what this start continues."""
    from penstock.checkpoint.savepoint import SavepointReader
    from penstock.checkpoint.stores import open_place
    from penstock.engine.cli_savepoint import progress_bar
    from penstock.engine.savepoints import restore_savepoint

    app = loaded.app
    app.check()
    with progress_bar("Restoring the savepoint") as progress:
        restore_savepoint(
            app,
            SavepointReader(open_place(place, config.bucket)),
            config,
            command="penstock run",
            reason="savepoint",
            now_ms=int(time.time() * 1000),
            replacing=replacing,
            progress=progress,
        )


@click.command()
@click.option("--from", "number", type=int, required=True, metavar="N", help="The checkpoint to continue from.")
@click.option("--code", metavar="APP", help="Other code: a module and a variable, or a file.")
@click.option("--diff", is_flag=True, help="Change nothing: run aside from production, and list what differs.")
@click.option("--until", metavar="N|TIME", help="With --diff: up to this checkpoint, or the last one before a time.")
@click.option("--only", metavar="FUNCTION/ID", help="With --diff: look at this address alone.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="With --diff: of a list."
)
@click.option("--json", "as_json", is_flag=True, help="With --diff: print JSON, for programs.")
@yes_option
@_run_options
def replay(
    number: int,
    code: str | None,
    diff: bool,
    until: str | None,
    only: str | None,
    limit: int,
    as_json: bool,
    yes: bool,
    quiet: bool,
    until_done: bool,
    **flags: Any,
) -> None:
    """Run a stopped application again from an earlier checkpoint.

    State and positions become those of checkpoint N, and what followed it is processed once more, with the present
    code. Later checkpoints stay retained, so that this can be undone in the same way. What egresses have already made
    visible stays there: rows written after checkpoint N are written again.

    With --diff nothing of that happens. Each task gets the inputs it got then, aside from production and also while
    the application runs, and what comes out differently is listed: states, rows, replies, messages between tasks, and
    the first message that made a difference. Exit code 5 when there is any.
    """
    if not diff and (until is not None or only is not None or as_json):
        raise click.UsageError("--until, --only and --json are of use with --diff.")
    settings, loaded = _prepare(flags, code)
    if diff:
        from penstock.engine.cli_replay import print_differences

        if print_differences(loaded.app, settings, number, until=until, only=only, limit=limit, as_json=as_json):
            click.get_current_context().exit(DIFFERENCES)
        return
    if settings["kafka"]:
        from penstock.engine.cli_cluster import replay_on_kafka

        replay_on_kafka(loaded, settings, _given(flags, None), number, yes=yes, until_done=until_done)
        return
    _replay_here(loaded, settings, number, yes=yes, quiet=quiet, until_done=until_done)


def _replay_here(loaded: Loaded, settings: Settings, number: int, *, yes: bool, quiet: bool, until_done: bool) -> None:
    """Run again in the directory from an earlier checkpoint, or say what that would mean."""
    app, directory = loaded.app.name, Path(settings["dir"])
    owner = read_owner(directory)
    if owner is not None:
        raise Refused("PEN0626", f"{app} runs as process {owner.pid} ({owner.command}). Stop it before a replay.")
    with Directory(directory) as opened:
        chosen = opened.retained(number)
    if not yes:
        print_replay(app, opened.history, chosen)
        return
    config = settings.to_config(until_done=until_done, from_checkpoint=number)
    _run_worker(loaded, config, settings, quiet=quiet)


def _given(flags: Mapping[str, Any], target: str | None) -> dict[str, Any]:
    """The flags that were given."""
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    return given if target is None else given | {"app": target}


def _prepare(flags: Mapping[str, Any], target: str | None) -> tuple[Settings, Loaded]:
    settings = load_settings(Path.cwd(), os.environ, _given(flags, target))
    configure_logging(as_json=settings["log_json"], level=settings["log_level"])
    for variable in settings.ignored:
        logger.warning("%s is no setting, and is ignored.", variable)
    settings.check()
    supervises = settings["kafka"] and settings["workers"]
    begin(os.environ.get(FAULT_VARIABLE, ""), "supervisor" if supervises else "worker")
    return settings, load_app(settings["app"], Path.cwd(), name=settings["name"])


def _run_worker(loaded: Loaded, config: Config, settings: Settings, *, quiet: bool) -> None:
    watch = None if quiet or settings["log_json"] else show_progress
    run_bounded(_serve(loaded, config, settings, watch), config.stop_timeout_ms / 1000)


async def _serve(loaded: Loaded, config: Config, settings: Settings, watch: Watch | None) -> None:
    """Run the worker, and its HTTP interface while it takes turns. Without `watch` no progress is shown at all."""
    with _restore_bar(shown=watch is not None) as progress:
        worker = Worker(loaded.app, config, progress=progress)
        if config.port is None:
            server = None
        else:
            from penstock.engine.http import HttpServer

            server = HttpServer(worker, settings=settings.all())

        async def started() -> None:
            url = None
            if server is not None:
                url = await server.start()
                worker.data.lock.announce(url)
            _say_started(loaded, worker, url, settings)

        with stopped_by_signals(worker.stop, noticed=say_stopping, again=end_at_once):
            try:
                async with watched(worker, watch):
                    await worker.run(started)
            finally:
                if server is not None:
                    await server.close()
    _say_stopped(worker)


@contextmanager
def _restore_bar(*, shown: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar of the restore, for whoever watches a terminal. It goes away with the last task."""
    if not shown or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("restoring task {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[int, Any] = {}

    def show(progress: Progress) -> None:
        if progress.task not in tasks:
            bars.start()
            tasks[progress.task] = bars.add_task(str(progress.task), total=progress.total)
        bars.update(tasks[progress.task], completed=progress.done)
        if bars.finished:
            bars.stop()

    try:
        yield show
    finally:
        bars.stop()


def _say_started(loaded: Loaded, worker: Worker, url: str | None, settings: Settings) -> None:
    app, recovery = loaded.app, worker.recovery
    if settings["log_json"]:
        logger.info("%s is ready at %s", app.name, url or "no port")
        return
    kinds = [
        (len(app.functions), "function", "s"),
        (len(app.ingresses), "ingress", "es"),
        (len(app.egresses), "egress", "es"),
    ]
    if app.schedules:
        kinds.append((len(app.schedules), "schedule", "s"))
    counts = "  ".join(f"{count} {word}{'' if count == 1 else ending}" for count, word, ending in kinds)
    interval = format_duration(int(worker.config.interval_ms))
    note(f"penstock {penstock.__version__}  {app.name} ({loaded.name})  {counts}")
    note(f"  state      {worker.config.directory}  checkpoint every {interval}")
    note(f"  interface  {url}  metrics at /metrics" if url else "  interface  none")
    if recovery.restored:
        note(f"  restored   checkpoint {recovery.restored:,} and {recovery.deltas:,} deltas in {recovery.took_s:.2f} s")


def _say_stopped(worker: Worker) -> None:
    last = worker.last_checkpoint
    kept = f"checkpoint {last.checkpoint:,}" if last is not None else "no new checkpoint"
    done = sum(sum(unit.core.messages.values()) for unit in worker.units)
    letters = sum(unit.core.statistics().dead_letters for unit in worker.units)
    logger.info("stopped with %s after %s messages", kept, f"{done:,}")
    if letters:
        logger.warning("%s messages became dead letters: penstock dead list", f"{letters:,}")
