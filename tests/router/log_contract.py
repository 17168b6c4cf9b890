"""What every log must do. A test module subclasses `LogContract` and says how to open one."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import CorruptSnapshot, ProtocolError
from penstock.ids import Offset
from penstock.router.log import Log

LARGE = 1 << 30


def read_all(log: Log, partition: str, start: int = 0) -> list[bytes]:
    """Everything from `start` on, read in small steps; checks that the offsets are dense."""
    records: list[bytes] = []
    while found := log.read(partition, Offset(start + len(records)), 3, LARGE):
        for offset, record in found:
            assert offset == start + len(records)
            records.append(record)
    return records


class LogContract:
    def open(self) -> Log:
        raise NotImplementedError

    def reopen(self, log: Log) -> Log:
        """The log after a crash that takes everything that was not flushed."""
        raise NotImplementedError

    def test_offsets_are_dense_and_known_at_once(self) -> None:
        log = self.open()
        assert [log.append("a", b"x"), log.append("b", b"y"), log.append("a", b"z")] == [0, 0, 1]
        assert (log.start("a"), log.end("a")) == (0, 2)
        assert log.partitions() == ["a", "b"]
        log.close()

    def test_records_are_read_before_and_after_they_are_durable(self) -> None:
        log = self.open()
        records = [b"", b"one", bytes(1000), b"\xff" * 7]
        for record in records:
            log.append("a", record)
        assert read_all(log, "a") == records
        log.flush_nowait()
        assert read_all(log, "a") == records
        log.append("a", b"later")
        assert read_all(log, "a", 3) == [b"\xff" * 7, b"later"]
        log.close()

    def test_reading_stops_at_either_bound_but_gives_one_record_at_least(self) -> None:
        log = self.open()
        for size in (10, 10, 30, 5):
            log.append("a", bytes(size))
        for _ in ("in memory", "durable"):
            assert [len(record) for _, record in log.read("a", Offset(0), 3, LARGE)] == [10, 10, 30]
            assert [len(record) for _, record in log.read("a", Offset(0), 9, 20)] == [10, 10]
            assert [len(record) for _, record in log.read("a", Offset(0), 9, 49)] == [10, 10]
            assert [len(record) for _, record in log.read("a", Offset(2), 9, 1)] == [30]
            log.flush_nowait()
        log.close()

    def test_bounds_hold_across_what_is_durable_and_what_is_not(self) -> None:
        log = self.open()
        log.append("a", bytes(10))
        log.flush_nowait()
        log.append("a", bytes(10))
        log.append("a", bytes(10))
        assert len(log.read("a", Offset(0), 9, 20)) == 2
        assert len(log.read("a", Offset(0), 9, 10)) == 1
        assert len(log.read("a", Offset(0), 2, LARGE)) == 2
        log.close()

    def test_the_end_is_empty_and_outside_is_an_error(self) -> None:
        log = self.open()
        assert (log.start("a"), log.end("a"), log.read("a", Offset(0), 1, 1)) == (0, 0, [])
        log.append("a", b"x")
        assert log.read("a", Offset(1), 1, 1) == []
        with pytest.raises(CorruptSnapshot) as caught:
            log.read("a", Offset(2), 1, 1)
        assert str(caught.value) == (
            "PEN0409 Log partition a has no offset 2: it ends at 1, so what was stored behind it is lost. "
            "Use an older checkpoint, or restore the directory from a backup."
        )
        with pytest.raises(CorruptSnapshot):
            log.read("b", Offset(1), 1, 1)
        log.close()

    def test_what_was_flushed_survives_and_offsets_go_on(self) -> None:
        log = self.open()
        log.append("a", b"one")
        log.append("b/.. C", b"two")
        asyncio.run(log.flush())
        log = self.reopen(log)
        assert log.partitions() == ["a", "b/.. C"]
        assert log.append("a", b"three") == 1
        log.flush_nowait()
        log = self.reopen(log)
        assert read_all(log, "a") == [b"one", b"three"]
        assert read_all(log, "b/.. C") == [b"two"]
        log.close()

    def test_what_was_not_flushed_is_gone_after_a_crash(self) -> None:
        log = self.open()
        log.append("a", b"durable")
        log.flush_nowait()
        log.append("a", b"not")
        log.append("b", b"not")
        log = self.reopen(log)
        assert read_all(log, "a") == [b"durable"]
        assert log.partitions() == ["a"]
        log.close()

    def test_truncation_keeps_everything_from_its_offset_on(self) -> None:
        log = self.open()
        for number in range(100):
            log.append("a", b"%d" % number)
            log.flush_nowait()
        for before in (0, 17, 50, 50, 3, 99):
            log.truncate("a", Offset(before))
            assert log.start("a") <= max(before, 50)
            assert read_all(log, "a", max(before, 50)) == [b"%d" % number for number in range(max(before, 50), 100)]
        log = self.reopen(log)
        assert read_all(log, "a", 99) == [b"99"]
        assert log.append("a", b"next") == 100
        log.truncate("a", Offset(1000))
        assert log.end("a") == 101
        log.truncate("unknown", Offset(5))
        log.close()

    def test_truncated_records_are_an_error_and_never_skipped(self) -> None:
        log = self.open()
        for number in range(100):
            log.append("a", b"%d" % number)
            log.flush_nowait()
        log.truncate("a", Offset(60))
        start = log.start("a")
        assert 0 < start <= 60
        with pytest.raises(ProtocolError) as caught:
            log.read("a", Offset(start - 1), 10, LARGE)
        assert str(caught.value) == (
            f"PEN0413 Log partition a no longer has offset {start - 1}: it was truncated and starts at {start}. "
            "Start from a newer checkpoint: penstock checkpoint list."
        )
        log.close()

    def test_many_callers_flush_at_once(self) -> None:
        log = self.open()

        async def write(name: str) -> None:
            for number in range(20):
                log.append(name, b"%d" % number)
                await log.flush()

        async def write_all() -> None:
            await asyncio.gather(*(write(f"p{number}") for number in range(8)))

        asyncio.run(write_all())
        log = self.reopen(log)
        for partition in log.partitions():
            assert read_all(log, partition) == [b"%d" % number for number in range(20)]
        assert len(log.partitions()) == 8
        log.close()
