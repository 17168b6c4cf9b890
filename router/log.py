"""The one interface through which messages and deltas become durable: ordered partitions of opaque records.

What every log promises, and `tests/router/log_contract.py` checks of each: the records of a partition are
dense from its first offset and never change; what `read` returned once it returns again, until it is
truncated; what was durable when `flush` returned survives any crash; after a crash a partition is a prefix of
what was appended, never shorter than what was flushed. Several partitions are not flushed as one: after a
crash one may have more than another. A log knows nothing of frames, tasks or epochs; whether two processes
write one is decided elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, cast

from penstock.errors import CorruptSnapshot, ProtocolError
from penstock.ids import Offset

FIRST_OFFSET = Offset(0)


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What a log has done since it was opened."""

    flushes: int
    """Completed group commits: many callers of `flush` share one."""
    records: int
    """Made durable."""
    record_bytes: int
    unflushed_records: int
    """Appended and still only in memory."""


class RecordsLost(CorruptSnapshot):
    """Records of a partition are damaged or missing. `next_offset`, behind them, can be read again, or is the end."""

    def __init__(self, code: str, message: str, next_offset: Offset) -> None:
        super().__init__(code, message)
        self.next_offset = next_offset


class Log(Protocol):
    """Durable ordered partitions. All methods are called from one thread."""

    def append(self, partition: str, record: bytes) -> Offset:
        """Put `record` at the end and return where it is. It is durable only after the next flush."""

    async def flush(self) -> None:
        """Return when everything appended so far, in every partition, is durable.

        On `Unavailable` nothing is lost and no offset changes: the records stay readable and wait for the
        next flush, which the caller repeats.
        """

    def flush_nowait(self) -> None:
        """The same, blocking: for stopping, recovery and tests."""

    def read(self, partition: str, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        """The records from `offset` on, durable or not: at least one if there is one, none at the end.

        Stops before `bytes_max` is passed, and before a damaged record; raises `RecordsLost` when the first one
        is damaged or missing, `CorruptSnapshot` behind the end, `ProtocolError` when it was truncated.
        """

    def start(self, partition: str) -> Offset:
        """The first offset still stored; 0 for a partition nobody has written to."""

    def end(self, partition: str) -> Offset:
        """The offset the next append gets."""

    def truncate(self, partition: str, before: Offset) -> None:
        """Allow the log to forget what is below `before`. It may keep some of it."""

    def partitions(self) -> list[str]:
        """The names of all partitions that were ever appended to, sorted."""

    def close(self) -> None:
        """Release files and threads. Does not flush: what was not flushed was promised to nobody."""


def check_offset(partition: str, offset: Offset, *, start: Offset, end: Offset) -> None:
    """Raise if `offset` is neither stored nor the end: skipping silently to what is there would lose
    messages.
    """
    if offset < start:
        raise ProtocolError(
            "PEN0413",
            f"Log partition {partition} no longer has offset {offset:,}: it was truncated and starts at "
            f"{start:,}. Start from a newer checkpoint: penstock checkpoint list.",
        )
    if offset > end:
        raise CorruptSnapshot(
            "PEN0409",
            f"Log partition {partition} has no offset {offset:,}: it ends at {end:,}, so what was stored "
            "behind it is lost. Use an older checkpoint, or restore the directory from a backup.",
        )


def take_records(records: Sequence[bytes], records_max: int, bytes_max: int, *, some: bool) -> Sequence[bytes]:
    """As many of `records` as the bounds allow, and one whatever its size unless there are `some` already."""
    taken = records[:records_max]
    if sum(map(len, taken)) <= bytes_max:
        return taken
    fitting = bisect_right(list(accumulate(map(len, taken))), bytes_max)
    return taken[: fitting if some else max(1, fitting)]


def enumerate_from(offset: Offset, records: Sequence[bytes]) -> Iterator[tuple[Offset, bytes]]:
    """Each record with its offset."""
    return zip(cast("Iterable[Offset]", range(offset, offset + len(records))), records, strict=True)
