"""What the features for bad days cost: `python -m benchmarks.faults [NAME ...]`.

    savepoint   of 1 GB of state while messages are processed, against writing as many bytes to the same disk, and
                against copying files there
    rescale     1 GB of state from 4 to 8 tasks, and back, against hashing its bytes once
    replay      the flights of the example once more from the first checkpoint, aside from production (`--diff`) and
                after going back to it, against the run that was recorded

Every scenario runs in a process of its own and prints one JSON object. Its floor is measured in the same run, so that
the ratio says more than the figure on a machine that does other things, too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.embedded import Result
from examples.flights.app import connect
from examples.flights.feed import prepare
from penstock import App, Context, GeneratorIngress, Message, State
from penstock.engine.config import Config
from penstock.engine.offline import Directory
from penstock.engine.rescaling import rescale as perform_rescale
from penstock.engine.retrace import retrace
from penstock.engine.worker import Worker
from penstock.files import hash_file

ADDRESSES = 1_000_000
VALUE_BYTES = 1_000
TASKS = 4
MEASURE_S = 3.0
"""How long pauses are looked for without a savepoint, to compare with."""


class Store(Message):
    id: str
    seed: int


class Blob(State):
    data: bytes = b""


class Ticks(State):
    count: int = 0


def blobs_app(addresses: int) -> App:
    """Keeps random bytes, which no compression makes smaller, under each address."""
    app = App("blobs")

    @app.function("bench/blob")
    def blob(ctx: Context[Blob], message: Store) -> None:
        ctx.state.data = random.Random(message.seed).randbytes(VALUE_BYTES)

    @app.function("bench/tick")
    def tick(ctx: Context[Ticks], message: Store) -> None:
        ctx.state.count += 1

    def stores(start: int) -> Iterator[Store]:
        return (Store(f"blob-{n}", n) for n in range(start, addresses))

    app.ingress(GeneratorIngress(stores), to=blob, key="id", name="stores")
    return app


def ticking_app(handled: list[float], until: asyncio.Event) -> App:
    """The same, and a stream of messages whose handler writes down when it ran."""
    app = blobs_app(ADDRESSES)
    del app.functions["bench/tick"]

    @app.function("bench/tick")
    def tick(ctx: Context[Ticks], message: Store) -> None:
        ctx.state.count += 1
        handled.append(time.perf_counter())

    def ticks(start: int) -> Iterator[Store]:
        number = start
        while not until.is_set():
            yield Store(f"tick-{number % 1_000}", number)
            number += 1

    app.ingress(GeneratorIngress(ticks), to=tick, key="id", name="ticks")
    return app


def fill(directory: Path, addresses: int = ADDRESSES) -> None:
    config = Config(directory=directory, port=None, parallelism=TASKS, until_done=True)
    asyncio.run(Worker(blobs_app(addresses), config).run())


# Floors.


def disk_bytes_per_s(directory: Path, size: int) -> float:
    """What the disk of `directory` takes, when a file of `size` random bytes is written and synced."""
    piece = random.Random(0).randbytes(1 << 20)
    path = directory / "floor"
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
        file.flush()
        os.fdatasync(file.fileno())
    took_s = time.perf_counter() - began
    path.unlink()
    return size / took_s


def copy_bytes_per_s(source: Path, target: Path) -> float:
    """What the disk does when the files of `source` are copied and synced, one after the other."""
    target.mkdir()
    size = 0
    began = time.perf_counter()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fdatasync(file.fileno())
        size += path.stat().st_size
    return size / (time.perf_counter() - began)


def hash_all(directory: Path) -> None:
    """Read and hash every base and every delta once."""
    for path in directory.rglob("*"):
        if path.is_file() and path.parts[-2] in ("files", "journal"):
            hash_file(path)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, which say more where others work, too."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


# Scenarios.


def savepoint() -> Result:
    """Of a running application with 1 GB of state, on the same disk as the application."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PENSTOCK_BENCH_DIR")) as folder:
        directory = Path(folder) / "data"
        fill(directory)
        size, took_s, quiet_ms, busy_ms = asyncio.run(_save_while_running(directory, Path(folder) / "savepoint"))
        floor = disk_bytes_per_s(Path(folder), size)
        copying = copy_bytes_per_s(directory / "store" / "files", Path(folder) / "copy")
    rate = size / took_s
    return {
        "savepoint_mb": round(size / 1e6),
        "savepoint_mb_per_s": round(rate / 1e6),
        "disk_mb_per_s": round(floor / 1e6),
        "copy_mb_per_s": round(copying / 1e6),
        "ratio_to_disk": round(rate / floor, 2),
        "ratio_to_copy": round(rate / copying, 2),
        "longest_pause_ms": round(busy_ms, 1),
        "longest_pause_without_ms": round(quiet_ms, 1),
    }


async def _save_while_running(directory: Path, place: Path) -> tuple[int, float, float, float]:
    """Bytes, seconds, and the longest pause of processing without a savepoint and with one, in ms."""
    handled: list[float] = []
    ended = asyncio.Event()
    worker = Worker(ticking_app(handled, ended), Config(directory=directory, port=None, parallelism=TASKS))
    await worker.start()
    serving = asyncio.ensure_future(worker.serve())
    await asyncio.sleep(MEASURE_S)  # What follows a start is over by then.
    handled.clear()
    await asyncio.sleep(MEASURE_S)
    quiet_ms = _longest_ms(handled)
    handled.clear()
    began = time.perf_counter()
    saved = await worker.take_savepoint(str(place))
    took_s = time.perf_counter() - began
    busy_ms = _longest_ms(handled)
    ended.set()
    worker.stop()
    await serving
    await worker.finish()
    return saved.bytes, took_s, quiet_ms, busy_ms


def _longest_ms(moments: list[float]) -> float:
    return max((after - before for before, after in pairwise(moments)), default=0.0) * 1000


def rescale() -> Result:
    """Of a stopped application with 1 GB of state: 4 tasks to 8, which share files, and 8 to 4, which copy rows."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PENSTOCK_BENCH_DIR")) as folder:
        directory = Path(folder) / "data"
        fill(directory)
        floor_s, floor_cpu_s = timed(lambda: hash_all(directory))
        up_s, up_cpu_s = timed(lambda: _rescale(directory, TASKS, 2 * TASKS))
        down_s, down_cpu_s = timed(lambda: _rescale(directory, 2 * TASKS, TASKS))
    return {
        "state_mb": round(ADDRESSES * VALUE_BYTES / 1e6),
        "rescale_4_to_8_s": round(up_s, 2),
        "rescale_4_to_8_cpu_s": round(up_cpu_s, 2),
        "rescale_8_to_4_s": round(down_s, 2),
        "rescale_8_to_4_cpu_s": round(down_cpu_s, 2),
        "hashing_once_s": round(floor_s, 2),
        "ratio_4_to_8": round(up_s / floor_s, 1),
        "ratio_4_to_8_cpu": round(up_cpu_s / floor_cpu_s, 1),
    }


def _rescale(directory: Path, before: int, after: int) -> None:
    config = Config(directory=directory, port=None, parallelism=after)
    perform_rescale(blobs_app(ADDRESSES), config, before, now_ms=int(time.time() * 1000), progress=lambda *_: None)


def replay() -> Result:
    """Of the whole run of the flights example. Messages a second of CPU time say more where others work, too."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PENSTOCK_BENCH_DIR")) as folder:
        app = connect(prepare(Path(folder)), Path(folder) / "results")
        config = Config(directory=Path(folder) / "state", port=None, until_done=True)
        live, live_s, live_cpu_s = _run_flights(app, config)
        with Directory(config.directory) as directory:
            first, *_, last = directory.history.checkpoints
            cpu = time.process_time()
            aside = asyncio.run(retrace(app, directory, config, first, last))
            aside_cpu_s = time.process_time() - cpu
        assert aside.same
        again, again_s, again_cpu_s = _run_flights(app, dataclasses.replace(config, from_checkpoint=first))
    rate, cpu_rate = live / live_s, live / live_cpu_s
    return {
        "messages": live,
        "live_per_s": round(rate),
        "live_per_cpu_s": round(cpu_rate),
        "ratio_diff": round(aside.invocations / aside.took_s / rate, 2),
        "ratio_diff_cpu": round(aside.invocations / aside_cpu_s / cpu_rate, 2),
        "ratio_gone_back": round(again / again_s / rate, 2),
        "ratio_gone_back_cpu": round(again / again_cpu_s / cpu_rate, 2),
    }


def _run_flights(app: App, config: Config) -> tuple[int, float, float]:
    """Messages that functions processed, seconds, and CPU seconds."""
    worker = Worker(app, config)
    took_s, cpu_s = timed(lambda: asyncio.run(worker.run()))
    return sum(sum(unit.core.messages.values()) for unit in worker.units), took_s, cpu_s


SCENARIOS: dict[str, Callable[[], Result]] = {f.__name__: f for f in (savepoint, rescale, replay)}


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] == "--one":
        print(json.dumps(SCENARIOS[arguments[1]]()))
        return
    for name in arguments or SCENARIOS:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.faults", "--one", name], stdout=subprocess.PIPE, text=True, check=True
        )
        print(json.dumps({"scenario": name, **json.loads(child.stdout)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
