"""From a name to a store; and what each does when what is below it fails."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from penstock.errors import ConfigurationError, Fenced, Refused, Unavailable
from penstock.mesh.postgres_store import PostgresStore
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Commit, Committed, VersionMismatch
from penstock.mesh.stores import open_store
from tests.mesh.stores import CART, message, open_below
from tests.postgres import Server
from tests.small_disk import small_disk

# Names.


def test_another_scheme_names_no_store() -> None:
    with pytest.raises(ConfigurationError, match="PEN0825 mysql://"):
        asyncio.run(open_store("mysql://db/shop"))


def test_postgresql_needs_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without_driver(name: str, *arguments: Any) -> Any:
        if name == "penstock.mesh.postgres_store":
            raise ImportError(name)
        return known(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_driver)
    with pytest.raises(ConfigurationError, match="PEN0824"):
        asyncio.run(open_store("postgresql://localhost/shop"))


# SQLite.


def test_tables_of_a_later_release_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with sqlite3.connect(tmp_path / "mesh.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()

    with pytest.raises(Refused, match=r"PEN0823 .*mesh.sqlite has schema 7"):
        made(tmp_path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mesh.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(Unavailable, match=r"PEN0820 .*mesh.sqlite"):
        made(tmp_path)


def test_one_that_can_not_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "mesh.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(Unavailable, match="PEN0820"):
        asyncio.run(open_store(str(tmp_path)))

    assert open_below(tmp_path) == []


def made(directory: Path) -> None:
    async def main() -> None:
        store = SqliteStore(directory)
        try:
            await store.open()
        finally:
            await store.close()

    asyncio.run(main())


def test_a_write_that_can_not_be_written_spares_those_it_shares_a_sync_with(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(tmp_path)
        session = await store.begin_session("test")
        await store.commit(Commit(session, CART, "first", value=b"1"))
        far = message(b"m", due_ms=1 << 70)
        commits = [Commit(session, CART, f"id-{n}", value=b"1", outgoing=[far] if n == 3 else ()) for n in range(9)]

        outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)

        assert [isinstance(outcome, Committed) for outcome in outcomes] == [n != 3 for n in range(9)]
        assert isinstance(outcomes[3], OverflowError)
        assert await store.ids(CART, prefix="id") == [f"id-{n}" for n in range(9) if n != 3]
        await store.close()

    asyncio.run(main())


def test_a_commit_whose_caller_is_cancelled_is_made_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(tmp_path)
        session = await store.begin_session("test")
        committing = asyncio.create_task(store.commit(Commit(session, CART, "alice", value=b"1")))
        while CART not in await store.typenames():  # noqa: ASYNC110  # Until it is on its way.
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.wait([committing])
        await store.commit(Commit(session, CART, "bob", value=b"1"))
        assert set(await store.ids(CART)) >= {"bob"}
        await store.close()

    asyncio.run(main())


def test_a_full_disk_loses_nothing_and_is_survived(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", megabytes=2) as disk:

        async def main() -> None:
            store = SqliteStore(disk)
            try:
                session = await store.begin_session("test")
                await store.commit(Commit(session, CART, "alice", 0, b"1"))
                fill(disk / "filler")

                with pytest.raises(Unavailable, match="PEN0820"):
                    await store.commit(Commit(session, CART, "bob", 0, b"x" * 100_000))

                (disk / "filler").unlink()
                await store.commit(Commit(session, CART, "bob", 0, b"2"))
                assert (await store.load(CART, "alice")).value == b"1"
            finally:
                await store.close()

        asyncio.run(main())


def fill(path: Path) -> None:
    """Leave no space beside this file."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_what_a_process_has_fenced_that_died_in_the_midst_of_it_is_fenced_by_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(tmp_path)
        gone, session = await store.begin_session("gone"), await store.begin_session("next")
        await store.commit(Commit(gone, CART, "alice", 0, outgoing=[message(b"m")]))
        with sqlite3.connect(tmp_path / "mesh.sqlite") as connection:  # All that was done of it.
            connection.execute("UPDATE sessions SET ended_ms = 1 WHERE number = ?", (gone,))
        connection.close()

        assert await store.adopt(session) == 1
        with pytest.raises(Fenced):
            await store.commit(Commit(gone, CART, "alice", None, b"1"))
        await store.close()

    asyncio.run(main())


# PostgreSQL.


@pytest.mark.postgres
def test_tables_of_a_later_release_are_refused_in_postgresql(server: Server) -> None:
    async def main() -> None:
        store = PostgresStore(server.dsn, schema="later")
        await store.open()
        await store.close()
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("UPDATE later.schema SET number = 7")
        again = PostgresStore(server.dsn, schema="later")
        with pytest.raises(Refused, match=r"PEN0823 .* has schema 7"):
            await again.open()
        await again.close()

    asyncio.run(main())


@pytest.mark.postgres
def test_a_server_that_was_gone_is_found_again(server: Server) -> None:
    async def main() -> None:
        store = PostgresStore(server.dsn, schema="restarts")
        await store.open()
        session = await store.begin_session("test")
        committed = await store.commit(Commit(session, CART, "alice", 0, b"1"))

        server.stop()
        try:
            with pytest.raises(Unavailable, match=r"PEN0820 The store at PostgreSQL 127\.0\.0\.1:"):
                await store.commit(Commit(session, CART, "alice", committed.version, b"2"))
            with pytest.raises(Unavailable):
                await store.load(CART, "alice")
        finally:
            server.start()

        assert (await store.load(CART, "alice")).value == b"1"
        await store.commit(Commit(session, CART, "alice", committed.version, b"2"))
        await store.close()

    asyncio.run(main())


def under_way(connection: psycopg.Connection, name: str) -> list[tuple[Any, ...]]:
    """What those connections do that name themselves so, and how long their transactions have been open."""
    return connection.execute(
        "SELECT state, wait_event, now() - xact_start, query FROM pg_stat_activity "
        "WHERE xact_start IS NOT NULL AND application_name = %s",
        (name,),
    ).fetchall()


@pytest.mark.postgres
def test_a_process_that_is_stopped_leaves_no_transaction_open(empty_database: str) -> None:
    where = f"{empty_database}?application_name=stopped"
    command = [sys.executable, "-m", "tests.mesh.store_child", where]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        psycopg.connect(empty_database, autocommit=True) as connection,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for _ in range(10):
                assert process.stdout.readline(), process.stderr.read()
                os.kill(process.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                # Whatever is going on there ends without it.
                for _ in range(3_000):
                    if not under_way(connection, "stopped"):
                        break
                    time.sleep(0.01)
                assert under_way(connection, "stopped") == []
                os.kill(process.pid, signal.SIGCONT)
        finally:
            process.kill()


@pytest.mark.postgres
def test_transactions_that_wait_for_one_another_are_told_apart(server: Server) -> None:
    async def main() -> None:
        store = PostgresStore(server.dsn, schema="deadlocks")
        await store.open()
        session = await store.begin_session("test")
        names = [f"id-{n}" for n in range(30)]
        commits = [
            store.commit_all([Commit(session, CART, id, value=b"1") for id in order]) for order in (names, names[::-1])
        ]

        outcomes = await asyncio.gather(*commits, return_exceptions=True)

        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert all(isinstance(error, VersionMismatch) for error in failed)
        assert len(failed) < len(outcomes)
        await store.close()

    asyncio.run(main())
