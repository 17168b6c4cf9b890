"""What a process does that a supervisor has started: it leads, or it is a worker.

    python -c "from penstock.engine.cluster.process import main; main()" DESCRIPTOR

What always holds: it reads its settings where the supervisor has read them; it stops when the supervisor says so, and
ends with it; why it ends it says before it does. A signal stops a worker in an orderly way, and it is started again;
the leader heeds none, since the workers need it to the last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from penstock.checkpoint.reports import Ended, encode_message
from penstock.checkpoint.stores import open_store
from penstock.engine.cluster.candidate import Candidate, leader_options
from penstock.engine.cluster.channel import Down, Failed, Finished, Gone, Order, Serving, Stop, Watched, Working
from penstock.engine.cluster.listening import Listener
from penstock.engine.cluster.looking import read_topology
from penstock.engine.cluster.options import cluster_options
from penstock.engine.cluster.topics import Topics, ensure_topics
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.settings import Settings, load_settings
from penstock.errors import PenstockError
from penstock.faults import FAULT_VARIABLE, begin
from penstock.functions.app import App
from penstock.loading import load_app
from penstock.logs import configure_logging, logger
from penstock.loops import loop_factory
from penstock.router.kafka_batches import Record
from penstock.router.kafka_writer import KafkaWriter
from penstock.signals import SIGNALS, stopped_by_signals

LOOK_S = 0.05


def main() -> None:
    """Take the order from the descriptor that is the only argument, and carry it out."""
    watched = Watched(int(sys.argv[1]))
    order = watched.order()
    try:
        settings = load_settings(Path.cwd(), os.environ, order.flags)
        configure_logging(as_json=settings["log_json"], level=settings["log_level"], process=order.label)
        begin(os.environ.get(FAULT_VARIABLE, ""), order.role, order.label)
        app = load_app(settings["app"], Path.cwd(), name=settings["name"]).app
        work = _lead if order.role == "leader" else _work
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            done = runner.run(work(app, settings, order, watched))
    except PenstockError as error:
        watched.say(Failed(type(error).__name__, error.code, error.message))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  # Whatever it is, the supervisor decides what becomes of it.
        logger.exception("%s failed", order.label)
        watched.say(Failed("", "", f"{type(error).__name__}: {error}"))
        sys.exit(1)
    watched.say(Finished(done))


# A worker.


async def _work(app: App, settings: Settings, order: Order, watched: Watched) -> bool:
    """Returns whether all work is done, rather than that somebody wanted it to stop."""
    directory = Path(order.directory)
    config = settings.to_config(
        directory=directory / order.label,
        until_done=order.until_done,
        from_checkpoint=order.from_checkpoint,
        fresh=order.fresh,
    )
    config = replace(config, port=order.port)
    worker = ClusterWorker(app, config, cluster_options(settings, directory, name=order.name, candidate=False))
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        worker.stop()

    def told(message: Down) -> None:
        if isinstance(message, Stop):
            stop()

    watched.listen(told)
    looking = asyncio.create_task(_say_when(lambda: worker.ready, watched))
    try:
        with stopped_by_signals(stop):
            await serve_worker(worker, settings, lambda url: watched.say(Serving(url)))
    finally:
        looking.cancel()
    return not asked


async def _say_when(working: Callable[[], bool], watched: Watched) -> None:
    while not working():  # noqa: ASYNC110  # Once in the life of a process, and nobody is told.
        await asyncio.sleep(LOOK_S)
    watched.say(Working())


async def serve_worker(worker: ClusterWorker, settings: Settings, serving: Callable[[str], None]) -> None:
    """Run a worker, and its HTTP interface while it does."""
    server = None
    if worker.config.port is not None:
        from penstock.engine.http import HttpServer  # Which the leader, for one, does without.

        server = HttpServer(worker, settings=settings.all())

    async def started() -> None:
        if server is not None:
            url = await server.start()
            worker.announce(url)
            serving(url)

    try:
        await worker.run(started)
    finally:
        if server is not None:
            await server.close()


# The leader.


async def _lead(app: App, settings: Settings, order: Order, watched: Watched) -> bool:
    """Lead until told to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    directory = Path(order.directory)
    config = settings.to_config(until_done=order.until_done, from_checkpoint=order.from_checkpoint, fresh=order.fresh)
    cluster = cluster_options(settings, directory)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def failed(error: PenstockError) -> None:
        if not ended.done():
            ended.set_exception(error)

    topology = await read_topology(cluster.kafka, app.name)
    ensured = await ensure_topics(app.name, config.parallelism, cluster, topology.generation)
    reports = Topics.of(app.name, topology.generation).reports
    writer = KafkaWriter(cluster.kafka, failed=failed)
    listener = Listener(cluster.kafka, app.name, failed=failed)
    store = open_store(cluster.store, cluster.store_options)
    options = leader_options(app, config, cluster, order.name, ensured, topology.generation)
    candidate = Candidate(cluster, options, listener, store, at_once=True)

    def told(message: Down) -> None:
        if isinstance(message, Stop) and not ended.done():
            ended.set_result(None)
        if isinstance(message, Gone):
            report = Ended(message.worker, message.reason)
            candidate.hear(report)
            if candidate.service is None:  # Somebody else may lead.
                writer.append(Record(reports, 0, encode_message(report)))

    await writer.start()
    await listener.start()
    watched.listen(told)
    leading = asyncio.create_task(candidate.run())
    try:
        await asyncio.wait({leading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
        else:
            leading.result()
    finally:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await listener.close()
        await writer.close()
    return False
