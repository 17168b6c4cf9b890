"""Proves that a listed base has all its files, unchanged, and that files are shared and deleted by content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.checkpoint.store import DirectoryStore
from penstock.errors import CorruptSnapshot


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def source(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def stored_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store" / "files").iterdir())


def anything(path: Path) -> bool:
    return True


def test_a_base_comes_back_as_it_was_put(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", source(tmp_path / "made", a=b"first", b=b""))

    store.fetch("base-1", tmp_path / "fetched")

    assert {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()} == {"a": b"first", "b": b""}
    assert store.names() == ["base-1"]
    assert store.verify("base-1") == 5


def test_equal_content_is_stored_once_and_counted_once(store: DirectoryStore, tmp_path: Path) -> None:
    assert store.put("base-1", source(tmp_path / "one", a=b"shared", b=b"own")) == 9
    assert store.put("base-2", source(tmp_path / "two", c=b"shared", d=b"new")) == 3

    assert len(stored_files(tmp_path)) == 3


def test_an_equal_name_with_other_content_is_another_file(store: DirectoryStore, tmp_path: Path) -> None:
    """Two owners continue from one base, and both write 000012.sst."""
    store.put("base-1", source(tmp_path / "one", sst=b"mine"))
    store.put("base-2", source(tmp_path / "two", sst=b"theirs"))

    assert store.verify("base-1") == 4
    assert store.verify("base-2") == 6


def test_a_base_that_was_never_put_is_missing(store: DirectoryStore) -> None:
    with pytest.raises(CorruptSnapshot, match=r"PEN0404 Base base-9 is missing: .* An older checkpoint is used\."):
        store.open("base-9")


def remove(file: Path) -> None:
    file.unlink()


def shorten(file: Path) -> None:
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize(("damage", "found"), [(remove, "is missing"), (shorten, "has 7 bytes, the base says 8")])
def test_a_missing_or_short_file_is_noticed_when_the_base_is_opened(
    store: DirectoryStore, tmp_path: Path, damage: Callable[[Path], None], found: str
) -> None:
    store.put("base-1", source(tmp_path / "made", sst=b"contents"))
    damage(stored_files(tmp_path)[0])

    with pytest.raises(CorruptSnapshot, match=found) as refused:
        store.fetch("base-1", tmp_path / "fetched")

    assert refused.value.code == "PEN0404"
    assert not (tmp_path / "fetched").exists()


def test_a_flipped_bit_is_noticed_by_verify(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", source(tmp_path / "made", sst=b"contents"))
    flip(stored_files(tmp_path)[0])

    with pytest.raises(CorruptSnapshot, match=r"Base base-1 is damaged: sst has hash .*, its name says"):
        store.verify("base-1")


@pytest.mark.parametrize("damage", [shorten, flip])
def test_a_damaged_list_of_a_base_is_noticed(
    store: DirectoryStore, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store.put("base-1", source(tmp_path / "made", sst=b"contents"))
    damage(tmp_path / "store" / "bases" / "base-1")

    with pytest.raises(CorruptSnapshot):
        store.open("base-1")


def test_collecting_deletes_what_nobody_references(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", source(tmp_path / "one", a=b"shared", b=b"old"))
    store.put("base-2", source(tmp_path / "two", a=b"shared", b=b"new"))

    assert store.collect(["base-2"], anything) == 1

    assert store.names() == ["base-2"]
    assert sorted(path.read_bytes() for path in stored_files(tmp_path)) == [b"new", b"shared"]
    assert store.verify("base-2") == 9


def test_what_is_young_stays_because_its_manifest_may_be_on_its_way(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", source(tmp_path / "one", a=b"content"))

    assert store.collect([], lambda path: False) == 0
    assert store.verify("base-1") == 7


def test_working_on_a_fetched_base_leaves_the_base_alone(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", source(tmp_path / "made", sst=b"contents"))
    store.fetch("base-1", tmp_path / "fetched")

    (tmp_path / "fetched" / "sst").unlink()
    (tmp_path / "fetched" / "sst").write_bytes(b"changed")

    assert store.verify("base-1") == 8
