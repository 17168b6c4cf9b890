"""Runs an application on Kafka with several processes of one machine: a leader, and workers beside it.

    worker ends -> the leader is told at once -> a new process takes its place

What always holds: there is one process for each place, until all are done or asked to stop; what makes no sense to try
again, such as a handler that wants the application to halt, ends all of them, and is raised; workers end before the
leader, which they need to give back their tasks. Who does what is decided by the leader, not here; a process whose
supervisor is gone ends by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from penstock import errors
from penstock.engine.cluster.channel import (
    Failed,
    Finished,
    Gone,
    Order,
    Serving,
    Stop,
    Up,
    Watching,
    Working,
    messages,
)
from penstock.engine.cluster.options import instance_of, new_name
from penstock.errors import PenstockError
from penstock.faults import FAULT_VARIABLE, fault
from penstock.logs import logger

RESTART_S: Final = 0.1
RESTART_MAX_S: Final = 5.0
"""The wait before a process is started again, doubled each time until it has lived for STEADY_S."""
STEADY_S: Final = 30.0
GRACE_S: Final = 5.0
"""Beside what an orderly stop may take: for the end of a process itself."""
LAST_WORDS_S: Final = 1.0
"""What a process has said is read for so long when it has ended: its children may keep the channel open."""

START: Final = (sys.executable, "-P", "-c", "from penstock.engine.cluster.process import main; main()")
LEADER: Final = "leader"
AGAIN: Final = frozenset({"Fenced", "Unavailable", "ProtocolError", ""})
"""Errors that a new process may not have; "" is what our own code does not know."""
IN_USE: Final = "PEN0601"
"""A process of a supervisor that was killed is about to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to run."""

    flags: Mapping[str, Any]
    """Of the command line, for processes that read the same settings."""
    directory: Path
    workers: int
    port: int | None
    """Of the supervisor; workers have those behind it, or any if it is 0."""
    stop_timeout_s: float
    until_done: bool = False
    from_checkpoint: int | None = None
    fresh: bool = False


class End(NamedTuple):
    """How a process has ended."""

    status: int
    """As Python has it: negative for a signal."""
    finished: Finished | None
    failed: Failed | None

    @property
    def reason(self) -> str:
        if self.failed is not None:
            return f"{self.failed.code} {self.failed.message}".strip()
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return "stopped" if self.finished is not None else f"ended with exit code {self.status}"


Heard = Callable[["Place", Up], None]
"""Learns what the process at a place has said."""


class Place:
    """Where one process runs after the other."""

    def __init__(self, label: str, port: int | None) -> None:
        self.label = label
        self.port = port
        self.name = ""
        """Of the process that runs at present."""
        self.url = ""
        """Of its HTTP interface, while that answers."""
        self.working = False
        """Whether it does what it is there for."""
        self.pid = 0
        self.stopping = asyncio.Event()
        self._watching: Watching | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._environment: Mapping[str, str] | None = None
        """Of the next process; None: that of this one."""
        self._finished: Finished | None = None
        self._failed: Failed | None = None

    @property
    def leads(self) -> bool:
        return self.label == LEADER

    def stop(self) -> None:
        """Ask the process to end, and let no other take its place."""
        self.stopping.set()
        if self._watching is not None:
            self._watching.say(Stop())

    def tell(self, gone: Gone) -> None:
        if self._watching is not None:
            self._watching.say(gone)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def run(self, order: Order, known: Mapping[str, Gone], heard: Heard) -> End:
        """Start a process, and wait until it has ended. Cancelled, it is killed."""
        self.name, self._finished, self._failed = order.name, None, None
        watching = Watching()
        descriptor = watching.theirs.fileno()
        try:
            # In a session of its own: an interrupt from the keyboard is for the supervisor, which tells the others.
            process = self._process = await asyncio.create_subprocess_exec(
                *START,
                str(descriptor),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[descriptor],
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:
            watching.close()
            raise
        # Faults are for the first: whoever takes its place would meet the same end, again and again.
        self._environment = {name: text for name, text in os.environ.items() if name != FAULT_VARIABLE}
        self.pid = process.pid
        reader = await watching.open()
        self._watching = watching
        watching.say(order)
        for gone in known.values():
            watching.say(gone)
        if self.stopping.is_set():
            watching.say(Stop())
        listening = asyncio.create_task(self._listen(reader, heard))
        try:
            status = await process.wait()
            await asyncio.wait({listening}, timeout=LAST_WORDS_S)
        finally:
            self.kill()
            await process.wait()
            listening.cancel()
            watching.close()
            self._watching, self._process, self.url, self.working = None, None, "", False
        return End(status, self._finished, self._failed)

    async def _listen(self, reader: asyncio.StreamReader, heard: Heard) -> None:
        async for message in messages(reader):
            self._take(message)
            heard(self, message)

    def _take(self, message: Up) -> None:
        match message:
            case Serving(url):
                self.url = url
            case Working():
                self.working = True
            case Finished():
                self._finished = message
            case Failed():
                self._failed = message


class Supervisor:
    """See the module. `await run()` does everything; `stop()` ends it in an orderly way, `kill()` at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.leader = Place(LEADER, None)
        self.workers = [Place(f"worker-{number}", _port(plan.port, number)) for number in range(plan.workers)]
        self.stopping = False
        self.started_again = 0
        """Processes that took the place of another."""
        self._worked = False
        """Whether any worker has ever had its tasks."""
        self._gone: dict[str, Gone] = {}
        """By place: the last that ended, for a leader that was not there to be told."""

    @property
    def ready(self) -> bool:
        """Whether every worker has its tasks."""
        return not self.stopping and all(worker.working for worker in self.workers)

    async def run(self) -> None:
        """Run all processes until the work is done, or `stop` is called. Raises what made it fail for good."""
        leader = asyncio.create_task(self._keep(self.leader))
        workers = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        try:
            await _until_ended(leader, workers)
            self.leader.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await leader
        finally:
            for task in (leader, *workers):
                task.cancel()
            await asyncio.gather(leader, *workers, return_exceptions=True)

    def stop(self) -> None:
        """Have the workers give their tasks back after a last checkpoint, and then everything end."""
        self.stopping = True
        for worker in self.workers:
            worker.stop()
        asyncio.get_running_loop().call_later(self._plan.stop_timeout_s + GRACE_S, self._kill_workers)

    def kill(self) -> None:
        """End every process at once."""
        self._kill_workers()
        self.leader.kill()

    def _kill_workers(self) -> None:
        for worker in self.workers:
            worker.kill()

    # One place.

    async def _keep(self, place: Place) -> None:
        """Have a process there until it is not needed any more."""
        wait_s = 0.0
        while not place.stopping.is_set():
            began = time.monotonic()
            fault("supervisor.starting")
            end = await place.run(self._order(place), {} if not place.leads else self._gone, self._heard)
            fault("supervisor.ended")
            if not place.leads:
                self._tell_leader(Gone(place.name, end.reason), place)
            if place.stopping.is_set() or (end.finished is not None and end.finished.done):
                return
            self._raise_final(place, end)
            wait_s = (
                RESTART_S if time.monotonic() - began > STEADY_S else min(max(2 * wait_s, RESTART_S), RESTART_MAX_S)
            )
            logger.warning("%s %s; it is started again in %.1f s", place.label, end.reason, wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await place.stopping.wait()
            self.started_again += 1

    def _order(self, place: Place) -> Order:
        plan = self._plan
        return Order(
            role="leader" if place.leads else "worker",
            label=place.label,
            name=new_name(instance_of(plan.directory / place.label)),
            flags=dict(plan.flags),
            directory=str(plan.directory),
            port=place.port,
            until_done=plan.until_done,
            # Once: a later leader goes on with what was done since.
            from_checkpoint=plan.from_checkpoint if not self._worked else None,
            fresh=plan.fresh and not self._worked,
        )

    def _tell_leader(self, gone: Gone, place: Place) -> None:
        self._gone[place.label] = gone
        self.leader.tell(gone)

    def _heard(self, place: Place, message: Up) -> None:
        if isinstance(message, Working):
            self._worked = True
            if self.ready:
                logger.info("all %d workers have their tasks", len(self.workers))

    def _raise_final(self, place: Place, end: End) -> None:
        """Raise what a new process would meet again."""
        failed = end.failed
        if failed is None:
            if end.status > 0 and not self._worked:
                raise PenstockError(
                    "PEN0775", f"{place.label} {end.reason} before it had begun to work. What it logged says why."
                )
            return
        if failed.code == IN_USE or (self._worked and failed.kind in AGAIN):
            return
        if not failed.kind:
            raise PenstockError("PEN0775", f"{place.label} failed: {failed.message}. What it logged above says where.")
        kind = getattr(errors, failed.kind, PenstockError)
        raise kind(failed.code, failed.message)


async def _until_ended(leader: asyncio.Task[None], workers: list[asyncio.Task[None]]) -> None:
    """Wait until all workers have ended for good. Raises what one of them, or the leader, ended with."""
    waiting = set(workers)
    while waiting:
        done, _ = await asyncio.wait({leader, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        waiting -= done


def _port(port: int | None, number: int) -> int | None:
    return port + 1 + number if port else port
