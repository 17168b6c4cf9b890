"""`penstock run` in a process of its own, as tests start, kill and end it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest


class Machine:
    """One process, or the next one once it was killed. Its data is in `data` below the folder."""

    def __init__(
        self, folder: Path, app: str, *options: str, environ: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._folder = folder
        self._arguments = ["run", app, "--dir", "data", "--port", "0", *options]
        self._environ = {**os.environ, **environ}
        self.url = ""
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        command = "from penstock.engine.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, *self._arguments],
            cwd=self._folder,
            env=self._environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if (found := re.search(r"interface +(\S+)", line)) is not None:
                self.url = found[1]
                return
        pytest.fail("it does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        """Stop it in an orderly way."""
        self.process.terminate()
        self.process.communicate()
        return self.process.returncode
