"""Runs an application on Kafka until its input is read and everything is done, and kills its workers meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.files import read_owner
from tests.kafka.proof.running import ROOT, penstock, python_path

WORKERS = 2


class UntilDone:
    """A context manager: `penstock run APP --kafka ... --workers 2 --until-done`. It must end well, and within
    `within_s`."""

    def __init__(
        self, app: str, kafka: str, name: str, directory: Path, *, environment: dict[str, str], within_s: float
    ) -> None:
        self._data = directory / "data"
        self._log = directory / "log"
        self._command = penstock("run", app, "--kafka", kafka, "--name", name, "--workers", WORKERS, "--until-done")
        self._command += ["--parallelism", "4", "--dir", str(self._data), "--port", "none", "--memory", "128MB"]
        self._environment = {**os.environ, "PYTHONPATH": python_path(), **environment}
        self._deadline = time.monotonic() + within_s
        directory.mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def goes_on(self, seconds: float) -> bool:
        """Let it go on for so long. False when it is done."""
        with suppress(subprocess.TimeoutExpired):
            assert self._process.wait(seconds) == 0, self.said()
            return False
        assert time.monotonic() < self._deadline, f"it does not end:\n{self.said()}"
        return True

    def kill_worker(self, number: int) -> bool:
        """Kill a worker. False when it is not there at the moment."""
        owner = read_owner(self._data / f"worker-{number}")
        if owner is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(owner.pid, 9)
            return True
        return False

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-8000:]
