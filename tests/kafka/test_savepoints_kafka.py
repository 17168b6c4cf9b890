"""Savepoints of an application on Kafka: under another name, with more tasks, on one machine, and looked into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.kafka.test_run import COUNTING, PENSTOCK, Run

pytestmark = pytest.mark.kafka

COUNT, IDS = 1_500, 97


def ask(folder: Path, bootstrap: str, app: str, *arguments: str, code: int = 0) -> Any:
    """What a verb answers that is about an application on Kafka."""
    done = subprocess.run(
        [*PENSTOCK, *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PENSTOCK_KAFKA": bootstrap, "PENSTOCK_NAME": app, "COUNT": "0", "RATE": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout)


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
        tmp_path, kafka, f"{kafka_app}-2", "run", "--dir", "three", "--from-savepoint", "saved", count=0, rate=1
    )
    again.wait_end(4)
    assert "PEN0433" in again.log
