"""How far inputs are read is shown from where a run continues to their end, and only where an end is known."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
from pathlib import Path

import pytest

from penstock import App, Context, FileIngress, GeneratorIngress
from penstock.engine.config import Config
from penstock.engine.progress import show_progress
from penstock.engine.run import run
from penstock.engine.worker import Worker

ROWS = 20_000


def reading_app(*ingresses: FileIngress | GeneratorIngress) -> App:
    app = App("reading")

    @app.function("t/row")
    def row(ctx: Context[None], value: dict[str, str]) -> None: ...

    for number, ingress in enumerate(ingresses):
        app.ingress(ingress, to=row, key="n", name=f"rows{number}")
    return app


def file_of(path: Path, rows: int = ROWS) -> FileIngress:
    path.write_text("n\n" + "".join(f"{number:09}\n" for number in range(rows)), encoding="utf-8")
    return FileIngress(str(path), type=dict[str, str])


def read(app: App, directory: Path, *, stop_after: int | None = None) -> None:
    """Run to the end, or until so many records were read, with progress shown once a turn."""

    async def watch(worker: Worker) -> None:
        async def turn(seconds: float) -> None:
            await asyncio.sleep(0)
            if stop_after is not None and sum(feed.records for feed in worker.ingresses) >= stop_after:
                worker.stop()

        await show_progress(worker, sleep=turn)

    run(app, Config(directory=directory, until_done=True, port=None), watch=watch)


class Log:
    """The lines about progress that were logged since the last look."""

    def __init__(self, captured: pytest.LogCaptureFixture) -> None:
        self._captured = captured

    def take(self) -> list[tuple[str, int, int]]:
        matches = [re.fullmatch(r"(\w+): (\d+)% read, ([\d,]+) records", line) for line in self._captured.messages]
        self._captured.clear()
        return [(match[1], int(match[2]), int(match[3].replace(",", ""))) for match in matches if match]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(logging.getLogger("penstock"), "propagate", True)  # The command line turns it off.
    caplog.set_level(logging.INFO, "penstock")
    return Log(caplog)


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make standard error a terminal. No fixture: between fixtures and a test pytest sets standard error anew."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def bars_on(screen: io.StringIO) -> list[tuple[str, int, int]]:
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", screen.getvalue())
    return [
        (name, int(percent), int(records.replace(",", "")))
        for name, percent, records in re.findall(r"(\w+) \S+ +(\d+)% ([\d,]+) records", plain)
    ]


def test_without_a_terminal_it_is_logged(tmp_path: Path, log: Log) -> None:
    read(reading_app(file_of(tmp_path / "rows.csv")), tmp_path / "state")

    lines = log.take()
    assert len(lines) > 3
    assert lines == sorted(lines)
    # The reader is at most one block ahead of the records, and each row has the same length.
    assert all(abs(100 * records / ROWS - percent) < 2 for _, percent, records in lines)


def without_end() -> GeneratorIngress:
    return GeneratorIngress(lambda start: ({"n": str(n)} for n in range(start, ROWS)), type=dict[str, str])


def test_what_has_no_end_is_not_logged(tmp_path: Path, log: Log) -> None:
    read(reading_app(without_end()), tmp_path)

    assert log.take() == []


def test_what_has_no_end_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    read(reading_app(without_end(), file_of(tmp_path / "rows.csv")), tmp_path / "state")

    assert {name for name, _, _ in bars_on(screen)} == {"rows1"}


def test_a_run_that_continues_is_logged_from_there(tmp_path: Path, log: Log) -> None:
    app = reading_app(file_of(tmp_path / "rows.csv"))
    read(app, tmp_path / "state", stop_after=ROWS // 2)
    before = log.take()

    read(app, tmp_path / "state")

    after = log.take()
    assert 40 < before[-1][1] <= after[0][1] < 90
    assert after == sorted(after)


def test_on_a_terminal_each_file_has_a_bar(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    read(reading_app(file_of(tmp_path / "a.csv"), file_of(tmp_path / "b.csv", 3_000)), tmp_path / "state")

    bars = bars_on(screen)
    assert bars[0][:2] == ("rows0", 0)
    assert bars[-1] == ("rows1", 100, 3_000)
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K" * 2)  # Both are wiped away.
    assert log.take() == []


def test_a_bar_begins_where_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = reading_app(file_of(tmp_path / "rows.csv"))
    read(app, tmp_path / "state", stop_after=ROWS // 2)
    screen = terminal(monkeypatch)

    read(app, tmp_path / "state")

    assert 45 < bars_on(screen)[0][1] < 90


def test_an_input_that_was_read_before_is_no_news(tmp_path: Path, log: Log) -> None:
    app = reading_app(file_of(tmp_path / "rows.csv"))
    read(app, tmp_path / "state")
    log.take()

    read(app, tmp_path / "state")

    assert log.take() in ([], [("rows0", 100, 0)])  # Whether the worker finds out first is not determined.
