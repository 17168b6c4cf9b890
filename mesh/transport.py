"""The ways to hosts: over HTTP, and directly to one of this very process.

What always holds: a request that had no answer says how far it came, as the policies need to know; whoever stops
waiting does not stop the host, here as little as over a connection; who proves no identity speaks for nobody else.
Retries nothing.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from yarl import URL

from penstock.mesh.caller import NoAnswer, Transport
from penstock.mesh.identity import Identity, url_of
from penstock.mesh.policies.host import Host as Somewhere
from penstock.mesh.policies.outcomes import Failure, retry_after_s
from penstock.mesh.wire import REFUSED, RETRY_AFTER, Reply, Request, write

CONNECT_S: Final = 2.0
"""A host that does not accept a connection within this time is not asked. On one network it takes a millisecond."""
IDLE_S: Final = 15.0
"""Connections nobody uses are closed after this time: before the host does, so that no request meets a closing one."""


class Handles(Protocol):
    """A host, as far as this needs to know."""

    async def handle(self, request: Request) -> Reply: ...


class HttpTransport:
    """Requests over HTTP, under the identity of this process if it has one."""

    def __init__(self, identity: Identity | None = None) -> None:
        self._identity = identity
        self._session: aiohttp.ClientSession | None = None

    async def send(self, endpoint: Somewhere, request: Request, timeout_s: float | None) -> Reply:
        where = url_of(endpoint, self._identity)
        if self._identity is None or not where.startswith("https:"):
            request = request._replace(behalf="")
        path, headers = write(request, monotonic())
        url = URL(where + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        options: dict[str, Any] = {} if self._identity is None else {"ssl": self._identity.client}
        try:
            async with self._opened().post(
                url, data=request.payload, headers=headers, timeout=timeout, **options
            ) as response:
                body = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._warn(error, where)
            raise NoAnswer(Failure.CONNECT) from None
        except TimeoutError:
            raise NoAnswer(Failure.TIMEOUT) from None
        except (aiohttp.ClientError, OSError) as error:
            self._warn(error, where)
            raise NoAnswer(Failure.RESET) from None
        return Reply(
            response.status, body, REFUSED in response.headers, retry_after_s(response.headers.get(RETRY_AFTER, ""))
        )

    async def look(self, endpoint: Somewhere, path: str, timeout_s: float) -> Any:
        """The JSON of a page of a host; None when it does not answer."""
        options: dict[str, Any] = {} if self._identity is None else {"ssl": self._identity.client}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with self._opened().get(endpoint.url + path, timeout=timeout, **options) as response:
                return msgspec.json.decode(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _warn(self, error: BaseException, url: str) -> None:
        """When it is a certificate that keeps us from a host, trying again won't help."""
        if self._identity is not None:
            self._identity.warn(error, url)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            # What a body is, the headers of the mesh say; a cookie jar would be work for nothing.
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type"),
                auto_decompress=False,
            )
        return self._session


class LocalTransport:
    """Requests to a host of this process, by the name of its endpoint; all others go by `others`. A host that asks
    itself has the identity that it would have at any other."""

    def __init__(self, others: Transport | None = None, identity: Identity | None = None) -> None:
        self.hosts: dict[str, Handles] = {}
        self._others = others
        self._identity = identity

    async def send(self, endpoint: Somewhere, request: Request, timeout_s: float | None) -> Reply:
        host = self.hosts.get(endpoint.name)
        if host is None:
            if self._others is None:
                raise NoAnswer(Failure.CONNECT)
            return await self._others.send(endpoint, request, timeout_s)
        own = "" if self._identity is None else self._identity.id
        request = request._replace(identity=own, behalf=request.behalf if own else "")
        carried_out = asyncio.ensure_future(host.handle(request))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(carried_out)
        except TimeoutError:
            raise NoAnswer(Failure.TIMEOUT) from None
