"""The embedded store: one SQLite file per function type, and one for what belongs to all.

    mesh.sqlite                          sessions, claims, positions of ingresses, numbers of the function types
    functions/shop%2Fcart.sqlite         state, answers, messages, rows for egresses, promises and dead letters of one

What always holds: a commit is one transaction of one file. Each file knows the sessions that may write to it, because
SQLite has no transaction that is durable in two: see `_Function`. How files are written, and what that costs, is in
`penstock.mesh.sqlite_file`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from penstock.files import make_directory
from penstock.ids import Address
from penstock.mesh.sqlite_file import File, Transaction
from penstock.mesh.store import (
    PURGED_AT_ONCE,
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
    encode_outgoing,
    encode_position,
    encode_rejected,
    encode_row,
    fenced,
    lane_of,
)

T = TypeVar("T")

_SHARED_SCHEMA = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    holder TEXT NOT NULL,
    begun_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE functions (number INTEGER PRIMARY KEY AUTOINCREMENT, typename TEXT NOT NULL UNIQUE);
CREATE TABLE claims (name TEXT PRIMARY KEY, session INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (ingress TEXT PRIMARY KEY, position BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE instance (name TEXT NOT NULL);
INSERT INTO instance VALUES (lower(hex(randomblob(16))));
CREATE TABLE rejected (number INTEGER PRIMARY KEY AUTOINCREMENT, died_ms INTEGER NOT NULL, data BLOB NOT NULL);
"""

_FUNCTION_SCHEMA = """
CREATE TABLE writers (session INTEGER PRIMARY KEY);
CREATE TABLE ended (session INTEGER PRIMARY KEY);
CREATE TABLE versions (last INTEGER NOT NULL);
INSERT INTO versions VALUES (0);
CREATE TABLE state (id TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (id TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (id, key)) WITHOUT ROWID;
CREATE TABLE answers (
    id TEXT, key TEXT, status INTEGER NOT NULL, body BLOB NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (id, key)
) WITHOUT ROWID;
CREATE INDEX answers_until ON answers (until_ms);
CREATE TABLE promises (
    id TEXT, name TEXT, value BLOB NOT NULL, kept_ms INTEGER NOT NULL, PRIMARY KEY (id, name)
) WITHOUT ROWID;
CREATE INDEX promises_kept ON promises (kept_ms);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    sender TEXT NOT NULL,
    token TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    data BLOB NOT NULL
);
CREATE INDEX messages_due ON messages (session, due_ms);
CREATE INDEX messages_lane ON messages (lane) WHERE due_ms = 0;
CREATE INDEX messages_token ON messages (sender, token) WHERE token <> '';
CREATE TABLE emitted (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    egress TEXT NOT NULL,
    batch INTEGER NOT NULL DEFAULT 0,
    sender TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX emitted_batch ON emitted (egress, batch);
CREATE TABLE batches (egress TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead (
    number INTEGER PRIMARY KEY,
    sender TEXT NOT NULL,
    egress TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    died_ms INTEGER NOT NULL,
    data BLOB NOT NULL
);
"""

_NUMBER_BITS = 40
"""Below the number of the function type: a million messages a second for twelve days, of one function type, do not
use up a half of what they number."""
_FIRST_ROW = 1 << (_NUMBER_BITS - 1)
"""Rows are numbered from the other half, so that a dead letter is known by its number, whatever it was."""

_KEPT = "number, sender, attempts, data"


class SqliteStore:
    """The store in a directory. Several processes of one machine may have it open."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        make_directory(directory)
        make_directory(directory / "functions")
        self._shared = File(directory / "mesh.sqlite", _SHARED_SCHEMA)
        self._functions: dict[str, _Function] = {}

    async def open(self) -> None:
        """Make the files if there are none. It is done by whatever is asked for first, too. Raises Unavailable, and
        Refused for those of a later Penstock."""
        await self._shared.open()

    async def instance(self) -> str:
        ((name,),) = await self._read("SELECT name FROM instance")
        return str(name)

    # Sessions.

    async def begin_session(self, holder: str) -> int:
        begun_ms = int(self._clock() * 1000)
        return await self._write(
            lambda transaction: transaction.insert(
                "INSERT INTO sessions (holder, begun_ms) VALUES (?, ?)", holder, begun_ms
            )
        )

    async def fence(self, session: int) -> None:
        ended_ms = int(self._clock() * 1000)
        await self._write(
            lambda transaction: transaction.execute(
                "UPDATE sessions SET ended_ms = ? WHERE number = ? AND NOT ended_ms", ended_ms, session
            )
        )
        # Listed after it is noted: a file that is not in the list yet is written by those alone who read the note.
        for function in await self._all():
            await function.fence(session)

    async def sessions(self) -> list[Session]:
        found = await self._read("SELECT number, holder, begun_ms, ended_ms FROM sessions ORDER BY number")
        return [Session(*row) for row in found]

    # Addresses.

    async def load(self, typename: str, id: str, key: str = "", *, rows: bool = False) -> Loaded:
        function = await self._existing(typename)
        return Loaded(b"", 0, None, {}) if function is None else function.load(id, key, rows=rows)

    async def commit(self, commit: Commit) -> Committed:
        (committed,) = await self.commit_all([commit])
        return committed

    async def commit_all(self, commits: Sequence[Commit]) -> list[Committed]:
        assert len({commit.typename for commit in commits}) == 1, "of one function type"
        function = await self._made(commits[0].typename)
        return await function.commit(commits)

    async def typenames(self) -> list[str]:
        return [typename for (typename,) in await self._read("SELECT typename FROM functions ORDER BY typename")]

    async def ids(self, typename: str, *, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
        function = await self._existing(typename)
        return [] if function is None else function.ids(prefix, after, limit)

    # Promises.

    async def resolve(self, session: int, address: Address, name: str, value: bytes) -> bool:
        function = await self._made(address.typename)
        return await function.resolve(session, address.id, name, value, int(self._clock() * 1000))

    async def resolution(self, address: Address, name: str) -> bytes | None:
        function = await self._existing(address.typename)
        return None if function is None else function.resolution(address.id, name)

    # Messages that wait.

    async def due(self, session: int, now_ms: int, limit: int) -> list[Kept]:
        return [kept for function in await self._all() for kept in function.due(session, now_ms, limit)]

    async def next_due_ms(self, session: int, after_ms: int) -> int | None:
        found = (function.next_due_ms(session, after_ms) for function in await self._all())
        return min((due_ms for due_ms in found if due_ms is not None), default=None)

    async def done(self, session: int, numbers: Collection[int]) -> None:
        for function, of_function in await self._by_function(numbers):
            await function.done(session, of_function)

    async def failed(self, session: int, number: int) -> None:
        for function, _ in await self._by_function([number]):
            await function.failed(session, number)

    async def bury(self, session: int, number: int, reason: str, now_ms: int) -> None:
        for function, _ in await self._by_function([number]):
            await function.bury(session, number, reason, now_ms)

    async def adopt(self, session: int) -> int:
        functions = await self._all()
        writers = [function.writers() for function in functions]
        # Read behind the writers: each of them was there before it became one, and is missing only if it has ended.
        live = {number for (number,) in await self._read("SELECT number FROM sessions WHERE NOT ended_ms")}
        adopted = 0
        for function, known in zip(functions, writers, strict=True):
            for gone in known - live:  # Whoever fenced it has died before it came here.
                await function.fence(gone)
            adopted += await function.adopt(session)
        return adopted

    # Rows for egresses.

    async def open_batch(self, session: int, egress: str, limit: int) -> list[Batch]:
        batches = [await function.open_batch(session, egress, limit) for function in await self._all()]
        return [batch for batch in batches if batch is not None]

    async def refuse_rows(self, session: int, refused: Mapping[int, str], now_ms: int) -> None:
        for function, numbers in await self._by_function(refused):
            await function.refuse_rows(session, {number: refused[number] for number in numbers}, now_ms)

    async def close_batch(self, session: int, egress: str, batch: Batch) -> None:
        for function in await self._all():
            if function.number == batch.lane:
                await function.close_batch(session, egress, batch)

    # Dead letters.

    async def dead_letters(self, *, after: int = 0, limit: int = 1_000) -> list[DeadLetter]:
        found = await self._read(
            "SELECT number, died_ms, data FROM rejected WHERE number > ? ORDER BY number LIMIT ?", after, limit
        )
        letters = [_rejected_letter(*row) for row in found]
        for function in await self._all():
            letters += function.dead_letters(after, limit)
        return letters[:limit]  # In order: functions are numbered, and their letters behind their own number.

    async def redrive(self, session: int, numbers: Collection[int]) -> int:
        return sum([await function.redrive(session, some) for function, some in await self._by_function(numbers)])

    async def discard(self, session: int, numbers: Collection[int]) -> int:
        def work(transaction: Transaction) -> int:
            self._check_session(transaction, session)
            return sum(transaction.execute("DELETE FROM rejected WHERE number = ?", number) for number in numbers)

        discarded = await self._write(work)
        return discarded + sum(
            [await function.discard(session, some) for function, some in await self._by_function(numbers)]
        )

    # Work that one process does for all.

    async def claim(self, session: int, name: str) -> bool:
        def work(transaction: Transaction) -> bool:
            self._check_session(transaction, session)
            transaction.execute(
                "INSERT INTO claims VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET session = excluded.session "
                "WHERE session NOT IN (SELECT number FROM sessions WHERE NOT ended_ms)",
                name,
                session,
            )
            (owner,) = transaction.one("SELECT session FROM claims WHERE name = ?", name)
            return bool(owner == session)

        if await self._read(
            "SELECT 1 FROM claims WHERE name = ? AND session IN "
            "(SELECT number FROM sessions WHERE NOT ended_ms AND number <> ?)",
            name,
            session,
        ):
            return False  # Whoever asks again and again writes nothing.
        return await self._write(work)

    async def position(self, ingress: str) -> Any:
        found = await self._read("SELECT position FROM positions WHERE ingress = ?", ingress)
        return decode_position(found[0][0]) if found else None

    async def keep_position(
        self, session: int, ingress: str, position: Any, rejected: Sequence[RejectedRecord] = (), now_ms: int = 0
    ) -> None:
        data = encode_position(position)
        letters = [encode_rejected(record) for record in rejected]

        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            transaction.execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", ingress, data)
            for letter in letters:
                transaction.execute("INSERT INTO rejected (died_ms, data) VALUES (?, ?)", now_ms, letter)

        await self._write(work)

    # Upkeep.

    async def pending(self) -> Pending:
        counts = [function.pending() for function in await self._all()]
        return Pending(*(sum(column) for column in zip(Pending(0, 0, 0), *counts, strict=True)))

    async def purge(self, past: Past) -> int:
        forgotten = [await function.purge(past) for function in await self._all()]
        statement = "FROM sessions WHERE ended_ms BETWEEN 1 AND ?"
        if await self._read(f"SELECT 1 {statement} LIMIT 1", past.sessions_ms):
            forgotten.append(
                await self._write(lambda transaction: transaction.execute(f"DELETE {statement}", past.sessions_ms))
            )
        return max(forgotten, default=0)

    async def close(self) -> None:
        for function in self._functions.values():
            await function.close()
        await self._shared.close()

    # The files.

    async def _read(self, statement: str, *arguments: object) -> list[Any]:
        """From the file of all."""
        await self._shared.open()
        return self._shared.read(statement, *arguments)

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        await self._shared.open()
        return await self._shared.write(work)

    async def _existing(self, typename: str) -> _Function | None:
        """The file of a function type, if anything was ever written for that."""
        if (function := self._functions.get(typename)) is not None:
            await function.open()
            return function
        for (number,) in await self._read("SELECT number FROM functions WHERE typename = ?", typename):
            return await self._opened(typename, number)
        return None

    async def _made(self, typename: str) -> _Function:
        """The file of a function type, for somebody who will write to it."""
        function = await self._existing(typename)
        while function is None:
            await self._write(
                lambda transaction: transaction.execute(
                    "INSERT OR IGNORE INTO functions (typename) VALUES (?)", typename
                )
            )
            function = await self._existing(typename)
        return function

    async def _all(self) -> list[_Function]:
        found = await self._read("SELECT typename, number FROM functions ORDER BY number")
        return [await self._opened(typename, number) for typename, number in found]

    async def _by_function(self, numbers: Iterable[int]) -> list[tuple[_Function, list[int]]]:
        found: dict[int, list[int]] = {}
        for number in numbers:
            found.setdefault(number >> _NUMBER_BITS, []).append(number)
        return [(function, found[function.number]) for function in await self._all() if function.number in found]

    async def _opened(self, typename: str, number: int) -> _Function:
        function = self._functions.get(typename)
        if function is None:
            path = self._directory / "functions" / f"{quote(typename, safe='')}.sqlite"
            function = self._functions[typename] = _Function(path, typename, number, self._is_live)
        await function.open()
        return function

    def _is_live(self, session: int) -> bool:
        """For the thread that writes a file."""
        return bool(self._shared.read_apart("SELECT 1 FROM sessions WHERE number = ? AND NOT ended_ms", session))

    @staticmethod
    def _check_session(transaction: Transaction, session: int) -> None:
        if transaction.one("SELECT 1 FROM sessions WHERE number = ? AND NOT ended_ms", session) is None:
            raise fenced(session)


# The file of one function type.


class _Function:
    """State, answers, messages, rows, promises and dead letters of the addresses of one function type.

    A session is entered as a writer with the first thing it writes, if the file of all does not have it as fenced. Who
    fences it notes that there first, and then takes it off here: so whoever has entered it before is taken off, and
    whoever comes later reads the note.
    """

    def __init__(self, path: Path, typename: str, number: int, is_live: Callable[[int], bool]) -> None:
        """`is_live` tells of a session whether it is not fenced, to the thread that writes."""
        self.typename = typename
        self.number = number
        self._is_live = is_live

        def prepare(transaction: Transaction) -> None:
            for table, first in (("messages", 0), ("emitted", _FIRST_ROW)):
                if transaction.one("SELECT 1 FROM sqlite_sequence WHERE name = ?", table) is None:
                    last = (number << _NUMBER_BITS) + first
                    transaction.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", table, last)

        self._file = File(path, _FUNCTION_SCHEMA, prepare)
        self.open = self._file.open
        self.close = self._file.close

    async def fence(self, session: int) -> None:
        def work(transaction: Transaction) -> None:
            if transaction.execute("DELETE FROM writers WHERE session = ?", session):
                transaction.execute("INSERT OR IGNORE INTO ended VALUES (?)", session)

        await self._file.write(work)

    def writers(self) -> set[int]:
        return {session for (session,) in self._file.read("SELECT session FROM writers")}

    def _check_session(self, transaction: Transaction, session: int) -> None:
        if session in transaction.allowed:
            return
        if transaction.one("SELECT 1 FROM writers WHERE session = ?", session) is None:
            if not self._is_live(session):
                raise fenced(session)
            transaction.execute("INSERT INTO writers VALUES (?)", session)
        transaction.allowed.add(session)

    # Addresses.

    def load(self, id: str, key: str, *, rows: bool) -> Loaded:
        if rows:
            with self._file.snapshot():
                found = self._file.read("SELECT key, value FROM rows WHERE id = ?", id)
                return self._load(id, key)._replace(rows=dict(found))
        return self._load(id, key)

    def _load(self, id: str, key: str) -> Loaded:
        ((version, value, status, body),) = self._file.read(
            "SELECT version, value, status, body FROM (SELECT 1) LEFT JOIN state ON state.id = ? "
            "LEFT JOIN answers ON answers.id = ? AND key = ?",
            id,
            id,
            key,
        )
        return Loaded(value or b"", version or 0, None if status is None else Answer(status, body), {})

    async def commit(self, commits: Sequence[Commit]) -> list[Committed]:
        encoded = [_Encoded.of(commit) for commit in commits]

        def work(transaction: Transaction) -> list[Committed]:
            # All checks come first: once anything is written, nothing may be refused.
            for commit in commits:
                self._check_session(transaction, commit.session)
                _check(transaction, commit)
            return [_carry_out(transaction, each) for each in encoded]

        return await self._file.write(work)

    def ids(self, prefix: str, after: str, limit: int) -> list[str]:
        end = after_prefix(prefix)
        found = self._file.read(
            "SELECT id FROM state WHERE id > ? AND id >= ? AND (? IS NULL OR id < ?) ORDER BY id LIMIT ?",
            after,
            prefix,
            end,
            end,
            limit,
        )
        return [id for (id,) in found]

    # Promises.

    async def resolve(self, session: int, id: str, name: str, value: bytes, now_ms: int) -> bool:
        def work(transaction: Transaction) -> bool:
            self._check_session(transaction, session)
            statement = "INSERT OR IGNORE INTO promises VALUES (?, ?, ?, ?)"
            return transaction.execute(statement, id, name, value, now_ms) == 1

        return await self._file.write(work)

    def resolution(self, id: str, name: str) -> bytes | None:
        found = self._file.read("SELECT value FROM promises WHERE id = ? AND name = ?", id, name)
        return found[0][0] if found else None

    # Messages.

    def due(self, session: int, now_ms: int, limit: int) -> list[Kept]:
        with self._file.snapshot():
            at_once = self._file.read(
                f"SELECT {_KEPT} FROM messages WHERE session = ? AND due_ms = 0 ORDER BY number LIMIT ?", session, limit
            )
            delayed = self._file.read(
                f"SELECT {_KEPT} FROM messages WHERE session = ? AND due_ms BETWEEN 1 AND ? "
                "ORDER BY due_ms, number LIMIT ?",
                session,
                now_ms,
                limit,
            )
        return [self._kept(row) for row in (*at_once, *delayed)]

    def next_due_ms(self, session: int, after_ms: int) -> int | None:
        ((due_ms,),) = self._file.read(
            "SELECT min(due_ms) FROM messages WHERE session = ? AND due_ms > ?", session, max(0, after_ms)
        )
        return None if due_ms is None else int(due_ms)

    async def done(self, session: int, numbers: Collection[int]) -> None:
        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            for number in numbers:
                transaction.execute("DELETE FROM messages WHERE number = ?", number)

        await self._file.write(work)

    async def failed(self, session: int, number: int) -> None:
        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            transaction.execute("UPDATE messages SET attempts = attempts + 1 WHERE number = ?", number)

        await self._file.write(work)

    async def bury(self, session: int, number: int, reason: str, now_ms: int) -> None:
        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            transaction.execute(
                "INSERT INTO dead SELECT number, sender, '', ?, attempts + 1, ?, data FROM messages WHERE number = ?",
                reason,
                now_ms,
                number,
            )
            transaction.execute("DELETE FROM messages WHERE number = ?", number)

        await self._file.write(work)

    async def adopt(self, session: int) -> int:
        if not self._file.read("SELECT 1 FROM ended LIMIT 1"):
            return 0  # Whoever looks again and again writes nothing.

        def work(transaction: Transaction) -> int:
            self._check_session(transaction, session)
            adopted = transaction.execute(
                "UPDATE messages SET session = ? WHERE session IN (SELECT session FROM ended)", session
            )
            transaction.execute("DELETE FROM ended")  # They write nothing more, and nothing joins a lane of theirs.
            return adopted

        return await self._file.write(work)

    # Rows for egresses.

    async def open_batch(self, session: int, egress: str, limit: int) -> Batch | None:
        if not self._file.read("SELECT 1 FROM emitted WHERE egress = ? LIMIT 1", egress):
            return None

        def work(transaction: Transaction) -> Batch | None:
            self._check_session(transaction, session)
            number = _open_batch(transaction, egress, limit)
            found = transaction.all(
                "SELECT number, data FROM emitted WHERE egress = ? AND batch = ? ORDER BY number", egress, number
            )
            rows = [(row, decode_row(data)) for row, data in found]
            return Batch(self.number, number, rows) if rows else None

        return await self._file.write(work)

    async def refuse_rows(self, session: int, refused: Mapping[int, str], now_ms: int) -> None:
        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            for number, reason in refused.items():
                transaction.execute(
                    "INSERT INTO dead SELECT number, sender, egress, ?, 1, ?, data FROM emitted WHERE number = ?",
                    reason,
                    now_ms,
                    number,
                )
                transaction.execute("DELETE FROM emitted WHERE number = ?", number)

        await self._file.write(work)

    async def close_batch(self, session: int, egress: str, batch: Batch) -> None:
        def work(transaction: Transaction) -> None:
            self._check_session(transaction, session)
            transaction.execute("DELETE FROM emitted WHERE egress = ? AND batch = ?", egress, batch.number)

        await self._file.write(work)

    # Dead letters.

    def dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        found = self._file.read(
            "SELECT number, sender, egress, reason, attempts, died_ms, data FROM dead WHERE number > ? "
            "ORDER BY number LIMIT ?",
            after,
            limit,
        )
        return [
            DeadLetter(
                number,
                Address(self.typename, sender),
                Emitted(egress, decode_row(data)) if egress else decode_outgoing(data),
                reason,
                attempts,
                died_ms,
            )
            for number, sender, egress, reason, attempts, died_ms, data in found
        ]

    async def redrive(self, session: int, numbers: Collection[int]) -> int:
        def work(transaction: Transaction) -> int:
            self._check_session(transaction, session)
            return sum(self._redrive(transaction, session, number) for number in numbers)

        return await self._file.write(work)

    def _redrive(self, transaction: Transaction, session: int, number: int) -> int:
        found = transaction.one("DELETE FROM dead WHERE number = ? RETURNING sender, egress, data", number)
        if found is None:
            return 0
        sender, egress, data = found
        if egress:
            transaction.execute(_EMIT, egress, sender, data)
        else:
            outgoing = decode_outgoing(data)._replace(due_ms=0, token="")
            _keep(transaction, session, _EncodedMessage.of(Address(self.typename, sender), outgoing))
        return 1

    async def discard(self, session: int, numbers: Collection[int]) -> int:
        def work(transaction: Transaction) -> int:
            self._check_session(transaction, session)
            return sum(transaction.execute("DELETE FROM dead WHERE number = ?", number) for number in numbers)

        return await self._file.write(work)

    async def purge(self, past: Past) -> int:
        tables = (
            ("answers", "id, key", "until_ms", past.answers_ms),
            ("promises", "id, name", "kept_ms", past.promises_ms),
        )
        return max([await self._purge(*table) for table in tables])

    async def _purge(self, table: str, key: str, time: str, past_ms: int) -> int:
        if not self._file.read(f"SELECT 1 FROM {table} WHERE {time} < ? LIMIT 1", past_ms):
            return 0
        statement = (
            f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {time} < ? ORDER BY {time} LIMIT ?)"
        )
        return await self._file.write(lambda transaction: transaction.execute(statement, past_ms, PURGED_AT_ONCE))

    def pending(self) -> Pending:
        ((messages, delayed, rows),) = self._file.read(
            "SELECT (SELECT count(*) FROM messages WHERE due_ms = 0), "
            "(SELECT count(*) FROM messages WHERE due_ms > 0), (SELECT count(*) FROM emitted)"
        )
        return Pending(messages, delayed, rows)

    def _kept(self, row: tuple[int, str, int, bytes]) -> Kept:
        number, sender, attempts, data = row
        return Kept(number, Address(self.typename, sender), decode_outgoing(data), attempts)


def _rejected_letter(number: int, died_ms: int, data: bytes) -> DeadLetter:
    record = decode_rejected(data)
    return DeadLetter(number, None, record, record.reason, 1, died_ms)


# The parts of a commit.

_EMIT = "INSERT INTO emitted (egress, sender, data) VALUES (?, ?, ?)"


class _EncodedMessage(NamedTuple):
    sender: Address
    outgoing: Outgoing
    lane: int
    data: bytes

    @classmethod
    def of(cls, sender: Address, outgoing: Outgoing) -> _EncodedMessage:
        return cls(sender, outgoing, lane_of(sender, outgoing), encode_outgoing(outgoing))


class _Encoded(NamedTuple):
    """A commit with its bytes made, so that nobody waits at the file for that."""

    commit: Commit
    messages: Sequence[_EncodedMessage]
    emitted: Sequence[tuple[str, str, bytes]]

    @classmethod
    def of(cls, commit: Commit) -> _Encoded:
        return cls(
            commit,
            [_EncodedMessage.of(commit.address, outgoing) for outgoing in commit.outgoing],
            [(egress, commit.id, encode_row(row)) for egress, row in commit.emitted],
        )


def _check(transaction: Transaction, commit: Commit) -> None:
    """Raise what the commit is refused with."""
    if commit.version is not None:
        found = transaction.one("SELECT version FROM state WHERE id = ?", commit.id)
        version = 0 if found is None else found[0]
        if version != commit.version:
            raise VersionMismatch(commit.address, f"it has version {version}, and {commit.version} was expected")
    if _is_answered(transaction, commit):
        raise VersionMismatch(commit.address, f"key {commit.key!r} is answered already")


def _is_answered(transaction: Transaction, commit: Commit) -> bool:
    if not commit.key or commit.answer is None:
        return False
    return transaction.one("SELECT 1 FROM answers WHERE id = ? AND key = ?", commit.id, commit.key) is not None


def _carry_out(transaction: Transaction, encoded: _Encoded) -> Committed:
    commit = encoded.commit
    version = _change(transaction, commit) if commit.changes_state else commit.version or 0
    if commit.key and commit.answer is not None:
        transaction.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)", commit.id, commit.key, *commit.answer, commit.answer_until_ms
        )
    for name in commit.promises:
        transaction.execute("DELETE FROM promises WHERE id = ? AND name = ?", commit.id, name)
    for token in commit.cancelled:
        _cancel(transaction, commit.id, token)
    kept = [_keep(transaction, commit.session, message) for message in encoded.messages]
    for emitted in encoded.emitted:
        transaction.execute(_EMIT, *emitted)
    return Committed(version, [each for each in kept if each is not None])


def _change(transaction: Transaction, commit: Commit) -> int:
    """Write the state and the rows; returns the version the address has then."""
    for key, row in commit.rows.items():
        if row is None:
            transaction.execute("DELETE FROM rows WHERE id = ? AND key = ?", commit.id, key)
        else:
            transaction.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", commit.id, key, row)
    transaction.execute("UPDATE versions SET last = last + 1")
    (version,) = transaction.one("SELECT last FROM versions")
    # The value stays what it is when only rows have changed.
    transaction.execute(
        "INSERT INTO state VALUES (?, ?, coalesce(?, x'')) "
        "ON CONFLICT (id) DO UPDATE SET version = excluded.version, value = coalesce(?, value)",
        commit.id,
        version,
        commit.value,
        commit.value,
    )
    if not commit.value:
        removed = transaction.execute(
            "DELETE FROM state WHERE id = ? AND value = x'' "
            "AND NOT EXISTS (SELECT 1 FROM rows WHERE rows.id = state.id)",
            commit.id,
        )
        if removed:
            return 0
    return int(version)


def _cancel(transaction: Transaction, id: str, token: str) -> None:
    transaction.execute("DELETE FROM messages WHERE sender = ? AND token = ?", id, token)


def _keep(transaction: Transaction, session: int, message: _EncodedMessage) -> Kept | None:
    """Add a message; None if it is not for this session to deliver it now."""
    sender, outgoing, lane, data = message
    if outgoing.token:
        _cancel(transaction, sender.id, outgoing.token)
    previous = None
    if not outgoing.due_ms:
        # The lane stays with whoever has what is before: two who deliver could change the order.
        previous = transaction.one(
            "SELECT number, session FROM messages WHERE lane = ? AND due_ms = 0 ORDER BY number DESC LIMIT 1", lane
        )
    last, owner = previous or (0, session)
    number = transaction.insert(
        "INSERT INTO messages (session, lane, due_ms, sender, token, data) VALUES (?, ?, ?, ?, ?, ?)",
        owner,
        lane,
        outgoing.due_ms,
        sender.id,
        outgoing.token,
        data,
    )
    if outgoing.due_ms or owner != session:
        return None
    return Kept(number, sender, outgoing, 0, last)


def _open_batch(transaction: Transaction, egress: str, limit: int) -> int:
    """The number of the batch that has rows, which may be a new one."""
    (last,) = transaction.one("SELECT last FROM batches WHERE egress = ?", egress) or (0,)
    if last and transaction.one("SELECT 1 FROM emitted WHERE egress = ? AND batch = ?", egress, last) is not None:
        return int(last)
    transaction.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", egress, last + 1)
    transaction.execute(
        "UPDATE emitted SET batch = ? WHERE number IN "
        "(SELECT number FROM emitted WHERE egress = ? AND batch = 0 ORDER BY number LIMIT ?)",
        last + 1,
        egress,
        limit,
    )
    return int(last) + 1
