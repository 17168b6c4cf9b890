"""Which plots are drawn of what, and the numbers beside them. What they look like is seen in the browser."""

from __future__ import annotations

from pathlib import Path

from penstock.compare.canvas import Omission, Plot, render
from penstock.compare.plots import plots_of
from penstock.compare.records import PlannedArm
from penstock.compare.summary import summarise
from tests.compare.synthetic import KILL, MESH, NOTHING, STREAM, Behaviour, Directory, plan_of

RARELY = PlannedArm("S3", "stream", "a checkpoint every three seconds", "plain", "keyed", {})
EVERY_S = {"S2": 1.0, "S3": 3.0, "M3": 0.0}


def plots(directory: Directory) -> dict[str, Plot | Omission]:
    return {plot.name: plot for plot in plots_of(summarise(directory.path))}


def rows(plot: Plot | Omission) -> list[tuple[str, ...]]:
    assert isinstance(plot, Plot), plot
    return [row for picture in plot.pictures for row in picture.rows]


def killed(path: Path, arms: list[PlannedArm]) -> Directory:
    """Every arm is down from second 8: a stream for two seconds longer than its interval, a mesh for one."""
    made = Directory(path, plan_of(arms, [NOTHING, KILL], [0]))
    for arm in arms:
        made.play(arm.name, NOTHING, 0, Behaviour())
        every_s = EVERY_S[arm.name]
        down_s = 1.0 if arm.mode == "mesh" else 2.0 + every_s
        made.play(arm.name, KILL, 0, Behaviour(outage=(8, 8 + down_s), rollback_at=8.5, checkpoint_every_s=every_s))
    return made


def test_recovery_stands_against_the_interval_if_there_are_two(tmp_path: Path) -> None:
    found = plots(killed(tmp_path, [STREAM, RARELY, MESH]))["P3"]
    assert rows(found) == [("S2-X2-0", "1 s", "3 s"), ("S3-X2-0", "3 s", "5 s")]
    assert isinstance(found, Plot)
    text = render(found.pictures[0]).svg
    assert "predicted" in text
    assert "M3, mean" in text


def test_one_interval_is_no_axis(tmp_path: Path) -> None:
    found = plots(killed(tmp_path, [STREAM, MESH]))["P3"]
    assert isinstance(found, Omission)
    assert found.reason.endswith("whose checkpoints are rare and frequent; they were 1 s to 1 s apart")


def test_the_timeline_has_the_seconds_of_both_sides_beside_it(tmp_path: Path) -> None:
    stream, mesh = rows(plots(killed(tmp_path, [STREAM, MESH]))["P1"])
    assert stream == ("S2", "400", "400", "0", "0", "0.5 s", "2.52 s", "0 s", "3 s")
    assert mesh[0] == "M3"
    assert mesh[-1] == "1 s"


def test_the_map_counts_its_cells(tmp_path: Path) -> None:
    stream, mesh = rows(plots(killed(tmp_path, [STREAM, MESH]))["P2"])
    slow = [int(row[3]) for row in (stream, mesh)]
    assert slow[0] > 2 * slow[1] > 0
    assert (stream[4], mesh[4]) == ("0", "0")


def test_without_a_fault_there_is_no_timeline(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM, MESH], [NOTHING], [0]))
    for arm in ("S2", "M3"):
        made.play(arm, NOTHING, 0, Behaviour())
    found = plots(made)
    drawn = [name for name, plot in found.items() if isinstance(plot, Plot)]
    assert drawn == ["P4", "P6", "P7", "P10"]
    assert all(plot.reason for plot in found.values() if isinstance(plot, Omission))
