"""Where things stand in the topics of one application: names and partitions, in one place."""

from __future__ import annotations

from typing import NamedTuple

from penstock.router.kafka_topics import topic_name

DECISIONS, HINTS = 0, 1
"""Partitions of the control topic: one is written in transactions of the leader only, the other plainly."""


class Topics(NamedTuple):
    """The internal topics of one application."""

    control: str
    reports: str
    inbox: str
    requests: str
    deltas: str
    marks: str
    replies: str
    dead: str

    @classmethod
    def of(cls, app: str) -> Topics:
        return cls(
            control=topic_name(app, "control"),
            reports=topic_name(app, "reports"),
            inbox=topic_name(app, "inbox"),
            requests=topic_name(app, "requests"),
            deltas=topic_name(app, "deltas"),
            marks=topic_name(app, "egress-marks"),
            replies=topic_name(app, "replies"),
            dead=topic_name(app, "dead"),
        )
