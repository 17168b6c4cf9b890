"""The relay between a client and a server: delayed, cut in one direction or both, and with answers that get lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from penstock.compare.relay import Relay, Way

PATIENCE_S = 20


class Server:
    """Answers every line with the same in capitals, and notes what it has processed."""

    def __init__(self) -> None:
        self.processed: list[bytes] = []
        self.has_processed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.processed.append(line)
            self.has_processed.set()
            writer.write(line.upper())
        writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, line: bytes) -> bytes:
        """Empty when the connection ended instead of an answer."""
        self._writer.write(line)
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, Server, Callable[[], Awaitable[Client]]]]:
    server, clients = Server(), []
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    relay = Relay(("127.0.0.1", listening.sockets[0].getsockname()[1]))
    await relay.open()

    async def connect() -> Client:
        host, port = relay.url.removeprefix("http://").split(":")
        clients.append(Client(*await asyncio.open_connection(host, int(port))))
        return clients[-1]

    try:
        async with asyncio.timeout(PATIENCE_S):
            yield relay, server, connect
    finally:
        for client in clients:
            client.close()
        await relay.close()
        listening.close()


async def let_pass() -> None:
    """A moment, in which something that must not happen would."""
    await asyncio.sleep(0.05)


def test_it_brings_there_and_back() -> None:
    async def run() -> None:
        async with relayed() as (relay, _, connect):
            client = await connect()
            assert await client.ask(b"tea\n") == b"TEA\n"
            assert await client.ask(b"gin\n") == b"GIN\n"
            assert relay.bytes == {Way.THERE: 8, Way.BACK: 8}

    asyncio.run(run())


def test_each_way_takes_as_much_longer() -> None:
    async def run() -> float:
        async with relayed() as (relay, _, connect):
            client = await connect()
            relay.delay_s = 0.05
            began_s = asyncio.get_running_loop().time()
            await client.ask(b"tea\n")
            return asyncio.get_running_loop().time() - began_s

    assert asyncio.run(run()) >= 0.09


def test_what_is_cut_off_arrives_when_it_is_mended() -> None:
    async def run() -> None:
        async with relayed() as (relay, server, connect):
            client = await connect()
            relay.cut(Way.THERE, Way.BACK)
            asking = asyncio.create_task(client.ask(b"tea\n"))
            later = asyncio.create_task((await connect()).ask(b"gin\n"))
            await let_pass()
            assert server.processed == []
            relay.mend(Way.THERE, Way.BACK)
            assert (await asking, await later) == (b"TEA\n", b"GIN\n")

    asyncio.run(run())


def test_a_cut_of_the_way_back_lets_requests_through() -> None:
    async def run() -> None:
        async with relayed() as (relay, server, connect):
            client = await connect()
            relay.cut(Way.BACK)
            asking = asyncio.create_task(client.ask(b"tea\n"))
            await server.has_processed.wait()
            await let_pass()
            assert not asking.done()
            relay.mend(Way.BACK)
            assert await asking == b"TEA\n"

    asyncio.run(run())


def test_a_lost_answer_is_of_a_request_that_was_processed() -> None:
    async def run() -> None:
        async with relayed() as (relay, server, connect):
            client = await connect()
            relay.lost_share = 1.0
            assert await client.ask(b"tea\n") == b""
            assert server.processed == [b"tea\n"]
            assert relay.lost == 1
            relay.lost_share = 0.0
            assert await (await connect()).ask(b"gin\n") == b"GIN\n"

    asyncio.run(run())
