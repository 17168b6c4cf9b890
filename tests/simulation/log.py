"""A log for simulated worlds: partitions that become durable one by one, and records that can be damaged.

It is made of real in-memory logs, one for each partition, because the tasks of a real application flush independently
of one another. A `Producer` is the same log as one task sees it: in a buffered world, as with a Kafka client, what it
appends is nowhere but in its own memory until it is pumped, and may arrive twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from penstock.engine.journal import PARTITION
from penstock.ids import Offset
from penstock.router.log import FIRST_OFFSET, LogStatistics, RecordsLost
from penstock.router.memory import MemoryLog
from tests.simulation.dice import Dice


class PowerFailure(Exception):
    """Nothing goes on, and a flush has not ended."""


def damaged_text(partition: str, offset: int) -> str:
    """What whoever reads a damaged record is told."""
    return f"Record {offset} of {partition} is damaged."


class SimulatedLog:
    """Implements `penstock.router.log.Log`. See the module."""

    def __init__(self, shared: SimulatedLog | None = None) -> None:
        self._partitions: dict[str, MemoryLog] = shared._partitions if shared is not None else {}
        self.damaged: set[tuple[str, int]] = shared.damaged if shared is not None else set()
        """Records whose bytes a disk has changed: reading stops before them."""
        self.refusing: set[str] = shared.refusing if shared is not None else set()
        """Partitions that take nothing and make nothing durable at present."""
        self.silent: set[str] = shared.silent if shared is not None else set()
        """Partitions that can't be read at present."""
        self.fails_once = False
        """Whether the power fails instead of the next flush of everything."""
        self._arrived: list[int] = shared._arrived if shared is not None else [0]

    @property
    def arrived(self) -> int:
        """How many records that tasks read were ever appended."""
        return self._arrived[0]

    # The interface of a log.

    def append(self, partition: str, record: bytes) -> Offset:
        if partition != PARTITION:
            self._arrived[0] += 1
        return self._partition(partition).append(partition, record)

    async def flush(self) -> None:
        self.flush_nowait()

    def flush_nowait(self) -> None:
        if self.fails_once:
            raise PowerFailure
        for log in self._partitions.values():
            log.flush_nowait()

    def read(self, partition: str, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        records = self._partition(partition).read(partition, offset, records_max, bytes_max)
        if self.damaged:
            for index, (at, _) in enumerate(records):
                if (partition, at) in self.damaged:
                    if index:
                        return records[:index]
                    raise RecordsLost("PEN0406", damaged_text(partition, at), Offset(at + 1))
        return records

    def start(self, partition: str) -> Offset:
        return self._partition(partition).start(partition)

    def end(self, partition: str) -> Offset:
        log = self._partitions.get(partition)
        return FIRST_OFFSET if log is None else log.end(partition)

    def truncate(self, partition: str, before: Offset) -> None:
        self._partition(partition).truncate(partition, before)

    def partitions(self) -> list[str]:
        return sorted(self._partitions)

    def close(self) -> None:
        pass

    def statistics(self) -> LogStatistics:
        each = [log.statistics() for log in self._partitions.values()]
        return LogStatistics(*(sum(values) for values in zip(*each, strict=True)))

    # What only a simulated one can do.

    def flush_partition(self, partition: str) -> bool:
        """Whether it is durable now: a partition that refuses has to be asked again."""
        if partition in self.refusing:
            return False
        self._partition(partition).flush_nowait()
        return True

    def heal(self) -> None:
        """Let every partition be written and read again."""
        self.refusing.clear()
        self.silent.clear()

    def crash(self, dice: Dice) -> None:
        """Lose of each partition some, all or nothing of what was not flushed, independently of the others."""
        for name, log in self._partitions.items():
            unflushed = log.statistics().unflushed_records
            log.crash({name: dice.below(unflushed + 1)})

    def _partition(self, name: str) -> MemoryLog:
        log = self._partitions.get(name)
        if log is None:
            log = self._partitions[name] = MemoryLog()
        return log


class Producer(SimulatedLog):
    """The log as one task of one attempt writes it."""

    def __init__(self, log: SimulatedLog, *, buffered: bool, resend: Callable[[], bool]) -> None:
        super().__init__(log)
        self._buffered = buffered
        self._resend = resend
        """Whether an acknowledgement got lost, so that what was sent is sent again."""
        self._unsent: dict[str, deque[bytes]] = {}
        self._unflushed: dict[str, None] = {}

    def append(self, partition: str, record: bytes) -> Offset:
        self._unflushed[partition] = None
        if not self._buffered:
            return super().append(partition, record)
        self._unsent.setdefault(partition, deque()).append(record)
        return Offset(-1)  # Not known yet, and nobody asks.

    @property
    def waiting(self) -> list[str]:
        """Partitions for which something is still to be sent."""
        return [partition for partition, waiting in self._unsent.items() if waiting]

    def pump(self, partition: str, count_max: int) -> None:
        """Send some of what waits for one partition, in order."""
        waiting = self._unsent.get(partition)
        if not waiting or partition in self.refusing:
            return
        sent = [waiting.popleft() for _ in range(min(count_max, len(waiting)))]
        for _ in range(2 if self._resend() else 1):
            for record in sent:
                super().append(partition, record)

    def pump_all(self) -> None:
        """Send all that waits."""
        for partition in self.waiting:
            self.pump(partition, len(self._unsent[partition]))

    def flush_next(self) -> bool:
        """Make one more partition durable. False when all are."""
        for partition in self._unflushed:
            self.pump(partition, len(self._unsent.get(partition, ())))
            if self.flush_partition(partition):
                del self._unflushed[partition]
                return True
        return bool(self._unflushed)
