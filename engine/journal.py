"""Deltas and decisions in one append-only partition, so that one sync makes a checkpoint durable (PROTOCOL 11).

    journal:  D D D C   D C   D D C ...      D = record of a delta, C = control record

What always holds: a COMPLETE stands behind the deltas it refers to, so whoever can read it can read them. Beside the
journal lies an index, replaced atomically now and then: the retained checkpoints, and from where on the journal must be
read to know the rest. A missing or damaged index costs a scan of the whole journal, and is said loudly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from penstock.checkpoint.control import (
    AttemptBegun,
    ControlRecord,
    Manifest,
    decode_control,
    encode_control,
    manifest_in,
)
from penstock.checkpoint.delta import DeltaHeader, decode_delta, follow, peek_header
from penstock.checkpoint.formats import item_at, refuse_newer
from penstock.checkpoint.recovery import History
from penstock.checkpoint.retention import Retained
from penstock.errors import CorruptSnapshot, ProtocolError
from penstock.files import read_bytes_checked, write_checked
from penstock.ids import Offset
from penstock.records import Frozen
from penstock.router.log import FIRST_OFFSET, Log, RecordsLost

PARTITION = "journal"
_DELTA, _CONTROL = b"D", b"C"
_READ_BYTES = 8 << 20
INDEX_FORMAT = 1
IDS_SKIPPED = 1_000_000
"""Checkpoint ids and attempts passed over when part of the journal can't be read, beside as many as it has records:
more than what is lost can have held, and more every time, also when what was begun the last time is lost as well."""


class _Index(msgspec.Struct, array_like=True):
    format: int
    scan_from: int
    attempt: AttemptBegun | None
    high: int
    checkpoints: list[Retained]


class Journal:
    """See the module. `notes` collects what a person should be told about opening it."""

    def __init__(self, log: Log, index: Path) -> None:
        self._log = log
        self._index = index
        self.notes: list[str] = []
        self.incomplete = False
        """Whether there were control records, found by `read_history`, that neither the index nor the journal tells."""

    # Writing.

    def append_delta(self, record: bytes) -> int:
        """Append the next record of a delta. Returns its offset."""
        return self._log.append(PARTITION, _DELTA + record)

    def append_control(self, record: ControlRecord) -> int:
        return self._log.append(PARTITION, _CONTROL + encode_control(record))

    @property
    def end(self) -> int:
        return self._log.end(PARTITION)

    def truncate(self, before: int) -> None:
        self._log.truncate(PARTITION, Offset(before))

    def write_index(self, history: History) -> None:
        """Make what `history` knows the starting point of the next opening. Everything in it is durable already.

        What stands behind it is read again then: a decision on its way to the disk must not be passed over.
        """
        index = _Index(INDEX_FORMAT, history.scanned, history.attempt, history.high, list(history.checkpoints.values()))
        write_checked(self._index, msgspec.msgpack.encode(index))

    # Reading.

    def read_history(self) -> History:
        """What the control records say, from the index and the journal behind it."""
        index = self._read_index()
        start, end = self._log.start(PARTITION), self._log.end(PARTITION)
        history = History()
        if index is not None and start <= index.scan_from <= end:
            history = History(index.attempt, index.high, iter(index.checkpoints), index.scan_from)
            start = Offset(index.scan_from)
        elif index is not None:
            self.notes.append(
                f"The index {self._index} continues at offset {index.scan_from} of the journal, which holds {start} to "
                f"{end}. The whole journal is read instead."
            )
            self.incomplete = True
            history = History(index.attempt, index.high)
        elif start > FIRST_OFFSET:
            self.notes.append(f"Without the index {self._index}, the journal is read from its offset {start} on.")
            self.incomplete = True
        for offset, record in self._records(start):
            if record[:1] == _CONTROL:
                history.apply(offset, decode_control(record[1:]))
        if self.notes:
            history.skip(IDS_SKIPPED + end)
        return history

    def manifest(self, retained: Retained) -> Manifest:
        """The whole manifest of a retained checkpoint. Raises CorruptSnapshot when it can't be read."""
        record = self._one(retained.offset)
        control = decode_control(record[1:]) if record[:1] == _CONTROL else None
        return manifest_in(control, retained.checkpoint, f"Offset {retained.offset} of the journal")

    def delta(self, offset: int) -> tuple[DeltaHeader, Frozen, int]:
        """The delta whose first record stands at `offset`, and its size in bytes."""
        records = self.records_of_delta(offset)
        return *decode_delta(records, _at(offset)), sum(map(len, records))

    def records_of_delta(self, offset: int) -> list[bytes]:
        """The delta whose first record stands at `offset`, as it was written."""
        records: list[bytes] = []
        while True:
            record = self._one(offset + len(records))
            if record[:1] != _DELTA:
                raise CorruptSnapshot(
                    "PEN0404",
                    f"Offset {offset + len(records)} of the journal should hold record {len(records)} of a delta and "
                    "does not. An older checkpoint is used.",
                )
            records.append(record[1:])
            if peek_header(records[-1], _at(offset)).count:
                return records

    def chain(self, head: int, first: int) -> list[int]:
        """Offsets of the deltas from `first` to `head`, oldest first, found by following `previous` back from the head.

        What `first` extends is in the base, and may be deleted.
        """
        return follow(head, first, self._previous, "the journal")

    def _previous(self, offset: int) -> int:
        """What the delta at `offset` extends."""
        record = self._one(offset)
        if record[:1] != _DELTA:
            raise CorruptSnapshot(
                "PEN0404", f"Offset {offset} of the journal holds no delta. An older checkpoint is used."
            )
        return peek_header(record[1:], _at(offset)).previous

    def _one(self, offset: int) -> bytes:
        try:
            records = self._log.read(PARTITION, Offset(offset), 1, 1)
        except ProtocolError as error:
            raise CorruptSnapshot(error.code, error.message) from error
        if not records:
            raise CorruptSnapshot("PEN0404", f"The journal ends before offset {offset}. An older checkpoint is used.")
        return records[0][1]

    def _records(self, start: Offset) -> Iterator[tuple[int, bytes]]:
        """Records from `start` on. Those that are lost are passed over, and that is noted."""
        offset = start
        while True:
            try:
                records = self._log.read(PARTITION, offset, 10_000, _READ_BYTES)
            except RecordsLost as error:
                self.notes.append(f"{error} Checkpoints that only these records know of are lost.")
                self.incomplete = True
                offset = error.next_offset
                continue
            if not records:
                return
            yield from records
            offset = Offset(records[-1][0] + 1)

    def _read_index(self) -> _Index | None:
        try:
            data = read_bytes_checked(self._index)
            refuse_newer(item_at(data, 0), INDEX_FORMAT, f"The index {self._index}")
            return msgspec.msgpack.decode(data, type=_Index)
        except FileNotFoundError:
            return None
        except (CorruptSnapshot, msgspec.DecodeError, UnicodeDecodeError) as error:
            self.notes.append(f"{error} The whole journal is read instead.")
            return None


def _at(offset: int) -> str:
    return f"offset {offset} of the journal"
