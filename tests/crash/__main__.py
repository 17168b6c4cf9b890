"""Tries every fault on real processes, and says what became of each.

    python -m tests.crash [--write] [--only TEXT] [--where machine|kafka]

The last lines are a table. With `--write` it goes into docs/guarantees.md, with the date and the commit. The exit code
is 1 when there was any finding. `--only` tries the faults whose names contain a text, such as `settle` or `leader`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median

from tests.crash.matrix import Outcome, findings_of, try_cluster, try_embedded
from tests.crash.points import ACTIONS, Case, embedded, on_kafka
from tests.kafka.broker import temporary_cluster

ROOT = Path(__file__).resolve().parent.parent.parent
GUARANTEES = ROOT / "docs" / "guarantees.md"
BEGIN = "<!-- crash matrix: written by `make crash-matrix WRITE=1` -->\n"
END = "<!-- end of crash matrix -->"
CASES_MAX = 15
"""Of one run on Kafka: the checker reads everything after each, and there is more each time."""
SPARSE = 3
"""On Kafka, of what is not a kill every third: it differs little from one point to the next, and takes its time."""
DOES = {"kill": "kills itself", "raise": "raises", "hang": "stands still"}

MACHINE = "one machine"

Group = tuple[str, list[Case]]


def groups(only: str, where: str) -> Iterator[Group]:
    """What is tried together, and what the table calls it."""
    everything: list[Group] = [(f"{MACHINE}: the process {DOES[action]}", embedded(action)) for action in ACTIONS]
    for action in ACTIONS:
        for role in ("worker", "leader", "supervisor"):
            if action == "hang" and role == "supervisor":
                continue  # It has nothing that others wait for: they end with it, when it ends.
            cases = [case for case in on_kafka(action) if case.who.startswith(role)]
            everything.append((f"Kafka: the {role} {DOES[action]}", cases[:: 1 if action == "kill" else SPARSE]))
    everything.append(("Kafka: worker and leader are killed together", list(on_kafka("kill", both=True))))
    for name, cases in everything:
        chosen = [case for case in cases if only in case.name]
        if chosen and (not where or name.startswith(MACHINE) == (where == "machine")):
            yield name, chosen


def try_group(name: str, cases: Sequence[Case], directory: Path, bootstrap: str) -> list[Outcome]:
    if name.startswith(MACHINE):
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


def table(results: Sequence[tuple[str, list[Outcome]]]) -> str:
    lines = [
        "| where, and what happens | faults | struck, and in order | output again after, median | at worst |",
        "|---|---|---|---|---|",
    ]
    for name, outcomes in results:
        tried = [outcome for outcome in outcomes if outcome.case is not None]
        fine = sum(not outcome.findings for outcome in tried)
        took = [outcome.recovered_s for outcome in tried if outcome.recovered_s] or [0.0]
        lines.append(f"| {name} | {len(tried)} | {fine} | {median(took):.1f} s | {max(took):.1f} s |")
    return "\n".join(lines)


def present_commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write(text: str, commit: str, faults: int, findings: int, took_s: float) -> None:
    """Put the result into the documentation."""
    head, _, rest = GUARANTEES.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    result = (
        f"The last result of `make crash-matrix`, on {datetime.now(UTC):%Y-%m-%d} at commit {commit}: {faults} faults "
        f"in {took_s / 60:.0f} minutes\non two cores, {findings or 'no'} findings."
    )
    GUARANTEES.write_text(f"{head}{BEGIN}\n{result}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def say(what: object) -> None:
    print(what, flush=True)  # noqa: T201  # It is a program.


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Tries every fault on real processes.")
    parser.add_argument("--write", action="store_true", help="note the result in docs/guarantees.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="only faults whose names contain it")
    parser.add_argument("--where", default="", choices=("machine", "kafka"), help="only on one machine, or on Kafka")
    options = parser.parse_args()
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # It tells at length who is away.
    began = time.monotonic()
    commit = present_commit() if options.write else ""
    directory = Path(tempfile.mkdtemp(prefix="penstock-crash-"))
    results: list[tuple[str, list[Outcome]]] = []
    with ExitStack() as opened:
        chosen = list(groups(options.only, options.where))
        needed = any(not name.startswith(MACHINE) for name, _ in chosen)
        bootstrap = opened.enter_context(temporary_cluster()).bootstrap if needed else ""
        for number, (name, cases) in enumerate(chosen):
            say(f"\n{name}")
            results.append((name, try_group(name, cases, directory / f"group-{number}", bootstrap)))
    outcomes = [outcome for _, group in results for outcome in group]
    findings = findings_of(outcomes)
    text = table(results)
    say(f"\n{text}\n\n{len(findings)} findings; what processes said is in {directory}")
    if options.write:
        faults = sum(outcome.case is not None for outcome in outcomes)
        write(text, commit, faults, len(findings), time.monotonic() - began)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
