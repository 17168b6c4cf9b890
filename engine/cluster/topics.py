"""Where things stand in the topics of one application: names, partitions, and what records of control say."""

from __future__ import annotations

from typing import NamedTuple

from penstock.checkpoint.control import ControlRecord, decode_control
from penstock.checkpoint.reports import Hint, decode_hint
from penstock.engine.cluster.options import ClusterOptions
from penstock.errors import ProtocolError
from penstock.logs import logger
from penstock.router.kafka_records import Fetched
from penstock.router.kafka_topics import Ensured, ensure, is_incarnation, topic_name

DEAD = "penstock/dead"
"""The egress of copies of dead letters, which every application of several workers has."""
DECISIONS, HINTS = 0, 1
"""Partitions of the control topic: one is written in transactions of the leader only, the other plainly."""


class Topics(NamedTuple):
    """The internal topics of one application, in one generation."""

    control: str
    reports: str
    inbox: str
    requests: str
    deltas: str
    marks: str
    replies: str
    dead: str

    @classmethod
    def of(cls, app: str, generation: int = 1) -> Topics:
        return cls(
            control=topic_name(app, "control", generation),
            reports=topic_name(app, "reports", generation),
            inbox=topic_name(app, "inbox", generation),
            requests=topic_name(app, "requests", generation),
            deltas=topic_name(app, "deltas", generation),
            marks=topic_name(app, "egress-marks", generation),
            replies=topic_name(app, "replies", generation),
            dead=topic_name(app, "dead", generation),
        )


async def ensure_topics(
    app: str, parallelism: int, cluster: ClusterOptions, generation: int, *, beginning: bool = False
) -> Ensured:
    """Create what is missing of the topics of a generation, and verify the others, as `ensure` says."""
    return await ensure(
        cluster.kafka,
        app,
        application_id=app,
        parallelism=parallelism,
        replicas=cluster.replicas,
        generation=generation,
        beginning=beginning,
    )


def decision_in(record: Fetched, topic: str) -> ControlRecord | None:
    """What a record of the decisions says; None for the one that says whose the topic is. Raises ProtocolError."""
    if is_incarnation(record.key):
        return None
    try:
        return decode_control(record.value or b"")
    except ProtocolError as error:
        raise ProtocolError(
            error.code,
            f"Offset {record.offset} of {topic}-{DECISIONS}: {error.message} Only leaders write there; find out who "
            "does. Nothing was skipped: without every decision the application can't go on. Restore the topic, or "
            "begin anew, under another name or after: penstock destroy.",
        ) from error


def hint_in(record: Fetched) -> Hint | None:
    """What a record of the hints says; None for one that is no hint, which is said and does no harm."""
    if is_incarnation(record.key):
        return None
    try:
        return decode_hint(record.value or b"")
    except ProtocolError as error:
        logger.error("%s", error)
        return None
