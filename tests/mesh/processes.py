"""`penstock mesh` in processes of its own, as tests start, watch, disturb and end it, and callers that count."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import uuid4

import aiohttp
import pytest

APP = """
from penstock import App, Context, State

app = App("counters")


class Count(State):
    n: int = 0


@app.function("t/count")
def count(ctx: Context[Count], by: int) -> int:
    ctx.state.n += by
    return ctx.state.n


@app.function("t/tell")
async def tell(ctx: Context[None], id: str) -> int:
    ctx.send(count, id, 10)
    return await ctx.call(count, id, 1)
"""
CALLERS = 8


class Mesh:
    """A supervisor, its gateway and its hosts. Runs `APP` unless another application is named."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        app: str = "app:app",
        store: str = "data",
        token: str = "",
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        command = "from penstock.engine.cli import main; main()"
        places = ["--store", store] if store else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "mesh", app, "--port", "0", *places, *options],
            cwd=folder,
            env={**os.environ, "PENSTOCK_TOKEN": token, **environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._seen = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        found = re.search(r"gateway at (\S+),", self.wait_for("gateway at"))
        assert found is not None
        return found[1]

    def wait_ready(self, hosts: int) -> None:
        """Until the gateway sees that many."""
        url, deadline_s = f"{self.url}/actuator/health/readiness", time.monotonic() + 30
        while time.monotonic() < deadline_s:
            with suppress(HTTPError), urlopen(url) as response:
                if json.load(response)["components"]["hosts"]["details"]["ready"] == hosts:
                    return
            time.sleep(0.02)
        pytest.fail(f"the gateway does not see {hosts} hosts")

    def hosts(self) -> list[int]:
        """Process numbers of those that were started, the newest last."""
        return [int(number) for line in self.lines for number in re.findall(r"host-(\d+) +Serves", line)]

    def wait_for(self, text: str, times: int = 1) -> str:
        """The line that says so for the `times`-th time."""
        deadline_s = time.monotonic() + 30
        with self._seen:
            while True:
                found = [line for line in self.lines if text in line]
                if len(found) >= times:
                    return found[times - 1]
                assert self._seen.wait(deadline_s - time.monotonic()), f"{text!r} is not in {self.lines}"

    def end(self) -> int:
        """Stop it in an orderly way."""
        self.process.terminate()
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._seen:
                self.lines.append(line.rstrip())
                self._seen.notify_all()
        with self._seen:
            self._seen.notify_all()
        self.process.stderr.close()


class Load:
    """Callers that add one to an address of their own, again and again, and check that each was done once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = uuid4().hex
        self.done = 0
        self.errors: list[str] = []
        self.enough = asyncio.Event()

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._call(session, number) for number in range(CALLERS)))

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        counted = 0
        while not self.enough.is_set():
            async with session.post(f"{self._url}/call/t/count/{self._name}-{number}", data="1") as response:
                text = await response.text()
            counted += 1
            if response.status != 200 or int(text) != counted:
                self.errors.append(f"{response.status} {text}, not {counted}")
                return
            self.done += 1


async def under_load(url: str, disturb: Sequence[Callable[[], object]], seconds: float) -> Load:
    """Load for some time, with `disturb` done to the processes in the middle of it."""
    load = Load(url)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(seconds / 4)
    for step in disturb:
        await asyncio.to_thread(step)
    await asyncio.sleep(seconds / 2)
    load.enough.set()
    await running
    return load
