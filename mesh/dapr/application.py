"""The application that a sidecar stands beside: asked over HTTP on the loopback interface.

What always holds: an answer of the application is an answer, whatever its status; what is none is an error of Dapr's.
Says what the application wants (which actors it has, which topics it reads) as it said it last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from penstock.mesh.caller import NoAnswer
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer, HttpClient
from penstock.mesh.dapr.schedule import moment_of

KEEP_S: Final = 1.0
"""Servers close idle connections after two seconds (gunicorn), five (uvicorn, Node) or more."""
IDLE: Final = "1h"
DRAIN: Final = "2s"
DEPTH_MAX: Final = 32
"""How deep calls of one reentrant actor may be within one another. These are Dapr's defaults."""


class Reentrancy(msgspec.Struct, rename="camel"):
    enabled: bool = False
    max_stack_depth: int = DEPTH_MAX


class ActorSettings(NamedTuple):
    """Of one actor type. Times in seconds."""

    idle_s: float
    drain_s: float
    reentrancy: Reentrancy


class Rule(NamedTuple):
    """A route for events of which `conditions` hold: attributes and the values they have."""

    conditions: Mapping[str, str]
    path: str


class Subscription(NamedTuple):
    """What an application reads."""

    pubsub: str
    topic: str
    rules: Sequence[Rule]
    default: str
    """The route of events that no rule is for; empty drops them."""
    dead_letter_topic: str
    unknown: Sequence[str]
    """Matches that are not understood, whose rules are left out."""


class Wants(NamedTuple):
    """What an application has said."""

    actors: Mapping[str, ActorSettings] = {}
    subscriptions: Sequence[Subscription] = ()


class Application:
    """The one that listens at `port`."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", token: str = "") -> None:
        self._host = host
        self._port = port
        self._token = token
        self._client = HttpClient(KEEP_S)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout_s: float | None = None,
    ) -> Answer:
        """`path` with its query, percent-encoded. Raises DaprError when there is no answer."""
        headers = [*headers, ("dapr-api-token", self._token)] if self._token else headers
        url = f"http://{self._host}:{self._port}{path}"
        try:
            return await self._client.ask(method, url, headers=headers, body=body, timeout_s=timeout_s)
        except NoAnswer as error:
            raise DaprError(
                500,
                "ERR_APP_CHANNEL",
                f"the application at port {self._port} does not answer {path}: {error.__cause__ or error}",
            ) from error

    async def listens(self) -> bool:
        """Whether something takes connections at the port."""
        try:
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    async def wants(self) -> Wants:
        """Ask what it wants. Raises DaprError when it does not answer, or not what can be understood."""
        config = await self.ask("GET", "/dapr/config")
        subscriptions = await self.ask("GET", "/dapr/subscribe")
        try:
            return Wants(
                _actors(msgspec.json.decode(config.body, type=_Config)) if config.status == 200 and config.body else {},
                [
                    found
                    for written in msgspec.json.decode(subscriptions.body, type=list[_Subscription])
                    if (found := _subscription(written))
                ]
                if subscriptions.status == 200 and subscriptions.body
                else (),
            )
        except msgspec.DecodeError as error:
            raise DaprError(
                500, "ERR_APP_CHANNEL", f"/dapr/config or /dapr/subscribe of the application is not understood: {error}"
            ) from error

    async def close(self) -> None:
        await self._client.close()


# As applications write it.


class _Settings(msgspec.Struct, rename="camel"):
    entities: list[str] = []
    actor_idle_timeout: str | None = None
    drain_ongoing_call_timeout: str | None = None
    reentrancy: Reentrancy | None = None


class _Config(_Settings):
    entities_config: list[_Settings] | None = None


class _Rule(msgspec.Struct):
    match: str = ""
    path: str = ""


class _Routes(msgspec.Struct):
    rules: list[_Rule] | None = None
    default: str = ""


class _Subscription(msgspec.Struct):
    topic: str
    pubsubname: str
    route: str = ""
    routes: _Routes | None = None
    deadLetterTopic: str = ""  # noqa: N815 - the others are not written in one style that could be named.


def _actors(config: _Config) -> dict[str, ActorSettings]:
    found = {type: _settings(config, config) for type in config.entities}
    for own in config.entities_config or ():
        found.update({type: _settings(own, config) for type in own.entities if type in found})
    return found


def _settings(own: _Settings, common: _Settings) -> ActorSettings:
    return ActorSettings(
        _seconds(own.actor_idle_timeout or common.actor_idle_timeout or IDLE),
        _seconds(own.drain_ongoing_call_timeout or common.drain_ongoing_call_timeout or DRAIN),
        own.reentrancy or common.reentrancy or Reentrancy(),
    )


def _seconds(text: str) -> float:
    return moment_of(text, 0) / 1000


def _subscription(written: _Subscription) -> Subscription | None:
    """None without any route, as Dapr has it."""
    routes = written.routes or _Routes()
    rules, unknown = [], []
    for rule in routes.rules or ():
        conditions = _conditions(rule.match)
        if conditions is None:
            unknown.append(rule.match)
        else:
            rules.append(Rule(conditions, rule.path))
    default = routes.default or written.route
    if not rules and not default:
        return None
    return Subscription(written.pubsubname, written.topic, rules, default, written.deadLetterTopic, unknown)


def _conditions(match: str) -> dict[str, Any] | None:
    """Of the expressions that Dapr allows those that are used: `event.type == "a" && event.source == "b"`."""
    found = {}
    for part in match.split("&&") if match.strip() else ():
        name, equal, value = (piece.strip() for piece in part.partition("=="))
        if not (
            name.startswith("event.") and equal and len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
        ):
            return None
        found[name.removeprefix("event.")] = value[1:-1]
    return found
