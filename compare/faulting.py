"""Carries out a fault script: each step at its moment, and its end at its own.

What always holds: a step begins within 50 ms of its moment, or the run is told to be late; both moments are noted when
it is done; what a step has switched on is off when the run is over, also when that is given up. What concerns the load
is known to the load generator from the beginning, and is only noted here.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.request import ProxyHandler, Request, build_opener

from penstock.compare.processes import send_signal
from penstock.compare.records import Event
from penstock.compare.relay import Relay, Way
from penstock.compare.runtimes import Runtime
from penstock.compare.script import OF_THE_LOAD
from penstock.faults import FAULT_VARIABLE

LATE_MAX_S: Final = 0.05
LOOK_S: Final = 0.02
PASSES_PER_S: Final = 40.0
"""About how often checkpoints complete while requests wait for them: as soon as the last one is durable."""
WAYS: Final = {"both": (Way.THERE, Way.BACK), "there": (Way.THERE,), "back": (Way.BACK,)}

Step = Mapping[str, Any]


def crash_points(steps: Sequence[Step], *, warmup_s: float) -> str:
    """What the processes of the run find in PENSTOCK_FAULT. A point strikes at a count and not at a moment, so when it
    does is an estimate; it is noted when it has."""
    return ",".join(
        f"{step['point']}:{max(1, round((warmup_s + step['at_s']) * PASSES_PER_S))}:{step['action']}"
        for step in steps
        if step["what"] == "crash"
    )


class Faulting:
    """The script of one run. `origin_s` is when the measured time begins."""

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        runtime: Runtime,
        relays: Mapping[str, Relay],
        bank_url: str,
        kafka_pid: int,
        seed: int,
        origin_s: float,
        note: Callable[[Event], None],
    ) -> None:
        self.late_max_s = 0.0
        self.misses: list[str] = []
        """Steps that found nothing to be done to."""
        self._steps = steps
        self._runtime = runtime
        self._relays = relays
        self._bank_url = bank_url
        self._kafka_pid = kafka_pid
        self._seed = seed
        self._origin_s = origin_s
        self._note = note
        self._undo: dict[int, Callable[[], None]] = {}

    async def run(self) -> None:
        """Until the last step is over."""
        try:
            await asyncio.gather(*(self._carry_out(number, step) for number, step in enumerate(self._steps)))
        finally:
            for undo in list(self._undo.values()):
                undo()

    async def _carry_out(self, number: int, step: Step) -> None:
        if step["what"] == "crash":
            return await self._await_crash(step)
        await self._until(step["at_s"])
        pid = self._victim(number, step)
        self._noted("fault_on", step, step["at_s"], pid)
        await self._begin(number, step, pid)
        if "for_s" in step:
            lost = self._lost(step)
            await self._until(step["at_s"] + step["for_s"])
            self._noted("fault_off", step, step["at_s"] + step["for_s"], pid)
            if undo := self._undo.pop(number, None):
                undo()
            if step["what"] == "lose-replies" and self._lost(step) == lost:
                self.misses.append(f"lose-replies lost no answer of the {step['where']}")
        return None

    def _lost(self, step: Step) -> int:
        """Answers that did not come through the relay of the step so far, if it has one."""
        relay = self._relays.get(step["where"])
        return relay.lost if relay else 0

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._origin_s + at_s - time.monotonic()))

    def _noted(self, kind: Any, step: Step, meant_s: float, pid: int) -> None:
        now_s = time.monotonic() - self._origin_s
        self.late_max_s = max(self.late_max_s, now_s - meant_s)
        node = f"{pid}" if pid else ""
        self._note(Event(now_s, kind, node, what=step["what"], where=step["where"], value=meant_s))

    async def _begin(self, number: int, step: Step, pid: int) -> None:
        what: str = step["what"]
        match what:
            case "kill":
                self._signal(pid, step, signal.SIGKILL)
            case "stop":
                self._signal(pid, step, signal.SIGSTOP)
                self._undo[number] = lambda: _thaw(pid)
            case "stop-broker":
                send_signal(self._kafka_pid, signal.SIGSTOP)
                self._undo[number] = lambda: _thaw(self._kafka_pid)
            case "slow":
                self._slow(step["where"], step["delay_s"])
                self._undo[number] = lambda: self._slow(step["where"], 0.0)
            case "delay" | "cut" | "lose-replies":
                self._undo[number] = _set(self._relays[step["where"]], step)
            case "replace":
                await self._runtime.replace()
            case "rescale":
                await self._runtime.rescale()
            case _:
                assert what in OF_THE_LOAD, what

    def _victim(self, number: int, step: Step) -> int:
        """The process that is struck; 0 if it is none, or none was found."""
        pids = self._runtime.pids(step["where"]) if step["what"] in ("kill", "stop") else []
        # By its place and not by its id, so that in each run of a seed the same one is struck.
        return random.Random(f"{self._seed}/{number}").choice(pids) if pids else 0

    def _signal(self, pid: int, step: Step, sent: signal.Signals) -> None:
        if not pid or not send_signal(pid, sent):
            self.misses.append(f"{step['what']} found no {step['where']}")

    def _slow(self, where: str, delay_s: float) -> None:
        body = {"prepare_s": delay_s, "handler_s": delay_s if where == "handler" else 0.0}
        request = Request(f"{self._bank_url}/slow", json.dumps(body).encode(), {"Content-Type": "application/json"})
        build_opener(ProxyHandler({})).open(request, timeout=5).close()

    async def _await_crash(self, step: Step) -> None:
        """The process says when it comes past its point. One that never does has missed."""
        until_s = self._origin_s + step["at_s"] + 20.0
        while f"{FAULT_VARIABLE}:" not in self._runtime.said():
            if time.monotonic() > until_s:
                self.misses.append(f"nothing came past {step['point']}")
                return
            await asyncio.sleep(LOOK_S)
        self._note(Event(time.monotonic() - self._origin_s, "fault_on", what="crash", where=step["point"]))


def _set(relay: Relay, step: Step) -> Callable[[], None]:
    """Returns what takes it back, and nothing else that is done to the same relay."""
    what: str = step["what"]
    match what:
        case "delay":
            relay.delay_s = step["delay_s"]
            return partial(setattr, relay, "delay_s", 0.0)
        case "cut":
            ways = WAYS[step["direction"]]
            relay.cut(*ways)
            return partial(relay.mend, *ways)
        case _:
            assert what == "lose-replies", what
            relay.lost_share = step["share"]
            return partial(setattr, relay, "lost_share", 0.0)


def _thaw(pid: int) -> None:
    if pid:
        send_signal(pid, signal.SIGCONT)
