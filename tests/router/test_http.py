"""Rows reach a server at least once and in order, and a repeat can be recognised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from penstock.errors import Unavailable
from penstock.functions.io import HttpEgress
from penstock.records import EgressRow
from penstock.router.http import HttpSink
from penstock.router.sink import RowsRefused
from tests.router.receiver import receiving
from tests.router.sink_contract import rows, synchronous


class Waits:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def sending(url: str, waits: Waits | None = None, **options: Any) -> AsyncIterator[HttpSink]:
    sink = HttpSink(HttpEgress(url, **options), sleep=waits or Waits())
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close(final=True)


@synchronous
async def test_rows_arrive_in_order_with_a_key_made_of_their_cause() -> None:
    async with receiving() as receiver, sending(receiver.url) as sink:
        assert await sink.read_marker(0) == {}
        await sink.commit(0, rows(1, 255), {1: 1})
        await sink.tick()

    assert receiver.requests == [
        ("POST", b'{"n":1}\n', "0000000000000001"),
        ("POST", b'{"n":255}\n', "00000000000000ff"),
    ]


@synchronous
async def test_headers_of_the_egress_and_of_the_row_are_sent() -> None:
    secret = {"Authorization": "secret"}
    async with receiving() as receiver, sending(receiver.url, method="PUT", headers=secret) as sink:
        await sink.commit(0, [EgressRow(b"{}", 1, headers=(("X-Kind", "delay"),))], {1: 1})

    assert receiver.requests[0][0] == "PUT"
    assert receiver.headers[0]["Authorization"] == "secret"
    assert receiver.headers[0]["X-Kind"] == "delay"
    assert receiver.headers[0]["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
@synchronous
async def test_what_may_pass_is_tried_again_with_the_same_key(status: int) -> None:
    waits = Waits()
    async with receiving() as receiver, sending(receiver.url, waits) as sink:
        receiver.answers = [web.Response(status=status), None, web.Response(status=status)]
        await sink.commit(0, rows(1), {1: 1})

    assert [key for _, _, key in receiver.requests] == ["0000000000000001"] * 4
    assert waits.seconds == [0.2, 0.4, 0.8]


@synchronous
async def test_a_server_may_ask_for_a_longer_wait_but_not_for_any() -> None:
    waits = Waits()
    async with receiving() as receiver, sending(receiver.url, waits) as sink:
        receiver.answers = [
            web.Response(status=429, headers={"Retry-After": text}) for text in ("3", "86400", "Tue, 01 Jan 2030")
        ]
        await sink.commit(0, rows(1), {1: 1})

    assert waits.seconds == [3, 10, 10]


@pytest.mark.parametrize("status", [301, 400, 404, 422])
@synchronous
async def test_a_row_that_the_server_refuses_is_named_and_the_others_arrive_once(status: int) -> None:
    async with receiving() as receiver, sending(receiver.url) as sink:
        receiver.answers = [web.Response(), web.Response(status=status, text="no  such\nairport")]
        batch = rows(1, 2, 3)
        with pytest.raises(RowsRefused) as caught:
            await sink.commit(0, batch, {1: 1})
        await sink.commit(0, [batch[0], batch[2]], {1: 1})
        await sink.commit(0, rows(4), {1: 2})

    assert caught.value.refused == [(1, f"answer {status} no such airport")]
    assert str(caught.value) == (
        f"PEN0522 {receiver.url} refuses 1 of 3 rows: answer {status} no such airport. They go to the dead letters; "
        "the others were delivered."
    )
    assert [int(key, 16) for _, _, key in receiver.requests] == [1, 2, 3, 4]


@synchronous
async def test_after_an_outage_only_what_is_missing_is_sent_again() -> None:
    async with receiving() as receiver, sending(receiver.url) as sink:
        receiver.answers = [web.Response(), *(web.Response(status=503, text="busy") for _ in range(6))]
        with pytest.raises(Unavailable) as caught:
            await sink.commit(0, rows(1, 2), {1: 1})
        await sink.commit(0, rows(1, 2), {1: 1})

    assert [int(key, 16) for _, _, key in receiver.requests] == [1, 2, 2, 2, 2, 2, 2, 2]
    assert str(caught.value) == (
        f"PEN0523 {receiver.url} did not take a row in 6 attempts: answer 503 busy. Start or repair the server; the "
        "rows are kept and sent again, each with the same Idempotency-Key."
    )


@synchronous
async def test_silence_is_a_failure_too() -> None:
    connections: list[asyncio.Task[Any] | None] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with sending(f"http://127.0.0.1:{port}/", timeout_s=0.02) as sink:
        with pytest.raises(Unavailable, match="TimeoutError"):
            await sink.commit(0, rows(1), {1: 1})
    server.close()
    await asyncio.gather(*filter(None, connections))


@synchronous
async def test_an_address_without_a_server_is_a_failure() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    async with sending(f"http://127.0.0.1:{port}/") as sink:
        with pytest.raises(Unavailable, match=r"PEN0523 .* did not take a row in 6 attempts: ClientConnectorError"):
            await sink.commit(0, rows(1), {1: 1})
