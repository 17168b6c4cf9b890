"""What pytest gets from an installed Penstock: a fixture that makes harnesses, configured by a marker."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import State
from penstock.pytest_plugin import HarnessFactory

app = App("plugin")


class Count(State):
    count: int = 0


@app.function("t/count")
def count(ctx: Context[Count], message: int) -> None:
    ctx.state.count += message


def test_the_fixture_makes_harnesses(penstock_harness: HarnessFactory) -> None:
    first, second = penstock_harness(app), penstock_harness(app, parallelism=2)
    first.send(count, "a", 1)

    assert (first.state(count, "a").count, second.state(count, "a").count) == (1, 0)


@pytest.mark.penstock(parallelism=4, restart_every=2)
def test_the_marker_gives_options(penstock_harness: HarnessFactory) -> None:
    h = penstock_harness(app)
    for number in range(10):
        h.send(count, f"id{number}", 1)

    assert len(h.states(count)) == 10
    assert len(h._units) == 4
    assert h._lineage.attempt > 1
    assert len(penstock_harness(app, parallelism=1)._units) == 1


def test_pytest_finds_the_plugin() -> None:
    (found,) = entry_points(group="pytest11", name="penstock")

    assert found.value == "penstock.pytest_plugin"


def test_loading_the_plugin_loads_nothing_of_the_runtime() -> None:
    script = (
        "import pytest, sys; import penstock.pytest_plugin; "
        "print([m for m in sys.modules if m.startswith(('penstock.engine', 'penstock.testing', 'rocksdict'))])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


SUITE = """
import pytest
from penstock import App, Context, State
from penstock.testing import Crash

app = App("suite")
runs = []


class Count(State):
    count: int = 0


@app.function("s/count")
def count(ctx: Context[Count], message: int) -> None:
    runs.append(message)
    ctx.state.count += 1
    ctx.state.count = max(ctx.state.count, len(runs) if WRONG else 0)


@pytest.mark.penstock(seeds=4, parallelism=2)
def test_count(penstock_harness, penstock_seed):
    runs.clear()
    h = penstock_harness(app).faults(Crash(every=2))
    for number in range(10):
        h.send(count, "a", number)
    assert h.state(count, "a").count == 10
"""


def run_suite(directory: Path, text: str, *options: str) -> str:
    suite = directory / "test_suite.py"
    suite.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options, suite.name]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return result.stdout


def test_a_test_runs_under_as_many_seeds_as_its_marker_says(tmp_path: Path) -> None:
    right = SUITE.replace("WRONG", "False")

    assert "4 passed" in run_suite(tmp_path, right)
    assert "2 passed" in run_suite(tmp_path, right, "--penstock-seeds=2")


def test_one_that_fails_says_how_to_see_it_again(tmp_path: Path) -> None:
    output = run_suite(tmp_path, SUITE.replace("WRONG", "True"), "-x")

    again = re.search(r"Seed (\d+)\. Again: python -m pytest '(\S+)'", output)
    assert again is not None
    assert again[2] == f"test_suite.py::test_count[seed{again[1]}]"
