"""The gateway is to programs what a running application is: `penstock.engine.client.Client` can't tell them apart."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from penstock import App, Context, FunctionError, InvalidInput, Log, Refused, State, Table, Unavailable
from penstock.engine.cli_status import page
from penstock.engine.client import Client
from penstock.errors import PenstockError
from penstock.mesh.caller import Caller
from penstock.mesh.doing import Looks
from penstock.mesh.edges import Edges
from penstock.mesh.gateway import Gateway
from penstock.mesh.host import functions_of
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.node import Node
from penstock.mesh.pages import metrics_page, pages_of
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet
from penstock.mesh.registry import LocalRegistry
from penstock.mesh.server import HostServer
from penstock.mesh.sqlite_store import SqliteStore
from penstock.mesh.transport import HttpTransport

MESSAGE_MAX = 10_000
app = App("gateway")


class Cart(State):
    items: Table[str, int] = Table()
    history: Log[str] = Log()
    total: int = 0


@app.function("shop/cart", attempts=1)
def cart(ctx: Context[Cart], name: str) -> int:
    if not name:
        raise ValueError("no name")
    ctx.state.items[name] = ctx.state.items.get(name, 0) + 1
    ctx.state.history.append(name)
    ctx.state.total += 1
    return ctx.state.total


@app.function("shop/approval", attempts=1)
async def approval(ctx: Context[None], what: str) -> str:
    answer: str = await ctx.promise("decision", str)
    return f"{what}: {answer}"


class Shop:
    """A gateway with one host behind it."""

    def __init__(self, gateway_url: str, host_url: str, token: str) -> None:
        self.url = gateway_url
        self.host_url = host_url
        self.client = Client(gateway_url, token)

    async def ask(self, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(question, *arguments, **options)


def shop(test: Callable[[Shop], Awaitable[None]], *, token: str = "", hosts: int = 1) -> Callable[[Path], None]:
    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(_in_shop(test, tmp_path, token, hosts))

    del run.__wrapped__
    return run


async def _in_shop(test: Callable[[Shop], Awaitable[None]], directory: Path, token: str, hosts: int) -> None:
    registry, store = LocalRegistry(), SqliteStore(directory)
    policies, transport = Policies(PolicySet(), draw=lambda: 0.5), HttpTransport()
    await registry.open()
    node = Node(app, store, registry, policies, transport=transport)
    await node.start()
    server = HostServer(node.host, body_bytes_max=MESSAGE_MAX, pages=pages_of(node, None))
    host_url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    if hosts:
        await node.announce(host_url)
    edges = Edges()
    gateway = Gateway(
        app,
        functions_of(app, MESSAGE_MAX),
        Caller(registry, policies, transport, edges),
        store,
        Looks(registry, app.functions, transport),
        host="127.0.0.1",
        token=token,
        message_bytes_max=MESSAGE_MAX,
        ready=lambda: "" if registry.view().endpoints else "no host is ready",
        pages=metrics_page(MeshMetrics(app.name, edges, policies)),
    )
    try:
        await test(Shop(await gateway.start(0), host_url, token))
    finally:
        await gateway.close()
        await node.drain(1.0, notice_s=0)
        await server.close()
        await node.close()
        await transport.close()
        await store.close()


@shop
async def test_a_client_calls_and_sends(one: Shop) -> None:
    assert await one.ask(one.client.call, "shop/cart", "alice", b'"tea"') == 1
    assert await one.ask(one.client.call, "shop/cart", "alice", b'"milk"', idempotency_key="k") == 2
    assert await one.ask(one.client.call, "shop/cart", "alice", b'"milk"', idempotency_key="k") == 2
    sent = await one.ask(one.client.send, "shop/cart", "alice", b'"tea"', idempotency_key="s")
    assert sent == {"accepted": True, "address": "shop/cart/alice"}


@shop
async def test_it_reads_what_is_committed(one: Shop) -> None:
    for name in (b'"tea"', b'"milk"', b'"tea"'):
        await one.ask(one.client.call, "shop/cart", "alice", name)
    await one.ask(one.client.call, "shop/cart", "bob", b'"tea"')

    assert await one.ask(one.client.state_ids, "shop/cart", prefix="", limit=10) == ["alice", "bob"]
    assert await one.ask(one.client.state_ids, "shop/cart", prefix="b", limit=10) == ["bob"]
    assert await one.ask(one.client.state, "shop/cart", "alice") == {
        "function": "shop/cart",
        "id": "alice",
        "exists": True,
        "state": {"total": 3},
        "tables": {"items": [{"key": "milk", "value": 1}, {"key": "tea", "value": 2}]},
        "logs": {"history": ["tea", "milk", "tea"]},
    }
    assert [row["function"] for row in await one.ask(one.client.functions)] == [
        "shop/approval",
        "shop/cart",
    ]


@shop
async def test_a_promise_is_kept_through_it(one: Shop) -> None:
    waiting = asyncio.ensure_future(one.ask(one.client.call, "shop/approval", "a", b'"order 7"'))

    await one.ask(one.client.resolve, "shop/approval", "a", "decision", "yes")

    assert await waiting == "order 7: yes"


@shop
async def test_dead_letters_are_shown_and_sent_again(one: Shop) -> None:
    await one.ask(one.client.send, "shop/cart", "alice", b'""', idempotency_key="s")
    letters: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not letters:
            letters = await one.ask(one.client.letters, typename="shop/cart", code="PEN0210", limit=10)
    (letter,) = letters
    assert (letter["function"], letter["id"], letter["code"]) == ("shop/cart", "alice", "PEN0210")
    assert letter["reason"] == "Handler raised ValueError: no name"
    assert await one.ask(one.client.letters, typename="shop/approval", code=None, limit=10) == []
    assert await one.ask(one.client.letter_counts) == [{"function": "shop/cart", "code": "PEN0210", "letters": 1}]
    shown = await one.ask(one.client.letter, letter["number"])
    assert (shown["message"], shown["caller"]) == ("", None)

    assert await one.ask(one.client.redrive, [letter["number"]]) == 1
    again: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not again:
            again = await one.ask(one.client.letters, typename=None, code=None, limit=10)
    assert again[0]["number"] > letter["number"]
    assert await one.ask(one.client.drop, [again[0]["number"]]) == 1
    with pytest.raises(InvalidInput, match="PEN0308"):
        await one.ask(one.client.letter, again[0]["number"])


@shop
async def test_errors_reach_the_client_as_what_says_what_to_do(one: Shop) -> None:
    for kind, id, body, code in (
        (FunctionError, "alice", b'""', "PEN0210"),
        (InvalidInput, "alice", b"7", "PEN0201"),
        (InvalidInput, "alice", b'"' + b"x" * MESSAGE_MAX + b'"', "PEN0204"),
    ):
        with pytest.raises(kind) as error:
            await one.ask(one.client.call, "shop/cart", id, body)
        assert error.value.code == code
    with pytest.raises(InvalidInput) as unknown:
        await one.ask(one.client.call, "shop/none", "alice", b"1")
    assert unknown.value.code == "PEN0105"
    with pytest.raises(Unavailable) as late:
        await one.ask(one.client.call, "shop/approval", "never", b'"x"', timeout="20ms")
    assert late.value.code in ("PEN0802", "PEN0842")


def test_without_the_token_nothing_is_done(tmp_path: Path) -> None:
    async def test(one: Shop) -> None:
        stranger = Client(one.url, "wrong")
        with pytest.raises(Refused) as error:
            await one.ask(stranger.call, "shop/cart", "alice", b'"tea"')
        assert error.value.code == "PEN0607"
        assert await one.ask(one.client.call, "shop/cart", "alice", b'"tea"') == 1

    shop(test, token="secret")(tmp_path)


def test_without_a_host_it_is_not_ready_and_says_so(tmp_path: Path) -> None:
    async def test(one: Shop) -> None:
        assert await one.ask(one.client.ready) == "no host is ready"
        with pytest.raises(Unavailable) as error:
            await one.ask(one.client.call, "shop/cart", "alice", b'"tea"')
        assert error.value.code == "PEN0841"

    shop(test, hosts=0)(tmp_path)


def test_that_there_is_no_host_is_logged_once_for_each_function(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(one: Shop) -> None:
        for _ in range(5):
            for function in ("cart", "approval"):
                with pytest.raises(Unavailable):
                    await one.ask(one.client.call, f"shop/{function}", "alice", b'"tea"')

    monkeypatch.setattr("penstock.logs.SAY_AGAIN_S", 1e9)
    shop(test, hosts=0)(tmp_path)

    told = [record.getMessage() for record in caplog.records if "PEN0841" in record.getMessage()]
    assert len(told) == 2
    assert "serves shop/cart" in told[0]


@shop
async def test_an_id_with_a_newline_is_refused_for_that(one: Shop) -> None:
    async with aiohttp.ClientSession() as session:
        url = URL(f"{one.url}/call/shop/cart/a%0Ab", encoded=True)
        async with session.post(url, data='"tea"') as response:
            told = await response.json()

    assert (response.status, told["code"]) == (400, "PEN0610")
    assert r"a\nb" in told["message"]


@shop
async def test_hosts_say_how_they_are(one: Shop) -> None:
    async with aiohttp.ClientSession() as session:
        for group in ("liveness", "readiness"):
            async with session.get(f"{one.host_url}/actuator/health/{group}") as response:
                assert (response.status, json.loads(await response.read())["status"]) == (200, "UP")
        async with session.get(f"{one.host_url}/actuator/info") as response:
            assert json.loads(await response.read())["app"]["name"] == "gateway"


@shop
async def test_figures_are_for_prometheus(one: Shop) -> None:
    await one.ask(one.client.call, "shop/cart", "alice", b'"tea"')

    async with aiohttp.ClientSession() as session:
        async with session.get(f"{one.url}/metrics") as response:
            gateway = await response.text()
        async with session.get(f"{one.host_url}/metrics") as response:
            host = await response.text()

    edge = 'destination="shop/cart"'
    assert f'penstock_mesh_requests_total{{{edge},response_code="200",source="outside"}} 1.0' in gateway
    assert f'penstock_mesh_success_ratio{{{edge},kind="actual",source="outside"}} 1.0' in gateway
    assert f'penstock_mesh_request_duration_seconds_count{{{edge},source="outside"}} 1.0' in gateway
    assert f"penstock_mesh_upstream_rq_retry_total{{{edge}}} 0.0" in gateway
    assert "penstock_mesh_host_requests_active 0.0" in host


async def waiting_for(one: Shop, id: str) -> asyncio.Future[Any]:
    """A call that has come to where its handler waits."""
    call = asyncio.ensure_future(one.ask(one.client.call, "shop/approval", id, b'"x"'))
    waits = 0
    while not waits:
        await asyncio.sleep(0.005)
        waits = sum(each["waits"] for each in await one.ask(one.client.calls, typename=None, parked=False, limit=9))
    return call


@shop
async def test_what_waits_is_shown_and_cancelled(one: Shop) -> None:
    call = await waiting_for(one, "a")

    (row,) = await one.ask(one.client.calls, typename="shop/approval", parked=False, limit=9)
    assert (row["function"], row["id"], row["state"], row["behind"]) == ("shop/approval", "a", "waiting", 0)
    assert [(each["kind"], each["name"]) for each in row["waits_for"]] == [("promise", "decision")]
    assert await one.ask(one.client.held, "shop/approval", "a") == row | {"journal": [], "line": []}
    await one.ask(one.client.cancel, "shop/approval", "a")
    with pytest.raises(FunctionError) as error:
        await call

    assert error.value.code == "PEN0272"
    assert await one.ask(one.client.calls, typename=None, parked=False, limit=9) == []
    for question in (one.client.cancel, one.client.held):
        with pytest.raises(PenstockError) as idle:
            await one.ask(question, "shop/approval", "a")
        assert idle.value.code in ("PEN0270", "PEN0312")


@shop
async def test_its_status_is_shown_as_that_of_a_running_application(one: Shop) -> None:
    await one.ask(one.client.call, "shop/cart", "alice", b'"tea"')
    with suppress(FunctionError):
        await one.ask(one.client.call, "shop/cart", "alice", b'""')
    call = await waiting_for(one, "a")

    found = await one.ask(one.client.status)
    shown = page(found | {"url": one.url, "not_ready": ""}, found)

    assert found["functions"] == [
        {"function": "shop/approval", "messages": 1, "failures": 0, "queued": 0},
        {"function": "shop/cart", "messages": 2, "failures": 1, "queued": 0},
    ]
    assert (found["waiting"], found["dead_letters"]) == (1, 0)
    assert f"hosts       {one.host_url}" in shown
    await one.ask(one.client.cancel, "shop/approval", "a")
    with suppress(FunctionError):
        await call


@shop
async def test_what_a_mesh_has_not_is_said_in_words(one: Shop) -> None:
    with pytest.raises(InvalidInput) as error:
        await one.ask(one.client.checkpoints)

    assert error.value.code == "PEN0611"
    assert "no checkpoints" in error.value.message
