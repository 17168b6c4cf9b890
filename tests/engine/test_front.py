"""What a supervisor puts together of its workers, and how it passes requests on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from penstock.engine.cluster.front import Front, merge_metrics, merge_status
from penstock.engine.cluster.supervisor import Plan, Supervisor
from penstock.engine.config import Config
from tests.router.sink_contract import synchronous

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_metrics_of_all_stand_together_with_a_label_that_says_whose_they_are() -> None:
    one = '# HELP a_total About a.\n# TYPE a_total counter\na_total{f="x y"} 1.0\n'
    one += "# HELP b About b.\n# TYPE b gauge\nb 2.0\n"
    other = one.replace("1.0", "3.0") + "# HELP c About c.\n# TYPE c gauge\nc{} 4.0\n"

    assert merge_metrics({"worker-0": one, "worker-1": other}).splitlines() == [
        "# HELP a_total About a.",
        "# TYPE a_total counter",
        'a_total{worker="worker-0",f="x y"} 1.0',
        'a_total{worker="worker-1",f="x y"} 3.0',
        "# HELP b About b.",
        "# TYPE b gauge",
        'b{worker="worker-0"} 2.0',
        'b{worker="worker-1"} 2.0',
        "# HELP c About c.",
        "# TYPE c gauge",
        'c{worker="worker-1"} 4.0',
    ]


def test_the_status_of_all_adds_up() -> None:
    one = {
        "app": "shop",
        "uptime_s": 2.0,
        "problem": "",
        "checkpoint": {"last": None, "age_s": None, "interval_s": 0.2},
        "functions": [{"function": "shop/a", "messages": 1, "failures": 0}],
        "ingresses": [{"ingress": "in", "records": 1, "lag": None, "done": True}],
        "dead_letters": 1,
        "shared": {"lag": {"inbox": 1, "requests": 2}, "paused": False},
    }
    other = {
        "app": "shop",
        "uptime_s": 3.0,
        "problem": "no disk",
        "checkpoint": {"last": 7, "age_s": 0.1, "interval_s": 0.2},
        "functions": [{"function": "shop/a", "messages": 4, "failures": 1}],
        "ingresses": [{"ingress": "in", "records": 2, "lag": 5, "done": False}],
        "dead_letters": 2,
        "shared": {"lag": {"inbox": 10, "requests": 0}, "paused": True},
    }

    assert merge_status({"worker-0": one, "worker-1": other}) == {
        "app": "shop",
        "uptime_s": 3.0,
        "problem": "no disk",
        "checkpoint": {"last": 7, "age_s": 0.1, "interval_s": 0.2},
        "functions": [{"function": "shop/a", "messages": 5, "failures": 1}],
        "ingresses": [{"ingress": "in", "records": 3, "lag": 5, "done": False}],
        "dead_letters": 3,
        "shared": None,
        "lag": {"inbox": 11, "requests": 2},
        "paused": ["worker-1"],
    }


class Fronted:
    """A front with workers that answer as they are told."""

    def __init__(self, url: str, session: aiohttp.ClientSession, supervisor: Supervisor) -> None:
        self.url = url
        self.session = session
        self.supervisor = supervisor

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, f"{self.url}{path}", data=body, headers=named) as response:
            return response.status, await response.read()


@asynccontextmanager
async def fronted(*workers: Handler | None) -> AsyncIterator[Fronted]:
    """None stands for a worker that has a URL, and where nobody listens any more."""
    plan = Plan(flags={}, directory=Path(), workers=len(workers), port=0, stop_timeout_s=1)
    supervisor = Supervisor(plan)
    runners = []
    for place, handler in zip(supervisor.workers, workers, strict=True):
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler or refuse)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        place.url, place.working = f"http://127.0.0.1:{runner.addresses[0][1]}", True
        if handler is None:
            await runner.cleanup()
        else:
            runners.append(runner)
    front = Front(supervisor, Config(port=0, body_bytes_max=1_000))
    url = await front.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Fronted(url, session, supervisor)
    finally:
        await front.close()
        for runner in runners:
            await runner.cleanup()


async def refuse(request: web.Request) -> web.Response:
    return web.json_response({"code": "PEN0607", "message": "A token is required."}, status=401)


async def echo(request: web.Request) -> web.Response:
    given = request.headers.get("Authorization", "")
    return web.Response(text=f"{request.method} {request.raw_path} {given} {await request.text()}", status=202)


async def hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@synchronous
async def test_a_request_is_passed_on_as_it_came() -> None:
    async with fronted(echo) as front:
        answer = await front.ask("POST", "/send/shop/a/x%2Fy?z=1", b"5", Authorization="Bearer t")

    assert answer == (202, b"POST /send/shop/a/x%2Fy?z=1 Bearer t 5")


@synchronous
async def test_a_worker_that_is_not_there_any_more_is_passed_over() -> None:
    async with fronted(None, echo) as front:
        answers = [(await front.ask("POST", "/send/shop/a/x"))[0] for _ in range(4)]

    assert answers == [202] * 4


@synchronous
async def test_a_request_that_may_have_been_carried_out_is_not_repeated_unless_that_does_no_harm() -> None:
    async with fronted(hang_up, echo) as front:
        plainly = [await front.ask("POST", "/send/shop/a/x") for _ in range(2)]
        keyed = [(await front.ask("POST", "/send/shop/a/x", Idempotency_Key="k"))[0] for _ in range(2)]
        read = [(await front.ask("GET", "/admin/functions"))[0] for _ in range(2)]

    assert sorted(status for status, _ in plainly) == [202, 503]
    assert next(body for status, body in plainly if status == 503).startswith(b'{"code":"PEN0776"')
    assert (keyed, read) == ([202, 202], [202, 202])


@synchronous
async def test_with_no_worker_it_says_so() -> None:
    async with fronted(None) as front:
        status, body = await front.ask("POST", "/call/shop/a/x")

    assert status == 503
    assert body.startswith(b'{"code":"PEN0777"')


@synchronous
async def test_a_body_that_is_too_large_is_refused_here() -> None:
    async with fronted(echo) as front:
        status, body = await front.ask("POST", "/send/shop/a/x", b"x" * 1_001)

    assert status == 413
    assert body.startswith(b'{"code":"PEN0605"')


@synchronous
async def test_who_may_not_ask_a_worker_may_not_ask_for_all() -> None:
    async with fronted(refuse, refuse) as front:
        asked = [await front.ask("GET", path) for path in ("/metrics", "/admin/status")]

    assert [status for status, _ in asked] == [401, 401]


@synchronous
async def test_how_far_a_savepoint_is_says_the_worker_that_takes_it() -> None:
    async def takes(request: web.Request) -> web.Response:
        return web.json_response({"done": True})

    async def knows_nothing(request: web.Request) -> web.Response:
        return web.json_response({"code": "PEN0439"}, status=400)

    async with fronted(knows_nothing, takes) as front:
        answers = [await front.ask("GET", "/admin/savepoints/7") for _ in range(3)]
        assert answers == [(200, b'{"done": true}')] * 3
    async with fronted(knows_nothing, None) as front:
        assert await front.ask("GET", "/admin/savepoints/7") == (400, b'{"code": "PEN0439"}')


@synchronous
async def test_it_is_ready_when_every_worker_is() -> None:
    async def ready(request: web.Request) -> web.Response:
        return web.json_response({"ready": True, "reason": ""})

    async def restores(request: web.Request) -> web.Response:
        return web.json_response({"ready": False, "reason": "restores tasks"}, status=503)

    async with fronted(ready, ready) as front:
        assert await front.ask("GET", "/readyz") == (200, b'{"ready":true,"reason":""}')
        front.supervisor.workers[1].working = False
        assert await front.ask("GET", "/readyz") == (503, b'{"ready":false,"reason":"worker-1: starting"}')
    async with fronted(ready, restores) as front:
        assert await front.ask("GET", "/readyz") == (503, b'{"ready":false,"reason":"worker-1: restores tasks"}')
    async with fronted(ready, None) as front:
        assert await front.ask("GET", "/readyz") == (503, b'{"ready":false,"reason":"worker-1: does not answer"}')
