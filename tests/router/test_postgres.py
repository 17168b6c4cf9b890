"""Rows and marker are in one transaction of a real server, through refusals, outages and rivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from penstock.errors import ConfigurationError, Fenced, Unavailable
from penstock.functions.io import PostgresEgress
from penstock.records import EgressRow
from penstock.router.postgres import PostgresSink
from penstock.router.sink import RowsRefused
from tests.postgres import Server, running_server
from tests.router.sink_contract import SinkContract, rows, synchronous

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def dsn(server: Server) -> str:
    execute(server.dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", 'CREATE TABLE "Delays" (n integer)')
    return server.dsn


def execute(dsn: str, *statements: str) -> list[Any]:
    """Run statements as somebody else would; the rows of the last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = None
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor is not None and cursor.description else []


async def no_wait(seconds: float) -> None:
    """Time passes at once."""


def sink_at(
    dsn: str, table: str = "Delays", *, application: str = "flights", instance: str = "one", **options: Any
) -> PostgresSink:
    spec = PostgresEgress(dsn, table, **options)
    return PostgresSink(spec, application=application, instance=instance, egress="flights/delays", sleep=no_wait)


async def opened(dsn: str, table: str = "Delays", **options: Any) -> PostgresSink:
    sink = sink_at(dsn, table, **options)
    await sink.open()
    await sink.read_marker(0)
    return sink


def numbers(dsn: str) -> list[int]:
    return [n for (n,) in execute(dsn, 'SELECT n FROM "Delays" ORDER BY n')]


class TestPostgresSink(SinkContract):
    @pytest.fixture(autouse=True)
    def place(self, dsn: str) -> None:
        self.dsn = dsn

    async def make_sink(self) -> PostgresSink:
        sink = sink_at(self.dsn)
        await sink.open()
        return sink

    async def visible(self) -> Sequence[int]:
        return numbers(self.dsn)


@synchronous
async def test_postgresql_converts_json_to_the_types_of_the_table(dsn: str) -> None:
    execute(
        dsn,
        "CREATE SCHEMA flights",
        'CREATE TABLE flights."all" (id bigint, at timestamptz, delay numeric, late boolean, tags text[], '
        'raw bytea, more jsonb, "odd ""name""" text, filled text DEFAULT \'x\')',
    )
    sink = await opened(dsn, "flights.all")
    spec = PostgresEgress(dsn, "flights.all")
    value = {
        "id": 2**60,
        "at": "2013-01-01T05:00:00Z",
        "delay": 12.5,
        "late": True,
        "tags": ["a", "b"],
        "raw": b"\x00\xff",
        "more": {"a": [1, None]},
        'odd "name"': "Zürich, 100 %",
    }

    await sink.commit(0, [EgressRow(spec.encode(value), 1), EgressRow(spec.encode({"id": 1}), 2)], {1: 1})

    assert execute(dsn, "SET TimeZone = 'UTC'", 'SELECT *, at::text FROM flights."all" ORDER BY id DESC')[0][2:9] == (
        12.5,
        True,
        ["a", "b"],
        b"\x00\xff",
        {"a": [1, None]},
        "Zürich, 100 %",
        "x",
    )
    assert execute(dsn, "SELECT at = timestamptz '2013-01-01 05:00+00' FROM flights.\"all\" WHERE id > 1") == [(True,)]
    assert execute(dsn, 'SELECT late, filled FROM flights."all" WHERE id = 1') == [(None, "x")]
    await sink.close(final=True)


@synchronous
async def test_a_conflict_may_update_also_within_one_commit(dsn: str) -> None:
    execute(dsn, "CREATE TABLE totals (airport text PRIMARY KEY, n integer, note text)")
    sink = await opened(
        dsn, "totals", columns=("airport", "n"), on_conflict="(airport) DO UPDATE SET n = excluded.n, note = '100 %'"
    )

    await sink.commit(0, [EgressRow(b'{"airport":"JFK","n":%d}' % n, n) for n in (1, 2, 3)], {1: 1})

    assert execute(dsn, "SELECT * FROM totals") == [("JFK", 3, "100 %")]
    await sink.close(final=True)


@synchronous
async def test_rows_that_the_table_refuses_are_named_and_nothing_of_the_commit_stays(dsn: str) -> None:
    execute(dsn, 'ALTER TABLE "Delays" ADD CHECK (n < 10)')
    sink = await opened(dsn)
    batch = [*rows(1, 11, 2), EgressRow(b'{"n":"x"}', 4), EgressRow(b'{"m":1}', 5)]

    with pytest.raises(RowsRefused) as caught:
        await sink.commit(0, batch, {1: 1})

    assert [index for index, _ in caught.value.refused] == [1, 3, 4]
    assert str(caught.value) == (
        'PEN0522 PostgreSQL refuses 3 of 5 rows for table Delays: new row for relation "Delays" violates check '
        'constraint "Delays_n_check" (23514). They go to the dead letters; the others are written.'
    )
    assert numbers(dsn) == []
    await sink.commit(0, [batch[0], batch[2]], {1: 1})
    assert numbers(dsn) == [1, 2]
    assert await sink.read_marker(0) == {1: 1}
    await sink.close(final=True)


@synchronous
async def test_a_constraint_checked_at_the_end_of_the_transaction_blames_its_row(dsn: str) -> None:
    execute(dsn, 'ALTER TABLE "Delays" ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED', 'INSERT INTO "Delays" VALUES (1)')
    sink = await opened(dsn)

    with pytest.raises(RowsRefused) as caught:
        await sink.commit(0, rows(2, 1), {1: 1})

    assert [index for index, _ in caught.value.refused] == [1]
    await sink.close(final=True)


# Outages.


@synchronous
async def test_a_broken_connection_leaves_rows_and_marker_together_in_or_out(dsn: str) -> None:
    sink = await opened(dsn)
    await sink.commit(0, rows(1), {1: 1})
    execute(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )

    with pytest.raises(Unavailable) as caught:
        await sink.commit(0, rows(2), {1: 2})

    assert str(caught.value) == (
        "PEN0520 PostgreSQL does not take rows of egress flights/delays for table Delays: terminating connection due "
        "to administrator command. Start the server or repair the table; the rows are kept, and written exactly once "
        "when it answers."
    )
    assert await sink.read_marker(0) == {1: 1}
    await sink.commit(0, rows(2), {1: 2})
    assert numbers(dsn) == [1, 2]
    await sink.close(final=True)


@synchronous
async def test_after_a_lost_answer_the_marker_tells_that_the_rows_are_in(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = await opened(dsn)
    connection = sink._connection
    assert connection is not None
    original = type(connection).transaction

    def answer_lost(self: Any, *args: Any, **kwargs: Any) -> Any:
        return LostAnswer(original(self, *args, **kwargs))

    with monkeypatch.context() as spoiled:
        spoiled.setattr(type(connection), "transaction", answer_lost)
        with pytest.raises(Unavailable):
            await sink.commit(0, rows(1), {1: 1})

    assert await sink.read_marker(0) == {1: 1}
    assert numbers(dsn) == [1]
    await sink.close(final=True)


class LostAnswer:
    """A transaction that is committed, but the client hears only that the connection is gone."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    async def __aenter__(self) -> Any:
        return await self._transaction.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._transaction.__aexit__(*error)
        raise psycopg.OperationalError("server closed the connection unexpectedly")


@pytest.mark.parametrize("at", range(1, 8))
@synchronous
async def test_after_a_failure_at_any_statement_each_row_is_in_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    sink = await opened(dsn)
    await sink.commit(0, rows(1), {1: 1})
    calls = 0
    execute_ = psycopg.AsyncConnection.execute

    async def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise psycopg.OperationalError("connection reset")
        return await execute_(self, *args, **kwargs)

    with monkeypatch.context() as spoiled:
        spoiled.setattr(psycopg.AsyncConnection, "execute", fails)
        try:
            await sink.commit(0, rows(2, 3), {1: 2, 2: 5})
        except Unavailable:
            assert await sink.read_marker(0) == {1: 1}
            await sink.commit(0, rows(2, 3), {1: 2, 2: 5})

    assert numbers(dsn) == [1, 2, 3]
    assert await sink.read_marker(0) == {1: 2, 2: 5}
    await sink.close(final=True)


@synchronous
async def test_a_server_that_is_down_is_tried_with_growing_waits_and_found_again(dsn: str, server: Server) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    spec = PostgresEgress(dsn, "Delays")
    sink = PostgresSink(spec, application="flights", instance="one", egress="flights/delays", sleep=wait)
    await sink.open()
    await sink.read_marker(0)
    await sink.commit(0, rows(1), {1: 1})
    server.stop()
    try:
        with pytest.raises(Unavailable):
            await sink.commit(0, rows(2), {1: 2})
        with pytest.raises(Unavailable, match="PEN0520 PostgreSQL does not take rows of egress flights/delays"):
            await sink.read_marker(0)
        assert waits[-3:] == [0.1, 0.2, 0.4]
    finally:
        server.start()

    assert await sink.read_marker(0) == {1: 1}
    await sink.commit(0, rows(2), {1: 2})
    assert numbers(dsn) == [1, 2]
    await sink.close(final=True)


@synchronous
async def test_a_table_that_was_dropped_blames_no_row(dsn: str) -> None:
    sink = await opened(dsn)
    execute(dsn, 'DROP TABLE "Delays"')

    with pytest.raises(Unavailable, match='relation "Delays" does not exist'):
        await sink.commit(0, rows(1), {1: 1})

    execute(dsn, 'CREATE TABLE "Delays" (n integer)')
    await sink.read_marker(0)
    await sink.commit(0, rows(1), {1: 1})
    assert numbers(dsn) == [1]
    await sink.close(final=True)


# Owners.


@synchronous
async def test_a_rival_with_the_same_name_is_noticed_before_anything_is_written(dsn: str) -> None:
    first, second = await opened(dsn), await opened(dsn)
    await second.commit(0, rows(1), {2: 7})

    with pytest.raises(Fenced) as caught:
        await first.commit(0, rows(1), {1: 6})

    assert str(caught.value) == (
        "PEN0524 Another process commits rows of egress flights/delays, task 0: the marker in penstock_markers is "
        "{2: 7}, here {} was the last. This process stops. Run one process per data directory."
    )
    assert numbers(dsn) == [1]
    await first.close(final=False)
    await second.close(final=True)


@synchronous
async def test_markers_of_other_histories_and_applications_are_not_ours(dsn: str) -> None:
    ours = await opened(dsn)
    await ours.commit(0, rows(1), {1: 500})

    for other in ({"instance": "two"}, {"application": "shop"}):
        sink = sink_at(dsn, **other)
        await sink.open()
        assert await sink.read_marker(0) == {}
        await sink.close(final=True)
    await ours.close(final=True)


@synchronous
async def test_a_missing_table_is_named_at_the_start(dsn: str) -> None:
    sink = sink_at(dsn, "flights.none")

    with pytest.raises(ConfigurationError) as caught:
        await sink.open()

    assert str(caught.value) == (
        'PEN0521 Egress flights/delays can\'t use table flights.none: relation "flights.none" does not exist. Create '
        "it or grant INSERT and SELECT on it, and CREATE on its schema for penstock_markers."
    )
    await sink.close(final=True)
