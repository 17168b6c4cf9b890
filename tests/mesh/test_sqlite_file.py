"""A file that many write, when one of them does not go on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from penstock.errors import Unavailable
from penstock.mesh import sqlite_file
from penstock.mesh.sqlite_file import File, Held
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.store import Commit
from penstock.mesh.wire import reply_of
from tests.mesh.stores import CART, open_below, quick_directory

HELD_MAX_S = 0.3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "HELD_MAX_S", HELD_MAX_S)


@pytest.fixture
def directory() -> Iterator[Path]:
    with quick_directory() as made:
        yield made


def is_held(path: Path) -> bool:
    """Whether somebody has the lock of a file now."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until it stands."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


@contextmanager
def stopped_in_a_write(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that commits to the carts, and is stopped while it has the lock of their file."""
    path = directory / "functions" / "shop%2Fcart.sqlite"
    command = [sys.executable, "-m", "tests.mesh.store_child", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(3):
                process.stdout.readline()  # Its session and two commits.
            stop(process)
            while not is_held(path):
                os.kill(process.pid, signal.SIGCONT)
                process.stdout.readline()
                stop(process)
            yield process
        finally:
            process.kill()


async def commit_at_last(store: SqliteStore, commit: Commit) -> None:
    while True:
        with suppress(Held):
            await store.commit(commit)
            return


def test_a_process_that_is_stopped_in_a_write_is_named_and_holds_up_no_reader(directory: Path) -> None:
    async def main() -> None:
        store = SqliteStore(directory)
        await store.open()
        session = await store.begin_session("test")
        await store.commit(Commit(session, "shop/other", "id", 0, b"1"))
        with stopped_in_a_write(directory) as process:
            version = (await store.load(CART, "alice")).version
            commits = [store.commit(Commit(session, CART, f"id-{n}", 0, b"1")) for n in range(3)]
            outcomes = await asyncio.gather(*commits, return_exceptions=True)

            assert all(isinstance(outcome, Held) for outcome in outcomes)
            assert f"by process {process.pid}, which is stopped" in str(outcomes[0])
            again = asyncio.ensure_future(store.commit(Commit(session, CART, "id-3", 0, b"1")))
            await asyncio.sleep(0)
            assert again.done(), "nobody waits once more for what is known to be held"
            with pytest.raises(Held, match="PEN0830"):
                await again

            assert (await store.load(CART, "alice")).version == version
            await store.commit(Commit(session, "shop/other", "other", 0, b"1"))  # A file of its own.

            os.kill(process.pid, signal.SIGCONT)
            await commit_at_last(store, Commit(session, CART, "later", 0, b"1"))
        assert await store.ids(CART) == ["alice", "later"], "what was refused was not written"
        await store.close()

    asyncio.run(main())


def test_one_that_is_killed_lets_go(directory: Path) -> None:
    async def main() -> None:
        store = SqliteStore(directory)
        session = await store.begin_session("test")
        with stopped_in_a_write(directory) as process:
            committing = asyncio.ensure_future(commit_at_last(store, Commit(session, CART, "id", 0, b"1")))
            await asyncio.sleep(0)
            process.kill()
            await committing
        await store.close()

    asyncio.run(main())


@contextmanager
def held(path: Path) -> Iterator[None]:
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def test_a_file_that_is_made_by_somebody_who_stands_still_is_not_waited_for_on_the_loop(tmp_path: Path) -> None:
    async def main() -> None:
        file = File(tmp_path / "a.sqlite", "CREATE TABLE a (b INTEGER)")
        with held(tmp_path / "a.sqlite"), pytest.raises(Held):
            await file.open()
        await file.open()
        assert file.read("SELECT * FROM a") == []
        await file.close()

    asyncio.run(main())


def test_a_file_that_is_there_is_read_by_one_who_begins_while_it_is_held(tmp_path: Path) -> None:
    async def main() -> None:
        first = File(tmp_path / "a.sqlite", "CREATE TABLE a (b INTEGER)")
        await first.open()
        second = File(tmp_path / "a.sqlite", "")
        with held(tmp_path / "a.sqlite"):
            await second.open()
            assert second.read("SELECT * FROM a") == []
        await first.close()
        await second.close()

    asyncio.run(main())


def test_an_end_does_not_wait_for_what_is_held(tmp_path: Path) -> None:
    async def main() -> None:
        file = File(tmp_path / "a.sqlite", "CREATE TABLE a (b INTEGER)")
        await file.open()
        with held(tmp_path / "a.sqlite"):
            with pytest.raises(Held):
                await file.write(lambda transaction: transaction.execute("INSERT INTO a VALUES (1)"))
            await file.close()

    asyncio.run(main())


def test_whoever_asks_is_told_to_come_again() -> None:
    reply = reply_of(Held(Path("a.sqlite"), "process 7"))

    assert (reply.status, reply.retry_after_s) == (503, sqlite_file.Held.retry_after_s)
    assert isinstance(Held(Path("a.sqlite"), "process 7"), Unavailable)


def test_one_that_is_opened_again_after_it_failed_has_its_lock_once(directory: Path) -> None:
    path = directory / "some.sqlite"
    path.write_bytes(b"not a database" * 100)

    async def main() -> None:
        file = File(path, "")
        for _ in range(3):
            with pytest.raises(Unavailable, match="PEN0820"):
                await file.open()
        assert open_below(directory) == [f"{path}.lock"]
        await file.close()

    asyncio.run(main())
    assert open_below(directory) == []


def test_one_whose_opening_is_cancelled_leaves_nothing_open(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "some.sqlite"
    connected: list[sqlite3.Connection] = []

    async def main() -> None:
        made = File(path, "CREATE TABLE some (n)")
        await made.open()
        await made.close()
        file = File(path, "CREATE TABLE some (n)")
        opening = asyncio.create_task(file.open())
        loop = asyncio.get_running_loop()
        connect = file._connect

        def cancelled_meanwhile(busy_s: float) -> sqlite3.Connection:
            if connected:  # The first only looks whether there are tables.
                loop.call_soon_threadsafe(opening.cancel)
            connected.append(connect(busy_s))  # Kept, so that none is closed by being forgotten.
            return connected[-1]

        monkeypatch.setattr(file, "_connect", cancelled_meanwhile)
        await asyncio.wait([opening])
        await file.close()

    asyncio.run(main())  # It waits for the threads.
    assert len(connected) == 2
    assert open_below(directory) == []
