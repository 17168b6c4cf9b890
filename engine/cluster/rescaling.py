"""Gives a stopped application on Kafka another parallelism, under the same name.

    the leader's id taken -> savepoint -> topics of a new generation -> every new task, as a base -> COMPLETE and ASSIGN

What always holds: until the last step, one transaction, the application is as it was, and can be started as before;
that step is made only if nobody has led since the first. From then on only the topics of the new generation count
(PROTOCOL 18): a worker with the old parallelism that wakes up is named by no assignment and ends, and what it writes
lies in topics that nobody reads. No row is on its way to an egress when tasks change, so no marker of a task that is
gone decides anything; the ids under which the old tasks committed are fenced.
"""

from __future__ import annotations

from msgspec.structs import replace

from penstock.checkpoint.control import Assign, AttemptBegun, Complete, ControlRecord, Manifest, encode_control
from penstock.checkpoint.savepoint import SavepointReader
from penstock.checkpoint.stores import open_store
from penstock.engine.background import in_thread
from penstock.engine.cluster.looking import refuse_alive
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.replies import REPLIES
from penstock.engine.cluster.saved import KafkaCheckpoints, egresses_of, ends_of
from penstock.engine.cluster.topics import DECISIONS, Topics, ensure_topics
from penstock.engine.config import Config
from penstock.engine.rescaling import Rescaled, has_already, nothing_to_rescale
from penstock.engine.savepoints import Progress, Target, default_place, open_place_of, restore_tasks, take_stopped
from penstock.errors import PenstockError
from penstock.functions.app import App
from penstock.logs import logger
from penstock.router.kafka_batches import Record
from penstock.router.kafka_topics import Ensured, leader_id, remove_generation
from penstock.router.kafka_transactions import KafkaTransactions


async def tasks_of(found: KafkaCheckpoints) -> int:
    """The present parallelism. Raises Refused when nothing was ever complete, and InvalidInput for no application."""
    await found.load([])
    newest = found.newest()
    if newest is None:
        raise nothing_to_rescale(found.place)
    return found.manifest(newest).parallelism


async def rescale(
    app: App, config: Config, cluster: ClusterOptions, found: KafkaCheckpoints, *, now_ms: int, progress: Progress
) -> Rescaled:
    """Give an application the parallelism of `config`. `found` is where its checkpoints are read.

    Raises Refused, with nothing changed, when it runs, has that parallelism, or has rows that are not visible, and
    Fenced when somebody starts it meanwhile.
    """
    kafka = cluster.kafka
    await refuse_alive(kafka, app.name)
    leading = KafkaTransactions(kafka, leader_id(app.name))
    try:
        await leading.fence()
        await found.load([], waiting=True)
        newest = found.newest()
        if newest is None:
            raise nothing_to_rescale(found.place)
        before = found.manifest(newest)
        if before.parallelism == config.parallelism:
            raise has_already(app.name, before.parallelism)
        place = default_place(config.directory, app.name, now_ms)
        await _save(app, config, cluster, found, place, before, now_ms=now_ms, progress=progress)
        generation = found.history.generation + 1
        ensured = await _begin(app, config, cluster, generation)
        topics = Topics.of(app.name, generation)
        target = Target(
            config.directory,
            found.history,
            open_store(cluster.store, cluster.store_options),
            await ends_of(kafka, topics, config.parallelism),
        )
        reader = SavepointReader(open_place_of(place, config))
        reason = f"rescale {before.parallelism} to {config.parallelism}"
        manifest = await in_thread(
            lambda: restore_tasks(app, reader, config, target, reason=reason, now_ms=now_ms, progress=progress)
        )
        manifest = replace(manifest, generation=generation)
        decisions: list[ControlRecord] = [Complete(manifest), _assignment(found, manifest, ensured)]
        await leading.commit([Record(topics.control, DECISIONS, encode_control(each)) for each in decisions])
    finally:
        await leading.close()
    await _remove(cluster, app.name, generation - 1)
    return Rescaled(manifest.checkpoint, place)


async def _save(
    app: App,
    config: Config,
    cluster: ClusterOptions,
    found: KafkaCheckpoints,
    place: str,
    before: Manifest,
    *,
    now_ms: int,
    progress: Progress,
) -> None:
    """A savepoint of the newest checkpoint. Files of its tasks become visible: nobody may have these tasks later."""
    blobs = open_place_of(place, config)
    async with egresses_of(app, config, cluster.kafka, found) as egresses:
        markers = await egresses.markers() if egresses is not None else {}
        await in_thread(
            lambda: take_stopped(
                found, blobs, now_ms=now_ms, progress=progress, markers=markers, left_out=frozenset({REPLIES})
            )
        )
        if egresses is not None:
            await egresses.publish(range(before.parallelism))


async def _begin(app: App, config: Config, cluster: ClusterOptions, generation: int) -> Ensured:
    """Topics of a generation, with nothing in them: what an interrupted attempt has left there was never decided."""
    await remove_generation(cluster.kafka, app.name, generation)
    return await ensure_topics(app.name, config.parallelism, cluster, generation, beginning=True)


async def _remove(cluster: ClusterOptions, application: str, generation: int) -> None:
    """What nobody reads any more. It does no harm where it is left."""
    try:
        await remove_generation(cluster.kafka, application, generation)
    except PenstockError as error:
        logger.warning("Topics from before the change are left, and go with the application: %s", error)


def _assignment(found: KafkaCheckpoints, manifest: Manifest, ensured: Ensured) -> Assign:
    """To nobody. It says which topics count from now on, by their ids, and every worker from before must end."""
    assigned = found.history.assigned
    version = assigned.version if assigned is not None else 0
    begun = AttemptBegun(
        manifest.lineage, manifest.checkpoint, manifest.checkpoint, manifest.created_ms, manifest.reason
    )
    return Assign(
        version=version + 1,
        attempt=begun,
        owners={},
        members=(),
        moved=(),
        manifest=manifest,
        resolved=manifest.checkpoint,
        topics=dict(ensured.incarnations),
        generation=manifest.generation,
        tasks=manifest.parallelism,
    )
