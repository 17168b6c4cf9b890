"""Savepoints: what is restored from one is what was saved, in another place and with another parallelism."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock import App, Context, FileEgress, GeneratorIngress, Message, State
from penstock.checkpoint.savepoint import SavepointReader, begun, delete_savepoint
from penstock.checkpoint.stores import open_blobs
from penstock.engine.config import Config
from penstock.engine.offline import Directory, open_stopped
from penstock.engine.rescaling import rescale, write_rows
from penstock.engine.savepoints import restore_savepoint, take_stopped
from penstock.engine.sinks import SinkDriver
from penstock.engine.worker import Worker
from penstock.errors import CorruptSnapshot, InvalidInput, PenstockError, Refused
from penstock.files import checked
from penstock.ids import Address
from tests.engine.serving import Client, serving, until

SENDERS, RECEIVERS = 23, 17


class Item(Message):
    n: int
    sequence: int = 0
    """Of the sender; 0 for what is not in order."""


class Sender(State):
    sent: int = 0


class Receiver(State):
    seen: int = 0
    total: int = 0
    late: int = 0
    disorder: int = 0
    last: dict[str, int] = msgspec.field(default_factory=dict)


def flow(records: int, output: Path | None = None, *, delay: str = "5ms") -> App:
    """Everything that can be under way: messages between tasks, delayed and cancelled ones, those that fail and are
    tried again, those of handlers that wait, dead letters, rows."""
    app = App("flow")
    if output is not None:
        app.egress("flow/rows", FileEgress(str(output)))

    @app.function("flow/sender")
    def sender(ctx: Context[Sender], item: Item) -> None:
        ctx.state.sent += 1
        ctx.send(receiver, f"b{item.n % RECEIVERS}", Item(item.n, ctx.state.sent))
        if item.n % 10 == 0:
            ctx.send_after(delay, receiver, f"b{item.n % RECEIVERS}", Item(item.n), token=f"late-{item.n}")
        if item.n % 20 == 0:
            ctx.send_after(delay, receiver, f"b{item.n % RECEIVERS}", Item(-1), token="called back")
            ctx.cancel("called back")
        if item.n % 7 == 0:
            ctx.send(waiter, f"c{item.n % 5}", item)
        if item.n % 50 == 0:
            ctx.send(failing, f"d{item.n % 3}", item)
        if item.n % 9 == 0:
            ctx.send(asker, f"e{item.n % 11}", item)

    @app.function("flow/counter")
    def counter(ctx: Context[Sender], item: Item) -> int:
        ctx.state.sent += 1
        return 1

    @app.function("flow/asker")
    async def asker(ctx: Context[Sender], item: Item) -> None:
        first, second = await ctx.call(counter, f"f{item.n % 7}", item), ctx.call(counter, f"f{item.n % 5}", item)
        ctx.state.sent += first
        await ctx.sleep("3ms")
        ctx.state.sent += await second

    @app.function("flow/receiver")
    def receiver(ctx: Context[Receiver], item: Item) -> None:
        state = ctx.state
        if item.sequence:
            assert ctx.caller is not None
            state.seen += 1
            state.total += item.n
            state.disorder += item.sequence <= state.last.get(ctx.caller.id, 0)
            state.last = {**state.last, ctx.caller.id: item.sequence}
        else:
            state.late += 1
        if output is not None:
            ctx.emit("flow/rows", {"n": item.n, "late": not item.sequence, "id": ctx.id})

    @app.function("flow/waiter")
    async def waiter(ctx: Context[Sender], item: Item) -> None:
        await asyncio.sleep(0.002)
        ctx.state.sent += 1

    @app.function("flow/failing", attempts=3, backoff="2ms")
    def failing(ctx: Context[Sender], item: Item) -> None:
        raise ValueError("always")

    def items(start: int) -> Iterator[Item]:
        yield from map(Item, range(start, records))

    app.ingress(GeneratorIngress(items), to=sender, key=lambda item: f"a{item.n % SENDERS}", name="items")
    return app


def config(directory: Path, tasks: int, **options: Any) -> Config:
    return Config(directory=directory, port=None, parallelism=tasks, interval_ms=5, **options)


def run_turns(app: App, directory: Path, tasks: int, turns: int, *, kill: bool = False) -> None:
    """So many turns of each task, then a stop in order, or the end of a process that is killed behind a checkpoint."""

    async def run() -> None:
        worker = Worker(app, config(directory, tasks))
        await worker.start()
        for _ in range(turns):
            worker._take_turns(int(time.time() * 1000), pressure=0)
            await asyncio.sleep(0)
        if kill:
            # Rows are decided and never written, as when the process dies at once.
            for unit in worker.units:
                for driver in unit.sinks.values():
                    assert isinstance(driver, SinkDriver)
                    driver.handle = lambda event: None  # type: ignore[method-assign]
            taken = asyncio.ensure_future(worker.take_checkpoint())
            while not taken.done():
                worker.checkpoint_driver.tick(time.time() * 1000)
                await asyncio.sleep(0)
            await worker._abort()
        else:
            worker.stop()
            await worker.finish()

    asyncio.run(run())


def run_out(app: App, directory: Path, tasks: int) -> None:
    """To the end of everything."""
    asyncio.run(Worker(app, config(directory, tasks, until_done=True)).run())


def save(directory: Path, place: Path) -> SavepointReader:
    with Directory(directory) as opened:
        take_stopped(opened, open_blobs(str(place)), now_ms=1_000, progress=lambda done, total: None)
    return SavepointReader(open_blobs(str(place)))


def restore(app: App, reader: SavepointReader, directory: Path, tasks: int, *, replacing: bool = False) -> None:
    restore_savepoint(
        app,
        reader,
        config(directory, tasks),
        command="a test",
        reason="savepoint",
        now_ms=2_000,
        replacing=replacing,
        progress=lambda done, total: None,
    )


def known(app: App, directory: Path, at: int | None = None) -> dict[str, Any]:
    """All that people can see: states, and dead letters."""
    with Directory(directory) as opened, open_stopped(app, opened, checkpoint=at, note=print) as stopped:
        found: dict[str, Any] = {
            f"{typename}/{id}": stopped.state(typename, id)["state"]
            for typename in app.functions
            for id in stopped.state_ids(typename, prefix="", limit=1_000)
        }
        found["letters"] = [
            (each["number"], each["function"], each["id"], each["code"])
            for each in stopped.letters(typename=None, code=None, limit=10_000)
        ]
    return found


def lines(output: Path) -> Counter[str]:
    return Counter(line for part in output.glob("part*") for line in part.read_text().splitlines())


def check_complete(app: App, directory: Path, records: int) -> None:
    """Each record was processed once, in order, with all it caused."""
    found = known(app, directory)
    receivers = [state for name, state in found.items() if name.startswith("flow/receiver/")]
    assert sum(state["seen"] for state in receivers) == records
    assert sum(state["total"] for state in receivers) == sum(range(records))
    assert sum(state["late"] for state in receivers) == len(range(0, records, 10))
    assert sum(state["disorder"] for state in receivers) == 0
    sent = Counter[str]()
    for name, state in found.items():
        sent[name.rpartition("/")[0]] += state.get("sent", 0) if isinstance(state, dict) else 0
    assert sent["flow/waiter"] == len(range(0, records, 7))
    assert sent["flow/asker"] == sent["flow/counter"] == 2 * len(range(0, records, 9))
    assert len(found["letters"]) == len(range(0, records, 50))
    assert len({number for number, *_ in found["letters"]}) == len(found["letters"])


def expected_rows(records: int) -> Counter[str]:
    rows = [{"n": n, "late": False, "id": f"b{n % RECEIVERS}"} for n in range(records)]
    rows += [{"n": n, "late": True, "id": f"b{n % RECEIVERS}"} for n in range(0, records, 10)]
    return Counter(json.dumps(row, separators=(",", ":")) for row in rows)


# Another parallelism.


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 8), (8, 2)])
@pytest.mark.parametrize("turns", [0, 4])
def test_nothing_is_lost_or_doubled_by_another_parallelism(tmp_path: Path, before: int, after: int, turns: int) -> None:
    records, data, output = 800, tmp_path / "data", tmp_path / "rows"
    app = flow(records, output)
    run_turns(app, data, before, turns, kill=True)
    write_rows(app, config(data, before))
    shown = known(app, data)

    rescale(app, config(data, after), before, now_ms=1_000, progress=lambda done, total: None)

    assert known(app, data) == shown
    run_out(app, data, after)
    check_complete(app, data, records)
    assert lines(output) == expected_rows(records)


def test_parallelism_may_change_again_and_again(tmp_path: Path) -> None:
    records, data, output = 1_000, tmp_path / "data", tmp_path / "rows"
    app = flow(records, output)
    before = 4
    run_turns(app, data, before, 4)
    for after in (8, 1, 4):
        rescale(app, config(data, after), before, now_ms=after, progress=lambda done, total: None)
        run_turns(app, data, after, 3)
        before = after

    run_out(app, data, before)

    check_complete(app, data, records)
    assert lines(output) == expected_rows(records)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.integers(1, 400),
    steps=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 6)), min_size=1, max_size=3),
)
def test_a_run_with_savepoints_ends_as_one_without(
    tmp_path_factory: pytest.TempPathFactory, records: int, steps: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    app = flow(records)
    (tasks, turns), *later = steps
    run_turns(app, folder / "0", tasks, turns)
    place = folder / "0"
    for number, (tasks, turns) in enumerate(later, 1):
        reader = save(place, folder / f"savepoint-{number}")
        shown = known(app, place)
        place = folder / str(number)
        restore(app, reader, place, tasks)
        assert known(app, place) == shown
        run_turns(app, place, tasks, turns)

    run_out(app, place, steps[-1][0])

    check_complete(app, place, records)


def test_requests_that_were_accepted_are_taken_along(tmp_path: Path) -> None:
    app = flow(0)

    async def accept() -> None:
        worker = Worker(app, config(tmp_path / "data", 4))
        await worker.start()
        for n in range(100):
            payload = app.functions["flow/sender"].message_codec.encode(Item(n))
            await worker.requests.send(Address("flow/sender", f"a{n % SENDERS}"), payload)
        taken = asyncio.ensure_future(worker.take_checkpoint())
        while not taken.done():
            worker.checkpoint_driver.tick(time.time() * 1000)
            await asyncio.sleep(0)
        await worker._abort()

    asyncio.run(accept())
    reader = save(tmp_path / "data", tmp_path / "savepoint")
    assert reader.savepoint.requests == 100

    restore(app, reader, tmp_path / "other", 2)
    run_out(app, tmp_path / "other", 2)

    check_complete(app, tmp_path / "other", 100)


def test_older_checkpoints_can_be_replayed_with_the_old_parallelism(tmp_path: Path) -> None:
    records, data = 500, tmp_path / "data"
    app = flow(records)
    run_turns(app, data, 4, 3)
    with Directory(data) as opened:
        newest = opened.newest()
    assert newest is not None
    rescale(app, config(data, 8), 4, now_ms=1_000, progress=lambda done, total: None)
    run_turns(app, data, 8, 3)

    with pytest.raises(Refused, match="PEN0305"):
        asyncio.run(Worker(app, config(data, 8, from_checkpoint=newest.checkpoint)).run())
    asyncio.run(Worker(app, config(data, 4, from_checkpoint=newest.checkpoint, until_done=True)).run())

    check_complete(app, data, records)


# While the application runs.


async def ended(client: Client, number: int) -> dict[str, Any]:
    """What became of a savepoint."""
    while True:
        state: dict[str, Any] = (await client.get(f"/admin/savepoints/{number}")).json
        if state["done"]:
            return state
        await asyncio.sleep(0.005)


def test_a_savepoint_of_a_running_application_begins_where_its_rows_end(tmp_path: Path) -> None:
    records = 3_000
    output = tmp_path / "rows"

    async def run() -> dict[str, Any]:
        async with serving(flow(records, output), tmp_path / "data", parallelism=4) as client:
            await until(lambda: client.worker.last_checkpoint is not None)
            begun = await client.post("/admin/savepoints", json.dumps({"to": str(tmp_path / "savepoint")}))
            number = begun.json["number"]
            again = await client.post("/admin/savepoints")
            assert (again.status, again.json["code"]) == (409, "PEN0438")
            state = await ended(client, number)
            assert (await client.get("/admin/savepoints/7")).json["code"] == "PEN0439"
            await until(lambda: all(feed.done for feed in client.worker.ingresses))
            return state

    state = asyncio.run(run())
    assert state["error"] is None
    assert state["savepoint"]["savepoint"] == str(tmp_path / "savepoint")

    other = flow(records, tmp_path / "other rows")
    reader = SavepointReader(open_blobs(str(tmp_path / "savepoint")))
    restore(other, reader, tmp_path / "other", 8)
    before = known(other, tmp_path / "other")
    seen = sum(state["seen"] + state["late"] for name, state in before.items() if name.startswith("flow/receiver/"))
    run_out(other, tmp_path / "other", 8)

    check_complete(other, tmp_path / "other", records)
    assert lines(tmp_path / "other rows").total() == expected_rows(records).total() - seen
    run_out(flow(records, output), tmp_path / "data", 4)  # The original goes on as if nothing had been.
    check_complete(flow(records), tmp_path / "data", records)
    assert lines(output) == expected_rows(records)


def test_a_savepoint_that_can_not_be_taken_says_why(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "savepoint").write_text("something")

    async def run() -> dict[str, Any]:
        async with serving(flow(10), tmp_path / "data") as client:
            begun = await client.post("/admin/savepoints", json.dumps({"to": str(tmp_path / "taken")}))
            return await ended(client, begun.json["number"])

    state = asyncio.run(run())

    assert state["savepoint"] is None
    assert (state["error"]["code"], state["error"]["kind"]) == ("PEN0431", "Refused")


# What is refused.


def saved(tmp_path: Path) -> Path:
    run_turns(flow(600), tmp_path / "data", 2, 5)
    save(tmp_path / "data", tmp_path / "savepoint")
    return tmp_path / "savepoint"


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flipped, truncated, removed])
def test_damage_is_found_and_named_whichever_file_it_is(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    data = tmp_path / "data"
    app = flow(600)
    run_turns(app, data, 2, 5, kill=True)
    rescale(app, config(data, 4), 2, now_ms=1, progress=lambda done, total: None)  # From here on it has bases.
    run_turns(app, data, 4, 2, kill=True)
    place = tmp_path / "savepoint"
    save(data, place)
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.parent.name for path in files} == {"savepoint", "bases", "deltas", "files", "inbox"}

    for path in files:
        sound = path.read_bytes()
        damage(path)
        with pytest.raises(PenstockError) as caught:
            restore(app, SavepointReader(open_blobs(str(place))), tmp_path / f"to-{path.name}", 2)
        assert str(path) in caught.value.message
        assert isinstance(caught.value, CorruptSnapshot | InvalidInput)
        with pytest.raises(PenstockError, match=path.name):
            SavepointReader(open_blobs(str(place))).verify(lambda done, total: None)
        path.write_bytes(sound)

    restore(app, SavepointReader(open_blobs(str(place))), tmp_path / "sound", 2)
    run_out(app, tmp_path / "sound", 2)
    check_complete(app, tmp_path / "sound", 600)


def test_checkpoints_are_not_replaced_unasked(tmp_path: Path) -> None:
    place = saved(tmp_path)
    reader = SavepointReader(open_blobs(str(place)))
    run_turns(flow(600), tmp_path / "other", 1, 2)
    before = known(flow(600), tmp_path / "other")

    with pytest.raises(Refused, match="PEN0433"):
        restore(flow(600), reader, tmp_path / "other", 1)
    assert known(flow(600), tmp_path / "other") == before

    restore(flow(600), reader, tmp_path / "other", 1, replacing=True)
    run_out(flow(600), tmp_path / "other", 1)
    check_complete(flow(600), tmp_path / "other", 600)


def test_rows_of_which_only_the_egress_knows_are_not_saved(tmp_path: Path) -> None:
    app = flow(600, tmp_path / "rows")
    run_turns(app, tmp_path / "data", 2, 5, kill=True)

    with pytest.raises(Refused, match=r"PEN0434.*flow/rows"):
        save(tmp_path / "data", tmp_path / "savepoint")

    assert not begun(open_blobs(str(tmp_path / "savepoint")))
    write_rows(app, config(tmp_path / "data", 2))
    save(tmp_path / "data", tmp_path / "savepoint")


def test_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    reader = SavepointReader(open_blobs(str(saved(tmp_path))))
    other = App("other")

    class Name(State):
        sent: str = ""

    @other.function("flow/sender")
    def sender(ctx: Context[Name], item: Item) -> None: ...

    with pytest.raises(Refused, match=r"PEN0435.*flow/receiver"):
        restore(other, reader, tmp_path / "other", 2)
    changed = App("flow")
    changed.function("flow/sender")(sender.handler)
    with pytest.raises(Refused, match="PEN0302"):
        restore(changed, reader, tmp_path / "other", 2)
    assert not (tmp_path / "other").exists()


def test_nothing_that_is_complete_is_nothing_to_save(tmp_path: Path) -> None:
    (tmp_path / "data" / "log").mkdir(parents=True)

    with pytest.raises(Refused, match="PEN0437"):
        save(tmp_path / "data", tmp_path / "savepoint")


def test_a_place_that_is_taken_stays_as_it_is(tmp_path: Path) -> None:
    place = saved(tmp_path)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    with pytest.raises(Refused, match="PEN0431"):
        save(tmp_path / "data", place)

    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    delete_savepoint(open_blobs(str(place)))
    assert not place.exists()
    with pytest.raises(InvalidInput, match="PEN0432"):
        SavepointReader(open_blobs(str(place)))


def test_a_savepoint_of_a_newer_format_is_left_to_a_newer_version(tmp_path: Path) -> None:
    place = saved(tmp_path)
    found = SavepointReader(open_blobs(str(place))).savepoint
    checkpoint = msgspec.structs.replace(found.manifest, format=2)
    for newer, what in (
        (msgspec.structs.replace(found, format=2), "The savepoint"),
        (msgspec.structs.replace(found, manifest=checkpoint), "The checkpoint in the savepoint"),
        ([2, "what comes here is something else"], "The savepoint"),
    ):
        (place / "savepoint").write_bytes(checked(msgspec.msgpack.encode(newer)))

        with pytest.raises(Refused, match=f"PEN0408 {what} .* has format 2"):
            SavepointReader(open_blobs(str(place)))


def test_what_goes_back_is_a_replay_and_another_parallelism_is_none(tmp_path: Path) -> None:
    app, data = flow(600), tmp_path / "data"
    run_turns(app, data, 2, 3)
    reader = save(data, tmp_path / "place")

    def replays() -> tuple[int, ...]:
        with Directory(data) as opened:
            newest = opened.newest()
            assert newest is not None
            return opened.manifest(newest).lineage.replays

    rescale(app, config(data, 4), 2, now_ms=1_000, progress=lambda done, total: None)
    assert replays() == ()
    restore(app, reader, data, 2, replacing=True)
    (replay,) = replays()
    run_turns(app, data, 2, 1)
    assert replays() == (replay,)


def test_where_newer_checkpoints_are_damaged_a_start_with_the_tasks_of_an_older_one_names_that(tmp_path: Path) -> None:
    run_turns(flow(100), tmp_path, 2, 5)
    rescale(flow(100), config(tmp_path, 4), 2, now_ms=1_000, progress=lambda done, total: None)
    newest = max((tmp_path / "store" / "bases").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])

    with pytest.raises(
        Refused, match=r"PEN0305 .* Start with --parallelism 2 --from (\d+): newer checkpoints are"
    ) as caught:
        run_out(flow(100), tmp_path, 4)

    older = int(caught.value.message.partition("--from ")[2].partition(":")[0])
    asyncio.run(Worker(flow(100), config(tmp_path, 2, from_checkpoint=older, until_done=True)).run())
