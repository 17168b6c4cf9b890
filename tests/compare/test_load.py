"""The load generator against a trivial server: on time, with an answer for each request, and as patient as a client."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock.compare.load import Load, LoadOptions, LoadResult
from penstock.compare.messages import source_of
from penstock.compare.records import Event, EventFile, Head, read_events
from penstock.compare.schedule import Offer, offers
from penstock.errors import InvalidInput

SECONDS = 1.0
Handler = Callable[[web.Request, int], web.StreamResponse]


def confirm(request: web.Request, number: int) -> web.StreamResponse:
    return web.json_response({"outcome": "CONFIRMED", "reason": ""})


def offer(path: Path, handler: Handler, schedule: list[Offer] | None = None, **options: Any) -> list[Event]:
    """What was recorded of a load on a server with this handler, which is told how many requests came before."""
    return offered(path, handler, schedule, **options)[0]


def offered(
    path: Path, handler: Handler, schedule: list[Offer] | None = None, **options: Any
) -> tuple[list[Event], LoadResult, list[web.Request]]:
    asked: list[web.Request] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return handler(request, len(asked) - 1)

    async def run() -> LoadResult:
        application = web.Application()
        application.add_routes([web.post("/{path:.*}", serve)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        settings = LoadOptions(
            f"http://127.0.0.1:{runner.addresses[0][1]}",
            str(path),
            Head("S2-X0-0", "S2", "X0", 0),
            origin=time.monotonic() + 0.1,
            seed=0,
            rate=options.pop("rate", 20.0),
            warmup_s=0.0,
            seconds=SECONDS,
            steps=[],
            **options,
        )
        with EventFile(path, settings.head) as events:
            plan = schedule or offers(0, rate=settings.rate, warmup_s=0, seconds=SECONDS, steps=[])
            result = await Load(settings, source_of("", 0, 0.8, path.parent), events).run(plan)
        await runner.cleanup()
        return result

    result = asyncio.run(run())
    return list(read_events(path, "S2-X0-0")), result, asked


ONE = [Offer(0, 0.0)]


def test_every_request_has_one_reply_and_its_time_counts_from_when_it_was_intended(tmp_path: Path) -> None:
    events = offer(tmp_path / "load.jsonl", confirm)

    replies = {event.order: event for event in events if event.kind == "reply"}
    intended = {event.order: event.t for event in events if event.kind == "offered"}
    assert replies.keys() == intended.keys()
    assert Counter(event.kind for event in events)["reply"] == len(intended)
    for order, reply in replies.items():
        assert reply.outcome == "CONFIRMED"
        assert reply.dur_ms == pytest.approx((reply.t - intended[order]) * 1000, abs=0.01)


def test_it_does_not_wait_for_answers_to_keep_its_schedule(tmp_path: Path) -> None:
    """The server is the same process here, and the machine may be busy: the bound is generous. What it keeps by itself
    is measured by `benchmarks.compare_load`."""

    def late(request: web.Request, number: int) -> web.StreamResponse:
        return web.json_response({"outcome": "CONFIRMED"})

    _, result, asked = offered(tmp_path / "load.jsonl", late, rate=200.0)

    assert result.offered == len(asked)
    assert result.late_p99_ms < 250


def test_a_client_asks_again_under_the_same_key_until_somebody_is_there(tmp_path: Path) -> None:
    def at_the_third(request: web.Request, number: int) -> web.StreamResponse:
        if number < 2:
            return web.json_response({"code": "PEN0841", "message": "nobody"}, status=503)
        return confirm(request, number)

    events, _, asked = offered(tmp_path / "load.jsonl", at_the_third, ONE)

    assert [request.headers["Idempotency-Key"] for request in asked] == ["o-0-0"] * 3
    assert [event.outcome for event in events if event.kind == "retry"] == ["PEN0841", "PEN0841"]
    (reply,) = [event for event in events if event.kind == "reply"]
    assert (reply.outcome, reply.attempt) == ("CONFIRMED", 3)


def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    def at_the_second(request: web.Request, number: int) -> web.StreamResponse:
        if number == 0:
            assert request.transport is not None
            request.transport.abort()
        return confirm(request, number)

    events = offer(tmp_path / "load.jsonl", at_the_second, ONE)

    assert [event.outcome for event in events if event.kind in ("retry", "reply")] == ["reset", "CONFIRMED"]


def test_what_a_policy_refuses_is_shed_and_not_asked_again(tmp_path: Path) -> None:
    def refuse(request: web.Request, number: int) -> web.StreamResponse:
        return web.json_response({"code": "PEN0844", "message": "too many"}, status=503)

    events = offer(tmp_path / "load.jsonl", refuse, ONE)

    assert [event.kind for event in events] == ["offered", "sent", "shed", "reply"]
    assert (events[-1].status, events[-1].outcome) == (503, "PEN0844")


def test_a_client_without_keys_or_patience_gives_none_and_asks_once(tmp_path: Path) -> None:
    def refuse(request: web.Request, number: int) -> web.StreamResponse:
        return web.json_response({"code": "PEN0841", "message": "nobody"}, status=503)

    _, _, asked = offered(tmp_path / "load.jsonl", refuse, ONE, keyed=False, attempts_max=1)

    assert len(asked) == 1
    assert "Idempotency-Key" not in asked[0].headers


def test_a_duplicate_has_the_same_key_and_is_told_apart(tmp_path: Path) -> None:
    events, _, asked = offered(tmp_path / "load.jsonl", confirm, [Offer(0, 0.0, twice=True)])

    assert [request.headers["Idempotency-Key"] for request in asked] == ["o-0-0"] * 2
    assert sorted(event.what for event in events if event.kind == "reply") == ["", "duplicate"]


def test_recorded_messages_are_sent_in_their_order_and_again_from_the_first(tmp_path: Path) -> None:
    lines = [{"function": "shop/cart", "id": str(number), "message": {"item": number}} for number in range(2)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = source_of("own.jsonl", 7, 0.8, tmp_path)

    requests = [source.request(number) for number in range(3)]

    assert [request.id for request in requests] == ["0", "1", "0"]
    assert requests[0].body == b'{"item":0}'
    assert len({request.key for request in requests}) == 3


@pytest.mark.parametrize(
    ("text", "reason"), [("", "no messages"), ('{"id": "1"}', "KeyError('function')"), ("{", "line 1")]
)
def test_messages_that_are_none_are_refused_with_their_place(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")

    with pytest.raises(InvalidInput) as refusal:
        source_of("own.jsonl", 0, 0.8, tmp_path).request(0)
    assert refusal.value.code == "PEN0906"
    assert reason in refusal.value.message
