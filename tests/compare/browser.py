"""A headless Chromium that says what a page does: its errors, its requests, how long it takes, and what is on it.

Spoken to over its debugging port. `chromium()` is empty where there is none.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

START_S: Final = 60.0
"""Until it speaks: long enough for a machine on which other tests run."""
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # The tests of a container run as root, where its sandbox refuses to start.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-port=0",
)


def chromium() -> str:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@dataclass
class Visit:
    """What was seen of a page."""

    seconds: float = 0.0
    """From the request to the load event, by the browser's own clock."""
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """All but that for the page itself."""
    found: Any = None
    """What the script returned."""


class Browser:
    """One that runs. Pages are visited one after the other."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def visit(self, page: Path, script: str, *, scheme: Literal["light", "dark"] = "light") -> Visit:
        """Open the page, wait until it is loaded, and run the script in it."""
        target = await self._ask("Target.createTarget", url="about:blank")
        session = (await self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._ask(f"{domain}.enable", session)
        await self._ask(
            "Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        visit = Visit()
        await self._ask("Page.navigate", session, visit, url=page.as_uri())
        await self._until("Page.loadEventFired", session, visit)
        timing = "(([t]) => (t.loadEventEnd || t.domComplete) / 1000)(performance.getEntriesByType('navigation'))"
        visit.seconds = await self._evaluate(timing, session, visit)
        visit.found = await self._evaluate(script, session, visit)
        visit.requests = [url for url in visit.requests if url != page.as_uri()]
        await self._ask("Target.closeTarget", targetId=target["targetId"])
        return visit

    async def _evaluate(self, script: str, session: str, visit: Visit) -> Any:
        answer = await self._ask("Runtime.evaluate", session, visit, expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def _ask(self, method: str, session: str = "", visit: Visit | None = None, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        while True:
            answer = await self._socket.receive_json(timeout=START_S)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            _notice(answer, visit)

    async def _until(self, method: str, session: str, visit: Visit) -> None:
        while True:
            message = await self._socket.receive_json(timeout=START_S)
            if (message.get("method"), message.get("sessionId")) == (method, session):
                return
            _notice(message, visit)


def _notice(message: Any, visit: Visit | None) -> None:
    if visit is None:
        return
    match message.get("method"), message.get("params"):
        case "Log.entryAdded", {"entry": entry}:
            visit.errors.append(entry["text"])
        case "Runtime.exceptionThrown", {"exceptionDetails": details}:
            visit.errors.append(details["text"])
        case "Runtime.consoleAPICalled", {"type": kind}:
            visit.errors.append(f"console.{kind}")
        case "Network.requestWillBeSent", {"request": request}:
            visit.requests.append(request["url"])
        case _:
            pass  # It tells much more than that.


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Browser]:
    """Its profile and what it says go to `directory`."""
    log = directory / "chromium.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            chromium(), *FLAGS, f"--user-data-dir={directory / 'profile'}", stdout=output, stderr=output
        )
    try:
        url = await _debugger(log)
        async with (
            aiohttp.ClientSession(trust_env=False) as http,
            http.ws_connect(url, max_msg_size=0) as socket,
        ):
            yield Browser(socket)
    finally:
        process.terminate()
        await process.wait()


async def _debugger(log: Path) -> str:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        said = await asyncio.to_thread(log.read_text, errors="replace")
        for line in said.splitlines():
            if line.startswith("DevTools listening on "):
                return line.removeprefix("DevTools listening on ")
        await asyncio.sleep(0.05)
    raise AssertionError(f"Chromium does not start; see {log}")
