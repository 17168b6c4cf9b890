"""Proves the log in memory, whose extra is a crash that can be aimed."""

from __future__ import annotations

import pytest

from penstock.errors import Unavailable
from penstock.router.log import Log, LogStatistics
from penstock.router.memory import MemoryLog
from tests.router.log_contract import LogContract, read_all


class TestMemoryLog(LogContract):
    def open(self) -> MemoryLog:
        return MemoryLog()

    def reopen(self, log: Log) -> MemoryLog:
        assert isinstance(log, MemoryLog)
        log.crash()
        return log


def test_a_crash_keeps_the_prefixes_it_is_told_to() -> None:
    log = MemoryLog()
    log.append("a", b"flushed")
    log.flush_nowait()
    for partition in ("a", "b", "c"):
        log.append(partition, b"1")
        log.append(partition, b"2")
    log.crash({"a": 1, "b": 5})
    assert read_all(log, "a") == [b"flushed", b"1"]
    assert read_all(log, "b") == [b"1", b"2"]
    assert log.partitions() == ["a", "b"]
    log.crash()
    assert read_all(log, "b") == [b"1", b"2"]


def test_a_refused_flush_keeps_the_records_for_the_next() -> None:
    log = MemoryLog()
    log.append("a", b"1")
    log.refuse_flush = Unavailable("PEN0405", "There is no space left.")
    with pytest.raises(Unavailable):
        log.flush_nowait()
    assert log.statistics() == LogStatistics(flushes=0, records=0, record_bytes=0, unflushed_records=1)
    log.refuse_flush = None
    log.flush_nowait()
    log.crash()
    assert read_all(log, "a") == [b"1"]
    assert log.statistics() == LogStatistics(flushes=1, records=1, record_bytes=1, unflushed_records=0)
