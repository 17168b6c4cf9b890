"""The application of the proof on builds that have lost a rule, to see whether the checker notices.

The rule is named by PROOF_WITHOUT in the environment. Two of them protect against delays that are rare on one machine,
so these are made here. They break nothing: where no rule is named there are all of them, and the checker must find the
build in order.

    marker         rows are committed without a look at which of them are visible already
    flush          a cut is acknowledged although frames sent before it may not be durable
    rule-f         a frame of a newer epoch is processed before the cut
    lineage        frames of what was rolled back are processed

What always holds: the product has no such switch; its classes are changed from here, in every process that loads this.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.member import Action, Cut
from penstock.checkpoint.sinks import TwoPhaseSink
from penstock.checkpoint.snapshot import Admission, SnapshotTask
from penstock.engine.cluster.frames import FrameWriter
from penstock.engine.cluster.link import LeaderLink
from penstock.records import EpochFrame
from penstock.router.kafka_batches import Record
from penstock.router.kafka_writer import KafkaWriter
from tests.kafka.proof import app as proof

app = proof.app

FRAMES_LATE_S = 0.6
CUTS_LATE_S = 0.5


def without_marker() -> None:
    marker_read = TwoPhaseSink._marker_read
    TwoPhaseSink._marker_read = lambda self, marker: marker_read(self, {})  # type: ignore[method-assign]


def without_lineage() -> None:
    Lineage.accepts = lambda self, attempt, epoch: True  # type: ignore[method-assign]


def without_rule_f() -> None:
    admit = SnapshotTask.admit

    def hasty(self: SnapshotTask, frame: EpochFrame) -> Admission:
        admission = admit(self, frame)
        return Admission.PROCESS if admission is Admission.CUT_FIRST else admission

    SnapshotTask.admit = hasty  # type: ignore[method-assign]


class _Late:
    """A writer that a frame reaches after a while, as over a slow connection."""

    def __init__(self, writer: KafkaWriter) -> None:
        self._writer = writer
        self.sent = self.arrived = 0

    def append(self, record: Record) -> asyncio.Future[int]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self.sent += 1

        def arrive() -> None:
            self.arrived += 1
            self._writer.append(record).add_done_callback(hand_on)

        def hand_on(written: asyncio.Future[int]) -> None:
            if not future.done():
                future.set_result(written.result())

        loop.call_later(FRAMES_LATE_S, arrive)
        return future


def delay_frames(*, waited_for: bool) -> None:
    """Frames are on their way for a while; `waited_for` by a flush, as all that was appended is."""
    start = FrameWriter.__init__

    def begin(self: FrameWriter, writer: KafkaWriter, topic: str) -> None:
        late = _Late(writer)
        start(self, late, topic)  # type: ignore[arg-type]
        if waited_for:
            flush = writer.flush

            async def flush_all() -> None:
                sent = late.sent
                while late.arrived < sent:  # noqa: ASYNC110  # Nobody is told.
                    await asyncio.sleep(0.005)
                await flush()

            writer.flush = flush_all  # type: ignore[method-assign]

    FrameWriter.__init__ = begin  # type: ignore[method-assign]


def delay_cuts() -> None:
    """The hint that a checkpoint begins reaches one worker sooner than another: frames of the new epoch come first."""
    hear = LeaderLink.actions
    arrived: list[Action] = []  # A process has one link.

    def hear_late(self: LeaderLink) -> list[Action]:
        heard = hear(self)
        for action in heard:
            if isinstance(action, Cut):
                asyncio.get_running_loop().call_later(random.random() * CUTS_LATE_S, arrived.append, action)
        prompt = [action for action in heard if not isinstance(action, Cut)] + arrived
        arrived.clear()
        return prompt

    LeaderLink.actions = hear_late  # type: ignore[method-assign]


BREAK: dict[str, Callable[[], None]] = {
    "": lambda: delay_frames(waited_for=True),
    "marker": without_marker,
    "flush": lambda: delay_frames(waited_for=False),
    "rule-f": without_rule_f,
    "lineage": without_lineage,
}

BREAK[os.environ.get("PROOF_WITHOUT", "")]()
if os.environ.get("PROOF_WITHOUT", "") in ("", "rule-f"):
    delay_cuts()
