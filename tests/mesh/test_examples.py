"""The examples run unchanged as a mesh, and come to the same, also when hosts are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.flights.feed import prepare
from tests.kill.checkout_checker import check
from tests.kill.killing import lines_of
from tests.postgres import running_server

ROOT = Path(__file__).parents[2]
FLIGHTS = 300
ORDERS = 90
ORDERS_PER_S = 15
HOSTS = 3
KILLS = 3


@contextmanager
def running(*arguments: str | float, environment: Mapping[str, str] = os.environ) -> Iterator[subprocess.Popen[str]]:
    """`python ARGUMENTS`, which is killed if it does not end."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        timer = threading.Timer(100, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.terminate()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "mesh")
    else:
        with running_server() as server:
            yield server.dsn


def test_flights_come_to_the_same_as_in_one_process(tmp_path: Path, store: str) -> None:
    prepare(tmp_path, limit=FLIGHTS)
    environment = os.environ | {"FLIGHTS_DIRECTORY": str(tmp_path), "FLIGHTS_LIMIT": str(FLIGHTS)}
    command = ["-c", "from penstock.engine.cli import main; main()", "mesh", "examples.flights.ready:app"]
    command += ["--until-done", "--replicas", "2", "--port", "0", "--store", store, "--drain", "2s"]
    with running(*command, "--dir", str(tmp_path / "state"), environment=environment) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors

    streamed = tmp_path / "streamed"
    subprocess.run(
        [sys.executable, "-m", "examples.flights", "--dir", str(streamed), "--limit", str(FLIGHTS)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = sorted(lines_of(tmp_path / "results"))
    assert found
    assert found == sorted(lines_of(streamed / "results"))


def test_every_order_ends_once_although_hosts_are_killed(tmp_path: Path) -> None:
    pace = ("--orders", ORDERS, "--rate", ORDERS_PER_S, "--replicas", HOSTS)
    with running("-m", "examples.checkout", "--mesh", "--dir", str(tmp_path), *pace) as process:
        assert process.stderr is not None
        hosts = hosts_of(process, count=HOSTS)
        for _ in range(KILLS):  # The oldest, so that none waits longer and longer for its next start.
            time.sleep(1)  # So that there is something under way.
            os.kill(hosts.pop(0), signal.SIGKILL)
            hosts += hosts_of(process, count=1)
        rest = process.stderr.read()
        process.wait()
    assert process.returncode == 0, rest
    assert "dead letter" not in rest

    check(tmp_path, ORDERS)
    ends = [json.loads(line) for line in lines_of(tmp_path / "results")]
    assert {row["outcome"] for row in ends if "outcome" in row} > {"delivered", "cancelled"}


def hosts_of(process: subprocess.Popen[str], *, count: int) -> list[int]:
    """The process numbers of so many hosts, once they serve."""
    assert process.stderr is not None
    found: list[int] = []
    while len(found) < count:
        line = process.stderr.readline()
        assert line, "the mesh has ended"
        assert "dead letter" not in line
        found += map(int, re.findall(r"host-(\d+) +Serves", line))
    return found
