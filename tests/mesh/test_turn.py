"""Turns: one at a time, in order, and none lost when somebody stops waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.ids import Address
from penstock.mesh.turn import Turns

A = Address("t/a", "1")
B = Address("t/a", "2")


@asynccontextmanager
async def turn_of(turns: Turns, address: Address) -> AsyncIterator[None]:
    await turns.begin(address)
    try:
        yield
    finally:
        turns.end(address)


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    done: list[int] = []

    async def run() -> None:
        turns = Turns()

        async def one(number: int) -> None:
            async with turn_of(turns, A):
                await asyncio.sleep(0)
                done.append(number)

        await asyncio.gather(*map(one, range(5)))
        assert turns.held == turns.waiting == 0

    asyncio.run(run())

    assert done == [0, 1, 2, 3, 4]


def test_addresses_do_not_wait_for_one_another() -> None:
    async def run() -> None:
        turns = Turns()
        async with turn_of(turns, A), turn_of(turns, B):
            assert turns.held == 2

    asyncio.run(run())


def test_whoever_stops_waiting_holds_up_nobody() -> None:
    async def run() -> None:
        turns = Turns()
        await turns.begin(A)
        waiting = [asyncio.create_task(turns.begin(A)) for _ in range(3)]
        await asyncio.sleep(0)

        waiting[0].cancel()
        await asyncio.sleep(0)
        turns.end(A)
        await waiting[1]

        assert (turns.waiting, turns.held) == (1, 1)
        turns.end(A)
        await waiting[2]

    asyncio.run(run())


def test_a_turn_that_comes_as_its_taker_leaves_goes_on_to_the_next() -> None:
    async def run() -> None:
        turns = Turns()
        await turns.begin(A)
        leaving, next_one = (asyncio.create_task(turns.begin(A)) for _ in range(2))
        await asyncio.sleep(0)

        turns.end(A)
        leaving.cancel()
        await next_one

        turns.end(A)
        assert turns.held == 0

    asyncio.run(run())


def test_whoever_leaves_as_the_turn_is_passed_on_is_passed_over() -> None:
    async def run() -> None:
        turns = Turns()
        await turns.begin(A)
        leaving, next_one = (asyncio.create_task(turns.begin(A)) for _ in range(2))
        await asyncio.sleep(0)

        leaving.cancel()
        turns.end(A)
        await next_one
        await asyncio.wait({leaving})

        assert leaving.cancelled()
        turns.end(A)
        assert (turns.waiting, turns.held) == (0, 0)

    asyncio.run(run())


def test_one_that_raises_gives_its_turn_back() -> None:
    async def run() -> None:
        turns = Turns()
        try:
            async with turn_of(turns, A):
                raise RuntimeError
        except RuntimeError:
            pass
        assert turns.held == 0

    asyncio.run(run())
