"""What a journal tells when some of it, or its index, is lost."""

from __future__ import annotations

from pathlib import Path

from penstock.checkpoint.control import AttemptBegun, Complete, Manifest, Part
from penstock.checkpoint.lineage import Lineage
from penstock.engine.journal import IDS_SKIPPED, PARTITION, Journal
from penstock.ids import Offset
from penstock.router.log import RecordsLost
from penstock.router.memory import MemoryLog


class DamagedLog(MemoryLog):
    """A log of which some records of the journal can't be read."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: set[int] = set()

    def read(self, partition: str, offset: Offset, records_max: int, bytes_max: int) -> list[tuple[Offset, bytes]]:
        if offset in self.lost:
            raise RecordsLost("PEN0406", f"Record {offset} is damaged.", Offset(offset + 1))
        behind = min((lost - offset for lost in self.lost if lost > offset), default=records_max)
        return super().read(partition, offset, min(records_max, behind), bytes_max)


def complete(checkpoint: int, lineage: Lineage) -> Complete:
    part = Part(0, "", 0, -1, 0, -1, 0, 0)
    return Complete(Manifest(1, "shop", checkpoint, lineage, checkpoint * 10, 128, 1, 1, {}, (part,)))


def test_what_stands_behind_lost_records_is_known(tmp_path: Path) -> None:
    log = DamagedLog()
    journal = Journal(log, tmp_path / "index")
    begun = AttemptBegun(Lineage(1), 0, 9, 0)
    for record in (begun, complete(1, Lineage(1)), complete(2, Lineage(1)), complete(3, Lineage(1))):
        journal.append_control(record)
    log.lost = {2}

    opened = Journal(log, tmp_path / "index")
    history = opened.read_history()

    assert opened.incomplete
    assert opened.notes == ["PEN0406 Record 2 is damaged. Checkpoints that only these records know of are lost."]
    assert [each.checkpoint for each in history.candidates()] == [3, 1]


def test_an_attempt_whose_own_record_is_lost_is_not_begun_again(tmp_path: Path) -> None:
    log = DamagedLog()
    Journal(log, tmp_path / "index").append_control(AttemptBegun(Lineage(1), 0, 9, 0))
    log.append(PARTITION, b"D lost")
    numbers, ids = [1], [9]

    for _ in range(3):
        log.lost.add(log.end(PARTITION) - 1)  # Of the attempt before, and the index is lost again.
        history = Journal(log, tmp_path / "index").read_history()
        attempt = history.next_attempt(None, 0, 0, "start")
        Journal(log, tmp_path / "index").append_control(attempt)
        numbers.append(attempt.lineage.attempt)
        ids.append(attempt.high)

    assert numbers == sorted(set(numbers))
    assert ids == sorted(set(ids))
    assert numbers[1] > IDS_SKIPPED
