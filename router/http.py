"""Sends rows to an HTTP server, at least once and in order.

What always holds: every attempt at one row carries the same `Idempotency-Key`, made of the row's cause, so that a
server that knows keys can drop repeats; a row is given up only when the server says that the row itself is wrong.
There is no marker a server could store together with the rows: after a crash, rows whose fate is unknown are sent
again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiohttp

from penstock.errors import Unavailable
from penstock.functions.io import HttpEgress
from penstock.records import EgressRow
from penstock.router.sink import RowsRefused

_ATTEMPTS_MAX = 6
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 10.0
"""Six attempts within about six seconds ride out a restart; after them the commit as a whole is repeated later."""

_TRY_AGAIN = {408, 425, 429}
"""Request Timeout, Too Early, Too Many Requests: of all 4xx answers those that speak of the moment, not of the
row."""


class HttpSink:
    """The sink of an `HttpEgress`."""

    def __init__(self, spec: HttpEgress, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._spec = spec
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._delivered: defaultdict[int, set[int]] = defaultdict(set)
        """For each task the causes of rows that arrived although their commit did not succeed."""

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._spec.timeout_s))

    async def read_marker(self, task: int) -> dict[int, int]:
        return {}

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        delivered = self._delivered[task]
        before = frozenset(delivered)
        refused: list[tuple[int, str]] = []
        for index, row in enumerate(rows):
            if row.cause in before:
                continue
            reason = await self._deliver(row)
            if reason is None:
                delivered.add(row.cause)
            else:
                refused.append((index, reason))
        if refused:
            raise RowsRefused(
                "PEN0522",
                f"{self._spec.url} refuses {len(refused):,} of {len(rows):,} rows: {refused[0][1]}. They go to the "
                "dead letters; the others were delivered.",
                refused,
            )
        delivered.clear()

    async def release(self, task: int, *, final: bool) -> None:
        pass

    async def tick(self) -> None:
        """Nothing is due by time."""

    async def close(self, final: bool) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _deliver(self, row: EgressRow) -> str | None:
        """Send one row until the server decides. None if it was accepted, else why not."""
        backoff_s = _BACKOFF_FIRST_S
        problem = ""
        for attempt in range(_ATTEMPTS_MAX):
            if attempt:
                await self._sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
            try:
                status, text, retry_after_s = await self._send(row)
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"{type(error).__name__} {error}".strip()
                continue
            if 200 <= status < 300:
                return None
            problem = f"answer {status} {text}".strip()
            if status < 500 and status not in _TRY_AGAIN:
                return problem
            backoff_s = max(backoff_s, min(retry_after_s, _BACKOFF_MAX_S))
        raise Unavailable(
            "PEN0523",
            f"{self._spec.url} did not take a row in {_ATTEMPTS_MAX} attempts: {problem}. Start or repair the "
            "server; the rows are kept and sent again, each with the same Idempotency-Key.",
        )

    async def _send(self, row: EgressRow) -> tuple[int, str, float]:
        """The status of the answer, the beginning of its text, and how long it asks to wait."""
        assert self._session is not None, "open() comes first"
        headers = {
            "Content-Type": "application/json",
            **self._spec.headers,
            **dict(row.headers),
            "Idempotency-Key": f"{row.cause:016x}",
        }
        async with self._session.request(
            self._spec.method,
            self._spec.url,
            data=row.value,
            headers=headers,
            # A redirected POST would arrive as a GET without the row.
            allow_redirects=False,
        ) as response:
            text = (await response.content.read(200)).decode(errors="replace")
            return response.status, " ".join(text.split()), _seconds(response.headers.get("Retry-After"))


def _seconds(retry_after: str | None) -> float:
    """The header in its form of seconds; its other form, a date, is left to the usual back-off."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
