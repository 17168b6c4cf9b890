"""What `penstock compare` says when it is given up half-way."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.compare import campaign
from penstock.compare.cli import compare
from penstock.compare.records import Comparison, Run, write_json
from penstock.files import make_directory


async def _one_run_and_then_ctrl_c(comparison: Comparison, *_: object) -> None:
    name = comparison.missing()[0]
    arm, fault, seed = name.split("-")
    folder = comparison.run_directory(name).directory
    make_directory(folder)
    write_json(folder / "run.json", Run(name, arm, fault, int(seed), comparison.plan_sha256, "failed", "it was slow"))
    raise KeyboardInterrupt


def test_one_that_is_interrupted_says_how_much_is_done_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "carry_out", _one_run_and_then_ctrl_c)
    out = tmp_path / "out"

    told = CliRunner().invoke(compare, ["--arms", "S2,M3", "--faults", "X0", "--seeds", "1", "--out", str(out)])

    assert told.exit_code == 1
    assert "1 of 2 runs are done" in told.stderr
    assert "Repeat the command" in told.stderr
    assert f"penstock compare report {out}" in told.stderr
    assert "Aborted" not in told.stderr
