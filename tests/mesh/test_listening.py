"""Who may connect, under each mode, over real connections on loopback; and what becomes of them at a rotation."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from penstock.mesh.identity import Identity, load_credentials, peer_of
from penstock.mesh.listening import Listening
from penstock.mesh.policies.settings import TlsMode
from tests.mesh.authorities import authority, identity


@asynccontextmanager
async def serving(own: Identity, mode: TlsMode = TlsMode.STRICT) -> AsyncIterator[int]:
    """A server that says who asks. Yields its port."""

    async def who(request: web.Request) -> web.Response:
        return web.Response(text=peer_of(request.transport))

    application = web.Application()
    application.router.add_get("/", who)
    runner = web.AppRunner(application)
    await runner.setup()
    assert runner.server is not None
    listener = socket.create_server(("127.0.0.1", 0))
    listening = Listening(listener, runner.server, own, mode)
    await listening.start()
    try:
        yield listener.getsockname()[1]
    finally:
        await listening.close()
        await runner.cleanup()


async def asked(url: str, context: ssl.SSLContext | None = None) -> str:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
        session.get(url, ssl=context or False) as response,
    ):
        response.raise_for_status()
        return await response.text()


async def refused(port: int, context: ssl.SSLContext) -> aiohttp.ClientError:
    """What a caller is told."""
    with pytest.raises(aiohttp.ClientError) as raised:
        await asked(f"https://127.0.0.1:{port}/", context)
    return raised.value


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_knows_the_other(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    issuer = authority(tmp_path / "ca")

    async def check() -> None:
        own = Identity(identity(issuer, tmp_path / "host"))
        caller = load_credentials(identity(issuer, tmp_path / "caller", "shop"))
        async with serving(own) as port:
            assert await asked(f"https://127.0.0.1:{port}/", caller.client) == "spiffe://demo.local/ns/default/sa/shop"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())


@pytest.mark.parametrize("mode", [TlsMode.STRICT, TlsMode.PERMISSIVE])
def test_a_caller_without_a_certificate_is_refused(tmp_path: Path, mode: TlsMode) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "host"))
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname = False
    nobody.verify_mode = ssl.CERT_NONE

    async def check() -> None:
        async with serving(own, mode) as port:
            await refused(port, nobody)

    asyncio.run(check())


def test_strict_answers_a_plain_caller_with_what_to_do(tmp_path: Path) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "host"))

    async def check() -> None:
        async with (
            serving(own) as port,
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/", data=b"x" * 100_000) as response,
        ):
            assert response.status == 403
            assert json.loads(await response.text())["code"] == "PEN0875"

    asyncio.run(check())


def test_permissive_serves_a_plain_caller_as_nobody(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")
    own = Identity(identity(issuer, tmp_path / "host"))

    async def check() -> None:
        async with serving(own, TlsMode.PERMISSIVE) as port:
            assert await asked(f"http://127.0.0.1:{port}/") == ""
            assert (await asked(f"https://127.0.0.1:{port}/", own.client)).endswith("/sa/shop")

    asyncio.run(check())


def test_another_authority_is_a_stranger_on_both_sides(tmp_path: Path) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "host"))
    stranger = load_credentials(identity(authority(tmp_path / "other"), tmp_path / "stranger"))

    async def check() -> None:
        async with serving(own) as port:
            await refused(port, stranger.client)
            stranger.client.verify_mode = ssl.CERT_NONE
            stranger.client.sslobject_class = ssl.SSLObject
            await refused(port, stranger.client)

    asyncio.run(check())


def test_another_trust_domain_of_a_trusted_authority_is_a_stranger(tmp_path: Path) -> None:
    """Two authorities in one bundle: to be trusted for one domain is not to be trusted for the other."""
    ours, theirs = authority(tmp_path / "ca"), authority(tmp_path / "other", "other.local")
    host, folder = identity(ours, tmp_path / "host"), identity(theirs, tmp_path / "caller")
    both = (ours / "ca.crt").read_bytes() + (theirs / "ca.crt").read_bytes()
    for one in (host, folder):
        (one / "ca.crt").write_bytes(both)
    caller = Identity(folder)

    async def check() -> None:
        async with serving(Identity(host)) as port:
            said = caller.explain(await refused(port, caller.client), "the host")
            assert "/sa/shop is not of the trust domain other.local" in str(said)

    asyncio.run(check())


def test_a_caller_whose_certificate_has_expired_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    issuer = authority(tmp_path / "ca")
    own = Identity(identity(issuer, tmp_path / "host"))
    folder = identity(issuer, tmp_path / "caller", expired=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    async def check() -> None:
        async with serving(own) as port:
            await refused(port, context)

    asyncio.run(check())
    assert "PEN0874 A connection from 127.0.0.1 was refused: certificate has expired." in caplog.text


def test_a_host_whose_certificate_has_expired_is_said(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")
    caller = Identity(identity(issuer, tmp_path / "caller"))
    folder = identity(issuer, tmp_path / "host", expired=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    async def check() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            said = caller.explain(await refused(port, caller.client), "the host")
            assert str(said).startswith("PEN0873 No TLS connection to the host: certificate has expired.")

    asyncio.run(check())


def test_rotation_of_everything_under_load_loses_no_request(tmp_path: Path) -> None:
    """The authority too: both are trusted while certificates of the new one are put in."""
    old, new = authority(tmp_path / "old"), authority(tmp_path / "new")
    folders = [tmp_path / "host", tmp_path / "caller"]
    for folder in folders:
        identity(old, folder, folder.name)

    async def check() -> None:
        host, caller = Identity(folders[0]), Identity(folders[1])
        answers: list[str] = []
        done = False

        async def load(session: aiohttp.ClientSession, url: str) -> None:
            while not done:
                async with session.get(url, ssl=caller.client) as response:
                    answers.append(await response.text())

        async with serving(host) as port, aiohttp.ClientSession() as session:
            loading = [asyncio.create_task(load(session, f"https://127.0.0.1:{port}/")) for _ in range(4)]
            both = (old / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes()
            for issuer, trusted in ((old, both), (new, both), (new, (new / "ca.crt").read_bytes())):
                for folder, held in zip(folders, (host, caller), strict=True):
                    before = held.server
                    identity(issuer, folder, folder.name)
                    (folder / "ca.crt").write_bytes(trusted)
                    await held.refresh()
                    assert held.server is not before
                    served = len(answers)
                    while len(answers) < served + 20:  # noqa: ASYNC110 - of four that load, any may be the next.
                        await asyncio.sleep(0.005)
            done = True
            await asyncio.gather(*loading)
        assert set(answers) == {"spiffe://demo.local/ns/default/sa/caller"}

    asyncio.run(check())


def test_who_says_nothing_or_leaves_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.mesh.listening.FIRST_BYTE_S", 0.05)
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "host"))

    async def check() -> None:
        async with serving(own) as port:
            silent, writer = await asyncio.open_connection("127.0.0.1", port)
            _, leaver = await asyncio.open_connection("127.0.0.1", port)
            leaver.close()
            assert (await asked(f"https://127.0.0.1:{port}/", own.client)).endswith("/sa/shop")
            assert await asyncio.wait_for(silent.read(), 5) == b""
            writer.close()

    asyncio.run(check())


def test_a_stranger_that_tries_again_and_again_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "host"))
    stranger = load_credentials(identity(authority(tmp_path / "other"), tmp_path / "stranger"))
    stranger.client.verify_mode = ssl.CERT_NONE
    stranger.client.sslobject_class = ssl.SSLObject

    async def check() -> None:
        async with serving(own) as port:
            for _ in range(3):
                await refused(port, stranger.client)

    asyncio.run(check())
    assert caplog.text.count("PEN0874 A connection from 127.0.0.1 was refused") == 1
