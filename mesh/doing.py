"""What hosts are doing, for people: each tells of itself, and the gateway puts it together as `penstock run` tells it.

    host: GET /doing/status, /doing/calls  -->  gateway: /admin/status, /admin/calls, /admin/call

What always holds: nothing waits for a turn, and nothing is changed; what a host is doing that does not answer is left
out, and it is told that it does not. What was done is counted since each host was started.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import penstock
from penstock.durations import timestamp
from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.ids import Address
from penstock.mesh.interrupts import Interrupt
from penstock.mesh.registry import Endpoint, Registry
from penstock.mesh.store import Store
from penstock.mesh.transport import HttpTransport

if TYPE_CHECKING:
    from penstock.mesh.node import Node  # Whoever only asks has none.

STATUS_PATH: Final = "/doing/status"
CALLS_PATH: Final = "/doing/calls"
WAITS_LISTED_MAX: Final = 10
"""Of what one handler waits for. It may gather thousands of calls."""
LOOK_S: Final = 2.0


# What a host tells.


def status_of_host(node: Node) -> dict[str, Any]:
    """How much it has done, and what is under way."""
    host, background = node.host, node.background
    queued: Counter[str] = Counter()
    for address, under_way in host.under_way.items():
        queued[address.typename] += len(under_way) - 1
    return {
        "functions": {
            name: {"messages": count, "failures": host.failures[name], "queued": queued[name]}
            for name, count in host.messages.items()
        },
        "ingresses": {feed.name: {"records": feed.records, "done": feed.done} for feed in background.feeds},
        "egresses": {each.name: {"committed": each.rows, "problem": each.unavailable} for each in background.writers},
        "retries": background.outbox.statistics.failed,
        "active": host.active,
        "waiting": sum(bool(each.waits()) for line in host.under_way.values() for each in line),
    }


def calls_of_host(node: Node) -> list[dict[str, Any]]:
    """The addresses that are busy with something."""
    return [_show(address, line) for address, line in node.host.under_way.items()]


def _show(address: Address, line: Sequence[Interrupt]) -> dict[str, Any]:
    """One address in one row, as `penstock calls` knows it."""
    current = next((each for each in line if each.is_running), line[0])
    waits = current.waits()
    behind = [each.request for each in line if each is not current]
    request = current.request
    return {
        "function": address.typename,
        "id": address.id,
        "state": "ending" if current.requested else "waiting" if waits else "running",
        "since": timestamp(current.since_ms),
        "waits_for": [
            {"kind": wish.kind, "name": wish.name, "since": timestamp(since_ms)}
            for wish, since_ms in waits[:WAITS_LISTED_MAX]
        ],
        "waits": len(waits),
        "called_by": None if request.caller is None else str(request.caller),
        "chain": list(map(str, request.chain)),
        "behind": len(behind),
        "attempt": request.attempt,
        "next_try": None,
        "parked": "",
        "journal": [],
        "line": [None if each.caller is None else str(each.caller) for each in behind],
    }


# What the gateway makes of it.


class Looks:
    """Asks all hosts of a registry that serve any of `functions`."""

    def __init__(self, registry: Registry, functions: Collection[str], transport: HttpTransport) -> None:
        self._registry = registry
        self._functions = functions
        self._transport = transport

    async def calls(self, *, typename: str | None, limit: int) -> list[dict[str, Any]]:
        """Busy addresses in order, of one function if that is given."""
        rows = await self._rows()
        return [_in_a_row(row) for row in rows if typename in (None, row["function"])][:limit]

    async def call(self, address: Address) -> dict[str, Any]:
        """What one address is busy with. Raises InvalidInput when that is nothing."""
        for row in await self._rows():
            if (row["function"], row["id"]) == address:
                return row
        raise InvalidInput(
            "PEN0312",
            f"{address} is not busy: none of its messages waits for anything. What waits is told by penstock calls "
            "list.",
        )

    async def status(self, app: App, store: Store, letters: int, began_s: float) -> dict[str, Any]:
        """All hosts together, and what waits in the store. `began_s` is when the gateway was started."""
        hosts = self._hosts()
        answers, pending = await asyncio.gather(self._ask(hosts, STATUS_PATH), store.pending())
        told = [answer for answer in answers if answer is not None]
        return {
            "app": app.name,
            "version": penstock.__version__,
            "pid": os.getpid(),
            "started": timestamp(began_s * 1000),
            "uptime_s": round(time.time() - began_s, 3),
            "problem": "",
            "checkpoint": None,
            "hosts": [
                {
                    "host": each.name,
                    "url": each.url,
                    "ready": each.ready,
                    "version": each.version,
                    "answers": answer is not None,
                }
                for each, answer in zip(hosts, answers, strict=True)
            ],
            "functions": [
                {"function": name} | _added(told, "functions", name, ("messages", "failures", "queued"))
                for name in sorted(app.functions)
            ],
            "ingresses": [
                {"ingress": name, "lag": None, "done": any(each["ingresses"][name]["done"] for each in told)}
                | _added(told, "ingresses", name, ("records",))
                for name in app.ingresses
            ],
            "egresses": [
                {"egress": name, "delivery": egress.spec.delivery, "staged": None, "problem": _problem(told, name)}
                | _added(told, "egresses", name, ("committed",))
                for name, egress in app.egresses.items()
            ],
            "queued": pending.messages,
            "held": pending.delayed,
            "staged": pending.rows,
            "waiting": sum(each["waiting"] for each in told),
            "parked": 0,
            "retries": sum(each["retries"] for each in told),
            "dead_letters": letters,
            "calls_in_flight": sum(each["active"] for each in told),
            "shared": None,
        }

    async def _rows(self) -> list[dict[str, Any]]:
        rows = [row for of_host in await self._ask(self._hosts(), CALLS_PATH) for row in of_host or ()]
        return sorted(rows, key=lambda row: (row["function"], row["id"]))

    async def _ask(self, hosts: Sequence[Endpoint], path: str) -> Sequence[Any]:
        """What each answers; None if it does not."""
        return await asyncio.gather(*(self._transport.look(host, path, LOOK_S) for host in hosts))

    def _hosts(self) -> Sequence[Endpoint]:
        return self._registry.view().hosts(self._functions)


def _in_a_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("journal", "line")}


def _added(told: Sequence[Mapping[str, Any]], what: str, name: str, fields: Sequence[str]) -> dict[str, int]:
    found = [each[what][name] for each in told if name in each[what]]
    return {field: sum(each[field] for each in found) for field in fields}


def _problem(told: Sequence[Mapping[str, Any]], name: str) -> str:
    problems: list[str] = [each["egresses"][name]["problem"] for each in told]
    return next(filter(None, problems), "")
