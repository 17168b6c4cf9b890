"""The store in a directory: the contract, and what is particular to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.checkpoint.blobs import Blobs, DirectoryBlobs
from penstock.checkpoint.store import DirectoryStore
from penstock.errors import CorruptSnapshot, Refused
from penstock.files import checked
from tests.checkpoint.store_contract import CHECKPOINT, StoreContract, contents, directory


class TestDirectoryStore(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "store"

    def reach(self) -> Blobs:
        return DirectoryBlobs(self.directory)

    def damage(self, key: str, content: bytes | None) -> None:
        path = self.directory / key
        path.unlink()
        if content is not None:
            path.write_bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_bytes_are_shared_with_what_was_put_and_what_is_fetched(store: DirectoryStore, tmp_path: Path) -> None:
    store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
    store.fetch("base-1", tmp_path / "fetched")

    assert (tmp_path / "fetched" / "000001.sst").samefile(tmp_path / "made" / "000001.sst")


def test_a_link_is_as_old_as_itself_and_not_as_its_content(store: DirectoryStore, tmp_path: Path) -> None:
    """A table that was written hours ago becomes part of a base now: it is not left over from anything."""
    source = directory(tmp_path / "made", {"000001.sst": b"rows"})
    os.utime(source / "000001.sst", (1_000_000.0, 1_000_000.0))

    DirectoryBlobs(tmp_path / "store").put_file("files/young", source / "000001.sst")
    store.collect([], before_s=2_000_000.0)

    assert (tmp_path / "store" / "files" / "young").exists()


def test_lists_without_the_names_of_stored_files_can_be_read(store: DirectoryStore, tmp_path: Path) -> None:
    """Files were named by their hash alone before."""
    directory(tmp_path / "store" / "bases", {})
    listed = b"\x91\x93\xa1a\xa4hash\x04"
    (tmp_path / "store" / "bases" / "base-1").write_bytes(checked(listed))
    directory(tmp_path / "store" / "files", {"hash": b"rows"})

    store.fetch("base-1", tmp_path / "fetched")

    assert contents(tmp_path / "fetched") == {"a": b"rows"}


def test_a_list_of_a_newer_format_is_left_to_a_newer_version(store: DirectoryStore, tmp_path: Path) -> None:
    directory(tmp_path / "store" / "bases", {})
    (tmp_path / "store" / "bases" / "base-1").write_bytes(checked(b"\x92\x02\x90"))

    with pytest.raises(Refused, match=r"PEN0408 Base .*base-1 has format 2; this version reads up to 1"):
        store.fetch("base-1", tmp_path / "fetched")


def test_a_list_can_not_name_files_elsewhere(store: DirectoryStore, tmp_path: Path) -> None:
    directory(tmp_path / "store" / "bases", {})
    (tmp_path / "store" / "bases" / "base-1").write_bytes(checked(b"\x91\x93\xa4../a\xa4hash\x04"))

    with pytest.raises(CorruptSnapshot, match=r"names a file '\.\./a'"):
        store.fetch("base-1", tmp_path / "fetched")
