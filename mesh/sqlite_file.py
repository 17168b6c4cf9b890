"""A SQLite file that many write: each write waits for its turn, and all that wait are made durable by one sync.

What always holds: a write is durable when it returns (write-ahead log, synchronous=FULL); writes of one process are
done by one thread, in the order they were asked for, as many as wait in one transaction; processes take turns at a
lock of the operating system. A write that raises a PenstockError has changed nothing, and does not concern the others.

Reads are done where they are asked for, on the event loop: a page that is cached takes some ten microseconds, a way
through a thread several times as much. A process that is stopped (not killed) in the instant of a write holds up all
others that write the same file until it goes on or is killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from penstock.errors import PenstockError
from penstock.files import storage_errors
from penstock.mesh.store import SCHEMA, newer_schema, unavailable

T = TypeVar("T")

_GROUP_MAX = 256
"""Writes in one transaction. More would save nothing: a sync is divided by this many already."""
_BUSY_S = 30.0
"""SQLite itself waits this long. The lock comes first, so only its own housekeeping can hold somebody up."""


class _Job(NamedTuple):
    """A write that waits for its turn, and who waits for it."""

    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Transaction:
    """One transaction under way, shared by the writes of a group."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.allowed: set[int] = set()
        """Sessions that were found not to be fenced. A transaction has the file for itself, so once is enough."""

    def execute(self, statement: str, *arguments: object) -> int:
        """How many rows it has changed."""
        return self._connection.execute(statement, arguments).rowcount

    def insert(self, statement: str, *arguments: object) -> int:
        """The number of the row it has added."""
        number = self._connection.execute(statement, arguments).lastrowid
        assert number is not None
        return number

    def one(self, statement: str, *arguments: object) -> Any:
        """The first row, or None."""
        return self._connection.execute(statement, arguments).fetchone()

    def all(self, statement: str, *arguments: object) -> list[Any]:
        return self._connection.execute(statement, arguments).fetchall()


class File:
    """A database file: read on the thread of the caller, written by a thread of its own, group by group."""

    def __init__(self, path: Path, schema: str, prepare: Callable[[Transaction], None] = lambda _: None) -> None:
        """`prepare` is run each time it is opened, in the transaction that makes the tables if there are none."""
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        with storage_errors(path, "opening it"):
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        with self._errors():
            self._writer = self._connect()
            with self._locked(), self._transaction(self._writer) as transaction:
                self._make(transaction, schema)
                prepare(transaction)
            self._reader = self._connect()

    def read(self, statement: str, *arguments: object) -> list[Any]:
        with self._errors():
            return self._reader.execute(statement, arguments).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        with self._errors():
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("COMMIT")

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Carry out `work` in a transaction, with others that wait. It changes nothing if it raises a PenstockError."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"store {self._path.stem}", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, future, loop))
        return await future

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
        self._reader.close()
        self._writer.close()
        os.close(self._lock)

    # The thread that writes.

    def _run(self) -> None:
        while group := self._next_group():
            _tell(group, self._carry_out(group))

    def _next_group(self) -> list[_Job]:
        """All that wait, at least one; empty at the end."""
        group: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) == _GROUP_MAX:
                break
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
        if job is None and group:
            self._jobs.put(None)  # The end comes after what was before it.
        return group

    def _carry_out(self, group: Sequence[_Job]) -> list[object]:
        outcomes: list[object] = [None] * len(group)
        culprit = -1
        try:
            with self._errors(), self._locked(), self._transaction(self._writer) as transaction:
                for culprit, job in enumerate(group):
                    outcomes[culprit] = _attempt(job, transaction)
        except PenstockError as error:
            return [error] * len(group)
        except Exception as error:  # noqa: BLE001 - of one whose arguments don't fit: the others go without it.
            outcomes = self._carry_out([*group[:culprit], *group[culprit + 1 :]]) if len(group) > 1 else []
            outcomes.insert(culprit, error)
        return outcomes

    # SQLite.

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _make(self, transaction: Transaction, schema: str) -> None:
        (found,) = transaction.one("PRAGMA user_version")
        if found > SCHEMA:
            raise newer_schema(str(self._path), found)
        if found == 0:
            for statement in schema.split(";\n"):
                transaction.execute(statement)
            transaction.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[Transaction]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = Transaction(connection)
            yield transaction
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait in the queue of the operating system. SQLite would sleep and look again, ever longer, and who has just
        written would find it free each time."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise unavailable(str(self._path), error) from error


def _attempt(job: _Job, transaction: Transaction) -> object:
    try:
        return job.work(transaction)
    except PenstockError as error:
        return error


def _tell(group: Sequence[_Job], outcomes: Sequence[object]) -> None:
    """Wake who waits, each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], object]]] = {}
    for job, outcome in zip(group, outcomes, strict=True):
        loops.setdefault(job.loop, []).append((job.future, outcome))
    for loop, told in loops.items():
        # A loop that has ended waits for nothing any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, told)


def _settle(told: Iterable[tuple[asyncio.Future[Any], object]]) -> None:
    for future, outcome in told:
        if future.done():
            continue  # Whoever waited was cancelled. It is written all the same.
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
