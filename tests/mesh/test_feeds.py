"""Every record of an ingress becomes its messages once, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock import App, Context, FileIngress, GeneratorIngress
from penstock.errors import ConfigurationError
from penstock.functions.io import IngressSpec, MemoryIngress
from penstock.functions.kafka import KafkaIngress
from penstock.mesh import feeds as module
from penstock.mesh.feeds import Feed, check_ingress
from penstock.mesh.outbox import Outbox, Refusal
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Kept, RejectedRecord, Store
from tests.mesh.stores import quick_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


def application(spec: IngressSpec, **options: Any) -> App:
    app = App("shop")

    @app.function("shop/cart")
    def cart(ctx: Context[None], message: int) -> None: ...

    app.ingress(spec, name="numbers", **(options or {"to": cart, "key": lambda number: f"id-{number % 2}"}))
    return app


class Process:
    def __init__(self, store: Store, session: int, feed: Feed, task: asyncio.Task[None]) -> None:
        self.store, self.session, self.feed, self.task = store, session, feed, task

    async def wait_end(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.wait([self.task])

    async def kept(self) -> list[Kept]:
        return await self.store.due(self.session, 0, 10_000)

    async def payloads(self) -> list[bytes]:
        return [kept.outgoing.payload for kept in await self.kept()]


async def _take_nothing(_: Kept) -> Refusal | None:
    return None


@asynccontextmanager
async def reading(directory: Path, app: App) -> AsyncIterator[Process]:
    store = SqliteStore(directory)
    session = await store.begin_session("test")
    outbox = Outbox(store, session, _take_nothing)  # Not running: what is kept stays where it can be looked at.
    feed = Feed(app, app.ingresses["numbers"], store, session, outbox, message_bytes_max=1_000)
    task = asyncio.create_task(feed.run())
    try:
        yield Process(store, session, feed, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


def counted(start: int, end: int = 7) -> Iterator[int]:
    return iter(range(start, end))


def test_records_become_messages_in_order_from_nobody(directory: Path) -> None:
    async def main() -> None:
        async with reading(directory, application(GeneratorIngress(counted, type=int))) as process:
            await process.wait_end()
            kept = await process.kept()

            assert process.feed.done
            assert [each.outgoing.payload for each in kept] == [b"%c" % number for number in range(7)]
            assert [each.outgoing.key for each in kept] == [f"ingress numbers:{number}:0" for number in range(7)]
            assert {each.outgoing.id for each in kept} == {"id-0", "id-1"}
            assert all(each.outgoing.outside for each in kept)

    asyncio.run(main())


def test_reading_goes_on_where_it_was(directory: Path) -> None:
    async def main() -> None:
        spec = MemoryIngress(type=int)
        spec.feed(0, 1)
        app = application(spec)
        async with reading(directory, app) as one:
            while one.feed.records < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # It waits for more, and tells nobody.
            await one.store.fence(one.session)
        spec.feed(2)
        spec.finish()
        async with reading(directory, app) as other:
            await other.wait_end()
            await other.store.adopt(other.session)
            assert await other.payloads() == [b"\0", b"\1", b"\2"]
            assert other.feed.records == 1

    asyncio.run(main())


def test_a_record_that_is_read_again_has_the_same_keys(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the messages and the position."""

    async def main() -> None:
        app = application(GeneratorIngress(counted, type=int))
        async with reading(directory, app) as one:

            async def killed(*_: object) -> None:
                raise asyncio.CancelledError

            monkeypatch.setattr(one.store, "keep_position", killed)
            await one.wait_end()
            first = [each.outgoing for each in await one.kept()]
            await one.store.fence(one.session)
        async with reading(directory, app) as other:
            await other.wait_end()
            await other.store.adopt(other.session)
            assert len(first) == 7
            assert [each.outgoing for each in await other.kept()] == first + first

    asyncio.run(main())


def test_a_router_makes_several_messages_of_a_record_under_keys_of_their_own(directory: Path) -> None:
    async def main() -> None:
        app = application(
            GeneratorIngress(counted, type=int),
            router=lambda number: [("shop/cart", f"id-{n}", n) for n in range(number)],
        )
        async with reading(directory, app) as process:
            await process.wait_end()
            keys = [each.outgoing.key for each in await process.kept()]
            assert len(keys) == len(set(keys)) == 21
            assert keys[:4] == [f"ingress numbers:{key}" for key in ("1:0", "2:0", "2:1", "3:0")]

    asyncio.run(main())


def test_a_record_that_is_no_message_becomes_a_dead_letter_once(directory: Path, tmp_path: Path) -> None:
    lines = tmp_path / "numbers.jsonl"
    lines.write_text('1\n"two"\n3\n')

    async def main() -> None:
        app = application(FileIngress(str(lines), type=int))
        for _ in range(2):
            async with reading(directory, app) as process:
                await process.wait_end()
                (letter,) = await process.store.dead_letters()
                assert isinstance(letter.what, RejectedRecord)
                assert letter.what[:3] == ("numbers", "numbers.jsonl line 2", b'"two"')
                assert letter.reason.startswith("PEN0201")
                await process.store.fence(process.session)

    asyncio.run(main())


def test_one_process_reads_and_others_know_when_it_has_ended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLAIM_S", 0.01)

    async def main() -> None:
        spec = MemoryIngress(type=int)
        app = application(spec)
        async with reading(directory, app) as one:
            await asyncio.sleep(0)
            async with reading(directory, app) as other:
                spec.feed(1)
                spec.finish()
                await one.wait_end()
                async with asyncio.timeout(10):
                    while not other.feed.done:  # noqa: ASYNC110  # It looks now and then, and tells nobody.
                        await asyncio.sleep(0.01)
                assert (one.feed.records, other.feed.records) == (1, 0)

    asyncio.run(main())


def test_an_input_that_fails_ends_its_feed_alone(directory: Path) -> None:
    def broken(start: int) -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    async def main() -> None:
        async with reading(directory, application(GeneratorIngress(broken, type=int))) as process:
            await process.wait_end()
            assert process.task.exception() is None
            assert not process.feed.done
            assert process.feed.failed is not None
            assert "unplugged" in str(process.feed.failed)

    asyncio.run(main())


def test_kafka_is_refused() -> None:
    app = application(KafkaIngress("numbers", type=int))

    with pytest.raises(ConfigurationError, match="PEN0827"):
        check_ingress(app.ingresses["numbers"])
