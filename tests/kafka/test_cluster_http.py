"""Two workers on one broker: each answers over HTTP for what the other one has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from penstock import App, Context, Message, State
from penstock.engine.cli import cli
from penstock.engine.cluster.options import ClusterOptions
from penstock.engine.cluster.worker import ClusterWorker
from penstock.engine.config import Config
from penstock.engine.http import HttpServer, why_not_ready
from penstock.files import read_owner
from penstock.ids import key_group
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_reader import read_range
from tests.engine.serving import Answer
from tests.kafka.waiting import until

pytestmark = pytest.mark.kafka

TASKS = 4
SCENARIO_S = 120


class Hit(Message):
    count: int = 1


class Count(State):
    total: int = 0


def counting(name: str) -> App:
    app = App(name)

    @app.function("t/count", attempts=1)
    def count(ctx: Context[Count], hit: Hit) -> int:
        if hit.count < 0 and ctx.state.total < 100:
            raise ValueError("negative")
        ctx.state.total += hit.count
        return ctx.state.total

    @app.function("t/order")
    async def order(ctx: Context[None], clerk_id: str) -> str:
        told: str = await ctx.call("t/clerk", clerk_id, None)
        return told

    @app.function("t/clerk")
    async def clerk(ctx: Context[None], message: None) -> str:
        return await ctx.promise("approved", str)

    return app


class Served:
    """One worker and its HTTP interface."""

    def __init__(self, worker: ClusterWorker, session: aiohttp.ClientSession) -> None:
        self.worker = worker
        self.server = HttpServer(worker)
        self.url = ""
        self.running: asyncio.Task[None]
        self._session = session

    async def started(self) -> None:
        self.url = await self.server.start()
        self.worker.announce(self.url)

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = None if body is None else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(method, f"{self.url}{path}", data=data, headers=named) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def get(self, path: str) -> Any:
        answer = await self.request("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def post(self, path: str, body: Any = None, **headers: str) -> Any:
        answer = await self.request("POST", path, body, **headers)
        assert answer.status in (200, 202), answer.body
        return answer.json

    async def metrics(self) -> dict[str, float]:
        answer = await self.request("GET", "/metrics")
        return {
            sample.name + "".join(f" {name}={value}" for name, value in sample.labels.items()): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }


@asynccontextmanager
async def two_workers(
    kafka: str, name: str, directory: Path, declare: Callable[[str], App] = counting
) -> AsyncIterator[tuple[Served, Served]]:
    """Both have tasks when the block begins; both stop in an orderly way behind it."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        both = []
        for number in range(2):
            config = Config(directory=directory / str(number), parallelism=TASKS, port=0, memory_bytes=64 << 20)
            options = ClusterOptions(
                kafka=KafkaOptions(kafka, {}),
                store=str(directory / "store"),
                instance=f"worker-{number}",
                workers_expected=2,
                settle_ms=10_000,
            )
            both.append(Served(ClusterWorker(declare(name), config, options), session))
        for each in both:
            each.running = asyncio.create_task(each.worker.run(each.started))
        try:
            await until(lambda: all(each.worker.ready for each in both), *(each.running for each in both))
            yield both[0], both[1]
        finally:
            for each in both:
                each.worker.stop()
            await asyncio.gather(*(each.running for each in both))
            for each in both:
                await each.server.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, SCENARIO_S))


def verb(*arguments: str) -> str:
    """What a verb of the command line prints."""
    result = CliRunner().invoke(cli, arguments, prog_name="penstock")
    assert result.exit_code == 0, result.output
    return result.stdout


async def copied(kafka: str, topic: str, count: int) -> list[dict[str, Any]]:
    """What the topic of copies holds, once it holds that many."""
    while True:
        records = await read_range(KafkaOptions(kafka, {}), topic, 0, 0)
        copies = [record for record in records if not (record.key or b"").startswith(b"penstock/incarnation/")]
        if len(copies) >= count:
            return [json.loads(record.value or b"") for record in copies]


async def ended(served: Served, number: int) -> Any:
    """What is said of a savepoint when it is there, or will not be."""
    while True:
        state = await served.get(f"/admin/savepoints/{number}")
        if state["done"]:
            return state
        await asyncio.sleep(0.05)


async def savepoint_of(served: Served, place: Path) -> Any:
    begun = await served.post("/admin/savepoints", {"to": str(place)})
    state = await ended(served, begun["number"])
    assert state["error"] is None, state
    return state["savepoint"]


def id_at(served: Served, number: int = 0) -> str:
    """The id, of those that a task of this worker has, with the given number."""
    owned = {unit.task for unit in served.worker.units}
    return [id for id in (f"id-{n}" for n in range(200)) if key_group(id) % TASKS in owned][number]


def test_any_worker_takes_messages_and_shows_state_of_any_address(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_workers(kafka, kafka_app, tmp_path) as (one, other):
            here, there = id_at(one), id_at(other)
            assert await one.post(f"/send/t/count/{there}", {"count": 2}) == {
                "accepted": True,
                "address": f"t/count/{there}",
            }
            assert await one.post(f"/call/t/count/{there}", {"count": 3}) == 5
            # A repeat that comes to another worker, as a load balancer may send it, has no second effect.
            assert await one.post(f"/call/t/count/{here}", {"count": 7}, Idempotency_Key="once") == 7
            assert await other.post(f"/call/t/count/{here}", {"count": 7}, Idempotency_Key="once") == 7

            for each in (one, other):
                listed = await each.get("/admin/state?function=t/count")
                assert listed["ids"] == sorted([here, there])
                assert (await each.get("/admin/state?function=t/count&limit=1"))["ids"] == [min(here, there)]
                shown = await each.get(f"/admin/state/value?function=t/count&id={there}")
                assert (shown["exists"], shown["state"]) == (True, {"total": 5})

            wanted = {"function": "t/count", "id": there, "value": {"total": 50}, "expect": {"total": 5}}
            assert (await one.request("PUT", "/admin/state/value", wanted)).json["state"] == {"total": 50}
            refused = await one.request("PUT", "/admin/state/value", wanted)
            assert (refused.status, refused.json["code"]) == (409, "PEN0303")
            wrong = await one.request("PUT", "/admin/state/value", wanted | {"value": {"total": "x"}})
            assert (wrong.status, wrong.json["path"]) == (400, "$.total")
            assert (await one.request("GET", "/admin/state?function=t/none")).json["code"] == "PEN0105"

    run(scenario())


def test_any_worker_shows_redrives_and_drops_the_dead_letters_of_all(
    kafka: str, kafka_app: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with two_workers(kafka, kafka_app, tmp_path) as (one, other):
            ids = [id_at(one), id_at(other), id_at(other, 1)]
            for id in ids:
                answer = await one.request("POST", f"/call/t/count/{id}", {"count": -1})
                assert (answer.status, answer.json["code"]) == (500, "PEN0210")

            letters = await one.get("/admin/dead?function=t/count")
            assert sorted(each["id"] for each in letters) == sorted(ids)
            assert [each["number"] for each in letters] == sorted(each["number"] for each in letters)
            assert await other.get("/admin/dead?code=PEN0999") == []
            assert len(await other.get("/admin/dead?limit=2")) == 2
            assert await other.get("/admin/dead/counts") == [{"function": "t/count", "code": "PEN0210", "letters": 3}]
            number = {each["id"]: each["number"] for each in letters}
            copies = await copied(kafka, f"{kafka_app}.dead", 3)
            assert {(each["id"], each["number"]) for each in copies} == set(number.items())
            shown = await one.get(f"/admin/dead/{number[ids[1]]}")
            assert (shown["message"], shown["origin"]) == ({"type": "Hit", "count": -1}, f"POST /call/t/count/{ids[1]}")
            assert "ValueError" in shown["traceback"]

            set_ = {"function": "t/count", "id": ids[1], "value": {"total": 100}}
            await other.request("PUT", "/admin/state/value", set_)
            redrive = {"numbers": [number[ids[0]], number[ids[1]]]}
            assert await one.post("/admin/dead/redrive", redrive) == {"redriven": 2}
            assert await one.post("/admin/dead/drop", {"numbers": [number[ids[2]]]}) == {"dropped": 1}
            assert (await one.get(f"/admin/state/value?function=t/count&id={ids[1]}"))["state"] == {"total": 99}
            (again,) = await other.get("/admin/dead")
            assert again["id"] == ids[0]
            gone = await one.request("GET", f"/admin/dead/{number[ids[2]]}")
            assert (gone.status, gone.json["code"]) == (400, "PEN0308")

    run(scenario())


def test_any_worker_shows_resolves_and_cancels_what_waits_at_another(
    kafka: str, kafka_app: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with two_workers(kafka, kafka_app, tmp_path) as (one, other):
            here, there, third = id_at(one), id_at(other), id_at(other, 1)
            path = f"/call/t/order/{here}"
            asking = [asyncio.ensure_future(each.post(path, there, Idempotency_Key="once")) for each in (one, other)]
            ending = asyncio.ensure_future(one.request("POST", f"/call/t/order/{third}", here))
            while len(await other.get("/admin/calls")) < 4:
                pass
            for each in (one, other):
                clerk = await each.get(f"/admin/call?function=t/clerk&id={there}")
                assert (clerk["state"], clerk["chain"]) == ("waiting", [f"t/order/{here}"])
                order = await each.get(f"/admin/call?function=t/order&id={here}")
                assert [wait["name"] for wait in order["waits_for"]] == [f"t/clerk/{there}"]
                assert (await each.get(f"/calls/t/order/{here}/once"))["state"] == "running"
            attached = asyncio.ensure_future(other.get(f"/calls/t/order/{here}/once?wait=30s"))
            addresses = [f"t/clerk/{here}", f"t/clerk/{there}", f"t/order/{here}", f"t/order/{third}"]
            listed = json.loads(await asyncio.to_thread(verb, "calls", "list", "--json", "--url", one.url))
            assert [f"{row['function']}/{row['id']}" for row in listed] == sorted(addresses)

            await asyncio.to_thread(verb, "calls", "resolve", f"t/clerk/{there}", "approved", '"yes"', "--url", one.url)
            assert await asyncio.gather(*asking) == ["yes", "yes"]
            assert (await attached)["answer"] == "yes"
            await asyncio.to_thread(verb, "cancel", f"t/clerk/{here}", "--yes", "--url", other.url)
            assert "was cancelled before it answered" in (await ending).json["message"]
            assert await one.get("/admin/calls") == []

    run(scenario())


def test_schedules_run_once_also_through_a_hand_over_and_any_worker_shows_and_changes_them(
    kafka: str, kafka_app: str, tmp_path: Path
) -> None:
    names = [f"each-second-{number}" for number in range(4)]

    def ticking(name: str) -> App:
        app = counting(name)
        for each in names:
            app.schedule("* * * * * *", app.functions["t/count"], id=each, name=each, message=Hit())
        app.schedule("@yearly", app.functions["t/count"], id="year", name="year", message=Hit())
        return app

    async def total(served: Served, id: str) -> int:
        shown = await served.get(f"/admin/state/value?function=t/count&id={id}")
        count: int = shown["state"]["total"]
        return count

    async def scenario() -> None:
        async with two_workers(kafka, kafka_app, tmp_path, ticking) as (one, other):
            while await total(one, names[0]) < 2 or await total(other, names[-1]) < 2:
                pass  # Looking takes its time.
            one.worker.stop()
            await one.running
            before = [await total(other, each) for each in names]
            while any([await total(other, each) < count + 2 for each, count in zip(names, before, strict=True)]):
                pass
            for each in names:
                assert await other.post("/admin/schedules/pause", {"name": each}) == {"changed": True}
            rows = {row["schedule"]: row for row in await other.get("/admin/schedules")}
            assert list(rows) == [*names, "year"]
            for each in names:
                assert (rows[each]["paused"], rows[each]["runs"]) == (True, await total(other, each))
            assert await other.post("/admin/schedules/run", {"name": "year"}) == {"runs": 1}
            backfill = {"name": "year", "start": "2020-01-01", "end": "2022-01-01"}
            assert await other.post("/admin/schedules/backfill", backfill) == {"runs": 2}
            assert await total(other, "year") == 3

    run(scenario())


def test_checkpoints_status_and_metrics_are_those_of_the_application(
    kafka: str, kafka_app: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with two_workers(kafka, kafka_app, tmp_path) as (one, other):
            for each in (one, other):
                await one.post(f"/call/t/count/{id_at(each)}", {"count": 1})
            taken = (await one.post("/admin/checkpoints"))["checkpoint"]
            listed = await other.get("/admin/checkpoints")
            assert taken in [each["checkpoint"] for each in listed]
            shown = await other.get(f"/admin/checkpoints/{taken}")
            assert (shown["application"], len(shown["tasks"])) == (kafka_app, TASKS)
            unknown = await one.request("GET", "/admin/checkpoints/999999")
            assert (unknown.status, unknown.json["code"]) == (400, "PEN0309")
            saved = await savepoint_of(one, tmp_path / "saved")
            assert saved["parallelism"] == TASKS
            assert saved["checkpoint"] > taken
            shown = json.loads(verb("savepoint", "show", str(tmp_path / "saved"), "--json"))
            assert shown["application"] == kafka_app
            assert all(task["delta_bytes"] for task in shown["tasks"])
            again = await one.post("/admin/savepoints", {"to": str(tmp_path / "saved")})
            assert (await ended(one, again["number"]))["error"]["code"] == "PEN0431"

            await until(lambda: all(len(each.worker.link.workers) == 2 for each in (one, other)))
            await until(lambda: all(member.url for member in one.worker.link.workers))
            status = await one.get("/admin/status")
            shared = status["shared"]
            assert (status["attempt"], status["problem"], shared["worker"]) == (1, "", one.worker.name)
            assert sorted(shared["tasks"] + (await other.get("/admin/status"))["shared"]["tasks"]) == list(range(TASKS))
            assert {member["url"] for member in shared["members"]} == {one.url, other.url}
            assert shared["leader"] in (one.worker.name, other.worker.name)
            assert shared["lag"].keys() == {"inbox", "requests"}
            assert {each: read_owner(each.worker.config.directory).url for each in (one, other)} == {  # type: ignore[union-attr]
                one: one.url,
                other: other.url,
            }

            for each in (one, other):
                found = await each.metrics()
                assert found["penstock_messages_total function=t/count"] == 1
                assert found["penstock_tasks"] == 2
                assert found["penstock_checkpoints_total outcome=complete"] >= 2
                assert found["penstock_checkpoint_duration_seconds_count"] >= 2
                assert found["penstock_topic_lag_records topic=requests"] == 0
                assert found["penstock_kafka_read_records_total"] > 0
                assert found["penstock_kafka_written_records_total"] > 0
                assert found["penstock_rollbacks_total"] == 0
                assert found["penstock_frames_dropped_total"] == 0
                assert found["penstock_leader_silence_seconds"] < 5
                assert found["penstock_backpressure"] == 0
            leading = [each for each in (one, other) if (await each.metrics())["penstock_leader"]]
            assert len(leading) == 1
            assert (await leading[0].metrics())["penstock_decisions_total"] >= 3

            # The command line finds a worker by its directory, or by a URL.
            said = await asyncio.to_thread(verb, "status", "--dir", str(one.worker.config.directory))
            assert f"worker      {one.worker.name}  tasks {', '.join(map(str, shared['tasks']))}  " in said
            assert f"members     2  {'  '.join(member['url'] for member in shared['members'])}" in said
            assert "not taken   0 inbox  0 requests" in said
            assert await asyncio.to_thread(verb, "state", "get", "t/count", id_at(other), "--url", one.url) == (
                '{\n  "total": 1\n}\n'
            )
            taken = int((await asyncio.to_thread(verb, "checkpoint", "now", "--url", other.url)).split()[1])
            listed = json.loads(await asyncio.to_thread(verb, "checkpoint", "list", "--json", "--url", one.url))
            assert taken in [each["checkpoint"] for each in listed]

            # A hand-over is counted, and no count falls by it.
            other.worker.stop()
            await other.running
            await until(lambda: len(one.worker.units) == TASKS)
            found = await one.metrics()
            assert found["penstock_handoffs_total direction=adopted"] == 2
            assert (await one.get("/admin/status"))["shared"]["rollbacks"] == 0

    run(scenario())


def test_a_worker_is_ready_when_it_can_do_its_work(kafka: str, kafka_app: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        early = ClusterWorker(counting(kafka_app), Config(directory=tmp_path / "early"), _options(kafka, tmp_path))
        assert why_not_ready(early, 0) == "starting"
        async with two_workers(kafka, kafka_app, tmp_path) as (one, _):
            assert await one.get("/livez") == {"alive": True}
            assert await one.get("/readyz") == {"ready": True, "reason": ""}
            assert await one.get("/startupz") == {"started": True, "restoring": {}}
            now_ms = one.worker.started_at * 1000

            heard = one.worker.link.leader_heard_s
            one.worker.link.leader_heard_s = heard - 60
            assert why_not_ready(one.worker, now_ms).startswith("nobody has led for 6")
            one.worker.link.leader_heard_s = heard

            one.worker._writer.unavailable = "Kafka does not answer."
            assert why_not_ready(one.worker, now_ms) == "Kafka does not answer."
            one.worker._writer.unavailable = ""
            assert why_not_ready(one.worker, now_ms) == ""

            one.worker.stopping = True
            assert (await one.request("GET", "/readyz")).status == 503
            one.worker.stopping = False

    run(scenario())


def _options(kafka: str, directory: Path) -> ClusterOptions:
    return ClusterOptions(kafka=KafkaOptions(kafka, {}), store=str(directory / "store"))
