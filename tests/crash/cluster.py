"""Runs `tests.crash.app` on Kafka with two workers, a leader and a supervisor, and has faults strike in them.

What always holds: a fault that did not strike is an error; before one is armed every worker has tasks; that there is
output again means that everything is visible that was due when the fault struck, and something more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.faults import FAULT_VARIABLE
from tests.crash.points import VARIABLE, Case
from tests.kafka.proof.running import BRISK, Run

STRUCK_S = 30
RECOVERED_S = 15
FROZEN_S = 5.0
"""Longer than a session: who stood still is taken for dead meanwhile."""
FENCED_S = 3.0
"""So long has a worker to find out that it was, and to end; the leader need not."""
MORE = 20
TRANSFERS_PER_S = 40
"""There is always something in flight, and the checker, who reads everything after each fault, has little to read."""


class Cluster:
    """See the module."""

    def __init__(self, bootstrap: str, name: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._faults = directory / "faults"
        self._arm("")
        self.run = Run(
            bootstrap,
            name,
            directory,
            app="tests.crash.app:app",
            session_timeout="4s",
            transfers_per_s=TRANSFERS_PER_S,
            environment={**BRISK, VARIABLE: str(self._faults), FAULT_VARIABLE: ""},
        )

    async def __aenter__(self) -> Self:
        await self.run.__aenter__()
        await self.run.progress()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.run.__aexit__(kind, error, traceback)

    def _arm(self, faults: str) -> None:
        """At once and as a whole: processes read it all the time."""
        written = self._faults.with_suffix(".new")
        written.write_text(faults, encoding="ascii")
        written.rename(self._faults)

    async def strike(self, case: Case) -> float:
        """Have the fault strike, and the application go on. Returns how long it took until there was output again."""
        run = self.run
        await run.balanced()
        if case.reads_base:
            await self._has_base()
        said = run.mark()
        self._arm(f"{case.who}/{case.fault}")
        try:
            if case.trigger:
                await run.work(0.1)  # Everybody has looked.
                run.kill(run.pid_of(case.trigger), what=case.trigger)
            struck = f"{FAULT_VARIABLE}: {case.who} at {case.point}, "
            await self._hears(struck, case, said)
        finally:
            self._arm("")
        due = self._due()
        if case.also:
            run.kill(run.pid_of(case.also), what=case.also)
        began = time.monotonic()
        pid = run.pid_of(case.who)
        if case.action == "hang":
            await run.work(FROZEN_S)
            began = time.monotonic()
            os.kill(pid, signal.SIGCONT)
        elif case.ends_all:
            await run.supervisor_ends()
            began = time.monotonic()
            await run.start()
        run.count(case.who)
        await self._recovers(due, case, began)
        took_s = time.monotonic() - began
        if case.action == "hang":
            await run.may_end(pid, within_s=FENCED_S)
        return took_s

    def _due(self) -> Counter[str]:
        """Rows that are due by now, and some that are not yet."""
        due = self.run.feed.due.copy()
        del due["registered"]  # There may be more of them: who called may have been told nothing.
        due["steps"] += MORE
        return due

    async def _has_base(self) -> None:
        """Wait until a checkpoint has a base."""
        deadline = time.monotonic() + STRUCK_S
        while not any((self.run.directory / "store" / "bases").glob("*")):
            assert time.monotonic() < deadline, f"no base in {STRUCK_S} s"
            await self.run.work(0.05)
        await self.run.progress()

    async def _hears(self, struck: str, case: Case, said: int) -> None:
        # Not `must_hear`, which wants the supervisor to be there.
        deadline = time.monotonic() + STRUCK_S
        while struck not in self.run.log.read_bytes()[said:].decode(errors="replace"):
            assert time.monotonic() < deadline, f"{case.name} does not strike:\n{self.run.said()[-6000:]}"
            await asyncio.sleep(0.01)

    async def _recovers(self, due: Counter[str], case: Case, began: float) -> None:
        while self.run.tail.missing(due):
            waited_s = time.monotonic() - began
            assert waited_s < RECOVERED_S, f"no output {RECOVERED_S} s after {case.name}:\n{self.run.said()[-6000:]}"
            await asyncio.sleep(0.02)
