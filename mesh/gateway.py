"""Where programs from outside come in: the same interface as that of `penstock run`, in front of the hosts.

    POST /send/NAMESPACE/NAME/ID    202 once the message can't be lost any more
    POST /call/NAMESPACE/NAME/ID    200 with the answer
    POST /promise/NAMESPACE/NAME/ID/PROMISE 200 once the promise is kept
    GET  /livez  /readyz  /actuator/...  /metrics
    /admin/...                      for the command line (`penstock.mesh.gateway_admin`)

What always holds: a request without a key is given one, so that it may be tried again and is done once. How requests
are read and errors told is in `penstock.web`; the first three have another way in, `penstock.mesh.gateway_door`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from aiohttp import web

from penstock.functions.app import App
from penstock.ids import Address
from penstock.logs import Repeated
from penstock.mesh.access import AccessLog
from penstock.mesh.caller import Caller
from penstock.mesh.doing import Looks
from penstock.mesh.gateway_admin import GatewayAdmin
from penstock.mesh.gateway_door import behalf_of, is_shadow
from penstock.mesh.server import Page
from penstock.mesh.store import Store
from penstock.mesh.wire import Kind, Reply, Request, error_of, new_key
from penstock.state.stateful import Stateful
from penstock.web import (
    Guard,
    WebMessage,
    answer_response,
    bind,
    error_response,
    failed_response,
    json_response,
    parse_name,
    raw_tail,
    read_json,
    read_message,
    runner_of,
    timeout_ms,
)

_OPEN: Final = frozenset({"/livez", "/readyz", "/actuator/health/liveness", "/actuator/health/readiness"})
_SERVED: Final = (
    "POST /send, POST /call, POST /promise, /admin/status, /admin/state, /admin/dead, /admin/calls, /readyz, /metrics"
)


class Gateway:
    """See the module. `functions` are those of the application; hosts are found by `caller`."""

    def __init__(
        self,
        app: App,
        functions: Mapping[str, Stateful],
        caller: Caller,
        store: Store,
        looks: Looks,
        *,
        host: str,
        token: str,
        message_bytes_max: int,
        ready: Callable[[], str],
        pages: Mapping[str, Page],
        access_log: AccessLog | None = None,
        speaks_for_others: bool = False,
    ) -> None:
        """`speaks_for_others` says that it has the identity of the hosts, who believe it on whose behalf it asks."""
        self._app = app
        self._functions = functions
        self._caller = caller
        self._host = host
        self._message_bytes_max = message_bytes_max
        self._ready = ready
        self._access_log = access_log
        self._speaks_for_others = speaks_for_others
        self._repeated = Repeated()
        # JSON takes more room than msgpack, but not that much.
        self.body_bytes_max = 2 * message_bytes_max
        guard = Guard(
            host=host, token=token or None, body_bytes_max=self.body_bytes_max, open_paths=_OPEN, served=_SERVED
        )
        self.messages = (
            web.post("/send/{address:.*}", self._send),
            web.post("/call/{address:.*}", self._call),
            web.post("/promise/{promise:.*}", self._resolve),
        )
        """What others of the mesh may ask as well as programs."""
        application = web.Application(client_max_size=self.body_bytes_max, middlewares=[guard.middleware])
        application.add_routes(
            [
                *self.messages,
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                *GatewayAdmin(app, functions, store, caller, looks).routes(),
                *(web.get(path, page) for path, page in pages.items()),
            ]
        )
        self._runner = runner_of(application)

    async def start(self, port: int) -> str:
        """Listen, and return the URL. Raises ConfigurationError."""
        return await bind(self._runner, self._host, port, without="--no-gateway")

    async def close(self) -> None:
        """Stop listening; answers under way are finished."""
        await self._runner.cleanup()

    # Messages.

    async def _call(self, request: web.Request) -> web.Response:
        deadline_s = time.monotonic() + timeout_ms(request) / 1000 if "timeout" in request.query else None
        message = await self._message(request)
        reply = await self._ask(request, message, Kind.CALL, deadline_s)
        return answer_response(request, reply.body) if reply.status == 200 else self._failed(reply, message.address)

    async def _send(self, request: web.Request) -> web.Response:
        message = await self._message(request)
        reply = await self._ask(request, message, Kind.SEND, None)
        if reply.status != 200:
            return self._failed(reply, message.address)
        return json_response({"accepted": True, "address": str(message.address)}, status=202)

    async def _resolve(self, request: web.Request) -> web.Response:
        address, name = parse_name(raw_tail(request), self._functions, what="promise")
        value = await read_json(request, f"value of promise {name!r} of {address}", self._message_bytes_max)
        reply = await self._caller.call(
            self._passed_on(request, Request(address, value, Kind.RESOLVE, new_key(), promise=name))
        )
        if reply.status != 200:
            return self._failed(reply, address)
        return json_response({"resolved": True, "address": str(address), "promise": name})

    async def _message(self, request: web.Request) -> WebMessage:
        return await read_message(request, self._app.functions, self._message_bytes_max)

    async def _ask(self, request: web.Request, message: WebMessage, kind: Kind, deadline_s: float | None) -> Reply:
        began_s = time.monotonic()
        key = message.idempotency_key or new_key()
        asked = self._passed_on(
            request, Request(message.address, message.payload, kind, key, deadline_s, headers=message.headers)
        )
        reply = await self._caller.call(asked)
        if self._access_log is not None:
            self._access_log.note(asked, reply, time.monotonic() - began_s)
        return reply

    def _passed_on(self, request: web.Request, asked: Request) -> Request:
        """As that of who asks, where that is known."""
        behalf = behalf_of(request) if self._speaks_for_others else ""
        return (
            asked._replace(behalf=behalf, key="", shadow=True) if is_shadow(request) else asked._replace(behalf=behalf)
        )

    def _failed(self, reply: Reply, address: Address) -> web.Response:
        """What a host has answered, as programs are told errors."""
        error = error_of(reply, str(address))
        if reply.status == 422:
            response = failed_response(error)
        else:
            # Without a host, thousands of requests end the same way.
            log = partial(self._repeated.warn, f"{address.typename} {error.code}")
            response = error_response(error, status=reply.status, log=log)
        if reply.retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, round(reply.retry_after_s)))
        return response

    # Probes.

    async def _livez(self, request: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = self._ready()
        return json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)
