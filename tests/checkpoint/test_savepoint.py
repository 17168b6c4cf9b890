"""The format of a savepoint, in a directory and in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import obstore
import pytest
from obstore.store import MemoryStore

from penstock.checkpoint.blobs import Blobs, DirectoryBlobs
from penstock.checkpoint.control import FORMAT, Manifest, Part
from penstock.checkpoint.delta import DeltaIdentity, encode_delta
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.object_store import ObjectBlobs
from penstock.checkpoint.savepoint import (
    CHUNK_BYTES,
    SavepointReader,
    SavepointWriter,
    Source,
    begun,
    delete_savepoint,
    not_admitted,
    sent_before,
)
from penstock.checkpoint.store import DirectoryStore
from penstock.errors import CorruptSnapshot, InvalidInput, Refused
from penstock.records import Envelope, EpochFrame, Frozen, TaskMeta


def frame(attempt: int, epoch: int, sequence: int, *, source: int = 1, size: int = 0) -> EpochFrame:
    return EpochFrame(attempt, epoch, source, sequence, [Envelope("t/f", "a", bytes(size), 0, None, None)])


def manifest(*parts: Part, lineage: Lineage = Lineage(3), checkpoint: int = 20) -> Manifest:  # noqa: B008
    return Manifest(FORMAT, "shop", checkpoint, lineage, 1_000, 128, max(1, len(parts)), 1, {}, parts)


def delta(checkpoint: int, previous: int) -> list[bytes]:
    rows: dict[bytes, bytes | None] = {bytes((checkpoint,)): b"row"}
    frozen = Frozen(0, checkpoint, TaskMeta(), {}, rows, {}, {}, [])
    return encode_delta(frozen, DeltaIdentity("shop", 3, 1, previous))


def part(**fields: int) -> Part:
    return msgspec.structs.replace(Part(0, "", 0, -1, 0, -1, 0, 0), **fields)


@pytest.fixture(params=["directory", "bucket"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Blobs]:
    """Opens the same place every time."""
    if request.param == "directory":
        return lambda: DirectoryBlobs(tmp_path / "place", linking=False)
    bucket = MemoryStore()
    return lambda: ObjectBlobs(bucket, "memory://", transfers_max=2)


def write(blobs: Blobs, part: Part, source: Source) -> None:
    writer = SavepointWriter(blobs)
    writer.put_task(0, source)
    writer.finish(manifest(part), created_ms=2_000, version="1")


def nothing() -> Source:
    return Source((), (), (), {})


# What belongs to a checkpoint.


def test_frames_of_the_history_before_the_cut_are_taken_along() -> None:
    history = manifest(lineage=Lineage(3, ((1, 10),)), checkpoint=20)
    frames = [frame(1, 9, 1), frame(1, 10, 2), frame(2, 5, 1), frame(3, 19, 1), frame(3, 20, 2), frame(4, 1, 1)]

    assert list(sent_before(history, frames)) == [frames[0], frames[3]]


def test_a_frame_is_taken_once_and_not_when_it_was_admitted() -> None:
    frames = [frame(1, 1, 2), frame(1, 1, 3), frame(1, 1, 3), frame(2, 1, 1), frame(2, 1, 1, source=5)]

    assert list(not_admitted({1: (1, 2)}, frames)) == [frames[1], frames[3], frames[4]]


# Writing and reading.


def test_what_was_put_is_read(make: Callable[[], Blobs]) -> None:
    deltas = [(7, record) for record in delta(18, -1)] + [(9, record) for record in delta(20, 7)]
    frames = [frame(3, 19, number) for number in range(3)]
    requests = [Envelope("t/f", f"{number}", b"x", number, None, None) for number in range(2)]
    head = part(head=9, first=7)

    write(make(), head, Source(deltas, frames, requests, {"out": 19}))
    reader = SavepointReader(make())

    saved = reader.deltas(head)
    assert saved.chain(9, 7) == [7, 9]
    assert saved.delta(9)[1].rows == {bytes((20,)): b"row"}
    assert list(reader.inbox(head)) == frames
    assert list(reader.requests(head)) == requests
    assert reader.committed(head) == {"out": 19}
    assert (reader.savepoint.frames, reader.savepoint.requests) == (3, 2)
    reader.verify(lambda done, total: None)
    with pytest.raises(CorruptSnapshot, match="PEN0430"):
        saved.delta(8)


def test_a_long_backlog_comes_in_several_chunks(make: Callable[[], Blobs]) -> None:
    frames = [frame(3, 19, number, size=CHUNK_BYTES // 2) for number in range(5)]

    write(make(), part(), Source((), frames, (), {}))
    reader = SavepointReader(make())

    assert [chunk.items for chunk in reader.savepoint.tasks[0].inbox] == [2, 2, 1]
    assert list(reader.inbox(part())) == frames


def test_what_is_not_finished_is_no_savepoint(make: Callable[[], Blobs]) -> None:
    writer = SavepointWriter(make())
    writer.put_task(0, Source((), [frame(3, 1, 1)], (), {}))

    with pytest.raises(InvalidInput, match="PEN0432"):
        SavepointReader(make())
    assert begun(make())
    with pytest.raises(Refused, match="PEN0431"):
        SavepointWriter(make())
    delete_savepoint(make())
    write(make(), part(), nothing())


def test_a_savepoint_is_removed_as_a_whole(make: Callable[[], Blobs]) -> None:
    write(make(), part(), Source((), [frame(3, 1, 1)], (), {}))
    blobs = make()

    delete_savepoint(blobs)

    assert not begun(blobs)
    assert list(blobs.folders()) == []


def test_a_base_is_copied_with_the_hashes_it_had(tmp_path: Path, make: Callable[[], Blobs]) -> None:
    store, base = DirectoryStore(tmp_path / "store"), tmp_path / "base"
    base.mkdir()
    (base / "1.sst").write_bytes(b"one")
    store.put("0-1-0", base)
    writer = SavepointWriter(make())

    writer.put_base("0-1-0", store, tmp_path / "scratch")

    writer.put_task(0, nothing())
    writer.finish(manifest(part()), created_ms=2_000, version="1")
    reader = SavepointReader(make())
    assert [(file.name, file.size) for file in reader.store.files("0-1-0")] == [("1.sst", 3)]
    assert reader.savepoint.bytes == 3


def test_a_base_that_is_damaged_is_not_copied(tmp_path: Path, make: Callable[[], Blobs]) -> None:
    store, base = DirectoryStore(tmp_path / "store"), tmp_path / "base"
    base.mkdir()
    (base / "1.sst").write_bytes(b"one")
    store.put("0-1-0", base)
    for file in (tmp_path / "store" / "files").iterdir():
        file.write_bytes(b"two")
    writer = SavepointWriter(make())

    with pytest.raises(CorruptSnapshot, match=r"1\.sst"):
        writer.put_base("0-1-0", store, tmp_path / "scratch")


def test_folders_of_a_bucket_are_the_first_parts_of_keys() -> None:
    bucket = MemoryStore()
    for key in ("a/savepoint", "a/files/1", "b/savepoint", "loose"):
        obstore.put(bucket, key, b"x")

    assert list(ObjectBlobs(bucket, "memory://", transfers_max=1).folders()) == ["a", "b"]


def test_folders_of_a_directory_that_is_not_there_are_none(tmp_path: Path) -> None:
    assert list(DirectoryBlobs(tmp_path / "none").folders()) == []


def test_an_empty_place_is_tidied_away_and_one_with_files_is_not(tmp_path: Path) -> None:
    for name, keys in (("empty", ["a/1"]), ("kept", ["a/1", "b/2"])):
        blobs = DirectoryBlobs(tmp_path / name)
        for key in keys:
            blobs.put_bytes(key, b"x")
        blobs.delete(["a/1"])
        blobs.tidy()

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["b"]
