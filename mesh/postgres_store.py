"""The store in a PostgreSQL database, for hosts on several machines: all in one schema, `penstock_mesh`.

What always holds: a commit is one transaction at the isolation level READ COMMITTED, and every comparison in it is
part of the statement that writes. Every transaction that writes holds a shared lock on its session, `fence` waits for
the exclusive one: what was on its way is there when it returns, and everything after it finds the session fenced.
A transaction whose process stands still is ended by the server, so nobody waits for that longer than a few seconds.

Text that users choose is stored as bytes in UTF-8: PostgreSQL's own text has no NUL, and orders by language.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from penstock.errors import PenstockError
from penstock.ids import Address
from penstock.mesh.postgres_commits import FENCED, FUNCTIONS, LOCK, STATEMENT, Group, choose, in_steps
from penstock.mesh.postgres_pool import Connection, Pool, Row, Told
from penstock.mesh.store import (
    CONNECTIONS_MAX,
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
    Past,
    Pending,
    RejectedRecord,
    Session,
    VersionMismatch,
    after_prefix,
    decode_outgoing,
    decode_position,
    decode_rejected,
    decode_row,
    encode_position,
    encode_rejected,
    fenced,
    newer_schema,
)
from penstock.mesh.together import Together

_TABLES = """
CREATE TABLE schema (number integer NOT NULL, instance uuid NOT NULL DEFAULT gen_random_uuid());
CREATE SEQUENCE versions;
CREATE SEQUENCE numbers;
CREATE TABLE sessions (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    holder text NOT NULL,
    begun_ms bigint NOT NULL,
    ended_ms bigint NOT NULL DEFAULT 0
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
CREATE TABLE promises (
    typename text, id bytea, name bytea, value bytea NOT NULL, kept_ms bigint NOT NULL,
    PRIMARY KEY (typename, id, name)
);
CREATE INDEX promises_kept ON promises (kept_ms);
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

_CONFLICTS_MAX: Final = 20
"""So often a commit is tried that others get in the way of: each time, one of them has gone on."""
_GROUP_CONFLICTS_MAX: Final = 3
"""So often a group is tried as a whole, before one that is often in others' way keeps all of it up."""
_CREATION, _ADOPTION = -1, -2
"""What is locked beside sessions."""

_LOAD = """
SELECT version, value, status, body,
    CASE WHEN with_rows THEN
        (SELECT array_agg(key ORDER BY key) FROM rows WHERE typename = c.typename AND id = c.id) END,
    CASE WHEN with_rows THEN
        (SELECT array_agg(value ORDER BY key) FROM rows WHERE typename = c.typename AND id = c.id) END
FROM unnest(%b::text[], %b::bytea[], %b::bytea[], %s::boolean[]) WITH ORDINALITY
    AS c (typename, id, answered, with_rows, n)
LEFT JOIN state USING (typename, id)
LEFT JOIN answers ON answers.typename = c.typename AND answers.id = c.id AND answers.key = c.answered
ORDER BY n
"""
"""One statement, so that all of an address is of one moment."""
_ALLOW = "SELECT allow(%s)"
_TAKE_REFUSED = (
    "gone AS (DELETE FROM emitted USING unnest(%s::bigint[], %s::text[]) AS refused (row, reason) "
    "WHERE number = refused.row RETURNING emitted.*, reason)"
)
_BURY_RECORDS = (
    "buried AS (INSERT INTO dead SELECT nextval('numbers'), '', '', '', reason, 1, %s, data "
    "FROM unnest(%b::text[], %b::bytea[]) AS letters (reason, data))"
)
_KEPT = "number, typename, sender, attempts, data"


class PostgresStore:
    """The store in the database that `dsn` names."""

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "penstock_mesh",
        connections_max: int = CONNECTIONS_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = Pool(dsn, schema, connections_max=connections_max)
        self._schema = schema
        self._clock = clock
        self._loads = Together(self._load_all)
        self._commits = Together(self._commit_group, choose)
        self._done = Together(self._done_all, _of_one_session)
        self._functions: set[str] = set()
        """Typenames that are known to be in the table."""

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._pool.count

    async def open(self) -> None:
        """Make the tables if there are none. Raises Unavailable, and Refused for those of a later Penstock."""
        async with self._pool.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK, _CREATION))
            cursor = await connection.execute("SELECT to_regclass('schema')")
            if await _one(cursor) == (None,):
                await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
                await connection.execute(_TABLES)
                await connection.execute("INSERT INTO schema (number) VALUES (%s)", (SCHEMA,))
            (found,) = await _one(await connection.execute("SELECT number FROM schema"))
            if found > SCHEMA:
                raise newer_schema(self._pool.where, found)
            await connection.execute(FUNCTIONS)

    async def instance(self) -> str:
        (name,) = await self._pool.row("SELECT instance FROM schema")
        return str(name.hex)

    # Sessions.

    async def begin_session(self, holder: str) -> int:
        (number,) = await self._pool.row(
            "INSERT INTO sessions (holder, begun_ms) VALUES (%s, %s) RETURNING number",
            holder,
            self._now_ms(),
        )
        return int(number)

    async def fence(self, session: int) -> None:
        await self._pool.rows("SELECT fence(%s, %s)", session, self._now_ms())

    async def sessions(self) -> list[Session]:
        return [Session(*row) for row in await self._pool.rows("SELECT * FROM sessions ORDER BY number")]

    # Addresses.

    async def load(self, typename: str, id: str, key: str = "", *, rows: bool = False) -> Loaded:
        return await self._loads.ask((typename, id, key, rows))

    async def _load_all(self, asked: Sequence[tuple[str, str, str, bool]]) -> list[Loaded]:
        found = await self._pool.rows(
            _LOAD,
            [typename for typename, _, _, _ in asked],
            [id.encode() for _, id, _, _ in asked],
            [key.encode() for _, _, key, _ in asked],
            [rows for _, _, _, rows in asked],
        )
        return [_loaded(*row) for row in found]

    async def commit(self, commit: Commit) -> Committed:
        return await self._commits.ask(commit)

    async def _commit_group(self, commits: Sequence[Commit]) -> Sequence[Committed | Exception]:
        """Together, or one by one where one of them keeps the others from it."""
        await self._know({commit.typename for commit in commits})
        left = _CONFLICTS_MAX if len(commits) == 1 else _GROUP_CONFLICTS_MAX
        while True:
            group = Group(commits)
            try:
                return group.outcomes(*await self._pool.row(STATEMENT, *group.arguments))
            except Told as told:
                left -= 1
                if left and told.conflict:
                    continue
                if told.sqlstate == FENCED or len(commits) == 1:
                    return [_refusal(commit, told) for commit in commits]
            except Exception as error:
                if len(commits) == 1:
                    return [error]
                if isinstance(error, PenstockError):
                    raise  # It is of the server; any other is of one of them, whose arguments don't fit.
            return [outcome for commit in commits for outcome in await self._commit_group([commit])]

    async def commit_all(self, commits: Sequence[Commit]) -> list[Committed]:
        await self._know({commits[0].typename})
        committed: list[Committed] = []
        try:
            async with self._pool.transaction() as connection:
                for step in in_steps(commits):
                    group = Group(step)
                    cursor = await connection.execute(STATEMENT, group.arguments, binary=True)
                    for outcome in group.outcomes(*await _one(cursor)):
                        if isinstance(outcome, VersionMismatch):
                            raise outcome
                        committed.append(outcome)
        except Told as told:
            raise _refusal(commits[0], told) from told
        return committed

    async def typenames(self) -> list[str]:
        found = await self._pool.rows('SELECT typename FROM functions ORDER BY typename COLLATE "C"')
        return [typename for (typename,) in found]

    async def ids(self, typename: str, *, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
        end = after_prefix(prefix)
        found = await self._pool.rows(
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
        written = await self._write(
            session,
            "INSERT INTO promises VALUES (%s, %s, %s, %s, %s) ON CONFLICT (typename, id, name) DO NOTHING",
            *(address.typename, address.id.encode(), name.encode(), value, self._now_ms()),
        )
        return bool(written)

    async def resolution(self, address: Address, name: str) -> bytes | None:
        found = await self._pool.rows(
            "SELECT value FROM promises WHERE typename = %s AND id = %s AND name = %s",
            *(address.typename, address.id.encode(), name.encode()),
        )
        return found[0][0] if found else None

    # Messages that wait.

    async def due(self, session: int, now_ms: int, limit: int) -> list[Kept]:
        at_once = await self._pool.rows(
            f"SELECT {_KEPT} FROM messages WHERE session = %s AND due_ms = 0 ORDER BY number LIMIT %s", session, limit
        )
        delayed = await self._pool.rows(
            f"SELECT {_KEPT} FROM messages WHERE session = %s AND due_ms BETWEEN 1 AND %s "
            "ORDER BY due_ms, number LIMIT %s",
            *(session, now_ms, limit),
        )
        return [
            Kept(number, Address(typename, sender.decode()), decode_outgoing(data), attempts)
            for number, typename, sender, attempts, data in (*at_once, *delayed)
        ]

    async def next_due_ms(self, session: int, after_ms: int) -> int | None:
        (due_ms,) = await self._pool.row(
            "SELECT min(due_ms) FROM messages WHERE session = %s AND due_ms > %s", session, max(0, after_ms)
        )
        return None if due_ms is None else int(due_ms)

    async def done(self, session: int, numbers: Collection[int]) -> None:
        await self._done.ask((session, numbers))

    async def _done_all(self, asked: Sequence[tuple[int, Collection[int]]]) -> list[None]:
        gone = [number for _, numbers in asked for number in numbers]
        await self._write(asked[0][0], "DELETE FROM messages WHERE number = ANY (%s)", gone)
        return [None] * len(asked)

    async def failed(self, session: int, number: int) -> None:
        await self._write(session, "UPDATE messages SET attempts = attempts + 1 WHERE number = %s", number)

    async def bury(self, session: int, number: int, reason: str, now_ms: int) -> None:
        await self._write(
            session,
            "INSERT INTO dead SELECT number, typename, sender, '', %s, attempts + 1, %s, data FROM gone",
            *(_storable(reason), now_ms),
            also=("gone AS (DELETE FROM messages WHERE number = %s RETURNING *)", [number]),
        )

    async def adopt(self, session: int) -> int:
        if not await self._pool.rows(
            "SELECT 1 FROM messages JOIN sessions ON sessions.number = session WHERE ended_ms > 0 LIMIT 1"
        ):
            return 0  # Whoever looks again and again writes nothing.
        async with self._writing(session) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK, _ADOPTION))
            adopted, found = 0, 1
            # Again, until there is none: one that joined a lane meanwhile was committed before the lane was ours.
            while found:
                cursor = await connection.execute(
                    "UPDATE messages SET session = %s "
                    "WHERE session IN (SELECT number FROM sessions WHERE ended_ms > 0)",
                    (session,),
                )
                found = cursor.rowcount
                adopted += found
        return adopted

    # Rows for egresses.

    async def open_batch(self, session: int, egress: str, limit: int) -> list[Batch]:
        if not await self._pool.rows("SELECT 1 FROM emitted WHERE egress = %s LIMIT 1", egress):
            return []
        async with self._writing(session) as connection:
            number = await _open_batch(connection, egress, limit)
            cursor = await connection.execute(
                "SELECT number, data FROM emitted WHERE egress = %s AND batch = %s ORDER BY number", (egress, number)
            )
            rows = [(row, decode_row(data)) for row, data in await cursor.fetchall()]
        return [Batch(0, number, rows)] if rows else []

    async def refuse_rows(self, session: int, refused: Mapping[int, str], now_ms: int) -> None:
        await self._write(
            session,
            "INSERT INTO dead SELECT number, typename, sender, egress, reason, 1, %s, data FROM gone",
            now_ms,
            also=(_TAKE_REFUSED, [list(refused), [_storable(reason) for reason in refused.values()]]),
        )

    async def close_batch(self, session: int, egress: str, batch: Batch) -> None:
        await self._write(session, "DELETE FROM emitted WHERE egress = %s AND batch = %s", *(egress, batch.number))

    # Dead letters.

    async def dead_letters(self, *, after: int = 0, limit: int = 1_000) -> list[DeadLetter]:
        found = await self._pool.rows("SELECT * FROM dead WHERE number > %s ORDER BY number LIMIT %s", after, limit)
        return [_dead_letter(*row) for row in found]

    async def redrive(self, session: int, numbers: Collection[int]) -> int:
        async with self._writing(session) as connection:
            cursor = await connection.execute(
                "DELETE FROM dead WHERE number = ANY (%s) AND typename <> '' "
                "RETURNING number, typename, sender, egress, reason, attempts, died_ms, data",
                (list(numbers),),
            )
            letters = [_dead_letter(*row) for row in sorted(await cursor.fetchall())]
            if letters:
                await connection.execute(STATEMENT, Group([_again(session, letter) for letter in letters]).arguments)
        return len(letters)

    async def discard(self, session: int, numbers: Collection[int]) -> int:
        return await self._write(session, "DELETE FROM dead WHERE number = ANY (%s)", list(numbers))

    # Work that one process does for all.

    async def claim(self, session: int, name: str) -> bool:
        owned = await self._pool.rows(
            "SELECT session FROM claims JOIN sessions ON number = session WHERE name = %s AND ended_ms = 0 "
            "AND session <> %s",
            *(name, session),
        )
        if owned:
            return False  # Whoever asks again and again writes nothing.
        written = await self._write(
            session,
            "INSERT INTO claims VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET session = excluded.session "
            "WHERE claims.session = excluded.session "
            "OR claims.session NOT IN (SELECT number FROM sessions WHERE ended_ms = 0)",
            *(name, session),
        )
        return bool(written)

    async def position(self, ingress: str) -> Any:
        found = await self._pool.rows("SELECT position FROM positions WHERE ingress = %s", ingress)
        return decode_position(found[0][0]) if found else None

    async def keep_position(
        self, session: int, ingress: str, position: Any, rejected: Sequence[RejectedRecord] = (), now_ms: int = 0
    ) -> None:
        await self._write(
            session,
            "INSERT INTO positions VALUES (%s, %s) ON CONFLICT (ingress) DO UPDATE SET position = excluded.position",
            *(ingress, encode_position(position)),
            also=(
                _BURY_RECORDS,
                [now_ms, [_storable(each.reason) for each in rejected], [encode_rejected(each) for each in rejected]],
            ),
        )

    # Upkeep.

    async def pending(self) -> Pending:
        return Pending(
            *await self._pool.row(
                "SELECT (SELECT count(*) FROM messages WHERE due_ms = 0), "
                "(SELECT count(*) FROM messages WHERE due_ms > 0), (SELECT count(*) FROM emitted)"
            )
        )

    async def purge(self, past: Past) -> int:
        forgotten = [
            await self._purge("answers", "until_ms < %s ORDER BY until_ms", past.answers_ms),
            await self._purge("promises", "kept_ms < %s ORDER BY kept_ms", past.promises_ms),
            await self._purge(
                "sessions",
                "ended_ms BETWEEN 1 AND %s AND NOT EXISTS (SELECT FROM messages WHERE session = sessions.number)",
                past.sessions_ms,
            ),
        ]
        return max(forgotten)

    async def _purge(self, table: str, which: str, past_ms: int) -> int:
        """What another process is about to forget as well is passed over."""
        (forgotten,) = await self._pool.row(
            f"WITH forgotten AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY("
            f"SELECT ctid FROM {table} WHERE {which} LIMIT %s FOR UPDATE SKIP LOCKED)) RETURNING 1) "
            "SELECT count(*) FROM forgotten",
            *(past_ms, PURGED_AT_ONCE),
        )
        return int(forgotten)

    async def close(self) -> None:
        for each in (self._loads, self._commits, self._done):
            await each.wait_quiet()
        await self._pool.close()

    # What they have in common.

    @asynccontextmanager
    async def _writing(self, session: int) -> AsyncIterator[Connection]:
        """A transaction of a session, for statements that depend on one another. Raises Fenced."""
        with _told(session):
            async with self._pool.transaction() as connection:
                await connection.execute(_ALLOW, (session,))
                yield connection

    async def _write(
        self, session: int, statement: str, *arguments: object, also: tuple[str, Sequence[object]] | None = None
    ) -> int:
        """Carry out a statement that writes, and `also` a part it builds upon, as a transaction of a session; returns
        how many rows the statement has written. Raises Fenced.

        It is all one statement, so that the server waits for nobody in the midst of it: several would be sent one by
        one, also in a pipeline, and a process that is stopped between two would keep its locks.
        """
        part, parts_arguments = (f"{also[0]}, ", also[1]) if also else ("", ())
        with _told(session):
            _, written = await self._pool.row(
                f"WITH {part}written AS ({statement} RETURNING 1) SELECT allow(%s), (SELECT count(*) FROM written)",
                *(*parts_arguments, *arguments, session),
            )
        return int(written)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _know(self, typenames: Set[str]) -> None:
        for typename in typenames - self._functions:
            await self._pool.rows("INSERT INTO functions VALUES (%s) ON CONFLICT (typename) DO NOTHING", typename)
            self._functions.add(typename)


async def _open_batch(connection: Connection, egress: str, limit: int) -> int:
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


@contextmanager
def _told(session: int) -> Iterator[None]:
    try:
        yield
    except Told as told:
        if told.sqlstate == FENCED:
            raise fenced(session) from told
        raise


def _refusal(commit: Commit, told: Told) -> PenstockError:
    """What became of a commit of which the server has said that."""
    if told.sqlstate == FENCED:
        return fenced(commit.session)
    if told.conflict:
        return VersionMismatch(commit.address, "another transaction was in its way")
    return told


def _of_one_session(asked: Sequence[tuple[int, Collection[int]]]) -> list[bool]:
    return [session == asked[0][0] for session, _ in asked]


def _loaded(
    version: int | None,
    value: bytes | None,
    status: int | None,
    body: bytes,
    keys: Sequence[bytes] | None,
    values: Sequence[bytes] | None,
) -> Loaded:
    answer = None if status is None else Answer(status, body)
    return Loaded(value or b"", version or 0, answer, dict(zip(keys or (), values or (), strict=True)))


def _again(session: int, letter: DeadLetter) -> Commit:
    """A commit of a dead letter's sender that asks for the same once more."""
    assert letter.sender is not None, "records are not delivered again"
    if isinstance(letter.what, Emitted):
        return Commit(session, *letter.sender, emitted=[letter.what])
    assert isinstance(letter.what, Outgoing)
    return Commit(session, *letter.sender, outgoing=[letter.what._replace(due_ms=0, token="")])


async def _one(cursor: Any) -> Row:
    row: Row | None = await cursor.fetchone()
    assert row is not None
    return row


def _storable(text: str) -> str:
    """Text as PostgreSQL can hold it."""
    return text.replace("\0", "\\0")
