"""The HTTP interface of a running application: messages in, answers out, probes, metrics, and what tools ask.

    POST /send/NAMESPACE/NAME/ID    202 once the message is durable
    POST /call/NAMESPACE/NAME/ID    200 with the answer, once nothing can roll it back any more
    GET  /calls/NAMESPACE/NAME/ID/KEY       what became of the request with this Idempotency-Key
    POST /promise/NAMESPACE/NAME/ID/PROMISE 200 once a handler that awaits the promise has its value
    GET  /livez  /readyz  /startupz  for supervisors; they need no token
    GET  /metrics                   for Prometheus
    /admin/...                      for the command line (`penstock.engine.http_admin`)

How requests are read and errors told is in `penstock.web`. Decides nothing about messages: the worker does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from aiohttp import web

from penstock.durations import format_duration, parse_duration_text
from penstock.engine.http_admin import admin_routes, ask_in_order, change_in_time
from penstock.engine.looks import RequestOf
from penstock.engine.metrics import Metrics
from penstock.engine.operations import Attach, Resolve
from penstock.engine.serving import Served
from penstock.engine.settings import Setting
from penstock.errors import InvalidInput, PenstockError, Unavailable
from penstock.exposition import CONTENT_TYPE
from penstock.web import (
    Guard,
    TokenBucket,
    WebMessage,
    answer_response,
    bind,
    failed_response,
    json_response,
    parse_name,
    raw_tail,
    read_json,
    read_message,
    runner_of,
    timeout_ms,
)

CHECKPOINT_OVERDUE_MS: Final = 30_000
"""PROTOCOL 25: checkpoints that fail for so long mean that the application is not ready."""
_OPEN: Final = frozenset({"/livez", "/readyz", "/startupz"})
_SERVED: Final = "POST /send, POST /call, /readyz, /metrics"


class HttpServer:
    """Serves one worker. `start` binds, `close` ends it; in between it runs on the worker's event loop."""

    def __init__(
        self,
        worker: Served,
        *,
        settings: Collection[Setting] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        config = worker.config
        self._started = False
        """Whether the worker was seen ready."""
        self._metrics = Metrics(worker)
        self._bucket = TokenBucket(config.requests_per_s_max, clock) if config.requests_per_s_max else None
        guard = Guard(
            host=config.host,
            token=config.token,
            body_bytes_max=config.body_bytes_max,
            open_paths=_OPEN,
            served=_SERVED,
        )
        self._application = web.Application(client_max_size=config.body_bytes_max, middlewares=[guard.middleware])
        self._application.add_routes(
            [
                web.post("/send/{address:.*}", self._send),
                web.post("/call/{address:.*}", self._call),
                web.get("/calls/{request:.*}", self._show_request),
                web.post("/promise/{promise:.*}", self._resolve),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/startupz", self._startupz),
                web.get("/metrics", self._show_metrics),
                *admin_routes(worker, settings),
            ]
        )
        # A caller who hangs up cancels the waiting for the answer; the message itself is in the log already.
        self._runner = runner_of(self._application, cancelling=True)

    async def start(self) -> str:
        """Bind, and return the URL under which this process can be reached. Raises ConfigurationError."""
        config = self._worker.config
        assert config.port is not None, "no port means no HTTP interface"
        return await bind(self._runner, config.host, config.port)

    async def close(self) -> None:
        """Stop listening; answers under way are finished. Harmless when it never started."""
        await self._runner.cleanup()

    # Messages.

    async def _send(self, request: web.Request) -> web.Response:
        message = await self._message(request)
        await self._worker.requests.send(
            message.address,
            message.payload,
            idempotency_key=message.idempotency_key,
            headers=message.headers,
            origin=message.origin,
        )
        return json_response({"accepted": True, "address": str(message.address)}, status=202)

    async def _call(self, request: web.Request) -> web.Response:
        wait_ms = timeout_ms(request)
        message = await self._message(request)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                reply = await self._worker.requests.call(
                    message.address,
                    message.payload,
                    idempotency_key=message.idempotency_key,
                    headers=message.headers,
                    origin=message.origin,
                )
        except TimeoutError:
            raise Unavailable(
                "PEN0608",
                f"{message.address} has not answered within {format_duration(wait_ms)}. The message was accepted "
                "and is still being processed: ask again with the same Idempotency-Key to get its answer, or allow "
                "more with ?timeout=.",
            ) from None
        if reply.error:
            code, _, text = reply.error.partition(" ")
            return failed_response(PenstockError(code, text))
        return answer_response(request, reply.value)

    async def _message(self, request: web.Request) -> WebMessage:
        self._take_turn()
        return await read_message(request, self._worker.app.functions, self._worker.config.message_bytes_max)

    def _take_turn(self) -> None:
        if self._bucket is not None and (wait_s := self._bucket.take()) > 0:
            raise Unavailable(
                "PEN0606",
                f"More than requests_per_s_max = {self._worker.config.requests_per_s_max:g} requests a second. "
                f"Try again in {wait_s:.3f} s.",
            )

    # What awaits.

    async def _show_request(self, request: web.Request) -> web.Response:
        """At once, or with `wait` when it has ended, whichever comes first."""
        self._take_turn()
        address, key = parse_name(raw_tail(request), self._worker.app.functions, what="key")
        wait = request.query.get("wait")
        if wait is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(parse_duration_text(wait, error=InvalidInput) / 1000):
                    return json_response(await self._worker.requests.operate(address, Attach(key)))
        return json_response(await ask_in_order(self._worker, address, RequestOf(*address, key)))

    async def _resolve(self, request: web.Request) -> web.Response:
        self._take_turn()
        address, name = parse_name(raw_tail(request), self._worker.app.functions, what="promise")
        what = f"value of promise {name!r} of {address}"
        value = await read_json(request, what, self._worker.config.message_bytes_max)
        await change_in_time(self._worker, address, Resolve(name, value))
        return json_response({"resolved": True, "address": str(address), "promise": name})

    # Probes and metrics.

    async def _livez(self, request: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = why_not_ready(self._worker, time.time() * 1000)
        return json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def _startupz(self, request: web.Request) -> web.Response:
        """Whether it has been ready once. Until then a supervisor must give it time, however much it restores."""
        self._started = self._started or self._worker.ready
        restoring = {str(task): percent for task, percent in self._worker.restoring.items()}
        answer = {"started": self._started, "restoring": restoring}
        return json_response(answer, status=200 if self._started else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def why_not_ready(worker: Served, now_ms: float) -> str:
    """Why the application should get no traffic now; empty when it should."""
    if worker.stopping:
        return "stopping"
    if worker.problem:
        return worker.problem
    if not worker.ready:
        return "starting"
    since_ms = worker.checkpoint_statistics().trying_since_ms
    if since_ms is not None and now_ms - since_ms > CHECKPOINT_OVERDUE_MS:
        return f"no checkpoint has completed for {format_duration(int(now_ms - since_ms))}"
    return ""
