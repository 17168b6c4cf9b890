"""Proves the whole worker on a real directory: what it does after bad stops, with bad disks and bad clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock import (
    App,
    Context,
    CorruptSnapshot,
    Fenced,
    FileEgress,
    FileIngress,
    FunctionError,
    GeneratorIngress,
    HttpEgress,
    MemoryEgress,
    MemoryIngress,
    Message,
    PenstockError,
    Refused,
    State,
    Unavailable,
)
from penstock.checkpoint.lineage import Lineage
from penstock.checkpoint.retention import Retention
from penstock.checkpoint.sinks import Staged
from penstock.engine.config import Config
from penstock.engine.data import DataDirectory, close_stores
from penstock.engine.operations import Redrive
from penstock.engine.sinks import EagerDriver
from penstock.engine.unit import TaskUnit
from penstock.engine.worker import Worker
from penstock.files import checked
from penstock.ids import Address
from penstock.records import EgressRow
from penstock.router.egress import MemorySink
from penstock.router.embedded import EmbeddedLog
from penstock.router.sink import RowsRefused
from tests.router.receiver import receiving
from tests.small_disk import small_disk

RECORDS = 2_000


class Add(Message):
    id: str
    amount: int


class Sum(State):
    total: int = 0
    count: int = 0


def adding(records: int = RECORDS, *, output: Path | None = None, ids: int = 50) -> App:
    """Sums `records` numbers over some addresses; with `output`, writes every intermediate sum to files."""
    app = App("adding")

    @app.function("test/sum")
    def sum_(ctx: Context[Sum], add: Add) -> int:
        ctx.state.total += add.amount
        ctx.state.count += 1
        if output is not None:
            ctx.emit("test/out", {"id": ctx.id, "count": ctx.state.count, "total": ctx.state.total})
        return ctx.state.total

    def numbers(start: int) -> Iterator[Add]:
        return (Add(f"id-{n % ids}", n) for n in range(start, records))

    app.ingress(GeneratorIngress(numbers), to=sum_, key="id", name="numbers")
    if output is not None:
        app.egress("test/out", FileEgress(str(output)))
    return app


def run(app: App, directory: Path, **options: Any) -> Worker:
    """Run to the end of the input, and stop in an orderly way."""
    worker = Worker(app, Config(directory=directory, port=None, until_done=True, **{"interval_ms": 10, **options}))
    asyncio.run(worker.run())
    return worker


def sums(app: App, directory: Path, **options: Any) -> dict[str, int]:
    """What the addresses hold after a start that has nothing more to read."""

    async def read() -> dict[str, int]:
        worker = Worker(app, Config(directory=directory, port=None, until_done=True, **options))
        await worker.start()
        await worker.serve()
        found: dict[str, int] = {}
        for unit in worker.units:
            entry = unit.core.entries["test/sum"]
            for id in unit.overlay.ids("test/sum"):
                found[id] = entry.state_codec.decode(entry.raw(id)).total if entry.state_codec else 0
        await worker.finish()
        return found

    return asyncio.run(read())


def expected(records: int = RECORDS, ids: int = 50) -> dict[str, int]:
    totals: dict[str, int] = {}
    for n in range(records):
        totals[f"id-{n % ids}"] = totals.get(f"id-{n % ids}", 0) + n
    return totals


def lines(output: Path) -> list[str]:
    return sorted(line for part in output.glob("part*") for line in part.read_text().splitlines())


def newest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern), key=lambda path: (path.stat().st_mtime, path.name))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


# Checkpoints and starts.


@pytest.mark.parametrize("parallelism", [1, 4])
def test_a_second_start_continues_behind_the_first(tmp_path: Path, parallelism: int) -> None:
    output = tmp_path / "out"
    run(adding(500, output=output), tmp_path / "data", parallelism=parallelism)
    run(adding(2_000, output=output), tmp_path / "data", parallelism=parallelism)
    run(adding(2_000, output=tmp_path / "once"), tmp_path / "other")

    assert sums(adding(), tmp_path / "data", parallelism=parallelism) == expected()
    assert lines(output) == lines(tmp_path / "once")


def test_a_directory_is_used_by_one_worker_at_a_time(tmp_path: Path) -> None:
    async def twice() -> None:
        first = Worker(adding(), Config(directory=tmp_path, port=None))
        await first.start()
        second = Worker(adding(), Config(directory=tmp_path, port=None))
        with pytest.raises(Fenced, match=r"^PEN0601 .* is in use by process \d+ \(penstock run, started "):
            await second.start()
        first.stop()
        await first.serve()
        await first.finish()

    asyncio.run(twice())


def test_another_application_is_refused(tmp_path: Path) -> None:
    run(adding(), tmp_path)
    with pytest.raises(Refused, match=r"PEN0304 .* holds the state of application 'adding', not of 'other'"):
        run(App("other"), tmp_path)


def test_another_parallelism_is_refused(tmp_path: Path) -> None:
    run(adding(), tmp_path)
    with pytest.raises(Refused, match=r"PEN0305 .* was made with parallelism 1, and 2 was asked for"):
        run(adding(), tmp_path, parallelism=2)


def test_a_replay_goes_back_to_the_checkpoint_and_does_the_rest_again(tmp_path: Path) -> None:
    async def in_two_steps() -> int:
        ingress = MemoryIngress(type=Add)
        worker = Worker(memory_app(ingress), Config(directory=tmp_path, port=None))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        ingress.feed(Add("a", 1))
        first = await worker.checkpoint_driver.wait_checkpoint("test")
        ingress.feed(Add("a", 10))
        await worker.checkpoint_driver.wait_checkpoint("test")
        worker.stop()
        await serving
        await worker.finish()
        return first

    def memory_app(ingress: MemoryIngress) -> App:
        app = App("adding")

        @app.function("test/sum")
        def sum_(ctx: Context[Sum], add: Add) -> None:
            ctx.state.total += add.amount

        app.ingress(ingress, to=sum_, key="id")
        return app

    first = asyncio.run(in_two_steps())
    again = MemoryIngress(type=Add)
    again.feed(Add("a", 1), Add("a", 100))
    again.finish()
    assert sums(memory_app(again), tmp_path, from_checkpoint=first) == {"a": 101}


def test_a_replay_from_a_checkpoint_that_is_gone_is_refused(tmp_path: Path) -> None:
    run(adding(), tmp_path)
    with pytest.raises(Refused, match="PEN0403 Checkpoint 77 can't be replayed: it is not retained"):
        run(adding(), tmp_path, from_checkpoint=77)


def test_a_replay_that_is_undone_repeats_nothing_that_was_visible(tmp_path: Path) -> None:
    out = MemoryEgress()

    def numbering(records: int) -> App:
        app = App("numbering")
        app.egress("test/out", out)

        @app.function("test/pass")
        def pass_(ctx: Context[Sum], add: Add) -> None:
            ctx.emit("test/out", add.amount)

        app.ingress(
            GeneratorIngress(lambda start: (Add("a", n) for n in range(start, records))), to=pass_, key="id", name="n"
        )
        return app

    def checkpoint_after(records: int, **options: Any) -> int:
        last = run(numbering(records), tmp_path, **options).last_checkpoint
        return last.checkpoint if last is not None else 0

    first = checkpoint_after(3)
    second = checkpoint_after(5)
    assert out.values() == [0, 1, 2, 3, 4]
    checkpoint_after(5, from_checkpoint=first)
    assert out.values() == [0, 1, 2, 3, 4, 3, 4]
    checkpoint_after(5, from_checkpoint=second)

    assert out.values() == [0, 1, 2, 3, 4, 3, 4]


async def sent(directory: Path, url: str, records: int, **options: Any) -> int:
    """Send so many rows to a server. Returns the newest checkpoint."""
    app = App("sending")
    app.egress("test/out", HttpEgress(url))

    @app.function("test/pass")
    def pass_(ctx: Context[Sum], add: Add) -> None:
        ctx.emit("test/out", add.amount)

    app.ingress(
        GeneratorIngress(lambda start: (Add("a", n) for n in range(start, records))), to=pass_, key="id", name="n"
    )
    worker = Worker(app, Config(directory=directory, port=None, until_done=True, **options))
    await worker.run()
    assert worker.last_checkpoint is not None
    return worker.last_checkpoint.checkpoint


def test_rows_of_a_replay_say_so_and_have_keys_of_their_own(tmp_path: Path) -> None:
    async def replayed_twice() -> list[tuple[str, str, bytes]]:
        async with receiving() as receiver:
            first = await sent(tmp_path, receiver.url, 1)
            await sent(tmp_path, receiver.url, 2)
            await sent(tmp_path, receiver.url, 2, from_checkpoint=first)
            await sent(tmp_path, receiver.url, 3)
            await sent(tmp_path, receiver.url, 2, from_checkpoint=first)
            await sent(tmp_path, receiver.url, 1, fresh=True)
            marks = [headers.get("penstock-replay", "") for headers in receiver.headers]
            return [(mark, key, body) for mark, (_, body, key) in zip(marks, receiver.requests, strict=True)]

    found = asyncio.run(replayed_twice())

    assert [(mark, body) for mark, _, body in found] == [
        ("", b"0"),
        ("", b"1"),
        ("3", b"1"),
        ("3", b"2"),  # Another start of the same history: nobody went back.
        ("5", b"1"),
        ("6", b"0"),
    ]
    assert len({key for _, key, _ in found}) == len(found)


def test_rows_that_leave_at_once_say_of_which_replay_they_are(tmp_path: Path) -> None:
    seen: list[EgressRow] = []
    failures: list[BaseException] = []

    class Watched(MemorySink):
        async def commit(self, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
            seen.extend(rows)
            await super().commit(task, rows, marker)

    async def send() -> None:
        driver = EagerDriver(
            "test/out",
            0,
            Watched(MemoryEgress()),
            failed=failures.append,
            attempt=4,
            replay_of=Lineage(4, (), (3,)).replay_of,
        )
        driver.inherit([Staged(2, 1, [EgressRow(b"before", 1)])])
        driver.send([EgressRow(b"after", 2)])
        await driver.wait_quiet()

    asyncio.run(send())

    assert not failures
    assert [(row.value, dict(row.headers)) for row in seen] == [(b"before", {}), (b"after", {"penstock-replay": "3"})]


@pytest.mark.parametrize("going_back", [{"fresh": True}, {"from_checkpoint": 1}])
def test_a_start_that_goes_back_and_fails_changes_nothing(tmp_path: Path, going_back: dict[str, Any]) -> None:
    run(adding(), tmp_path)
    broken = adding()
    broken.ingress(FileIngress(str(tmp_path / "absent" / "*.csv"), type=Add), to="test/sum", key="id", name="absent")

    async def fail() -> None:
        raise Unavailable("PEN0000", "The port is taken.")

    with pytest.raises(PenstockError, match="absent"):
        run(broken, tmp_path, **going_back)
    with pytest.raises(Unavailable, match="The port is taken"):
        asyncio.run(Worker(adding(), Config(directory=tmp_path, port=None, **going_back)).run(fail))

    assert run(adding(), tmp_path).recovery.attempt == 2
    assert sums(adding(), tmp_path) == expected()


def test_starting_fresh_forgets_the_state_and_repeats_the_output_once(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(adding(100, output=output), tmp_path / "data")
    worker = run(adding(100, output=output), tmp_path / "data", fresh=True)

    assert worker.recovery.attempt == 2
    assert sums(adding(100), tmp_path / "data") == expected(100)
    assert len(lines(output)) == 200


@pytest.mark.parametrize("parallelism", [1, 4])
def test_an_ingress_declared_before_another_does_not_move_it(tmp_path: Path, parallelism: int) -> None:
    run(adding(100), tmp_path, parallelism=parallelism)
    app = App("adding")

    @app.function("test/sum")
    def sum_(ctx: Context[Sum], add: Add) -> int:
        ctx.state.total += add.amount
        return ctx.state.total

    app.ingress(GeneratorIngress(lambda start: iter([Add("new", 1)][start:])), to=sum_, key="id", name="added")
    numbers = next(iter(adding(100).ingresses.values()))
    app.ingress(numbers.spec, to=sum_, key="id", name="numbers")

    assert sums(app, tmp_path, parallelism=parallelism) == {**expected(100), "new": 1}


# Damage.


def test_a_flipped_byte_in_the_newest_checkpoint_falls_back_loudly(tmp_path: Path) -> None:
    run(adding(1_000), tmp_path)
    run(adding(2_000), tmp_path)
    segment = newest(tmp_path, "log/journal/*.log")
    flip(segment, segment.stat().st_size - 200)
    (tmp_path / "index").unlink()

    worker = run(adding(2_000), tmp_path)

    assert worker.recovery.notes, "going back must be said"
    assert sums(adding(2_000), tmp_path) == expected(2_000)


def test_an_index_of_a_newer_format_is_left_to_a_newer_version(tmp_path: Path) -> None:
    run(adding(), tmp_path)
    (tmp_path / "index").write_bytes(checked(b"\x92\x02\x90"))

    with pytest.raises(Refused, match=r"PEN0408 The index .* has format 2; this version reads up to 1"):
        run(adding(), tmp_path)


def test_a_damaged_index_is_rebuilt_from_the_journal(tmp_path: Path) -> None:
    run(adding(), tmp_path)
    flip(tmp_path / "index", 60)

    worker = run(adding(), tmp_path)

    assert "The whole journal is read instead." in worker.recovery.notes[0]
    assert worker.recovery.restored > 0
    assert sums(adding(), tmp_path) == expected()


@pytest.fixture
def short_journal(monkeypatch: pytest.MonkeyPatch, many_bases: None) -> Retention:
    """The journal is truncated within a run. Gives the retention that does it."""
    monkeypatch.setattr("penstock.engine.data.EmbeddedLog", partial(EmbeddedLog, segment_bytes_max=4_096))
    return Retention(all_ms=0, spaced_ms=0)


def test_a_lineage_names_only_attempts_that_something_is_left_of(tmp_path: Path) -> None:
    for start in range(1, 5):
        run(adding(start * 100), tmp_path)
    config = Config(directory=tmp_path, port=None)
    data = DataDirectory(config, command="test", started=datetime(2026, 3, 14, tzinfo=UTC))
    manifest, restored = data.restore(adding(), lambda _: None)
    assert manifest is not None

    assert data.next_attempt(manifest, 1).lineage.attempts == {1, 2, 3, 4, 5}
    data.history.checkpoints = {manifest.checkpoint: data.history.checkpoints[manifest.checkpoint]}
    assert data.next_attempt(manifest, 1).lineage.attempts == {4, 5}
    assert data.next_attempt(manifest, 1, staged=frozenset({2})).lineage.attempts == {2, 4, 5}

    close_stores(restored)
    data.close()


@pytest.mark.parametrize("damage", [lambda index: flip(index, 60), Path.unlink])
def test_a_lost_index_of_a_truncated_journal_costs_no_state(
    tmp_path: Path, short_journal: Retention, damage: Callable[[Path], None]
) -> None:
    run(slow(2_000), tmp_path, interval_ms=2, retention=short_journal)
    assert int(min((tmp_path / "log" / "journal").iterdir()).stem) > 0, "the first records are gone"
    damage(tmp_path / "index")

    worker = run(slow(2_000), tmp_path, interval_ms=2, retention=short_journal)

    assert worker.recovery.restored > 0
    assert any("the journal is read from its offset" in note for note in worker.recovery.notes)
    assert sums(adding(2_000), tmp_path) == expected(2_000)


def test_when_no_checkpoint_is_left_of_a_truncated_journal_a_start_is_refused(
    tmp_path: Path, short_journal: Retention
) -> None:
    run(slow(2_000), tmp_path, interval_ms=2, retention=short_journal)
    (tmp_path / "index").unlink()
    segments = sorted((tmp_path / "log" / "journal").iterdir())
    for segment in segments[1:]:
        segment.unlink()
    segments[0].write_bytes(segments[0].read_bytes()[:100])

    with pytest.raises(CorruptSnapshot, match=r"PEN0404 No checkpoint of .* can be restored"):
        run(slow(2_000), tmp_path)


@pytest.mark.parametrize("bytes_torn", [1, 37])
def test_a_torn_end_before_the_first_checkpoint_is_no_reason_to_refuse(tmp_path: Path, bytes_torn: int) -> None:
    run(adding(0), tmp_path)
    segment = newest(tmp_path, "log/journal/*.log")
    with segment.open("ab") as file:
        file.write(b"\x17" * bytes_torn)

    assert sums(adding(), tmp_path) == expected()


def test_a_truncated_journal_falls_back(tmp_path: Path) -> None:
    run(adding(1_000), tmp_path)
    run(adding(2_000), tmp_path)
    segment = newest(tmp_path, "log/journal/*.log")
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "index").unlink()

    run(adding(2_000), tmp_path)

    assert sums(adding(2_000), tmp_path) == expected(2_000)


# Bases.


@pytest.fixture
def many_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a base behind every few deltas."""
    monkeypatch.setattr("penstock.engine.upkeep.BASE_DELTAS", 3)


@pytest.mark.usefixtures("many_bases")
def test_a_start_from_a_base_knows_what_it_contains(tmp_path: Path) -> None:
    run(slow(2_000), tmp_path)
    worker = run(slow(2_000), tmp_path)

    assert list((tmp_path / "store" / "bases").iterdir()), "the run is long enough for a base"
    assert worker.recovery.deltas < worker.recovery.restored, "a base spares most of the deltas"
    assert sums(adding(2_000), tmp_path) == expected(2_000)


@pytest.mark.usefixtures("many_bases")
def test_a_missing_base_file_falls_back_or_refuses_and_never_invents(tmp_path: Path) -> None:
    run(slow(2_000), tmp_path)
    for path in (tmp_path / "store" / "files").iterdir():
        path.unlink()

    worker = run(slow(2_000), tmp_path)

    assert any("missing" in note for note in worker.recovery.notes)
    assert sums(adding(2_000), tmp_path) == expected(2_000)


def test_restored_deltas_count_for_the_next_base(tmp_path: Path) -> None:
    run(adding(), tmp_path)

    async def count() -> tuple[int, int, int]:
        worker = Worker(adding(), Config(directory=tmp_path, port=None, until_done=True))
        await worker.start()
        counters, restored = worker.units[0].counters, worker.recovery.deltas
        await worker.finish()
        return restored, counters.deltas, counters.delta_bytes

    restored, deltas, delta_bytes = asyncio.run(count())
    assert restored == deltas > 0
    assert delta_bytes > 0


TABLE_END = bytes.fromhex("f7cff485b741e288")


def damage_tables(directory: Path) -> None:
    """Flip a byte in each table of the bases. Sizes stay as they are."""
    for path in (directory / "store" / "files").iterdir():
        if path.read_bytes().endswith(TABLE_END):
            flip(path, 10)


@pytest.mark.usefixtures("many_bases")
def test_a_base_with_flipped_bytes_is_not_restored(tmp_path: Path) -> None:
    run(slow(2_000), tmp_path)
    damage_tables(tmp_path)

    worker = run(slow(2_000), tmp_path)

    assert any("PEN0404 Base" in note and "has hash" in note for note in worker.recovery.notes)
    assert sums(adding(2_000), tmp_path) == expected(2_000)


@pytest.mark.usefixtures("many_bases")
def test_after_damage_was_met_at_work_a_base_is_verified_however_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meet_damage(*_: object, **__: object) -> None:
        raise CorruptSnapshot("PEN0407", "block checksum mismatch")

    monkeypatch.setattr("penstock.engine.data.VERIFY_BYTES", 0)
    run(slow(2_000), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(TaskUnit, "turn", meet_damage)
        with pytest.raises(CorruptSnapshot, match="block checksum mismatch"):
            run(slow(2_000), tmp_path)
    damage_tables(tmp_path)

    worker = run(slow(2_000), tmp_path)

    assert any("PEN0404 Base" in note and "has hash" in note for note in worker.recovery.notes)
    assert sums(adding(2_000), tmp_path) == expected(2_000)
    assert not (tmp_path / "distrusted").exists()


def slow(records: int) -> App:
    """The same sums, with input that takes its time, so that there are many checkpoints."""
    app = App("adding")

    @app.function("test/sum")
    def sum_(ctx: Context[Sum], add: Add) -> None:
        ctx.state.total += add.amount

    async def numbers(start: int) -> Any:
        for n in range(start, records):
            if n % 10 == 0:
                await asyncio.sleep(0.005)
            yield Add(f"id-{n % 50}", n)

    app.ingress(GeneratorIngress(numbers), to=sum_, key="id", name="numbers")
    return app


# The disk.


def test_a_full_disk_loses_nothing_and_ends_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        asyncio.run(_through_a_full_disk(disk))
        assert sums(adding(0), disk / "data") == {"a": 5}


async def _through_a_full_disk(disk: Path) -> None:
    app = adding(0)
    worker = Worker(app, Config(directory=disk / "data", port=None, memory_bytes=64 << 20))
    await worker.start()
    serving = asyncio.ensure_future(worker.serve())
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(_free(disk)))
    sending = asyncio.ensure_future(
        worker.requests.send(Address("test/sum", "a"), app.functions["test/sum"].message_codec.encode(Add("a", 5)))
    )
    await _until(lambda: bool(worker.data.storage_error))

    assert worker.data.storage_error.startswith("PEN0405 ")
    assert not sending.done()

    ballast.unlink()
    await asyncio.wait_for(sending, 10)
    worker.stop()
    await serving
    await worker.finish()


def _free(disk: Path) -> int:
    import os

    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # The worker offers no event for every condition of a test.
            await asyncio.sleep(0.01)


# The clock.


def test_a_clock_that_goes_back_is_never_shown_to_handlers(tmp_path: Path) -> None:
    times: list[int] = []
    app = App("clock")

    @app.function("test/look")
    def look(ctx: Context[None], add: Add) -> None:
        times.append(ctx.now_ms)

    ingress = MemoryIngress(type=Add)
    app.ingress(ingress, to=look, key="id")
    offset_s = 0.0
    worker = Worker(app, Config(directory=tmp_path, port=None), clock=lambda: time.time() + offset_s)

    async def step_back() -> None:
        nonlocal offset_s
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        for _ in range(3):
            ingress.feed(Add("a", 1))
            await _until(lambda: len(times) == len(ingress.records))
            offset_s -= 3_600
        worker.stop()
        await serving
        async with asyncio.timeout(5):  # Checkpoints are due as ever, the last one too.
            await worker.finish()

    asyncio.run(step_back())
    assert times == sorted(times)
    assert len(times) == 3


def test_a_message_that_fails_in_its_handler_says_which_record_it_was(tmp_path: Path) -> None:
    app = App("origin")

    @app.function("test/fail", attempts=1)
    def fail(ctx: Context[None], add: Add) -> None:
        if add.amount == 2:
            raise ValueError("unlucky")

    lines = ["id,amount", "a,1", "b,2", "c,3", ""]
    (tmp_path / "input.csv").write_text("\n".join(lines))
    app.ingress(FileIngress(str(tmp_path / "input.csv")), to=fail, key="id")
    letters: list[str] = []

    async def read() -> None:
        worker = Worker(app, Config(directory=tmp_path / "data", port=None, until_done=True))
        await worker.start()
        await worker.serve()
        letters.extend(letter.origin for letter in worker.units[0].core.letters.all())
        await worker.finish()

    asyncio.run(read())
    assert letters == ["input.csv line 3"]


# Stopping.


def test_whoever_waits_for_a_checkpoint_when_the_worker_stops_gets_it(tmp_path: Path) -> None:
    async def stop_it() -> int:
        worker = Worker(adding(0), Config(directory=tmp_path, port=None))
        await worker.start()
        waiting = asyncio.ensure_future(worker.checkpoint_driver.wait_checkpoint("test"))
        await asyncio.sleep(0)
        worker.stop()
        await worker.serve()
        await worker.finish()
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(stop_it()) > 0


def test_whoever_waits_for_a_checkpoint_when_the_worker_fails_is_told(tmp_path: Path) -> None:
    async def break_it() -> None:
        app = adding(0)
        worker = Worker(app, Config(directory=tmp_path, port=None))
        running = asyncio.ensure_future(worker.run())
        await _until(lambda: worker.ready)
        waiting = asyncio.ensure_future(worker.checkpoint_driver.wait_checkpoint("test"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for each in (waiting, worker.checkpoint_driver.wait_checkpoint("test")):
            with pytest.raises(Refused, match="PEN0603 adding stopped before the checkpoint was complete"):
                await asyncio.wait_for(each, 5)

    asyncio.run(break_it())


def test_a_handler_that_waits_for_ever_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    app = App("waiting")
    started: list[str] = []

    @app.function("test/wait")
    async def wait(ctx: Context[Sum], add: Add) -> None:
        started.append(ctx.id)
        await asyncio.Event().wait()

    async def stop_it(worker: Worker) -> None:
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        if worker.recovery.attempt == 1:
            await worker.requests.send(
                Address("test/wait", "a"), app.functions["test/wait"].message_codec.encode(Add("a", 1))
            )
        await _until(lambda: len(started) == worker.recovery.attempt)
        worker.stop()
        await asyncio.wait_for(serving, 5)
        await asyncio.wait_for(worker.finish(), 5)

    for _ in range(2):
        asyncio.run(stop_it(Worker(app, Config(directory=tmp_path, port=None))))
    assert started == ["a", "a"], "a message in flight is part of the snapshot, and runs again"


def test_a_handler_that_goes_on_although_it_is_cancelled_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    app = App("stubborn")
    started, released = asyncio.Event(), asyncio.Event()

    @app.function("test/wait")
    async def wait(ctx: Context[None], add: Add) -> None:
        started.set()
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    app.ingress(GeneratorIngress(lambda start: iter([Add("a", 1)][start:])), to=wait, key="id", name="one")

    async def stop_it() -> None:
        worker = Worker(app, Config(directory=tmp_path, port=None, stop_timeout_ms=100))
        running = asyncio.ensure_future(worker.run())
        await started.wait()
        worker.stop()
        await asyncio.wait_for(running, 5)
        released.set()

    asyncio.run(stop_it())


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_a_handler_that_raises_what_is_no_exception_fails_like_any_other(
    tmp_path: Path, error: BaseException, waits: bool
) -> None:
    app = App("ending")
    seen: list[str] = []

    async def end(ctx: Context[None], add: Add) -> None:
        await asyncio.sleep(0)
        end_now(ctx, add)

    def end_now(ctx: Context[None], add: Add) -> None:
        seen.append(add.id)
        if add.id == "a":
            raise error

    function = app.function("test/end", attempts=1)(end if waits else end_now)
    app.ingress(GeneratorIngress(lambda start: iter([Add("a", 1), Add("b", 1)][start:])), to=function, key="id")
    worker = run(app, tmp_path)

    assert sorted(seen) == ["a", "b"]
    assert worker.units[0].core.statistics().dead_letters == 1


def test_a_handler_that_halts_ends_the_worker_and_keeps_the_message(tmp_path: Path) -> None:
    broken = True
    app = App("halting")
    out = app.egress("test/out", MemoryEgress())

    @app.function("test/halt", attempts=1, on_failure="halt")
    def halt(ctx: Context[None], add: Add) -> None:
        if broken:
            raise ValueError("not today")
        ctx.emit(out, add.amount)

    app.ingress(GeneratorIngress(lambda start: iter([Add("a", 7)][start:])), to=halt, key="id", name="one")
    with pytest.raises(Exception, match="PEN0211 test/halt/a failed after 1 attempts"):
        run(app, tmp_path)
    broken = False
    run(app, tmp_path)

    assert app.egresses["test/out"].spec.values() == [7]  # type: ignore[attr-defined]


# Ingresses that fail.


def test_an_asynchronous_generator_that_raises_while_the_worker_waits_ends_it(tmp_path: Path) -> None:
    app = App("broken")

    @app.function("test/none")
    def none(ctx: Context[None], add: Add) -> None: ...

    async def numbers(start: int) -> Any:
        yield Add("a", 1)
        await asyncio.sleep(0.02)
        raise RuntimeError("broker gone")

    app.ingress(GeneratorIngress(numbers), to=none, key="id", name="numbers")
    with pytest.raises(FunctionError, match=r"PEN0224 .*numbers, started .* raised RuntimeError: broker gone"):
        run(app, tmp_path)


# Text that can't be stored.

LONE = "\ud800"


def surrogate_uses() -> list[Callable[[Context[Any]], None]]:
    """Whatever a handler may do with half of a surrogate pair, or with something that is no text."""
    wrong: Any = 5
    add = Add("a", 1)
    return [
        lambda ctx: ctx.send("test/sum", LONE, add),
        lambda ctx: ctx.send("test/sum", wrong, add),
        lambda ctx: ctx.send("test/sum", "x", Add(LONE, 1)),
        lambda ctx: ctx.send_after(0.01, "test/sum", LONE, add),
        lambda ctx: ctx.send_after("1h", "test/sum", "x", add, token=LONE),
        lambda ctx: ctx.send_after("1h", "test/sum", "x", add, token=wrong),
        lambda ctx: ctx.cancel(LONE),
        lambda ctx: ctx.emit("test/out", 1, topic=LONE),
        lambda ctx: ctx.emit("test/out", 1, key=LONE),
        lambda ctx: ctx.emit("test/out", 1, headers={"a": LONE}),
        lambda ctx: ctx.emit("test/out", 1, headers={"a": wrong}),
    ]


def test_text_that_utf_8_cannot_hold_makes_a_dead_letter(tmp_path: Path) -> None:
    uses = surrogate_uses()
    app = App("lone")
    app.egress("test/out", MemoryEgress())

    @app.function("test/use", attempts=1)
    def use(ctx: Context[None], add: Add) -> None:
        if add.amount == len(uses):
            raise ValueError(LONE)
        uses[add.amount](ctx)

    @app.function("test/sum")
    def sum_(ctx: Context[None], add: Add) -> None: ...

    numbers = range(len(uses) + 1)
    app.ingress(GeneratorIngress(lambda start: (Add("a", n) for n in numbers[start:])), to=use, key="id", name="in")
    worker = run(app, tmp_path)

    assert worker.units[0].core.letters.written == len(numbers)


def test_records_with_text_that_utf_8_cannot_hold_are_dead_letters(tmp_path: Path) -> None:
    app = App("lone")

    @app.function("test/sum")
    def sum_(ctx: Context[None], add: Add) -> None: ...

    def key(add: Add) -> str:
        return add.id if add.amount else "good"

    records = [Add(LONE, 1), Add(LONE, 0), Add("a", 1)]
    app.ingress(GeneratorIngress(lambda start: iter(records[start:])), to=sum_, key=key, name="in")
    worker = run(app, tmp_path)

    assert worker.units[0].core.letters.written == 2


# Egresses that fail.


def emitting(count: int, commit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, **egress: Any) -> App:
    """Emits the numbers up to `count`, to an egress whose sink commits by `commit`."""
    monkeypatch.setattr("penstock.router.egress.MemorySink.commit", commit)
    app = App("emitting")
    out = app.egress("test/out", MemoryEgress(**egress))

    @app.function("test/emit")
    def emit(ctx: Context[None], add: Add) -> None:
        ctx.emit(out, add.amount)

    numbers = GeneratorIngress(lambda start: (Add("a", n) for n in range(start, count)))
    app.ingress(numbers, to=emit, key="id", name="numbers")
    return app


def rows_of(app: App) -> MemoryEgress:
    spec = app.egresses["test/out"].spec
    assert isinstance(spec, MemoryEgress)
    return spec


@pytest.mark.parametrize("delivery", ["exactly-once", "eager"])
def test_a_sink_that_raises_anything_ends_the_worker_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    async def commit(*args: Any) -> None:
        raise OSError("no such device")

    app = emitting(5, commit, monkeypatch, delivery=delivery)
    with pytest.raises(FunctionError, match="PEN0529 Egress test/out failed with OSError: no such device"):
        run(app, tmp_path)


def test_a_sink_that_is_fenced_in_the_last_commit_ends_the_run_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def commit(*args: Any) -> None:
        raise Fenced("PEN0525", "somebody else writes there")

    app = emitting(5, commit, monkeypatch)
    with pytest.raises(Fenced, match="PEN0525"):
        run(app, tmp_path, interval_ms=10_000)


def test_rows_refused_in_the_last_commit_are_buried_and_the_others_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = MemorySink.commit

    async def refuse_3(sink: MemorySink, task: int, rows: Sequence[EgressRow], marker: Mapping[int, int]) -> None:
        refused = [(number, "no threes") for number, row in enumerate(rows) if row.value == b"\x03"]
        if refused:
            raise RowsRefused("PEN0215", "refused", refused)
        await commit(sink, task, rows, marker)

    app = emitting(5, refuse_3, monkeypatch)
    worker = run(app, tmp_path, interval_ms=10_000, stop_timeout_ms=5_000)

    assert rows_of(app).values() == [0, 1, 2, 4]
    assert sum(unit.core.letters.written for unit in worker.units) == 1


def test_a_stop_while_the_output_directory_is_gone_fails_and_the_next_start_writes_the_rows(tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    ingress = MemoryIngress(type=Add)
    app = App("removed")
    app.egress("test/out", FileEgress(str(out)))

    @app.function("test/emit")
    def emit(ctx: Context[None], add: Add) -> None:
        ctx.emit("test/out", {"n": add.amount})

    app.ingress(ingress, to=emit, key="id")

    async def scenario() -> None:
        worker = Worker(app, Config(directory=data, port=None, interval_ms=10, stop_timeout_ms=300))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        await _until(lambda: worker.ready)
        out.rename(tmp_path / "aside")
        ingress.feed(Add("a", 1), Add("a", 2))
        await _until(lambda: worker.last_checkpoint is not None)
        worker.stop()
        await serving
        with pytest.raises(Unavailable, match=r"PEN0604 .* Egress test/out has 2 rows that are not written \(PEN0530 "):
            await worker.finish()

    asyncio.run(scenario())
    (tmp_path / "aside").rename(out)
    ingress.finish()
    run(app, data)
    (part,) = out.glob("part-*")
    assert part.read_text() == '{"n":1}\n{"n":2}\n'


def decided_and_unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """An application that was killed when a checkpoint had decided its five rows, while the sink was away."""

    async def away(*_: Any) -> None:
        raise Unavailable("PEN0520", "away")

    commit = MemorySink.commit
    app = emitting(5, away, monkeypatch)

    async def crash() -> None:
        worker = Worker(app, Config(directory=tmp_path, port=None, interval_ms=10))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        await _until(lambda: worker.last_checkpoint is not None and worker.checkpoint_driver.quiet)
        worker.stop()
        await serving
        await worker._abort()

    asyncio.run(crash())
    monkeypatch.setattr(MemorySink, "commit", commit)
    return app


def test_rows_that_were_decided_are_written_when_their_egress_has_become_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided_and_unwritten(tmp_path, monkeypatch)
    eager = emitting(6, MemorySink.commit, monkeypatch, delivery="eager")

    for _ in range(2):
        run(eager, tmp_path)

    assert rows_of(eager).values() == [0, 1, 2, 3, 4, 5]


def test_rows_that_are_written_are_not_written_again_when_their_egress_becomes_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided_and_unwritten(tmp_path, monkeypatch)
    eager = emitting(6, MemorySink.commit, monkeypatch, delivery="eager")
    rows_of(eager).markers[0] = {1: 1_000}  # The commit came through, and its answer did not.

    run(eager, tmp_path)

    assert rows_of(eager).values() == [5]


def renamed(monkeypatch: pytest.MonkeyPatch) -> App:
    app = emitting(5, MemorySink.commit, monkeypatch)
    app.egresses.clear()
    app.egress("test/renamed", MemoryEgress())
    return app


def test_decided_rows_of_a_renamed_egress_become_dead_letters_and_can_be_redriven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = decided_and_unwritten(tmp_path, monkeypatch)

    worker = run(renamed(monkeypatch), tmp_path)
    assert worker.units[0].core.letters.written == 5
    worker = run(renamed(monkeypatch), tmp_path)
    assert worker.units[0].core.letters.written == 0

    async def redrive() -> None:
        worker = Worker(app, Config(directory=tmp_path, port=None, interval_ms=10))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        assert await worker.requests.operate(Address("", "task"), Redrive([1, 2, 3, 4, 5])) == 5
        worker.stop()
        await serving
        await worker.finish()

    asyncio.run(redrive())
    assert rows_of(app).values() == [0, 1, 2, 3, 4]


def test_an_orderly_stop_leaves_no_row_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(emitting(5, MemorySink.commit, monkeypatch), tmp_path)

    worker = run(renamed(monkeypatch), tmp_path)

    assert worker.units[0].core.letters.written == 0


def test_no_checkpoint_is_complete_before_the_rows_of_eager_egresses_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = False
    commit = MemorySink.commit

    async def commit_later(sink: MemorySink, *rest: Any) -> None:
        if not available:
            raise Unavailable("PEN0520", "away")
        await commit(sink, *rest)

    app = emitting(5, commit_later, monkeypatch, delivery="eager")

    async def crash() -> None:
        worker = Worker(app, Config(directory=tmp_path, port=None, interval_ms=10))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        await _until(lambda: worker.coordinator.current is not None)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert worker.last_checkpoint is None
        worker.stop()
        await serving
        await worker._abort()

    asyncio.run(crash())
    available = True
    run(app, tmp_path)
    assert rows_of(app).values() == [0, 1, 2, 3, 4]


def test_rows_that_no_sink_takes_stop_the_input_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True
    commit = MemorySink.commit

    async def commit_unless_away(self: MemorySink, task: int, rows: Any, marker: Any) -> None:
        if away:
            raise Unavailable("PEN0520", "the sink is away")
        await commit(self, task, rows, marker)

    monkeypatch.setattr(MemorySink, "commit", commit_unless_away)
    app = App("away")
    egress = MemoryEgress()
    out = app.egress("test/out", egress)

    @app.function("test/emit")
    def emit(ctx: Context[None], add: Add) -> None:
        ctx.emit(out, "x" * 4_000)

    records = 20_000
    app.ingress(GeneratorIngress(lambda start: (Add("a", n) for n in range(start, records))), to=emit, key="id")

    async def through_the_outage() -> None:
        nonlocal away
        worker = Worker(app, Config(directory=tmp_path, port=None, until_done=True, memory_bytes=64 << 20))
        await worker.start()
        serving = asyncio.ensure_future(worker.serve())
        feed = worker.ingresses[0]
        before = -1
        async with asyncio.timeout(30):
            while feed.records != before:
                before = feed.records
                await asyncio.sleep(0.7)
        assert 0 < feed.records < records
        away = False
        await asyncio.wait_for(serving, 60)
        await worker.finish()

    asyncio.run(through_the_outage())
    assert len(egress.rows) == records
