"""A host behind HTTP: requests of the mesh in, answers out.

What always holds: the body is read before anything is decided, and one that is too large is refused with nothing
changed; a caller that hangs up does not stop what was begun; every answer but 200 is the JSON of a coded error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from penstock.errors import InvalidInput
from penstock.logs import logger
from penstock.mesh.access import AccessLog
from penstock.mesh.identity import Identity, peer_of
from penstock.mesh.policies.settings import TlsMode
from penstock.mesh.serving import Port
from penstock.mesh.transport import Handles
from penstock.mesh.wire import PATH, REFUSED, RETRY_AFTER, Reply, failure, read, reply_of
from penstock.web import CLOSE_S

IDLE_S: Final = 75.0
"""Idle connections are closed after this time, long after callers have closed them themselves."""
BODY_S: Final = 30.0
"""A body that takes longer to arrive is given up, so that slow senders can't hold connections for ever."""
HEADER_BYTES_MAX: Final = 16_384
"""Of one header, and of the path: a chain of callers with long ids is the longest there is."""

Page = Callable[[web.BaseRequest], Awaitable[web.Response]]


class HostServer:
    """See the module. `pages` are what else is served, by path: probes, metrics. With an identity, connections are
    protected as `tls` says."""

    def __init__(
        self,
        host: Handles,
        *,
        body_bytes_max: int,
        pages: Mapping[str, Page] | None = None,
        access_log: AccessLog | None = None,
        identity: Identity | None = None,
        tls: TlsMode = TlsMode.DISABLE,
    ) -> None:
        self._host = host
        self._access_log = access_log
        self._body_bytes_max = body_bytes_max
        self._pages = pages or {}
        self._server = web.Server(
            self._serve,
            request_factory=self._request,
            access_log=None,
            keepalive_timeout=IDLE_S,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=CLOSE_S)
        self._port = Port(self._runner, identity, tls)

    async def start(self, address: str, port: int) -> int:
        """Listen. Returns the port, which 0 leaves open. Raises OSError."""
        await self._runner.setup()
        return await self._port.open(address, port)

    async def close(self) -> None:
        """Stop listening; answers under way are written, what is still carried out is cut off."""
        await self._port.close()
        await self._runner.cleanup()

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._body_bytes_max)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self._pages.get(request.path)
        if page is not None:
            return await page(request)
        try:
            reply = await self._carry_out(request)
        except web.HTTPRequestEntityTooLarge:
            reply = self._too_large(request)
        except Exception:  # noqa: BLE001  # Whatever it is, it ends this request alone.
            logger.exception("%s %s failed", request.method, request.path)
            reply = failure(500, "PEN0801", f"The host has failed at {request.path}. Its log says how.")
        return _response(reply)

    async def _carry_out(self, request: web.BaseRequest) -> Reply:
        path = request.rel_url.raw_path
        if request.method != hdrs.METH_POST or not path.startswith(PATH):
            return failure(404, "PEN0611", f"{request.method} {path} is not served here. See POST {PATH}.")
        try:
            async with asyncio.timeout(BODY_S):
                body = await request.read()
            asked = read(path, request.headers, body, time.monotonic(), identity=peer_of(request.transport))
        except TimeoutError:
            return failure(400, "PEN0800", f"The body of {path} did not arrive within {BODY_S:g} s.", refused=True)
        except InvalidInput as error:
            return reply_of(error, refused=True)
        if self._access_log is None:
            return await self._host.handle(asked)
        began_s = time.monotonic()
        reply = await self._host.handle(asked)
        self._access_log.note(asked, reply, time.monotonic() - began_s)
        return reply

    def _too_large(self, request: web.BaseRequest) -> Reply:
        return failure(
            413,
            "PEN0605",
            f"The body of {request.path} is larger than {self._body_bytes_max:,} bytes, which is what this host takes. "
            "Keep large values elsewhere and send their key, or raise --message-bytes-max.",
            refused=True,
        )


def _response(reply: Reply) -> web.Response:
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: "application/msgpack" if reply.status == 200 else "application/json"}
    if reply.refused:
        headers[REFUSED] = "1"
    if reply.retry_after_s is not None:
        headers[RETRY_AFTER] = str(max(1, round(reply.retry_after_s)))
    return web.Response(status=reply.status, body=reply.body, headers=headers)
