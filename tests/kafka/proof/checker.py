"""Reads what went into an application and what came out of it, and says what does not fit together.

    python -m tests.kafka.proof.checker BOOTSTRAP NAME [unfinished]

It knows Kafka and nothing of Penstock: it reads the topics of `tests.kafka.proof.app`, and only what is committed. Each
anomaly is a line that names the records which show it, as topic-partition@offset. The last line counts what was read.
The exit code is 1 when there was any anomaly. While the application still runs, much has not come yet: of an unfinished
run only that is told which nothing that follows can mend.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.kafka.plainly import records_of

OPENING = 1_000
"""What is on every account at first."""
INPUTS = ("transfers", "walks", "readings", "told")
OUTPUTS = ("bookings", "steps", "sequenced", "followed", "registered")
SHOWN_MAX = 8
"""Records that one anomaly names."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record, and where it stands."""

    place: str
    value: dict[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.value[field]


Anomalies = Iterator[str]


def check(topics: Mapping[str, list[Row]], *, finished: bool = True) -> list[str]:
    """Every anomaly. `topics` has the rows of each topic: partition by partition, each in order."""
    return [
        *check_ledger(topics["transfers"], topics["bookings"], finished=finished),
        *check_walks(topics["walks"], topics["steps"], finished=finished),
        *check_order(topics["readings"], topics["sequenced"], "sequenced", finished=finished),
        *check_order(topics["readings"], topics["followed"], "followed", finished=finished),
        *check_registry(topics["told"], topics["registered"], finished=finished),
    ]


# The ledger: no money appears or is lost, and every account tells a story without gaps.


def check_ledger(transfers: Iterable[Row], bookings: Iterable[Row], *, finished: bool) -> Anomalies:
    expected: defaultdict[Any, list[Row]] = defaultdict(list)
    for transfer in transfers:
        expected[transfer["number"], transfer["payer"], -transfer["amount"]].append(transfer)
        expected[transfer["number"], transfer["payee"], transfer["amount"]].append(transfer)
    found: defaultdict[Any, list[Row]] = defaultdict(list)
    accounts: defaultdict[str, list[Row]] = defaultdict(list)
    for booking in bookings:
        found[booking["transfer"], booking["account"], booking["amount"]].append(booking)
        accounts[booking["account"]].append(booking)
    yield from compare("booking of transfer, account, amount", expected, found, finished=finished)
    total = 0
    for account, booked in accounts.items():
        yield from check_dense(f"bookings of {account}", "number", booked)
        balance = OPENING
        for booking in booked:
            balance += booking["amount"]
            if booking["balance"] != balance:
                yield f"balance of {account} is {booking['balance']} and should be {balance}: {booking.place}"
                balance = booking["balance"]
        total += balance
    if finished and total != OPENING * len(accounts):
        yield f"all accounts together have {total}, and should have {OPENING * len(accounts)}"


# The walks: every command of every tree is carried out once, and every address counts its own.


def check_walks(walks: Iterable[Row], steps: Iterable[Row], *, finished: bool) -> Anomalies:
    expected: defaultdict[Any, list[Row]] = defaultdict(list)
    for walk in walks:
        for command in commands(walk.value):
            expected[command["walk"], command["step"], command["node"]].append(walk)
    found: defaultdict[Any, list[Row]] = defaultdict(list)
    nodes: defaultdict[str, list[Row]] = defaultdict(list)
    for step in steps:
        found[step["walk"], step["step"], step["node"]].append(step)
        nodes[step["node"]].append(step)
    yield from compare("step of walk, number, node", expected, found, finished=finished)
    for node, visits in nodes.items():
        yield from check_dense(f"visits of {node}", "visit", visits)


def commands(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A command, and all that follow from it."""
    yield step
    for following in step["following"]:
        yield from commands(following)


# The readings: what came in order leaves in order.


def check_order(readings: Iterable[Row], rows: Iterable[Row], topic: str, *, finished: bool) -> Anomalies:
    came: defaultdict[str, list[Row]] = defaultdict(list)
    for reading in readings:
        came[reading["key"]].append(reading)
    left: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        left[row["key"]].append(row)
    for key in came.keys() | left.keys():
        expected = [reading["number"] for reading in came[key]]
        found = [row["number"] for row in left[key]]
        if found != (expected if finished else expected[: len(found)]):
            at = next(n for n in range(len(expected) + 1) if found[: n + 1] != expected[: n + 1])
            shown = ", ".join(row.place for row in left[key][max(0, at - 1) : at + 2])
            yield (
                f"{topic} of {key}: {found[at : at + 3]} where {expected[at : at + 3]} is due, of {len(expected)}, "
                f"{len(found)} came: {shown}"
            )
        yield from check_dense(f"{topic} of {key}", "count", left[key])


# The registry: who was told a place has it, alone, and whoever was told nothing has at most one.


def check_registry(told: Iterable[Row], registered: Iterable[Row], *, finished: bool) -> Anomalies:
    registries: defaultdict[str, list[Row]] = defaultdict(list)
    requests: defaultdict[str, list[Row]] = defaultdict(list)
    for row in registered:
        registries[row["registry"]].append(row)
        requests[row["request"]].append(row)
    for registry, rows in registries.items():
        yield from check_dense(f"places in {registry}", "place", rows)
    for request, rows in requests.items():
        if len(rows) > 1:
            yield f"request {request} was registered {len(rows)} times: {places(rows)}"
    answers: defaultdict[str, list[Row]] = defaultdict(list)
    for answer in told:
        answers[answer["request"]].append(answer)
    for request, said in answers.items():
        for answer in said:
            if answer["place"] is None:
                continue
            known = {row["place"] for row in requests[request]}
            if not known and finished:
                yield f"request {request} was told place {answer['place']}, and is not registered: {answer.place}"
            elif known and answer["place"] not in known:
                where = places([answer, *requests[request]])
                yield f"request {request} was told place {answer['place']}, and has {sorted(known)}: {where}"
    unasked = [row for request, rows in requests.items() if request not in answers for row in rows]
    if unasked and finished:
        yield f"{len(unasked)} requests were registered that nobody made: {places(unasked)}"


# What the checks share.


def compare(
    what: str, expected: Mapping[Any, list[Row]], found: Mapping[Any, list[Row]], *, finished: bool
) -> Anomalies:
    """Everything expected is there as often as it was asked for, and nothing else."""
    for key, asked in expected.items():
        rows = found.get(key, [])
        if len(rows) > len(asked) or (finished and len(rows) < len(asked)):
            kind = "lost" if len(rows) < len(asked) else "doubled"
            yield f"{kind}: {what} {key} came {len(rows)} times, not {len(asked)}: {places([*asked, *rows])}"
    for key, rows in found.items():
        if key not in expected:
            yield f"invented: {what} {key}: {places(rows)}"


def check_dense(what: str, field: str, rows: list[Row]) -> Anomalies:
    """The rows count 1, 2, 3 and so on, in the order in which they stand."""
    due = 1
    for row in rows:
        if row[field] != due:
            kind = "a gap" if row[field] > due else "again"
            yield f"{kind}: {what}: {field} {row[field]} where {due} is due: {row.place}"
        due = row[field] + 1


def places(rows: list[Row]) -> str:
    more = f" and {len(rows) - SHOWN_MAX} more" if len(rows) > SHOWN_MAX else ""
    return ", ".join(row.place for row in rows[:SHOWN_MAX]) + more


# Reading.


async def read(bootstrap: str, topic: str) -> list[Row]:
    return [
        Row(f"{record.topic}-{record.partition}@{record.offset}", json.loads(record.value))
        for record in await records_of(bootstrap, topic)
    ]


async def main(bootstrap: str, name: str, state: str = "finished") -> int:
    # Inputs last: of an application that still runs nothing is read that has come out before it went in.
    topics = {topic: await read(bootstrap, f"{name}-{topic}") for topic in (*OUTPUTS, *INPUTS)}
    anomalies = check(topics, finished=state == "finished")
    for anomaly in anomalies:
        print(anomaly)  # noqa: T201  # It is a program.
    counts = {topic: len(rows) for topic, rows in topics.items()}
    print(json.dumps({"records": sum(counts.values()), "anomalies": len(anomalies), **counts}))  # noqa: T201
    return 1 if anomalies else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
