"""Tries every fault on real processes, and says what became of each.

    python -m tests.crash [--write] [--only TEXT] [--where machine|kafka]

The last lines are a table. With `--write` it goes into docs/guarantees.md, with the date and the commit. The exit code
is 1 when there was any finding. `--only` tries the faults whose names contain a text, such as `settle` or `leader`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from tests.crash.matrix import Outcome, findings_of, try_cluster, try_embedded
from tests.crash.points import ACTIONS, Case, embedded, on_kafka
from tests.kafka.broker import temporary_cluster

ROOT = Path(__file__).resolve().parent.parent.parent
GUARANTEES = ROOT / "docs" / "guarantees.md"
BEGIN = "<!-- crash matrix, {}: written by `make crash-matrix WRITE=1` -->\n"
END = "<!-- end of the crash matrix, {} -->"
CASES_MAX = 15
"""Of one run on Kafka: the checker reads everything after each, and there is more each time."""
SPARSE = 3
"""On Kafka, of what is not a kill every third: it differs little from one point to the next, and takes its time."""
DOES = {"kill": "kills itself", "raise": "raises", "hang": "stands still"}
Where = Literal["machine", "kafka"]
TITLES: dict[Where, str] = {"machine": "On one machine", "kafka": "On Kafka"}


class Group(NamedTuple):
    """What is tried together, and what the table calls it."""

    where: Where
    name: str
    cases: list[Case]


@dataclass
class Result:
    """What became of a group, and how long it took."""

    group: Group
    outcomes: list[Outcome]
    took_s: float


def groups(only: str, where: str) -> Iterator[Group]:
    """Those that have cases whose names contain `only`. Without `where` all of them."""
    everything = [Group("machine", f"the process {DOES[action]}", embedded(action)) for action in ACTIONS]
    for action in ACTIONS:
        for role in ("worker", "leader", "supervisor"):
            if action == "hang" and role == "supervisor":
                continue  # It has nothing that others wait for: they end with it, when it ends.
            cases = [case for case in on_kafka(action) if case.who.startswith(role)]
            everything.append(Group("kafka", f"the {role} {DOES[action]}", cases[:: 1 if action == "kill" else SPARSE]))
    together = list(on_kafka("kill", both=True))
    everything.append(
        Group("kafka", "one kills itself, and the other of worker and leader is killed with it", together)
    )
    for group in everything:
        chosen = [case for case in group.cases if only in case.name]
        if chosen and group.where == (where or group.where):
            yield group._replace(cases=chosen)


def try_group(group: Group, directory: Path, bootstrap: str) -> list[Outcome]:
    cases = group.cases
    if group.where == "machine":
        return try_embedded(directory, cases, say)
    outcomes: list[Outcome] = []
    rest = iter(cases)
    for number in range(-(-len(cases) // CASES_MAX)):
        some = list(islice(rest, CASES_MAX))
        app = f"{directory.name}-{number}"
        try:
            outcomes += asyncio.run(try_cluster(bootstrap, app, directory / str(number), some, say))
        except Exception as error:  # noqa: BLE001  # The others are tried all the same.
            outcomes.append(Outcome(None, findings=[f"{type(error).__name__}: {error}"]))
            say(outcomes[-1])
    return outcomes


def table(results: Sequence[Result]) -> str:
    lines = [
        f"| {TITLES[results[0].group.where]} | faults | struck, and in order | output again after, median | at worst |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        tried = [outcome for outcome in result.outcomes if outcome.case is not None]
        fine = sum(not outcome.findings for outcome in tried)
        took = [outcome.recovered_s for outcome in tried if outcome.recovered_s] or [0.0]
        lines.append(f"| {result.group.name} | {len(tried)} | {fine} | {median(took):.1f} s | {max(took):.1f} s |")
    return "\n".join(lines)


def present_commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write(results: Sequence[Result], commit: str) -> None:
    """Put the results of one place into the documentation."""
    where = results[0].group.where
    begin, end = BEGIN.format(where), END.format(where)
    head, _, rest = GUARANTEES.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    faults = sum(outcome.case is not None for result in results for outcome in result.outcomes)
    findings = sum(len(findings_of(result.outcomes)) for result in results)
    minutes = sum(result.took_s for result in results) / 60
    made = f"{TITLES[where]}, on {datetime.now(UTC):%Y-%m-%d} at commit {commit}"
    told = f"{made}: {faults} faults in {minutes:.0f} minutes, {findings or 'no'} findings."
    GUARANTEES.write_text(f"{head}{begin}\n{told}\n\n{table(results)}\n\n{end}{tail}", encoding="utf-8")


def say(what: object) -> None:
    print(what, flush=True)  # noqa: T201  # It is a program.


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Tries every fault on real processes.")
    parser.add_argument("--write", action="store_true", help="note the result in docs/guarantees.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose names contain it")
    parser.add_argument("--where", default="", choices=("machine", "kafka"), help="only on one machine, or on Kafka")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write notes the result of all faults, and --only tries some.")
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # It tells at length who is away.
    commit = present_commit() if options.write else ""
    directory = Path(tempfile.mkdtemp(prefix="penstock-crash-"))
    results = try_all(list(groups(options.only, options.where)), directory)
    for where in TITLES:
        if there := [result for result in results if result.group.where == where]:
            say(f"\n{table(there)}")
            if options.write:
                write(there, commit)
    findings = findings_of([outcome for result in results for outcome in result.outcomes])
    if findings:
        say(f"\n{len(findings)} findings; what processes said is in {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if findings else 0


def try_all(chosen: Sequence[Group], directory: Path) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as opened:
        needed = any(group.where == "kafka" for group in chosen)
        bootstrap = opened.enter_context(temporary_cluster()).bootstrap if needed else ""
        for number, group in enumerate(chosen):
            say(f"\n{TITLES[group.where]}: {group.name}")
            began = time.monotonic()
            outcomes = try_group(group, directory / f"group-{number}", bootstrap)
            results.append(Result(group, outcomes, time.monotonic() - began))
    return results


if __name__ == "__main__":
    sys.exit(main())
