"""The status of a mesh is that of its hosts together, and says of which of them nothing is known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from penstock import App
from penstock.mesh.doing import Looks
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.store import Pending

TOLD = {"functions": {}, "ingresses": {}, "egresses": {}, "retries": 0, "active": 2, "waiting": 1}


class Transport:
    """To a host that answers, and to one that does not."""

    async def look(self, endpoint: Endpoint, path: str, timeout_s: float) -> dict[str, Any] | None:
        return TOLD if endpoint.name == "a" else None


async def status() -> dict[str, Any]:
    registry = LocalRegistry([Endpoint("a", "http://a", ready=True), Endpoint("b", "http://b", ready=True)])
    await registry.open()

    async def pending() -> Pending:
        return Pending(messages=3, delayed=4, rows=5)

    looks = Looks(registry, [], Transport())  # type: ignore[arg-type]
    found = await looks.status(App("empty"), SimpleNamespace(pending=pending), 0, 0.0)
    await registry.close()
    return found


def test_a_host_that_does_not_answer_is_told_not_to_and_adds_nothing() -> None:
    found = asyncio.run(status())

    assert [(each["host"], each["ready"], each["answers"]) for each in found["hosts"]] == [
        ("a", True, True),
        ("b", True, False),
    ]
    assert (found["calls_in_flight"], found["waiting"]) == (2, 1)
    assert (found["queued"], found["held"], found["staged"]) == (3, 4, 5)
