"""What workers and their leader write to one another, and what is none of it."""

from __future__ import annotations

import msgspec
import pytest

from penstock.checkpoint.control import FORMAT as CONTROL_FORMAT
from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.reports import (
    FORMAT,
    Acknowledgement,
    Alive,
    Begin,
    Changed,
    Ended,
    Expelled,
    Fault,
    Finish,
    Hint,
    Leading,
    Pinned,
    Prepare,
    Prepared,
    Report,
    Unable,
    decode_hint,
    decode_report,
    encode_message,
)
from penstock.errors import ProtocolError

ALIVE = Alive("a#1", "a", "host", 17, "http://host:7070", 3, True)
PART = Part(1, "base", 5, 40, 0xFEED, 30, 7, 9, {"orders": 12})
MANIFEST = Manifest(CONTROL_FORMAT, "shop", 7, Lineage(2, ((1, 5),)), 0, 128, 2, 1, {}, (PART,))
REPORTS: list[Report] = [
    ALIVE,
    Changed("a#1", 3, "output"),
    Acknowledgement("a#1", 3, 8, (PART,), {0: 4, 1: 9}, (1,), True, 120, 1.5),
    Unable("a#1", 3, 8, "nobody knows where it is"),
    Prepared("a#1", (0, 1)),
    Fault("a#1", 3, "a frame is missing", 7),
    Ended("a#1", "stopped"),
    Pinned("savepoint-1", 7),
]
HINTS: list[Hint] = [
    Begin(3, 8, (1,)),
    Leading("leader#1", (ALIVE,), (7,)),
    Prepare("a#1", (1,), MANIFEST),
    Prepare("a#1", (1,), None),
    Expelled("a#1", "was silent"),
    Finish(3),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda each: type(each).__name__)
def test_a_report_is_read_as_it_was_written(report: Report) -> None:
    assert decode_report(encode_message(report)) == report


@pytest.mark.parametrize("hint", HINTS, ids=lambda each: type(each).__name__)
def test_a_hint_is_read_as_it_was_written(hint: Hint) -> None:
    assert decode_hint(encode_message(hint)) == hint


def test_fields_that_are_missing_or_unknown_are_of_another_version() -> None:
    old = msgspec.msgpack.encode((FORMAT, ["alive", "a#1"]))
    new = msgspec.msgpack.encode((FORMAT, ["finish", 3, "what nobody knows yet"]))

    assert decode_report(old) == Alive("a#1")
    assert decode_hint(new) == Finish(3)


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"{}", msgspec.msgpack.encode((FORMAT, ["nonsense", 1]))])
def test_what_somebody_else_wrote_says_who_may_write_there(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"PEN0511 A report of a worker can't be read.*Only Penstock may write"):
        decode_report(data)
    with pytest.raises(ProtocolError, match=r"PEN0511 A hint of the leader can't be read.*Only Penstock may write"):
        decode_hint(data)
