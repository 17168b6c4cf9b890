"""One run: an arm under a fault with a seed, from nothing to a verdict.

    bank, relays, runtime -> warm-up and load, beside it the fault script -> quiescence -> states -> oracle -> run.json

What always holds: every process that was started is stopped, however the run ends; run.json is written last; what was
measured is told as it is; a run whose load or whose faults were late is told to be invalid, and so is one that does not
come to rest, which is not judged.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from penstock.compare.arms import DETECTION_S
from penstock.compare.checkout import data
from penstock.compare.checks import raised
from penstock.compare.faulting import LATE_MAX_S, Faulting, crash_points
from penstock.compare.load import LoadOptions, LoadResult
from penstock.compare.processes import Launched
from penstock.compare.records import (
    HARMLESS,
    Event,
    EventFile,
    Head,
    Initial,
    LedgerEntry,
    Plan,
    PlannedArm,
    PlannedFault,
    Run,
    RunDirectory,
    StateRecord,
    Status,
    Verdict,
    read_events,
    run_name,
    write_json,
    write_lines,
)
from penstock.compare.relay import Relay
from penstock.compare.rest import Look, Rest, come_to_rest
from penstock.compare.runtimes import Runtime, Wanted, runtime_of
from penstock.compare.sampling import Sampler
from penstock.compare.schedule import offers, poisoned
from penstock.errors import PenstockError, Unavailable
from penstock.faults import FAULT_VARIABLE
from penstock.files import make_directory

SHOP: Final = "penstock.compare.checkout.app:app"
BANK_START_S: Final = 20.0
LEAD_S: Final = 1.5
"""Between the start of the load generator and its first request: it imports and makes its requests in that time."""
LATE_P99_MAX_MS: Final = 5.0
STATES_MAX: Final = 100_000
READERS: Final = 32
"""States are read at once by so many: on Kafka each answer waits for a checkpoint, which many answers share."""
BUSY: Final = ("queued", "staged", "waiting", "calls_in_flight")
"""Figures of the status of an application that are zero at rest. What is held back for later need not be."""


class Conditions(NamedTuple):
    """What all runs of a comparison have in common, beside the plan."""

    folder: Path
    """Where the application is loaded from."""
    workers: int
    interval_s: float
    kafka: str = ""
    kafka_pid: int = 0
    load: str = ""
    checks: tuple[str, ...] = ()
    keep: bool = False
    """Whether state and logs of the run stay, to be looked at."""


class Runner:
    """Carries out runs of a plan."""

    def __init__(self, plan: Plan, plan_sha256: str, conditions: Conditions) -> None:
        self.plan = plan
        self.plan_sha256 = plan_sha256
        self.conditions = conditions

    async def run(self, directory: Path, arm: PlannedArm, fault: PlannedFault, seed: int) -> Run:
        """Carry it out anew, and write run.json. Raises ConfigurationError when the application does not load."""
        name = run_name(arm.name, fault.name, seed)
        shutil.rmtree(directory, ignore_errors=True)
        make_directory(directory)
        reason = self.plan.na.get(f"{arm.name}-{fault.name}", "")
        if reason:
            run = Run(name, arm.name, fault.name, seed, self.plan_sha256, "na", reason)
        else:
            run = await _Carried(self, directory, arm, fault, seed).run()
        write_json(directory / "run.json", run)
        return run


class _Carried:
    """See `Runner`."""

    def __init__(self, runner: Runner, directory: Path, arm: PlannedArm, fault: PlannedFault, seed: int) -> None:
        self._plan = runner.plan
        self._plan_sha256 = runner.plan_sha256
        self._conditions = runner.conditions
        self._directory = directory
        self._work = directory / "work"
        self._arm = arm
        self._fault = fault
        self._seed = seed
        self._name = run_name(arm.name, fault.name, seed)
        self._events: list[Event] = []
        self._origin_s = 0.0

    @property
    def _of_the_shop(self) -> bool:
        return self._plan.app.name == SHOP

    async def run(self) -> Run:
        self._work.mkdir()
        try:
            async with AsyncExitStack() as stack:
                run = await self._measure(stack)
        except Unavailable as error:
            return self._told("failed", str(error))
        if not self._conditions.keep and run.status != "failed":
            shutil.rmtree(self._work, ignore_errors=True)
        return run

    def _told(self, status: Status, reason: str, **more: Any) -> Run:
        return Run(self._name, self._arm.name, self._fault.name, self._seed, self._plan_sha256, status, reason, **more)

    async def _measure(self, stack: AsyncExitStack) -> Run:
        bank_url = await self._start_bank(stack)
        relays = {"bank": await self._relay(stack, bank_url)} if bank_url else {}
        runtime = runtime_of(self._arm.mode, self._wanted(relays["bank"].url if bank_url else ""))
        stack.push_async_callback(runtime.stop)
        await runtime.start()
        relays["client"] = await self._relay(stack, runtime.url)
        self._origin_s = time.monotonic() + LEAD_S + self._plan.warmup_s
        sampling = asyncio.create_task(Sampler(runtime, self._origin_s, self._events.append).run())
        stack.callback(sampling.cancel)
        faulting = Faulting(
            self._fault.steps,
            runtime=runtime,
            relays=relays,
            bank_url=bank_url,
            kafka_pid=self._conditions.kafka_pid,
            seed=self._seed,
            origin_s=self._origin_s,
            note=self._events.append,
        )
        load, _ = await asyncio.gather(self._offer_load(stack, relays["client"].url), faulting.run())
        self._mend(runtime)
        rest = await self._rest(runtime)
        write_lines(self._directory / "states.jsonl", await asyncio.to_thread(lambda: list(self._states(runtime))))
        self._events += await asyncio.to_thread(lambda: list(self._checkpoints(runtime)))
        sampling.cancel()
        await runtime.stop()
        self._write_events()
        if not rest.reason:
            await self._judge()
        harm = self._arm.settings.get("controls", {}).get(self._fault.name, "")
        verdict = RunDirectory(self._directory).verdict()
        reason = doubt(load, faulting.late_max_s, faulting.misses, verdict, harm, rest.reason)
        return self._told(
            "invalid" if reason else "complete",
            reason,
            seconds=self._plan.seconds,
            rate=round(load.offered / self._plan.seconds, 3),
            late_p99_ms=load.late_p99_ms,
            quiet_s=None if rest.since_s is None else round(rest.since_s - self._origin_s, 3),
            initial=msgspec.convert(data.initial(), Initial) if self._of_the_shop else Initial(),
            protection=self._protection(runtime, faulting),
        )

    # What runs.

    async def _start_bank(self, stack: AsyncExitStack) -> str:
        """Its URL; empty for an application of one's own, which has none."""
        if not self._of_the_shop:
            return ""
        command = [sys.executable, "-m", "penstock.compare.checkout.bank", "--port", "0"]
        command += ["--ledger", str(self._work / "ledger.jsonl"), "--mode", self._arm.bank]
        bank = Launched("bank", command, self._work / "bank.log", {}, self._conditions.folder)
        stack.push_async_callback(bank.stop)
        await bank.start()
        until_s = time.monotonic() + BANK_START_S
        while not bank.said().startswith("http://"):
            if not bank.pid or time.monotonic() > until_s:
                raise Unavailable("PEN0907", f"The bank does not start: {bank.said().strip() or 'it says nothing'}.")
            await asyncio.sleep(0.02)
        return bank.said().strip()

    async def _relay(self, stack: AsyncExitStack, url: str) -> Relay:
        host, _, port = url.removeprefix("http://").partition(":")
        relay = Relay((host, int(port)), seed=self._seed)
        await relay.open()
        stack.push_async_callback(relay.close)
        return relay

    def _wanted(self, bank_url: str) -> Wanted:
        plan, conditions = self._plan, self._conditions
        environment = dict(self._arm.settings.get("environment", {}))
        if self._of_the_shop:
            environment |= {
                "COMPARE_FLOW": self._arm.flow,
                "COMPARE_BANK": bank_url,
                "COMPARE_BANK_MODE": self._arm.bank,
                "COMPARE_WITNESS": str(self._work / "witness.jsonl"),
                "COMPARE_POISON": self._poison(),
            }
        if points := crash_points(self._fault.steps, warmup_s=plan.warmup_s):
            environment[FAULT_VARIABLE] = points
        return Wanted(
            plan.app.name,
            f"compare-{self._name.lower()}-{time.time_ns() // 1_000_000_000}",
            conditions.folder,
            self._work,
            environment,
            conditions.workers,
            conditions.interval_s,
            DETECTION_S,
            conditions.kafka,
            self._arm.settings.get("policies", ""),
        )

    def _poison(self) -> str:
        """The id of the order that is."""
        plan, steps = self._plan, self._fault.steps
        offered = offers(self._seed, rate=plan.rate, warmup_s=plan.warmup_s, seconds=plan.seconds, steps=steps)
        number = poisoned(offered, steps)
        return "" if number is None else data.order(self._seed, number, plan.theta).id

    async def _offer_load(self, stack: AsyncExitStack, url: str) -> LoadResult:
        """Until the last request is answered."""
        plan = self._plan
        options = LoadOptions(
            url=url,
            out=str(self._work / "load.jsonl"),
            head=self._head(),
            origin=self._origin_s,
            seed=self._seed,
            rate=plan.rate,
            warmup_s=plan.warmup_s,
            seconds=plan.seconds,
            steps=self._fault.steps,
            theta=plan.theta,
            source=self._conditions.load,
            folder=str(self._conditions.folder),
            attempts_max=self._arm.settings["client_attempts"],
            keyed=self._arm.settings["client_keys"],
        )
        (self._work / "load.json").write_bytes(msgspec.json.encode(options))
        command = [sys.executable, "-m", "penstock.compare.load", str(self._work / "load.json")]
        load = Launched("load", command, self._work / "load.log", {}, self._conditions.folder)
        stack.push_async_callback(load.stop)
        await load.start()
        code = await load.ended()
        if code != 0:
            raise Unavailable("PEN0907", f"The load generator has ended with {code}: {load.said()[-2000:]}")
        return msgspec.json.decode(load.said().strip().splitlines()[-1], type=LoadResult)

    def _mend(self, runtime: Runtime) -> None:
        """What stops at a message that raises is up again when somebody has corrected its code, and not before."""
        if runtime.restarts and self._poison():
            runtime.forget("COMPARE_POISON")
            self._events.append(Event(time.monotonic() - self._origin_s, "fault_off", what="poison", where="client"))

    async def _rest(self, runtime: Runtime) -> Rest:
        return await come_to_rest(
            partial(asyncio.to_thread, self._look, runtime), partial(asyncio.to_thread, self._unended, runtime)
        )

    def _look(self, runtime: Runtime) -> Look:
        sizes = tuple(path.stat().st_size for path in sorted(self._work.glob("*.jsonl")))
        try:
            return looked_at(runtime.client.status(), sizes)
        except PenstockError:
            return Look(1, 0, sizes)

    def _unended(self, runtime: Runtime) -> list[str] | None:
        """Orders of the shop that were begun, and what is the trouble with each if it is a saga that has told."""
        if not self._of_the_shop:
            return []
        try:
            return unended(self._states(runtime, only=data.FUNCTIONS[0]))
        except PenstockError:
            return None

    # What is kept of it.

    def _states(self, runtime: Runtime, only: str = "") -> Iterator[StateRecord]:
        """Of every address, as anybody can ask for it."""
        client = runtime.client
        for function in client.functions():
            typename = function["function"]
            if not function["state"] or (only and typename != only):
                continue
            ids = client.state_ids(typename, prefix="", limit=STATES_MAX)
            with ThreadPoolExecutor(READERS) as pool:
                found = pool.map(partial(client.state, typename), ids)
                yield from (StateRecord(typename, id, each["state"]) for id, each in zip(ids, found, strict=True))

    def _checkpoints(self, runtime: Runtime) -> Iterator[Event]:
        if self._arm.mode != "stream":
            return
        ahead_s = time.time() - time.monotonic() + self._origin_s
        with suppress(PenstockError):
            for each in runtime.client.checkpoints():
                t = round(datetime.fromisoformat(each["at"]).timestamp() - ahead_s, 4)
                yield Event(t, "ckpt_commit", epoch=each["checkpoint"], bytes=each.get("delta_bytes"))

    def _head(self) -> Head:
        return Head(self._name, self._arm.name, self._fault.name, self._seed)

    def _write_events(self) -> None:
        with EventFile(self._directory / "events.jsonl", self._head()) as file:
            file.write_all(self._events)
            file.write_all(read_events(self._work / "load.jsonl", self._name))
            file.write_all(_witnessed(self._work / "witness.jsonl", self._origin_s))
        write_lines(self._directory / "ledger.jsonl", _ledger(self._work / "ledger.jsonl", self._origin_s))

    async def _judge(self) -> None:
        """Let processes that know nothing of the runtimes say what is right."""
        if self._of_the_shop:
            await self._run_judge("penstock.compare.checkout.oracle", str(self._directory))
        elif self._conditions.checks:
            await self._run_judge("penstock.compare.checks", str(self._directory), *self._conditions.checks)

    async def _run_judge(self, module: str, *arguments: str) -> None:
        if self._of_the_shop:
            # It needs to know what there was in the beginning, which run.json tells once more when all is done.
            write_json(self._directory / "initial.json", msgspec.convert(data.initial(), Initial))
        judge = Launched(
            "oracle",
            [sys.executable, "-m", module, *arguments],
            self._work / "oracle.log",
            {},
            self._conditions.folder,
        )
        await judge.start()
        try:
            code = await judge.ended()
        finally:
            await judge.stop()
        if code != 0:
            raise Unavailable("PEN0907", f"The oracle has ended with {code}: {judge.said()[-2000:]}")

    def _protection(self, runtime: Runtime, faulting: Faulting) -> Mapping[str, Any]:
        return {
            "flow": self._arm.flow,
            "bank": self._arm.bank,
            **self._arm.settings,
            "restarts": runtime.restarts,
            "fault_late_max_ms": round(1000 * faulting.late_max_s, 1),
        }


def looked_at(status: Mapping[str, Any], sizes: tuple[int, ...]) -> Look:
    """The status of an application, and how long the files are that it and the bank write."""
    # A status without one of these figures is that of a runtime that has no such thing.
    busy = sum(status.get(name) or 0 for name in BUSY)
    # Nobody knows what is under way at a host that does not answer.
    busy += sum(not host["answers"] for host in status.get("hosts", ()))
    return Look(busy, status.get("held") or 0, sizes)


def unended(orders: Iterable[StateRecord]) -> list[str]:
    """Those which have not, each with what it does not get over, if it is a saga and says so."""
    found = []
    for order in orders:
        state = order.state or {}
        if not data.outcome_of(data.answer_in(state)):
            trouble = state.get("trouble")
            found.append(f"{order.id} ({trouble['reason']})" if trouble else order.id)
    return found


def doubt(
    load: LoadResult,
    fault_late_s: float,
    misses: Sequence[str],
    verdict: Verdict | None,
    harm: str,
    unrest: str = "",
) -> str:
    """Why a run proves nothing; empty if it does. `harm` is what the oracle has to count, if the run is a control;
    `unrest` why it was not asked."""
    if load.late_p99_ms > LATE_P99_MAX_MS:
        return f"the load generator was late by {load.late_p99_ms:g} ms (p99), and {LATE_P99_MAX_MS:g} ms are allowed"
    if fault_late_s > LATE_MAX_S:
        return f"a fault was late by {1000 * fault_late_s:.0f} ms, and {1000 * LATE_MAX_S:.0f} ms are allowed"
    if misses:
        return f"nothing was struck: {'; '.join(misses)}"
    if unrest:
        return unrest
    if verdict is not None and (broken := raised(verdict)):
        return f"it is not judged, since a check is broken ({broken}): mend that, and repeat the command with --again"
    if harm and verdict is not None and not verdict.counts.get(harm):
        return f"{HARMLESS} ({harm}) shows none, so that others show none proves nothing"
    return ""


def _witnessed(path: Path, origin_s: float) -> Iterator[Event]:
    """What handlers have noted. The last line of a process that was killed may be half a line."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, msgspec.ValidationError):
                event = msgspec.convert(json.loads(line), Event)
                yield msgspec.structs.replace(event, t=round(event.t - origin_s, 6))


def _ledger(path: Path, origin_s: float) -> Iterator[LedgerEntry]:
    """An application of one's own has no bank, and an empty ledger."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            entry = msgspec.json.decode(line, type=LedgerEntry)
            yield msgspec.structs.replace(entry, t=round(entry.t - origin_s, 6))
