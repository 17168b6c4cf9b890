"""Connections to PostgreSQL: how many there are, and what happens when the server has no room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.postgres_pool import Pool, Told
from penstock.mesh.store import Commit
from penstock.mesh.stores import open_store
from tests.mesh.stores import CART
from tests.postgres import Server

pytestmark = pytest.mark.postgres


def with_pool(server: Server, test: Callable[[Pool], Awaitable[None]], *, idle_s: float = 60.0) -> None:
    async def main() -> None:
        pool = Pool(server.dsn, "public", connections_max=3, idle_s=idle_s)
        try:
            await test(pool)
        finally:
            await pool.close()
        assert pool.count == 0

    asyncio.run(main())


class Crowd:
    """Connections of others: all that the server has room for."""

    def __init__(self, dsn: str) -> None:
        self._connections: list[psycopg.Connection] = []
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
            assert row is not None
        while len(self._connections) < row[0]:
            try:
                self._connections.append(psycopg.connect(dsn))
            except psycopg.OperationalError:
                break

    def leave(self) -> None:
        while self._connections:
            self._connections.pop().close()


@pytest.fixture
def crowd(server: Server) -> Iterator[Crowd]:
    there = Crowd(server.dsn)
    yield there
    there.leave()


def test_a_process_has_never_more_than_it_may(server: Server) -> None:
    async def test(pool: Pool) -> None:
        most = 0

        async def ask() -> None:
            nonlocal most
            await pool.rows("SELECT pg_sleep(0.01)")
            most = max(most, pool.count)

        await asyncio.gather(*(ask() for _ in range(20)))
        assert most == 3

    with_pool(server, test)


def test_one_who_is_cancelled_while_waiting_takes_no_turn(server: Server) -> None:
    async def test(pool: Pool) -> None:
        busy = [asyncio.create_task(pool.rows("SELECT pg_sleep(0.05)")) for _ in range(3)]
        waiting = [asyncio.create_task(pool.row("SELECT 1")) for _ in range(3)]
        while pool.count < 3:  # noqa: ASYNC110  # Until all are busy.
            await asyncio.sleep(0.01)
        waiting[0].cancel()

        await asyncio.gather(*busy)
        assert await asyncio.gather(*waiting[1:]) == [(1,), (1,)]

    with_pool(server, test)


def test_one_who_is_cancelled_as_a_connection_comes_back_harms_nobody(server: Server) -> None:
    async def test(pool: Pool) -> None:
        release = asyncio.Event()

        async def hold() -> None:
            async with pool.transaction():
                await release.wait()

        busy = [asyncio.create_task(hold()) for _ in range(3)]
        while pool.count < 3:  # noqa: ASYNC110  # Until all are busy.
            await asyncio.sleep(0.01)
        gone, patient = (asyncio.create_task(pool.row("SELECT 1")) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        pool._wake_one()  # As who gives a connection back does, before the one that is cancelled has heard of it.
        release.set()

        await asyncio.gather(*busy)
        assert await patient == (1,)
        with pytest.raises(asyncio.CancelledError):
            await gone

    with_pool(server, test)


def test_connections_that_a_server_has_ended_are_not_used(server: Server) -> None:
    async def test(pool: Pool) -> None:
        await asyncio.gather(*(pool.rows("SELECT pg_sleep(0.01)") for _ in range(3)))
        assert pool.count == 3
        server.stop()
        server.start()

        assert await asyncio.gather(*(pool.row("SELECT 1") for _ in range(3))) == [(1,)] * 3

    with_pool(server, test)


def test_a_server_that_is_cut_off_is_not_waited_for_long_unless_the_dsn_says_so(server: Server) -> None:
    async def main(said: str) -> dict[str, str]:
        pool = Pool(f"{server.dsn}?{said}", "public", connections_max=1)
        async with pool.transaction() as connection:
            parameters = connection.info.get_parameters()
        await pool.close()
        return parameters

    found = asyncio.run(main("keepalives_idle=600"))
    assert found["tcp_user_timeout"] == "15000"
    assert found["connect_timeout"] == "5"
    assert found["keepalives_idle"] == "600"


def test_a_dsn_that_can_not_be_read_is_told_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r'PEN0825 .* parameter: "foo"\. Write it as postgresql://') as told:
        Pool("postgresql://me:secret@localhost/db?foo=bar", "public", connections_max=1)
    assert "secret" not in str(told.value)


def test_connections_that_nobody_uses_are_closed(server: Server) -> None:
    async def test(pool: Pool) -> None:
        await asyncio.gather(*(pool.rows("SELECT 1") for _ in range(3)))
        async with asyncio.timeout(20):
            while pool.count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert await pool.row("SELECT 2") == (2,)

    with_pool(server, test, idle_s=0.05)


def test_what_the_server_says_of_a_statement_costs_no_connection(server: Server) -> None:
    async def test(pool: Pool) -> None:
        (before,) = await pool.row("SELECT pg_backend_pid()")
        with pytest.raises(Told, match="PEN0820") as told:
            await pool.rows("SELECT 1/%s", 0)
        assert told.value.sqlstate == "22012"
        assert not told.value.conflict

        assert await pool.row("SELECT pg_backend_pid()") == (before,)
        assert pool.count == 1

    with_pool(server, test)


def test_a_transaction_is_done_as_a_whole_or_not_at_all(server: Server) -> None:
    async def test(pool: Pool) -> None:
        await pool.rows("CREATE TABLE counts (n integer PRIMARY KEY)")

        async def count_twice() -> None:
            async with pool.transaction() as connection:
                await connection.execute("INSERT INTO counts VALUES (1)")
                await connection.execute("INSERT INTO counts VALUES (1)")

        with pytest.raises(Told):
            await count_twice()
        assert await pool.row("SELECT count(*) FROM counts") == (0,)

    with_pool(server, test)


def test_a_server_without_room_is_asked_again_until_somebody_leaves(server: Server, crowd: Crowd) -> None:
    async def test(pool: Pool) -> None:
        asked = asyncio.create_task(pool.row("SELECT 1"))
        await asyncio.sleep(0.05)
        crowd.leave()
        assert await asked == (1,)

    with_pool(server, test)


def test_where_there_is_no_room_for_more_those_there_are_are_shared(server: Server) -> None:
    async def test(pool: Pool) -> None:
        await pool.row("SELECT 1")
        crowd = Crowd(server.dsn)
        try:
            assert await asyncio.gather(*(pool.row("SELECT 1") for _ in range(9))) == [(1,)] * 9
            assert pool.count == 1
        finally:
            crowd.leave()

    with_pool(server, test)


def test_a_server_that_stays_full_is_told_with_what_to_set(
    server: Server, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.mesh.postgres_pool._BACKOFF_S", (0.01, 0.01))

    async def test(pool: Pool) -> None:
        with pytest.raises(Unavailable, match=r"PEN0829 PostgreSQL 127.* max_connections .* --store-connections"):
            await pool.row("SELECT 1")
        crowd.leave()
        assert await pool.row("SELECT 1") == (1,)

    with_pool(server, test)


def test_a_store_needs_no_more_connections_than_it_may_have(server: Server) -> None:
    async def main() -> None:
        store = await open_store(server.dsn, connections_max=1)
        session = await store.begin_session("test")
        await asyncio.gather(
            *(store.commit(Commit(session, CART, f"id-{n}", 0, b"1")) for n in range(20)),
            *(store.load(CART, f"id-{n}") for n in range(20)),
            store.adopt(session),
            store.pending(),
        )
        with psycopg.connect(server.dsn) as other:
            row = other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchone()
        assert row == (2,)
        await store.close()

    asyncio.run(main())
