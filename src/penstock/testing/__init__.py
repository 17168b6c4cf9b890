"""Runs an application inside a test: the real engine in virtual time, with faults as far as a test asks for them.

with Harness(app) as h:
    h.send(airport, "JFK", Departure("AA", 12.5))
    h.advance(hours=1)
    assert h.state(airport, "JFK").departures == 1
    assert h.egress("flights/alerts") == [Alert("AA")]
"""

from __future__ import annotations

from penstock.functions.trial import START, DelayedMessage, Trial
from penstock.testing.faults import ClockJumps, Crash, FailingSink, Fault, Repeats, SlowSink
from penstock.testing.running import Harness, harness

__all__ = [
    "START",
    "ClockJumps",
    "Crash",
    "DelayedMessage",
    "FailingSink",
    "Fault",
    "Harness",
    "Repeats",
    "SlowSink",
    "Trial",
    "harness",
]
