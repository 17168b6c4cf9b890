"""Starts what is compared, finds its processes, signals and samples them, and sees to it that none is left behind.

What always holds: every process runs in a session of its own, so that Ctrl-C is for us alone; `stop` ends it and all
that descends from it, whatever state they are in; on Linux the kernel ends it when we are killed. Processes are found
by their parents under /proc: elsewhere there are no samples, and only the process itself can be killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Final, NamedTuple

from penstock.engine.settings import ENVIRONMENT_PREFIX
from penstock.errors import Unavailable

STOP_S: Final = 10.0
"""How long a process has to end by itself."""
PROC: Final = Path("/proc")

# Becomes the command it is given, once the kernel has promised to kill it together with its parent. A function run
# between fork and exec could do the same, but is not safe in a process that has threads.
_TETHERED: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def tethered(command: Sequence[str | Path]) -> list[str | Path]:
    """A command that is killed together with this process, in whatever way this one ends."""
    return [sys.executable, "-I", "-S", "-c", _TETHERED, str(os.getpid()), *command]


def penstock(*arguments: str) -> list[str]:
    """`penstock ...`, by the interpreter and from the code that runs here."""
    return [sys.executable, "-c", "from penstock.engine.cli import main; main()", *arguments]


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What processes get of the environment of the command: not what is set there for Penstock, such as a token or a
    broker, because the plan alone says how they run. How to reach the brokers of --kafka is theirs to know."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX) or name.startswith(f"{ENVIRONMENT_PREFIX}KAFKA_")
    }


class Launched:
    """A process with all that descends from it. What it says goes to `log`."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = {**inherited(os.environ), **environment, "PYTHONUNBUFFERED": "1"}
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    def forget(self, variable: str) -> None:
        """The next start has no such variable in its environment."""
        self._environment.pop(variable, None)

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(self._command),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ended(self) -> int:
        """Wait for its end."""
        assert self._process is not None, "it was not started"
        return await self._process.wait()

    def said(self) -> str:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def family(self) -> list[int]:
        """It and all that descends from it, the oldest first."""
        return descendants(self.pid) if self.pid else []

    async def stop(self, *, gently: bool = True) -> None:
        """End it and all that descends from it."""
        family = self.family()
        if self._process is None:
            return
        for pid in family:
            send_signal(pid, signal.SIGCONT)
        if self.pid and gently:
            send_signal(self.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
        for pid in {*family, *self.family()}:
            send_signal(pid, signal.SIGKILL)
        await self._process.wait()
        # Those that were not our own children are gone a moment later, when their new parent has noticed.
        until = time.monotonic() + STOP_S
        while any(map(is_alive, family)) and time.monotonic() < until:  # noqa: ASYNC110  # Nobody tells us.
            await asyncio.sleep(0.01)


class Sample(NamedTuple):
    """What a process has used."""

    cpu_s: float
    rss: int


def sample(pid: int) -> Sample | None:
    """None if there is no such process, or no /proc."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    return Sample((int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * page)


def descendants(pid: int) -> list[int]:
    """A process and all that descends from it, the oldest first; itself alone where there is no /proc."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            children = (PROC / str(each) / "task" / str(each) / "children").read_text(encoding="ascii")
            found += map(int, children.split())
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended: one that has, and whose parent has not noticed, is not alive."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """Below those that the kernel gives to clients, so that a process that is started again finds its own free."""
    for _ in range(1_000):
        port = SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Unavailable("PEN0907", "No port from 20000 to 32000 is free on 127.0.0.1. End what listens there.")
