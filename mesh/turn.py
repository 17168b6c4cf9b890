"""Turns: one address of a host is carried out one request at a time, in the order in which they came.

What always holds: at most one holder an address; a turn that ends goes to whoever has waited longest and still waits;
an address that nobody wants takes no memory. Other hosts are no concern of it: two of them that take turns at one
address find that out when they commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from penstock.ids import Address


class Turns:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[Address, deque[asyncio.Future[None]]] = {}
        self.waiting = 0
        """How many wait, for people."""

    def take(self, address: Address) -> Turn:
        """`async with turns.take(address): ...`"""
        return Turn(self, address)

    async def begin(self, address: Address) -> None:
        line = self._held.get(address)
        if line is None:
            self._held[address] = deque()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(place)
        self.waiting += 1
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.end(address)  # It had just become ours.
            elif place in line:  # Whoever passes the turn on has thrown out those who had left.
                line.remove(place)
            raise
        finally:
            self.waiting -= 1

    def end(self, address: Address) -> None:
        line = self._held[address]
        while line:
            place = line.popleft()
            if not place.done():
                place.set_result(None)
                return
        del self._held[address]

    @property
    def held(self) -> int:
        """How many addresses are being carried out."""
        return len(self._held)


class Turn:
    """The right to change an address on this host."""

    __slots__ = ("_address", "_turns")

    def __init__(self, turns: Turns, address: Address) -> None:
        self._turns = turns
        self._address = address

    async def __aenter__(self) -> None:
        await self._turns.begin(self._address)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._turns.end(self._address)
