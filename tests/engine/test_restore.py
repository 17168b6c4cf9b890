"""Which stores may be built upon: bases that hold what their part says, and local ones with nothing to take back."""

from __future__ import annotations

import msgspec
import pytest

from penstock.checkpoint.control import Part
from penstock.checkpoint.lineage import Lineage
from penstock.engine.journal import Journal
from penstock.engine.restore import META, SETTLED_META, SETTLING_META, may_serve, restore_task
from penstock.errors import CorruptSnapshot
from penstock.records import TaskMeta
from penstock.router.memory import MemoryLog
from penstock.state.backend import Backend
from penstock.state.memory import MemoryBackend

LINEAGE = Lineage(3, ((1, 7), (2, 12)))
"""Attempt 1 was left at checkpoint 7, attempt 2 at 12."""


def store(settling: tuple[int, int] | None, settled: tuple[int, int] | None) -> MemoryBackend:
    backend = MemoryBackend()
    marks = ((SETTLING_META, settling), (SETTLED_META, settled))
    rows = [(key, msgspec.msgpack.encode(mark)) for key, mark in marks if mark is not None]
    backend.write([*rows, (META, msgspec.msgpack.encode(TaskMeta()))])
    return backend


@pytest.mark.parametrize(
    ("settling", "settled", "serves"),
    [
        ((3, 14), (3, 14), True),
        ((3, 15), (3, 15), True),
        ((2, 12), (1, 7), True),  # Half of a fold, all of which the deltas bring again.
        ((3, 16), (3, 16), False),  # Newer than what is to be restored.
        ((3, 16), (3, 14), False),  # Half of what is newer.
        ((2, 13), (2, 13), False),  # Rolled back when attempt 3 began.
        ((2, 13), (2, 12), False),
        ((4, 2), (4, 2), False),  # On a branch that was abandoned.
        ((3, 14), None, False),  # Half of the first fold ever: nobody knows what is missing.
    ],
)
def test_a_local_store_serves_what_is_on_its_history_and_not_older(
    settling: tuple[int, int] | None, settled: tuple[int, int] | None, serves: bool
) -> None:
    assert may_serve(store(settling, settled), LINEAGE, 15) is serves


def test_an_empty_store_serves_and_one_that_tells_nothing_of_itself_does_not() -> None:
    assert may_serve(MemoryBackend(), LINEAGE, 15)
    assert not may_serve(store(None, None), LINEAGE, 15)


@pytest.mark.parametrize(
    ("settling", "settled", "problem"),
    [
        ((1, 9), (1, 9), "and holds 9"),
        ((1, 9), (1, 8), "and holds half of a later one"),
        (None, None, "and holds none"),
    ],
)
def test_a_base_that_is_not_the_cut_its_part_names_is_not_restored(
    settling: tuple[int, int] | None, settled: tuple[int, int] | None, problem: str
) -> None:
    def restore(backend: Backend) -> None:
        part = Part(0, "base-8", 8, -1, 0, -1, 0, 0)
        journal = Journal(MemoryLog(), None)  # type: ignore[arg-type]  # No index is read.
        restore_task(part, journal, lambda _: backend, cache_bytes_max=1 << 20, progress=lambda done, total: None)

    restore(store((1, 8), (1, 8)))
    with pytest.raises(CorruptSnapshot, match=f"PEN0404 Base base-8 of task 0 should hold the cut .* 8, {problem}"):
        restore(store(settling, settled))
