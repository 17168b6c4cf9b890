"""The whole of it, on real processes: from a command to verdicts, with an application of one's own, and interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.compare.processes import PROC, descendants, is_alive
from penstock.compare.records import Comparison

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found under /proc"),
]
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""Also where the tests run in the background of a shell: what it starts there ignores Ctrl-C, and hands that on."""
COMMAND = [sys.executable, "-c", f"{HEARS}; from penstock.engine.cli import main; main()", "compare"]
SHORT = ["--seeds", "1", "--seconds", "5", "--warmup", "1", "--rate", "5"]
PATIENCE_S = 240

APP = """
from penstock import App, Context, Message, State

app = App("counter")


class Visit(Message):
    visitor: str


class Page(State):
    visits: int = 0


@app.function("counter/page")
def page(ctx: Context[Page], visit: Visit) -> int:
    ctx.state.visits += 1
    return ctx.state.visits


def visits(seed):
    for number in range(10_000):
        yield {"function": "counter/page", "id": f"page-{number % 7}", "message": {"visitor": str(number)}}


def every_visit_counts(run):
    answered = {event.order for event in run.events() if event.kind == "reply" and event.outcome == "OK"}
    counted = sum(record.state["visits"] for record in run.states())
    if counted < len(answered):
        yield f"{len(answered)} visits were answered, and {counted} counted"


def broken(run):
    raise RuntimeError("I am no good")
"""


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def interrupt(folder: Path, *arguments: str) -> list[int]:
    """Begin, and press Ctrl-C while load is offered. Returns the processes that ran then."""
    with subprocess.Popen([*COMMAND, *arguments], cwd=folder, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + PATIENCE_S
        while not list(folder.glob("comparison/runs/*/work/load.json")):
            assert time.monotonic() < until, "no load is offered"
            assert process.poll() is None
            time.sleep(0.05)
        family = [pid for pid in descendants(process.pid) if pid != process.pid]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE_S)
    return family


def test_the_shop_in_both_modes_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    arguments = ["--arms", "S2,M2", "--faults", "X2", *SHORT]
    family = interrupt(tmp_path, *arguments)
    comparison = Comparison(tmp_path / "comparison")

    assert len(family) >= 2  # The bank, and the runtime.
    assert [(PROC / str(pid) / "cmdline").read_bytes() for pid in family if is_alive(pid)] == []
    assert sorted(comparison.missing()) == ["M2-X2-0", "S2-X2-0"]

    done = compare(tmp_path, *arguments)

    assert done.returncode == 0, done.stderr
    assert comparison.missing() == []
    offered = {}
    for run, directory in comparison.done():
        assert run.status in ("complete", "invalid"), run.reason  # Late on a busy machine, and then it says so.
        events = list(directory.events())
        offered[run.arm] = [(event.order, event.t) for event in events if event.kind == "offered"]
        struck = [(event.what, event.where, event.value) for event in events if event.kind == "fault_on"]
        assert struck == [("kill", "worker", 2.0)]
        assert {event.order for event in events if event.kind == "reply"} == {order for order, _ in offered[run.arm]}
        assert any(event.kind == "proc" for event in events)
        verdict = directory.verdict()
        assert verdict is not None
        assert (verdict.counts["lost"], verdict.counts["duplicated"], verdict.counts["lied"]) == (0, 0, 0)
        assert directory.ledger()
        assert not (directory.directory / "work").exists()
    assert offered["S2"] == offered["M2"]


def test_an_application_of_ones_own_with_its_checks(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    checks = ["--check", "app:every_visit_counts", "--check", "app:broken"]

    done = compare(tmp_path, "app:app", "--faults", "kill:worker@2s", "--load", "app:visits", *checks, *SHORT)

    assert done.returncode == 0, done.stderr
    runs = list(Comparison(tmp_path / "comparison").done())
    assert sorted(run.run for run, _ in runs) == ["M2-kill_worker_2s-0", "S2-kill_worker_2s-0"]
    for run, directory in runs:
        assert run.status in ("complete", "invalid"), run.reason
        verdict = directory.verdict()
        assert verdict is not None
        assert verdict.invariants["app:every_visit_counts"].violations == []
        (told,) = verdict.invariants["app:broken"].violations
        assert "RuntimeError('I am no good') at app.py:" in told


def test_one_that_does_not_load_in_a_mode_is_told(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        APP + "\nimport sys\nif 'mesh' in sys.argv:\n    raise RuntimeError('not in a mesh')\n", encoding="utf-8"
    )

    done = compare(tmp_path, "app:app", "--arms", "M2", "--load", "app:visits", *SHORT)

    assert done.returncode == 2
    assert "PEN0909" in done.stderr
    assert "not in a mesh" in done.stderr
