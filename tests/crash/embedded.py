"""Runs `tests.crash.ledger`, has faults strike in it, starts it again, and looks at what comes out.

What always holds: a fault that did not strike is an error, and so is a process that ends otherwise than its fault says;
that there is output again means that transfers are booked which no process had read before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from penstock.faults import FAULT_VARIABLE
from tests.crash.points import Case
from tests.kafka.proof.checker import Row, check_ledger
from tests.kill import ledger
from tests.kill.killing import ROOT, lines_of
from tests.kill.telling import Told

STRUCK_S = 30
ENDED_S = 15
RECOVERED_S = 15
FINISHED_S = 60
FROZEN_S = 1.0

_decode = msgspec.json.Decoder(Told).decode


class Ledger:
    """See the module."""

    def __init__(self, directory: Path, program: str = "tests.crash.ledger") -> None:
        self._directory = directory
        self._program = program
        self._results = directory / "results"
        self._log = directory / "log"
        self._process: subprocess.Popen[str] | None = None
        self._telling: threading.Thread | None = None
        self._told: Told | None = None
        self.read = 0
        """Transfers that any process has read."""
        self._parts: set[Path] = set()
        self._bookings: list[Row] = []
        """Rows that are visible, in their order."""
        self._newest = -1
        self._transfers: list[Row] = []
        directory.mkdir(parents=True, exist_ok=True)

    # The process.

    def start(self, faults: str = "") -> None:
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", self._program, str(self._directory)],
                cwd=ROOT,
                env={**os.environ, FAULT_VARIABLE: faults},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._told = told = _decode(line)
                self.read = max(self.read, told.records)

        self._told = None
        self._telling = threading.Thread(target=listen, daemon=True)
        self._telling.start()

    def tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process, in whatever state it is."""
        process = self._process
        if process is None or self._telling is None:
            return
        process.kill()
        process.wait()
        self._telling.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        self._process = None

    def _wait_ended(self) -> int:
        assert self._process is not None
        try:
            status = self._process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.said()[-4000:]}") from None
        self.close()
        return status

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    # One case.

    def strike(self, case: Case) -> float:
        """Have the fault strike, and the application go on. Returns how long it took until there was output again."""
        if case.reads_base:
            self._until(lambda: any((self._directory / "state" / "store" / "bases").glob("*")), STRUCK_S, "no base")
            self.progress()  # So that a checkpoint names it.
        said = self._log.stat().st_size
        if case.trigger:
            self.close()
            self.start(case.fault)
        else:
            self.tell(case.fault)
        self._until(lambda: self._has_struck(case, said), STRUCK_S, f"{case.name} does not strike")
        if case.action == "hang":
            assert self._process is not None
            time.sleep(FROZEN_S)
            read = self.read
            self._process.send_signal(signal.SIGCONT)
            began = time.monotonic()
        else:
            status = self._wait_ended()
            assert status == (-signal.SIGKILL if case.action == "kill" else 1), f"it ended with {status}"
            read = self.read
            began = time.monotonic()
            self.start()
        self._until(lambda: self._look() > read, RECOVERED_S, f"no output after {case.name}")
        return time.monotonic() - began

    def _has_struck(self, case: Case, since: int) -> bool:
        return f"{FAULT_VARIABLE}: worker at {case.point}, " in self._log.read_bytes()[since:].decode(errors="replace")

    def progress(self) -> None:
        """Wait until something is visible that was not read before."""
        read = self.read
        self._until(lambda: self._look() > read, RECOVERED_S, "no output")

    def _until(self, condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"{otherwise} in {within_s} s:\n{self.said()[-4000:]}"
            time.sleep(0.02)

    # What comes out.

    def _look(self) -> int:
        """Read what has become visible. Returns the highest number of a transfer that is booked."""
        for part in sorted(set(self._results.glob("*.jsonl")) - self._parts):
            self._parts.add(part)
            for number, line in enumerate(part.read_bytes().splitlines(), 1):
                booking: dict[str, Any] = json.loads(line)
                self._newest = max(self._newest, booking["transfer"])
                self._bookings.append(Row(f"{part.name}:{number}", booking))
        return self._newest

    def check(self, *, finished: bool = False) -> list[str]:
        """What the checker finds in what is visible by now."""
        newest = self._look()
        for number in range(len(self._transfers), max(newest + 1, self.read)):
            self._transfers.append(Row(f"transfer {number}", msgspec.to_builtins(ledger.transfer(number))))
        return list(check_ledger(self._transfers, self._bookings, finished=finished))

    def finish(self) -> list[str]:
        """Let it end by itself, and check everything."""
        self.tell("finish")
        assert self._process is not None
        status = self._process.wait(FINISHED_S)
        assert self._telling is not None
        self._telling.join()
        assert self._told is not None
        self.read = self._told.records
        self.close()
        assert status == 0, self.said()[-4000:]
        findings = self.check(finished=True)
        if not findings:  # By other eyes, which see what is in the files now.
            ledger.check(map(json.loads, lines_of(self._results)), self.read)
        return findings
