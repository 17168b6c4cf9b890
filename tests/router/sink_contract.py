"""What every sink with a marker promises, as tests that each of them passes: memory, files, PostgreSQL.

A subclass says how to make a sink and how to see what it wrote. Time and failures are the subclass's as well.
"""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec

from penstock.records import EgressRow
from penstock.router.sink import Sink

P = ParamSpec("P")


def synchronous(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an asynchronous test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def call() -> None:
            await test(*args, **kwargs)

        asyncio.run(call())

    return run


def rows(*numbers: int) -> list[EgressRow]:
    return [EgressRow(b'{"n":%d}\n' % number, number) for number in numbers]


class SinkContract(ABC):
    """Rows and marker become visible together, and stay."""

    @abstractmethod
    async def make_sink(self) -> Sink:
        """A sink that is open, at the same destination each time."""

    @abstractmethod
    async def visible(self) -> Sequence[int]:
        """The numbers of the rows that were committed, whether or not an outsider may see them yet."""

    @synchronous
    async def test_nothing_is_committed_at_first(self) -> None:
        sink = await self.make_sink()

        assert await sink.read_marker(0) == {}
        assert await self.visible() == []
        await sink.close(final=True)

    @synchronous
    async def test_rows_are_visible_with_their_marker(self) -> None:
        sink = await self.make_sink()
        await sink.read_marker(0)

        await sink.commit(0, rows(1, 2), {1: 5})

        assert await sink.read_marker(0) == {1: 5}
        assert await self.visible() == [1, 2]
        await sink.close(final=True)
        assert await self.visible() == [1, 2]

    @synchronous
    async def test_later_commits_replace_the_marker_and_add_rows(self) -> None:
        sink = await self.make_sink()
        await sink.read_marker(0)

        await sink.commit(0, rows(1), {1: 5, 2: 6})
        await sink.commit(0, rows(2), {2: 7})

        assert await sink.read_marker(0) == {2: 7}
        assert await self.visible() == [1, 2]
        await sink.close(final=True)

    @synchronous
    async def test_a_commit_may_write_a_marker_without_rows(self) -> None:
        sink = await self.make_sink()
        await sink.read_marker(0)

        await sink.commit(0, [], {1: 5})

        assert await sink.read_marker(0) == {1: 5}
        assert await self.visible() == []
        await sink.close(final=True)

    @synchronous
    async def test_tasks_have_markers_of_their_own(self) -> None:
        sink = await self.make_sink()
        for task in (0, 1):
            await sink.read_marker(task)
            await sink.commit(task, rows(task), {1: 5 + task})

        assert [await sink.read_marker(task) for task in (0, 1, 2)] == [{1: 5}, {1: 6}, {}]
        assert sorted(await self.visible()) == [0, 1]
        await sink.close(final=True)

    @synchronous
    async def test_all_is_there_after_a_restart(self) -> None:
        for final in (False, True):
            sink = await self.make_sink()
            marker = await sink.read_marker(0)
            number = len(marker)
            await sink.commit(0, rows(number), {**marker, number + 1: 1})
            await sink.tick()
            await sink.close(final=final)

        sink = await self.make_sink()
        assert await sink.read_marker(0) == {1: 1, 2: 1}
        assert await self.visible() == [0, 1]
        await sink.close(final=True)
