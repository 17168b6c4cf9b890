"""Rows are written once, whatever happens between the store and the sink, and by one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError, Unavailable
from penstock.functions.app import App, Egress
from penstock.functions.io import EgressSpec, FileEgress, MemoryEgress
from penstock.functions.kafka_egress import KafkaEgress
from penstock.mesh import egresses as module
from penstock.mesh.egresses import EgressWriter, check_egress
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Commit, Emitted, Store
from penstock.records import EgressRow
from penstock.router.egress import MemorySink
from penstock.router.sink import RowsRefused
from tests.mesh.stores import ALICE, quick_directory

NAME = "shop/log"


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


class Process:
    def __init__(self, store: Store, session: int, writer: EgressWriter) -> None:
        self.store, self.session, self.writer = store, session, writer

    async def emit(self, *numbers: int) -> None:
        rows = [Emitted(NAME, EgressRow(b'{"n":%d}\n' % number, number)) for number in numbers]
        await self.store.commit(Commit(self.session, *ALICE, emitted=rows))
        self.writer.wake()

    async def wait_written(self) -> None:
        async with asyncio.timeout(10):
            while (await self.store.pending()).rows:  # noqa: ASYNC110  # Nobody tells of what is in a store.
                await asyncio.sleep(0.01)


@asynccontextmanager
async def writing(directory: Path, spec: EgressSpec, *, close: bool = True) -> AsyncIterator[Process]:
    store = SqliteStore(directory)
    session = await store.begin_session("test")
    writer = EgressWriter(Egress(NAME, spec), store, session, application="shop")
    task = asyncio.create_task(writer.run())
    try:
        yield Process(store, session, writer)
    finally:
        if close:
            await writer.close(task)
            await store.fence(session)  # As a process that ends does: the next has the claim at once.
        else:  # As a kill would leave it, but for what belongs to this test's process.
            task.cancel()
            await asyncio.wait([task])
        await store.close()


def numbers(spec: MemoryEgress) -> list[int]:
    return [row.cause for row in spec.rows]


def test_rows_are_written_in_order_and_forgotten(directory: Path) -> None:
    async def main() -> None:
        spec = MemoryEgress()
        async with writing(directory, spec) as process:
            await process.emit(1, 2)
            await process.emit(3)
            await process.wait_written()
        assert numbers(spec) == [1, 2, 3]
        assert process.writer.rows == 3

    asyncio.run(main())


def test_a_batch_that_the_sink_has_is_not_written_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the sink and the store."""

    async def main() -> None:
        spec = MemoryEgress()

        async def killed(*_: object) -> None:
            raise asyncio.CancelledError

        async with writing(directory, spec, close=False) as process:
            monkeypatch.setattr(process.store, "close_batch", killed)
            await process.emit(1)
            async with asyncio.timeout(10):
                while not spec.rows:  # noqa: ASYNC110  # A list tells nobody.
                    await asyncio.sleep(0.01)
            await process.store.fence(process.session)
        monkeypatch.undo()
        async with writing(directory, spec) as process:
            await process.emit(2)
            await process.wait_written()
        assert numbers(spec) == [1, 2]

    asyncio.run(main())


class Fussy(MemorySink):
    """Takes no odd rows, and nothing at all the first time."""

    fails = 1

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        if self.fails:
            self.fails -= 1
            raise Unavailable("PEN0520", "not now")
        odd = [(index, "odd") for index, row in enumerate(rows) if row.cause % 2]
        if odd:
            raise RowsRefused("PEN0522", "odd rows", odd)
        await super().commit(task, rows, marker)


def test_refused_rows_become_dead_letters_and_the_others_are_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", 0.0)

    async def main() -> None:
        spec = MemoryEgress()
        monkeypatch.setattr(module, "sink_for", lambda *_, **__: Fussy(spec))
        async with writing(directory, spec) as process:
            await process.emit(1, 2, 3, 4)
            await process.wait_written()
            letters = await process.store.dead_letters()
        assert numbers(spec) == [2, 4]
        assert [letter.reason for letter in letters] == ["PEN0522 odd", "PEN0522 odd"]

    asyncio.run(main())


def test_one_process_writes_and_another_goes_on_when_it_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLAIM_S", 0.02)

    async def main() -> None:
        spec = MemoryEgress()
        async with writing(directory, spec, close=False) as one:
            await one.emit(1)
            await one.wait_written()
            async with writing(directory, spec) as other:
                await other.emit(2)
                await other.wait_written()
                assert (one.writer.rows, other.writer.rows) == (2, 0)

                await other.store.fence(one.session)
                await other.emit(3)
                await other.wait_written()
                assert other.writer.rows == 1
        assert numbers(spec) == [1, 2, 3]

    asyncio.run(main())


def test_files_are_visible_when_the_process_has_ended(directory: Path, tmp_path: Path) -> None:
    async def main() -> None:
        for number in (1, 2):
            async with writing(directory, FileEgress(str(tmp_path))) as process:
                await process.emit(number)
                await process.wait_written()

    asyncio.run(main())

    lines = [path.read_text() for path in sorted(tmp_path.glob("part-*.jsonl"))]
    assert lines == ['{"n":1}\n', '{"n":2}\n']


def test_kafka_is_refused() -> None:
    app = App("shop")
    egress = app.egress(NAME, KafkaEgress("log"))

    with pytest.raises(ConfigurationError, match="PEN0826"):
        check_egress(egress)
