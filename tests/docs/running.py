"""Runs the blocks of one page as a reader would: in an empty directory, in order, with Penstock on the path.

What always holds: every command ends well, or finds differences, unless the page shows the error it ends with; nothing
of the page outlives it; the ports that pages name, 7070 and 3500, are free ones here.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from socket import socket
from types import ModuleType
from typing import IO

from penstock.engine.cli_common import DIFFERENCES
from penstock.engine.settings import load_settings
from penstock.mesh.yaml_tree import parse_yaml
from tests.docs.pages import Block, Command, blocks_of, commands_of, matches

COMMAND_S = 30
"""A command of a page takes no longer. Most take a quarter of a second."""
PORT = ":7070"
SIDECAR_PORT = "3500"
_CODE = re.compile(r"PEN\d{4} ")


class Background:
    """A command that goes on running: what a reader has in a second terminal."""

    def __init__(self, command: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output: IO[str] = self._process.stdout

    def read_until(self, expected: str) -> None:
        """Read its output until it is what is expected."""
        got = ""
        for line in self._output:
            got += line
            if matches(expected, got):
                return
        raise AssertionError(f"expected:\n{expected}\nand it ended with:\n{got}")

    def interrupt(self) -> str:
        """Ctrl-C. Returns the rest of its output."""
        self._process.send_signal(signal.SIGINT)
        rest = self._output.read()
        assert self._process.wait(COMMAND_S) == 0, rest
        return rest

    def wait_killed(self) -> None:
        """It was killed by another command."""
        self._output.read()
        assert self._process.wait(COMMAND_S) == -signal.SIGKILL

    def close(self) -> None:
        """End it, whatever the page left."""
        self._process.kill()
        self._process.wait()
        self._output.close()


class PageRun:
    """One page. `run` runs a block."""

    def __init__(self, page: Path, directory: Path, *, dsn: str = "") -> None:
        self._page = page
        self._directory = directory
        self._dsn = dsn
        self._port, self._sidecar_port = _free_ports(2)
        self._module = ModuleType(f"page_{page.stem.replace('-', '_').lower()}")
        self._printed = ""
        self._background: list[Background] = []
        """The last is the one that a page stops first."""
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "PYTEST_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PENSTOCK_PORT": str(self._port),
            "PYTHONDONTWRITEBYTECODE": "1",  # A module written twice within a second would not be read again.
        }

    def run(self, block: Block) -> None:
        text = self._here(block.text)
        if block.title:
            self._write(block.title, text)
        match block.kind:
            case "python" if not block.title:
                self._execute(text, block.line)
            case "python":
                ast.parse(text)
            case "output":
                _check("the block above it printed", block.text, self._printed)
            case "console" if "background" in block.words:
                (command,) = commands_of(text)
                started = Background(command.command, self._directory, self._environment)
                self._background.append(started)
                started.read_until(command.output)
            case "console" if "stop" in block.words:
                expected = text.removeprefix("^C\n")
                _check("Ctrl-C", expected, self._background[-1].interrupt())
                self._end_background()
            case "console":
                for command in commands_of(text):
                    self._command(command)
            case "toml":
                self._check_toml(block.title, text)
            case "json":
                json.loads(text)
            case "jsonl":
                [json.loads(line) for line in text.splitlines()]
            case "yaml":
                parse_yaml(text)
            case "sql":
                self._query(text)
            case _:
                assert block.kind in ("text", "csv")

    def close(self) -> None:
        sys.modules.pop(self._module.__name__, None)
        while self._background:
            self._end_background()

    def _here(self, text: str) -> str:
        """With what is particular to this run: the ports, and the database."""
        text = text.replace(PORT, f":{self._port}").replace(SIDECAR_PORT, str(self._sidecar_port))
        return text.replace("postgresql://penstock@127.0.0.1:5432/postgres", self._dsn) if self._dsn else text

    def _write(self, title: str, text: str) -> None:
        path = self._directory / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _execute(self, text: str, line: int) -> None:
        tree = ast.increment_lineno(ast.parse(text), line - 1)  # Tracebacks then show the line of the page.
        code = compile(tree, str(self._page), "exec")
        sys.modules[self._module.__name__] = self._module
        with _captured() as printed:
            exec(code, vars(self._module))
        self._printed = printed.getvalue().decode()

    def _command(self, command: Command) -> None:
        done = subprocess.run(
            ["sh", "-c", command.command],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if command.output:
            _check(command.command, command.output, done.stdout)
        if command.command.startswith("cd ") and done.returncode == 0:
            self._directory = (self._directory / command.command.removeprefix("cd ").strip()).resolve()
        may_fail = _CODE.search(command.output) is not None
        assert done.returncode in (0, DIFFERENCES) or may_fail, (
            f"{command.command} ended with {done.returncode}:\n{done.stdout}"
        )
        if command.command.startswith("kill -9") and self._background:
            self._background[-1].wait_killed()
            self._end_background()

    def _check_toml(self, title: str, text: str) -> None:
        tomllib.loads(text)
        if title in ("penstock.toml", "pyproject.toml"):
            load_settings(self._directory, {}, {})

    def _query(self, text: str) -> None:
        import psycopg

        with psycopg.connect(self._dsn) as connection:
            connection.execute(text.encode())

    def _end_background(self) -> None:
        self._background.pop().close()


def run_page(page: Path, directory: Path, *, dsn: str = "") -> None:
    """Run every block of a page. A failure tells the line it stands in."""
    run = PageRun(page, directory, dsn=dsn)
    try:
        for block in blocks_of(page):
            if block.not_run:
                continue
            try:
                run.run(block)
            except Exception as error:
                error.add_note(f"{page}, line {block.line}")
                raise
    finally:
        run.close()


def _check(what: str, expected: str, got: str) -> None:
    assert matches(expected, got), f"{what}\nexpected:\n{expected}\ngot:\n{got}"


@contextmanager
def _captured() -> Iterator[io.BytesIO]:
    """What is printed, also by an egress that writes bytes."""
    printed = io.BytesIO()
    stream = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    try:
        with redirect_stdout(stream):
            yield printed
    finally:
        stream.detach()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
