"""Faults strike where and when they were told to, in the process they are for, and nowhere else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import App, Context, GeneratorIngress, Message, State
from penstock.engine import task, unit
from penstock.errors import ConfigurationError
from penstock.faults import POINTS, InjectedFault, arm, begin, fault
from penstock.testing import Harness

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("engine", "mesh", "functions", "router", "state", "checkpoint")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    begin("", "worker")


def test_a_fault_strikes_at_the_passing_it_is_for_and_once(capfd: pytest.CaptureFixture[str]) -> None:
    begin("settle.told:3:raise", "worker", "worker-1")

    for _ in range(2):
        fault("settle.told")
        fault("settle.done")
    with pytest.raises(InjectedFault, match=r"settle\.told"):
        fault("settle.told")
    fault("settle.told")

    assert capfd.readouterr().err == "PENSTOCK_FAULT: worker-1 at settle.told, for the 3. time: raise\n"


@pytest.mark.parametrize(("who", "concerned"), [("worker", True), ("worker-1", True), ("worker-0", False)])
def test_a_fault_may_be_for_one_process(who: str, concerned: bool) -> None:
    begin(f"leader/settle.told:1:raise, {who}/settle.told:1:raise", "worker", "worker-1")

    if concerned:
        with pytest.raises(InjectedFault):
            fault("settle.told")
    else:
        fault("settle.told")


def test_arming_again_forgets_what_was_armed() -> None:
    begin("settle.told:1:raise", "worker")
    arm("settle.done:1:raise")

    fault("settle.told")
    with pytest.raises(InjectedFault):
        fault("settle.done")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settle.tld:1:kill", "Do you mean settle.told? There are turn.taken, turn.half"),
        ("nowhere:1:kill", "transaction.committed"),
        ("settle.told:1:explode", "there are kill, hang, raise"),
        ("settle.told:0:kill", "counts from 1"),
        ("settle.told:kill", "point:count:action"),
        ("boss/settle.told:1:kill", "there are worker, leader, supervisor, worker-N"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        begin(text, "worker")

    assert caught.value.code == "PEN0159"
    assert repr(text) in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["kill", "hang"])
def test_a_process_kills_itself_or_stands_still(name: str) -> None:
    program = f"from penstock.faults import *; begin('settle.told:1:{name}', 'worker'); fault('settle.told')"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"PENSTOCK_FAULT: worker at settle.told, for the 1. time: {name}\n"
        if name == "hang":
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            process.send_signal(signal.SIGCONT)
        assert process.wait(10) == (-signal.SIGKILL if name == "kill" else 0)


def test_every_point_is_in_the_code_and_every_point_of_the_code_is_known() -> None:
    sources = [path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    passed = {point for text in sources for point in re.findall(r'\bfault\("([^"]*)"\)', text)}
    chosen = {point for text in sources if "import fault" in text for point in re.findall(r'"([a-z]+\.[a-z]+)"', text)}

    assert passed <= set(POINTS)
    assert set(POINTS) <= passed | chosen


class Add(Message):
    key: str


class Sum(State):
    count: int = 0


def test_points_are_not_passed_for_each_message(monkeypatch: pytest.MonkeyPatch) -> None:
    app, passed = App("sums"), Counter[str]()

    @app.function("sums/sum")
    def add(ctx: Context[Sum], message: Add) -> None:
        ctx.state.count += 1

    app.ingress(GeneratorIngress(lambda start: iter(()), type=Add), to=add, key="key", name="adds")
    for module in (task, unit):
        monkeypatch.setattr(module, "fault", lambda point: passed.update([point]))
    with Harness(app) as harness:
        harness.feed("adds", [Add(f"key-{number % 10}") for number in range(10_000)])
        assert sum(state.count for state in harness.states(add).values()) == 10_000

    assert 0 < passed.total() < 10_000 / 50
