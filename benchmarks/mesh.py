"""What the mesh costs, and what a killed host costs its callers: python -m benchmarks.mesh [--seconds S] [NAME ...]

    overhead    one caller: a bare aiohttp call, and the same through the library with its policies, in turns
    stateless   requests a host carries out in a second of its processor time, without state
    stateful    the same with state in SQLite, synchronous=FULL: every answer is on disk before it is given
    failover    kill -9 of one of three hosts under keyed calls: errors, and how long calls take around that
    gray        the same with SIGSTOP: a host that takes connections and answers nothing, with outlier detection
    slow        one of three hosts answers 300 ms later: what addresses cost that it owns, and functions without state
    lost        a relay before each of three hosts cuts connections when the effect is done and the reply on its way
    control     the registry is destroyed under load, and comes back
    rotation    the certificates of all processes are replaced once a second under load, with mTLS STRICT
    rolling     all hosts are replaced under load
    policy      from the change of a policy file until requests meet it

Each scenario prints one JSON object, with a bare aiohttp server in the same run where there is something to compare.
Those that disturb something compare the calls before it (`before`) with those from then on until it is over (`during`);
a wrong answer counts as an error, and an answer tells whether each call was carried out once. Processor time of a host
is that of its process with all threads, from /proc.
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
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from penstock import App, Context, PenstockError, State
from penstock.ids import Address
from penstock.mesh.certificates import issue, make_authority
from penstock.mesh.library import Mesh
from penstock.mesh.options import MeshOptions, encode_options
from penstock.mesh.registry import Endpoint, LocalRegistry
from penstock.mesh.transport import HttpTransport
from penstock.mesh.wire import Request

CALLERS = 64
PER_TRY_MS = 1_000
FAILOVER_CALLERS = 16
SLOW_S = 0.3
LOST_SHARE = 0.01
"""Of what replies consist of, while they are cut. Three in a row exceed the retries: one call of a million."""
WARM_S = 0.5
"""At the beginning, when connections are made: calls of that time are not compared."""
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


@app.function("bench/owned")
async def owned(ctx: Context[Count], by: int) -> int:
    await be_slow()
    ctx.state.n += by
    return ctx.state.n


@app.function("bench/least")
async def least(ctx: Context[None], message: int) -> int:
    await be_slow()
    return message


@app.function("bench/peak")
async def peak(ctx: Context[None], message: int) -> int:
    await be_slow()
    return message


async def be_slow() -> None:
    """If this is the process that is told to be, by a file of its number."""
    if Path(os.environ["BENCH_SLOW"], str(os.getpid())).exists():
        await asyncio.sleep(SLOW_S)


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


def host_process(folder: Path, store: str = "") -> Process:
    options = MeshOptions(
        app="benchmarks.mesh:app",
        folder=str(Path.cwd()),
        store=store or str(folder / "data"),
        registry=str(folder / "registry"),
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


def stateful(seconds: float, folder: Path, store: str = "") -> dict[str, Any]:
    return throughput(seconds, folder, "bench/count", keyed=True, store=store)


def throughput(seconds: float, folder: Path, typename: str, *, keyed: bool, store: str = "") -> dict[str, Any]:
    """Requests per second of processor time, of a host and of a bare server."""
    bare, host = bare_process(folder), host_process(folder, store)

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

    def __init__(self, folder: Path, *options: str, policies: str = "") -> None:
        self.folder = folder
        self.policies = folder / "mesh.yaml"
        self.registry = folder / "registry"
        self.write_policies(policies)
        command = "from penstock.engine.cli import main; main()"
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", command, "mesh", "benchmarks.mesh:app", "--replicas", "3", "--port", "0"),
                    *("--store", str(folder / "data"), "--registry", str(self.registry)),
                    *("--policies", str(self.policies), *options),
                ],
                stderr=log,
                env=os.environ | {"BENCH_SLOW": str(folder)},
            )
        self.url = ""

    def write_policies(self, more: str) -> None:
        text = (
            "functions:\n  bench/count:\n"
            "    outlier_detection: {consecutive_5xx: 3, base_ejection_time: 30s, max_ejection_percent: 50}\n"
            "  bench/least: {lb: {policy: LEAST_REQUEST}}\n  bench/peak: {lb: {policy: PEAK_EWMA}}\n"
            f"routes:\n  - match: {{function: bench/count}}\n    retries: {{per_try_timeout: {PER_TRY_MS}ms}}\n{more}"
        )
        self.policies.write_text(text)

    async def ready(self, session: aiohttp.ClientSession) -> None:
        await self.said("gateway at")
        self.url = self.log.read_text().partition("gateway at ")[2].partition(",")[0]
        while True:
            async with session.get(f"{self.url}/actuator/health/readiness") as response:
                if (await response.json())["components"]["hosts"]["details"].get("ready") == 3:
                    return
            await asyncio.sleep(0.05)

    async def said(self, text: str, times: int = 1) -> None:
        """Wait for it in the log."""
        while self.log.read_text().count(text) < times:
            await asyncio.sleep(0.05)

    def hosts(self) -> list[int]:
        return [
            int(line.partition("host-")[2].split()[0]) for line in self.log.read_text().splitlines() if "Serves" in line
        ]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def failover(seconds: float, folder: Path) -> dict[str, Any]:
    async def kill(mesh: Supervised) -> None:
        os.kill(mesh.hosts()[0], signal.SIGKILL)

    return {"per_try_timeout_ms": PER_TRY_MS} | disturbed(seconds, Supervised(folder), kill)


def gray(seconds: float, folder: Path) -> dict[str, Any]:
    mesh = Supervised(folder)

    async def stop(mesh: Supervised) -> None:
        os.kill(mesh.hosts()[0], signal.SIGSTOP)

    try:
        return {"per_try_timeout_ms": PER_TRY_MS} | disturbed(seconds, mesh, stop, end=False)
    finally:
        os.kill(mesh.hosts()[0], signal.SIGKILL)
        mesh.end()


def slow(seconds: float, folder: Path) -> dict[str, Any]:
    async def be(mesh: Supervised) -> None:
        told = folder / str(mesh.hosts()[0])
        told.touch()
        await asyncio.sleep(seconds / 2)
        told.unlink()

    typenames = ("bench/owned", "bench/least", "bench/peak")
    return {"later_ms": SLOW_S * 1000} | disturbed(seconds, Supervised(folder), be, typenames)


def control(seconds: float, folder: Path) -> dict[str, Any]:
    async def destroy(mesh: Supervised) -> None:
        """For longer than a lease."""
        for file in mesh.folder.glob("registry*"):
            file.unlink()
        mesh.registry.mkdir()
        await mesh.said("The last view goes on serving")
        await asyncio.sleep(seconds / 2)
        mesh.registry.rmdir()
        await mesh.said("The registry answers again")

    return disturbed(seconds, Supervised(folder), destroy)


def rotation(seconds: float, folder: Path) -> dict[str, Any]:
    rotations = max(1, round(seconds / 2))

    def renew() -> None:
        issue(folder / "ca", folder / "id", namespace="bench", name="host", lifetime=day, now=datetime.now(UTC))

    async def rotate(mesh: Supervised) -> None:
        for number in range(1, rotations + 1):
            await asyncio.to_thread(renew)
            await mesh.said("was replaced; new connections use it", times=4 * number)

    day = timedelta(days=1)
    make_authority(folder / "ca", "bench.local", 365 * day, datetime.now(UTC) - day)
    renew()
    tls = "tls: {mode: STRICT, trust_domain: bench.local}\n"
    mesh = Supervised(folder, "--identity", str(folder / "id"), policies=tls)
    return {"rotations": rotations} | disturbed(seconds, mesh, rotate)


def rolling(seconds: float, folder: Path) -> dict[str, Any]:
    async def replace(mesh: Supervised) -> None:
        mesh.process.send_signal(signal.SIGHUP)
        await mesh.said("3 hosts replaced")

    return disturbed(seconds, Supervised(folder), replace)


class Call(NamedTuple):
    """One that has been answered."""

    typename: str
    began_s: float
    took_s: float
    right: bool


Ask = Callable[[str, str, str], Awaitable[int]]
"""Add one to an address of a function, under a key. Returns what it counts; 0 for an error."""


def disturbed(
    seconds: float,
    mesh: Supervised,
    disturb: Callable[[Supervised], Awaitable[None]],
    typenames: Sequence[str] = ("bench/count",),
    *,
    end: bool = True,
) -> dict[str, Any]:
    """Keyed calls through the gateway, while something is done to the processes behind it."""

    async def run() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            await mesh.ready(session)

            async def ask(typename: str, id: str, key: str) -> int:
                headers = {"Idempotency-Key": key}
                async with session.post(f"{mesh.url}/call/{typename}/{id}", data="1", headers=headers) as response:
                    text = await response.text()
                return int(text) if response.status == 200 else 0

            return await compared(seconds, ask, lambda: disturb(mesh), typenames)

    try:
        return asyncio.run(run())
    finally:
        if end:
            mesh.end()


async def compared(
    seconds: float, ask: Ask, disturb: Callable[[], Awaitable[None]], typenames: Sequence[str] = ("bench/count",)
) -> dict[str, Any]:
    """Calls before and during something, which begins after a third of the time."""
    calls: list[Call] = []
    over = asyncio.Event()

    async def call(caller: int) -> None:
        counted, typename = 0, typenames[caller % len(typenames)]
        while not over.is_set():
            began_s = time.monotonic()
            found = await ask(typename, f"c{caller}", f"{caller} {counted}")
            counted += 1
            right = found == (counted if typename in ("bench/count", "bench/owned") else 1)
            calls.append(Call(typename, began_s, time.monotonic() - began_s, right))

    async with asyncio.TaskGroup() as group:
        for caller in range(FAILOVER_CALLERS):
            group.create_task(call(caller))
        began_s = time.monotonic()
        await asyncio.sleep(seconds / 3)
        disturbed_s = time.monotonic()
        await disturb()
        ended_s = time.monotonic()
        await asyncio.sleep(max(0.0, began_s + seconds - ended_s))
        over.set()
    before = [each for each in calls if began_s + WARM_S < each.began_s < disturbed_s - each.took_s]
    during = [each for each in calls if -1.0 < each.began_s - disturbed_s < max(2.0, ended_s - disturbed_s)]
    found: dict[str, float] = {"calls": len(calls), "errors": sum(not each.right for each in calls)}
    for typename in typenames:
        prefix = f"{typename.partition('/')[2]}_" if len(typenames) > 1 else ""
        figures = {
            f"{name}_{figure}": value
            for name, of in (("before", before), ("during", during))
            for figure, value in _figures([each.took_s for each in of if each.typename == typename]).items()
        }
        figures["p99_ratio"] = round(figures["during_p99_ms"] / figures["before_p99_ms"], 2)
        found |= {f"{prefix}{name}": value for name, value in figures.items()}
    return found


def _figures(took_s: list[float]) -> dict[str, float]:
    return {
        "p50_ms": quantile_ms(took_s, 0.5),
        "p99_ms": quantile_ms(took_s, 0.99),
        "max_ms": quantile_ms(took_s, 1.0),
    }


def lost(seconds: float, folder: Path) -> dict[str, Any]:
    hosts = [host_process(folder) for _ in range(3)]
    relays = [Relay(host.url) for host in hosts]

    async def cut() -> None:
        for relay in relays:
            relay.share = LOST_SHARE
        await asyncio.sleep(seconds / 2)
        for relay in relays:
            relay.share = 0.0

    async def run() -> dict[str, Any]:
        endpoints = [Endpoint(f"h{n}", await relay.start(), ready=True) for n, relay in enumerate(relays)]
        async with Mesh(app, registry=LocalRegistry(endpoints)) as mesh:

            async def ask(typename: str, id: str, key: str) -> int:
                try:
                    return await mesh.call(count, id, 1, key=key)
                except PenstockError:
                    return 0

            found = await compared(seconds, ask, cut)
        return found | {"replies_lost": sum(relay.lost for relay in relays)}

    try:
        return asyncio.run(run())
    finally:
        for host in hosts:
            host.end()


class Relay:
    """Before a host. Cuts a share of the connections when a reply is on its way back: what was asked is done."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self.share = 0.0
        self.lost = 0

    async def start(self) -> str:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_host, to_host = await asyncio.open_connection(self._host, self._port)
        there = asyncio.create_task(self._pass(reader, to_host, can_be_lost=False))
        with suppress(asyncio.CancelledError):  # By the end of the loop.
            await self._pass(from_host, writer, can_be_lost=True)
        there.cancel()
        for each in (writer, to_host):
            each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, can_be_lost: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if can_be_lost and random.random() < self.share:
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()


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


_ALL = (overhead, stateless, stateful, failover, gray, slow, lost, control, rotation, rolling, policy)
SCENARIOS = {each.__name__: each for each in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *SCENARIOS])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--store", default="", metavar="PLACE", help="Of stateful: postgresql://..., instead of SQLite."
    )
    arguments = parser.parse_args()
    if arguments.store:
        SCENARIOS["stateful"] = partial(stateful, store=arguments.store)
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
