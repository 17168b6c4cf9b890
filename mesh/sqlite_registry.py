"""The embedded registry: one SQLite file, which hosts and callers of one machine share.

What always holds: a renewal is one short transaction; a look is one query; all of it runs in a thread of its own, so
that a file that is locked or slow holds up no request. The file may be deleted or replaced at any moment: what reads
it finds that out by its inode, and what writes to it makes a new one, into which every host puts itself again with
its next renewal. That is also why it has no write-ahead log, a second file that could outlive it. Nothing in it is
worth an fsync.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.registry import POLL_S, Endpoint, Lease, Listing, RenewingLease, Sighting, View, Watch

T = TypeVar("T")

APPLICATION_ID: Final = 0x504E5352
"""Marks the file as one of ours, so that no other database is written into."""
FORMAT: Final = 1
BUSY_S: Final = 1.0
"""What holds the lock longer than so is stuck: a transaction here takes a millisecond."""
FORGOTTEN_TTLS: Final = 20
"""An endpoint that was not renewed for so many times its TTL is deleted, by whoever registers next."""

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS origin (origin TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS endpoints (
    name TEXT PRIMARY KEY,
    endpoint TEXT NOT NULL,
    ttl_ms INTEGER NOT NULL,
    renewed_ms INTEGER NOT NULL,
    renewal INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO origin SELECT '%s' WHERE NOT EXISTS (SELECT 1 FROM origin);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_WRITE: Final = """
INSERT INTO endpoints (name, endpoint, ttl_ms, renewed_ms, renewal) VALUES (?, ?, ?, ?, 1)
ON CONFLICT (name) DO UPDATE SET
    endpoint = excluded.endpoint, ttl_ms = excluded.ttl_ms, renewed_ms = excluded.renewed_ms, renewal = renewal + 1
"""
_SWEEP: Final = "DELETE FROM endpoints WHERE renewed_ms + ttl_ms * ? < ?"
_REMOVE: Final = "DELETE FROM endpoints WHERE name = ?"
_LIST: Final = "SELECT endpoint, ttl_ms, renewed_ms, renewal, origin FROM origin LEFT JOIN endpoints ON TRUE"

_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class SqliteRegistry:
    """A `Registry` in the file `path`. It is made by the first that writes."""

    def __init__(
        self,
        path: Path,
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = _File(path, wall)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry")
        self._watch = Watch(self._listing, poll_s=poll_s, clock=clock)
        self._leases: list[RenewingLease] = []

    async def open(self) -> None:
        await self._in_thread(self._file.make)
        await self._watch.start()

    async def register(self, endpoint: Endpoint, ttl_s: float) -> Lease:
        lease = RenewingLease(endpoint, ttl_s, write=self._write, remove=self._remove)
        await lease.start()
        self._leases.append(lease)
        return lease

    async def forget(self, name: str) -> None:
        await self._remove(name)

    def view(self) -> View:
        return self._watch.view()

    async def changed(self, number: int) -> View:
        return await self._watch.changed(number)

    async def close(self) -> None:
        """Leases that were not released run out."""
        for lease in self._leases:
            await lease.stop()
        await self._watch.close()
        await self._in_thread(self._file.close)
        self._thread.shutdown(wait=False)

    async def _listing(self) -> Listing:
        return await self._in_thread(self._file.listing)

    async def _write(self, endpoint: Endpoint, ttl_s: float) -> None:
        await self._in_thread(lambda: self._file.write(endpoint, ttl_s))
        await self._watch.refresh()

    async def _remove(self, name: str) -> None:
        await self._in_thread(lambda: self._file.remove(name))
        await self._watch.refresh()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _File:
    """The file itself, for one thread."""

    def __init__(self, path: Path, wall: Callable[[], float]) -> None:
        self._path = path
        self._wall = wall
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    def make(self) -> None:
        """Raises ConfigurationError for a place where there can be no registry."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = self._opened(create=True)
            found = connection.execute("PRAGMA application_id").fetchone()[0]
        except (OSError, sqlite3.OperationalError) as error:
            if _passes(error):
                return  # The first look says so, and the next ones try again.
            raise ConfigurationError(
                "PEN0871",
                f"There can be no registry at {self._path}: {error}. Name a file in a directory that hosts and callers "
                "may write to.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._foreign(str(error)) from error
        if found != APPLICATION_ID:
            self.close()
            raise self._foreign(f"its application id is {found:#x}")

    def listing(self) -> Listing:
        try:
            rows = self._opened(create=False).execute(_LIST).fetchall()
        except sqlite3.Error as error:
            raise self._lost(error) from error
        now_ms = self._now_ms()
        origin = rows[0][4] if rows else ""
        return Listing([_sighting(row, now_ms) for row in rows if row[0] is not None], origin)

    def write(self, endpoint: Endpoint, ttl_s: float) -> None:
        now_ms = self._now_ms()
        text = _encoder.encode(endpoint._asdict() | {"labels": dict(endpoint.labels)}).decode()
        try:
            connection = self._opened(create=True)
            with connection:
                connection.execute(_WRITE, (endpoint.name, text, round(ttl_s * 1000), now_ms))
                connection.execute(_SWEEP, (FORGOTTEN_TTLS, now_ms))
        except sqlite3.Error as error:
            raise self._lost(error) from error

    def remove(self, name: str) -> None:
        try:
            connection = self._opened(create=True)
            with connection:
                connection.execute(_REMOVE, (name,))
        except sqlite3.Error as error:
            raise self._lost(error) from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self, *, create: bool) -> sqlite3.Connection:
        """The connection to the file that is at the path now, which need not be the one that was."""
        inode = _inode(self._path)
        if self._connection is not None and inode == self._inode:
            return self._connection
        self.close()
        mode = "rwc" if create else "rw"
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, check_same_thread=False
        )
        try:
            if create and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                connection.executescript(_SCHEMA % secrets.token_hex(8))
            connection.execute("PRAGMA synchronous = OFF")
        except sqlite3.Error:
            connection.close()
            raise
        self._connection, self._inode = connection, _inode(self._path)
        return connection

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)

    def _lost(self, error: sqlite3.Error) -> Unavailable:
        self.close()  # Whatever it was, the next one begins with a connection of which nothing bad is known.
        return Unavailable(
            "PEN0870",
            f"The registry {self._path} can't be used at the moment: {error}. If it stays so, delete the file: every "
            "host puts itself into a new one.",
        )

    def _foreign(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            "PEN0871",
            f"{self._path} is not a registry: {why}. Name another file; this one was left as it is.",
        )


def _sighting(row: tuple[str, int, int, int, str], now_ms: int) -> Sighting:
    text, ttl_ms, renewed_ms, renewal, _ = row
    fields = _decoder.decode(text)
    # A later release may say more of its hosts, while they are replaced one by one.
    known = {name: fields[name] for name in Endpoint._fields if name in fields}
    endpoint = Endpoint(**known | {"functions": frozenset(fields["functions"])})
    return Sighting(endpoint, ttl_ms / 1000, renewal, (now_ms - renewed_ms) / 1000)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - asked before every query, and a third of the cost of `Path.stat`.
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _passes(error: Exception) -> bool:
    """Whether another process merely holds the file at the moment."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )
