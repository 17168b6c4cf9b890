"""Passes requests on as they came: the client side of a sidecar, towards its application and towards others.

What always holds: nothing is added, decoded, followed or kept that the one who asks did not ask for; headers that are
about one connection end with it.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from penstock.mesh.caller import NoAnswer
from penstock.mesh.policies.outcomes import Failure
from penstock.mesh.transport import CONNECT_S, IDLE_S
from penstock.web import HOP_BY_HOP

HOP: Final = HOP_BY_HOP | {"host"}
"""Headers that are not passed on: who receives a request is said anew."""
_LARGE_BYTES: Final = 1 << 20
"""A body above is sent in pieces, so that others get their turn of the event loop."""


class Answer(NamedTuple):
    """What somebody has answered."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """By its name in lower case; empty when there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class HttpClient:
    """See the module. Connections that nobody uses are closed after `idle_s`: before the other end does, so that no
    request meets a closing one."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        timeout_s: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """`url` is percent-encoded. Raises NoAnswer, from the error of the connection."""
        try:
            async with self._opened().request(
                method,
                URL(url, encoded=True),
                headers=CIMultiDict((name, value) for name, value in headers if name.lower() not in HOP),
                data=io.BytesIO(body) if len(body) > _LARGE_BYTES else body or None,
                allow_redirects=False,
                ssl=tls or True,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
            ) as response:
                received = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NoAnswer(Failure.CONNECT) from error
        except TimeoutError as error:
            raise NoAnswer(Failure.TIMEOUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(Failure.RESET) from error
        kept = [(name, value) for name, value in response.headers.items() if name.lower() not in HOP]
        return Answer(response.status, kept, received)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._idle_s),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept-Encoding"),
            )
        return self._session
