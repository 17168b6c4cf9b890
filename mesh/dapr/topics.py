"""Topics: what is published is delivered to every application that is subscribed, to one of its instances.

What always holds: a publication that was answered is delivered at least once to every application that was subscribed
at that moment; an event that an application has neither taken nor dropped is delivered again, later each time, and
given up after the last try; what is dropped or given up goes to the dead letter topic, if the subscription names one.
Events of one topic are delivered side by side, so their order is not kept.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from penstock.mesh.dapr.application import Application, Subscription
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer
from penstock.mesh.dapr.storage import NEVER_MS, Event, Storage
from penstock.mesh.dapr.upkeep import again_and_again, said_if_failed

log = logging.getLogger("penstock")

CLOUD_EVENT: Final = "application/cloudevents+json"
POLL_S: Final = 0.25
"""Between looks for events. One that another sidecar published is late by so much at most."""
CLAIM_MS: Final = 60_000
"""For so long an event is with one sidecar. It is delivered again if that dies with it."""
AT_ONCE: Final = 32
TRIES: Final = 10
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
_OVERRIDES: Final = "cloudevent."


class Verdict(Enum):
    """What an application says to an event."""

    TAKEN = "SUCCESS"
    AGAIN = "RETRY"
    DROPPED = "DROP"


class Publication(NamedTuple):
    """What somebody publishes."""

    body: bytes
    content_type: str
    metadata: Mapping[str, str]
    trace: Mapping[str, str] = {}


class Topics:
    """The topics that the application `app` reads and writes. `pubsubs` are the names there are; nothing is delivered
    while the application is not `ready`."""

    def __init__(
        self,
        app: str,
        application: Application,
        storage: Storage,
        pubsubs: frozenset[str],
        ready: Callable[[], bool],
    ) -> None:
        self._ready = ready
        self._app = app
        self._application = application
        self._storage = storage
        self._pubsubs = pubsubs
        self._subscriptions: Mapping[tuple[str, str], Subscription] = {}
        self._delivering: set[asyncio.Task[None]] = set()
        self._due = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        return [*self._subscriptions.values()]

    async def configure(self, subscriptions: Sequence[Subscription]) -> None:
        """The application has said what it reads."""
        for subscription in subscriptions:
            if subscription.pubsub not in self._pubsubs:
                log.warning(
                    "PEN0882 The application reads %s of %r, which is no topic of this sidecar: it has %s.",
                    *(subscription.topic, subscription.pubsub, ", ".join(sorted(self._pubsubs)) or "none"),
                )
            for match in subscription.unknown:
                log.warning(
                    "PEN0882 The match %r of topic %s is not understood, so its route is not used. Write comparisons "
                    "with texts, as in event.type == 'paid' && event.source == 'shop'.",
                    *(match, subscription.topic),
                )
        self._subscriptions = {(one.pubsub, one.topic): one for one in subscriptions if one.pubsub in self._pubsubs}
        await self._storage.subscribe(self._app, self._subscriptions.keys())

    async def start(self) -> None:
        self._running = asyncio.create_task(again_and_again(self._look))

    async def close(self) -> None:
        """Events that are being delivered are left for others."""
        tasks = [*self._delivering, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def publish(self, pubsub: str, topic: str, publications: Sequence[Publication]) -> None:
        """Raises DaprError."""
        if not pubsub or pubsub not in self._pubsubs:
            raise DaprError(404, "ERR_PUBSUB_NOT_FOUND", f"pubsub {pubsub!r} is not found")
        if not topic:
            raise DaprError(404, "ERR_TOPIC_NAME_EMPTY", "the name of the topic is empty")
        until_ms = _until_ms(publications, self._storage.now_ms())
        events = [envelope(each, self._app, pubsub, topic) for each in publications]
        await self._storage.publish(pubsub, topic, [msgspec.json.encode(event) for event in events], until_ms)
        self._due.set()

    async def _look(self) -> None:
        """Once, and wait until there may be something again."""
        room = AT_ONCE - len(self._delivering) if self._ready() else 0
        events = await self._storage.claim_events(self._app, room, self._storage.now_ms() + CLAIM_MS) if room else []
        for event in events:
            task = asyncio.create_task(self._deliver(event))
            self._delivering.add(task)
            task.add_done_callback(said_if_failed)
            task.add_done_callback(self._delivered)
        if events and len(self._delivering) < AT_ONCE:
            return
        self._due.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._due.wait()

    def _delivered(self, task: asyncio.Task[None]) -> None:
        if len(self._delivering) == AT_ONCE:
            self._due.set()
        self._delivering.discard(task)

    async def _deliver(self, event: Event) -> None:
        subscription = self._subscriptions.get((event.pubsub, event.topic))
        if subscription is None or event.until_ms <= self._storage.now_ms():
            await self._end(event, subscription, "it has expired, or is not read any more")
            return
        path = route_of(subscription, msgspec.json.decode(event.body))
        if not path:
            await self._end(event, subscription, "no route is for it")
            return
        try:
            answer = await self._application.ask(
                "POST", f"/{path.lstrip('/')}", headers=[("content-type", CLOUD_EVENT)], body=event.body
            )
            verdict, why = verdict_of(answer), f"the application answered {answer.status}"
        except DaprError as error:
            verdict, why = Verdict.AGAIN, str(error)
        if verdict is Verdict.TAKEN:
            await self._storage.event_done(event)
        elif verdict is Verdict.AGAIN and event.attempts + 1 < TRIES:
            wait_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2**event.attempts)
            await self._storage.event_failed(event, self._storage.now_ms() + round(wait_s * 1000))
        else:
            await self._end(event, subscription, why)

    async def _end(self, event: Event, subscription: Subscription | None, why: str) -> None:
        """It is not delivered: to the dead letters, or to nobody."""
        dead = subscription.dead_letter_topic if subscription is not None else ""
        if dead:
            await self._storage.publish(event.pubsub, dead, [event.body])
            self._due.set()
        log.warning(
            "PEN0883 An event of topic %s is not delivered to %s: %s. It %s.",
            *(event.topic, self._app, why, f"goes to {dead}" if dead else "is gone"),
        )
        await self._storage.event_done(event)


def envelope(publication: Publication, app: str, pubsub: str, topic: str) -> dict[str, Any]:
    """The cloud event of a publication. Raises DaprError for a body that is none of its content type."""
    content_type = publication.content_type.partition(";")[0].strip().lower() or "text/plain"
    if content_type == CLOUD_EVENT:
        written = _json(publication.body)
        if not isinstance(written, dict):
            raise DaprError(400, "ERR_PUBSUB_CLOUD_EVENTS_SER", "a cloud event is to be a JSON object")
        event: dict[str, Any] = written
    else:
        event = _data(publication, content_type)
    defaults: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "specversion": "1.0",
        "source": app,
        "type": "com.dapr.event.sent",
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    said = {
        name.removeprefix(_OVERRIDES): value
        for name, value in publication.metadata.items()
        if name.startswith(_OVERRIDES)
    }
    trace = {"traceid": parent, "traceparent": parent} if (parent := publication.trace.get("traceparent")) else {}
    return defaults | event | trace | said | {"pubsubname": pubsub, "topic": topic}


def verdict_of(answer: Answer) -> Verdict:
    """What the answer of an application to an event means."""
    if answer.status == 404:
        return Verdict.DROPPED
    if not 200 <= answer.status < 300:
        return Verdict.AGAIN
    try:
        said = msgspec.json.decode(answer.body) if answer.body else None
    except msgspec.DecodeError:
        return Verdict.TAKEN
    status = said.get("status", "") if isinstance(said, dict) else ""
    if status in ("", "SUCCESS"):
        return Verdict.TAKEN
    return Verdict.DROPPED if status == "DROP" else Verdict.AGAIN


def route_of(subscription: Subscription, event: Mapping[str, Any]) -> str:
    """The path of the first rule that is for `event`, or the default; empty when there is none."""
    for rule in subscription.rules:
        if all(event.get(name) == value for name, value in rule.conditions.items()):
            return rule.path
    return subscription.default


def _data(publication: Publication, content_type: str) -> dict[str, Any]:
    raw = publication.metadata.get("rawPayload", "").lower() == "true"
    if not raw and (content_type == "application/json" or content_type.endswith("+json")):
        return {"datacontenttype": content_type, "data": _json(publication.body)}
    if not raw and content_type.startswith(("text/", "application/xml")):
        return {"datacontenttype": content_type, "data": publication.body.decode(errors="replace")}
    kind = "application/octet-stream" if raw else content_type
    return {"datacontenttype": kind, "data_base64": base64.b64encode(publication.body).decode()}


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise DaprError(400, "ERR_PUBSUB_CLOUD_EVENTS_SER", f"the body is no JSON: {error}") from error


def _until_ms(publications: Sequence[Publication], now_ms: int) -> int:
    ttl = publications[0].metadata.get("ttlInSeconds") if publications else None
    if ttl is None:
        return NEVER_MS
    if not ttl.isdecimal():
        raise DaprError(400, "ERR_PUBSUB_REQUEST_METADATA", f"ttlInSeconds is to be a number, and is {ttl!r}")
    return now_ms + int(ttl) * 1000
