"""What one process reaches, against a bare loop of the same run: `python -m benchmarks.embedded [NAME ...]`.

The bare loop is what no framework can undercut in Python: decode the message, decode the state, call the handler,
encode the state, store it in a dictionary. Every scenario runs in a process of its own and prints one JSON object;
the ratios in it compare figures taken on the same machine minutes apart at most, so they travel better than the rates
do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from penstock import App, Context, GeneratorIngress, MemoryEgress, Message, State
from penstock.engine.config import Config
from penstock.engine.worker import Worker
from penstock.files import read_owner

Result = dict[str, Any]


class Click(Message):
    user: str
    amount: int


class Count(State):
    clicks: int = 0
    amount: int = 0


PAYLOAD = msgspec.msgpack.encode(Click("somebody", 3))


def count(state: Count, click: Click) -> None:
    state.clicks += 1
    state.amount += click.amount


# The floor.


def bare_rate(ids: list[str], messages: int) -> float:
    """Invocations per second of the bare loop."""
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(Click).decode
    decode_state = msgspec.msgpack.Decoder(Count).decode
    stored: dict[str, bytes] = {}
    get = stored.get
    began = time.perf_counter()
    for id in itertools.islice(itertools.cycle(ids), messages):
        click = decode(PAYLOAD)
        raw = get(id)
        state = decode_state(raw) if raw is not None else Count()
        count(state, click)
        stored[id] = encode(state)
    return messages / (time.perf_counter() - began)


def zipf_ids(count: int, length: int, exponent: float = 0.99) -> list[str]:
    weights = [1 / (rank + 1) ** exponent for rank in range(count)]
    return [f"user-{n}" for n in random.Random(1).choices(range(count), weights=weights, k=length)]


def uniform_ids(count: int, length: int) -> list[str]:
    draw = random.Random(1).randrange
    return [f"user-{draw(count)}" for _ in range(length)]


# Running an application.


def run_app(app: App, directory: Path, **options: Any) -> tuple[Worker, float]:
    """Run until the input has ended. Returns the worker, and the seconds from the first turn to the last."""

    async def run() -> tuple[Worker, float]:
        worker = Worker(app, Config(directory=directory, port=None, until_done=True, **options))
        await worker.start()
        began = time.perf_counter()
        await worker.serve()
        took = time.perf_counter() - began
        await worker.finish()
        return worker, took

    return asyncio.run(run())


def endless(ids: list[str], messages: int) -> Callable[[int], Iterator[tuple[str, bytes]]]:
    """An ingress that repeats `ids` until `messages` have been given, from any position."""

    def records(start: int) -> Iterator[tuple[str, bytes]]:
        cycle = itertools.islice(itertools.cycle(ids), start, messages)
        return zip(cycle, itertools.repeat(PAYLOAD))  # `repeat` has no end.

    return records


def counting_app(ids: list[str], messages: int) -> App:
    app = App("count")

    @app.function("bench/count")
    def counted(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.state.amount += click.amount

    app.ingress(GeneratorIngress(endless(ids, messages), format="msgpack"), to=counted)
    return app


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


# Scenarios.


def keyed_count(ids: list[str], messages: int) -> Result:
    floor = bare_rate(ids, messages)
    with tempfile.TemporaryDirectory() as directory:
        worker, took = run_app(counting_app(ids, messages), Path(directory))
    floor = (floor + bare_rate(ids, messages)) / 2
    durations = worker.checkpoint_driver.durations_ms
    return {
        "invocations_per_s": round(messages / took),
        "bare_loop_per_s": round(floor),
        "ratio": round(messages / took / floor, 3),
        "checkpoints": len(durations),
        "checkpoint_ms_p50": round(percentile(durations, 0.5), 1),
    }


def count_zipf() -> Result:
    """Keyed count, typed state, default checkpoints, Zipf 0.99 over 10,000 keys."""
    return keyed_count(zipf_ids(10_000, 200_000), 4_000_000)


def count_uniform() -> Result:
    """The same, uniform over a million keys."""
    return keyed_count(uniform_ids(1_000_000, 1_000_000), 2_000_000)


def chain() -> Result:
    """A chain of three functions, one message each, per invocation."""
    ids, messages = zipf_ids(10_000, 200_000), 1_000_000
    app = App("chain")

    @app.function("bench/third")
    def third(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1

    @app.function("bench/second")
    def second(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.send(third, ctx.id, click)

    @app.function("bench/first")
    def first(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.send(second, ctx.id, click)

    app.ingress(GeneratorIngress(endless(ids, messages), format="msgpack"), to=first)
    floor = bare_rate(ids, 2 * messages)
    with tempfile.TemporaryDirectory() as directory:
        _, took = run_app(app, Path(directory))
    floor = (floor + bare_rate(ids, 2 * messages)) / 2
    return {
        "invocations_per_s": round(3 * messages / took),
        "bare_loop_per_s": round(floor),
        "ratio": round(3 * messages / took / floor, 3),
    }


def large_state() -> Result:
    """State larger than the cache: ten million addresses on disk, uniform."""
    addresses, messages = 10_000_000, 1_000_000
    app = App("large")

    @app.function("bench/large")
    def large(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.state.amount += click.amount

    def records(start: int) -> Iterator[tuple[str, bytes]]:
        # First every address once, in an order that is neither sorted nor repeated; then uniform draws.
        draw = random.Random(7).randrange
        for n in range(addresses):
            if n >= start:
                yield f"user-{n * 7_368_787 % addresses}", PAYLOAD
        for n in range(messages):
            id = f"user-{draw(addresses)}"
            if addresses + n >= start:
                yield id, PAYLOAD

    app.ingress(GeneratorIngress(records, format="msgpack"), to=large)
    return asyncio.run(_measure_large(app, addresses, messages))


async def _measure_large(app: App, addresses: int, messages: int) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        worker = Worker(app, Config(directory=Path(directory), port=None, until_done=True, memory_bytes=256 << 20))
        await worker.start()
        serving = asyncio.get_running_loop().create_task(worker.serve())
        filled_at = 0.0
        began = time.perf_counter()
        while not serving.done():
            await asyncio.sleep(0.05)
            if not filled_at and worker.ingresses[0].records >= addresses:
                filled_at, at_fill = time.perf_counter(), worker.ingresses[0].records
        ended = time.perf_counter()
        await worker.finish()
        disk = sum(path.stat().st_size for path in Path(directory).glob("tasks/0/*"))
    return {
        "addresses": addresses,
        "fill_per_s": round(addresses / (filled_at - began)),
        "invocations_per_s": round((addresses + messages - at_fill) / (ended - filled_at)),
        "store_mb": round(disk / 1e6),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


INTERVAL_MS = 1_000
"""Between checkpoints in the scenario `pause`: 10,000 rows of 1 KB rewritten in it."""


class Blob(State):
    data: bytes = b""


def pause() -> Result:
    """Largest gap between handler starts: a million addresses of 1 KB, 10,000 distinct rows rewritten between cuts."""
    addresses, rewritten, checkpoints = 1_000_000, 10_000, 330
    gaps: list[float] = []
    last = 0.0
    app = App("pause")
    seen = 0

    @app.function("bench/blob")
    def blob(ctx: Context[Blob], click: Click) -> None:
        nonlocal last, seen
        now = time.perf_counter()
        seen += 1
        if seen > addresses:
            gaps.append(now - last)
        last = now
        ctx.state.data = bytes(1_000) + ctx.now_ms.to_bytes(8) + seen.to_bytes(8)

    def records(start: int) -> Iterator[tuple[str, bytes]]:
        # First every address once, then uniform draws: hardly any is drawn twice between two cuts.
        draw = random.Random(7).randrange
        for n in range(start, addresses):
            yield f"blob-{n}", PAYLOAD
        while True:
            yield f"blob-{draw(addresses)}", PAYLOAD

    app.ingress(
        GeneratorIngress(_paced(records, addresses, rewritten / INTERVAL_MS * 1_000), format="msgpack"), to=blob
    )
    return asyncio.run(_measure_pause(app, addresses, checkpoints, gaps))


def _paced(records: Callable[[int], Iterator[tuple[str, bytes]]], burst: int, per_s: float) -> Callable[[int], Any]:
    """Give the first `burst` records at once, and the others at a steady rate."""

    async def paced(start: int) -> Any:
        began = 0.0
        for n, record in enumerate(records(start), start):
            if n >= burst:
                began = began or time.perf_counter()
                ahead = (n - burst) / per_s - (time.perf_counter() - began)
                if ahead > 0.001:
                    await asyncio.sleep(ahead)
            yield record

    return paced


async def _measure_pause(app: App, addresses: int, checkpoints: int, gaps: list[float]) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        worker = Worker(app, Config(directory=Path(directory), port=None, interval_ms=INTERVAL_MS))
        await worker.start()
        serving = asyncio.get_running_loop().create_task(worker.serve())
        while worker.ingresses[0].records < addresses:
            await asyncio.sleep(0.05)
        await asyncio.sleep(10)  # Until what the filling left has been folded and compacted.
        gaps.clear()
        first_cut, began = worker.coordinator.completed, time.perf_counter()
        while worker.coordinator.completed - first_cut < checkpoints:
            await asyncio.sleep(0.05)
        taken, cuts, took = list(gaps), worker.coordinator.completed - first_cut, time.perf_counter() - began
        worker.stop()
        await serving
        await worker.finish()
    # What a checkpoint costs is the longest gap in its interval: one figure a checkpoint.
    size = max(1, len(taken) // cuts)
    worst = [max(taken[n : n + size]) * 1000 for n in range(0, len(taken) - size, size)]
    return {
        "checkpoints": cuts,
        "rows_between": size,
        "mb_per_s": round(len(taken) / took * 1_016 / 1e6),
        "longest_gap_per_checkpoint_ms_p50": round(percentile(worst, 0.5), 2),
        "longest_gap_per_checkpoint_ms_p99": round(percentile(worst, 0.99), 2),
        "all_gaps_ms_p99.9": round(percentile(taken, 0.999) * 1000, 2),
        "longest_ms": round(max(worst), 2),
    }


def timers() -> Result:
    """Delayed messages set and fired per second, and what a million pending ones cost."""
    count_ = 300_000
    app = App("timers")
    fired = 0

    @app.function("bench/fire")
    def fire(ctx: Context[None], click: Click) -> None:
        nonlocal fired
        fired += 1

    @app.function("bench/set")
    def set_(ctx: Context[None], click: Click) -> None:
        ctx.send_after(0.5, fire, ctx.id, click)

    app.ingress(GeneratorIngress(endless(uniform_ids(100_000, 100_000), count_), format="msgpack"), to=set_)
    with tempfile.TemporaryDirectory() as directory:
        _, took = run_app(app, Path(directory))
    assert fired == count_
    return {"set_and_fired_per_s": round(count_ / (took - 0.5)), **_pending_timers()}


def _pending_timers() -> Result:
    """Memory before and after a million timers that are due tomorrow."""
    pending = 1_000_000
    app = App("pending")

    @app.function("bench/never")
    def never(ctx: Context[None], click: Click) -> None:
        raise AssertionError("due tomorrow")

    @app.function("bench/set")
    def set_(ctx: Context[None], click: Click) -> None:
        ctx.send_after("1d", never, ctx.id, click)

    app.ingress(GeneratorIngress(endless(uniform_ids(100_000, 100_000), pending), format="msgpack"), to=set_)

    async def measure() -> Result:
        with tempfile.TemporaryDirectory() as directory:
            worker = Worker(app, Config(directory=Path(directory), port=None, memory_bytes=128 << 20))
            await worker.start()
            before = _rss_mb()
            serving = asyncio.get_running_loop().create_task(worker.serve())
            while worker.ingresses[0].records < pending or worker.units[0].overlay.settled_rows:
                await asyncio.sleep(0.1)
            after = _rss_mb()
            worker.stop()
            await serving
            await worker.finish()
        return {"pending": pending, "pending_rss_mb": round(after - before)}

    return asyncio.run(measure())


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def restart() -> Result:
    """From SIGKILL, with 1 GB of state on the local disk, to the first new output."""
    with tempfile.TemporaryDirectory() as directory:
        _run_child("fill", directory)
        took = [_run_child("resume", directory) for _ in range(7)]
        state = sum(path.stat().st_size for path in Path(directory).glob("tasks/0/*.sst"))
    return {
        "state_mb_compressed": round(state / 1e6),
        "restart_to_output_s_p50": round(percentile(took, 0.5), 3),
        "restart_to_output_s_max": round(max(took), 3),
    }


def _run_child(role: str, directory: str) -> float:
    """Run a child that kills itself by SIGKILL. Returns what it printed: seconds from its spawning to the output."""
    command = [sys.executable, "-m", "benchmarks.embedded", f"--{role}", directory, repr(time.time())]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, f"{role}: exit code {child.returncode}"
    return float(child.stdout)


async def _child(role: str, directory: Path, spawned_at: float) -> None:
    addresses = 1_000_000
    app = App("restart")
    egress = MemoryEgress()
    out = app.egress("bench/out", egress)

    @app.function("bench/blob")
    def blob(ctx: Context[Blob], click: Click) -> None:
        ctx.state.data = random.Random(ctx.now_ms).randbytes(1_000)
        if click.amount:
            ctx.emit(out, click.amount)

    quiet, loud = msgspec.msgpack.encode(Click("somebody", 0)), PAYLOAD

    def records(start: int) -> Iterator[tuple[str, bytes]]:
        for n in range(start, addresses):
            yield f"blob-{n}", quiet
        for n in itertools.count(max(start, addresses)):
            yield f"blob-{n % addresses}", loud

    app.ingress(GeneratorIngress(_paced(records, addresses, 5_000), format="msgpack"), to=blob)
    worker = Worker(app, Config(directory=directory, port=None))
    await worker.start()
    restored = len(egress.rows)
    serving = asyncio.get_running_loop().create_task(worker.serve())
    while role == "fill" and (worker.ingresses[0].records < addresses or not worker.units[0].snapshot.base_name):
        await asyncio.sleep(0.1)
    if role == "fill":
        await asyncio.sleep(5)
    restored = restored if role == "resume" else len(egress.rows)
    while len(egress.rows) <= restored:
        await asyncio.sleep(0.001)
    print(time.time() - spawned_at, flush=True)
    if role == "resume":
        await asyncio.sleep(1)  # Some more checkpoints, so that the next start finds deltas behind its base.
    assert not serving.done()
    os.kill(os.getpid(), signal.SIGKILL)


def start() -> Result:
    """From the command to ready, for an application without anything; and the import alone."""
    imports, ready = [], []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import penstock"], check=True)
        imports.append(time.perf_counter() - began)
        ready.append(_time_to_ready())
    bare = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        bare.append(time.perf_counter() - began)
    floor = percentile(bare, 0.5)
    return {
        "interpreter_ms": round(floor * 1000),
        "import_ms": round((percentile(imports, 0.5) - floor) * 1000),
        "ready_ms": round(percentile(ready, 0.5) * 1000),
    }


def _time_to_ready() -> float:
    """Seconds from `penstock run` to the first 200 of /readyz."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        Path(directory, "empty.py").write_text('import penstock\n\napp = penstock.App("empty")\n')
        began = time.perf_counter()
        command = [str(Path(sys.executable).with_name("penstock")), "run", "empty:app", "--port", str(port)]
        child = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while time.perf_counter() - began < 10:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                    if answer.status == 200:
                        return time.perf_counter() - began
                time.sleep(0.005)
            raise AssertionError("not ready within 10 s")
        finally:
            child.terminate()
            child.wait()


def call() -> Result:
    """`call` over HTTP at 200 requests a second, open loop: from when a request was due to its answer."""
    return asyncio.run(_measure_calls(rate=200, seconds=15))


async def _measure_calls(rate: int, seconds: int) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "counter.py").write_text(CALL_APP)
        command = [str(Path(sys.executable).with_name("penstock")), "run", "counter:app", "--port", "0"]
        child = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = await _url_of(Path(directory, ".penstock"))
            took = await _open_loop(url, rate, seconds)
        finally:
            child.terminate()
            child.wait()
    return {
        "requests_per_s": rate,
        "requests": len(took),
        "call_ms_p50": round(percentile(took, 0.5) * 1000, 1),
        "call_ms_p99": round(percentile(took, 0.99) * 1000, 1),
    }


CALL_APP = """
from penstock import App, Context, Message, State

app = App("counter")

class Add(Message):
    amount: int

class Sum(State):
    total: int = 0

@app.function("bench/sum")
def sum_(ctx: Context[Sum], add: Add) -> int:
    ctx.state.total += add.amount
    return ctx.state.total
"""


async def _url_of(directory: Path) -> str:
    """Where the application listens, once it says so."""
    for _ in range(1_000):
        owner = read_owner(directory) if directory.exists() else None
        if owner is not None and owner.url:
            return owner.url
        await asyncio.sleep(0.01)
    raise AssertionError("the application did not start within 10 s")


async def _open_loop(url: str, rate: int, seconds: int) -> list[float]:
    """Send at Poisson times, whatever the answers do, and measure from the time a request was due."""
    took: list[float] = []
    draw = random.Random(3)

    async def one(session: aiohttp.ClientSession, due: float) -> None:
        async with session.post(f"{url}/call/bench/sum/user-{draw.randrange(1000)}", json={"amount": 1}) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        took.append(time.perf_counter() - due)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        await one(session, time.perf_counter())
        took.clear()
        due = time.perf_counter()
        for _ in range(rate * seconds):
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(session, due))
    return took


SCENARIOS: dict[str, Callable[[], Result]] = {
    f.__name__: f for f in (count_zipf, count_uniform, chain, large_state, pause, timers, restart, start, call)
}


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("--fill", "--resume"):
        role, directory, spawned_at = arguments
        asyncio.run(_child(role[2:], Path(directory), float(spawned_at)))
    elif arguments and arguments[0] == "--one":
        print(json.dumps(SCENARIOS[arguments[1]]()))
    else:
        for name in arguments or SCENARIOS:
            child = subprocess.run(
                [sys.executable, "-m", "benchmarks.embedded", "--one", name],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(json.dumps({"scenario": name, **json.loads(child.stdout)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
