"""Connections to one PostgreSQL database: few, shared by all of a process, and closed when nobody needs them.

What always holds: a process has never more than `connections_max`; one on which something is uncertain is not used
again; one that nobody has used for `IDLE_S` is closed. When the server has no room for another, who asks shares those
there are, and where there is none tries again for some seconds, as a process that ends makes room. Whatever PostgreSQL
says becomes `Unavailable`, or `Told` where it speaks of one statement: psycopg is known here alone.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.mesh.store import unavailable

IDLE_S: Final = 60.0
"""To make a connection takes some milliseconds: once a minute is nothing, and a quiet host keeps none."""
_BACKOFF_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""About three seconds in all, well within the deadline of a request."""
_STANDSTILL_MAX: Final = "10s"
"""A process that does not go on with its transaction for so long is taken for dead by the server."""
_FULL: Final = ("too many clients", "remaining connection slots", "too many connections for")
"""How the server says it: the code of an error is not handed on for a connection that was never made."""
_CONFLICTS: Final = frozenset({"40001", "40P01"})
"""serialization_failure, deadlock_detected."""
_SILENCE: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""When a server is taken for gone that is cut off: after a quarter of a minute, as long as a request waits if nobody
says otherwise. Of itself the operating system waits for one that owes an answer for two hours, and all commits of a
process wait behind the one that is under way. What the DSN says goes before this."""
_SETTINGS: Final = {
    "idle_in_transaction_session_timeout": _STANDSTILL_MAX,
    # Everything is looked up by keys. Of new tables the planner knows nothing, and would read them from end to end; nor
    # should it think of a plan each time, or compile one.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}

Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]
Row: TypeAlias = tuple[Any, ...]


class Told(Unavailable):
    """What the server, or its driver, says of a statement. Nothing was done."""

    def __init__(self, where: str, sqlstate: str, text: str) -> None:
        said = unavailable(where, f"{text} ({sqlstate})")
        super().__init__(said.code, said.message)
        self.sqlstate = sqlstate

    @property
    def conflict(self) -> bool:
        """Another transaction was in the way: asking again may succeed."""
        return self.sqlstate in _CONFLICTS


class Pool:
    """See the module. Tables are looked for in `schema`."""

    def __init__(self, dsn: str, schema: str, *, connections_max: int, idle_s: float = IDLE_S) -> None:
        """Raises ConfigurationError for a DSN that can't be read."""
        self._said = _parts_of(dsn)
        self._schema = schema
        self._max = connections_max
        self._idle_s = idle_s
        self._count = self._making = 0
        """How many there are with those that are being made, and how many of them are."""
        self._idle: list[tuple[Connection, float]] = []
        """With the time since when nobody has used it. The last is taken first, so that the others become old."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Who waits until one is given back."""
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def where(self) -> str:
        """The database, without what may be a password."""
        said = self._said
        return f"PostgreSQL {said.get('host', '')}:{said.get('port', 5432)}/{said.get('dbname', '')}"

    @property
    def count(self) -> int:
        """How many connections there are."""
        return self._count - self._making

    # Statements. All raise Unavailable when the server does not answer, and Told.

    async def rows(self, statement: str, *arguments: object) -> list[Row]:
        """What a statement returns, in a transaction of its own."""
        async with self._connection() as connection:
            cursor = await connection.execute(statement, arguments, binary=True)
            return await cursor.fetchall() if cursor.description else []

    async def row(self, statement: str, *arguments: object) -> Row:
        (row,) = await self.rows(statement, *arguments)
        return row

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """For statements that depend on one another, done as a whole or not at all. A process that stands still in it
        keeps what it has locked for `_STANDSTILL_MAX`."""
        async with self._connection() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """Close those that nobody uses."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        while self._idle:
            await self._give_up(self._idle.pop()[0])

    # Connections.

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await self._take()
        try:
            yield connection
        except psycopg.Error as error:
            await self._settle(connection)
            raise self._told(error) from error
        except PenstockError:
            await self._settle(connection)
            raise
        except BaseException:
            await self._give_up(connection)
            raise
        else:
            self._give_back(connection)

    def _told(self, error: psycopg.Error) -> PenstockError:
        """What an error says of a statement, or else of the server."""
        of_server = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        if of_server and error.sqlstate not in _CONFLICTS:
            return unavailable(self.where, _text(error))
        return Told(self.where, error.sqlstate or type(error).__name__, _text(error))

    async def _take(self) -> Connection:
        while True:
            while self._idle:
                connection, _ = self._idle.pop()
                if _is_there(connection):
                    return connection
                await self._give_up(connection)
            if self._count < self._max and (made := await self._make()) is not None:
                return made
            if not self._idle and self._count:
                await self._returned()

    async def _make(self) -> Connection | None:
        """A new one; None when the server has no room, and there are others that can be shared."""
        self._count += 1
        self._making += 1
        made = None
        try:
            for backoff_s in (*_BACKOFF_S, None):
                try:
                    made = await self._connect()
                    break
                except psycopg.OperationalError as error:
                    if not any(sign in str(error) for sign in _FULL):
                        raise unavailable(self.where, _text(error)) from error
                    if self._count > self._making:
                        break
                    if backoff_s is None:
                        raise full(self.where, _text(error), self._max) from error
                    await asyncio.sleep(backoff_s)
        finally:
            self._making -= 1
            if made is None:
                self._forget_one()
        return made

    async def _connect(self) -> Connection:
        connection = await AsyncConnection.connect(autocommit=True, **(_SILENCE | self._said))
        settings = _SETTINGS | {"search_path": f'"{self._schema}"'}
        try:
            await connection.execute(
                "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS settings (name, value)",
                (list(settings), list(settings.values())),
            )
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _returned(self) -> None:
        """Wait until a connection is given back, or given up."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._wake_one()  # It was our turn: it is somebody else's.
            raise

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # Else it was cancelled, and may not even have heard of it.
                waiter.set_result(None)
                return

    async def _settle(self, connection: Connection) -> None:
        """Use it again if it has survived the error."""
        if not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE:
            self._give_back(connection)
        else:
            await self._give_up(connection)

    def _give_back(self, connection: Connection) -> None:
        self._idle.append((connection, asyncio.get_running_loop().time()))
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())
        self._wake_one()

    async def _give_up(self, connection: Connection) -> None:
        self._forget_one()
        with suppress(psycopg.Error):
            await connection.close()

    def _forget_one(self) -> None:
        self._count -= 1
        self._wake_one()

    async def _sweep(self) -> None:
        """Close what nobody uses, as long as there is something."""
        now_s = asyncio.get_running_loop().time
        try:
            while self._idle:
                await asyncio.sleep(self._idle[0][1] + self._idle_s - now_s())
                while self._idle and self._idle[0][1] + self._idle_s <= now_s():
                    await self._give_up(self._idle.pop(0)[0])
        finally:
            self._sweeping = None


def full(where: str, text: str, connections_max: int) -> Unavailable:
    return Unavailable(
        "PEN0829",
        f"{where} has no connection left for this process: {text.rstrip('.')}. Each host has up to {connections_max}: "
        "raise max_connections of the server to more than all hosts and others need, or start fewer hosts, or have "
        "each use less by --store-connections.",
    )


def _parts_of(dsn: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            "PEN0825",
            f"This names no PostgreSQL database: {_text(error)}. Write it as postgresql://user@host:5432/database, "
            "with %40 for an @ in a password, and behind a ? only what libpq knows.",
        ) from error


def _is_there(connection: Connection) -> bool:
    """Whether a connection that nobody has used can be. What a server says unasked is that it ends the connection."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _text(error: psycopg.Error) -> str:
    """The first line: what follows are hints for a terminal."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
