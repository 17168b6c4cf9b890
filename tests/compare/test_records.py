"""What a comparison writes is what is read of it, and what does not belong together is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.compare.records import (
    AppInfo,
    Comparison,
    Event,
    EventFile,
    Head,
    LedgerEntry,
    Plan,
    PlannedArm,
    PlannedFault,
    Run,
    RunDirectory,
    run_name,
    write_json,
    write_lines,
)
from penstock.errors import InvalidInput, Unavailable

PLAN = Plan(
    command=["penstock", "compare"],
    app=AppInfo("shop", "0" * 64),
    machine={},
    arms=[PlannedArm("S2", "stream", "", "plain", "keyed", {})],
    faults=[PlannedFault("X0", "none", []), PlannedFault("X2", "a worker is killed", [{"at_s": 1.0}])],
    seeds=[0],
    seconds=5,
    warmup_s=1,
    rate=10,
    theta=0.8,
    differences=[],
    threats=[],
)


def planned(directory: Path) -> Comparison:
    write_json(directory / "plan.json", PLAN)
    return Comparison(directory)


def begun(comparison: Comparison, fault: str, *, of: str = "") -> RunDirectory:
    """A run with events, and no run.json."""
    found = comparison.run_directory(run_name("S2", fault, 0))
    found.directory.mkdir(parents=True)
    with EventFile(found.directory / "events.jsonl", Head(of or found.name, "S2", fault, 0)) as file:
        file.write_all([Event(-0.5, "offered", order="o-0-0"), Event(0.25, "reply", order="o-0-0", dur_ms=750.0)])
    return found


def finished(comparison: Comparison, fault: str, plan_sha256: str = "") -> RunDirectory:
    found = begun(comparison, fault)
    run = Run(found.name, "S2", fault, 0, plan_sha256 or comparison.plan_sha256, "complete")
    write_json(found.directory / "run.json", run)
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = finished(planned(tmp_path), "X2")
    write_lines(found.directory / "ledger.jsonl", [LedgerEntry(0.1, "capture", order="o-0-0", amount=12)])

    assert [event.kind for event in found.events()] == ["offered", "reply"]
    assert [entry.amount for entry in found.ledger()] == [12]
    assert found.verdict() is None


def test_what_is_not_known_is_absent_from_the_file(tmp_path: Path) -> None:
    found = finished(planned(tmp_path), "X2")

    lines = (found.directory / "events.jsonl").read_text(encoding="utf-8").splitlines()

    assert lines[0] == '{"kind":"run","run":"S2-X2-0","arm":"S2","fault":"X2","seed":0,"version":1}'
    assert lines[1] == '{"t":-0.5,"kind":"offered","order":"o-0-0"}'


def test_a_run_without_its_last_file_is_missing(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    finished(comparison, "X0")
    begun(comparison, "X2")

    assert comparison.missing() == ["S2-X2-0"]
    assert [run.fault for run, _ in comparison.done()] == ["X0"]


def test_records_have_a_hash_that_tells_when_one_was_changed(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    found = finished(comparison, "X0")
    write_lines(found.directory / "ledger.jsonl", [LedgerEntry(0.1, "capture", order="o-0-0", amount=12)])
    before = comparison.records_sha256()
    assert comparison.records_sha256() == before

    write_lines(found.directory / "ledger.jsonl", [LedgerEntry(0.1, "capture", order="o-0-0", amount=13)])

    assert comparison.records_sha256() != before


def test_a_directory_without_a_plan_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Comparison(tmp_path)
    assert refusal.value.code == "PEN0901"


def test_a_run_of_another_plan_is_told(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    finished(comparison, "X0", plan_sha256="1" * 64)

    with pytest.raises(InvalidInput) as refusal:
        list(comparison.done())
    assert refusal.value.code == "PEN0903"


def test_a_run_the_plan_does_not_have_is_told(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    (tmp_path / "runs" / "M3-X2-0").mkdir(parents=True)

    with pytest.raises(InvalidInput) as refusal:
        list(comparison.done())
    assert refusal.value.code == "PEN0903"


def test_events_of_another_run_are_told(tmp_path: Path) -> None:
    found = begun(planned(tmp_path), "X2", of="M3-X2-0")

    with pytest.raises(InvalidInput) as refusal:
        list(found.events())
    assert refusal.value.code == "PEN0903"


def test_a_line_that_is_cut_off_is_told_with_its_number(tmp_path: Path) -> None:
    found = begun(planned(tmp_path), "X2")
    path = found.directory / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(InvalidInput) as refusal:
        list(found.events())
    assert refusal.value.code == "PEN0902"
    assert "line 3" in refusal.value.message


def test_a_full_disk_is_told_while_recording() -> None:
    file = EventFile(Path("/dev/full"), Head("S2-X2-0", "S2", "X2", 0))

    with pytest.raises(Unavailable) as refusal:
        file.close()
    assert refusal.value.code == "PEN0405"
