"""Requests are passed on as they came, over connections that nobody is about to close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from penstock.mesh.caller import NoAnswer
from penstock.mesh.dapr.http_client import HttpClient
from penstock.mesh.policies.outcomes import Failure


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that says which connection it was asked over, and what came."""

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        if request.path == "/slow":
            await asyncio.sleep(1)
        _, port = request.transport.get_extra_info("peername")
        names = ",".join(sorted(name.lower() for name in request.headers))
        return web.Response(text=f"{port} {request.rel_url.raw_path_qs} {names} {len(await request.read())}")

    application = web.Application(client_max_size=4 << 20)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_a_connection_that_was_idle_for_too_long_is_not_used_again() -> None:
    async def check() -> None:
        async with echo() as url:
            client = HttpClient(idle_s=0.1)
            first, at_once = [(await client.ask("GET", url)).body.split()[0] for _ in range(2)]
            await asyncio.sleep(0.2)
            later = (await client.ask("GET", url)).body.split()[0]
            assert first == at_once != later
            await client.close()

    asyncio.run(check())


def test_nothing_is_added_that_was_not_sent_and_nothing_decoded() -> None:
    sent = [("x-ask", "why"), ("connection", "keep-alive"), ("host", "elsewhere")]

    async def check() -> None:
        async with echo() as url:
            client = HttpClient()
            answer = await client.ask("GET", f"{url}/a%2Fb?q=%20", headers=sent)
            _, path, names, size = answer.body.decode().split()
            assert (path, names, size) == ("/a%2Fb?q=%20", "accept,host,x-ask", "0")
            await client.close()

    asyncio.run(check())


def test_a_large_body_goes_through() -> None:
    async def check() -> None:
        async with echo() as url:
            client = HttpClient()
            answer = await client.ask("POST", url, body=b"x" * (1 << 20) + b"x")
            assert answer.body.split()[-1] == b"1048577"
            await client.close()

    asyncio.run(check())


def test_why_there_is_no_answer_is_said() -> None:
    async def check() -> None:
        client = HttpClient()
        with pytest.raises(NoAnswer) as nobody:
            await client.ask("GET", "http://127.0.0.1:1/")
        assert nobody.value.why is Failure.CONNECT
        async with echo() as url:
            with pytest.raises(NoAnswer) as late:
                await client.ask("GET", f"{url}/slow", timeout_s=0.05)
        assert late.value.why is Failure.TIMEOUT
        await client.close()

    asyncio.run(check())
