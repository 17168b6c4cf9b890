"""The store in a PostgreSQL database, for hosts on several machines: all in one schema, `penstock_mesh`.

What always holds: a commit is one transaction at the isolation level READ COMMITTED, and every comparison in it is
part of the statement that writes. Every transaction that writes holds a shared lock on its session, `fence` waits for
the exclusive one: what was on its way is there when it returns, and everything after it finds the session fenced.
A transaction whose process stands still is ended by the server, so nobody waits for that longer than a few seconds.

Text that users choose is stored as bytes in UTF-8: PostgreSQL's own text has no NUL, and orders by language.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, AsyncCursor, sql

from penstock.errors import PenstockError
from penstock.ids import Address
from penstock.mesh.store import (
    PURGED_AT_ONCE,
    SCHEMA,
    Answer,
    Batch,
    Commit,
    Committed,
    DeadLetter,
    Emitted,
    Kept,
    Loaded,
    Outgoing,
    Pending,
    RejectedRecord,
    Session,
    VersionMismatch,
    after_prefix,
    decode_outgoing,
    decode_position,
    decode_rejected,
    decode_row,
    encode_outgoing,
    encode_position,
    encode_rejected,
    encode_row,
    fenced,
    lane_of,
    newer_schema,
    unavailable,
)

_TABLES = """
CREATE TABLE schema (number integer NOT NULL, instance uuid NOT NULL DEFAULT gen_random_uuid());
CREATE SEQUENCE versions;
CREATE SEQUENCE numbers;
CREATE TABLE sessions (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    holder text NOT NULL,
    begun_ms bigint NOT NULL,
    fenced boolean NOT NULL DEFAULT false
);
CREATE TABLE claims (name text PRIMARY KEY, session integer NOT NULL);
CREATE TABLE positions (ingress text PRIMARY KEY, position bytea NOT NULL);
CREATE TABLE functions (typename text PRIMARY KEY);
CREATE TABLE state (
    typename text, id bytea, version bigint NOT NULL, value bytea NOT NULL, PRIMARY KEY (typename, id)
);
CREATE TABLE rows (typename text, id bytea, key bytea, value bytea NOT NULL, PRIMARY KEY (typename, id, key));
CREATE TABLE answers (
    typename text, id bytea, key bytea, status integer NOT NULL, body bytea NOT NULL, until_ms bigint NOT NULL,
    PRIMARY KEY (typename, id, key)
);
CREATE INDEX answers_until ON answers (until_ms);
CREATE TABLE promises (typename text, id bytea, name bytea, value bytea NOT NULL, PRIMARY KEY (typename, id, name));
CREATE TABLE messages (
    number bigint PRIMARY KEY DEFAULT nextval('numbers'),
    session integer NOT NULL,
    lane bigint NOT NULL,
    due_ms bigint NOT NULL,
    typename text NOT NULL,
    sender bytea NOT NULL,
    token bytea NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    data bytea NOT NULL
);
CREATE INDEX messages_due ON messages (session, due_ms, number);
CREATE INDEX messages_lane ON messages (lane, number) WHERE due_ms = 0;
CREATE INDEX messages_token ON messages (typename, sender, token) WHERE token <> '';
CREATE TABLE emitted (
    number bigint PRIMARY KEY DEFAULT nextval('numbers'),
    egress text NOT NULL,
    batch bigint NOT NULL DEFAULT 0,
    typename text NOT NULL,
    sender bytea NOT NULL,
    data bytea NOT NULL
);
CREATE INDEX emitted_batch ON emitted (egress, batch, number);
CREATE TABLE batches (egress text PRIMARY KEY, last bigint NOT NULL);
CREATE TABLE dead (
    number bigint PRIMARY KEY,
    typename text NOT NULL,
    sender bytea NOT NULL,
    egress text NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL,
    died_ms bigint NOT NULL,
    data bytea NOT NULL
);
"""

_LOCK: Final = 0x70656E73
"""The first half of all our advisory locks; the second is a session, or one of these."""
_CREATION, _ADOPTION = -1, -2

_STANDSTILL_MAX = "10s"
"""A process that does not go on with its transaction for so long is taken for dead by the server."""

_LOAD = """
SELECT version, value, status, body
FROM (SELECT 1) AS one
LEFT JOIN state ON state.typename = %(typename)s AND state.id = %(id)s
LEFT JOIN answers ON answers.typename = %(typename)s AND answers.id = %(id)s AND key = %(key)s
"""
_LOAD_ROWS = """
SELECT version, value, status, body,
    (SELECT array_agg(key ORDER BY key) FROM rows WHERE typename = %(typename)s AND id = %(id)s),
    (SELECT array_agg(value ORDER BY key) FROM rows WHERE typename = %(typename)s AND id = %(id)s)
FROM (SELECT 1) AS one
LEFT JOIN state ON state.typename = %(typename)s AND state.id = %(id)s
LEFT JOIN answers ON answers.typename = %(typename)s AND answers.id = %(id)s AND key = %(key)s
"""
"""One statement, so that all of it is of one moment."""

_COMPARE = "SELECT version FROM state WHERE typename = %(typename)s AND id = %(id)s"
# The value stays what it is when only rows have changed.
_CREATE = """
INSERT INTO state VALUES (%(typename)s, %(id)s, nextval('versions'), coalesce(%(value)s, ''::bytea))
ON CONFLICT (typename, id) DO NOTHING RETURNING version
"""
_REPLACE = """
UPDATE state SET version = nextval('versions'), value = coalesce(%(value)s, value)
WHERE typename = %(typename)s AND id = %(id)s AND version = %(version)s RETURNING version
"""
_PUT = """
INSERT INTO state VALUES (%(typename)s, %(id)s, nextval('versions'), coalesce(%(value)s, ''::bytea))
ON CONFLICT (typename, id) DO UPDATE SET version = excluded.version, value = coalesce(%(value)s, state.value)
RETURNING version
"""
_REMOVE_EMPTY = """
DELETE FROM state WHERE typename = %(typename)s AND id = %(id)s AND value = ''
AND NOT EXISTS (SELECT 1 FROM rows WHERE typename = %(typename)s AND id = %(id)s) RETURNING version
"""
_ANSWER = """
INSERT INTO answers VALUES (%(typename)s, %(id)s, %(key)s, %(status)s, %(body)s, %(until_ms)s)
ON CONFLICT (typename, id, key) DO NOTHING RETURNING status
"""
_KEEP = """
WITH previous AS (
    SELECT number, session FROM messages WHERE lane = %(lane)s AND due_ms = 0 AND %(due_ms)s = 0
    ORDER BY number DESC LIMIT 1 FOR SHARE
), kept AS (
    INSERT INTO messages (session, lane, due_ms, typename, sender, token, data)
    SELECT coalesce((SELECT session FROM previous), %(session)s),
        %(lane)s, %(due_ms)s, %(typename)s, %(id)s, %(token)s, %(data)s
    RETURNING number, session
)
SELECT kept.number, kept.session, coalesce((SELECT number FROM previous), 0) FROM kept
"""
"""The lane stays with whoever has what is before: two who deliver could change the order. Its last message is locked,
so that it is not adopted at the same time."""
_CANCEL = "DELETE FROM messages WHERE typename = %s AND sender = %s AND token = %s"
_EMIT = "INSERT INTO emitted (egress, typename, sender, data) VALUES (%s, %s, %s, %s)"
_KEPT = "number, typename, sender, attempts, data"


class PostgresStore:
    """The store in the database that `dsn` names."""

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "penstock_mesh",
        connections_max: int = 8,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dsn = dsn
        self._schema = sql.Identifier(schema)
        self._clock = clock
        self._idle: list[AsyncConnection] = []
        self._free = asyncio.Semaphore(connections_max)
        self._functions: set[str] = set()
        """Typenames that are known to be in the table."""

    @property
    def _where(self) -> str:
        """The database, without what may be a password."""
        found = psycopg.conninfo.conninfo_to_dict(self._dsn)
        return f"PostgreSQL {found.get('host', '')}:{found.get('port', 5432)}/{found.get('dbname', '')}"

    async def open(self) -> None:
        """Make the tables if there are none. Raises Unavailable, and Refused for those of a later Penstock."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, _CREATION))
            cursor = await connection.execute("SELECT to_regclass('schema')")
            if await _one(cursor) == (None,):
                await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(self._schema))
                await connection.execute(_TABLES)
                await connection.execute("INSERT INTO schema (number) VALUES (%s)", (SCHEMA,))
            (found,) = await _one(await connection.execute("SELECT number FROM schema"))
            if found > SCHEMA:
                raise newer_schema(self._where, found)

    async def instance(self) -> str:
        (name,) = await self._row("SELECT instance FROM schema")
        return str(name.hex)

    # Sessions.

    async def begin_session(self, holder: str) -> int:
        (number,) = await self._row(
            "INSERT INTO sessions (holder, begun_ms) VALUES (%s, %s) RETURNING number",
            holder,
            int(self._clock() * 1000),
        )
        return int(number)

    async def fence(self, session: int) -> None:
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, session))
            await connection.execute("UPDATE sessions SET fenced = true WHERE number = %s", (session,))

    async def sessions(self) -> list[Session]:
        return [Session(*row) for row in await self._rows("SELECT * FROM sessions ORDER BY number")]

    # Addresses.

    async def load(self, typename: str, id: str, key: str = "", *, rows: bool = False) -> Loaded:
        arguments = {"typename": typename, "id": id.encode(), "key": key.encode()}
        async with self._connection() as connection:
            cursor = await connection.execute(_LOAD_ROWS if rows else _LOAD, arguments)
            version, value, status, body, *collections = await _one(cursor)
        answer = None if status is None else Answer(status, body)
        found = zip(*(part or () for part in collections), strict=True) if collections else ()
        return Loaded(value or b"", version or 0, answer, dict(found))

    async def commit(self, commit: Commit) -> Committed:
        (committed,) = await self.commit_all([commit])
        return committed

    async def commit_all(self, commits: Sequence[Commit]) -> list[Committed]:
        await self._know(commits[0].typename)
        try:
            async with self._connection() as connection, connection.pipeline(), connection.transaction():
                checks = {session: await _check(connection, session) for session in {each.session for each in commits}}
                begun = [await _Begun.of(connection, commit) for commit in commits]
                for session, check in checks.items():
                    await _allowed(check, session)
                return [await each.finished() for each in begun]
        except psycopg.errors.DeadlockDetected as error:
            raise VersionMismatch(commits[0].address, "another transaction waited for this one") from error

    async def typenames(self) -> list[str]:
        found = await self._rows('SELECT typename FROM functions ORDER BY typename COLLATE "C"')
        return [typename for (typename,) in found]

    async def ids(self, typename: str, *, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
        end = after_prefix(prefix)
        found = await self._rows(
            "SELECT id FROM state WHERE typename = %s AND id > %s AND id >= %s AND (%s::bytea IS NULL OR id < %s) "
            "ORDER BY id LIMIT %s",
            typename,
            after.encode(),
            prefix.encode(),
            *[None if end is None else end.encode()] * 2,
            limit,
        )
        return [id.decode() for (id,) in found]

    # Promises.

    async def resolve(self, session: int, address: Address, name: str, value: bytes) -> bool:
        found = await self._written(
            session,
            "INSERT INTO promises VALUES (%s, %s, %s, %s) ON CONFLICT (typename, id, name) DO NOTHING RETURNING true",
            *(address.typename, address.id.encode(), name.encode(), value),
        )
        return bool(found)

    async def resolution(self, address: Address, name: str) -> bytes | None:
        found = await self._rows(
            "SELECT value FROM promises WHERE typename = %s AND id = %s AND name = %s",
            *(address.typename, address.id.encode(), name.encode()),
        )
        return found[0][0] if found else None

    # Messages that wait.

    async def due(self, session: int, now_ms: int, limit: int) -> list[Kept]:
        at_once = await self._rows(
            f"SELECT {_KEPT} FROM messages WHERE session = %s AND due_ms = 0 ORDER BY number LIMIT %s", session, limit
        )
        delayed = await self._rows(
            f"SELECT {_KEPT} FROM messages WHERE session = %s AND due_ms BETWEEN 1 AND %s "
            "ORDER BY due_ms, number LIMIT %s",
            *(session, now_ms, limit),
        )
        return [
            Kept(number, Address(typename, sender.decode()), decode_outgoing(data), attempts)
            for number, typename, sender, attempts, data in (*at_once, *delayed)
        ]

    async def next_due_ms(self, session: int, after_ms: int) -> int | None:
        (due_ms,) = await self._row(
            "SELECT min(due_ms) FROM messages WHERE session = %s AND due_ms > %s", session, max(0, after_ms)
        )
        return None if due_ms is None else int(due_ms)

    async def done(self, session: int, numbers: Collection[int]) -> None:
        await self._written(session, "DELETE FROM messages WHERE number = ANY (%s)", list(numbers))

    async def failed(self, session: int, number: int) -> None:
        await self._written(session, "UPDATE messages SET attempts = attempts + 1 WHERE number = %s", number)

    async def bury(self, session: int, number: int, reason: str, now_ms: int) -> None:
        await self._written(
            session,
            "WITH gone AS (DELETE FROM messages WHERE number = %s RETURNING *) "
            "INSERT INTO dead SELECT number, typename, sender, '', %s, attempts + 1, %s, data FROM gone",
            *(number, _storable(reason), now_ms),
        )

    async def adopt(self, session: int) -> int:
        if not await self._rows(
            "SELECT 1 FROM messages JOIN sessions ON sessions.number = session WHERE fenced LIMIT 1"
        ):
            return 0  # Whoever looks again and again writes nothing.
        async with self._writing(session) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, _ADOPTION))
            adopted = 0
            # Again, until there is none: one that joined a lane meanwhile was committed before the lane was ours.
            while count := await _count(
                connection,
                "UPDATE messages SET session = %s WHERE session IN (SELECT number FROM sessions WHERE fenced)",
                session,
            ):
                adopted += count
        return adopted

    # Rows for egresses.

    async def open_batch(self, session: int, egress: str, limit: int) -> list[Batch]:
        if not await self._rows("SELECT 1 FROM emitted WHERE egress = %s LIMIT 1", egress):
            return []
        async with self._writing(session) as connection:
            number = await _open_batch(connection, egress, limit)
            cursor = await connection.execute(
                "SELECT number, data FROM emitted WHERE egress = %s AND batch = %s ORDER BY number", (egress, number)
            )
            rows = [(row, decode_row(data)) for row, data in await cursor.fetchall()]
        return [Batch(0, number, rows)] if rows else []

    async def refuse_rows(self, session: int, refused: Mapping[int, str], now_ms: int) -> None:
        async with self._writing(session) as connection:
            for number, reason in refused.items():
                await connection.execute(
                    "WITH gone AS (DELETE FROM emitted WHERE number = %s RETURNING *) "
                    "INSERT INTO dead SELECT number, typename, sender, egress, %s, 1, %s, data FROM gone",
                    (number, _storable(reason), now_ms),
                )

    async def close_batch(self, session: int, egress: str, batch: Batch) -> None:
        await self._written(session, "DELETE FROM emitted WHERE egress = %s AND batch = %s", *(egress, batch.number))

    # Dead letters.

    async def dead_letters(self, *, after: int = 0, limit: int = 1_000) -> list[DeadLetter]:
        found = await self._rows("SELECT * FROM dead WHERE number > %s ORDER BY number LIMIT %s", after, limit)
        return [_dead_letter(*row) for row in found]

    async def redrive(self, session: int, numbers: Collection[int]) -> int:
        async with self._writing(session) as connection:
            cursor = await connection.execute(
                "DELETE FROM dead WHERE number = ANY (%s) AND typename <> '' "
                "RETURNING number, typename, sender, egress, data",
                (list(numbers),),
            )
            letters = sorted(await cursor.fetchall())
            for _, typename, sender, egress, data in letters:
                if egress:
                    await connection.execute(_EMIT, (egress, typename, sender, data))
                else:
                    outgoing = decode_outgoing(data)._replace(due_ms=0, token="")
                    await _keep(connection, session, Address(typename, sender.decode()), outgoing)
        return len(letters)

    async def discard(self, session: int, numbers: Collection[int]) -> int:
        found = await self._written(session, "DELETE FROM dead WHERE number = ANY (%s) RETURNING number", list(numbers))
        return len(found)

    # Work that one process does for all.

    async def claim(self, session: int, name: str) -> bool:
        owned = await self._rows(
            "SELECT session FROM claims JOIN sessions ON number = session WHERE name = %s AND NOT fenced "
            "AND session <> %s",
            *(name, session),
        )
        if owned:
            return False  # Whoever asks again and again writes nothing.
        found = await self._written(
            session,
            "INSERT INTO claims VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET session = excluded.session "
            "WHERE claims.session = excluded.session OR claims.session IN (SELECT number FROM sessions WHERE fenced) "
            "RETURNING session",
            *(name, session),
        )
        return bool(found)

    async def position(self, ingress: str) -> Any:
        found = await self._rows("SELECT position FROM positions WHERE ingress = %s", ingress)
        return decode_position(found[0][0]) if found else None

    async def keep_position(
        self, session: int, ingress: str, position: Any, rejected: Sequence[RejectedRecord] = (), now_ms: int = 0
    ) -> None:
        async with self._writing(session) as connection:
            await connection.execute(
                "INSERT INTO positions VALUES (%s, %s) "
                "ON CONFLICT (ingress) DO UPDATE SET position = excluded.position",
                (ingress, encode_position(position)),
            )
            for record in rejected:
                await connection.execute(
                    "INSERT INTO dead VALUES (nextval('numbers'), '', '', '', %s, 1, %s, %s)",
                    (_storable(record.reason), now_ms, encode_rejected(record)),
                )

    # Upkeep.

    async def pending(self) -> Pending:
        return Pending(
            *await self._row(
                "SELECT (SELECT count(*) FROM messages WHERE due_ms = 0), "
                "(SELECT count(*) FROM messages WHERE due_ms > 0), (SELECT count(*) FROM emitted)"
            )
        )

    async def purge(self, now_ms: int) -> int:
        forgotten, found = 0, PURGED_AT_ONCE
        while found == PURGED_AT_ONCE:
            async with self._connection() as connection:
                found = await _count(
                    connection,
                    "DELETE FROM answers WHERE ctid = ANY (ARRAY("
                    "SELECT ctid FROM answers WHERE until_ms < %s ORDER BY until_ms LIMIT %s FOR UPDATE SKIP LOCKED))",
                    *(now_ms, PURGED_AT_ONCE),
                )
            forgotten += found
        return forgotten

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    # Connections.

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one use. One that had an error is not used again: nothing on it is certain."""
        async with self._free:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            except psycopg.errors.DeadlockDetected:
                self._idle.append(connection)
                raise
            except psycopg.Error as error:
                await _given_up(connection)
                raise unavailable(self._where, _text(error)) from error
            except PenstockError:
                self._idle.append(connection)  # Something was refused, and is rolled back.
                raise
            except BaseException:
                await _given_up(connection)
                raise
            else:
                self._idle.append(connection)

    async def _connect(self) -> AsyncConnection:
        try:
            connection = await AsyncConnection.connect(self._dsn, autocommit=True)
        except psycopg.Error as error:
            raise unavailable(self._where, _text(error)) from error
        await connection.execute(sql.SQL("SET search_path TO {}").format(self._schema))
        await connection.execute(f"SET idle_in_transaction_session_timeout = '{_STANDSTILL_MAX}'")
        return connection

    @asynccontextmanager
    async def _writing(self, session: int) -> AsyncIterator[AsyncConnection]:
        """A transaction of a session. Raises Fenced."""
        async with self._connection() as connection, connection.transaction():
            await _allowed(await _check(connection, session), session)
            yield connection

    async def _written(self, session: int, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        async with self._writing(session) as connection:
            cursor = await connection.execute(statement, arguments)
            return await cursor.fetchall() if cursor.description else []

    async def _rows(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        async with self._connection() as connection:
            return await (await connection.execute(statement, arguments)).fetchall()

    async def _row(self, statement: str, *arguments: object) -> tuple[Any, ...]:
        (row,) = await self._rows(statement, *arguments)
        return row

    async def _know(self, typename: str) -> None:
        if typename not in self._functions:
            async with self._connection() as connection:
                await connection.execute(
                    "INSERT INTO functions VALUES (%s) ON CONFLICT (typename) DO NOTHING", (typename,)
                )
            self._functions.add(typename)


# A commit, in one pipeline: all is sent before the first result is looked at.


class _Begun:
    """A commit whose statements are sent."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._state: AsyncCursor | None = None
        self._removed: AsyncCursor | None = None
        self._answer: AsyncCursor | None = None
        self._kept: list[tuple[Outgoing, AsyncCursor]] = []

    @classmethod
    async def of(cls, connection: AsyncConnection, commit: Commit) -> _Begun:
        begun = cls(commit)
        await begun._send_state(connection)
        await begun._send_rest(connection)
        return begun

    async def _send_state(self, connection: AsyncConnection) -> None:
        commit = self._commit
        arguments = {
            "typename": commit.typename,
            "id": commit.id.encode(),
            "version": commit.version,
            "value": commit.value,
        }
        if commit.changes_state:
            statement = _PUT if commit.version is None else _REPLACE if commit.version else _CREATE
            self._state = await connection.execute(statement, arguments)
            await self._send_rows(connection)
            if not commit.value:
                self._removed = await connection.execute(_REMOVE_EMPTY, arguments)
        elif commit.version is not None:
            self._state = await connection.execute(_COMPARE, arguments)

    async def _send_rows(self, connection: AsyncConnection) -> None:
        commit = self._commit
        for key, row in commit.rows.items():
            of = (commit.typename, commit.id.encode(), key)
            if row is None:
                await connection.execute("DELETE FROM rows WHERE typename = %s AND id = %s AND key = %s", of)
            else:
                await connection.execute(
                    "INSERT INTO rows VALUES (%s, %s, %s, %s) "
                    "ON CONFLICT (typename, id, key) DO UPDATE SET value = excluded.value",
                    (*of, row),
                )

    async def _send_rest(self, connection: AsyncConnection) -> None:
        commit = self._commit
        owner = (commit.typename, commit.id.encode())
        if commit.key and commit.answer is not None:
            arguments = {
                "typename": commit.typename,
                "id": commit.id.encode(),
                "key": commit.key.encode(),
                "until_ms": commit.answer_until_ms,
            }
            self._answer = await connection.execute(_ANSWER, arguments | commit.answer._asdict())
        for name in commit.promises:
            await connection.execute(
                "DELETE FROM promises WHERE typename = %s AND id = %s AND name = %s", (*owner, name.encode())
            )
        for token in commit.cancelled:
            await connection.execute(_CANCEL, (*owner, token.encode()))
        for outgoing in commit.outgoing:
            self._kept.append((outgoing, await _keep(connection, commit.session, commit.address, outgoing)))
        for egress, row in commit.emitted:
            await connection.execute(_EMIT, (egress, *owner, encode_row(row)))

    async def finished(self) -> Committed:
        """What it came to. Raises VersionMismatch: then all is rolled back."""
        commit = self._commit
        version = commit.version or 0
        if self._state is not None:
            found = await self._state.fetchone()
            version = 0 if found is None else found[0]
            self._compare(version)
        if self._removed is not None and await self._removed.fetchone() is not None:
            version = 0
        if self._answer is not None and await self._answer.fetchone() is None:
            raise VersionMismatch(commit.address, f"key {commit.key!r} is answered already")
        kept = [await self._kept_here(outgoing, cursor) for outgoing, cursor in self._kept]
        return Committed(version, [each for each in kept if each is not None])

    def _compare(self, found: int) -> None:
        commit = self._commit
        if commit.changes_state:
            if not found:
                raise VersionMismatch(commit.address, f"it does not have version {commit.version} any more")
        elif found != commit.version:
            raise VersionMismatch(commit.address, f"it has version {found}, and {commit.version} was expected")

    async def _kept_here(self, outgoing: Outgoing, cursor: AsyncCursor) -> Kept | None:
        number, session, previous = await _one(cursor)
        if outgoing.due_ms or session != self._commit.session:
            return None
        return Kept(number, self._commit.address, outgoing, 0, previous)


async def _check(connection: AsyncConnection, session: int) -> AsyncCursor:
    await connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (_LOCK, session))
    # A statement of its own: it sees what was committed while the lock was waited for.
    return await connection.execute("SELECT 1 FROM sessions WHERE number = %s AND NOT fenced", (session,))


async def _allowed(check: AsyncCursor, session: int) -> None:
    if await check.fetchone() is None:
        raise fenced(session)


async def _keep(connection: AsyncConnection, session: int, sender: Address, outgoing: Outgoing) -> AsyncCursor:
    if outgoing.token:
        await connection.execute(_CANCEL, (sender.typename, sender.id.encode(), outgoing.token.encode()))
    return await connection.execute(
        _KEEP,
        {
            "session": session,
            "lane": lane_of(sender, outgoing),
            "due_ms": outgoing.due_ms,
            "typename": sender.typename,
            "id": sender.id.encode(),
            "token": outgoing.token.encode(),
            "data": encode_outgoing(outgoing),
        },
    )


async def _open_batch(connection: AsyncConnection, egress: str, limit: int) -> int:
    """The number of the batch that has rows, which may be a new one."""
    cursor = await connection.execute("SELECT last FROM batches WHERE egress = %s FOR UPDATE", (egress,))
    (last,) = await cursor.fetchone() or (0,)
    cursor = await connection.execute("SELECT 1 FROM emitted WHERE egress = %s AND batch = %s LIMIT 1", (egress, last))
    if last and await cursor.fetchone() is not None:
        return int(last)
    await connection.execute(
        "INSERT INTO batches VALUES (%s, %s) ON CONFLICT (egress) DO UPDATE SET last = excluded.last",
        (egress, last + 1),
    )
    await connection.execute(
        "UPDATE emitted SET batch = %s WHERE number IN "
        "(SELECT number FROM emitted WHERE egress = %s AND batch = 0 ORDER BY number LIMIT %s)",
        (last + 1, egress, limit),
    )
    return int(last) + 1


def _dead_letter(
    number: int, typename: str, sender: bytes, egress: str, reason: str, attempts: int, died_ms: int, data: bytes
) -> DeadLetter:
    if not typename:
        return DeadLetter(number, None, decode_rejected(data), reason, attempts, died_ms)
    what = Emitted(egress, decode_row(data)) if egress else decode_outgoing(data)
    return DeadLetter(number, Address(typename, sender.decode()), what, reason, attempts, died_ms)


async def _count(connection: AsyncConnection, statement: str, *arguments: object) -> int:
    return (await connection.execute(statement, arguments)).rowcount


async def _one(cursor: AsyncCursor) -> tuple[Any, ...]:
    row = await cursor.fetchone()
    assert row is not None
    return row


async def _given_up(connection: AsyncConnection) -> None:
    with suppress(psycopg.Error):
        await connection.close()


def _storable(text: str) -> str:
    """Text as PostgreSQL can hold it."""
    return text.replace("\0", "\\0")


def _text(error: psycopg.Error) -> str:
    """The first line: what follows are hints for a terminal."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
