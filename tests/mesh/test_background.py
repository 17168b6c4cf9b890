"""All that a process does beside requests, put together: an application from its input to its output."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import App, ConfigurationError, Context, GeneratorIngress, State
from penstock.functions.io import MemoryEgress
from penstock.functions.kafka import KafkaIngress
from penstock.mesh.background import Background, IngressEnded, check_edges
from penstock.mesh.edges import Edges
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.node import Node
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.registry import LocalRegistry
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.wire import Reply, Request, failure
from tests.mesh.stores import quick_directory

NUMBERS = 20


class Sum(State):
    total: int = 0


class Shop:
    """Adds numbers up; tells each sum a moment later."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows = MemoryEgress()
        app = self.app = App("shop")

        @app.function("shop/tell")
        def tell(ctx: Context[None], total: int) -> None:
            assert ctx.caller is not None
            ctx.emit("shop/sums", f"{ctx.id} {total}")

        @app.function("shop/sum")
        def add(ctx: Context[Sum], number: int) -> None:
            assert ctx.caller is None
            ctx.state.total += number
            ctx.send_after("10ms", tell, ctx.id, ctx.state.total)

        def numbers(start: int) -> Iterator[int]:
            yield from range(start, NUMBERS)
            if fails:
                raise OSError("unplugged")

        app.ingress(GeneratorIngress(numbers, type=int), to=add, key=lambda number: f"id-{number % 2}", name="numbers")
        app.egress("shop/sums", self.rows)


async def run(shop: Shop, directory: Path) -> tuple[Node, str]:
    """Until all is done; the node and its metrics then."""
    registry, store = LocalRegistry(), SqliteStore(directory)
    await registry.open()
    node = Node(shop.app, store, registry, Policies(PolicySet(), draw=lambda: 0.5))
    await node.start()
    await node.announce()
    try:
        async with asyncio.timeout(20):
            await node.background.wait_done()
        return node, MeshMetrics("shop", Edges(), node.policies, node.host, node.background).exposition().decode()
    finally:
        await node.drain(5, notice_s=0)
        await node.close()
        await store.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


def test_every_record_has_its_effect_once_and_all_is_counted(directory: Path) -> None:
    shop = Shop()

    async def main() -> None:
        for records in (NUMBERS, 0):  # Started again, it has nothing to do.
            _, metrics = await run(shop, directory)
            assert f'penstock_mesh_ingress_records_total{{ingress="numbers"}} {records}.0' in metrics
            assert f"penstock_mesh_messages_delivered_total {2 * records}.0" in metrics
            assert f'penstock_mesh_egress_rows_total{{egress="shop/sums"}} {records}.0' in metrics

    asyncio.run(main())
    sums = {f"id-{n % 2} {sum(range(n % 2, n + 1, 2))}" for n in range(NUMBERS)}
    assert set(shop.rows.values()) == sums
    assert len(shop.rows.rows) == NUMBERS


def test_an_ingress_that_fails_is_told_to_who_waits_for_the_end(directory: Path) -> None:
    with pytest.raises(IngressEnded, match="unplugged"):
        asyncio.run(run(Shop(fails=True), directory))


def test_what_ends_the_work_is_told(directory: Path) -> None:
    async def main() -> None:
        store = SqliteStore(directory)
        session = await store.begin_session("test")

        async def nobody(_: Request) -> Reply:
            return failure(503, "PEN0841", "nobody is there")

        background = Background(Shop().app, store, session, nobody, alive=lambda: None, message_bytes_max=1_000)
        await store.fence(session)
        background.start()
        async with asyncio.timeout(10):
            await asyncio.wait([background.failed])
        assert "PEN0821" in str(background.failed.exception())
        await background.close()
        await store.close()

    asyncio.run(main())


def test_what_can_not_be_read_is_refused_before_anything_begins() -> None:
    shop = Shop()
    shop.app.ingress(KafkaIngress("numbers", type=int), to="shop/sum", name="kafka")

    with pytest.raises(ConfigurationError, match="PEN0827"):
        check_edges(shop.app)
