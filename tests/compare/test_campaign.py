"""All runs of a plan, once each: in an order that follows from the seed, and going on where it was interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.compare import campaign
from penstock.compare.campaign import Clock, carry_out, forget_unusable, opened, order_of
from penstock.compare.records import AppInfo, Plan, PlannedArm, PlannedFault, Run, write_json
from penstock.compare.runner import Conditions
from penstock.errors import Refused
from penstock.files import make_directory

ARMS = [PlannedArm(name, "stream", "", "plain", "keyed", {}) for name in ("S1", "S2", "S3")]
FAULTS = [PlannedFault(name, "", []) for name in ("X0", "X2")]
CONDITIONS = Conditions(Path(), 2, 0.2)


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "command": ["penstock"],
        "app": AppInfo("shop", "0"),
        "machine": {},
        "arms": ARMS,
        "faults": FAULTS,
        "seeds": [0, 1],
        "seconds": 10.0,
        "warmup_s": 1.0,
        "rate": 1.0,
        "theta": 0.8,
        "differences": [],
        "threats": [],
        "na": {"S1-X2": "it can't"},
    }
    return Plan(**(fields | changes))  # type: ignore[arg-type]


class FakeRunner:
    """Runs nothing, and ends as it is told."""

    ran: list[str]
    stops_at = ""

    def __init__(self, plan: Plan, plan_sha256: str, conditions: Conditions) -> None:
        self._sha256 = plan_sha256

    async def run(self, directory: Path, arm: PlannedArm, fault: PlannedFault, seed: int) -> Run:
        make_directory(directory)
        if directory.name == FakeRunner.stops_at:
            raise KeyboardInterrupt
        FakeRunner.ran.append(directory.name)
        run = Run(directory.name, arm.name, fault.name, seed, self._sha256, "complete")
        write_json(directory / "run.json", run)
        return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    FakeRunner.ran, FakeRunner.stops_at = [], ""
    monkeypatch.setattr(campaign, "Runner", FakeRunner)
    return FakeRunner


def carried_out(directory: Path) -> list[str]:
    said: list[str] = []
    comparison = opened(directory, plan())
    asyncio.run(carry_out(comparison, CONDITIONS, lambda due, run, clock: said.append(due.name)))
    return said


def test_arms_come_in_another_order_for_each_seed_and_in_the_same_one_again() -> None:
    more = plan(seeds=list(range(20)))
    orders = {tuple(due.arm.name for due in order_of(more) if due.seed == seed) for seed in more.seeds}

    assert len(orders) > 5
    assert order_of(more) == order_of(more)
    assert len({due.name for due in order_of(more)}) == 3 * 2 * 20


def test_every_run_is_done_once(tmp_path: Path, fake: type[FakeRunner]) -> None:
    carried_out(tmp_path / "out")

    assert fake.ran == [due.name for due in order_of(plan())]


def test_what_is_done_already_is_not_done_again(tmp_path: Path, fake: type[FakeRunner]) -> None:
    names = [due.name for due in order_of(plan())]
    fake.stops_at = names[4]
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path / "out")
    fake.ran.clear()
    fake.stops_at = ""

    carried_out(tmp_path / "out")

    assert fake.ran == names[4:]


def test_what_failed_or_proves_nothing_is_done_again_when_that_is_wanted(tmp_path: Path) -> None:
    comparison = opened(tmp_path / "out", plan())
    names = [due.name for due in order_of(plan())]
    for name, status in zip(names, ("complete", "failed", "invalid", "na"), strict=False):
        folder = comparison.run_directory(name).directory
        folder.mkdir(parents=True)
        arm, fault, seed = name.split("-")
        run = Run(name, arm, fault, int(seed), comparison.plan_sha256, status)  # type: ignore[arg-type]
        write_json(folder / "run.json", run)

    forget_unusable(comparison)

    assert set(names) - set(comparison.missing()) == {names[0], names[3]}


def test_another_plan_is_refused_and_told_apart(tmp_path: Path) -> None:
    opened(tmp_path / "out", plan())

    with pytest.raises(Refused) as refusal:
        opened(tmp_path / "out", plan(rate=2.0, seconds=20.0))
    assert refusal.value.code == "PEN0910"
    assert "seconds, rate" in refusal.value.message


def test_the_same_plan_by_another_way_of_writing_it_goes_on(tmp_path: Path) -> None:
    first = opened(tmp_path / "out", plan())

    assert opened(tmp_path / "out", plan(command=["python", "-m", "penstock"])).plan_sha256 == first.plan_sha256


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("", encoding="utf-8")

    with pytest.raises(Refused, match="not empty"):
        opened(tmp_path, plan())


def test_the_time_that_is_left_follows_from_what_runs_took() -> None:
    clock = Clock(plan(), 10)
    clock.ran(30)
    clock.ran(10)

    assert clock.left_s == 8 * 20
