"""Where inputs come from: an ingress, the requests log, the inbox and handlers that ended, each with its position."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.snapshot import BaseRef, SnapshotTask
from penstock.engine.effects import Column, Completed, Deliveries, FrameInput
from penstock.engine.feeds import Completions, InboxFeed, IngressFeed, RequestFeed, request_envelope
from penstock.errors import CorruptSnapshot, FunctionError, ProtocolError
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.io import FileIngress, MemoryIngress
from penstock.functions.state import Message
from penstock.functions.types import codec_for
from penstock.ids import Address, Offset, cause_of
from penstock.records import Envelope, EpochFrame
from penstock.router.frames import encode_frames
from penstock.router.ingress import MemoryReader, reader_for
from penstock.router.memory import MemoryLog
from penstock.router.requests import encode_request
from penstock.router.routing import IngressRouter


class Seen(Message):
    id: str
    count: int = 0


def ingress_feed(spec: MemoryIngress | FileIngress, wake: Any = lambda: None, router: Any = None) -> IngressFeed:
    app = App("bench")

    @app.function("t/seen")
    def seen(ctx: Context[None], message: Seen) -> None: ...

    to: dict[str, Any] = {"router": router} if router else {"to": seen, "key": "id"}
    ingress = app.ingress(spec, name="things", **to)
    compiled = IngressRouter.compile(
        "things",
        spec,
        **to,
        value_codec=codec_for(Seen),
        resolve=lambda target: ("t/seen", seen.message_codec),
        message_bytes_max=100,
    )
    return IngressFeed("bench", ingress, reader_for(spec), compiled, wake)


def column(taken: Iterable[Any]) -> Column:
    (each,) = taken
    assert isinstance(each, Column)
    return each


def deliveries(taken: Iterable[Any]) -> Deliveries:
    (each,) = taken
    assert isinstance(each, Deliveries)
    return each


def test_records_for_one_function_are_a_column_with_dense_causes() -> None:
    spec = MemoryIngress(type=Seen)
    spec.feed(*(Seen(f"id{n}") for n in range(5)))
    feed = ingress_feed(spec)

    first, second = column(feed.take(3)), column(feed.take(3))

    assert (first.source, first.typename, list(first.ids)) == ("things", "t/seen", ["id0", "id1", "id2"])
    assert (first.position, second.position, list(second.ids)) == (3, 5, ["id3", "id4"])
    assert second.cause == first.cause + 3
    assert codec_for(Seen).decode(first.payloads[0]) == Seen("id0")


def test_a_feed_continues_at_a_position_with_the_same_causes() -> None:
    spec = MemoryIngress(type=Seen)
    spec.feed(*(Seen(f"id{n}") for n in range(5)))
    first = column(ingress_feed(spec).take(5))
    feed = ingress_feed(spec)
    feed.seek(3)

    again = column(feed.take(5))

    assert (list(again.ids), again.cause) == (["id3", "id4"], first.cause + 3)
    assert feed.origin_of(again.cause) == "memory record 4"
    assert feed.origin_of(17) == ""


def test_a_feed_is_as_far_as_its_reader(tmp_path: Path) -> None:
    (tmp_path / "seen.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    feed = ingress_feed(FileIngress(str(tmp_path / "seen.jsonl"), type=Seen))
    assert feed.progress() is None
    feed.seek(None)

    feed.take(1)

    assert feed.progress() == (12, 24)
    asyncio.run(feed.close())
    assert feed.progress() is None


def test_a_record_that_cannot_be_routed_comes_along_as_rejected() -> None:
    spec = MemoryIngress(type=Seen)
    spec.feed(Seen("a"), Seen(""), 5, Seen("x" * 200), Seen("b"))

    taken = deliveries(ingress_feed(spec).take(10))

    assert [envelope.id for envelope in taken.envelopes] == ["a", "b"]
    assert [(bad.code, bad.origin, bad.typename) for bad in taken.rejected] == [
        ("PEN0203", "memory record 2", "things"),
        ("PEN0201", "memory record 3", "things"),
        ("PEN0204", "memory record 4", "things"),
    ]
    assert taken.position == 5
    assert taken.envelopes[1].cause == taken.envelopes[0].cause + 4


def test_a_router_gives_a_record_several_messages_or_none() -> None:
    spec = MemoryIngress(type=Seen)
    spec.feed(Seen("a", 2), Seen("b", 0), Seen("c", 1))

    taken = deliveries(
        ingress_feed(spec, router=lambda seen: [("t/seen", seen.id, seen, {"h": "1"})] * seen.count).take(10)
    )

    first = taken.envelopes[0].cause
    assert [(envelope.id, envelope.cause - first) for envelope in taken.envelopes] == [("a", 0), ("a", 0), ("c", 2)]
    assert taken.envelopes[0].meta is not None
    assert taken.envelopes[0].meta.headers == {"h": "1"}


def test_a_feed_without_records_wakes_its_worker_when_some_come() -> None:
    async def scenario() -> None:
        spec, woken = MemoryIngress(type=Seen), asyncio.Event()
        feed = ingress_feed(spec, woken.set)

        assert (feed.take(10), feed.take(10)) == ([], [])
        spec.feed(Seen("a"))
        await woken.wait()
        assert list(column(feed.take(10)).ids) == ["a"]
        spec.finish()
        feed.take(10)
        assert feed.done
        assert feed.take(10) == []
        await feed.close()

    asyncio.run(scenario())


def test_requests_are_taken_in_order_and_again_from_a_position() -> None:
    log = MemoryLog()
    feed = RequestFeed(log, 0)
    feed.seek(None)
    for n in range(3):
        feed.append(encode_request(request_envelope(Address("t/seen", f"id{n}"), b"x", request_id=f"r{n}")))

    assert feed.behind == 3
    taken = deliveries(feed.take(2))
    assert [envelope.id for envelope in taken.envelopes] == ["id0", "id1"]
    assert (feed.behind, taken.source) == (1, "requests")

    again = RequestFeed(log, 0)
    again.seek(taken.position)
    assert [envelope.id for envelope in deliveries(again.take(9)).envelopes] == ["id2"]
    assert again.take(9) == []


def test_requests_that_are_no_longer_stored_are_not_passed_over() -> None:
    log = MemoryLog()
    feed = RequestFeed(log, 0)
    for n in range(3):
        feed.append(encode_request(request_envelope(Address("t/seen", f"id{n}"), b"x", request_id=f"r{n}")))
    log.flush_nowait()
    log.truncate("requests-0", Offset(2))

    with pytest.raises(ProtocolError, match="PEN0413 Log partition requests-0 no longer has offset 1"):
        feed.seek(1)


def test_the_cause_of_a_request_is_its_key_or_its_own() -> None:
    def cause(**options: Any) -> int:
        return request_envelope(Address("t/seen", "a"), b"x", **options).cause

    assert cause(request_id="r1") == cause_of("r1")
    assert cause(request_id="r1", idempotency_key="k") == cause(request_id="r2", idempotency_key="k")
    assert cause(request_id="") != cause(request_id="")


def test_frames_of_a_rolled_back_attempt_are_left_out() -> None:
    log = MemoryLog()
    message = Envelope("t/seen", "a", b"x", 7, None, None)
    frames = [EpochFrame(attempt, 5, 1, 1, [message]) for attempt in (1, 2, 3)]
    log.append("inbox-0", encode_frames(frames[:2]))
    log.append("inbox-0", encode_frames(frames[2:]))
    lineage = Lineage(3, ((1, 9),))  # Attempt 2 was rolled back.
    snapshot = SnapshotTask(0, lineage, 5, base=BaseRef(), head=-1, checksum=0)
    feed = InboxFeed(log, 0, snapshot)
    feed.seek(0)

    taken = feed.take(10)

    admitted = [(each.position, each.frame) for each in taken if isinstance(each, FrameInput)]
    assert [(position, frame and frame.attempt) for position, frame in admitted] == [(1, 1), (2, 3)]
    assert (snapshot.dropped, feed.behind) == (1, 0)


def test_frames_that_count_are_found_behind_any_number_of_others() -> None:
    """Whoever takes nothing waits until something arrives."""
    log = MemoryLog()
    message = Envelope("t/seen", "a", b"x", 7, None, None)
    for attempt in (2, 2, 2, 2, 3):
        log.append("inbox-0", encode_frames([EpochFrame(attempt, 5, 1, 1, [message])]))
    feed = InboxFeed(log, 0, SnapshotTask(0, Lineage(3), 5, base=BaseRef(), head=-1, checksum=0))
    feed.seek(0)

    (taken,) = feed.take(1)

    assert isinstance(taken, FrameInput)
    assert taken.position == 5


def test_frames_that_are_no_longer_stored_are_not_passed_over() -> None:
    log = MemoryLog()
    for _ in range(5):
        log.append("inbox-0", b"frame")
    log.flush_nowait()
    log.truncate("inbox-0", Offset(3))
    feed = InboxFeed(log, 0, SnapshotTask(0, Lineage(2), 5, base=BaseRef(), head=-1, checksum=0))

    with pytest.raises(ProtocolError, match="PEN0413 Log partition inbox-0 no longer has offset 2"):
        feed.seek(2)
    with pytest.raises(CorruptSnapshot, match="PEN0409"):
        feed.seek(6)
    feed.seek(3)
    assert feed.behind == 2
    feed.seek(None)  # Nothing is restored: what earlier histories sent is nobody's.
    assert feed.behind == 2


def test_handlers_that_ended_are_taken_in_that_order() -> None:
    completions = Completions()
    for number in (3, 1, 2):
        completions.add(Completed(number, None, None))

    taken = [*completions.take(2), *completions.take(9)]

    assert [each.number for each in taken if isinstance(each, Completed)] == [3, 1, 2]


def test_an_error_while_a_feed_waits_is_raised_by_its_next_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(reader: MemoryReader) -> None:
        raise OSError("broker gone")

    async def scenario() -> None:
        woken = asyncio.Event()
        feed = ingress_feed(MemoryIngress(type=Seen), woken.set)
        assert feed.take(1) == []
        await woken.wait()

        with pytest.raises(FunctionError, match="PEN0226 Ingress things failed with OSError: broker gone"):
            feed.take(1)

    monkeypatch.setattr(MemoryReader, "wait_ready", fail)
    asyncio.run(scenario())
