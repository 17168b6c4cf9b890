"""Ring hash: which endpoint owns an id, and which come after it.

Every endpoint stands at many points of a circle of 64-bit numbers, and an id belongs to the endpoint whose point comes
next. What always holds: the order depends on the names alone, not on the process or on the order of the endpoints; when
one leaves, only its own ids move, and they spread over all others. For that an endpoint has as many points among two as
among twenty, a quarter of the minimum size: Envoy, where they share that size, moves some ids of the others too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from math import ceil
from struct import unpack
from typing import Final

_POINTS_PER_HASH: Final = 8
"""Of 64 bits each in one digest of 64 bytes: most of the time to build a ring is hashing."""


def hash_64(text: str) -> int:
    """64 bits of `text`, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Ring:
    """The circle of one set of endpoints. To build one costs about 0.3 ms for each of them: keep it while the
    set is the same."""

    def __init__(self, names: Sequence[str], minimum_size: int) -> None:
        self.names = tuple(names)
        hashes = ceil(minimum_size / 4 / _POINTS_PER_HASH)
        points = sorted(
            (point, name)
            for name in names
            for number in range(hashes)
            for point in unpack(f">{_POINTS_PER_HASH}Q", blake2b(f"{name}_{number}".encode()).digest())
        )
        self._points = [point for point, _ in points]
        self._owners = [name for _, name in points]

    def order(self, id: str) -> Iterator[str]:
        """Every endpoint once, the owner of `id` first, then those that would own it if the ones before were gone."""
        seen: set[str] = set()
        size = len(self._points)
        start = bisect_left(self._points, hash_64(id))
        for step in range(size):
            name = self._owners[(start + step) % size]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.names):
                    return
