"""Which stores may be built upon: bases that hold what their part says."""

from __future__ import annotations

import msgspec
import pytest

from penstock.checkpoint.control import Part
from penstock.engine.journal import Journal
from penstock.engine.restore import FORMAT_META, META, SETTLED_META, SETTLING_META, restore_task
from penstock.errors import CorruptSnapshot, Refused
from penstock.records import TaskMeta
from penstock.router.memory import MemoryLog
from penstock.state.backend import Backend
from penstock.state.memory import MemoryBackend


def store(settling: tuple[int, int] | None, settled: tuple[int, int] | None) -> MemoryBackend:
    backend = MemoryBackend()
    marks = ((SETTLING_META, settling), (SETTLED_META, settled))
    rows = [(key, msgspec.msgpack.encode(mark)) for key, mark in marks if mark is not None]
    backend.write([*rows, (META, msgspec.msgpack.encode(TaskMeta()))])
    return backend


def restore(backend: Backend) -> None:
    part = Part(0, "base-8", 8, -1, 0, -1, 0, 0)
    journal = Journal(MemoryLog(), None)  # type: ignore[arg-type]  # No index is read.
    restore_task(part, journal, lambda _: backend, cache_bytes_max=1 << 20, progress=lambda done, total: None)


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
    restore(store((1, 8), (1, 8)))
    with pytest.raises(CorruptSnapshot, match=f"PEN0404 Base base-8 of task 0 should hold the cut .* 8, {problem}"):
        restore(store(settling, settled))


def test_a_base_of_a_newer_format_is_left_to_a_newer_version() -> None:
    newer = store((1, 8), (1, 8))
    newer.write([(FORMAT_META, msgspec.msgpack.encode(2))])

    with pytest.raises(Refused, match="PEN0408 Base base-8 of task 0 has format 2; this version reads up to 1"):
        restore(newer)
