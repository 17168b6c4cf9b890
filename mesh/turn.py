"""Turns: one address of a host is carried out one request at a time, in the order in which they came.

What always holds: at most one holder an address; a turn that ends goes to whoever has waited longest and still waits;
an address that nobody wants takes no memory. Other hosts are no concern of it: two of them that take turns at one
address find that out when they commit.
"""

from __future__ import annotations

import asyncio
from collections import deque

from penstock.ids import Address


class Turns:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[Address, deque[asyncio.Future[None]]] = {}
        self.waiting = 0
        """How many wait, for people."""

    async def begin(self, address: Address) -> None:
        """Wait until the turn is the caller's, who has to `end` it then."""
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
        """Let the next one have it."""
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
