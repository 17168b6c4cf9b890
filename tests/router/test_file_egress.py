"""Rows are in the files once, whatever step a crash comes after, and parts become visible in time."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import penstock.files
from penstock.errors import CorruptSnapshot, Fenced, Refused, Unavailable
from penstock.functions.io import FileEgress
from penstock.router.egress import TaskSinks
from penstock.router.file_egress import FileSink
from tests.router.sink_contract import SinkContract, rows, synchronous

START = 1_357_016_400.0  # 2013-01-01T05:00:00Z


class Crash(BaseException):
    """The process ends here: nothing handles it."""


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def numbers_in(path: Path) -> list[int]:
    return [msgspec.json.decode(line)["n"] for line in path.read_bytes().splitlines()]


def visible_parts(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def hidden_parts(directory: Path) -> list[Path]:
    return sorted((directory / ".penstock-part").glob("part-*"))


def everything(directory: Path) -> list[int]:
    return [number for path in (*visible_parts(directory), *hidden_parts(directory)) for number in numbers_in(path)]


def sink_in(directory: Path, clock: Clock, *, instance: str = "one", **options: Any) -> FileSink:
    spec = FileEgress(str(directory), **options)
    return FileSink(spec, application="flights", instance=instance, clock=clock)


async def opened(directory: Path, clock: Clock, *, instance: str = "one", **options: Any) -> FileSink:
    sink = sink_in(directory, clock, instance=instance, **options)
    await sink.open()
    return sink


class TestFileSink(SinkContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "out"

    async def make_sink(self) -> FileSink:
        return await opened(self.directory, Clock())

    async def visible(self) -> Sequence[int]:
        return everything(self.directory)


# Parts.


@synchronous
async def test_rows_are_hidden_until_their_part_is_old_enough(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    clock.now += 59.9
    await sink.tick()
    await sink.commit(0, rows(2), {1: 2})
    assert visible_parts(tmp_path) == []

    clock.now += 0.2
    await sink.tick()

    assert [path.name for path in visible_parts(tmp_path)] == ["part-20130101T050000.000Z-000.jsonl"]
    assert numbers_in(visible_parts(tmp_path)[0]) == [1, 2]
    assert hidden_parts(tmp_path) == []
    await sink.close(final=True)


@synchronous
async def test_a_part_that_is_large_enough_is_published_at_once(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock, part_bytes_max=20)

    for number in range(5):
        await sink.commit(0, rows(number), {1: number})
        clock.now += 1

    assert [numbers_in(path) for path in visible_parts(tmp_path)] == [[0, 1, 2]]
    assert [numbers_in(path) for path in hidden_parts(tmp_path)] == [[3, 4]]
    await sink.close(final=True)


@synchronous
async def test_a_stop_publishes_and_a_crash_does_not(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})

    await sink.close(final=False)
    assert visible_parts(tmp_path) == []
    sink = await opened(tmp_path, clock)
    await sink.close(final=True)

    assert [numbers_in(path) for path in visible_parts(tmp_path)] == [[1]]


@synchronous
async def test_names_sort_by_time_and_task_and_are_used_once(tmp_path: Path, clock: Clock) -> None:
    for moment in (0, 0, -3600, 7):  # The clock may stand still, or go back.
        clock.now = START + moment
        sink = await opened(tmp_path, clock)
        for task in (0, 1):
            await sink.commit(task, rows(len(visible_parts(tmp_path)) + task), {1: 1})
        await sink.close(final=True)

    assert [path.name for path in visible_parts(tmp_path)] == [
        "part-20130101T050000.000Z-000.jsonl",
        "part-20130101T050000.000Z-001.jsonl",
        "part-20130101T050000.001Z-000.jsonl",
        "part-20130101T050000.001Z-001.jsonl",
        "part-20130101T050000.002Z-000.jsonl",
        "part-20130101T050000.002Z-001.jsonl",
        "part-20130101T050007.000Z-000.jsonl",
        "part-20130101T050007.000Z-001.jsonl",
    ]
    assert everything(tmp_path) == list(range(8))


@synchronous
async def test_each_part_of_a_csv_egress_begins_with_its_columns(tmp_path: Path, clock: Clock) -> None:
    spec = FileEgress(str(tmp_path), format="csv", columns=("n",), part_bytes_max=5)
    sink = FileSink(spec, application="flights", instance="one", clock=clock)
    await sink.open()

    for number in (1, 2):
        await sink.commit(0, [rows(number)[0]._replace(value=spec.encode({"n": number * 100}))], {1: number})

    assert [path.read_bytes() for path in visible_parts(tmp_path)] == [b"n\n100\n", b"n\n200\n"]
    await sink.close(final=True)


@synchronous
async def test_a_name_that_somebody_else_took_is_not_overwritten(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    name = hidden_parts(tmp_path)[0].name
    (tmp_path / name).write_text("precious")

    with pytest.raises(Refused) as caught:
        await sink.close(final=True)

    assert (tmp_path / name).read_text() == "precious"
    assert str(caught.value) == (
        f"PEN0527 {tmp_path / name} exists already and is not ours. Move it away, then start again: "
        f"{tmp_path}/.penstock-part/{name} takes its place. Nothing was overwritten."
    )
    (tmp_path / name).unlink()
    sink = await opened(tmp_path, clock)
    assert numbers_in(tmp_path / name) == [1]
    await sink.close(final=True)


@synchronous
async def test_a_published_part_may_be_taken_away(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    await sink.close(final=True)
    visible_parts(tmp_path)[0].unlink()

    sink = await opened(tmp_path, clock)
    assert await sink.read_marker(0) == {1: 1}
    await sink.commit(0, rows(2), {1: 2})
    await sink.close(final=True)

    assert everything(tmp_path) == [2]


# Crashes: the process ends before or after each call that changes the disk.


def crashing(monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> Callable[[], bool]:
    """Let the `at`-th call that changes the disk end the process. Returns whether it did."""
    calls = 0

    def spoil(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and not after:
                raise Crash
            result = original(*args, **kwargs)
            if calls == at:
                raise Crash
            return result

        monkeypatch.setattr(owner, name, call)

    spoil(os, "ftruncate")
    spoil(os, "truncate")
    spoil(os, "writev")
    spoil(os, "fdatasync")
    spoil(os, "fsync")
    spoil(Path, "rename")
    spoil(Path, "replace")
    spoil(Path, "unlink")
    return lambda: calls >= at


def crash_points() -> Iterator[tuple[int, bool]]:
    for at in range(1, 60):
        for after in (False, True):
            yield at, after


def test_after_a_crash_at_any_step_each_row_is_there_once(tmp_path: Path) -> None:
    reached = 0
    for at, after in crash_points():
        directory = tmp_path / f"{at}-{after}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            crashed = crashing(monkeypatch, at, after=after)
            try:
                asyncio.run(write_all(directory))
            except Crash:
                reached += 1
            else:
                assert not crashed()
        asyncio.run(write_all(directory))

        assert everything(directory) == list(range(6)), (at, after)
        assert hidden_parts(directory) == [], (at, after)
    assert reached > 50


async def write_all(directory: Path) -> None:
    """Commit six rows in six checkpoints, two to a part, from wherever the marker stands."""
    clock = Clock()
    sink = await opened(directory, clock, part_bytes_max=16)
    crashed = True
    try:
        first = (await sink.read_marker(0)).get(1, -1) + 1
        for number in range(first, 6):
            await sink.commit(0, rows(number), {1: number})
        crashed = False
    finally:
        # What a dead process does not do: but its lock is gone with it, and nothing else is touched by this.
        await sink.close(final=not crashed)


@pytest.mark.parametrize("call", ["writev", "fdatasync", "fsync"])
@synchronous
async def test_a_full_disk_keeps_what_is_committed_and_the_rows_come_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as spoiled:
        spoiled.setattr(os, call, full)
        with pytest.raises(Unavailable) as caught:
            await sink.commit(0, rows(2), {1: 2})
    assert str(caught.value).startswith("PEN0405 There is no space left on the disk of ")

    for number in range((await sink.read_marker(0))[1] + 1, 4):
        await sink.commit(0, rows(number), {1: number})
    await sink.close(final=True)
    assert everything(tmp_path) == [1, 2, 3]


@synchronous
async def test_what_is_beyond_the_marker_is_cut_off(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    await sink.close(final=False)
    with hidden_parts(tmp_path)[0].open("ab") as file:
        file.write(b'{"n":9}\n{"n"')

    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(2), {1: 2})
    await sink.close(final=True)

    assert everything(tmp_path) == [1, 2]


@synchronous
async def test_a_part_that_lost_committed_rows_is_refused(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    await sink.close(final=False)
    part = hidden_parts(tmp_path)[0]
    part.write_bytes(b'{"n"')

    with pytest.raises(Refused) as caught:
        await opened(tmp_path, clock)

    assert str(caught.value) == (
        f"PEN0526 {part} has 4 bytes, but 8 were committed to it: rows are missing. Restore {tmp_path} from a "
        "backup, or move it away to start a new output. Nothing was changed."
    )


@synchronous
async def test_a_directory_that_is_gone_is_waited_for_and_nothing_is_lost_when_it_is_back(
    tmp_path: Path, clock: Clock
) -> None:
    out, aside = tmp_path / "out", tmp_path / "aside"
    sink = await opened(out, clock)
    await sink.commit(0, rows(1, 2), {1: 1})
    out.rename(aside)

    for attempt in (sink.commit(0, rows(3), {1: 2}), sink.read_marker(0), sink.close(final=True)):
        with pytest.raises(Unavailable, match=r"PEN0530 .*out is gone: .*16 bytes in part-"):
            await attempt
    assert not out.exists()

    sink = await opened(aside, clock)
    await sink.close(final=False)
    aside.rename(out)
    sink = await opened(out, clock)
    out.rename(aside)
    with pytest.raises(Unavailable, match="PEN0530"):
        await sink.commit(0, rows(3), {1: 2})
    aside.rename(out)
    assert await sink.read_marker(0) == {1: 1}
    await sink.commit(0, rows(3), {1: 2})
    await sink.close(final=True)
    assert everything(out) == [1, 2, 3]


@synchronous
async def test_a_directory_that_was_made_anew_is_taken_and_what_is_lost_is_said(tmp_path: Path, clock: Clock) -> None:
    out = tmp_path / "out"
    sink = await opened(out, clock)
    await sink.commit(0, rows(1), {1: 1})
    shutil.rmtree(out)
    with pytest.raises(Unavailable, match="PEN0530"):
        await sink.commit(0, rows(2), {1: 2})
    out.mkdir()

    with pytest.raises(Unavailable, match=r"PEN0531 .*out was removed and made anew, .*8 bytes in part-"):
        await sink.read_marker(0)
    assert await sink.read_marker(0) == {}
    await sink.commit(0, rows(2), {1: 2})
    with pytest.raises(Fenced):
        await opened(out, clock)
    await sink.close(final=True)
    assert everything(out) == [2]


@synchronous
async def test_a_directory_removed_when_all_was_visible_harms_no_stop(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path / "out", clock)
    await sink.commit(0, rows(1), {1: 1})
    clock.now += 3_600
    await sink.tick()
    shutil.rmtree(tmp_path / "out")

    await sink.close(final=True)


@synchronous
async def test_a_damaged_marker_is_not_believed(tmp_path: Path, clock: Clock) -> None:
    sink = await opened(tmp_path, clock)
    await sink.commit(0, rows(1), {1: 1})
    await sink.close(final=True)
    marker = tmp_path / ".penstock-part" / "task-000.marker"
    marker.write_bytes(marker.read_bytes().replace(b'"1":1', b'"1":7'))

    with pytest.raises(CorruptSnapshot, match=r"task-000\.marker is damaged"):
        await opened(tmp_path, clock)


# Owners.


@synchronous
async def test_two_processes_can_not_write_the_same_parts(tmp_path: Path, clock: Clock) -> None:
    first = await opened(tmp_path, clock)

    with pytest.raises(Fenced) as caught:
        await opened(tmp_path, clock)

    assert str(caught.value) == (
        f"PEN0525 Parts named part-* in {tmp_path} are being written by process {os.getpid()} (flights). Stop it, or "
        "give this FileEgress another directory or prefix."
    )
    other = await opened(tmp_path, clock, prefix="other")
    await other.close(final=True)
    await first.close(final=True)


@synchronous
async def test_another_history_keeps_the_rows_of_the_last_and_its_own(tmp_path: Path, clock: Clock) -> None:
    """A new data directory counts from one again: the marker it finds speaks of other checkpoints."""
    sink = await opened(tmp_path, clock, instance="one")
    await sink.commit(0, rows(1), {1: 500})
    await sink.close(final=False)

    sink = await opened(tmp_path, clock, instance="two")
    assert await sink.read_marker(0) == {}
    await sink.commit(0, rows(2), {1: 1})
    await sink.close(final=True)

    assert [numbers_in(path) for path in visible_parts(tmp_path)] == [[1], [2]]


@synchronous
async def test_nothing_blocks_the_event_loop(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = await opened(tmp_path, clock)
    loop = asyncio.get_running_loop()
    resumed = asyncio.Event()
    sync = penstock.files.sync_file

    def wait_for_the_loop(descriptor: int) -> None:
        # Returns only when the loop runs while the disk is busy.
        asyncio.run_coroutine_threadsafe(set_event(resumed), loop).result(timeout=10)
        sync(descriptor)

    monkeypatch.setattr(penstock.files, "sync_file", wait_for_the_loop)
    await sink.commit(0, rows(1), {1: 1})

    assert resumed.is_set()
    monkeypatch.undo()
    await sink.close(final=True)


async def set_event(event: asyncio.Event) -> None:
    event.set()


# Cancelled, because the task goes to another worker.


@synchronous
async def test_a_commit_that_is_given_up_has_ended_when_its_caller_goes_on(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path / "out", clock)
    await sink.open()
    writing, goes_on = threading.Event(), threading.Event()
    store = FileSink._store_marker

    def store_slowly(self: FileSink, *arguments: Any) -> None:
        writing.set()
        goes_on.wait()
        store(self, *arguments)

    monkeypatch.setattr(FileSink, "_store_marker", store_slowly)
    committing = asyncio.create_task(sink.commit(0, rows(1), {1: 1}))
    await asyncio.to_thread(writing.wait)

    committing.cancel()
    releasing = asyncio.create_task(sink.release(0, final=False))
    await asyncio.sleep(0)
    assert not releasing.done(), "the thread still writes"
    goes_on.set()
    await releasing

    assert committing.cancelled()
    assert await sink.read_marker(0) == {1: 1}
    await sink.close(False)


@synchronous
async def test_a_task_that_goes_away_while_its_directory_is_opened_leaves_no_lock(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, goes_on = threading.Event(), threading.Event()
    own = FileSink._own

    def own_slowly(self: FileSink) -> Any:
        opening.set()
        goes_on.wait()
        return own(self)

    monkeypatch.setattr(FileSink, "_own", own_slowly)
    sinks = TaskSinks(lambda task: sink_in(tmp_path / "out", clock))
    reading = asyncio.create_task(sinks.read_marker(0))
    await asyncio.to_thread(opening.wait)

    reading.cancel()
    goes_on.set()
    await asyncio.wait({reading})

    other = sink_in(tmp_path / "out", clock)
    await other.open()
    await other.close(False)
