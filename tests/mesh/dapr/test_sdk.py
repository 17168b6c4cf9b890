"""Applications on the published SDK of Dapr, unchanged, beside real processes of `penstock sidecar`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
PENSTOCK = (sys.executable, "-c", "from penstock.engine.cli import main; main()")
MEMORY_MB_MAX = 60

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process in /proc")


class Beside(NamedTuple):
    """An application and its sidecar."""

    port: int
    sidecar: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            read = response.read()
        return json.loads(read) if read else None

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.sidecar.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    settings = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} | environment
    process = subprocess.Popen(command, env=settings, cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()


@contextmanager
def beside(folder: Path, app: str, module: str) -> Iterator[Beside]:
    port, app_port = free_port(), free_port()
    with ExitStack() as stack:
        sidecar = stack.enter_context(
            running(
                *PENSTOCK, "sidecar", "--app-id", app, f"--app-port={app_port}", f"--port={port}", f"--data={folder}"
            )
        )
        stack.enter_context(running(sys.executable, "-m", module, str(app_port), DAPR_HTTP_PORT=str(port)))
        yield Beside(port, sidecar)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Beside, Beside]]:
    folder = tmp_path_factory.mktemp("sidecars")
    with (
        beside(folder, "cart", "tests.mesh.dapr.apps.cart_fastapi") as cart,
        beside(folder, "stock", "tests.mesh.dapr.apps.stock_flask") as stock,
    ):
        for one in (cart, stock):
            wait_until(lambda one=one: one.ask("GET", "/v1.0/metadata")["actorRuntime"]["hostReady"])
        for one in (cart, stock):
            for app in ("cart", "stock"):
                # Ready is what a sidecar says of itself; the others see it at their next look at the registry.
                wait_until(lambda one=one, app=app: one.ask("GET", f"/v1.0/invoke/{app}/method/events") == [])
        yield cart, stock


def wait_until(holds: Any) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < until
        time.sleep(0.05)


def test_actors_timers_reminders_and_methods_work_as_beside_dapr(pair: tuple[Beside, Beside]) -> None:
    """A client beside one of the two, which has none of the actors, and one of its own."""
    _, stock = pair
    client = subprocess.run(
        [sys.executable, "-m", "tests.mesh.dapr.apps.client"],
        env=os.environ | {"DAPR_HTTP_PORT": str(stock.port)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )

    assert json.loads(client.stdout) == {
        "added": [1, 2],
        "got": ["apple", {"name": "pear"}],
        "chimed": ["reminded by bell", "timed"],
        "taken": 7,
        "reserved": {"reserved": {"n": 2}, "asked_by": "stock"},
    }


def test_events_reach_what_is_subscribed(pair: tuple[Beside, Beside]) -> None:
    cart, stock = pair
    cart.ask("POST", "/v1.0/publish/pubsub/orders", {"order": 7})

    for app in ("cart", "stock"):
        wait_until(lambda app=app: stock.ask("GET", f"/v1.0/invoke/{app}/method/events") == [{"order": 7}])


def test_a_sidecar_stays_small(pair: tuple[Beside, Beside]) -> None:
    cart, stock = pair
    for number in range(100):
        stock.ask("POST", f"/v1.0/actors/Cart/{number}/method/Add", "apple")

    assert cart.memory_mb() <= MEMORY_MB_MAX
    assert stock.memory_mb() <= MEMORY_MB_MAX
