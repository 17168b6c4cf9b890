"""The applications that `benchmarks.kafka` runs on Kafka, and a worker that says how fast it runs one.

`app` is made by what the environment says, so that every process of one run has the same: BENCH_APP is one of the
functions below, BENCH_NAME what its topics begin with: NAME-in, NAME-out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock import App, Context, KafkaEgress, KafkaIngress, Message, State
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.functions.formats import Msgpack
from penstock.router.kafka_options import KafkaOptions

LOOK_S = 0.005


class Click(Message):
    at: float
    amount: int
    text: str


class Count(State):
    clicks: int = 0
    amount: int = 0


class Blob(State):
    data: bytes = b""


class Ping(Message):
    sent_at: float
    hops: int


class Sum(Message):
    at: float
    clicks: int
    text: str


def payload(amount: int = 3, at: float = 0.0) -> bytes:
    """The value of a record: 100 bytes."""
    data = _encode(Click(at, amount, "x" * 61))
    assert len(data) == 100
    return data


_encode = msgspec.msgpack.Encoder().encode

# Applications.


def count(name: str) -> App:
    """A keyed count."""
    app = App(name)

    @app.function("bench/last")
    def last(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.state.amount += click.amount

    app.ingress(_ingress(name), to=last)
    return app


def output(name: str, **egress: Any) -> App:
    """The same with a record of about 100 bytes out for each one in."""
    app = App(name)
    out = app.egress("bench/out", _egress(name, **egress))

    @app.function("bench/last")
    def last(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.state.amount += click.amount
        ctx.emit(out, Sum(click.at, ctx.state.clicks, click.text), key=ctx.id)

    app.ingress(_ingress(name), to=last)
    return app


def eager(name: str) -> App:
    """The same, and the output is visible at once."""
    return output(name, delivery="eager")


def both(name: str) -> App:
    """Each input to an eager output, NAME-eager, and to one that is exactly once, NAME-out."""
    app = App(name)
    out = app.egress("bench/out", _egress(name))
    at_once = app.egress("bench/eager", KafkaEgress(f"{name}-eager", format=Msgpack(), delivery="eager"))

    @app.function("bench/last")
    def last(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        total = Sum(click.at, ctx.state.clicks, "")
        ctx.emit(at_once, total, key=ctx.id)
        ctx.emit(out, total, key=ctx.id)

    app.ingress(_ingress(name), to=last)
    return app


def chain(name: str) -> App:
    """Three functions under three different ids, then a record out."""
    app = App(name)
    out = app.egress("bench/out", _egress(name))

    @app.function("bench/last")
    def last(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.emit(out, Sum(click.at, ctx.state.clicks, click.text), key=ctx.id)

    @app.function("bench/second")
    def second(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.send(last, f"third-{ctx.id}", click)

    @app.function("bench/first")
    def first(ctx: Context[Count], click: Click) -> None:
        ctx.state.clicks += 1
        ctx.send(second, f"second-{ctx.id}", click)

    app.ingress(_ingress(name), to=first)
    return app


HOPS: list[float] = []
"""How long each message of `hops` was on its way, in seconds."""


def hops(name: str) -> App:
    """Each input goes to and fro between two addresses of two tasks for ever."""
    app = App(name)

    @app.function("bench/last")
    def last(ctx: Context[None], ping: Ping) -> None:
        HOPS.append(time.perf_counter() - ping.sent_at)
        other = ctx.id[:-1] if ctx.id[-1] == "'" else f"{ctx.id}'"
        ctx.send(last, other, Ping(time.perf_counter(), ping.hops + 1))

    @app.function("bench/first")
    def first(ctx: Context[None], click: Click) -> None:
        ctx.send(last, ctx.id, Ping(time.perf_counter(), 0))

    app.ingress(_ingress(name), to=first)
    return app


CALLED = [f"called-{number}" for number in range(8)]
"""Some of each task."""


def calls(name: str) -> App:
    """Calls, one after the other. A row says of each how long it took, and whether another process was called."""
    app = App(name)
    out = app.egress("bench/out", _egress(name, delivery="eager"))

    @app.function("bench/called")
    def called(ctx: Context[None], _: int) -> int:
        return os.getpid()

    @app.function("bench/caller")
    async def caller(ctx: Context[None], click: Click) -> None:
        for _ in range(click.amount):
            for id in CALLED:
                began = time.perf_counter()
                pid = await ctx.call(called, id, 1)
                ctx.emit(out, Sum(time.perf_counter() - began, int(pid != os.getpid()), ""))

    app.ingress(_ingress(name), to=caller)
    return app


def blobs(name: str) -> App:
    """100 bytes of state for each id. An input with an amount gives an eager output and one that is exactly once."""
    app = App(name)
    out = app.egress("bench/out", _egress(name))
    at_once = app.egress("bench/eager", KafkaEgress(f"{name}-eager", format=Msgpack(), delivery="eager"))

    @app.function("bench/last")
    def last(ctx: Context[Blob], click: Click) -> None:
        ctx.state.data = os.urandom(90)
        if click.amount:
            total = Sum(click.at, 0, "")
            ctx.emit(at_once, total, key=ctx.id)
            ctx.emit(out, total, key=ctx.id)

    app.ingress(_ingress(name), to=last)
    return app


APPS: dict[str, Callable[[str], App]] = {
    each.__name__: each  # type: ignore[attr-defined]
    for each in (count, output, eager, both, chain, hops, calls, blobs)
}


def _ingress(name: str) -> KafkaIngress:
    return KafkaIngress(f"{name}-in", format=Msgpack())


def _egress(name: str, **options: Any) -> KafkaEgress:
    return KafkaEgress(f"{name}-out", format=Msgpack(), **options)


# A worker.


@dataclass(frozen=True)
class Order:
    """What a worker of a process of its own is to do."""

    bootstrap: str
    directory: str
    expected: int
    """Messages of bench/last, of which the first fifth is not measured."""
    settled: bool = True
    """Whether all output has to be visible, too."""
    parallelism: int = 4


def make() -> App:
    return APPS[os.environ["BENCH_APP"]](os.environ["BENCH_NAME"])


def worker_of(order: Order) -> ClusterWorker:
    directory = Path(order.directory)
    return ClusterWorker(
        make(),
        Config(directory=directory / "worker", parallelism=order.parallelism, port=None),
        ClusterOptions(kafka=KafkaOptions(order.bootstrap), store=str(directory / "store")),
    )


async def measure(order: Order) -> dict[str, Any]:
    """Run until everything expected is processed."""
    worker = worker_of(order)
    running = asyncio.create_task(worker.run())
    first = await _reach(worker, running, order.expected // 5)
    last = await _reach(worker, running, order.expected)
    while order.settled and any(driver.unwritten for unit in worker.units for driver in unit.sinks.values()):
        await asyncio.sleep(LOOK_S)
    last = (time.perf_counter(), time.process_time(), last[2])
    checkpoints = list(worker.snapshots.durations_ms)
    turns = sum(unit.counters.turns for unit in worker.units)
    worker.stop()
    await running
    done = last[2] - first[2]
    return {
        "per_s": round(done / (last[0] - first[0])),
        "cpu_s_per_million": round((last[1] - first[1]) / done * 1e6, 2),
        "share_of_a_core": round((last[1] - first[1]) / (last[0] - first[0]), 2),
        "inputs_per_turn": round(last[2] / turns),
        "checkpoints": len(checkpoints),
        "checkpoint_ms_p50": round(sorted(checkpoints)[len(checkpoints) // 2], 1) if checkpoints else None,
    }


async def _reach(worker: ClusterWorker, running: asyncio.Task[None], count: int) -> tuple[float, float, int]:
    while True:
        if running.done():
            running.result()
        done = sum(unit.core.messages.get("bench/last", 0) for unit in worker.units) if worker.ready else 0
        if done >= count:
            return time.perf_counter(), time.process_time(), done
        await asyncio.sleep(LOOK_S)


async def measure_hops(order: Order) -> dict[str, Any]:
    """How long messages are on their way between tasks, once `expected` of them have been."""
    worker = worker_of(order)
    running = asyncio.create_task(worker.run())
    await _reach(worker, running, order.expected // 5)
    HOPS.clear()
    began = time.perf_counter()
    await _reach(worker, running, order.expected)
    took, found = time.perf_counter() - began, sorted(HOPS)
    worker.stop()
    await running
    return {
        "hops_per_s": round(len(found) / took),
        "p50_ms": round(found[len(found) // 2] * 1000, 2),
        "p99_ms": round(found[len(found) * 99 // 100] * 1000, 2),
    }


def main() -> None:
    """`python -m benchmarks.kafka_apps KIND ORDER`: prints what was measured as JSON."""
    kind, order = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Order)
    logging.basicConfig(level=logging.WARNING)
    print(json.dumps(asyncio.run(measure_hops(order) if kind == "hops" else measure(order))), flush=True)


if "BENCH_APP" in os.environ and __name__ != "__main__":
    app = make()

if __name__ == "__main__":
    main()
