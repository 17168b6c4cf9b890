"""What the mesh costs, and what a killed host costs its callers: python -m benchmarks.mesh [--seconds S] [NAME ...]

    overhead    one caller: a bare aiohttp call, and the same through the library with its policies, in turns
    stateless   requests a host carries out in a second of its processor time, without state
    stateful    the same with state in SQLite, synchronous=FULL: every answer is on disk before it is given
    failover    kill -9 of one of three hosts under keyed calls: errors, and how long calls take around that
    gray        the same with SIGSTOP: a host that takes connections and answers nothing, with outlier detection
    policy      from the change of a policy file until requests meet it

Each scenario prints one JSON object, with a bare aiohttp server in the same run where there is something to compare.
Processor time of a host is that of its process with all threads, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web

from penstock import App, Context, State
from penstock.ids import Address
from penstock.mesh.library import Mesh
from penstock.mesh.options import MeshOptions, encode_options
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.transport import HttpTransport
from penstock.mesh.wire import Request

CALLERS = 64
PER_TRY_MS = 1_000
FAILOVER_CALLERS = 16
app = App("bench")


class Count(State):
    n: int = 0


@app.function("bench/echo")
def echo(ctx: Context[None], message: int) -> int:
    return message


@app.function("bench/count")
def count(ctx: Context[Count], by: int) -> int:
    ctx.state.n += by
    return ctx.state.n


# Processes.


class Process:
    """A process that tells its URL in its first line, and ends with its input."""

    def __init__(self, folder: Path, *command: str, line: bytes = b"") -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        self.url = self._process.stdout.readline().decode().strip()

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def host_process(folder: Path) -> Process:
    options = MeshOptions(
        app="benchmarks.mesh:app", folder=str(Path.cwd()), store=str(folder / "data"), registry=str(folder / "registry")
    )
    return Process(Path.cwd(), "-m", "penstock.mesh.process", line=encode_options(options))


def bare_process(folder: Path) -> Process:
    return Process(Path.cwd(), "-m", "benchmarks.mesh", "--bare")


async def serve_bare() -> None:
    """An aiohttp server that returns what it gets, and nothing else."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read())

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# Scenarios.


def overhead(seconds: float, folder: Path) -> dict[str, Any]:
    bare, host = bare_process(folder), host_process(folder)

    async def run() -> tuple[list[float], list[float]]:
        registry = LocalRegistry([Endpoint("h", host.url, ready=True)])
        plain_s: list[float] = []
        mesh_s: list[float] = []
        async with aiohttp.ClientSession() as session, Mesh(app, registry=registry) as mesh:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                began_s = time.perf_counter()
                async with session.post(bare.url, data=b"\x07") as response:
                    await response.read()
                plain_s.append(time.perf_counter() - began_s)
                began_s = time.perf_counter()
                await mesh.call(echo, "a", 7)
                mesh_s.append(time.perf_counter() - began_s)
        return plain_s, mesh_s

    try:
        plain_s, mesh_s = asyncio.run(run())
    finally:
        bare.end()
        host.end()
    added_ms = quantile_ms(mesh_s, 0.5) - quantile_ms(plain_s, 0.5)
    return {
        "calls": len(mesh_s),
        "bare_p50_ms": quantile_ms(plain_s, 0.5),
        "mesh_p50_ms": quantile_ms(mesh_s, 0.5),
        "added_p50_ms": round(added_ms, 3),
        "bare_p99_ms": quantile_ms(plain_s, 0.99),
        "mesh_p99_ms": quantile_ms(mesh_s, 0.99),
    }


def stateless(seconds: float, folder: Path) -> dict[str, Any]:
    return throughput(seconds, folder, "bench/echo", keyed=False)


def stateful(seconds: float, folder: Path) -> dict[str, Any]:
    return throughput(seconds, folder, "bench/count", keyed=True)


def throughput(seconds: float, folder: Path, typename: str, *, keyed: bool) -> dict[str, Any]:
    """Requests per second of processor time, of a host and of a bare server."""
    bare, host = bare_process(folder), host_process(folder)

    async def of_host() -> tuple[int, float]:
        transport, endpoint, done = HttpTransport(), Endpoint("h", host.url), 0

        async def ask(caller: int, number: int) -> None:
            key = f"{caller} {number}" if keyed else ""
            reply = await transport.send(endpoint, Request(Address(typename, f"c{caller}"), b"\x01", key=key), 10.0)
            assert reply.status == 200, reply

        began_s = host.cpu_s
        done = await repeat(ask, seconds)
        await transport.close()
        return done, host.cpu_s - began_s

    async def of_bare() -> tuple[int, float]:
        async with aiohttp.ClientSession() as session:

            async def ask(caller: int, number: int) -> None:
                async with session.post(bare.url, data=b"\x01") as response:
                    await response.read()

            began_s = bare.cpu_s
            return await repeat(ask, seconds), bare.cpu_s - began_s

    try:
        plain, plain_s = asyncio.run(of_bare())
        done, spent_s = asyncio.run(of_host())
    finally:
        bare.end()
        host.end()
    return {
        "requests": done,
        "per_s": round(done / seconds),
        "per_cpu_s": round(done / spent_s),
        "bare_per_cpu_s": round(plain / plain_s),
    }


async def repeat(ask: Callable[[int, int], Awaitable[None]], seconds: float) -> int:
    """`CALLERS` at once, each again and again. Returns how often."""
    until_s, done = time.monotonic() + seconds, 0

    async def call(caller: int) -> None:
        nonlocal done
        number = 0
        while time.monotonic() < until_s:
            await ask(caller, number)
            number += 1
            done += 1

    await asyncio.gather(*map(call, range(CALLERS)))
    return done


class Supervised:
    """`penstock mesh` with three hosts and a policy file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policies = folder / "mesh.yaml"
        self.write_policies("")
        command = "from penstock.engine.cli import main; main()"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", command, "mesh", "benchmarks.mesh:app", "--replicas", "3", "--port", "0"),
                    *("--store", str(folder / "data"), "--registry", str(folder / "registry")),
                    *("--policies", str(self.policies)),
                ],
                stderr=log,
            )
        self.url = ""

    def write_policies(self, more: str) -> None:
        text = (
            "functions:\n  bench/count:\n"
            "    outlier_detection: {consecutive_5xx: 3, base_ejection_time: 30s, max_ejection_percent: 50}\n"
            f"routes:\n  - match: {{function: bench/count}}\n    retries: {{per_try_timeout: {PER_TRY_MS}ms}}\n{more}"
        )
        self.policies.write_text(text)

    async def ready(self, session: aiohttp.ClientSession) -> None:
        while "gateway at" not in self.log.read_text():
            await asyncio.sleep(0.05)
        self.url = self.log.read_text().partition("gateway at ")[2].partition(",")[0]
        while True:
            async with session.get(f"{self.url}/actuator/health/readiness") as response:
                if (await response.json())["components"]["hosts"]["details"].get("ready") == 3:
                    return
            await asyncio.sleep(0.05)

    def hosts(self) -> list[int]:
        return [
            int(line.partition("host-")[2].split()[0]) for line in self.log.read_text().splitlines() if "Serves" in line
        ]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def failover(seconds: float, folder: Path) -> dict[str, Any]:
    return disturbed(seconds, folder, signal.SIGKILL)


def gray(seconds: float, folder: Path) -> dict[str, Any]:
    return disturbed(seconds, folder, signal.SIGSTOP)


def disturbed(seconds: float, folder: Path, how: signal.Signals) -> dict[str, Any]:
    """Keyed calls through the gateway, while something is done to one of three hosts."""
    mesh = Supervised(folder)
    calls: list[tuple[float, float, bool]] = []
    killed_s = 0.0

    async def run() -> None:
        nonlocal killed_s
        async with aiohttp.ClientSession() as session:
            await mesh.ready(session)
            until_s = time.monotonic() + seconds

            async def call(caller: int) -> None:
                counted = 0
                while time.monotonic() < until_s:
                    began_s, headers = time.monotonic(), {"Idempotency-Key": f"{caller} {counted}"}
                    url = f"{mesh.url}/call/bench/count/c{caller}"
                    async with session.post(url, data="1", headers=headers) as response:
                        text = await response.text()
                    counted += 1
                    right = response.status == 200 and int(text) == counted
                    calls.append((began_s, time.monotonic() - began_s, right))

            async def kill() -> None:
                nonlocal killed_s
                await asyncio.sleep(seconds / 3)
                killed_s = time.monotonic()
                os.kill(mesh.hosts()[0], how)

            await asyncio.gather(kill(), *map(call, range(FAILOVER_CALLERS)))

    try:
        asyncio.run(run())
    finally:
        if how is signal.SIGSTOP:
            os.kill(mesh.hosts()[0], signal.SIGKILL)
        mesh.end()
    before = [took_s for began_s, took_s, _ in calls if began_s < killed_s - PER_TRY_MS / 1000]
    around = [took_s for began_s, took_s, _ in calls if -1.0 < began_s - killed_s < 2.0]
    return {
        "calls": len(calls),
        "errors": sum(not right for _, _, right in calls),
        "per_try_timeout_ms": PER_TRY_MS,
        "before_p50_ms": quantile_ms(before, 0.5),
        "before_p99_ms": quantile_ms(before, 0.99),
        "around_p99_ms": quantile_ms(around, 0.99),
        "around_max_ms": quantile_ms(around, 1.0),
    }


def policy(seconds: float, folder: Path) -> dict[str, Any]:
    mesh = Supervised(folder)

    async def run() -> float:
        async with aiohttp.ClientSession() as session:
            await mesh.ready(session)
            changed_s = time.monotonic()
            mesh.write_policies("    fault: {abort: {percentage: 100, http_status: 418}, side: client}\n")
            while True:
                async with session.post(f"{mesh.url}/call/bench/count/c", data="1") as response:
                    if response.status == 418:
                        return time.monotonic() - changed_s
                await asyncio.sleep(0.01)

    try:
        return {"effective_after_ms": round(asyncio.run(run()) * 1000)}
    finally:
        mesh.end()


def quantile_ms(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3) if ordered else 0.0


SCENARIOS = {each.__name__: each for each in (overhead, stateless, stateful, failover, gray, policy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *SCENARIOS])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        asyncio.run(serve_bare())
        return
    for name in arguments.names or SCENARIOS:
        random.seed(0)
        with TemporaryDirectory(prefix="mesh-bench-", ignore_cleanup_errors=True) as folder:
            found = SCENARIOS[name](arguments.seconds, Path(folder))
        print(json.dumps({"scenario": name} | found), flush=True)


if __name__ == "__main__":
    main()
