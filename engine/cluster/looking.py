"""What Kafka tells of an application to somebody who takes no part in it.

What always holds: it is only read; a worker that is alive reports every second, so whoever is not heard for a little
longer is not there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator

from penstock.checkpoint.control import Complete, ControlRecord, Manifest, Recap
from penstock.checkpoint.recovery import History
from penstock.checkpoint.reports import Alive, decode_report
from penstock.engine.cluster.options import HEARTBEAT_MS
from penstock.engine.cluster.topics import DECISIONS, Topics, decision_in
from penstock.errors import ProtocolError, Refused
from penstock.router.kafka_client import Bounds, offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range
from penstock.router.kafka_records import Fetched

LISTEN_S = 1.5 * HEARTBEAT_MS / 1000


TAIL_RECORDS = 1_000
"""How far from the end the newest repetition of what was decided before is looked for at first. A record takes two
offsets; the leader repeats it when `RECAP_RECORDS` are there, at the next of its looks every ten seconds."""


async def read_history(kafka: KafkaOptions, application: str) -> History:
    """What was decided so far: all of it, some tens of MB where checkpoints are taken all the time."""
    place = (Topics.of(application).control, DECISIONS)
    bounds = (await offsets(kafka, [place]))[place]
    history = History(deltas_apart=True)
    for offset, decision in decisions(place[0], await read_range(kafka, *place, bounds.start, bounds.end)):
        history.apply(offset, decision)
    return history


async def read_newest(kafka: KafkaOptions, application: str) -> tuple[History, Manifest | None]:
    """What the newest decisions say, and the newest checkpoint that can be restored."""
    place = (Topics.of(application).control, DECISIONS)
    history = History(deltas_apart=True)
    manifests: dict[int, Manifest] = {}
    for offset, decision in (await read_tail(kafka, place[0], (await offsets(kafka, [place]))[place]))[1]:
        history.apply(offset, decision)
        if isinstance(decision, Complete):
            manifests[decision.manifest.checkpoint] = decision.manifest
        elif isinstance(decision, Recap) and decision.newest is not None:
            manifests[decision.newest[1].checkpoint] = decision.newest[1]
    best = next(history.candidates(), None)
    return history, manifests.get(best.checkpoint) if best is not None else None


async def read_tail(kafka: KafkaOptions, topic: str, bounds: Bounds) -> tuple[int, list[tuple[int, ControlRecord]]]:
    """The decisions from the newest repetition on of what was decided before, and where that is; all of them where
    there is none."""
    found: deque[tuple[int, ControlRecord]] = deque()
    first, length = bounds.end, TAIL_RECORDS
    while first > bounds.start:
        before, first = first, max(bounds.start, bounds.end - length)
        for each in reversed(list(decisions(topic, await read_range(kafka, topic, DECISIONS, first, before)))):
            found.appendleft(each)
            if isinstance(each[1], Recap):
                return each[0], list(found)
        length *= 4
    return first, list(found)


def decisions(topic: str, records: Iterable[Fetched]) -> Iterator[tuple[int, ControlRecord]]:
    """The decisions among `records`, one by one: all at once they take ten times the memory."""
    for record in records:
        decision = decision_in(record, topic)
        if decision is not None:
            yield record.offset, decision


async def refuse_alive(kafka: KafkaOptions, application: str) -> None:
    """Raise Refused when workers of the application run."""
    workers = await _alive(kafka, application)
    if workers:
        names = ", ".join(f"process {each.pid} on {each.host}" for each in workers)
        raise Refused(
            "PEN0626", f"{application} runs: {names}. Stop all its workers before it continues from another checkpoint."
        )


async def _alive(kafka: KafkaOptions, application: str) -> list[Alive]:
    """The workers that report within the time in which each does."""
    place = (Topics.of(application).reports, 0)
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
