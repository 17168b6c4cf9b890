"""What awaiting costs: python -m benchmarks.awaiting [--suspended N] [NAME ...]

Each scenario prints one JSON object, with what it is compared to in the same run. But for `steps`, which runs a worker,
it is one task core without log and event loop around it, in an interpreter that is prepared as a worker prepares its
own: the cost of the code alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.embedded import percentile, run_app
from penstock import App, Context, GeneratorIngress, State
from penstock.engine.effects import Batch, Deliveries
from penstock.engine.interpreter import prepare_interpreter
from penstock.engine.invocation import Outcome
from penstock.engine.task import TaskCore, TaskOptions
from penstock.records import Envelope
from penstock.state.backend import Backend
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay
from penstock.state.rocksdb import RocksBackend, RocksMemory


class Count(State):
    n: int = 0


def application() -> App:
    app = App("bench")

    @app.function("bench/counter")
    def counter(ctx: Context[Count], amount: int) -> int:
        ctx.state.n += amount
        return ctx.state.n

    @app.function("bench/asker")
    async def asker(ctx: Context[Count], times: int) -> int:
        for _ in range(times):
            ctx.state.n += await ctx.call(counter, "c", 1)
        return ctx.state.n

    @app.function("bench/sender")
    def sender(ctx: Context[Count], times: int) -> None:
        ctx.state.n += 1
        if times:
            ctx.send(receiver, "r", times)

    @app.function("bench/receiver")
    def receiver(ctx: Context[Count], times: int) -> None:
        ctx.state.n += 1
        ctx.send(sender, "s", times - 1)

    @app.function("bench/sleeper")
    async def sleeper(ctx: Context[Count], _: int) -> None:
        await ctx.sleep("30d")

    return app


class Bench:
    """A core, and a clock that stands still."""

    def __init__(self, *, backend: Backend | None = None, **options: Any) -> None:
        app = application()
        self.overlay = Overlay(backend or MemoryBackend())
        self.core = TaskCore(app.functions.values(), {}, self.overlay, TaskOptions(**options), _never)
        self.clock_ms = 1_000
        self.checkpoint = 0
        self.app = app

    def send(self, typename: str, ids: list[str], value: int) -> None:
        payload = self.app.functions[typename].message_codec.encode(value)
        envelopes = [Envelope(typename, id, payload, hash(id) & 0xFFFFFFFF, None, None) for id in ids]
        self.core.run(Batch(self.clock_ms, [Deliveries("in", 0, envelopes)], 1_000))

    def run(self) -> None:
        while self.core.queued:
            self.core.run(Batch(self.clock_ms, [], 1_000))
            self.cut()

    def cut(self) -> None:
        """What a checkpoint does to the core, and the fold to the store."""
        self.checkpoint += 1
        self.core.freeze(self.checkpoint)
        self.core.settle(self.checkpoint)
        self.overlay.begin_fold((), ())
        while self.overlay.fold_slice():
            pass
        self.overlay.tidy()


def _never(number: int, handler: Any) -> Outcome | None:
    raise AssertionError("nothing here awaits the event loop")


def timed(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def calls() -> dict[str, Any]:
    """Round trips of one call after the other, and the same two messages sent without awaiting anything."""
    each = 5_000
    asking, sending = Bench(), Bench()

    def ask() -> None:
        asking.send("bench/asker", [f"a{number}" for number in range(10)], each)
        asking.run()

    def send() -> None:
        for _ in range(10):
            sending.send("bench/sender", ["s"], each)
        sending.run()

    plain_s, asked_s = timed(send), timed(ask)
    count = 10 * each
    return {
        "round_trips_per_cpu_s": round(count / asked_s),
        "us": round(asked_s / count * 1e6, 1),
        "two_plain_messages_us": round(plain_s / count * 1e6, 1),
        "ratio": round(asked_s / plain_s, 2),
        "aim": "60,000/s, 50 us; 2 x",
    }


def replay() -> dict[str, Any]:
    """Running a handler with a journal of 1,000 entries again."""
    figures = {}
    for lines in (100, 1_000):
        replayed = Bench(always_replay=True)
        began = time.process_time()
        replayed.send("bench/asker", ["a"], lines)
        replayed.run()
        total = time.process_time() - began
        figures[f"all_{lines}_replays_s"] = round(total, 3)
        figures[f"one_of_{lines}_ms"] = round(total / lines * 2 * 1_000, 2)
    return {**figures, "aim": "20 ms for 1,000"}


STEPS = 300
STEPPERS = 10


def steps() -> dict[str, Any]:
    """How long a step takes that does nothing, in a whole worker on a directory: alone, and beside nine others. It
    waits for a checkpoint, which is taken early."""
    return {
        "alone_ms": _step_ms(1),
        f"each_of_{STEPPERS}_at_once_ms": _step_ms(STEPPERS),
        "without_taking_one_early_ms": 200,
    }


def _step_ms(steppers: int) -> dict[str, float]:
    app = App("steps")
    took_ms: list[float] = []

    @app.function("bench/stepper")
    async def stepper(ctx: Context[None], count: int) -> None:
        for _ in range(count):
            began = time.perf_counter()
            await ctx.run("nothing", _do_nothing)
            took_ms.append((time.perf_counter() - began) * 1_000)

    count = stepper.message_codec.encode(STEPS)
    records = [(f"id-{number}", count) for number in range(steppers)]
    app.ingress(GeneratorIngress(lambda start: iter(records[start:]), format="msgpack"), to=stepper)
    with TemporaryDirectory() as folder:
        worker, _ = run_app(app, Path(folder, "data"))
    return {
        "p50": round(percentile(took_ms, 0.5), 2),
        "p99": round(percentile(took_ms, 0.99), 2),
        "checkpoints": worker.checkpoint_driver.coordinator.completed,
    }


async def _do_nothing() -> None:
    pass


SUSPENDED = 250_000
"""Ends within a minute on a machine that does other work besides."""


def suspended(count: int) -> dict[str, Any]:
    """Memory of so many invocations that sleep."""
    before_kb = _resident_max_kb()
    with TemporaryDirectory() as folder:
        bench = Bench(backend=RocksBackend.open(Path(folder, "store"), RocksMemory(64 << 20)))
        began = time.process_time()
        for start in range(0, count, 1_000):
            bench.send("bench/sleeper", [f"id-{number}" for number in range(start, start + 1_000)], 1)
            bench.clock_ms += 100
            if start % 10_000 == 0:
                bench.cut()
        assert bench.core.suspended == count
        took = time.process_time() - began
    return {
        "suspended": count,
        "mb_of_the_process": round(_resident_max_kb() / 1024),
        "bytes_each": round((_resident_max_kb() - before_kb) * 1024 / count),
        "cpu_us_each": round(took / count * 1e6, 1),
        "aim": "512 MB for 1,000,000",
    }


def _resident_max_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description="What awaiting costs.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="calls, replay, steps, suspended; without any: all of them"
    )
    parser.add_argument("--suspended", type=int, default=SUSPENDED, metavar="N", help="how many invocations sleep")
    arguments = parser.parse_args()
    scenarios = {
        "calls": calls,
        "replay": replay,
        "steps": steps,
        "suspended": partial(suspended, arguments.suspended),
    }
    prepare_interpreter()
    for name in arguments.names or scenarios:
        print(json.dumps({"scenario": name, **scenarios[name]()}))


if __name__ == "__main__":
    main()
