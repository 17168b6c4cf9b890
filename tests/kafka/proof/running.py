"""Runs `penstock run --kafka --workers N` for the proof, and knows its processes.

async with Run(bootstrap, name, directory) as run:
    await run.work(2)                    two seconds of work
    run.kill(run.worker())               SIGKILL, counted if work was in flight
    ...
    assert not await run.finish()        everything is done; what the checker found
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from penstock.files import Owner, read_owner
from tests.kafka.broker import tethered
from tests.kafka.proof.feeding import Feed, Tail, create_topics

ROOT = Path(__file__).resolve().parent.parent.parent.parent
COMMAND = "import sys; from penstock.engine.cli import main; sys.argv[0] = 'penstock'; main()"
BRISK = {"PENSTOCK_RETENTION_ALL": "1s", "PENSTOCK_RETENTION_SPACED": "3s", "PENSTOCK_RETENTION_SPACING": "1s"}
"""Settings in the environment for `tests.kafka.proof.brisk`: checkpoints are forgotten after seconds."""
START_S = 60
STOP_S = 45
PATIENCE_S = 40
"""Without a single row, before what is missing counts as lost."""


class Run:
    """See the module. `app` is what runs; `environment` is added to that of all its processes. `lone` workers have no
    supervisor and no process that leads: they lead themselves, and are only started again."""

    def __init__(
        self,
        bootstrap: str,
        name: str,
        directory: Path,
        *,
        app: str = "tests.kafka.proof.app:app",
        seed: int = 0,
        workers: int = 2,
        parallelism: int = 4,
        session_timeout: str = "10s",
        replicas: int = 1,
        lone: bool = False,
        transfers_per_s: int = 150,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.name = name
        self.directory = directory
        self.random = random.Random(seed)
        self.feed = Feed(bootstrap, name, seed=seed, transfers_per_s=transfers_per_s)
        self.tail = Tail(bootstrap, name)
        self.kills: Counter[str] = Counter()
        """By what was killed, where work was in flight."""
        self.idle = 0
        """Kills that don't count: nothing was in flight."""
        self.findings: list[str] = []
        self.summary: dict[str, int] = {}
        self._replicas = replicas
        self._workers = workers
        self._lone = lone
        self._command = [
            *penstock("run", app, "--kafka", bootstrap, "--name", name, "--port", 0, "--store", directory / "store"),
            *("--parallelism", str(parallelism), "--replicas", str(replicas)),
            *("--session-timeout", session_timeout, "--memory", "128MB"),
        ]
        if lone:
            keeper = [sys.executable, "-m", "tests.kafka.proof.keeper", str(workers), str(directory)]
            self._command = [*keeper, *self._command]
        else:
            self._command += ["--dir", str(directory), "--workers", str(workers)]
        self._permits = directory / "permits"
        own = {"PROOF_NAME": name, "PROOF_PERMITS": str(self._permits), "PYTHONPATH": python_path()}
        self._environment = {**os.environ, **own, **(environment or {})}
        self._process: asyncio.subprocess.Process
        self._leader = 0

    async def __aenter__(self) -> Self:
        self._permits.mkdir(parents=True, exist_ok=True)
        await create_topics(self.bootstrap, self.name, replicas=self._replicas)
        await self.start()
        try:
            await self._wait_ready()
            await self.tail.start()
            await self.feed.start(self.url)
        except BaseException:
            await self._end()
            raise
        return self

    async def start(self) -> None:
        """Start the supervisor, or the keeper: the first, or one in the place of one that has ended."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(self._command),
                cwd=ROOT,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.feed.close()
        await self.tail.close()
        await self._end()

    async def _end(self) -> None:
        """End every process, whatever state it is in."""
        processes = self.processes()
        if self._process.returncode is None:
            _signal(self._process.pid, signal.SIGKILL)
        for pid in processes:
            _signal(pid, signal.SIGKILL)
        await self._process.wait()
        while any(map(_is_alive, processes)):  # noqa: ASYNC110  # They are children of another.
            await asyncio.sleep(0.01)

    @property
    def log(self) -> Path:
        """What the processes said."""
        return self.directory / "log"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    async def _wait_ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_S
        while not self.url() or ("continued from checkpoint" if self._lone else "have their tasks") not in self.said():
            assert self._process.returncode is None, f"it did not start:\n{self.said()}"
            assert time.monotonic() < deadline, f"it is not ready after {START_S} s:\n{self.said()}"
            await asyncio.sleep(0.05)

    def url(self) -> str:
        """Where it answers at present; "" if that is nowhere."""
        if not self._lone:
            owner = read_owner(self.directory)
            return (owner.url or "") if owner is not None else ""
        urls = [owner.url for owner in self._owners() if owner.url]
        return self.random.choice(urls) if urls else ""

    # Its processes.

    def processes(self) -> list[int]:
        """The leader and the workers that are there, the oldest first."""
        pid = self._process.pid
        try:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        except OSError:
            return []
        return [int(each) for each in found if _is_alive(int(each))]

    def workers(self) -> list[int]:
        """The workers that have begun to work in their directories."""
        return [owner.pid for owner in self._owners()]

    def _owners(self) -> list[Owner]:
        running = self.processes()
        owners = [read_owner(self.directory / f"worker-{number}") for number in range(self._workers)]
        return [owner for owner in owners if owner is not None and owner.pid in running]

    def worker(self) -> int:
        """Any worker; 0 if none is there."""
        workers = self.workers()
        return self.random.choice(workers) if workers else 0

    def pid_of(self, place: str) -> int:
        """The process at `leader`, `supervisor` or `worker-N`; 0 if none is there."""
        if place == "supervisor":
            return self._process.pid
        if place == "leader":
            return self.leader()
        owner = read_owner(self.directory / place)
        return owner.pid if owner is not None and owner.pid in self.processes() else 0

    def leader(self) -> int:
        """The leader; 0 if none is there. Right after its end it may be a worker that is just starting."""
        running, workers = self.processes(), self.workers()
        if self._leader not in running:
            self._leader = next((pid for pid in running if pid not in workers), 0)
        return self._leader

    # What is done to it.

    def in_flight(self) -> int:
        """Rows that follow from durable input, and are not visible."""
        return self.tail.missing(self.feed.due).total()

    def kill(self, *pids: int, what: str) -> None:
        """SIGKILL, all at once."""
        for pid in pids:
            if pid and _signal(pid, signal.SIGKILL):
                self.count(what)

    async def kill_a_worker(self) -> None:
        """While all of them work, and until there is output again."""
        await self.balanced()
        await self.work(0.5 + 0.5 * self.random.random())
        self.kill(self.worker(), what="worker")
        await self.progress()

    def count(self, what: str) -> None:
        """Something was done that counts if work was in flight."""
        if self.in_flight():
            self.kills[what] += 1
        else:
            self.idle += 1

    def freeze(self, pid: int, *, what: str) -> None:
        """SIGSTOP: it keeps all it has, and does nothing."""
        self.count(what)
        _signal(pid, signal.SIGSTOP)

    def terminate(self, pid: int) -> None:
        """SIGTERM: it stops in an orderly way."""
        self.count("orderly stop")
        _signal(pid, signal.SIGTERM)

    def permit(self, ends: int) -> None:
        """Let processes of `tests.kafka.proof.crashing` meet their end so many times in all, from now on."""
        for number in range(ends):
            (self._permits / str(number)).touch()

    def thaw(self, pid: int) -> None:
        _signal(pid, signal.SIGCONT)

    async def supervisor_ends(self) -> None:
        """Wait until the supervisor has ended."""
        async with asyncio.timeout(STOP_S):
            await self._process.wait()

    async def work(self, seconds: float) -> None:
        """Let it work for so long. It must be there in the end."""
        await asyncio.sleep(seconds)
        assert self._process.returncode is None, f"it has ended:\n{self.said()}"

    def mark(self) -> int:
        """Where what the processes say goes on."""
        return self.log.stat().st_size

    def says(self, text: str, *, since: int) -> bool:
        """Whether a process has said it."""
        return text in self._said_since(since)

    async def hears(self, text: str, *, since: int, within_s: float) -> bool:
        """Wait until a process says it. Returns whether one did."""
        deadline = time.monotonic() + within_s
        while not self.says(text, since=since):
            if time.monotonic() > deadline:
                return False
            await self.work(0.005)
        return True

    async def must_hear(self, text: str, *, since: int, within_s: float = 45) -> None:
        heard = await self.hears(text, since=since, within_s=within_s)
        assert heard, f"nobody said {text!r} in {within_s} s:\n{self._said_since(since)}"

    def _said_since(self, mark: int) -> str:
        return self.log.read_bytes()[mark:].decode(errors="replace")

    async def ends(self, pid: int, *, within_s: float = 20) -> None:
        """Wait until a process has ended by itself."""
        deadline = time.monotonic() + within_s
        while _is_alive(pid):
            assert time.monotonic() < deadline, f"process {pid} does not end:\n{self.said()[-8000:]}"
            await self.work(0.02)

    async def may_end(self, pid: int, *, within_s: float) -> None:
        """Wait for so long whether a process ends by itself."""
        deadline = time.monotonic() + within_s
        while _is_alive(pid) and time.monotonic() < deadline:
            await self.work(0.02)

    async def progress(self, rows: int = 20, *, within_s: float = 30) -> float:
        """Wait until so many rows more are visible than now. Returns how long it took."""
        began, before = time.monotonic(), self.tail.seen.total()
        while self.tail.seen.total() < before + rows:
            assert time.monotonic() < began + within_s, f"no progress in {within_s} s:\n{self.said()[-8000:]}"
            await self.work(0.02)
        return time.monotonic() - began

    async def balanced(self, *, within_s: float = 40) -> None:
        """Wait until every worker has tasks: only then do messages, cuts and decisions go from one to the other."""
        deadline = time.monotonic() + within_s
        while not await self._is_balanced():
            assert time.monotonic() < deadline, f"not every worker has tasks after {within_s} s:\n{self.said()[-8000:]}"
            await self.work(0.1)

    async def _is_balanced(self) -> bool:
        try:
            async with self.feed.session.get(f"{self.url()}/admin/status") as response:
                workers = (await response.json()).get("workers", []) if response.status == 200 else []
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return len(workers) == self._workers and all(worker["working"] and worker["tasks"] for worker in workers)

    # What became of it.

    async def finish(self) -> list[str]:
        """Send no more, wait until everything is done, and return what the checker found."""
        if not await self.feed.finish():
            self.findings.append("calls are not answered")
        missing = await self.tail.wait_for(self.feed.due, patience_s=PATIENCE_S)
        if missing:
            self.findings.append(f"never came: {dict(missing)}")
        if self._process.returncode is not None:
            self.findings.append(f"it has ended by itself: {self.said()[-1000:]}")
        else:
            self._process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_S):
                status = await self._process.wait()
            if status != 0:
                self.findings.append(f"it ended with {status}")
        self.findings += await self.check("finished")
        return self.findings

    async def check(self, state: Literal["finished", "unfinished"]) -> list[str]:
        """What the checker finds."""
        checker = [sys.executable, "-m", "tests.kafka.proof.checker", self.bootstrap, self.name, state]
        process = await asyncio.create_subprocess_exec(*checker, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        told, _ = await process.communicate()
        *anomalies, summary = told.decode().splitlines()
        self.summary = json.loads(summary)
        assert (process.returncode == 1) == bool(anomalies), told
        return anomalies

    def report(self) -> dict[str, Any]:
        """For people."""
        return {"kills": self.kills.total(), **self.kills, "idle": self.idle, "failed calls": self.feed.failed}


def penstock(*arguments: object) -> list[str]:
    """The command line that runs the command line."""
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


def python_path() -> str:
    """Where processes find the application, and what this one finds."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
