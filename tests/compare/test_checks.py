"""What checks of an application of one's own find, and what becomes of one that is broken itself."""

from __future__ import annotations

from pathlib import Path

from penstock.compare.checks import verdict_of
from penstock.compare.load import LoadResult
from penstock.compare.records import RunDirectory
from penstock.compare.runner import doubt

CHECKS = """
def finds(run):
    yield "one is missing"


def broken(run):
    raise RuntimeError("no good")
"""
ON_TIME = LoadResult(offered=100, late_p99_ms=1.0, late_max_ms=2.0)


def test_a_check_that_raises_has_found_no_harm_and_leaves_the_run_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "own_checks.py").write_text(CHECKS, encoding="utf-8")

    verdict = verdict_of(RunDirectory(tmp_path), ["own_checks:finds", "own_checks:broken"], tmp_path)

    assert verdict.counts == {"wrong": 1}
    told = doubt(ON_TIME, 0.0, [], verdict, "")
    assert "own_checks:broken: the check itself raised RuntimeError('no good') at own_checks.py:7" in told
    assert "--again" in told
