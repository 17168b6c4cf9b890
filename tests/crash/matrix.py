"""Tries faults one after the other in a running application, and says what became of each.

What always holds: after each fault a checker looks at everything that is visible by then, and in the end at whether
anything is missing; a fault that did not strike, an application that did not go on, and whatever the checker finds, are
findings of their case, and the next one is tried all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.cluster import Cluster
from tests.crash.embedded import Ledger
from tests.crash.points import Case

AGAIN_S = 60
"""For an application to go on that did not go on in time: the next case needs it."""


@dataclass
class Outcome:
    """What became of one case. The last of a run has none: it is about all of them together."""

    case: Case | None
    recovered_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        name = self.case.name if self.case is not None else "in the end"
        took = f"output after {self.recovered_s:.1f} s" if self.recovered_s else ""
        return f"{name:55} {took:22} {'; '.join(self.findings) or 'in order'}".rstrip()


Tell = Callable[[Outcome], object]


def try_embedded(
    directory: Path, cases: Sequence[Case], tell: Tell = print, *, program: str = "tests.crash.ledger"
) -> list[Outcome]:
    """In one process, on one directory."""
    outcomes: list[Outcome] = []

    def add(outcome: Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    running = Ledger(directory, program)
    try:
        running.start()
        running.progress()
        for case in cases:
            outcome = Outcome(case)
            try:
                outcome.recovered_s = running.strike(case)
            except AssertionError as error:
                outcome.findings.append(str(error))
                running.close()
                running.start()
                running.progress()
            outcome.findings += running.check()
            add(outcome)
        add(Outcome(None, findings=running.finish()))
    finally:
        running.close()
    return outcomes


async def try_cluster(
    bootstrap: str, name: str, directory: Path, cases: Sequence[Case], tell: Tell = print
) -> list[Outcome]:
    """In the processes of an application on Kafka. A check goes on while the next fault is on its way."""
    outcomes: list[Outcome] = []
    async with Cluster(bootstrap, name, directory) as cluster:
        checking: asyncio.Task[None] | None = None

        async def check(outcome: Outcome) -> None:
            outcome.findings += await cluster.run.check("unfinished")
            outcomes.append(outcome)
            tell(outcome)

        for case in cases:
            outcome = Outcome(case)
            try:
                outcome.recovered_s = await cluster.strike(case)
            except AssertionError as error:
                outcome.findings.append(str(error))
                await cluster.run.progress(within_s=AGAIN_S)
            if checking is not None:
                await checking
            checking = asyncio.create_task(check(outcome))
        if checking is not None:
            await checking
        last = Outcome(None, findings=await cluster.run.finish())
    tell(last)
    return [*outcomes, last]


def findings_of(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(outcome) for outcome in outcomes if outcome.findings]
