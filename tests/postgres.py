"""A PostgreSQL server for tests: its own data directory, a free port on the loopback interface, stopped at the
end."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MISSING = "PostgreSQL is not installed (no initdb found): apt-get install postgresql"


def find_programs() -> Path | None:
    """The directory of `initdb` and `pg_ctl`: Debian keeps each version in one that is not on the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = installed[-1] if installed else shutil.which("initdb")
    return Path(found).parent if found else None


class Server:
    """A server that can be stopped and started again, with what it stored."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._port = _free_port()
        self._user = _unprivileged_user()
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--auth=trust", "--username=penstock", "--no-sync", "--no-instructions", "--encoding=UTF8")

    @property
    def dsn(self) -> str:
        return f"postgresql://penstock@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = (
            f"-c port={self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off "
            "-c max_connections=20 -c shared_buffers=16MB"
        )
        log = str(self._directory / "server.log")
        self._run("pg_ctl", "start", "--wait", "--log", log, "--options", options)

    def stop(self) -> None:
        """End it at once: connections break, transactions under way are lost."""
        self._run("pg_ctl", "stop", "--wait", "--mode", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root.
        user = None if self._user is None else self._user.pw_name
        subprocess.run(
            [self._programs / program, "--pgdata", self._directory / "data", *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=user,
            group=None if self._user is None else self._user.pw_gid,
            extra_groups=None if self._user is None else [],
            cwd=self._directory,
            timeout=60,
        )


@contextmanager
def running_server() -> Iterator[Server]:
    """A running server with an empty database; skips the test where PostgreSQL is not installed."""
    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    # Not below pytest's own directory, which other users may not enter.
    directory = Path(tempfile.mkdtemp(prefix="penstock-postgres-"))
    try:
        server = Server(programs, directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run the server as; None for the user of this process, unless that is root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
