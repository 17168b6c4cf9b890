from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.compare.records import Event
from penstock.compare.summary import summarise
from penstock.errors import InvalidInput
from tests.compare.synthetic import (
    KILL,
    MESH,
    NOTHING,
    STREAM,
    Behaviour,
    Directory,
    plan_of,
    verdict_of,
)

ANSWERED = [
    Event(0.5, "offered", order="a"),
    Event(0.5, "reply", "client", order="a", outcome="CONFIRMED", dur_ms=10),
]
FAILED = [Event(0.5, "offered", order="a"), Event(0.6, "reply", "client", order="a", outcome="PEN0816", dur_ms=100)]


def directory(path: Path, seeds: int = 2) -> Directory:
    return Directory(path, plan_of([STREAM, MESH], [NOTHING, KILL], range(seeds), seconds=2.0))


def test_a_cell_is_over_the_seeds(tmp_path: Path) -> None:
    made = directory(tmp_path)
    made.add("S2", "X0", 0, ANSWERED, verdict=verdict_of({"lost": 1}, 5))
    made.add("S2", "X0", 1, FAILED, verdict=verdict_of({"lost": 2, "lied": 1}, 5))
    cell = summarise(tmp_path).cell("S2", "X0")
    assert cell is not None
    assert cell.availability is not None
    assert (cell.seeds, cell.counts.offered, cell.counts.right, cell.availability.mean) == (2, 2, 1, 0.5)
    assert cell.truth is not None
    assert (cell.truth.lost, cell.truth.lied, cell.truth.violations["I4"]) == (3, 1, 4)


def test_what_is_missing_invalid_or_not_expressible_has_its_reason(tmp_path: Path) -> None:
    made = directory(tmp_path, seeds=1)
    made.add("S2", "X0", 0, ANSWERED)
    made.add("S2", "X2", 0, ANSWERED, status="invalid", reason="the load was late")
    made.add("M3", "X0", 0, [], status="na", reason="it has no such thing")
    found = summarise(tmp_path)
    assert [(cell.arm, cell.fault, cell.state, cell.reason) for cell in found.cells] == [
        ("S2", "X0", "measured", ""),
        ("S2", "X2", "invalid", "the load was late"),
        ("M3", "X0", "na", "it has no such thing"),
        ("M3", "X2", "missing", "not measured yet"),
    ]
    assert found.missing == ["M3-X2-0"]
    assert found.cell("S2", "X2") is None


def test_invalid_runs_are_in_no_figure(tmp_path: Path) -> None:
    made = directory(tmp_path)
    made.add("S2", "X0", 0, ANSWERED)
    made.add("S2", "X0", 1, FAILED, status="invalid", reason="the load was late")
    cell = summarise(tmp_path).cell("S2", "X0")
    assert cell is not None
    assert (cell.seeds, cell.counts.offered, cell.counts.failed) == (1, 1, 0)


def test_a_run_is_compared_with_its_own_arm_and_seed(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING, KILL], [0]))
    made.play("S2", NOTHING, 0, Behaviour(latency_ms=400))
    made.play("M3", NOTHING, 0, Behaviour(latency_ms=20))
    made.play("S2", KILL, 0, Behaviour(latency_ms=400))
    made.play("M3", KILL, 0, Behaviour(latency_ms=400))
    recovered = {run.run: run.recovery.recovery_s for run in summarise(tmp_path).runs if run.recovery}
    assert recovered == {"S2-X2-0": 0.0, "M3-X2-0": None}


def test_a_run_without_its_baseline_is_compared_with_nothing(tmp_path: Path) -> None:
    made = directory(tmp_path)
    made.add("S2", "X2", 0, [*ANSWERED, Event(1.0, "fault_on", what="kill", where="worker")])
    (run,) = summarise(tmp_path).runs
    assert run.recovery is None
    assert run.blast is None


def test_a_comparison_without_a_complete_run_says_why(tmp_path: Path) -> None:
    made = directory(tmp_path)
    made.add("S2", "X0", 0, [], status="failed", reason="the bank does not start")
    with pytest.raises(InvalidInput) as caught:
        summarise(tmp_path)
    assert caught.value.code == "PEN0980"
    assert "failed: the bank does not start" in str(caught.value)
    assert "8 that are planned" in str(caught.value)


def test_a_run_whose_records_are_cut_off_is_named(tmp_path: Path) -> None:
    made = directory(tmp_path)
    events = made.add("S2", "X0", 0, ANSWERED) / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20])
    with pytest.raises(InvalidInput) as caught:
        summarise(tmp_path)
    assert caught.value.code == "PEN0902"
    assert "line 3" in str(caught.value)


def test_a_run_of_another_comparison_is_named(tmp_path: Path) -> None:
    made, other = directory(tmp_path / "one"), directory(tmp_path / "two", seeds=3)
    made.add("S2", "X0", 0, ANSWERED)
    other.add("S2", "X0", 1, ANSWERED).rename(tmp_path / "one" / "runs" / "S2-X0-1")
    with pytest.raises(InvalidInput) as caught:
        summarise(tmp_path / "one")
    assert caught.value.code == "PEN0903"


def test_a_summary_can_be_written_and_read_again(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING, KILL], [0, 1]))
    for seed in (0, 1):
        made.play("S2", NOTHING, seed, Behaviour())
        made.play("S2", KILL, seed, Behaviour(outage=(8, 11)))
    found = summarise(tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
