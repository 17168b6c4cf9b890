"""Topics: envelopes, what applications answer, and what becomes of events that are not taken."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock.mesh.dapr.application import Rule, Subscription
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer
from penstock.mesh.dapr.topics import CLOUD_EVENT, Publication, Verdict, envelope, route_of, verdict_of
from tests.mesh.dapr.world import FakeApplication, until, world

PUBLISH = "/v1.0/publish/pubsub/orders"


def published(body: bytes, content_type: str, **metadata: str) -> dict[str, Any]:
    said = {name.replace("_", "."): value for name, value in metadata.items()}
    return envelope(Publication(body, content_type, said, {"traceparent": "00-1-2-01"}), "shop", "pubsub", "orders")


class TestEnvelope:
    """A cloud event around what is published."""

    def test_json_is_data(self) -> None:
        event = published(b'{"n":1}', "application/json; charset=utf-8")

        assert event["data"] == {"n": 1}
        assert (event["source"], event["type"], event["specversion"]) == ("shop", "com.dapr.event.sent", "1.0")
        assert (event["pubsubname"], event["topic"]) == ("pubsub", "orders")
        assert event["traceid"] == event["traceparent"] == "00-1-2-01"
        assert event["id"]
        assert event["time"].endswith("Z")

    def test_text_is_data_and_bytes_are_coded(self) -> None:
        assert published(b"hello", "")["data"] == "hello"
        assert published(b"\xff", "application/octet-stream")["data_base64"] == b64encode(b"\xff").decode()
        assert published(b'{"n":1}', "application/json", rawPayload="true")["data_base64"]

    def test_a_cloud_event_is_kept(self) -> None:
        event = published(b'{"id":"7","type":"paid","source":"bank","data":1,"mine":2}', CLOUD_EVENT)

        assert (event["id"], event["type"], event["source"], event["mine"]) == ("7", "paid", "bank", 2)
        assert event["topic"] == "orders"

    def test_attributes_may_be_given_beside(self) -> None:
        assert published(b"1", "application/json", cloudevent_type="paid")["type"] == "paid"

    @pytest.mark.parametrize(("body", "kind"), [(b"{", "application/json"), (b"[]", CLOUD_EVENT), (b"", CLOUD_EVENT)])
    def test_a_body_that_is_none_of_its_kind_is_refused(self, body: bytes, kind: str) -> None:
        with pytest.raises(DaprError):
            published(body, kind)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b"", Verdict.TAKEN),
        (204, b"", Verdict.TAKEN),
        (200, b"thanks", Verdict.TAKEN),
        (200, b'"thanks"', Verdict.TAKEN),
        (200, b'{"status":"SUCCESS"}', Verdict.TAKEN),
        (200, b'{"other":1}', Verdict.TAKEN),
        (200, b'{"status":"RETRY"}', Verdict.AGAIN),
        (200, b'{"status":"PERHAPS"}', Verdict.AGAIN),
        (200, b'{"status":"DROP"}', Verdict.DROPPED),
        (404, b"", Verdict.DROPPED),
        (302, b"", Verdict.AGAIN),
        (500, b"", Verdict.AGAIN),
    ],
)
def test_what_an_application_answers_means(status: int, body: bytes, verdict: Verdict) -> None:
    assert verdict_of(Answer(status, (), body)) is verdict


def test_the_first_rule_that_is_for_an_event_has_it() -> None:
    rules = [Rule({"type": "paid", "source": "bank"}, "paid"), Rule({"type": "paid"}, "other")]
    subscription = Subscription("pubsub", "orders", rules, "rest", "", ())

    assert route_of(subscription, {"type": "paid", "source": "bank"}) == "paid"
    assert route_of(subscription, {"type": "paid", "source": "shop"}) == "other"
    assert route_of(subscription, {"type": "sent"}) == "rest"


def reading(*topics: str, **more: Any) -> FakeApplication:
    application = FakeApplication(
        subscriptions=[{"pubsubname": "pubsub", "topic": topic, "route": f"/on/{topic}"} | more for topic in topics]
    )
    for topic in topics:
        application.says(f"/on/{topic}", {"status": "SUCCESS"})
    return application


def test_every_application_that_reads_gets_each_event_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            bank, first, second = reading("orders"), reading("orders"), reading("orders")
            await here.sidecar(bank, "bank")
            await here.sidecar(first, "stock")
            await here.sidecar(second, "stock")
            sidecar = await here.sidecar(FakeApplication())
            for number in range(20):
                told = await here.ask(sidecar, "POST", PUBLISH, number, Content_Type="application/json")
                assert told.status == 204
            await bank.is_asked_for("/on/orders", 20)
            await until(lambda: len(first.asked_for("/on/orders")) + len(second.asked_for("/on/orders")) == 20)
            got = [asked.json["data"] for one in (first, second) for asked in one.asked_for("/on/orders")]
            assert sorted(got) == list(range(20))
            assert bank.asked_for("/on/orders")[0].headers["Content-Type"] == CLOUD_EVENT

    asyncio.run(check())


def test_events_wait_for_an_application_that_is_away(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            leaving = await here.sidecar(reading("orders"), "stock")
            await leaving.close()
            sidecar = await here.sidecar(FakeApplication())
            await here.ask(sidecar, "POST", PUBLISH, 1, Content_Type="application/json")
            back = reading("orders")
            await here.sidecar(back, "stock")
            assert (await back.is_asked_for("/on/orders"))[0].json["data"] == 1

    asyncio.run(check())


def test_what_is_not_taken_is_delivered_again_and_what_is_dropped_goes_to_the_dead_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.mesh.dapr.topics.RETRY_FIRST_S", 0.001)
    monkeypatch.setattr("penstock.mesh.dapr.topics.TRIES", 3)

    async def check() -> None:
        async with world(tmp_path) as here:
            application = reading("orders", "dead", deadLetterTopic="dead")
            application.says("/on/orders", "no", status=500)
            sidecar = await here.sidecar(application)
            await here.ask(sidecar, "POST", PUBLISH, 1, Content_Type="application/json")
            (dead,) = await application.is_asked_for("/on/dead")
            assert dead.json["data"] == 1
            assert len(application.asked_for("/on/orders")) == 3
            application.says("/on/orders", {"status": "DROP"})
            await here.ask(sidecar, "POST", PUBLISH, 2, Content_Type="application/json")
            assert (await application.is_asked_for("/on/dead", 2))[1].json["data"] == 2
            assert len(application.asked_for("/on/orders")) == 4

    asyncio.run(check())
    assert caplog.text.count("PEN0883 An event of topic orders is not delivered to shop") == 2


def test_several_are_published_at_once(tmp_path: Path) -> None:
    entries = [
        {"entryId": "1", "event": {"n": 1}, "contentType": "application/json"},
        {"entryId": "2", "event": "text", "contentType": "text/plain"},
    ]

    async def check() -> None:
        async with world(tmp_path) as here:
            application = reading("orders")
            sidecar = await here.sidecar(application)
            bulk = "/v1.0/publish/bulk/pubsub/orders"
            assert (await here.ask(sidecar, "POST", bulk, entries)).status == 204
            got = await application.is_asked_for("/on/orders", 2)
            assert sorted(str(asked.json["data"]) for asked in got) == ["text", "{'n': 1}"]
            same = [entries[0], entries[0]]
            assert (await here.ask(sidecar, "POST", bulk, same)).error == (400, "ERR_PUBSUB_EVENTS_SER")

    asyncio.run(check())


def test_what_can_not_be_published_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication())
            unknown = await here.ask(sidecar, "POST", "/v1.0/publish/kafka/orders", 1)
            assert unknown.error == (404, "ERR_PUBSUB_NOT_FOUND")
            assert (await here.ask(sidecar, "POST", "/v1.0/publish/pubsub/", 1)).error == (404, "ERR_TOPIC_NAME_EMPTY")
            assert (await here.ask(sidecar, "POST", f"{PUBLISH}?metadata.ttlInSeconds=soon", 1)).status == 400

    asyncio.run(check())


def test_what_an_application_reads_and_can_not_have_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = {"rules": [{"match": "event.data.n > 5", "path": "/big"}], "default": "/small"}

    async def check() -> None:
        async with world(tmp_path) as here:
            application = FakeApplication(
                subscriptions=[
                    {"pubsubname": "kafka", "topic": "orders", "route": "/on"},
                    {"pubsubname": "pubsub", "topic": "sizes", "routes": rules},
                    {"pubsubname": "pubsub", "topic": "nothing"},
                ]
            )
            application.answers["/small"] = lambda _: web.Response()
            sidecar = await here.sidecar(application)
            await here.ask(sidecar, "POST", "/v1.0/publish/pubsub/sizes", 7, Content_Type="application/json")
            await application.is_asked_for("/small")

    asyncio.run(check())
    assert "PEN0882 The application reads orders of 'kafka'" in caplog.text
    assert "PEN0882 The match 'event.data.n > 5' of topic sizes is not understood" in caplog.text
