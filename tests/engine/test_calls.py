"""What waits: seen by people, told to end, let go on, and answered, over HTTP and in rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from penstock import App, Context, State
from penstock.engine.calls import list_calls, show_call, show_request
from penstock.engine.cli_status import page
from penstock.engine.client import Client as CommandLine
from penstock.engine.looks import Looks, answer
from penstock.engine.offline import Directory, open_stopped
from penstock.engine.pending import Pending
from penstock.engine.views import View, task_view
from penstock.errors import InvalidInput, Refused
from penstock.ids import Address, key_group
from penstock.records import Meta
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay
from tests.engine.serving import Client, serving


class Orders(State):
    done: int = 0


class Shop:
    """An order calls a shop assistant, who waits until somebody approves. `code` is what a handler does differently
    when it is run again."""

    def __init__(self, code: str = "") -> None:
        self.app = App("shop")
        self.code = code
        self.ended: list[str] = []

        @self.app.function("shop/order")
        async def order(ctx: Context[Orders], amount: int) -> str:
            told: str = await ctx.call("shop/assistant", f"of {ctx.id}{self.code}", amount)
            ctx.state.done += 1
            return f"{told} {ctx.state.done}"

        @self.app.function("shop/assistant")
        async def assistant(ctx: Context[None], amount: int) -> str:
            try:
                async with ctx.timeout("1h"):
                    name: str = await ctx.promise("approved", str)
            except asyncio.CancelledError:
                self.ended.append(ctx.id)
                raise
            return f"{amount} by {name}"

        @self.app.function("shop/clumsy", attempts=2, backoff="1h", backoff_max="1h")
        def clumsy(ctx: Context[Orders], amount: int) -> None:
            raise ValueError("oh no")

        @self.app.function("shop/lost", attempts=1)
        def lost(ctx: Context[Orders], amount: int) -> None:
            raise ValueError("oh no")


Scenario = Callable[[Client], Coroutine[Any, Any, None]]


def run(tmp_path: Path, scenario: Scenario, shop: Shop | None = None, **settings: Any) -> None:
    async def main() -> None:
        async with serving((shop or Shop()).app, tmp_path / "data", **settings) as client:
            await scenario(client)

    asyncio.run(main())


async def calls(client: Client, query: str = "") -> Any:
    return (await client.get(f"/admin/calls{query}")).json


async def waiting(client: Client, count: int) -> list[dict[str, Any]]:
    """The list, once it has so many rows that wait."""
    while True:
        rows: list[dict[str, Any]] = await calls(client)
        if [row["state"] for row in rows] == ["waiting"] * count:
            return rows


# Seen and changed from outside.


@pytest.mark.parametrize("parallelism", [1, 4])
def test_who_waits_for_whom_is_listed_and_shown(tmp_path: Path, parallelism: int) -> None:
    async def scenario(client: Client) -> None:
        asking = asyncio.ensure_future(client.post("/call/shop/order/7", "5"))
        assistant, order = await waiting(client, 2)

        assert (order["function"], order["id"], order["behind"]) == ("shop/order", "7", 0)
        assert order["called_by"] == "POST /call/shop/order/7"
        (wait,) = order["waits_for"]
        assert (wait["kind"], wait["name"]) == ("call", "shop/assistant/of 7")
        assert order["since"] <= wait["since"] <= assistant["since"]
        assert (assistant["called_by"], assistant["chain"]) == ("shop/order/7", ["shop/order/7"])
        assert [(each["kind"], each["name"]) for each in assistant["waits_for"]] == [("promise", "approved")]
        assert await calls(client, "?function=shop/order") == [order]
        assert await calls(client, "?limit=1") == [assistant]
        assert await calls(client, "?parked=true") == []

        shown = (await client.get("/admin/call?function=shop/assistant&id=of 7".replace(" ", "%20"))).json
        assert (shown["message"], shown["cancelled"], shown["parked"]) == (5, None, "")
        assert [(line["kind"], line["name"], line["arrived"]) for line in shown["journal"]] == [
            ("timeout", "3600000 ms", None),
            ("promise", "approved", None),
        ]

        await client.post("/promise/shop/assistant/of%207/approved", '"eve"')
        assert (await asking).json == "5 by eve 1"
        assert await calls(client) == []
        gone = await client.get("/admin/call?function=shop/order&id=7")
        assert (gone.status, gone.json["code"]) == (404, "PEN0312")

    run(tmp_path, scenario, parallelism=parallelism)


def test_what_waits_is_cancelled_and_puts_things_right(tmp_path: Path) -> None:
    shop = Shop()

    async def scenario(client: Client) -> None:
        asking = asyncio.ensure_future(client.post("/call/shop/order/7", "5"))
        await waiting(client, 2)

        done = await client.post("/admin/calls/cancel", '{"function": "shop/assistant", "id": "of 7"}')

        assert done.json == {"cancelled": True}
        answered = await asking
        assert answered.json["message"].startswith("shop/assistant/of 7 was cancelled before it answered.")
        assert shop.ended == ["of 7"]
        again = await client.post("/admin/calls/cancel", '{"function": "shop/assistant", "id": "of 7"}')
        assert (again.status, again.json["code"]) == (409, "PEN0270")

    run(tmp_path, scenario, shop)


def test_what_is_parked_says_why_and_is_resumed_or_cancelled(tmp_path: Path) -> None:
    """The code is another one after a restart, and the right one again later."""

    async def before(client: Client) -> None:
        await client.post("/send/shop/order/7", "5")
        await client.post("/send/shop/order/8", "5")
        await waiting(client, 4)
        await client.post("/admin/checkpoints")

    run(tmp_path, before)
    shop = Shop(code=" changed")

    async def after(client: Client) -> None:
        for number in (7, 8):
            assert (await client.post(f"/promise/shop/assistant/of%20{number}/approved", '"eve"')).status == 200
        while len(rows := await calls(client, "?parked=true")) < 2:
            pass
        (row, _) = rows
        assert (row["id"], row["state"]) == ("7", "parked")
        assert row["parked"].startswith("PEN0261 ")
        metrics = (await client.get("/metrics")).body.decode()
        assert 'penstock_invocations_parked{task="0"} 2.0' in metrics
        status = (await client.get("/admin/status")).json
        assert (status["waiting"], status["parked"]) == (0, 2)
        assert "\nhandlers    0 waiting  2 parked   <- penstock calls list --parked\n" in page(
            status | {"not_ready": "", "url": client.url}
        )
        shop.code = ""
        seven, eight = (f'{{"function": "shop/order", "id": "{number}"}}' for number in (7, 8))
        assert (await client.post("/admin/calls/resume", seven)).json == {"resumed": True}
        assert (await client.post("/admin/calls/cancel", eight)).json == {"cancelled": True}
        while await calls(client):
            pass
        assert (await client.get("/admin/state/value?function=shop/order&id=7")).json["state"] == {"done": 1}
        assert not (await client.get("/admin/state/value?function=shop/order&id=8")).json["exists"]
        nothing = await client.post("/admin/calls/resume", seven)
        assert (nothing.status, nothing.json["code"]) == (409, "PEN0269")
        assert 'penstock_invocations_parked{task="0"} 0.0' in (await client.get("/metrics")).body.decode()

    run(tmp_path, after, shop)


def test_a_message_that_is_to_be_tried_again_holds_its_address_too(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for _ in range(2):
            await client.post("/send/shop/clumsy/7", "5")
        while not (rows := await calls(client)) or not rows[0]["behind"]:
            pass
        (row,) = rows
        assert (row["state"], row["attempt"], row["behind"], row["since"]) == ("failed", 2, 1, None)
        assert row["next_try"] is not None
        shown = (await client.get("/admin/call?function=shop/clumsy&id=7")).json
        assert (shown["journal"], shown["line"]) == ([], [None])

    run(tmp_path, scenario)


def test_a_stopped_application_tells_the_same(tmp_path: Path) -> None:
    shop = Shop()
    seen: list[Any] = []

    async def scenario(client: Client) -> None:
        await client.post("/send/shop/order/7", "5")
        await client.post("/send/shop/order/7", "6")
        rows = await waiting(client, 2)
        while not rows[1]["behind"]:
            rows = await calls(client)
        seen.extend(rows)

    run(tmp_path, scenario, shop)

    with Directory(tmp_path / "data") as directory, open_stopped(shop.app, directory, note=print) as stopped:
        assert stopped.calls(typename=None, parked=False, limit=9) == seen
        assert stopped.held("shop/order", "7")["message"] == 5
        with pytest.raises(InvalidInput, match="PEN0105 shop/none is no function"):
            stopped.calls(typename="shop/none", parked=False, limit=9)
        with pytest.raises(InvalidInput, match="PEN0312 shop/order/8 is not busy"):
            stopped.held("shop/order", "8")


# Promises.


def test_a_promise_may_be_resolved_before_it_is_asked_for_and_once(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        path = "/promise/shop/assistant/a%2Fb/approved"
        assert (await client.post(path, '"eve"')).json == {
            "resolved": True,
            "address": "shop/assistant/a/b",
            "promise": "approved",
        }
        again = await client.post(path, '"adam"')
        assert (again.status, again.json["code"]) == (409, "PEN0268")
        assert (await client.post("/call/shop/assistant/a%2Fb", "5")).json == "5 by eve"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/promise/shop/none/7/approved", "1", 404, "PEN0105"),
        ("/promise/shop/order/approved", "1", 400, "PEN0203"),
        ("/promise/shop/order/7/", "1", 400, "PEN0610"),
        ("/promise/shop/order/7/approved", "{", 400, "PEN0610"),
        ("/promise/shop/order/7/approved", f'"{"x" * 2_000}"', 413, "PEN0204"),
        ("/admin/calls/cancel", '{"function": "shop/order", "id": ""}', 400, "PEN0203"),
        ("/admin/calls/cancel", '{"function": "shop/none", "id": "7"}', 404, "PEN0105"),
        ("/admin/calls/resume", "[]", 400, "PEN0610"),
    ],
)
def test_what_can_t_be_meant_is_refused(tmp_path: Path, path: str, body: str, status: int, code: str) -> None:
    async def scenario(client: Client) -> None:
        answered = await client.post(path, body)
        assert (answered.status, answered.json["code"]) == (status, code)

    run(tmp_path, scenario, message_bytes_max=1_000)


@pytest.mark.parametrize("query", ["?parked=perhaps", "?function=shop/none", "?limit=0"])
def test_a_list_that_can_t_be_meant_is_refused(tmp_path: Path, query: str) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.get(f"/admin/calls{query}")).status in (400, 404)

    run(tmp_path, scenario)


# Requests with an Idempotency-Key.


def test_a_repeat_attaches_to_what_runs_and_to_what_has_ended(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        path = "/call/shop/order/7"
        first = asyncio.ensure_future(client.post(path, "5", Idempotency_Key="k 1"))
        await waiting(client, 2)
        second = asyncio.ensure_future(client.post(path, "5", Idempotency_Key="k 1"))
        attached = asyncio.ensure_future(client.get("/calls/shop/order/7/k%201?wait=30s"))
        while (await calls(client, "?function=shop/order"))[0]["behind"] < 2:
            pass

        running = await client.get("/calls/shop/order/7/k%201")
        assert running.json == {"function": "shop/order", "id": "7", "key": "k 1", "state": "running"}
        assert (await client.get("/calls/shop/order/7/k%201?wait=10ms")).json == running.json
        await client.post("/promise/shop/assistant/of%207/approved", '"eve"')

        assert [(await each).json for each in (first, second)] == ["5 by eve 1"] * 2
        finished = running.json | {"state": "finished", "answer": "5 by eve 1"}
        assert (await attached).json == finished
        assert (await client.get("/calls/shop/order/7/k%201")).json == finished
        assert (await client.get("/calls/shop/order/7/k%201?wait=1s")).json == finished
        assert (await client.post(path, "5", Idempotency_Key="k 1")).json == "5 by eve 1"

    run(tmp_path, scenario)


def test_a_request_is_unknown_or_has_failed(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.get("/calls/shop/lost/7/k")).json["state"] == "unknown"
        assert (await client.get("/calls/shop/lost/7/k?wait=1s")).json["state"] == "unknown"
        await client.post("/send/shop/lost/7", "5", Idempotency_Key="k")
        failed = (await client.get("/calls/shop/lost/7/k?wait=30s")).json
        assert (failed["state"], failed["letter"], failed["code"]) == ("failed", 1, "PEN0210")
        assert failed["reason"] == "Handler raised ValueError: oh no"
        nowhere = await client.get("/calls/shop/lost/k")
        assert (nowhere.status, nowhere.json["code"]) == (400, "PEN0203")

    run(tmp_path, scenario)


def test_who_attaches_survives_a_restart_in_line(tmp_path: Path) -> None:
    """The one who asked is gone; what stood in line for them is taken out when its turn comes."""

    async def before(client: Client) -> None:
        await client.post("/send/shop/order/7", "5", Idempotency_Key="k")
        await waiting(client, 2)
        attached = asyncio.ensure_future(client.get("/calls/shop/order/7/k?wait=30s"))
        while not (await calls(client, "?function=shop/order"))[0]["behind"]:
            pass
        attached.cancel()

    run(tmp_path, before)

    async def after(client: Client) -> None:
        assert (await calls(client, "?function=shop/order"))[0]["behind"] == 1
        await client.post("/promise/shop/assistant/of%207/approved", '"eve"')
        assert (await client.get("/calls/shop/order/7/k?wait=30s")).json["answer"] == "5 by eve 1"
        assert await calls(client) == []

    run(tmp_path, after)


# The command line's client, and pages.


def test_the_client_of_the_command_line_says_what_http_says(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        command_line = CommandLine(client.url)
        await client.post("/send/shop/order/a%2Fb", "5")
        await waiting(client, 2)

        def ask() -> None:
            assert [row["id"] for row in command_line.calls(typename="shop/order", parked=False, limit=9)] == ["a/b"]
            assert command_line.calls(typename=None, parked=True, limit=9) == []
            assert command_line.held("shop/order", "a/b")["message"] == 5
            with pytest.raises(Refused, match="PEN0269"):
                command_line.resume("shop/order", "a/b")
            command_line.resolve("shop/assistant", "of a/b", "approved", "eve")
            with pytest.raises(Refused, match="PEN0270"):
                command_line.cancel("shop/assistant", "of a/b")

        await asyncio.to_thread(ask)

    run(tmp_path, scenario)


def test_addresses_of_all_tasks_come_in_order_however_small_the_pages_are() -> None:
    app = Shop().app
    overlays = [Overlay(MemoryBackend()) for _ in range(4)]
    pending = [Pending(overlay) for overlay in overlays]
    ids = [f"id-{number}" for number in range(20)]
    for number, id in enumerate(ids):
        held: Any = {}
        meta = Meta(idempotency_key="k") if id == "id-3" else None
        pending[key_group(id) % 4].hold(held, "shop/clumsy", (id, b"\x05", number, None, meta), attempt=1)
    tasks = [task_view(app, overlay, task=task, tasks=4) for task, overlay in enumerate(overlays)]

    async def ask(task: int, question: Any) -> Any:
        return answer(question, View([tasks[task]], 0), bytes_max=1)

    looks = Looks(4, ask)
    listed = asyncio.run(looks.calls(typename=None, parked=False, limit=15))
    assert [row["id"] for row in listed] == sorted(ids)[:15]
    view = View(tasks, 0)
    assert [row["id"] for row in list_calls(view, typename="shop/clumsy", after=("shop/clumsy", "id-5"))] == [
        "id-6",
        "id-7",
        "id-8",
        "id-9",
    ]
    assert asyncio.run(looks.calls(typename="shop/order", parked=False, limit=9)) == []
    assert show_call(view, Address("shop/clumsy", "id-3"))["state"] == "running"
    assert show_request(view, Address("shop/clumsy", "id-3"), "k")["state"] == "running"


def test_a_step_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    app = App("steps")

    @app.function("steps/asker")
    async def asker(ctx: Context[None], count: int) -> int:
        return sum([await ctx.run("length", len, "x" * number) for number in range(count)])

    async def main() -> None:
        async with serving(app, tmp_path / "data", interval_ms=30_000) as client:
            answer = await client.post("/call/steps/asker/a", "5")
            assert (answer.status, answer.json) == (200, 10)

    asyncio.run(main())
