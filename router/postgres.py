"""Inserts rows into PostgreSQL: rows and marker in one database transaction.

What always holds: the marker is in the table `penstock_markers` of the same database, one row per attempt, and
changes only together with the rows it speaks of; two processes that take themselves for the same application can't
both commit, because a transaction first checks, under a lock, that the marker is still what was last read or written
here. Values are converted by PostgreSQL itself, from JSON to the types of the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby

import msgspec
import psycopg
from psycopg import AsyncConnection, sql

from penstock.errors import ConfigurationError, Fenced, Unavailable
from penstock.functions.io import PostgresEgress
from penstock.records import EgressRow
from penstock.router.sink import RowsRefused

_CREATE_MARKERS = """
CREATE TABLE IF NOT EXISTS penstock_markers (
    application text NOT NULL,
    instance text NOT NULL,
    egress text NOT NULL,
    task integer NOT NULL,
    attempt bigint NOT NULL,
    checkpoint bigint NOT NULL,
    PRIMARY KEY (application, instance, egress, task, attempt)
)
"""
_CREATION_LOCK = 0x70656E73
"""Of all who create the table: `IF NOT EXISTS` alone fails when two do at once."""

_READ_MARKER = """
SELECT attempt, checkpoint FROM penstock_markers
WHERE application = %s AND instance = %s AND egress = %s AND task = %s
"""
_DELETE_MARKER = """
DELETE FROM penstock_markers
WHERE application = %s AND instance = %s AND egress = %s AND task = %s AND attempt <> ALL (%s)
"""
_WRITE_MARKER = """
INSERT INTO penstock_markers (application, instance, egress, task, attempt, checkpoint)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (application, instance, egress, task, attempt) DO UPDATE SET checkpoint = excluded.checkpoint
"""
_LOCK_MARKER = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"

_CONNECT_ATTEMPTS_MAX = 4
_BACKOFF_FIRST_S = 0.1
"""Doubled after each attempt to connect, so that a server that restarts is found again within a second. Longer waits
are the caller's: the commit is repeated as a whole."""

_ROW_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.NotSupportedError,
    psycopg.InternalError,
)
"""What PostgreSQL says about a statement, rather than about itself or the connection."""

_TABLE_GONE = {"42P01", "3F000", "42501"}
"""undefined_table, invalid_schema_name, insufficient_privilege: no row is to blame, and a person can repair it."""


class PostgresSink:
    """The sink of a `PostgresEgress`: one connection, on which the tasks take turns."""

    def __init__(
        self,
        spec: PostgresEgress,
        *,
        application: str,
        instance: str,
        egress: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._spec = spec
        self._owner = (application, instance, egress)
        self._egress = egress
        self._sleep = sleep
        self._table = sql.Identifier(*spec.table.split("."))
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()
        self._known: dict[int, dict[int, int]] = {}
        """For each task, its marker as it was last read or written; absent when the outcome of a commit is
        unknown."""

    async def open(self) -> None:
        async with self._turn:
            try:
                connection = await self._connected()
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATION_LOCK,))
                    await connection.execute(_CREATE_MARKERS)
                    await connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(self._table))
            except _ROW_ERRORS as error:
                raise ConfigurationError(
                    "PEN0521",
                    f"Egress {self._egress} can't use table {self._spec.table}: {_text(error)}. Create it or grant "
                    "INSERT and SELECT on it, and CREATE on its schema for penstock_markers.",
                ) from error
            except psycopg.Error as error:
                raise await self._lost(error) from error

    async def read_marker(self, task: int) -> dict[int, int]:
        async with self._turn:
            try:
                connection = await self._connected()
                async with connection.transaction():
                    await self._lock_marker(connection, task)
                    marker = await self._stored_marker(connection, task)
            except psycopg.Error as error:
                raise await self._lost(error) from error
            self._known[task] = marker
            return dict(marker)

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        async with self._turn:
            known = self._known.pop(task, None)
            assert known is not None, f"the marker of task {task} is read before rows are committed"
            try:
                connection = await self._connected()
                async with connection.transaction():
                    await self._lock_marker(connection, task)
                    await self._check_unchanged(connection, task, known)
                    await self._insert(connection, rows)
                    await self._write_marker(connection, task, marker)
            except _ROW_ERRORS as error:
                if error.sqlstate in _TABLE_GONE:
                    raise await self._lost(error) from error
                self._known[task] = known  # The transaction was rolled back.
                raise await self._refused(rows, error) from error
            except psycopg.Error as error:
                raise await self._lost(error) from error
            self._known[task] = dict(marker)

    async def release(self, task: int, *, final: bool) -> None:
        self._known.pop(task, None)

    async def tick(self) -> None:
        """Nothing is due by time: rows are visible as soon as they are committed."""

    async def close(self, final: bool) -> None:
        async with self._turn:
            await self._disconnect()

    # The marker.

    async def _lock_marker(self, connection: AsyncConnection, task: int) -> None:
        await connection.execute(_LOCK_MARKER, ("\n".join((*self._owner, str(task))),))

    async def _stored_marker(self, connection: AsyncConnection, task: int) -> dict[int, int]:
        cursor = await connection.execute(_READ_MARKER, (*self._owner, task))
        return dict(await cursor.fetchall())

    async def _check_unchanged(self, connection: AsyncConnection, task: int, known: dict[int, int]) -> None:
        stored = await self._stored_marker(connection, task)
        if stored != known:
            raise Fenced(
                "PEN0524",
                f"Another process commits rows of egress {self._egress}, task {task}: the marker in penstock_markers "
                f"is {stored}, here {known} was the last. This process stops. Run one process per data directory.",
            )

    async def _write_marker(self, connection: AsyncConnection, task: int, marker: Mapping[int, int]) -> None:
        await connection.execute(_DELETE_MARKER, (*self._owner, task, list(marker)))
        for attempt, checkpoint in marker.items():
            await connection.execute(_WRITE_MARKER, (*self._owner, task, attempt, checkpoint))

    # The rows.

    async def _insert(self, connection: AsyncConnection, rows: Sequence[EgressRow]) -> None:
        async with connection.cursor() as cursor:
            for columns, group in groupby(rows, self._columns_of):
                # In a pipeline: one round trip for the group. A single statement over an array of rows would be
                # quicker still, but an ON CONFLICT DO UPDATE may not meet the same key twice in one statement.
                await cursor.executemany(self._statement(columns), [(row.value.decode(),) for row in group])

    def _columns_of(self, row: EgressRow) -> tuple[str, ...]:
        return self._spec.columns or tuple(msgspec.json.decode(row.value, type=dict[str, msgspec.Raw]))

    def _statement(self, columns: Sequence[str]) -> sql.Composed:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        statement = sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_populate_record(NULL::{table}, %s::jsonb)"
        ).format(table=self._table, names=names)
        if self._spec.on_conflict is None:
            return statement
        # The user's own SQL, as much trusted as the user's code. A percent sign in it is no placeholder.
        clause = self._spec.on_conflict.replace("%", "%%")
        return statement + sql.SQL(" ON CONFLICT ") + sql.SQL(clause)

    async def _refused(self, rows: Sequence[EgressRow], error: psycopg.Error) -> Exception:
        """Try the rows one by one, keep none, and say which PostgreSQL does not take."""
        refused: list[tuple[int, str]] = []
        try:
            connection = await self._connected()
            async with connection.transaction(force_rollback=True):
                # A constraint that is checked at the end of a transaction would otherwise blame no row.
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                for index, row in enumerate(rows):
                    try:
                        async with connection.transaction():
                            await self._insert(connection, [row])
                    except _ROW_ERRORS as row_error:
                        refused.append((index, f"{_text(row_error)} ({row_error.sqlstate})"))
        except psycopg.Error as lost:
            return await self._lost(lost)
        if not refused:
            return await self._lost(error)
        return RowsRefused(
            "PEN0522",
            f"PostgreSQL refuses {len(refused):,} of {len(rows):,} rows for table {self._spec.table}: "
            f"{refused[0][1]}. They go to the dead letters; the others are written.",
            refused,
        )

    # The connection.

    async def _connected(self) -> AsyncConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        backoff_s = _BACKOFF_FIRST_S
        for attempt in range(1, _CONNECT_ATTEMPTS_MAX + 1):
            try:
                self._connection = await AsyncConnection.connect(self._spec.dsn, autocommit=True)
                break
            except psycopg.OperationalError:
                if attempt == _CONNECT_ATTEMPTS_MAX:
                    raise
                await self._sleep(backoff_s)
                backoff_s *= 2
        assert self._connection is not None
        return self._connection

    async def _lost(self, error: psycopg.Error) -> Unavailable:
        """Give the connection up: after an error of the server nothing on it is certain."""
        self._known.clear()
        await self._disconnect()
        return Unavailable(
            "PEN0520",
            f"PostgreSQL does not take rows of egress {self._egress} for table {self._spec.table}: {_text(error)}. "
            "Start the server or repair the table; the rows are kept, and written exactly once when it answers.",
        )

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def _text(error: psycopg.Error) -> str:
    """The first line: what follows are hints for a terminal, and hosts that were tried."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
