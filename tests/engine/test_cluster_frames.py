"""Where frames end in the inboxes they were sent to: what a checkpoint says of it must hold."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.engine.cluster.frames import FrameWriter
from penstock.records import EpochFrame
from penstock.router.frames import decode_frames
from penstock.router.kafka_batches import Record
from tests.simulation.cluster_kafka import Promise


class Writer:
    """Writes when it is told to, at the offset it is told."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Record, Promise]] = []

    def append(self, record: Record) -> Promise:
        promise = Promise()
        self.waiting.append((record, promise))
        return promise

    def write(self, offset: int) -> Record:
        record, promise = self.waiting.pop(0)
        promise.keep(offset)
        return record


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def frames(writer: Writer) -> FrameWriter:
    found: Any = writer
    return FrameWriter(found, "shop.inbox")


def send(frames: FrameWriter, destination: int, sequence: int) -> None:
    frames.send(destination, EpochFrame(1, 0, 0, sequence, []))
    frames.seal()


def test_what_was_written_nobody_knows_where_ends_before_a_record_that_asks(
    frames: FrameWriter, writer: Writer
) -> None:
    """Or a checkpoint would say that nothing is to be taken any more, while this is."""
    send(frames, 3, 1)
    writer.write(10)
    send(frames, 3, 2)
    writer.write(-1)
    assert frames.ends == {3: 11}

    assert frames.probe()
    assert decode_frames(writer.waiting[0][0].value or b"", place="here") == []
    writer.write(12)
    assert frames.ends == {3: 12}
    assert not frames.probe()


def test_a_question_whose_answer_gets_lost_is_asked_again(frames: FrameWriter, writer: Writer) -> None:
    send(frames, 3, 1)
    writer.write(-1)
    assert frames.probe()
    writer.write(-1)
    assert frames.probe()
    writer.write(2)
    assert not frames.probe()
    assert frames.ends == {3: 2}


def test_a_later_frame_answers_as_well(frames: FrameWriter, writer: Writer) -> None:
    send(frames, 3, 1)
    send(frames, 3, 2)
    writer.write(-1)
    writer.write(7)
    assert not frames.probe()
    assert frames.ends == {3: 8}
