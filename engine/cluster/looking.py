"""What Kafka tells of an application to somebody who takes no part in it.

What always holds: it is only read; a worker that is alive reports every second, so whoever is not heard for a little
longer is not there.
"""

from __future__ import annotations

import asyncio

from penstock.checkpoint.recovery import History
from penstock.checkpoint.reports import Alive, decode_report
from penstock.engine.cluster.options import HEARTBEAT_MS
from penstock.engine.cluster.topics import DECISIONS, Topics, decision_in
from penstock.errors import ProtocolError, Refused
from penstock.router.kafka_client import offsets
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range

LISTEN_S = 1.5 * HEARTBEAT_MS / 1000


async def read_history(kafka: KafkaOptions, application: str) -> History:
    """What was decided so far."""
    place = (Topics.of(application).control, DECISIONS)
    bounds = (await offsets(kafka, [place]))[place]
    history = History(deltas_apart=True)
    for record in await read_range(kafka, *place, bounds.start, bounds.end):
        decision = decision_in(record, place[0])
        if decision is not None:
            history.apply(record.offset, decision)
    return history


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
