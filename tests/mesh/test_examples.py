"""The examples run unchanged as a mesh, and come to the same, also when a host is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.flights.feed import prepare
from tests.kill.checkout_checker import check
from tests.kill.killing import lines_of
from tests.postgres import running_server

ROOT = Path(__file__).parents[2]
FLIGHTS = 300
ORDERS = 40


@contextmanager
def running(
    target: str, directory: Path, environment: dict[str, str], *, store: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """`penstock mesh TARGET --until-done`, which is killed if it does not end."""
    command = [sys.executable, "-c", "from penstock.engine.cli import main; main()", "mesh", target, "--until-done"]
    command += ["--replicas", "2", "--port", "0", "--store", store or str(directory / "mesh")]
    command += ["--registry", str(directory / "registry.sqlite"), "--drain", "2s"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
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
    environment = {"FLIGHTS_DIRECTORY": str(tmp_path), "FLIGHTS_LIMIT": str(FLIGHTS)}
    with running("examples.flights.ready:app", tmp_path, environment, store=store) as process:
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


def test_every_order_ends_once_when_a_host_is_killed(tmp_path: Path) -> None:
    environment = {"CHECKOUT_DIRECTORY": str(tmp_path), "CHECKOUT_ORDERS": str(ORDERS), "CHECKOUT_RATE": "20"}
    with running("examples.checkout.ready:app", tmp_path, environment) as process:
        assert process.stderr is not None
        hosts = hosts_of(process, count=2)
        time.sleep(1)  # So that there is something under way.
        os.kill(hosts[0], signal.SIGKILL)
        rest = process.stderr.read()
        process.wait()
    assert process.returncode == 0, rest
    assert "SIGKILL" in rest

    check(tmp_path, ORDERS)
    ends = [json.loads(line) for line in lines_of(tmp_path / "results")]
    assert {row["outcome"] for row in ends if "outcome" in row} > {"delivered", "cancelled"}


def hosts_of(process: subprocess.Popen[str], *, count: int) -> list[int]:
    """The process numbers of the hosts, once they serve."""
    assert process.stderr is not None
    found: list[int] = []
    while len(found) < count:
        line = process.stderr.readline()
        assert line, "the mesh has ended"
        found += map(int, re.findall(r"host-(\d+) +Serves", line))
    return found
