"""Nothing that was started is left behind, whatever state it is in and however we end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.compare.processes import Launched, descendants, free_port, inherited, is_alive, sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found under /proc")

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
PATIENCE_S = 30


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


async def family_in(directory: Path) -> Launched:
    """A process with a child in another session."""
    launched = Launched("family", [sys.executable, "-c", FAMILY], directory / "log", {}, directory)
    await launched.start()
    await asyncio.to_thread(wait_until, lambda: launched.said().endswith("\n"))
    return launched


def test_children_in_other_sessions_end_with_it(tmp_path: Path) -> None:
    async def run() -> list[int]:
        launched = await family_in(tmp_path)
        family = launched.family()
        await launched.stop()
        return family

    family = asyncio.run(run())

    assert len(family) == 2
    assert not any(map(is_alive, family))


def test_one_that_stands_still_ends_as_well(tmp_path: Path) -> None:
    async def run() -> list[int]:
        launched = await family_in(tmp_path)
        family = launched.family()
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        await launched.stop()
        return family

    assert not any(map(is_alive, asyncio.run(run())))


def test_it_ends_when_we_are_killed(tmp_path: Path) -> None:
    ours = """
import asyncio, sys
from pathlib import Path
from penstock.compare.processes import Launched

async def main():
    child = Launched("child", [sys.executable, "-c", "import time; time.sleep(600)"], Path("log"), {}, Path("."))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", ours], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()

    wait_until(lambda: not is_alive(pid))


def test_a_sample_has_time_and_memory() -> None:
    found = sample(os.getpid())

    assert found is not None
    assert found.cpu_s > 0
    assert found.rss > 1_000_000
    assert sample(2**22 + 1) is None


def test_a_process_descends_from_itself() -> None:
    assert descendants(os.getpid())[0] == os.getpid()


def test_a_free_port_is_below_those_of_clients() -> None:
    assert 20_000 <= free_port() < 32_000


def test_what_is_set_for_penstock_is_not_meant_for_what_is_compared() -> None:
    environment = {
        "PATH": "/bin",
        "PENSTOCK_KAFKA": "elsewhere:9092",
        "PENSTOCK_TOKEN": "secret",
        "PENSTOCK_KAFKA_SECURITY_PROTOCOL": "SSL",
    }

    assert inherited(environment) == {"PATH": "/bin", "PENSTOCK_KAFKA_SECURITY_PROTOCOL": "SSL"}
