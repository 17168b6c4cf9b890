"""Makes directories of comparisons that nobody measured, to test what is computed from them.

A run is made of rules ("these orders fail from second 4 to 6"), so that what must come out is known beforehand. Arms,
faults and threats are those of tests: nothing here is a result.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.compare.records import (
    AppInfo,
    Difference,
    Event,
    EventFile,
    Head,
    Invariant,
    LedgerEntry,
    Plan,
    PlannedArm,
    PlannedFault,
    Run,
    Status,
    Verdict,
    run_name,
    write_json,
    write_lines,
)

STREAM = PlannedArm("S2", "stream", "stream, gives up a message that raises", "plain", "keyed", {})
MESH = PlannedArm("M3", "mesh", "an order is a saga that is conducted", "saga", "keyed", {})
CONTROL = PlannedArm("M1", "mesh", "control: retries, and no key reaches the bank", "plain", "plain", {})
KEYED = PlannedArm("M2", "mesh", "keys, budget, breaker and ejection", "plain", "keyed", {})
NOTHING = PlannedFault("X0", "nothing happens", [])
KILL = PlannedFault("X2", "a process is killed", [{"at_s": 8, "what": "kill", "where": "worker"}])
SLOW = PlannedFault(
    "X5", "the bank is slow", [{"at_s": 6, "for_s": 6, "what": "slow", "where": "handler", "delay_s": 1.0}]
)
LOST = PlannedFault("X9", "answers are lost", [{"at_s": 6, "for_s": 6, "what": "lose-replies", "where": "bank"}])
OVERLOAD = PlannedFault(
    "X11", "twice as many come", [{"at_s": 6, "for_s": 6, "what": "overload", "where": "client", "factor": 2}]
)
NODES = ("1001", "1002")
COUNTS = ("lost", "duplicated", "orphaned", "lied", "wrong")


@dataclass
class Behaviour:
    """What a run does: its latency, and from when to when whom a fault reaches."""

    latency_ms: float = 20.0
    spread_ms: float = 8.0
    outage: tuple[float, float] | None = None
    """Orders of this time are answered when it is over."""
    failing: tuple[float, float] | None = None
    """Orders of this time get an error."""
    only_node: str = ""
    """Only orders of this process suffer; all, if it is empty."""
    struck: str = ""
    """The process that the fault strikes; `only_node`, if it is empty."""
    harm: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    rollback_at: float | None = None
    checkpoint_every_s: float = 0.0
    """0 for none."""


def plan_of(
    arms: Sequence[PlannedArm], faults: Sequence[PlannedFault], seeds: Sequence[int], *, seconds: float = 20.0
) -> Plan:
    return Plan(
        command=["penstock", "compare", "--made-up"],
        app=AppInfo("tests.synthetic:app", hashlib.sha256(b"no file").hexdigest()),
        machine={"cpus": 2, "system": "made up <for tests> & nothing else"},
        arms=list(arms),
        faults=list(faults),
        seeds=list(seeds),
        seconds=seconds,
        warmup_s=2.0,
        rate=20.0,
        theta=0.8,
        differences=[
            Difference("durability", "checkpoint", "transaction", False),
            Difference("Python", "3.11", "3.11", True),
        ],
        threats=["It was made up."],
        na={},
    )


class Directory:
    """A comparison that is filled run by run."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        path.mkdir(parents=True, exist_ok=True)
        self.sha256 = hashlib.sha256(write_json(path / "plan.json", plan)).hexdigest()

    def add(
        self,
        arm: str,
        fault: str,
        seed: int,
        events: Sequence[Event],
        *,
        verdict: Verdict | None = None,
        ledger: Sequence[LedgerEntry] = (),
        status: Status = "complete",
        reason: str = "",
    ) -> Path:
        name = run_name(arm, fault, seed)
        folder = self.path / "runs" / name
        folder.mkdir(parents=True)
        with EventFile(folder / "events.jsonl", Head(name, arm, fault, seed)) as file:
            file.write_all(events)
        write_lines(folder / "ledger.jsonl", ledger)
        write_lines(folder / "states.jsonl", [])
        if verdict:
            write_json(folder / "verdict.json", verdict)
        write_json(
            folder / "run.json",
            Run(
                name,
                arm,
                fault,
                seed,
                self.sha256,
                status,
                reason,
                seconds=self.plan.seconds,
                rate=self.plan.rate,
                late_p99_ms=0.4,
                quiet_s=self.plan.seconds + 1,
            ),
        )
        return folder

    def play(self, arm: str, fault: PlannedFault, seed: int, behaviour: Behaviour) -> Path:
        events, ledger = played(self.plan, fault, seed, behaviour)
        return self.add(arm, fault.name, seed, events, ledger=ledger, verdict=verdict_of(behaviour.harm, len(ledger)))


def verdict_of(harm: Mapping[str, int], checked: int) -> Verdict:
    invariants = {f"I{number}": Invariant(checked, []) for number in range(1, 7)}
    texts = [f"{count} {what}" for what, count in harm.items() for _ in range(count)]
    invariants["I4"] = Invariant(checked, texts)
    return Verdict(invariants, {name: harm.get(name, 0) for name in COUNTS}, {"CONFIRMED": checked})


def played(plan: Plan, fault: PlannedFault, seed: int, behaviour: Behaviour) -> tuple[list[Event], list[LedgerEntry]]:
    rng = random.Random(seed)
    events: list[Event] = []
    ledger: list[LedgerEntry] = []
    struck = behaviour.struck or behaviour.only_node
    for step in fault.steps:
        events.append(Event(step["at_s"], "fault_on", node=struck, what=step["what"], where=step["where"]))
        if "for_s" in step:
            until = step["at_s"] + step["for_s"]
            events.append(Event(until, "fault_off", node=struck, what=step["what"], where=step["where"]))
    for number in range(-int(plan.warmup_s * plan.rate), int(plan.seconds * plan.rate)):
        of_order, at_bank = _order(number / plan.rate, f"o-{seed}-{number + 1000}", rng, behaviour)
        events += of_order
        ledger += at_bank
    for second in range(int(-plan.warmup_s), int(plan.seconds) + 1):
        for place, node in enumerate(NODES):
            used = 5.0 + 0.2 * second + place
            events.append(Event(float(second), "proc", node, where="worker", cpu_s=used, rss=60_000_000))
    if behaviour.checkpoint_every_s:
        taken = range(int(plan.seconds / behaviour.checkpoint_every_s))
        events += [Event(epoch * behaviour.checkpoint_every_s, "ckpt_commit", epoch=epoch) for epoch in taken]
    if behaviour.rollback_at is not None:
        events.append(Event(behaviour.rollback_at, "rollback", "door", value=1.0))
    return events, ledger


def _order(t: float, name: str, rng: random.Random, behaviour: Behaviour) -> tuple[list[Event], list[LedgerEntry]]:
    user = rng.randrange(40)
    node, key = NODES[user % 2], f"user-{user}"
    names: dict[str, Any] = {"order": name, "key": key}
    latency_s = (behaviour.latency_ms + rng.random() * behaviour.spread_ms) / 1000
    hit = behaviour.only_node in ("", node)
    outcome = "CONFIRMED" if rng.random() < 0.8 else "REJECTED:stock"
    if behaviour.outage and hit and behaviour.outage[0] <= t < behaviour.outage[1]:
        latency_s += behaviour.outage[1] - t
    if behaviour.failing and hit and behaviour.failing[0] <= t < behaviour.failing[1]:
        outcome = "PEN0816"
    end = t + latency_s
    events = [Event(t, "offered", **names), Event(t, "sent", "client", attempt=1, **names)]
    events.append(Event(t + latency_s / 4, "start", node, fn="shop/order", id=name, order=name))
    if outcome == "CONFIRMED":
        events.append(Event(t + latency_s / 2, "start", node, fn="shop/payment", id=key, order=name))
    for attempt in range(behaviour.retries if hit and outcome == "PEN0816" else 0):
        events.append(Event(t + 0.1, "retry", "client", attempt=attempt + 1, **names))
        events.append(Event(t + 0.2, "sent", "client", attempt=attempt + 2, **names))
    events.append(Event(end, "reply", "client", outcome=outcome, status=200, dur_ms=latency_s * 1000, **names))
    paid = [
        LedgerEntry(end, "request", order=name, user=key),
        LedgerEntry(end, "capture", order=name, user=key, amount=5),
    ]
    return events, paid if outcome == "CONFIRMED" else []


def demonstration(path: Path, seeds: Sequence[int] = (0, 1)) -> Directory:
    """Two good arms and two more of the mesh, under everything that a plot needs."""
    plan = plan_of([STREAM, CONTROL, KEYED, MESH], [NOTHING, KILL, SLOW, LOST, OVERLOAD], seeds)
    directory = Directory(path, plan)
    for seed in seeds:
        for arm, latency in (("S2", 450.0), ("M1", 16.0), ("M2", 18.0), ("M3", 24.0)):
            steady = Behaviour(latency, latency / 3)
            stream = arm == "S2"
            killed = Behaviour(latency, latency / 3, outage=(8, 12), rollback_at=9.0) if stream else Behaviour(
                latency, latency / 3, failing=(8, 8.6), only_node=NODES[0], retries=2
            )  # fmt: skip
            slow = Behaviour(latency, latency / 3, outage=(6, 12)) if stream else Behaviour(latency + 300, latency)
            lost = Behaviour(latency, latency / 3, harm={"duplicated": 3 + seed} if arm == "M1" else {})
            loaded = Behaviour(latency * 4, latency) if stream else Behaviour(latency, 10, failing=(7, 11), retries=1)
            for fault, behaviour in ((NOTHING, steady), (KILL, killed), (SLOW, slow), (LOST, lost), (OVERLOAD, loaded)):
                directory.play(arm, fault, seed, behaviour)
    return directory
