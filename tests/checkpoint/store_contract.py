"""What every store of bases must do, wherever it keeps its bytes. A subclass per place says how it is reached and
looked into; pytest collects those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from penstock.checkpoint import store as store_module
from penstock.checkpoint.blobs import Blob, Blobs
from penstock.checkpoint.cache import FileCache
from penstock.checkpoint.store import PUT_S_MAX, UNREFERENCED_S, BaseStore
from penstock.errors import CorruptSnapshot, Unavailable

CHECKPOINT: Final = {"CURRENT": b"MANIFEST-1\n", "000001.sst": b"rows" * 1000, "EMPTY": b""}


def directory(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


class WatchedBlobs:
    """Blobs with a clock of the test's own, which tell what is asked of them and fail when told to."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._stored_s: dict[str, float] = {}
        self.now_s = 0.0
        self.calls: list[str] = []
        self.before: Callable[[str, str], None] = lambda call, key: None
        """Called with the name of a call and its key."""

    @property
    def transfers_max(self) -> int:
        return self._blobs.transfers_max

    @transfers_max.setter
    def transfers_max(self, value: int) -> None:
        self._blobs.transfers_max = value

    def place(self, key: str) -> str:
        return self._blobs.place(key)

    def put_file(self, key: str, source: Path) -> str:
        self._note("put_file", key)
        hash = self._blobs.put_file(key, source)
        self._stored_s[key] = self.now_s
        return hash

    def put_bytes(self, key: str, data: bytes) -> None:
        self._note("put_bytes", key)
        self._blobs.put_bytes(key, data)
        self._stored_s[key] = self.now_s

    def sync(self) -> None:
        self._note("sync", "")
        self._blobs.sync()

    def get_file(self, key: str, target: Path) -> str:
        self._note("get_file", key)
        return self._blobs.get_file(key, target)

    def get_bytes(self, key: str) -> bytes:
        self._note("get_bytes", key)
        return self._blobs.get_bytes(key)

    def hash(self, key: str) -> str:
        self._note("hash", key)
        return self._blobs.hash(key)

    def list(self, folder: str) -> list[Blob]:
        self._note("list", folder)
        return [blob._replace(modified_s=self._stored_s.get(blob.key, 0.0)) for blob in self._blobs.list(folder)]

    def folders(self) -> Sequence[str]:
        return self._blobs.folders()

    def delete(self, keys: Iterable[str]) -> None:
        self._blobs.delete(keys)

    def tidy(self) -> None:
        self._blobs.tidy()

    def _note(self, call: str, key: str) -> None:
        self.calls.append(call)
        self.before(call, key)


class StoreContract(ABC):
    """Names of subclasses begin with `Test`."""

    @abstractmethod
    def reach(self) -> Blobs:
        """The place, empty at first, as another process would reach it."""

    @abstractmethod
    def damage(self, key: str, content: bytes | None) -> None:
        """Give a blob another content, or none, behind the back of the store."""

    @pytest.fixture
    def blobs(self) -> WatchedBlobs:
        return WatchedBlobs(self.reach())

    @pytest.fixture
    def store(self, blobs: WatchedBlobs) -> BaseStore:
        return BaseStore(blobs)

    # Putting and fetching.

    def test_a_base_comes_back_elsewhere_as_it_was_put(self, store: BaseStore, tmp_path: Path) -> None:
        assert store.put("base-1", directory(tmp_path / "made", CHECKPOINT)) == 4011

        elsewhere = BaseStore(self.reach())
        elsewhere.fetch("base-1", tmp_path / "fetched")

        assert contents(tmp_path / "fetched") == CHECKPOINT
        assert elsewhere.names() == ["base-1"]
        assert elsewhere.size("base-1") == elsewhere.verify("base-1") == 4011

    def test_what_was_stored_before_is_not_stored_again(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        blobs.calls.clear()

        assert store.put("base-2", directory(tmp_path / "two", CHECKPOINT | {"000002.sst": b"new"})) == 3

        assert blobs.calls.count("put_file") == 1
        assert len(blobs.list("files")) == 4

    def test_another_worker_that_continues_a_base_does_not_store_its_files_again(
        self, store: BaseStore, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        other = BaseStore(self.reach())
        other.fetch("base-1", tmp_path / "fetched")

        assert other.put("base-2", tmp_path / "fetched") == 0
        assert other.verify("base-2") == 4011

    def test_equal_files_of_one_base_are_stored_once(self, store: BaseStore, tmp_path: Path) -> None:
        assert store.put("base-1", directory(tmp_path / "made", {"a": b"same", "b": b"same"})) == 4

        store.fetch("base-1", tmp_path / "fetched")
        assert contents(tmp_path / "fetched") == {"a": b"same", "b": b"same"}

    def test_an_equal_name_with_other_content_is_another_file(self, store: BaseStore, tmp_path: Path) -> None:
        """Two owners continue from one base, and both write 000012.sst."""
        store.put("base-1", directory(tmp_path / "one", {"000012.sst": b"mine"}))
        store.put("base-2", directory(tmp_path / "two", {"000012.sst": b"theirs"}))

        assert store.verify("base-1") == 4
        assert store.verify("base-2") == 6

    def test_files_are_durable_before_the_base_is_named(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))

        assert [call for call in blobs.calls if call != "list"] == ["put_file"] * 3 + ["sync", "put_bytes"]

    def test_working_on_a_fetched_base_leaves_the_base_alone(self, store: BaseStore, tmp_path: Path) -> None:
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
        store.fetch("base-1", tmp_path / "fetched")

        (tmp_path / "fetched" / "CURRENT").unlink()
        (tmp_path / "fetched" / "CURRENT").write_bytes(b"changed")

        assert store.verify("base-1") == 4011

    def test_progress_is_told_in_bytes(self, store: BaseStore, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []

        store.put("base-1", directory(tmp_path / "made", CHECKPOINT), progress=lambda *each: told.append(each))
        store.fetch("base-1", tmp_path / "fetched", progress=lambda *each: told.append(each))

        assert told[2] == told[5] == (4011, 4011)
        assert len(told) == 6

    def test_who_is_told_of_progress_can_end_it(self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path) -> None:
        def give_up(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.put("base-1", directory(tmp_path / "made", CHECKPOINT), progress=give_up)

        assert store.names() == []

    def test_many_may_put_at_once(self, tmp_path: Path) -> None:
        """They share the small files that RocksDB writes alike everywhere."""
        stores = [BaseStore(self.reach()) for _ in range(4)]
        for number in range(4):
            directory(tmp_path / str(number), CHECKPOINT | {"own": b"%d" % number})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: stores[n].put(f"base-{n}", tmp_path / str(n)), range(4)))

        assert stores[0].names() == ["base-0", "base-1", "base-2", "base-3"]
        assert [stores[0].verify(name) for name in stores[0].names()] == [4012] * 4

    def test_the_place_is_found_usable(self, store: BaseStore, blobs: WatchedBlobs) -> None:
        store.check()

        assert blobs.list("checks") == []

    # Damage.

    def test_a_base_that_was_never_put_is_missing(self, store: BaseStore) -> None:
        with pytest.raises(CorruptSnapshot, match=r"PEN0404 Base base-9 is missing: .* An older checkpoint is used\."):
            store.files("base-9")

    @pytest.mark.parametrize(("content", "found"), [(None, "is missing"), (b"content", "has 7 bytes, the base says 8")])
    def test_a_missing_or_short_file_is_noticed_when_it_is_fetched(
        self, store: BaseStore, tmp_path: Path, content: bytes | None, found: str
    ) -> None:
        store.put("base-1", directory(tmp_path / "made", {"000001.sst": b"contents"}))
        self.damage(store.files("base-1")[0].key, content)

        with pytest.raises(CorruptSnapshot, match=found) as refused:
            store.fetch("base-1", tmp_path / "fetched")

        assert refused.value.code == "PEN0404"
        assert not (tmp_path / "fetched").exists()

    @pytest.mark.parametrize(("content", "found"), [(None, "is missing"), (b"continue", "has hash .*, its name says")])
    def test_a_missing_or_changed_file_is_noticed_by_verify(
        self, store: BaseStore, tmp_path: Path, content: bytes | None, found: str
    ) -> None:
        store.put("base-1", directory(tmp_path / "made", {"000001.sst": b"contents"}))
        self.damage(store.files("base-1")[0].key, content)

        with pytest.raises(CorruptSnapshot, match=rf"Base base-1 is damaged: 000001\.sst .* {found}"):
            store.verify("base-1")

    def test_a_damaged_list_is_noticed(self, store: BaseStore, tmp_path: Path) -> None:
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
        self.damage("bases/base-1", self.reach().get_bytes("bases/base-1")[:-1])

        with pytest.raises(CorruptSnapshot, match="is damaged"):
            store.fetch("base-1", tmp_path / "fetched")

    def test_a_file_that_was_lost_is_stored_again_with_the_next_base(self, store: BaseStore, tmp_path: Path) -> None:
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        self.damage(next(file.key for file in store.files("base-1") if file.name == "CURRENT"), None)

        store.put("base-2", directory(tmp_path / "two", CHECKPOINT))

        assert store.verify("base-2") == 4011

    # Failures of the place.

    def test_a_put_that_fails_names_no_base_and_the_next_goes_on(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        blobs.transfers_max = 1
        source = directory(tmp_path / "made", CHECKPOINT)

        def fail(call: str, key: str) -> None:
            if call == "put_file" and blobs.calls.count(call) == 3:
                raise Unavailable("PEN0414", "No.")

        blobs.before = fail
        with pytest.raises(Unavailable):
            store.put("base-1", source)
        assert store.names() == []

        blobs.calls.clear()
        store.put("base-1", source)

        assert blobs.calls.count("put_file") == 1
        assert store.verify("base-1") == 4011

    def test_a_put_that_takes_too_long_is_given_up(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first files may be taken for left over otherwise, before they are listed."""
        times = iter([0.0, *[10.0] * 7, PUT_S_MAX + 1.0])
        monkeypatch.setattr(store_module, "monotonic", lambda: next(times))

        with pytest.raises(Unavailable, match="PEN0418 Base base-1 was not stored within 30 minutes"):
            store.put("base-1", directory(tmp_path / "made", CHECKPOINT))

        assert store.names() == []
        assert len(blobs.list("files")) == 3

    # The cache.

    def test_what_is_in_the_cache_is_not_fetched(self, blobs: WatchedBlobs, tmp_path: Path) -> None:
        store = BaseStore(blobs, cache=FileCache(tmp_path / "cache"))
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))

        store.fetch("base-1", tmp_path / "fetched")

        assert contents(tmp_path / "fetched") == CHECKPOINT
        assert "get_file" not in blobs.calls

    def test_what_was_damaged_in_the_cache_is_fetched(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
        cached = BaseStore(blobs, cache=FileCache(tmp_path / "cache"))
        directory(tmp_path / "cache", {file.hash: b"damaged" for file in store.files("base-1")})

        cached.fetch("base-1", tmp_path / "fetched")

        assert contents(tmp_path / "fetched") == CHECKPOINT

    def test_the_cache_keeps_what_it_is_told_to(self, blobs: WatchedBlobs, tmp_path: Path) -> None:
        store = BaseStore(blobs, cache=FileCache(tmp_path / "cache"))
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        store.put("base-2", directory(tmp_path / "two", {"000002.sst": b"new"}))

        store.trim_cache(["base-2"])

        assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [b"new"]

    # Collecting.

    def test_collecting_deletes_what_nobody_references(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "one", {"a": b"shared", "b": b"old"}))
        store.put("base-2", directory(tmp_path / "two", {"a": b"shared", "b": b"new"}))

        blobs.now_s = 10.0
        assert store.collect(["base-2"], before_s=1.0) == 1
        assert store.names() == ["base-2"]
        assert len(blobs.list("files")) == 3, "somebody may be storing a base that shares files with the dropped one"

        assert store.collect(["base-2"], before_s=11.0) == 0
        assert len(blobs.list("files")) == 2
        assert blobs.list("dropped") == []
        assert store.verify("base-2") == 9

    def test_what_is_young_stays_because_its_manifest_may_be_on_its_way(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        blobs.now_s = 10.0
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))

        assert store.collect([], before_s=10.0) == 0
        assert store.verify("base-1") == 4011

    def test_what_a_failed_put_left_is_deleted(self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path) -> None:
        directory(tmp_path / "made", CHECKPOINT)
        blobs.put_file("files/left-over", tmp_path / "made" / "CURRENT")

        store.collect([], before_s=1.0)

        assert blobs.list("files") == []

    def test_a_list_that_cannot_be_read_protects_all_files(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        store.put("base-1", directory(tmp_path / "made", CHECKPOINT))
        self.damage("bases/base-1", b"nonsense")

        BaseStore(blobs).collect(["base-1"], before_s=1.0)

        assert len(blobs.list("files")) == 3

    def test_a_base_that_is_dropped_while_another_is_put_keeps_the_files_they_share(
        self, store: BaseStore, blobs: WatchedBlobs, tmp_path: Path
    ) -> None:
        """The coordinator collects on another machine, at the worst of times."""
        store.put("base-1", directory(tmp_path / "one", CHECKPOINT))
        coordinator = BaseStore(blobs)
        blobs.now_s = UNREFERENCED_S + 1.0

        def drop(call: str, key: str) -> None:
            if call == "put_file":
                assert coordinator.collect([], before_s=blobs.now_s - UNREFERENCED_S) == 1
                blobs.now_s += PUT_S_MAX
                assert coordinator.collect([], before_s=blobs.now_s - UNREFERENCED_S) == 0

        blobs.before = drop
        store.put("base-2", directory(tmp_path / "two", CHECKPOINT | {"000002.sst": b"new"}))
        blobs.before = lambda call, key: None

        blobs.now_s += UNREFERENCED_S
        coordinator.collect(["base-2"], before_s=blobs.now_s - UNREFERENCED_S)
        assert coordinator.verify("base-2") == 4014
