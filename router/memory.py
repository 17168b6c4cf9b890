"""A log in memory, for tests and the simulator: the same contract, and a crash that can be aimed.

What always holds: a flush makes every record durable at once; `crash` loses nothing durable and keeps, of
what was not, exactly the prefix it is told to. The object outlives the crash it simulates: go on with the
same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.errors import Unavailable
from penstock.ids import Offset
from penstock.router.log import FIRST_OFFSET, LogStatistics, check_offset, enumerate_from, take_records


@dataclass(slots=True)
class _Partition:
    start: Offset = FIRST_OFFSET
    records: list[bytes] = field(default_factory=list)
    durable: Offset = FIRST_OFFSET
    """A crash may take the records from here on."""

    @property
    def end(self) -> Offset:
        return Offset(self.start + len(self.records))


class MemoryLog:
    """Implements `penstock.router.log.Log`."""

    def __init__(self) -> None:
        self.refuse_flush: Unavailable | None = None
        """While set, every flush raises it: the full disk of a simulated world."""
        self._partitions: dict[str, _Partition] = {}
        self._flushes = 0
        self._records = 0
        self._record_bytes = 0

    def append(self, partition: str, record: bytes) -> Offset:
        stored = self._partitions.setdefault(partition, _Partition())
        stored.records.append(record)
        return Offset(stored.end - 1)

    async def flush(self) -> None:
        self.flush_nowait()

    def flush_nowait(self) -> None:
        waiting = [stored for stored in self._partitions.values() if stored.durable < stored.end]
        if not waiting:
            return
        if self.refuse_flush is not None:
            raise self.refuse_flush
        for stored in waiting:
            fresh = stored.records[stored.durable - stored.start :]
            self._records += len(fresh)
            self._record_bytes += sum(map(len, fresh))
            stored.durable = stored.end
        self._flushes += 1

    def read(self, partition: str, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        stored = self._partitions.get(partition, _Partition())
        check_offset(partition, offset, start=stored.start, end=stored.end)
        first = offset - stored.start
        taken = take_records(stored.records[first : first + records_max], records_max, bytes_max, some=False)
        return list(enumerate_from(offset, taken))

    def start(self, partition: str) -> Offset:
        return self._partitions.get(partition, _Partition()).start

    def end(self, partition: str) -> Offset:
        return self._partitions.get(partition, _Partition()).end

    def truncate(self, partition: str, before: Offset) -> None:
        stored = self._partitions.get(partition)
        if stored is not None and before > stored.start:
            start = min(before, stored.durable)  # A file log deletes only what it has written.
            del stored.records[: start - stored.start]
            stored.start = start

    def partitions(self) -> list[str]:
        return sorted(self._partitions)

    def close(self) -> None:
        pass  # It holds neither files nor threads.

    def statistics(self) -> LogStatistics:
        """What happened since it was made, crashes included."""
        unflushed = sum(stored.end - stored.durable for stored in self._partitions.values())
        return LogStatistics(self._flushes, self._records, self._record_bytes, unflushed)

    def crash(self, survivors: Mapping[str, int] | None = None) -> None:
        """Lose what was not flushed, but for the first `survivors[partition]` records of each partition.

        A real disk may have written some of an interrupted flush; what is found after the crash is then
        durable.
        """
        survivors = survivors or {}
        for name, stored in list(self._partitions.items()):
            kept = min(stored.end, stored.durable + survivors.get(name, 0))
            del stored.records[kept - stored.start :]
            stored.durable = stored.end
            if stored.end == 0:
                del self._partitions[name]  # A partition without a durable record leaves no name.
