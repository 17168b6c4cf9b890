"""Running an application from a program: to the end of its input or until a signal, on a kept directory or not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import App, Context, FunctionError, GeneratorIngress, MemoryEgress, MemoryIngress, Message, State
from penstock.engine.config import Config
from penstock.engine.run import run
from penstock.engine.worker import Worker


class Number(Message):
    value: int


class Sum(State):
    total: int = 0


def adding_app(numbers: GeneratorIngress | MemoryIngress, sums: MemoryEgress | None = None) -> tuple[App, MemoryEgress]:
    app, sums = App("adding"), sums or MemoryEgress(type=int)
    app.egress("t/sums", sums)

    @app.function("t/sum")
    def add(ctx: Context[Sum], number: Number) -> None:
        ctx.state.total += number.value
        ctx.emit("t/sums", ctx.state.total)

    app.ingress(numbers, to=add, key=lambda number: "all")
    return app, sums


def up_to(count: int) -> GeneratorIngress:
    def numbers(start: int) -> Iterator[Number]:
        yield from map(Number, range(start, count))

    return GeneratorIngress(numbers, type=Number)


def test_without_a_configuration_it_runs_to_the_end_and_leaves_nothing_behind() -> None:
    app, sums = adding_app(up_to(4))

    worker = run(app)

    assert sums.values() == [0, 1, 3, 6]
    assert not worker.config.directory.exists()


def test_on_a_directory_that_is_kept_it_continues(tmp_path: Path) -> None:
    config = Config(directory=tmp_path, until_done=True, port=None)
    app, sums = adding_app(up_to(4))
    run(app, config)

    (feed,) = run(adding_app(up_to(6), sums)[0], config).ingresses

    assert sums.values() == [0, 1, 3, 6, 10, 15]
    assert (feed.records, feed.records_total) == (2, 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_when_all_that_was_read_is_committed(tmp_path: Path, number: signal.Signals) -> None:
    numbers = MemoryIngress(type=Number)
    numbers.feed(Number(1), Number(2))
    app, sums = adding_app(numbers)

    async def interrupt(worker: Worker) -> None:
        while not any(feed.records for feed in worker.ingresses):  # noqa: ASYNC110  # A feed has no event for this.
            await asyncio.sleep(0)
        os.kill(os.getpid(), number)

    run(app, Config(directory=tmp_path, port=None), watch=interrupt)

    assert sums.values() == [1, 3]


def test_what_makes_it_fail_is_raised_and_whoever_watches_is_told_to_end(tmp_path: Path) -> None:
    def numbers(start: int) -> Iterator[Number]:
        yield Number(1)
        raise RuntimeError("no more")

    watched: list[str] = []

    async def watch(worker: Worker) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            watched.append("ended")

    with pytest.raises(FunctionError) as failed:
        run(adding_app(GeneratorIngress(numbers, type=Number))[0], Config(directory=tmp_path, port=None), watch=watch)

    assert failed.value.code == "PEN0224"
    assert watched == ["ended"]
