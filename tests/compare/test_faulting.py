"""A script is carried out at its moments, the same for every arm, and what it switched on is off in the end."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from penstock.compare.faulting import LATE_MAX_S, Faulting, crash_points
from penstock.compare.records import Event
from penstock.compare.relay import Relay, Way

CUT = {"at_s": 0.05, "for_s": 0.1, "what": "cut", "where": "bank", "direction": "back"}
LOSE = {"at_s": 0.1, "for_s": 0.2, "what": "lose-replies", "where": "bank", "share": 0.5}
KILL = {"at_s": 0.2, "what": "kill", "where": "worker"}


class Runtime:
    """One without processes."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def pids(self, where: str) -> list[int]:
        return []

    def said(self) -> str:
        return ""


def carried_out(mode: str, *steps: dict[str, Any], give_up_s: float = 0.0) -> tuple[Faulting, list[Event], Relay]:
    events: list[Event] = []
    relay = Relay(("127.0.0.1", 1))

    async def run() -> Faulting:
        faulting = Faulting(
            steps,
            runtime=Runtime(mode),  # type: ignore[arg-type]
            relays={"bank": relay},
            bank_url="",
            kafka_pid=0,
            seed=3,
            origin_s=time.monotonic() + 0.02,
            note=events.append,
        )
        running = asyncio.create_task(faulting.run())
        if give_up_s:
            await asyncio.sleep(give_up_s)
            running.cancel()
            await asyncio.wait([running])
        else:
            await running
        return faulting

    return asyncio.run(run()), events, relay


def timeline(events: list[Event]) -> list[tuple[str, str, float | None]]:
    return [(event.kind, event.what, event.value) for event in sorted(events, key=lambda event: event.value or 0.0)]


def test_both_modes_have_the_same_timeline() -> None:
    _, stream, _ = carried_out("stream", CUT, LOSE, KILL)
    _, mesh, _ = carried_out("mesh", CUT, LOSE, KILL)

    assert timeline(stream) == timeline(mesh)
    assert [round(value or 0.0, 3) for _, _, value in timeline(stream)] == [0.05, 0.1, 0.15, 0.2, 0.3]


def test_nothing_begins_before_its_moment_and_lateness_is_told() -> None:
    faulting, events, _ = carried_out("stream", CUT, LOSE)

    late = [event.t - (event.value or 0.0) for event in events]
    assert min(late) >= -0.001
    assert abs(faulting.late_max_s - max(late)) < 0.001
    assert LATE_MAX_S == 0.05


def test_steps_on_the_same_relay_end_each_for_itself() -> None:
    _, _, relay = carried_out("stream", CUT, LOSE)

    assert relay.lost_share == 0
    assert relay.is_open(Way.BACK)


def test_what_is_given_up_is_switched_off() -> None:
    _, _, relay = carried_out("stream", CUT | {"for_s": 60.0}, LOSE | {"for_s": 60.0}, give_up_s=0.3)

    assert relay.lost_share == 0
    assert relay.is_open(Way.BACK)


def test_a_fault_that_finds_nobody_is_a_miss() -> None:
    faulting, _, _ = carried_out("stream", KILL)

    assert faulting.misses == ["kill found no worker"]


def test_answers_that_were_to_be_lost_and_were_not_are_a_miss() -> None:
    faulting, _, _ = carried_out("stream", LOSE)

    assert faulting.misses == ["lose-replies lost no answer of the bank"]


def test_answers_that_are_lost_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many as there were when it is looked at: one more each time.
    monkeypatch.setattr(Relay, "lost", property(lambda self: next(counts), lambda self, value: None), raising=False)
    counts = itertools.count()

    faulting, _, _ = carried_out("stream", LOSE)

    assert faulting.misses == []


def test_points_are_told_to_the_processes_in_their_own_words() -> None:
    step = {"at_s": 6.0, "what": "crash", "where": "worker", "point": "complete.durable", "action": "kill"}

    points = crash_points([step, KILL], warmup_s=3)

    assert points == "complete.durable:360:kill"
