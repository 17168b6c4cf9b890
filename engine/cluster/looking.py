"""What Kafka tells of an application to somebody who takes no part in it.

What always holds: it is only read; a worker that is alive reports every second, so whoever is not heard for a little
longer is not there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from penstock.checkpoint.control import Complete, ControlRecord, Manifest, Recap, decode_control, manifest_in
from penstock.checkpoint.recovery import History
from penstock.checkpoint.reports import Alive, decode_report
from penstock.checkpoint.retention import Retained, Retention, decide
from penstock.engine.cluster.options import HEARTBEAT_MS
from penstock.engine.cluster.topics import DECISIONS, Topics, decision_in
from penstock.errors import ProtocolError, Refused
from penstock.router.kafka_admin import Admin
from penstock.router.kafka_client import Bounds, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import OUT_OF_RANGE, read_range
from penstock.router.kafka_records import Fetched

LISTEN_S = 1.5 * HEARTBEAT_MS / 1000
TAIL_RECORDS = 1_000
"""How far from the end the newest repetition of what was decided before is looked for at first. A record takes two
offsets; the leader repeats it when `RECAP_RECORDS` are there, at the next of its looks every ten seconds."""


_T = TypeVar("_T")


async def read_decisions(kafka: KafkaOptions, application: str) -> Iterator[tuple[int, ControlRecord]]:
    """What was decided so far: all of it, some tens of MB where checkpoints are taken all the time."""
    place = (Topics.of(application).control, DECISIONS)

    async def read(bounds: Bounds) -> Sequence[Fetched]:
        return await read_range(kafka, *place, bounds.start, bounds.end)

    return decisions(place[0], await read_beside_trimming(kafka, place[0], read))


async def read_history(kafka: KafkaOptions, application: str) -> History:
    """What these decisions come to."""
    history = History(deltas_apart=True)
    for offset, decision in await read_decisions(kafka, application):
        history.apply(offset, decision)
    return history


async def read_newest(kafka: KafkaOptions, application: str) -> tuple[History, Manifest | None]:
    """What the newest decisions say, and the newest checkpoint that can be restored."""
    history = History(deltas_apart=True)
    manifests: dict[int, Manifest] = {}
    for offset, decision in (await read_tail(kafka, Topics.of(application).control)).records:
        history.apply(offset, decision)
        if isinstance(decision, Complete):
            manifests[decision.manifest.checkpoint] = decision.manifest
        elif isinstance(decision, Recap) and decision.newest is not None:
            manifests[decision.newest[1].checkpoint] = decision.newest[1]
    best = next(history.candidates(), None)
    return history, manifests.get(best.checkpoint) if best is not None else None


class Topology(NamedTuple):
    """What the tasks of an application are."""

    generation: int = 1
    """Of the topics they work with."""
    tasks: int = 0
    """How many there are; 0 while nobody has said."""

    @classmethod
    def of(cls, history: History) -> Topology:
        assigned = history.assigned
        return cls(history.generation, assigned.tasks if assigned is not None else 0)


async def read_topology(kafka: KafkaOptions, application: str) -> Topology:
    """What the newest decisions say of an application, which need not be there yet."""
    async with Admin(kafka) as admin:
        if not await admin.topics([Topics.of(application).control]):
            return Topology()
    return Topology.of((await read_newest(kafka, application))[0])


async def read_retained(
    kafka: KafkaOptions, application: str, retention: Retention, *, now_ms: int
) -> Sequence[Retained]:
    """The checkpoints that can be restored, oldest first: those of the log, less what its leader retains no longer."""
    history = await read_history(kafka, application)
    needed = frozenset({history.attempt.restored}) if history.attempt is not None else frozenset()
    return decide(list(history.checkpoints.values()), retention, now_ms, needed=needed).kept


async def read_manifest(kafka: KafkaOptions, application: str, retained: Retained) -> Manifest:
    """Everything that was decided about a checkpoint. Raises CorruptSnapshot when it is not there."""
    control = Topics.of(application).control
    records = await read_range(kafka, control, DECISIONS, retained.offset, retained.offset + 1)
    decision = decode_control(records[0].value or b"") if records else None
    return manifest_in(decision, retained.checkpoint, f"Offset {retained.offset} of {control}")


class Tail(NamedTuple):
    """The end of a log of decisions."""

    start: int
    """Where the log begins."""
    first: int
    """Where the newest repetition of what was decided before stands; where the log begins if there is none."""
    records: list[tuple[int, ControlRecord]]
    """The decisions from there on, with their offsets."""


async def read_tail(kafka: KafkaOptions, topic: str) -> Tail:
    """The decisions from the newest repetition on of what was decided before; all of them where there is none."""
    return await read_beside_trimming(kafka, topic, partial(_read_tail, kafka, topic))


async def _read_tail(kafka: KafkaOptions, topic: str, bounds: Bounds) -> Tail:
    found: deque[tuple[int, ControlRecord]] = deque()
    first, length = bounds.end, TAIL_RECORDS
    while first > bounds.start:
        before, first = first, max(bounds.start, bounds.end - length)
        for each in reversed(list(decisions(topic, await read_range(kafka, topic, DECISIONS, first, before)))):
            found.appendleft(each)
            if isinstance(each[1], Recap):
                return Tail(bounds.start, each[0], list(found))
        length *= 4
    return Tail(bounds.start, first, list(found))


async def read_beside_trimming(kafka: KafkaOptions, topic: str, read: Callable[[Bounds], Awaitable[_T]]) -> _T:
    """What `read` makes of the decisions within the bounds that it is given. A leader may delete the oldest of them
    meanwhile, which says that nobody needs them: then it is read again, from where the log begins now."""
    start = -1
    while True:
        bounds = (await offsets(kafka, [(topic, DECISIONS)]))[topic, DECISIONS]
        try:
            return await read(bounds)
        except Refused as error:
            if error.code != OUT_OF_RANGE or bounds.start == start:
                raise
            start = bounds.start


def decisions(topic: str, records: Iterable[Fetched]) -> Iterator[tuple[int, ControlRecord]]:
    """The decisions among `records`, one by one: all at once they take ten times the memory."""
    for record in records:
        decision = decision_in(record, topic)
        if decision is not None:
            yield record.offset, decision


async def refuse_alive(kafka: KafkaOptions, application: str) -> None:
    """Raise Refused when workers of the application run."""
    workers = await alive_workers(kafka, application)
    if workers:
        names = ", ".join(f"process {each.pid} on {each.host}" for each in workers)
        raise Refused(
            "PEN0626", f"{application} runs: {names}. Stop all its workers before it continues from another checkpoint."
        )


async def alive_workers(kafka: KafkaOptions, application: str) -> list[Alive]:
    """The workers that report within the time in which each does."""
    topology = await read_topology(kafka, application)
    place = (Topics.of(application, topology.generation).reports, 0)
    start = (await offsets(kafka, [place]))[place].end
    await asyncio.sleep(LISTEN_S)
    end = (await offsets(kafka, [place]))[place].end
    found: dict[str, Alive] = {}
    for record in await read_range(kafka, *place, start, end):
        if record.value is None or record.key:
            continue
        try:
            report = decode_report(record.value)
        except ProtocolError:
            continue  # The leader says so, when there is one.
        if isinstance(report, Alive):
            found[report.worker] = report
    return list(found.values())
