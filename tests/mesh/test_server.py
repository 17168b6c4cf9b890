"""A host over HTTP, and what comes back over a real connection."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from penstock.errors import PenstockError
from penstock.ids import Address
from penstock.mesh.access import AccessLog
from penstock.mesh.caller import NoAnswer
from penstock.mesh.identity import Identity
from penstock.mesh.policies.outcomes import Failure
from penstock.mesh.policies.settings import TlsMode
from penstock.mesh.registry import Endpoint
from penstock.mesh.server import HostServer
from penstock.mesh.transport import HttpTransport, LocalTransport
from penstock.mesh.wire import Reply, Request, error_of, failure
from tests.mesh.authorities import authority, identity

BODY_MAX = 1_000


class Echo:
    """A host that answers with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.reply: Reply | None = None
        self.wait_s = 0.0

    async def handle(self, request: Request) -> Reply:
        self.asked.append(request)
        await asyncio.sleep(self.wait_s)
        if request.payload == b"fail":
            raise RuntimeError("a mistake of ours")
        return self.reply or Reply(200, request.payload)


class Served:
    def __init__(self, host: Echo, url: str, transport: HttpTransport) -> None:
        self.host = host
        self.url = url
        self.transport = transport
        self.endpoint = Endpoint("h", url)

    async def send(self, payload: bytes = b"\x01", timeout_s: float | None = 5.0, **fields: Any) -> Reply:
        request = Request(Address("shop/cart", "äpfel/7"), payload, **fields)
        return await self.transport.send(self.endpoint, request, timeout_s)


def served(test: Callable[[Served], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        async def call() -> None:
            host, transport = Echo(), HttpTransport()
            server = HostServer(host, body_bytes_max=BODY_MAX, access_log=AccessLog("host-1"))
            port = await server.start("127.0.0.1", 0)
            try:
                await test(Served(host, f"http://127.0.0.1:{port}", transport))
            finally:
                await transport.close()
                await server.close()

        asyncio.run(call())

    del run.__wrapped__
    return run


@served
async def test_a_request_arrives_as_it_was_sent(one: Served) -> None:
    reply = await one.send(key="k", attempt=3, caller=Address("shop/order", "1"), headers={"x-cohort": "beta"})

    assert reply == Reply(200, b"\x01")
    (asked,) = one.host.asked
    assert asked.address == Address("shop/cart", "äpfel/7")
    assert (asked.key, asked.attempt, asked.caller) == ("k", 3, Address("shop/order", "1"))
    assert asked.headers == {"x-cohort": "beta"}


@served
async def test_a_refusal_comes_back_with_all_that_the_caller_needs(one: Served) -> None:
    one.host.reply = failure(429, "PEN0847", "More than allowed.", refused=True, retry_after_s=2.0)

    assert await one.send() == one.host.reply


@served
async def test_a_body_that_is_too_large_is_refused_before_anything_is_begun(one: Served) -> None:
    reply = await one.send(bytes(BODY_MAX + 1))

    assert (reply.status, reply.refused, one.host.asked) == (413, True, [])
    assert error_of(reply, "t/a/1").code == "PEN0605"


@served
async def test_what_is_no_request_of_the_mesh_is_told(one: Served) -> None:
    async with aiohttp.ClientSession() as session:
        for method, path, headers, status, code in (
            ("GET", "/invoke/t/a/1", {}, 404, "PEN0611"),
            ("POST", "/other", {}, 404, "PEN0611"),
            ("POST", "/invoke/t/a/1", {"penstock-kind": "ask"}, 400, "PEN0800"),
        ):
            async with session.request(method, one.url + path, headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == (status, code)
    assert one.host.asked == []


@served
async def test_a_mistake_of_ours_ends_one_request(one: Served) -> None:
    reply = await one.send(b"fail")

    assert (reply.status, error_of(reply, "t/a/1").code) == (500, "PEN0801")
    assert (await one.send()).status == 200


@served
async def test_whoever_stops_waiting_does_not_stop_the_host(one: Served) -> None:
    one.host.wait_s = 0.5

    with pytest.raises(NoAnswer) as error:
        await one.send(timeout_s=0.3)

    assert error.value.why is Failure.TIMEOUT
    assert len(one.host.asked) == 1


def test_a_server_that_closes_waits_for_answers_under_way_and_not_for_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.mesh.server.CLOSE_S", 0.1)

    async def run() -> None:
        host, transport = Echo(), HttpTransport()
        host.wait_s = 60.0
        server = HostServer(host, body_bytes_max=BODY_MAX)
        port = await server.start("127.0.0.1", 0)
        asking = asyncio.create_task(Served(host, f"http://127.0.0.1:{port}", transport).send(timeout_s=None))
        while not host.asked:  # noqa: ASYNC110  # Of a host, which tells nobody.
            await asyncio.sleep(0.01)

        async with asyncio.timeout(5):
            await server.close()

        with pytest.raises(NoAnswer):
            await asking
        await transport.close()

    asyncio.run(run())


def test_a_host_that_is_not_there_is_a_failed_connection() -> None:
    async def run() -> None:
        transport = HttpTransport()
        try:
            with pytest.raises(NoAnswer) as error:
                await transport.send(Endpoint("h", "http://127.0.0.1:1"), Request(Address("t/a", "1"), b""), 1.0)
            assert error.value.why is Failure.CONNECT
        finally:
            await transport.close()

    asyncio.run(run())


def test_a_connection_that_ends_without_an_answer_is_a_reset() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def run() -> None:
        listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        transport = HttpTransport()
        async with listener:
            with pytest.raises(NoAnswer) as error:
                await transport.send(Endpoint("h", url), Request(Address("t/a", "1"), b""), 1.0)
        assert error.value.why is Failure.RESET
        await transport.close()

    asyncio.run(run())


def test_a_host_of_this_process_is_asked_directly_and_goes_on_when_nobody_waits() -> None:
    async def run() -> None:
        host, transport = Echo(), LocalTransport()
        transport.hosts["here"] = host
        host.wait_s = 0.02
        request = Request(Address("t/a", "1"), b"\x01")

        with pytest.raises(NoAnswer):
            await transport.send(Endpoint("here", ""), request, 0.001)
        with pytest.raises(NoAnswer) as error:
            await transport.send(Endpoint("elsewhere", ""), request, 1.0)

        assert error.value.why is Failure.CONNECT
        host.wait_s = 0.0
        assert await transport.send(Endpoint("here", ""), request, None) == Reply(200, b"\x01")

    asyncio.run(run())


def test_a_host_that_asks_itself_has_the_identity_it_has_elsewhere(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "shop", "shop")

    async def run() -> None:
        host, known = Echo(), Identity(folder)
        transport = LocalTransport(identity=known)
        transport.hosts["here"] = host

        await transport.send(Endpoint("here", ""), Request(Address("t/a", "1"), b""), None)

        assert host.asked[0].identity == known.id
        assert known.id.endswith("/sa/shop")

    asyncio.run(run())


def test_hosts_and_callers_with_certificates_know_one_another_and_strangers_are_refused(tmp_path: Path) -> None:
    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    host_folder, caller_folder = (identity(ours, tmp_path / name, name) for name in ("host", "caller"))
    stranger_folder = identity(theirs, tmp_path / "stranger", "stranger")

    async def run() -> None:
        host = Echo()
        server = HostServer(host, body_bytes_max=BODY_MAX, identity=Identity(host_folder), tls=TlsMode.STRICT)
        port = await server.start("127.0.0.1", 0)
        caller, stranger = HttpTransport(Identity(caller_folder)), HttpTransport(Identity(stranger_folder))
        plain = HttpTransport()
        request = Request(Address("t/a", "1"), b"\x01", identity="spiffe://demo.local/ns/default/sa/somebody-else")
        try:
            endpoint = Endpoint("h", f"https://127.0.0.1:{port}")
            assert (await caller.send(endpoint, request, 5.0)).status == 200
            assert host.asked[0].identity == "spiffe://demo.local/ns/default/sa/caller", "as proven, not as claimed"
            with pytest.raises(NoAnswer) as error:
                await stranger.send(endpoint, request, 5.0)
            assert error.value.why in (Failure.CONNECT, Failure.RESET)
            told = await plain.send(Endpoint("h", f"http://127.0.0.1:{port}"), request, 5.0)
            assert (told.status, error_of(told, "t/a/1").code) == (403, "PEN0875")
            assert len(host.asked) == 1
        finally:
            for transport in (caller, stranger, plain):
                await transport.close()
            await server.close()

    asyncio.run(run())


def test_the_access_log_tells_who_asked_whom_and_nothing_of_the_message(caplog: pytest.LogCaptureFixture) -> None:
    request = Request(Address("shop/cart", "alice"), b"secret", caller=Address("shop/order", "7"), attempt=2)

    with caplog.at_level("INFO", logger="penstock.access"):
        AccessLog("host-1").note(request, Reply(200, b"secret"), 0.0123)

    (line,) = [record.getMessage() for record in caplog.records]
    told = json.loads(line)
    assert (told["source"], told["destination"], told["status"], told["attempt"]) == (
        "shop/order",
        "shop/cart",
        200,
        2,
    )
    assert told["ms"] == 12.3
    assert "secret" not in line
    assert "alice" not in line


def test_errors_of_a_reply_keep_their_code() -> None:
    assert isinstance(error_of(failure(422, "PEN0210", "x"), "t/a/1"), PenstockError)
