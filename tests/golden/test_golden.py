"""What earlier versions have stored is restored, and goes on.

`format-N.tar.gz` has a data directory and a savepoint as the version wrote them that introduced the formats in
`format-N.json`, which also says what is in them and what came of them. When one of these tests fails:

- a format has got another number: run `python -m tests.golden.make`, look at what it says is in the new pair, and add
  it. Older pairs stay: their formats are read for as long as somebody may have stopped with them.
- anything else: stored data mean something else than they did. Give the format another number and read both, or undo
  the change. Never make the pair anew.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from penstock.checkpoint.savepoint import SavepointReader
from penstock.checkpoint.stores import open_blobs
from penstock.engine.offline import Directory
from penstock.engine.savepoints import restore_savepoint
from tests.golden.app import KINDS, TASKS, config, go_on, golden, look
from tests.golden.make import FOLDER, formats, make

BYTES_MAX = 100 << 10
PAIRS = sorted(path.stem for path in FOLDER.glob("format-*.json"))


class Golden(NamedTuple):
    data: Path
    saved: Path
    output: Path
    said: dict[str, Any]


@pytest.fixture(params=PAIRS)
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    with tarfile.open(FOLDER / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    said = json.loads((FOLDER / f"{request.param}.json").read_text(encoding="utf-8"))
    return Golden(tmp_path / "data", tmp_path / "saved", tmp_path / "rows", said)


def test_a_data_directory_holds_what_it_held(found: Golden) -> None:
    assert look(found.data, found.output) == found.said["restored"]


def test_all_its_checkpoints_are_sound(found: Golden) -> None:
    with Directory(found.data) as opened:
        assert all(each["sound"] for each in opened.verify([], lambda done, total: None))


def test_what_was_under_way_goes_on(found: Golden) -> None:
    assert go_on(found.data, found.output, TASKS, found.said["made_s"]) == found.said["continued"]


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_a_savepoint_is_restored_with_any_parallelism(found: Golden, tmp_path: Path, tasks: int) -> None:
    reader = SavepointReader(open_blobs(str(found.saved)))
    reader.verify(lambda done, total: None)
    restore_savepoint(
        golden(10, found.output, broken=False),
        reader,
        config(tmp_path / "restored", tasks),
        command="a test",
        reason="savepoint",
        now_ms=int(found.said["made_s"] * 1000),
        replacing=False,
        progress=lambda done, total: None,
    )

    after = look(tmp_path / "restored", found.output)

    assert (after["states"], after["letters"]) == (found.said["saved"]["states"], found.said["saved"]["letters"])


def test_there_is_one_of_everything(found: Golden) -> None:
    counts = found.said["restored"]["counts"]

    assert not {*KINDS.values(), "messages in queues", "rows of egresses", "frames under way"} - counts.keys()
    assert not {"requests under way", "bases", "deltas"} - counts.keys()
    assert (found.said["restored"]["tasks"], found.said["restored"]["replays"]) == (TASKS, 1)


def test_the_newest_pair_has_the_formats_of_this_version() -> None:
    newest = json.loads((FOLDER / f"{PAIRS[-1]}.json").read_text(encoding="utf-8"))

    assert newest["formats"] == formats(), "run: python -m tests.golden.make"


def test_pairs_are_small() -> None:
    assert all((FOLDER / f"{pair}.tar.gz").stat().st_size < BYTES_MAX for pair in PAIRS)


def test_the_script_makes_what_is_there(tmp_path: Path) -> None:
    made = make(tmp_path)
    newest = json.loads((FOLDER / f"{PAIRS[-1]}.json").read_text(encoding="utf-8"))

    assert {**made, "made_s": 0} == {**newest, "made_s": 0}
