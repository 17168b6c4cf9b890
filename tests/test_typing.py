"""Users get their mistakes told by mypy and pyright, without a plugin: exactly the marked lines, and no others."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOOD = ROOT / "tests" / "typing" / "good.py"
BAD = ROOT / "tests" / "typing" / "bad.py"
EXPECTED = {
    number: marked[1]
    for number, line in enumerate(BAD.read_text(encoding="utf-8").splitlines(), start=1)
    if (marked := re.search(r"# expect: (\S+)$", line))
}

Reports = dict[int, str]
"""What a checker says about each line of bad.py; line 0 is for everything else."""


def mypy() -> Reports:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--no-error-summary", "--hide-error-context"]
    result = subprocess.run([*command, str(GOOD), str(BAD)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not result.stderr, result.stderr
    reports: Reports = defaultdict(str)
    for line in result.stdout.splitlines():
        place = re.match(r".*typing/bad\.py:(\d+): error: ", line)
        reports[int(place[1]) if place else 0] += line
    return reports


def pyright() -> Reports:
    """Skips where pyright can't run: it is a wrapper that needs node, and fetches the checker itself at first use."""
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", "pyright", "--outputjson", str(GOOD), str(BAD)]
    try:
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200
        )
        found = json.loads(result.stdout)["generalDiagnostics"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        pytest.skip("pyright can't run here: it is not installed, or can't fetch the checker it wraps")
    reports: Reports = defaultdict(str)
    for report in found:
        in_bad = Path(report["file"]).name == BAD.name
        reports[report["range"]["start"]["line"] + 1 if in_bad else 0] += report["message"]
    return reports


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_exactly_the_marked_lines_are_flagged(checker: Callable[[], Reports]) -> None:
    reports = checker()

    assert reports.get(0, "") == ""
    assert sorted(reports) == sorted(EXPECTED)
    for line, word in EXPECTED.items():
        assert word in reports[line], f"line {line} of bad.py"


def test_the_good_examples_run() -> None:
    functions = runpy.run_path(str(GOOD))["app"].functions

    names = ("carrier", "report", "airport", "slow", "dynamic", "flight", "trip")
    assert list(functions) == [f"flights/{name}" for name in names]
