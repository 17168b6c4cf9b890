"""Savepoints of an application on Kafka: under another name, with more tasks, on one machine, and looked into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.cluster.looking import LISTEN_S
from tests.kafka.test_run import COUNTING, PENSTOCK, Run

pytestmark = pytest.mark.kafka

COUNT, IDS = 1_500, 97

BACKLOG = """
import os
import time
from collections.abc import Iterator

from penstock import App, Context, FileEgress, GeneratorIngress, State

app = App("backlog")
rows = app.egress("backlog/rows", FileEgress("out"))
COUNT, RATE = int(os.environ["COUNT"]), float(os.environ["RATE"])


class Count(State):
    count: int = 0


@app.function("backlog/fast")
def fast(ctx: Context[Count], number: int) -> None:
    ctx.state.count += 1
    ctx.send(slow, f"s{ctx.id}", number)


@app.function("backlog/slow")
def slow(ctx: Context[Count], number: int) -> None:
    time.sleep(0.001)
    ctx.state.count += 1
    ctx.emit(rows, {"id": ctx.id, "count": ctx.state.count})


def numbers(start: int) -> Iterator[int]:
    for number in range(start, COUNT):
        if number % 100 == 0:
            time.sleep(100 / RATE)
        yield number


app.ingress(GeneratorIngress(numbers), to=fast, key=lambda number: f"{number % 97}", name="numbers")
"""
"""More comes in than is done: messages wait in inboxes, and rows go out all the time."""


def ask(folder: Path, bootstrap: str, app: str, *arguments: str, code: int = 0) -> Any:
    """What a verb answers that is about an application on Kafka; what it says if it is to fail."""
    done = subprocess.run(
        [*PENSTOCK, *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PENSTOCK_KAFKA": bootstrap, "PENSTOCK_NAME": app, "COUNT": "0", "RATE": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout) if code == 0 else done.stderr.decode()


@contextmanager
def begun(folder: Path, bootstrap: str, app: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A verb that takes its time. It is killed if it has not ended behind the block."""
    environment = {**os.environ, "PENSTOCK_KAFKA": bootstrap, "PENSTOCK_NAME": app, "COUNT": "0", "RATE": "1"}
    with subprocess.Popen(
        [*PENSTOCK, *arguments, "--json"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def rows_or_hidden(folder: Path) -> Counter[tuple[str, int]]:
    """Also of parts that are still written to, without a row that is half there."""
    text = "".join(path.read_text() for path in (folder / "out").rglob("*part*") if path.is_file())
    whole = [line for line in text.splitlines() if line.endswith("}")]
    return Counter((row["id"], row["count"]) for row in map(json.loads, whole))


def rows(folder: Path) -> Counter[tuple[str, int]]:
    lines = [line for part in (folder / "out").glob("part*") for line in part.read_text().splitlines()]
    return Counter((row["id"], row["count"]) for row in map(json.loads, lines))


def test_an_application_continues_under_another_name_with_more_tasks(
    tmp_path: Path, kafka: str, kafka_app: str
) -> None:
    (tmp_path / "app.py").write_text(COUNTING)
    first = Run(tmp_path, kafka, kafka_app, "run", "--dir", "one", count=COUNT, rate=1_000)
    first.wait_until(lambda: sum(rows(tmp_path).values()) > 0 or len(list((tmp_path / "out").rglob("*"))) > 4, "rows")
    first.process.send_signal(signal.SIGTERM)
    first.wait_end()

    taken = ask(tmp_path, kafka, kafka_app, "savepoint", "create", "--dir", "one", "--to", "saved")
    assert taken["parallelism"] == 4
    number = str(taken["checkpoint"])
    ids = ask(tmp_path, kafka, kafka_app, "state", "list", "counting/first", "--at", number, "--dir", "one")["ids"]
    assert 0 < len(ids) <= IDS
    same = ask(tmp_path, kafka, kafka_app, "checkpoint", "diff", number, number, "--dir", "one")
    assert same["differences"] == []
    listed = ask(tmp_path, kafka, kafka_app, "checkpoint", "list", "--dir", "one")
    assert listed[-1]["checkpoint"] == taken["checkpoint"]
    shown = ask(tmp_path, kafka, kafka_app, "checkpoint", "show", number, "--dir", "one")
    assert [task["task"] for task in shown["tasks"]] == [0, 1, 2, 3]
    checked = ask(tmp_path, kafka, kafka_app, "check", "--dir", "one")
    assert checked["checkpoint"] == taken["checkpoint"]
    assert ask(tmp_path, kafka, f"{kafka_app}-3", "check")["checkpoint"] is None

    second = Run(
        tmp_path,
        *(kafka, f"{kafka_app}-2", "run", "--dir", "two", "--from-savepoint", "saved", "--until-done"),
        *("--parallelism", "8"),
        count=COUNT,
        rate=100_000,
    )
    second.wait_end()

    expected = {(f"s{n % IDS}", n // IDS + 1) for n in range(COUNT)}
    assert rows(tmp_path) == Counter(dict.fromkeys(expected, 1))
    again = Run(
        tmp_path,
        *(kafka, f"{kafka_app}-2", "run", "--dir", "three", "--from-savepoint", "saved", "--parallelism", "8"),
        count=0,
        rate=1,
    )
    again.wait_end(4)
    assert "PEN0433" in again.log


def test_of_a_running_application_one_of_whose_workers_is_killed_meanwhile(
    tmp_path: Path, kafka: str, kafka_app: str
) -> None:
    count = 6_000
    origin, copy = tmp_path / "origin", tmp_path / "copy"
    for folder in (origin, copy):
        folder.mkdir()
        (folder / "app.py").write_text(BACKLOG)
    first = Run(
        origin, kafka, kafka_app, "run", "--dir", "one", "--workers", "2", "--until-done", count=count, rate=2_000
    )
    first.wait_working()
    first.wait_until(lambda: rows_or_hidden(origin), "rows")
    victim = first.get("/admin/status")["workers"][0]["pid"]
    with begun(origin, kafka, kafka_app, "savepoint", "create", "--dir", "one", "--to", "../saved") as taking:
        time.sleep(LISTEN_S)  # The application is seen running by then, and the checkpoint is about to be chosen.
        os.kill(victim, signal.SIGKILL)
        output, errors = taking.communicate(timeout=60)
    assert taking.returncode == 0, errors
    taken = json.loads(output)
    assert taken["under_way"] > 0
    then = rows_or_hidden(origin)
    first.wait_end()
    expected = Counter({(f"s{n % IDS}", n // IDS + 1): 1 for n in range(count)})
    assert rows(origin) == expected

    second = Run(
        copy,
        *(kafka, f"{kafka_app}-2", "run", "--dir", "two", "--from-savepoint", "../saved", "--until-done"),
        *("--parallelism", "2"),
        count=count,
        rate=100_000,
    )
    second.wait_end()
    after = rows(copy)
    assert 0 < len(after) < count
    # What the savepoint has done was visible when it was there, and it does the rest, once each.
    assert then & (expected - after) == expected - after
    assert after & expected == after
