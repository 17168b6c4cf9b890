"""The side of a kill test that kills: starts a program, kills it at a random moment, and starts it again.

A moment is chosen as a number of lines the program is let to say, so that it lies between its first progress and the
end of its input, however fast the machine is.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.kill.telling import Told

ROOT = Path(__file__).resolve().parent.parent.parent
LINES_MAX = 45
"""Two intervals of checkpoints: some runs are killed before their first checkpoint, some after their second."""

_decode = msgspec.json.Decoder(Told).decode


class Killed(NamedTuple):
    """How one run ended."""

    last: Told
    replayed: int
    """Records that it read and an earlier run had read already."""


def kill_again_and_again(*program: str | Path | float, kills: int, seed: int, records: int) -> list[Killed]:
    """Kill `program` at `kills` moments. Each lies after the first checkpoint, with some of its `records` unread."""
    moments = random.Random(seed)
    ended: list[Killed] = []
    for _ in range(kills):
        last = run_and_kill(*program, lines=moments.randint(1, LINES_MAX))
        assert last.checkpoint > 0
        assert last.records < records, "the input has ended: throttle it more"
        ended.append(Killed(last, max(0, ended[-1].last.records - last.began_at) if ended else 0))
    return ended


def run_and_kill(*program: str | Path | float, lines: int) -> Told:
    """Start `program`, kill it `lines` lines after the first that knows of a checkpoint, and return its last one."""
    with subprocess.Popen(_command(program), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = map(_decode, process.stdout)
        last = next((each for each in told if each.checkpoint), None)
        assert last is not None, "the program ended before its first checkpoint"
        for last in islice(told, lines):  # noqa: B007  # The last one is what is wanted.
            pass
        process.kill()
        for last in told:  # noqa: B007  # What it said before it was killed.
            pass
        assert process.wait() == -9, "the program ended before it was killed"
    return last


def run_to_the_end(*program: str | Path | float) -> Told:
    """Run `program` until its input is read and everything is done."""
    done = subprocess.run(_command(program), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return _decode(done.stdout.splitlines()[-1])


def told_replayed(runs: list[Killed], capsys: pytest.CaptureFixture[str]) -> int:
    """How many messages were read again after the kills. Also said to the person who watches."""
    replayed = sum(run.replayed for run in runs)
    with capsys.disabled():
        print(f"\nkilled {len(runs)} times, {replayed:,} messages replayed")  # noqa: T201  # For whoever runs the test.
    return replayed


def lines_of(directory: Path) -> list[bytes]:
    """All lines of all files of results, sorted."""
    return sorted(line for part in directory.glob("*.jsonl") for line in part.read_bytes().splitlines(keepends=True))


def _command(program: Sequence[str | Path | float]) -> list[str]:
    return [sys.executable, "-m", *map(str, program)]
