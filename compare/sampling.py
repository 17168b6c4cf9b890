"""Looks at what runs, once a second: CPU and memory of its processes, and what its metrics count.

What always holds: only differences of counters are told, so what a process that has ended had counted is not taken
back; what a runtime does not count is not told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final

import aiohttp

from penstock.compare.processes import sample
from penstock.compare.records import Event, Kind
from penstock.compare.runtimes import Runtime

PERIOD_S: Final = 1.0
ASK_S: Final = 0.8
"""A page of metrics that takes longer is left out: its process may stand still on purpose."""


COUNTERS: Final[Mapping[str, Kind]] = {
    "penstock_retries_total": "retry",
    "penstock_dead_letters_total": "dlq",
    "penstock_rollbacks_total": "rollback",
    "penstock_mesh_upstream_rq_retry_total": "retry",
    "penstock_mesh_outlier_detection_ejections_enforced_total": "eject",
    "penstock_mesh_host_refused_total": "shed",
    "penstock_mesh_upstream_rq_pending_overflow_total": "shed",
}
GAUGES: Final[Mapping[str, Kind]] = {"penstock_queue_messages": "lag", "penstock_mesh_breakers_open": "cb_state"}


class Sampler:
    """Samples a runtime until cancelled. `note` takes events."""

    def __init__(self, runtime: Runtime, origin_s: float, note: Callable[[Event], None]) -> None:
        self._runtime = runtime
        self._origin_s = origin_s
        self._note = note
        self._seen: dict[tuple[str, str, str], float] = {}

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                began_s = time.monotonic()
                self._sample_processes()
                pages = await self._pages(session)
                for node, page in pages.items():
                    self._read_page(node, page)
                await asyncio.sleep(max(0.0, began_s + PERIOD_S - time.monotonic()))

    def _now(self) -> float:
        return round(time.monotonic() - self._origin_s, 4)

    def _sample_processes(self) -> None:
        for part, pids in self._runtime.families().items():
            for pid in pids:
                found = sample(pid)
                if found is not None:
                    self._note(Event(self._now(), "proc", f"{pid}", where=part, cpu_s=found.cpu_s, rss=found.rss))

    async def _pages(self, session: aiohttp.ClientSession) -> dict[str, str]:
        urls = {"door": self._runtime.url}
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, OSError):
            async with session.get(f"{self._runtime.url}/admin/status") as answer:
                status = await answer.json()
            urls |= {each["host"]: each["url"] for each in status.get("hosts", []) if "url" in each}
        found = await asyncio.gather(*(_page(session, f"{url}/metrics") for url in urls.values()))
        return {node: page for node, page in zip(urls, found, strict=True) if page}

    def _read_page(self, node: str, page: str) -> None:
        for name, labels, value in samples(page):
            before = self._seen.get((node, name, labels), 0.0)
            self._seen[node, name, labels] = value
            if name in COUNTERS:
                # A counter that went back is that of a new process, which began at zero.
                rise = value - before if value >= before else value
                if rise > 0:
                    self._note(Event(self._now(), COUNTERS[name], node, where=labels, value=rise))
            elif name in GAUGES and value != before:
                self._note(Event(self._now(), GAUGES[name], node, where=labels, value=value))


def samples(page: str) -> Iterator[tuple[str, str, float]]:
    """Name, labels and value of each line of a page of metrics."""
    for line in page.splitlines():
        if not line.startswith("#") and " " in line:
            head, _, value = line.rpartition(" ")
            name, brace, labels = head.partition("{")
            yield name, labels.rstrip("}") if brace else "", float(value)


async def _page(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as answer:
            return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
