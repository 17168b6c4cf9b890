"""The HTTP interface that the application calls: the paths of Dapr's API, and what each has to be given.

What always holds: an error is the JSON that Dapr's SDKs read, with a name and a message; a success without content is
204; whatever has the header `dapr-app-id` goes to that application, whatever its path. A page in a browser is refused:
what asks here is a program of this machine.
"""

from __future__ import annotations

import binascii
import hmac
import logging
from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDict

from penstock.errors import PenstockError
from penstock.loopback import LOOPBACK
from penstock.mesh.dapr.actors import Actors
from penstock.mesh.dapr.errors import DaprError
from penstock.mesh.dapr.http_client import Answer
from penstock.mesh.dapr.peers import APP_ID, Outgoing
from penstock.mesh.dapr.storage import Change, Item, Storage
from penstock.mesh.dapr.topics import Publication, Topics
from penstock.mesh.server import Page

log = logging.getLogger("penstock")

T = TypeVar("T")

BODY_BYTES_MAX: Final = 4 << 20
"""Dapr's."""
_METADATA: Final = "metadata."
_TRACING: Final = ("traceparent", "tracestate")
_WRONG_IN_NAMES: Final = frozenset("#?/\\\0")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sidecar(Protocol):
    """What answers the requests of this interface."""

    actors: Actors
    topics: Topics
    storage: Storage
    app: str
    ready: bool
    state_stores: frozenset[str]
    lock_stores: frozenset[str]

    async def invoke(self, app: str, outgoing: Outgoing) -> Answer: ...

    async def invoke_actor(self, type: str, id: str, method: str, outgoing: Outgoing) -> Answer: ...

    def metadata(self) -> Mapping[str, Any]: ...

    def note(self, key: str, value: str) -> None: ...

    def stop(self) -> None: ...


class _Options(msgspec.Struct):
    concurrency: str = ""
    consistency: str = ""


class _Item(msgspec.Struct):
    key: str = ""
    value: msgspec.Raw = msgspec.Raw(b"null")
    etag: str | None = None
    metadata: dict[str, Any] | None = None
    options: _Options | None = None


class _Operation(msgspec.Struct):
    operation: str
    request: _Item


class _Transaction(msgspec.Struct):
    operations: list[_Operation] = []


class _Keys(msgspec.Struct):
    keys: list[str] = []


class _Entry(msgspec.Struct, rename="camel"):
    event: msgspec.Raw
    entry_id: str = ""
    content_type: str = ""
    metadata: dict[str, str] | None = None


class _Lock(msgspec.Struct, rename="camel"):
    resource_id: str = ""
    lock_owner: str = ""
    expiry_in_seconds: int = 0


class Api:
    """See the module. With `token`, every request must carry it. `pages` are what else is served, by path."""

    def __init__(self, sidecar: Sidecar, pages: Mapping[str, Page], *, token: str = "") -> None:
        self._sidecar = sidecar
        self._pages = pages
        self._token = token

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._answered])
        put = (hdrs.METH_POST, hdrs.METH_PUT)
        every = ("*",)
        routes: Sequence[tuple[Sequence[str], str, Handler]] = (
            (("GET",), "/v1.0/healthz", self._health),
            (("GET",), "/v1.0/healthz/outbound", self._outbound_health),
            (("GET",), "/v1.0/metadata", self._metadata),
            (("PUT",), "/v1.0/metadata/{key}", self._note),
            (("POST",), "/v1.0/shutdown", self._shutdown),
            (every, "/v1.0/invoke/{app}/method/{path:.*}", self._invoke),
            (put, "/v1.0/state/{store}", self._save),
            (put, "/v1.0/state/{store}/bulk", self._get_bulk),
            (put, "/v1.0/state/{store}/transaction", self._transact),
            (("GET",), "/v1.0/state/{store}/{key}", self._get),
            (("DELETE",), "/v1.0/state/{store}/{key}", self._delete),
            (put, "/v1.0/publish/bulk/{pubsub}/{topic:.*}", self._publish_bulk),
            (put, "/v1.0-alpha1/publish/bulk/{pubsub}/{topic:.*}", self._publish_bulk),
            (put, "/v1.0/publish/{pubsub}/{topic:.*}", self._publish),
            (("POST",), "/v1.0-alpha1/lock/{store}", self._lock),
            (("POST",), "/v1.0-alpha1/unlock/{store}", self._unlock),
            (every, "/v1.0/actors/{type}/{id}/method/{method}", self._call_actor),
            (put, "/v1.0/actors/{type}/{id}/state", self._change_actor),
            (("GET",), "/v1.0/actors/{type}/{id}/state/{key}", self._get_of_actor),
            (put, "/v1.0/actors/{type}/{id}/timers/{name}", self._set_timer),
            (("DELETE",), "/v1.0/actors/{type}/{id}/timers/{name}", self._clear_timer),
            (put, "/v1.0/actors/{type}/{id}/reminders/{name}", self._set_reminder),
            (("GET",), "/v1.0/actors/{type}/{id}/reminders/{name}", self._get_reminder),
            (("DELETE",), "/v1.0/actors/{type}/{id}/reminders/{name}", self._clear_reminder),
        )
        for methods, path, handler in routes:
            for method in methods:
                application.router.add_route(method, path, handler)
        for path, page in self._pages.items():
            application.router.add_get(path, page)
        return application

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever becomes of a request, told as Dapr tells it."""
        try:
            self._check(request)
            app = _named_app(request)
            if app:
                return await self._forward(app, request.rel_url.raw_path_qs, request)
            return await handler(request)
        except DaprError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(
                DaprError(413, "ERR_BODY_TOO_LARGE", f"the body has more than {BODY_BYTES_MAX:,} bytes")
            )
        except web.HTTPException as error:
            known = ", ".join(sorted({str(route.resource.canonical) for route in _routes(request)}))
            return error_response(
                DaprError(
                    error.status,
                    "ERR_NOT_FOUND",
                    f"{request.method} {request.path} is not answered here. Known: {known}",
                )
            )
        except PenstockError as error:
            log.warning("%s", error)
            return error_response(DaprError(500, "ERR_INTERNAL", str(error)))

    def _check(self, request: web.Request) -> None:
        # A page may be told by its name server that it comes from here: `Host` is none of this machine's then.
        if "Origin" in request.headers or urlsplit(f"//{request.host}").hostname not in LOOPBACK:
            raise DaprError(403, "ERR_ORIGIN", "pages in browsers are refused: this interface is for programs")
        given = request.headers.get("dapr-api-token", "")
        if self._token and not hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            raise DaprError(401, "ERR_API_TOKEN", "the header dapr-api-token is missing or wrong")

    # The sidecar itself.

    async def _health(self, request: web.Request) -> web.Response:
        wanted = request.query.get("appid")
        if wanted is not None and wanted != self._sidecar.app:
            raise DaprError(500, "ERR_HEALTH_APPID_NOT_MATCH", f"this is the sidecar of {self._sidecar.app!r}")
        if not self._sidecar.ready:
            raise DaprError(500, "ERR_HEALTH_NOT_READY", "the application beside does not answer yet")
        return _nothing()

    async def _outbound_health(self, request: web.Request) -> web.Response:
        return _nothing()

    async def _metadata(self, request: web.Request) -> web.Response:
        return _json(self._sidecar.metadata())

    async def _note(self, request: web.Request) -> web.Response:
        self._sidecar.note(request.match_info["key"], (await request.read()).decode(errors="replace"))
        return _nothing()

    async def _shutdown(self, request: web.Request) -> web.Response:
        self._sidecar.stop()
        return _nothing()

    # Invocation.

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        # As it was written: what is percent-encoded stays so, and the query goes along.
        _, _, path = request.rel_url.raw_path_qs.partition("/method/")
        return await self._forward(request.match_info["app"], f"/{path}", request)

    async def _forward(self, app: str, path: str, request: web.Request) -> web.StreamResponse:
        outgoing = Outgoing(request.method, path, [*request.headers.items()], await request.read())
        return response_of(await self._sidecar.invoke(app, outgoing))

    # State.

    async def _save(self, request: web.Request) -> web.Response:
        store = self._store(request)
        items = await _read(request, list[_Item])
        failed: DaprError | None = None
        for item in items:
            try:
                await self._sidecar.storage.change(store, self._sidecar.app, [_change(item)])
            except DaprError as error:  # The others are written all the same.
                failed = failed or error
        if failed is not None:
            raise failed
        return _nothing()

    async def _get(self, request: web.Request) -> web.Response:
        item = self._sidecar.storage.get(self._store(request), self._sidecar.app, request.match_info["key"])
        return _value(item)

    async def _delete(self, request: web.Request) -> web.Response:
        change = Change(request.match_info["key"], None, etag=request.headers.get("If-Match"))
        await self._sidecar.storage.change(self._store(request), self._sidecar.app, [change])
        return _nothing()

    async def _get_bulk(self, request: web.Request) -> web.Response:
        store = self._store(request)
        found = []
        for key in (await _read(request, _Keys)).keys:
            item = self._sidecar.storage.get(store, self._sidecar.app, key)
            found.append(
                {"key": key} if item is None else {"key": key, "data": msgspec.Raw(item.value), "etag": item.etag}
            )
        return _json(found)

    async def _transact(self, request: web.Request) -> web.Response:
        store = self._store(request)
        operations = (await _read(request, _Transaction)).operations
        try:
            await self._sidecar.storage.change(store, self._sidecar.app, [*map(_operation, operations)])
        except DaprError as error:
            raise DaprError(
                500 if error.status == 409 else error.status, "ERR_STATE_TRANSACTION", str(error)
            ) from error
        return _nothing()

    def _store(self, request: web.Request) -> str:
        return _known(request, self._sidecar.state_stores, "state store", "ERR_STATE_STORE_NOT_FOUND")

    # Topics.

    async def _publish(self, request: web.Request) -> web.Response:
        publication = Publication(
            await request.read(), request.headers.get(hdrs.CONTENT_TYPE, ""), _metadata(request), _trace(request)
        )
        await self._sidecar.topics.publish(request.match_info["pubsub"], request.match_info["topic"], [publication])
        return _nothing()

    async def _publish_bulk(self, request: web.Request) -> web.Response:
        entries = await _read(request, list[_Entry])
        ids = [entry.entry_id for entry in entries]
        if not all(ids) or len(set(ids)) != len(ids):
            raise DaprError(400, "ERR_PUBSUB_EVENTS_SER", "every entry needs an entryId of its own")
        common, trace = _metadata(request), _trace(request)
        publications = [
            Publication(_event(entry), entry.content_type, common | (entry.metadata or {}), trace) for entry in entries
        ]
        await self._sidecar.topics.publish(request.match_info["pubsub"], request.match_info["topic"], publications)
        return _nothing()

    # Locks.

    async def _lock(self, request: web.Request) -> web.Response:
        store = self._lock_store(request)
        wanted = await _read(request, _Lock)
        if not wanted.resource_id or not wanted.lock_owner or wanted.expiry_in_seconds <= 0:
            raise DaprError(
                400, "ERR_MALFORMED_REQUEST", "a lock needs resourceId, lockOwner and expiryInSeconds above 0"
            )
        taken = await self._sidecar.storage.lock(
            store, wanted.resource_id, wanted.lock_owner, wanted.expiry_in_seconds * 1000
        )
        return _json({"success": taken})

    async def _unlock(self, request: web.Request) -> web.Response:
        store = self._lock_store(request)
        given = await _read(request, _Lock)
        owner = await self._sidecar.storage.unlock(store, given.resource_id, given.lock_owner)
        return _json({"status": 1 if owner is None else 0 if owner == given.lock_owner else 2})

    def _lock_store(self, request: web.Request) -> str:
        return _known(request, self._sidecar.lock_stores, "lock store", "ERR_LOCK_STORE_NOT_FOUND")

    # Actors.

    async def _call_actor(self, request: web.Request) -> web.StreamResponse:
        type, id = _actor(request)
        outgoing = Outgoing(
            request.method, request.rel_url.raw_path_qs, [*request.headers.items()], await request.read()
        )
        return response_of(
            await self._sidecar.invoke_actor(type, id, _name(request, "method"), outgoing),
        )

    async def _change_actor(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        operations = await _read(request, list[_Operation])
        await self._sidecar.actors.change(type, id, [*map(_operation, operations)])
        return _nothing()

    async def _get_of_actor(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        return _value(self._sidecar.actors.get(type, id, request.match_info["key"]))

    async def _set_timer(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        await self._sidecar.actors.set_timer(type, id, _name(request, "name"), await _read(request, dict[str, Any]))
        return _nothing()

    async def _clear_timer(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        self._sidecar.actors.clear_timer(type, id, _name(request, "name"))
        return _nothing()

    async def _set_reminder(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        await self._sidecar.actors.set_reminder(type, id, _name(request, "name"), await _read(request, dict[str, Any]))
        return _nothing()

    async def _get_reminder(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        reminder = self._sidecar.actors.reminder(type, id, _name(request, "name"))
        if reminder is None:
            raise DaprError(404, "ERR_ACTOR_REMINDER_GET", f"actor {type}/{id} has no such reminder")
        return _json(
            {part: reminder.said[part] for part in ("data", "dueTime", "period", "ttl") if part in reminder.said}
        )

    async def _clear_reminder(self, request: web.Request) -> web.Response:
        type, id = _actor(request)
        await self._sidecar.actors.clear_reminder(type, id, _name(request, "name"))
        return _nothing()


def error_response(error: DaprError) -> web.Response:
    response = web.Response(status=error.status, body=error.body, content_type="application/json")
    if error.retry_after_s:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after_s)
    return response


def response_of(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=CIMultiDict(answer.headers), body=answer.body)


def _nothing() -> web.Response:
    return web.Response(status=204)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _value(item: Item | None) -> web.Response:
    if item is None:
        return _nothing()
    headers = {"ETag": item.etag} if item.etag else {}  # Without quotes, as Dapr has it.
    return web.Response(body=item.value, content_type="application/json", headers=headers)


async def _read(request: web.Request, type: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=type)
    except msgspec.DecodeError as error:
        raise DaprError(400, "ERR_MALFORMED_REQUEST", f"the body is not what is expected: {error}") from error


def _change(item: _Item, *, deleted: bool = False) -> Change:
    if not item.key or "||" in item.key:
        raise DaprError(400, "ERR_MALFORMED_REQUEST", f"{item.key!r} can't be a key: it is empty, or has '||'")
    concurrency = item.options.concurrency if item.options is not None else ""
    create_only = concurrency == "first-write" and item.etag is None and not deleted
    ttl = (item.metadata or {}).get("ttlInSeconds")
    try:
        ttl_s = None if ttl is None else int(ttl)
    except (TypeError, ValueError):
        raise DaprError(400, "ERR_MALFORMED_REQUEST", f"ttlInSeconds is to be a number, and is {ttl!r}") from None
    return Change(item.key, None if deleted else bytes(item.value), item.etag, create_only, ttl_s)


def _operation(operation: _Operation) -> Change:
    if operation.operation not in ("upsert", "delete"):
        raise DaprError(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", f"operation {operation.operation!r} is not supported")
    return _change(operation.request, deleted=operation.operation == "delete")


def _event(entry: _Entry) -> bytes:
    """The body of an entry: a text stands for itself, unless it is JSON that is published."""
    raw = bytes(entry.event)
    if entry.content_type and "json" in entry.content_type:
        return raw
    text = msgspec.json.decode(raw)
    return text.encode() if isinstance(text, str) else raw


def _known(request: web.Request, stores: Collection[str], what: str, code: str) -> str:
    """The store that the path names, which has to be one of `stores`."""
    store = request.match_info["store"]
    if store not in stores:
        raise DaprError(400, code, f"{what} {store!r} is not found")
    return store


def _actor(request: web.Request) -> tuple[str, str]:
    return _name(request, "type"), _name(request, "id")


def _name(request: web.Request, part: str) -> str:
    name = request.match_info[part]
    if not name or any(letter in _WRONG_IN_NAMES or not letter.isprintable() for letter in name):
        raise DaprError(400, "ERR_MALFORMED_REQUEST", f"{name!r} can't be a name of an actor or of what is an actor's")
    return name


def _metadata(request: web.Request) -> dict[str, str]:
    return {name.removeprefix(_METADATA): value for name, value in request.query.items() if name.startswith(_METADATA)}


def _trace(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in _TRACING if name in request.headers}


def _named_app(request: web.Request) -> str:
    """The application that the headers name, as `dapr-app-id` or as the user of basic authentication."""
    if APP_ID in request.headers:
        return request.headers[APP_ID]
    kind, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        user, _, app = b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return app if user == APP_ID else ""


def _routes(request: web.Request) -> Sequence[Any]:
    return [route for route in request.app.router.routes() if route.resource is not None]
