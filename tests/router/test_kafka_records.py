"""Segments by themselves: what a broker answers is built here, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import aiokafka
import pytest
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from penstock.errors import ConfigurationError
from penstock.router.kafka_client import check_version
from penstock.router.kafka_records import Columns, Damaged, Proof, Segment

CONTROL_BIT = 0x20


def batch(offsets: Iterable[int], *, producer: int = -1, compression: int = 0, headers: Any = ()) -> bytes:
    """One batch, whose records have their offsets as values; of a transaction, if it has a producer."""
    builder = DefaultRecordBatchBuilder(2, compression, int(producer >= 0), producer, 0, 0, 1 << 20)
    numbers = list(offsets)
    for number in numbers:
        builder.append(number - numbers[0], 1_000 + number, b"k%d" % number, b"%d" % number, list(headers))
    return moved(builder.build(), numbers[0])


def marker(offset: int, kind: Any, producer: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, 0, 1 << 20)
    key = b"\0\0\0" + (b"\0" if kind == ABORT_MARKER else b"\1")
    builder.append(0, 1_000, key, b"\0\0\0\0\0\0", [])
    data = builder.build()
    data[22] |= CONTROL_BIT
    return checked(moved(data, offset))


def moved(data: bytes | bytearray, offset: int) -> bytes:
    """The batch at another offset, as the broker does it."""
    return offset.to_bytes(8, "big") + bytes(data[8:])


def checked(data: bytes) -> bytes:
    """The batch with the checksum of what it is now."""
    from aiokafka.record.util import calc_crc32c

    return data[:17] + int(calc_crc32c(data[21:])).to_bytes(4, "big") + data[21:]


def values(segment: Segment, count_max: int = 1_000) -> list[int]:
    return [int(record.value) for record in segment.take(count_max)]


def test_records_come_in_any_portions_and_then_the_segment_is_done() -> None:
    segment = Segment(batch(range(10, 15)) + batch(range(15, 18)), None, 10, committed=True)

    assert segment.end == 18
    assert values(segment, 2) == [10, 11]
    assert segment.next_offset == 12
    assert values(segment, 4) == [12, 13, 14, 15]
    assert not segment.done
    assert values(segment) == [16, 17]
    assert segment.done
    assert segment.next_offset == 18


@pytest.mark.parametrize("compression", [0, 1, 2, 3, 4])
def test_compressed_batches_are_unpacked_when_they_are_taken(compression: int) -> None:
    segment = Segment(batch(range(100), compression=compression), None, 0, committed=True)

    assert values(segment, 60) + values(segment) == list(range(100))


def test_aborted_transactions_are_left_out_and_passed() -> None:
    data = (
        batch([0, 1], producer=7)
        + batch([2], producer=8)
        + marker(3, ABORT_MARKER, 7)
        + batch([4], producer=7)
        + marker(5, COMMIT_MARKER, 7)
        + batch([6])
        + marker(7, ABORT_MARKER, 8)
        + batch([8], producer=8)
    )
    aborted = [(8, 2), (7, 0)]

    assert values(Segment(data, aborted, 0, committed=True)) == [4, 6, 8]
    assert values(Segment(data, aborted, 0, committed=False)) == [0, 1, 2, 4, 6, 8]
    only_a_marker = Segment(marker(9, COMMIT_MARKER, 7), (), 9, committed=True)
    assert values(only_a_marker) == []
    assert only_a_marker.next_offset == 10
    assert only_a_marker.done


def test_an_end_that_compaction_removed_is_passed() -> None:
    data = bytearray(batch([3, 5]))
    data[23:27] = (9).to_bytes(4, "big")  # The batch once reached to offset 12.
    segment = Segment(checked(bytes(data)), None, 3, committed=True)

    assert segment.end == 13
    assert values(segment) == [3, 5]
    assert segment.next_offset == 13


def test_offsets_of_columns_are_a_range_unless_there_are_gaps() -> None:
    dense = Columns.of(Segment(batch(range(4, 7)), None, 4, committed=True).take(9), 7)
    gappy = Columns.of(Segment(batch([4, 6]), None, 4, committed=True).take(9), 7)

    assert dense.offsets == range(4, 7)
    assert dense.keys == [b"k4", b"k5", b"k6"]
    assert dense.headers is None
    assert list(gappy.offsets) == [4, 6]
    assert gappy.last is not None
    assert gappy.last[:2] == (6, 1_006)
    assert gappy.last != Proof(6, 1_006, 0)


def test_headers_are_given_for_all_records_if_one_has_any() -> None:
    data = batch([0]) + batch([1], headers=[("a", b"b")])

    assert Columns.of(Segment(data, None, 0, committed=True).take(9), 2).headers == [[], [("a", b"b")]]


def test_a_changed_byte_is_noticed() -> None:
    data = bytearray(batch([0, 1]))
    data[-1] ^= 1

    with pytest.raises(Damaged) as caught:
        Segment(bytes(data), None, 0, committed=True).take(9)
    assert "checksum" in str(caught.value)


def test_a_batch_that_was_cut_off_is_fetched_again() -> None:
    segment = Segment(batch([0, 1]) + batch([2, 3])[:-5], None, 0, committed=True)

    assert segment.end == 2
    assert values(segment) == [0, 1]


def test_the_installed_version_of_the_client_library_is_known_and_others_are_refused() -> None:
    check_version(aiokafka.__version__)
    with pytest.raises(ConfigurationError) as caught:
        check_version("0.99.0")
    assert caught.value.code == "PEN0728"
