"""`penstock run` and `penstock replay` of an application on Kafka: as one worker, or as a supervisor of several.

What always holds: what people see of it, and how it ends, is the same as on one machine; a lone worker leads when
nobody else does, and a supervisor has a process that leads. What is to happen once is refused while workers run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import penstock
from penstock.checkpoint.stores import open_store
from penstock.durations import format_duration
from penstock.engine.background import in_thread
from penstock.engine.cli_common import print_replay, silence_kafka_client
from penstock.engine.cluster.looking import read_history, read_topology, refuse_alive
from penstock.engine.cluster.options import ClusterOptions, cluster_options
from penstock.engine.cluster.process import serve_worker
from penstock.engine.cluster.supervisor import Plan, Supervisor
from penstock.engine.cluster.topics import ensure_topics
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.engine.ending import end_at_once, run_bounded, say_stopping
from penstock.engine.settings import Settings
from penstock.files import DirectoryLock
from penstock.loading import Loaded
from penstock.logs import counted, logger
from penstock.output import note
from penstock.signals import stopped_by_signals


def run_on_kafka(
    loaded: Loaded,
    settings: Settings,
    flags: Mapping[str, Any],
    *,
    until_done: bool,
    from_: int | str | None,
    from_savepoint: str | None = None,
) -> None:
    """Run until told to stop, or until the work is done. `from_` is a checkpoint, or "none"."""
    silence_kafka_client()
    config = settings.to_config(
        until_done=until_done, from_checkpoint=from_ if isinstance(from_, int) else None, fresh=from_ == "none"
    )
    cluster = cluster_options(settings, config.directory)
    if not settings["store"] and not settings["workers"]:
        logger.warning(
            "Checkpoints are stored in %s. Workers elsewhere can't join unless they reach it, too. Name a place that "
            "all of them reach: --store.",
            cluster.store,
        )
    if from_savepoint is not None:
        asyncio.run(_restore_savepoint(loaded, config, cluster, from_savepoint))
    serving = _supervise if settings["workers"] else _work
    run_bounded(serving(loaded, settings, config, cluster, flags), config.stop_timeout_ms / 1000)


def replay_on_kafka(
    loaded: Loaded, settings: Settings, flags: Mapping[str, Any], number: int, *, yes: bool, until_done: bool
) -> None:
    """Run again from an earlier checkpoint, or say what that would mean."""
    if yes:
        run_on_kafka(loaded, settings, flags, until_done=until_done, from_=number)
        return
    silence_kafka_client()
    app = loaded.app.name
    history = asyncio.run(read_history(settings.kafka(), app))
    print_replay(app, history, history.chosen(number))


async def _prepare(loaded: Loaded, config: Config, cluster: ClusterOptions) -> None:
    """Refuse what is known not to work. Nobody may run while the application goes back to an earlier state."""
    app = loaded.app
    app.check()
    # Otherwise nobody would learn that it can't be used before the first base, perhaps hours later.
    await in_thread(open_store(cluster.store, cluster.store_options).check)
    topology = await read_topology(cluster.kafka, app.name)
    await ensure_topics(app.name, config.parallelism, cluster, topology.generation)
    if config.from_checkpoint is not None or config.fresh:
        await refuse_alive(cluster.kafka, app.name)
    if config.from_checkpoint is not None:
        (await read_history(cluster.kafka, app.name)).chosen(config.from_checkpoint)


async def _restore_savepoint(loaded: Loaded, config: Config, cluster: ClusterOptions, place: str) -> None:
    """Make the savepoint what this start continues."""
    from penstock.checkpoint.savepoint import SavepointReader
    from penstock.checkpoint.stores import open_place
    from penstock.engine.cli_savepoint import progress_bar
    from penstock.engine.cluster.saved import restore_savepoint

    reader = SavepointReader(open_place(place, config.bucket))
    await _prepare(loaded, config, cluster)
    with progress_bar("Restoring the savepoint") as progress:
        await restore_savepoint(
            loaded.app,
            reader,
            config,
            cluster.kafka,
            open_store(cluster.store, cluster.store_options),
            now_ms=int(time.time() * 1000),
            progress=progress,
        )


# One worker.


async def _work(
    loaded: Loaded, settings: Settings, config: Config, cluster: ClusterOptions, flags: Mapping[str, Any]
) -> None:
    await _prepare(loaded, config, cluster)
    worker = ClusterWorker(loaded.app, config, cluster)
    _say_started(loaded, settings, config, cluster, "this process is one")
    with stopped_by_signals(worker.stop, noticed=say_stopping, again=end_at_once):
        await serve_worker(worker, settings, lambda url: note(f"  interface  {url}  metrics at /metrics"))
    logger.info("stopped")


# Several, under a supervisor.


async def _supervise(
    loaded: Loaded, settings: Settings, config: Config, cluster: ClusterOptions, flags: Mapping[str, Any]
) -> None:
    plan = Plan(
        flags=flags,
        directory=config.directory,
        workers=settings["workers"],
        port=config.port,
        stop_timeout_s=config.stop_timeout_ms / 1000,
        until_done=config.until_done,
        from_checkpoint=config.from_checkpoint,
        fresh=config.fresh,
    )
    command = f"penstock run --workers {plan.workers}"
    async with AsyncExitStack() as opened:
        lock = opened.enter_context(
            DirectoryLock(config.directory, command=command, started=datetime.now(UTC).astimezone())
        )
        await _prepare(loaded, config, cluster)
        supervisor = Supervisor(plan)
        _say_started(loaded, settings, config, cluster, f"{plan.workers}, and a leader")
        if config.port is not None:
            from penstock.engine.cluster.front import Front

            front = Front(supervisor, config)
            opened.push_async_callback(front.close)
            url = await front.start()
            lock.announce(url)
            note(f"  interface  {url}  metrics at /metrics")

        def end() -> None:
            supervisor.kill()
            end_at_once()

        with stopped_by_signals(supervisor.stop, noticed=say_stopping, again=end):
            await supervisor.run()
    logger.info("stopped")


def _say_started(loaded: Loaded, settings: Settings, config: Config, cluster: ClusterOptions, workers: str) -> None:
    if settings["log_json"]:
        logger.info("%s starts on %s", loaded.app.name, cluster.kafka.bootstrap)
        return
    note(f"penstock {penstock.__version__}  {loaded.app.name} ({loaded.name})  {counted(config.parallelism, 'task')}")
    note(f"  kafka      {cluster.kafka.bootstrap}")
    note(f"  workers    {workers}")
    note(f"  state      {config.directory}  checkpoints in {cluster.store}")
    note(f"  interval   {format_duration(int(config.interval_ms))}")
