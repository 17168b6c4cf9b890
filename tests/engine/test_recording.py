"""What was recorded, as those get it who run it again (engine/recording.py): inboxes are read once, by whoever asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import pytest

from penstock.engine.recording import Inbox
from penstock.errors import Refused
from penstock.records import Envelope, EpochFrame

CUT = (1, 7)
"""The attempt and the checkpoint that the recording begins with."""


def frame(source: int, sequence: int, *, epoch: int = 7, attempt: int = 1) -> EpochFrame:
    name = f"{attempt}-{source}-{sequence}"
    return EpochFrame(attempt, epoch, source, sequence, [Envelope("t/f", name, b"", 1, None, None)])


def inbox(
    frames: Iterable[EpochFrame],
    *,
    marks: dict[int, tuple[int, int]] | None = None,
    readers: Collection[int] = range(3),
) -> Inbox:
    """That of task 0."""
    return Inbox(0, iter(frames), marks or {}, CUT, readers)


def ids(messages: Iterable[Envelope]) -> list[str]:
    return [message.id for message in messages]


def test_each_reader_gets_what_is_for_it_in_order() -> None:
    frames = [frame(1, 1), frame(2, 1), frame(1, 2), frame(2, 2)]
    found = inbox(frames)

    assert ids(found.sent(2, 1, 2)) == ["1-2-1", "1-2-2"]
    assert [found.admitted() for _ in range(4)] == frames
    assert ids(found.sent(1, 1, 1)) == ["1-1-1"]
    assert ids(found.sent(1, 1, 2)) == ["1-1-2"]


def test_no_more_is_read_than_was_asked_for() -> None:
    def frames() -> Iterator[EpochFrame]:
        yield frame(1, 1)
        yield frame(2, 1)
        raise AssertionError("nobody asked for more")

    found = inbox(frames())

    assert ids(found.sent(1, 1, 1)) == ["1-1-1"]
    assert ids(found.sent(2, 1, 1)) == ["1-2-1"]


def test_what_was_sent_before_the_first_checkpoint_is_admitted_and_no_output() -> None:
    found = inbox([frame(1, 4, epoch=6), frame(1, 5)], marks={1: (1, 3)})

    assert ids(found.sent(1, 1, 5)) == ["1-1-5"]
    assert [found.admitted().sequence for _ in range(2)] == [4, 5]


def test_a_frame_that_was_admitted_before_or_came_twice_counts_once() -> None:
    """A cut may lie between two frames of a record, and a record may be written twice."""
    found = inbox([frame(1, 3), frame(1, 4), frame(1, 3), frame(1, 4), frame(1, 5)], marks={1: (1, 3)})

    assert [found.admitted().sequence for _ in range(2)] == [4, 5]


def test_a_new_attempt_numbers_its_frames_anew() -> None:
    found = inbox([frame(1, 8), frame(1, 1, attempt=2, epoch=9), frame(1, 9)])

    assert [found.admitted().attempt for _ in range(2)] == [1, 2]
    assert ids(found.sent(1, 2, 1)) == ["1-1-8", "2-1-1"]


def test_a_frame_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="PEN0443 The log does not hold a frame of another task that task 0 took"):
        list(inbox([frame(1, 1)]).sent(1, 1, 2))
