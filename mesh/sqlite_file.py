"""A SQLite file that many write: each write waits for its turn, and all that wait are made durable by one sync.

What always holds: a write is durable when it returns (write-ahead log, synchronous=FULL); writes of one process are
done by one thread, in the order they were asked for, as many as wait in one transaction; processes take turns at a
lock of the operating system. A write that raises a PenstockError has changed nothing, and does not concern the others.

Reads are done where they are asked for, on the event loop: a page that is cached takes some ten microseconds, a way
through a thread several times as much. Nobody waits for the lock on the event loop, and no write for longer than
`HELD_MAX_S`: a process that is stopped (not killed) in the instant of a write keeps all others from writing until it
goes on or is killed. They are told so, and read meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from penstock.errors import PenstockError, Unavailable
from penstock.files import storage_errors
from penstock.mesh.store import SCHEMA, newer_schema, unavailable

T = TypeVar("T")

_GROUP_MAX = 256
"""Writes in one transaction. More would save nothing: a sync is divided by this many already."""
HELD_MAX_S: Final = 5.0
"""A turn at the lock takes milliseconds, and the queue has as many as there are processes."""
_READ_BUSY_S = 1.0
"""Readers wait for nobody, but for the instants in which SQLite itself puts a file in order."""


class Held(Unavailable):
    """Another process has held a file of the store for too long. Nothing was written."""

    retry_after_s: Final = HELD_MAX_S

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            "PEN0830",
            f"{path} has been held for more than {HELD_MAX_S:g} s by {holder}, so that nobody else can write. Nothing "
            "was written. Let that process go on, or end it: what it has committed is safe, and requests with a key "
            "can be sent again.",
        )


class _Job(NamedTuple):
    """A write that waits for its turn, and who waits for it."""

    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    claimed: threading.Lock
    """Taken once: by the thread that carries it out, or by who gives it up."""

    def claim(self) -> bool:
        return self.claimed.acquire(blocking=False)


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
        """`prepare` is run by each process that writes, before it does: in the transaction that makes the tables if
        there are none."""
        self._path = path
        self._schema = schema
        self._prepare = prepare
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._opening = asyncio.Lock()
        self._reader: sqlite3.Connection | None = None
        self._lock = -1
        self._queued_s: float | None = None
        """Since when the thread waits for the lock."""

    async def open(self) -> None:
        """Make it ready for reads and writes. Waits for the lock only if there are no tables yet. Does nothing when it
        is open. Raises Unavailable, Refused for a later schema, and what `storage_errors` makes of a bad place; it can
        be tried again then, and is to be closed as one that is open."""
        if self._reader is not None:
            return
        async with self._opening:
            if self._reader is not None:
                return  # Somebody else has done it meanwhile.
            self._open_lock()
            if not await asyncio.to_thread(self._look):
                await self.write(lambda _: None)
            # Here and not in a thread: what that opens for one who is cancelled meanwhile is closed by nobody.
            with self._errors():
                self._reader = self._connect(_READ_BUSY_S)

    def read(self, statement: str, *arguments: object) -> list[Any]:
        assert self._reader is not None, "open() comes first"
        with self._errors():
            return self._reader.execute(statement, arguments).fetchall()

    def read_apart(self, statement: str, *arguments: object) -> list[Any]:
        """The same for another thread than that of the event loop."""
        with self._errors(), closing(self._connect(_READ_BUSY_S)) as connection:
            return connection.execute(statement, arguments).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        assert self._reader is not None, "open() comes first"
        with self._errors():
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("COMMIT")

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Carry out `work` in a transaction, with others that wait. It changes nothing if it raises a PenstockError.

        Raises Held when another process does not let go of the file: nothing was changed."""
        if self._held_s() > HELD_MAX_S:
            raise Held(self._path, self._holder())  # Others wait, and have waited for long enough.
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"store {self._path.stem}", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future(), loop, threading.Lock())
        patience = _Patience(job, self)
        self._jobs.put(job)
        try:
            written: T = await job.future
        finally:
            patience.end()
        return written

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            # What waits for the lock can't be woken. It writes nothing any more, and ends with the process.
            await asyncio.to_thread(self._thread.join, HELD_MAX_S)
        elif self._lock >= 0:
            os.close(self._lock)
        if self._reader is not None:
            self._reader.close()

    # Who gives up.

    def _held_s(self) -> float:
        """How long the thread has been waiting for the lock."""
        queued_s = self._queued_s
        return 0.0 if queued_s is None else time.monotonic() - queued_s

    def give_up(self, job: _Job) -> float | None:
        """End a write that has waited for the lock for too long; or return how long it may still wait."""
        left_s = HELD_MAX_S - self._held_s()
        if left_s > 0:
            return left_s
        if job.claim() and not job.future.done():
            job.future.set_exception(Held(self._path, self._holder()))
        return None

    def _holder(self) -> str:
        """Who has the lock, as it has written into it."""
        written = os.pread(self._lock, 20, 0).split()
        if not written:
            return "another process"
        status = Path("/proc", written[0].decode(), "stat")
        with suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[0] in "Tt":
                return f"process {int(written[0])}, which is stopped"
        return f"process {int(written[0])}"

    # The thread that writes.

    def _run(self) -> None:
        writer: sqlite3.Connection | None = None
        while (job := self._jobs.get()) is not None:
            group: Sequence[_Job] = [job]
            try:
                with self._errors(), self._locked():
                    writer = writer or self._prepared()
                    group = self._joining(job)
                    outcomes = self._carry_out(writer, group)
            except Exception as error:  # noqa: BLE001  # Of a file that can't be had: each of them is told.
                outcomes = [error] * len(group)
            _tell(group, outcomes)
        if writer is not None:
            writer.close()
        os.close(self._lock)

    def _joining(self, job: _Job | None) -> list[_Job]:
        """This one and all that wait behind it, but for those that were given up."""
        group: list[_Job] = []
        while job is not None:
            if job.claim():
                group.append(job)
            if len(group) == _GROUP_MAX:
                return group
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return group
        self._jobs.put(None)  # The end comes after what was before it.
        return group

    def _carry_out(self, writer: sqlite3.Connection, group: Sequence[_Job]) -> list[object]:
        outcomes: list[object] = [None] * len(group)
        culprit = -1
        if not group:
            return outcomes
        try:
            with self._errors(), self._transaction(writer) as transaction:
                for culprit, job in enumerate(group):
                    outcomes[culprit] = _attempt(job, transaction)
        except PenstockError as error:
            return [error] * len(group)
        except Exception as error:  # noqa: BLE001 - of one whose arguments don't fit: the others go without it.
            outcomes = self._carry_out(writer, [*group[:culprit], *group[culprit + 1 :]])
            outcomes.insert(culprit, error)
        return outcomes

    # SQLite.

    def _open_lock(self) -> None:
        if self._lock >= 0:
            return  # It was opened before, and what came after it failed.
        with storage_errors(self._path, "opening it"):
            self._lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)

    def _look(self) -> bool:
        """Whether there are tables."""
        ((found,),) = self.read_apart("PRAGMA user_version")
        if found > SCHEMA:
            raise newer_schema(str(self._path), found)
        return bool(found)

    def _connect(self, busy_s: float) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=busy_s, isolation_level=None, check_same_thread=False)

    def _prepared(self) -> sqlite3.Connection:
        """The connection that writes."""
        writer = self._connect(HELD_MAX_S)
        try:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("PRAGMA synchronous = FULL")
            with self._transaction(writer) as transaction:
                self._make(transaction)
                self._prepare(transaction)
        except BaseException:
            writer.close()
            raise
        return writer

    def _make(self, transaction: Transaction) -> None:
        (found,) = transaction.one("PRAGMA user_version")
        if found > SCHEMA:
            raise newer_schema(str(self._path), found)
        if found == 0:
            for statement in self._schema.split(";\n"):
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
        self._queued_s = time.monotonic()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            self._queued_s = None
        try:
            os.pwrite(self._lock, b"%-20d" % os.getpid(), 0)
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise unavailable(str(self._path), error) from error


class _Patience:
    """Of one who waits for a write: as long as the lock is not held for too long."""

    def __init__(self, job: _Job, file: File) -> None:
        self._job = job
        self._file = file
        self._timer = job.loop.call_later(HELD_MAX_S, self._look)

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._file.give_up(self._job)
        if left_s is not None:
            self._timer = self._job.loop.call_later(left_s, self._look)


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
