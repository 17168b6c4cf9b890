"""What every sink promises.

A sink is the far end of the two-phase commit: the rows it is given are decided, they only have to become visible.
What always holds for a sink that can deliver exactly once: rows and marker become visible and durable in one step; a
commit whose outcome is unknown may be repeated, after the marker was read again. When to commit, and what to leave
out because the marker says it is there already, is decided in `penstock.checkpoint.sinks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from penstock.errors import InvalidInput
from penstock.records import EgressRow


class Sink(Protocol):
    """One egress, for all tasks of this process. Its methods are called one at a time per task."""

    async def open(self) -> None:
        """Connect, and repair what a crash left behind. Raises Unavailable, ConfigurationError or Fenced."""
        ...

    async def read_marker(self, task: int) -> dict[int, int]:
        """For each attempt the highest checkpoint whose rows of `task` are visible; empty if none was committed."""
        ...

    async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        """Make `rows` and `marker` visible and durable in one step. The marker of the task was read before.

        After Unavailable the outcome is unknown: read the marker again. After RowsRefused nothing of this commit is
        visible: give the refused rows to the dead letters, then commit the others. After Fenced this process stops.
        """
        ...

    async def release(self, task: int, *, final: bool) -> None:
        """This process has the task no longer: another may have it. `final` when nobody has it, and all that was
        decided is committed. It may come back: then its marker is read first."""
        ...

    async def tick(self) -> None:
        """Do what is due without new rows. To be called about every second."""
        ...

    async def close(self, final: bool) -> None:
        """Release everything. `final` at the end of the input or at a stop: what was committed is finished as
        well."""
        ...


class RowsRefused(InvalidInput):
    """Some rows of a commit can never be written, however often it is tried."""

    def __init__(self, code: str, message: str, refused: Sequence[tuple[int, str]]) -> None:
        super().__init__(code, message)
        self.refused = refused
        """The index of each among the rows of the commit, and why it was refused."""
