"""The directory of an application: who has it, and which checkpoint a restore settles for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from penstock.checkpoint.control import Manifest, Part
from penstock.checkpoint.retention import Retained
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory, restore_newest, restore_parts
from penstock.engine.restore import Restored
from penstock.errors import CorruptSnapshot, Fenced
from penstock.functions.app import App
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay

STARTED = datetime(2030, 1, 1, tzinfo=UTC)


def opened(path: Path) -> DataDirectory:
    return DataDirectory(Config(directory=path), command="a test", started=STARTED)


def test_one_process_at_a_time_has_it(tmp_path: Path) -> None:
    data = opened(tmp_path)
    with pytest.raises(Fenced):
        opened(tmp_path)
    data.close()

    opened(tmp_path).close()


def test_it_is_given_back_when_it_can_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    for _ in range(2):
        with pytest.raises(Exception, match="log") as caught:
            opened(tmp_path)
        assert not isinstance(caught.value, Fenced)


def test_each_start_begins_a_later_attempt_and_passes_those_that_output_knows(tmp_path: Path) -> None:
    attempts = []
    for seen in (0, 0, 7):
        data = opened(tmp_path)
        manifest, restored = data.restore(App("shop"), lambda _: None)
        data.history.pass_attempt(seen)
        attempt = data.next_attempt(manifest, 1)
        data.begin_attempt(attempt)
        attempts.append(attempt.lineage.attempt)
        for each in restored:
            each.overlay.backend.close()
        data.close()

    assert attempts == [1, 2, 8]


class Closable(MemoryBackend):
    closed = False

    def close(self) -> None:
        self.closed = True


def part(task: int) -> Part:
    return Part(task, "", 0, -1, 0, -1, 0, 0)


def test_tasks_are_restored_together_or_not_at_all() -> None:
    stores = [Closable(), Closable()]

    def restore(each: Part) -> Restored:
        if each.task == 2:
            raise CorruptSnapshot("PEN0404", "damaged")
        return Restored(Overlay(stores[each.task]))

    with pytest.raises(CorruptSnapshot):
        restore_parts([part(0), part(1), part(2)], restore)
    assert [store.closed for store in stores] == [True, True]

    stores[:] = [Closable(), Closable()]
    assert len(restore_parts([part(0), part(1)], restore)) == 2
    assert [store.closed for store in stores] == [False, False]


class Manifests:
    """A journal in which the manifests of some checkpoints are damaged. A number stands for a manifest."""

    def __init__(self, *damaged: int) -> None:
        self._damaged = damaged

    def manifest(self, retained: Retained) -> Manifest:
        if retained.checkpoint in self._damaged:
            raise CorruptSnapshot("PEN0404", f"manifest {retained.checkpoint}")
        return cast(Manifest, retained.checkpoint)


def retained(checkpoint: int) -> Retained:
    return Retained(checkpoint, 0, 0, 1, 0, (), 0, "interval")


def search(journal: Manifests, damaged_parts: tuple[int, ...] = ()) -> tuple[object, list[str]]:
    """The number of the checkpoint that is settled for, of 3, 2 and 1, and what was said on the way."""
    passed: list[str] = []

    def restore(manifest: Manifest) -> list[Restored]:
        if cast(int, manifest) in damaged_parts:
            raise CorruptSnapshot("PEN0404", f"part of {manifest}")
        return []

    def pass_over(candidate: Retained, error: CorruptSnapshot) -> None:
        passed.append(f"{candidate.checkpoint}: {error.message}")

    candidates = [retained(number) for number in (3, 2, 1)]
    found = restore_newest(journal.manifest, candidates, restore, pass_over)
    return (found[0] if found is not None else None), passed


def test_the_newest_whole_checkpoint_is_restored() -> None:
    assert search(Manifests()) == (3, [])


def test_a_damaged_one_is_passed_over_and_said() -> None:
    assert search(Manifests(3), damaged_parts=(2,)) == (1, ["3: manifest 3", "2: part of 2"])


def test_there_may_be_none() -> None:
    found, passed = search(Manifests(1, 2, 3))

    assert found is None
    assert len(passed) == 3
