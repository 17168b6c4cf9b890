"""Shows how far a comparison is: a bar with the time that is left, and a line for each run that is over."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from penstock.compare.records import Run
from penstock.durations import format_duration


class Progress:
    """Of so many runs. Where nobody looks at a terminal, only the lines are written."""

    def __init__(self, runs: int) -> None:
        console = Console(stderr=True, highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=runs)
        self._console = console

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, run: str, left_s: float) -> None:
        """It begins."""
        left = format_duration(1000 * round(left_s))
        self._bar.update(self._task, description=f"{run}, {left} left")
        if not self._console.is_terminal:
            self._console.print(f"{run} begins, {left} left", soft_wrap=True)

    def done(self, run: Run) -> None:
        self._bar.advance(self._task)
        late = f", late by {run.late_p99_ms:g} ms (p99)" if run.late_p99_ms is not None else ""
        reason = f": {run.reason}" if run.reason else ""
        self._console.print(f"{run.run} {run.status}{late}{reason}", soft_wrap=True, markup=False)
