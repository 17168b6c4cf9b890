"""The two runtimes as the comparison sees them: a command to start, a front door, and processes to be found by role.

What always holds: the front door has the same address for the whole run; what ends unasked is started again at once,
as the service manager of a machine would do, and the restart is counted; `stop` leaves nothing running.

    stream   `penstock run`: one process, or with Kafka a supervisor, a process that leads, and workers
    mesh     `penstock mesh --replicas 0`, which is the gateway, and `penstock mesh --no-gateway`, which has the hosts
"""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from penstock.compare.processes import STOP_S, Launched, free_port, is_alive, penstock, send_signal
from penstock.engine.client import Client
from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.faults import FAULT_VARIABLE
from penstock.files import read_owner
from penstock.logs import logger

READY_S: Final = 90.0
LASTED_S: Final = 5.0
WAIT_S: Final = 0.5
"""Before what failed soon is started again."""


class Wanted(NamedTuple):
    """What is to run."""

    app: str
    name: str
    folder: Path
    """Where the application is loaded."""
    directory: Path
    """Of the run: state, logs and policies go below it."""
    environment: Mapping[str, str]
    workers: int
    interval_s: float
    detection_s: float
    kafka: str = ""
    policies: str = ""


class Runtime(ABC):
    """See the module."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self.restarts = 0
        self.parts: list[Launched] = []
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when it is ready. Raises ConfigurationError when the application does not load in this mode."""
        for part in self._parts():
            await self._launch(part)
        until = time.monotonic() + READY_S
        while not await self._is_ready():
            ended = [part for part in self.parts if not part.pid]
            if ended:
                raise self._not_started(ended[0])
            if time.monotonic() > until:
                raise Unavailable("PEN0907", f"{self.wanted.app} is not ready {READY_S:g} s after its start.")
            await asyncio.sleep(0.05)
        self._keeping = [asyncio.create_task(self._keep(part)) for part in self.parts]

    async def stop(self) -> None:
        for keeping in self._keeping:
            keeping.cancel()
        await asyncio.gather(*(part.stop() for part in self.parts))

    def pids(self, where: str) -> list[int]:
        """The processes with this role that are there, in a fixed order."""
        return self._coordinators() if where == "coordinator" else self._workers()

    def families(self) -> dict[str, list[int]]:
        """All processes, by the part that they belong to."""
        return {part.name: part.family() for part in self.parts}

    def forget(self, variable: str) -> None:
        """What is started from now on has no such variable in its environment."""
        for part in self.parts:
            part.forget(variable)

    def said(self) -> str:
        return "".join(part.said() for part in self.parts)

    @abstractmethod
    async def replace(self) -> None:
        """Replace the workers one after the other, as an upgrade does."""

    @abstractmethod
    async def rescale(self) -> None:
        """Start as many workers again."""

    @abstractmethod
    def _parts(self) -> list[Launched]: ...

    @abstractmethod
    def _workers(self) -> list[int]: ...

    @abstractmethod
    def _coordinators(self) -> list[int]: ...

    @abstractmethod
    def _serves(self) -> bool:
        """Whether all processes take part. May raise PenstockError while it does not answer."""

    def _part(self, name: str, *arguments: str) -> Launched:
        log = self.wanted.directory / f"{name}.log"
        return Launched(name, penstock(*arguments), log, self.wanted.environment, self.wanted.folder)

    async def _launch(self, part: Launched) -> None:
        await part.start()
        self.parts.append(part)

    async def _is_ready(self) -> bool:
        try:
            return await asyncio.to_thread(self._serves)
        except PenstockError:
            return False

    async def _keep(self, part: Launched) -> None:
        while True:
            began_s = time.monotonic()
            code = await part.ended()
            logger.info("%s has ended (%d), and is started again.", part.name, code)
            self.restarts += 1
            if time.monotonic() - began_s < LASTED_S:
                await asyncio.sleep(WAIT_S)
            # A fault point has struck: the next process is to be without.
            part.forget(FAULT_VARIABLE)
            await part.start()

    def _not_started(self, part: Launched) -> ConfigurationError:
        said = "\n".join(part.said().strip().splitlines()[-12:])
        return ConfigurationError(
            "PEN0909",
            f"{self.wanted.app} does not start as {part.name}. Both modes have to run it to be compared. What it said "
            f"last:\n{said}",
        )


class StreamRuntime(Runtime):
    """`penstock run`."""

    async def stop(self) -> None:
        """On Kafka, its topics go as well: each run has some of its own."""
        await super().stop()
        if self.wanted.kafka:
            # Once: whoever ran it may stop it, and whoever cleans up after them as well.
            wanted, self.wanted = self.wanted, self.wanted._replace(kafka="")
            yes = ["destroy", "--name", wanted.name, "--kafka", wanted.kafka, "--yes"]
            destroying = self._part("destroy", *yes)
            await destroying.start()
            try:
                await destroying.ended()
            finally:
                await destroying.stop()

    def _parts(self) -> list[Launched]:
        wanted = self.wanted
        own = ["--port", str(self.port), "--dir", str(wanted.directory / "stream")]
        return [self._part("stream", *self._command(), *own, *self._cluster(wanted.directory / "stream"))]

    def _command(self) -> list[str]:
        return ["run", self.wanted.app, "--interval", f"{self.wanted.interval_s:g}s", "--log-json", "--quiet"]

    def _cluster(self, directory: Path) -> list[str]:
        wanted = self.wanted
        if not wanted.kafka:
            return []
        store = wanted.directory / "stream" / "store"
        return [
            *("--kafka", wanted.kafka, "--workers", str(wanted.workers), "--name", wanted.name),
            *("--parallelism", "4", "--session-timeout", f"{wanted.detection_s:g}s", "--store", str(store)),
        ]

    def _serves(self) -> bool:
        if self.client.ready():
            return False
        if not self.wanted.kafka:
            return True
        workers = self.client.status().get("workers", [])
        return len(workers) == self.wanted.workers and all(each["working"] and each["tasks"] for each in workers)

    def _workers(self) -> list[int]:
        if not self.wanted.kafka:
            return [self.parts[0].pid] if self.parts[0].pid else []
        running = self.parts[0].family()
        places = [self.wanted.directory / "stream" / f"worker-{number}" for number in range(self.wanted.workers)]
        owners = [read_owner(place) for place in places]
        return [owner.pid for owner in owners if owner is not None and owner.pid in running]

    def _coordinators(self) -> list[int]:
        supervisor, *others = self.parts[0].family() or [0]
        workers = self._workers()
        return [pid for pid in others if pid not in workers][:1] or [supervisor]

    async def replace(self) -> None:
        for pid in self._workers():
            await _terminate(pid)

    async def rescale(self) -> None:
        directory = self.wanted.directory / "stream-more"
        own = ["--port", "0", "--dir", str(directory)]
        await self._launch(self._part("stream-more", *self._command(), *own, *self._cluster(directory)))


class MeshRuntime(Runtime):
    """`penstock mesh`."""

    def _parts(self) -> list[Launched]:
        if self.wanted.policies:
            (self.wanted.directory / "mesh.yaml").write_text(self.wanted.policies, encoding="utf-8")
        gateway = ["--port", str(self.port), "--replicas", "0"]
        return [self._part("gateway", *self._command(), *gateway), self._hosts("hosts")]

    def _hosts(self, name: str) -> Launched:
        return self._part(name, *self._command(), "--no-gateway", "--replicas", str(self.wanted.workers))

    def _command(self) -> list[str]:
        directory = self.wanted.directory
        policies = ["--policies", str(directory / "mesh.yaml")] if self.wanted.policies else []
        return ["mesh", "run", self.wanted.app, "--dir", str(directory / "mesh"), "--log-json", *policies]

    def _serves(self) -> bool:
        return not self.client.ready() and len(self.client.status()["hosts"]) >= self.wanted.workers

    def _workers(self) -> list[int]:
        return [pid for part in self.parts[1:] for pid in part.family()[1:]]

    def _coordinators(self) -> list[int]:
        return [self.parts[1].pid] if self.parts[1].pid else []

    async def replace(self) -> None:
        send_signal(self.parts[1].pid, signal.SIGHUP)

    async def rescale(self) -> None:
        await self._launch(self._hosts("hosts-more"))


def runtime_of(mode: str, wanted: Wanted) -> Runtime:
    return StreamRuntime(wanted) if mode == "stream" else MeshRuntime(wanted)


async def _terminate(pid: int) -> None:
    """Let a process end in an orderly way, and wait for that."""
    send_signal(pid, signal.SIGTERM)
    until = time.monotonic() + 3 * STOP_S
    while is_alive(pid) and time.monotonic() < until:  # noqa: ASYNC110  # It is the child of another.
        await asyncio.sleep(0.05)
